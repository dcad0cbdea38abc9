//! What this process remembers of classes between two looks; all of it may be lost at any time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{rollout::revisions::Housekeeping, trouble::Troubles};

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
    /// The former revision that was written last, and those that were deleted, and when: the watch shows it later.
    pub kept: Option<(Housekeeping, Instant)>,
    /// Steps that failed.
    pub troubles: Troubles,
}

/// How long the watch may take to show what was written.
const SHOWS: Duration = Duration::from_secs(5);

impl Memory {
    /// What is to be kept and dropped, but for what was just done.
    pub fn not_done(&self, due: Housekeeping, now: Instant) -> Housekeeping {
        match &self.kept {
            Some((done, at)) if now.saturating_duration_since(*at) < SHOWS => Housekeeping {
                write: due.write.filter(|write| done.write.as_ref() != Some(write)),
                drop: due
                    .drop
                    .into_iter()
                    .filter(|name| !done.drop.contains(name))
                    .collect(),
            },
            _ => due,
        }
    }

    /// A revision was written, or deleted.
    pub fn did(&mut self, done: Housekeeping, now: Instant) {
        let former = self
            .kept
            .take()
            .map(|(former, _)| former)
            .unwrap_or_default();
        let drop = former.drop.into_iter().chain(done.drop).collect();
        let write = done.write.or(former.write);
        self.kept = Some((Housekeeping { write, drop }, now));
    }
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
