//! What this process remembers of classes between two looks; all of it may be lost at any time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::trouble::Troubles;

/// What is remembered of one class.
#[derive(Debug, Default)]
pub struct Memory {
    /// What the catalogue said, of which generation, and when.
    pub checked: Option<(Option<i64>, Instant, Result<(), String>)>,
    /// When other counts of instances were written last.
    pub counted_at: Option<Instant>,
    /// Networks that were asked for, by project and name.
    pub networks: BTreeMap<(String, String), (Instant, Option<u64>)>,
    /// Servers that were given their firewall back, and when: lists show it later.
    pub guarded: BTreeMap<i64, Instant>,
    /// Steps that failed.
    pub troubles: Troubles,
}

/// What is remembered of all classes, by name.
#[derive(Debug, Default)]
pub struct Memories(Mutex<HashMap<String, Memory>>);

impl Memories {
    /// Uses what is remembered of one class.
    pub fn with<T>(&self, class: &str, use_it: impl FnOnce(&mut Memory) -> T) -> T {
        use_it(self.lock().entry(class.to_owned()).or_default())
    }

    /// Forgets a class that is gone.
    pub fn forget(&self, class: &str) {
        self.lock().remove(class);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Memory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
