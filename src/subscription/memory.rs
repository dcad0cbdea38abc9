//! What this process remembers of subscriptions between two looks: what could not be done, and what was told. All of it may be lost at any time.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    error::{Retry, Setback},
    notification::delivery::Delivery,
};

/// Between two tries to tell one event.
const PAUSE: Retry = Retry::Growing(Duration::from_secs(1), Duration::from_mins(10));

/// What is remembered of all subscriptions, by UID.
#[derive(Debug, Default)]
pub struct Memories(Mutex<HashMap<String, Memory>>);

#[derive(Debug, Default)]
struct Memory {
    trouble: Option<(Setback, u32)>,
    /// Id of the event that was taken last.
    taken: Option<String>,
    /// The event that was not: its id, how often, and when to try again.
    refused: Option<(String, u32, Instant)>,
}

impl Memories {
    /// What could not be done the last time: reason and message.
    pub fn trouble(&self, uid: &str) -> Option<(&'static str, String)> {
        let all = self.all();
        let (setback, _) = all.get(uid)?.trouble.as_ref()?;
        Some((setback.reason, setback.message.clone()))
    }

    /// Notes a failure; answers how long to wait.
    pub fn failed(&self, uid: &str, setback: Setback) -> Duration {
        if let Some(pause) = setback.brief() {
            return pause;
        }
        let mut all = self.all();
        let trouble = &mut all.entry(uid.to_owned()).or_default().trouble;
        let times = trouble.as_ref().map_or(0, |(_, times)| *times) + 1;
        let pause = setback.pause(times);
        *trouble = Some((setback, times));
        pause
    }

    /// Notes that all was done, or that nothing is left to do.
    pub fn succeeded(&self, uid: &str) {
        if let Some(memory) = self.all().get_mut(uid) {
            memory.trouble = None;
        }
    }

    /// Notes what became of an event.
    pub fn delivered(&self, uid: &str, delivery: Delivery, now: Instant) {
        let mut all = self.all();
        let memory = all.entry(uid.to_owned()).or_default();
        match delivery {
            Delivery::Taken(event) => (memory.taken, memory.refused) = (Some(event.id), None),
            Delivery::Failed(event) => {
                let before = memory.refused.take().filter(|(id, ..)| *id == event.id);
                let times = before.map_or(0, |(_, times, _)| times) + 1;
                memory.refused = Some((event.id, times, now + PAUSE.pause(times)));
            }
        }
    }

    /// Id of the event that was taken last.
    pub fn taken(&self, uid: &str) -> Option<String> {
        self.all().get(uid)?.taken.clone()
    }

    /// How long an event that was not taken waits; zero for any other.
    pub fn waits(&self, uid: &str, event: &str, now: Instant) -> Duration {
        let all = self.all();
        let refused = all.get(uid).and_then(|memory| memory.refused.as_ref());
        let same = refused.filter(|(id, ..)| id == event);
        same.map_or(Duration::ZERO, |(_, _, again)| {
            again.saturating_duration_since(now)
        })
    }

    /// Forgets a subscription that is gone.
    pub fn forget(&self, uid: &str) {
        self.all().remove(uid);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Memory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
