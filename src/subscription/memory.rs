//! What this process remembers of subscriptions between two looks: what could not be done. All of it may be lost at any time.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::error::Setback;

/// What is remembered of all subscriptions, by UID.
#[derive(Debug, Default)]
pub struct Memories(Mutex<HashMap<String, (Setback, u32)>>);

impl Memories {
    /// What could not be done the last time: reason and message.
    pub fn trouble(&self, uid: &str) -> Option<(&'static str, String)> {
        let all = self.all();
        let (setback, _) = all.get(uid)?;
        Some((setback.reason, setback.message.clone()))
    }

    /// Notes a failure; answers how long to wait.
    pub fn failed(&self, uid: &str, setback: Setback) -> Duration {
        if let Some(pause) = setback.brief() {
            return pause;
        }
        let mut all = self.all();
        let times = all.get(uid).map_or(0, |(_, times)| *times) + 1;
        let pause = setback.pause(times);
        all.insert(uid.to_owned(), (setback, times));
        pause
    }

    /// Notes that all was done, or that nothing is left to do.
    pub fn succeeded(&self, uid: &str) {
        self.all().remove(uid);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, (Setback, u32)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
