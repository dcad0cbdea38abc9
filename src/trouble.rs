//! Steps that failed: why, how often in a row, and how long they must wait.
//!
//! Kept by a key for each step, so that the failure of one does not hide that of another, and forgotten when that step succeeds.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::error::Setback;

/// A step that failed, as a plan sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Reason for a condition.
    pub reason: &'static str,
    /// What is wrong, where, and what to do.
    pub message: String,
    /// Whether the token of a project is at fault.
    pub credentials: bool,
    /// How often in a row.
    pub times: u32,
    /// How long it must not be tried again.
    pub wait: Duration,
}

/// Failed steps, by key.
#[derive(Debug, Default)]
pub struct Troubles(BTreeMap<String, Noted>);

#[derive(Debug)]
struct Noted {
    setback: Setback,
    credentials: bool,
    times: u32,
    until: Instant,
}

impl Troubles {
    /// Notes a failure; the pause grows with each in a row.
    pub fn failed(&mut self, key: &str, setback: Setback, credentials: bool, now: Instant) {
        let times = self.0.get(key).map_or(0, |noted| noted.times) + 1;
        let until = now + setback.pause(times);
        self.0.insert(
            key.to_owned(),
            Noted {
                setback,
                credentials,
                times,
                until,
            },
        );
    }

    /// Notes a success.
    pub fn succeeded(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// What a plan may know.
    pub fn view(&self, now: Instant) -> BTreeMap<String, Trouble> {
        let seen = |noted: &Noted| Trouble {
            reason: noted.setback.reason,
            message: noted.setback.message.clone(),
            credentials: noted.credentials,
            times: noted.times,
            wait: noted.until.saturating_duration_since(now),
        };
        self.0
            .iter()
            .map(|(key, noted)| (key.clone(), seen(noted)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_wait_longer_until_the_step_succeeds() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        let mut waits = vec![];
        for _ in 0..3 {
            troubles.failed("Read", Setback::passing("Why", ""), false, now);
            troubles.failed("Write", Setback::passing("Why", ""), false, now);
            troubles.succeeded("Write");
            waits.push(troubles.view(now)["Read"].wait.as_millis());
        }
        assert_eq!(waits, [500, 1000, 2000]);
        assert_eq!(
            troubles.view(now + Duration::from_mins(1))["Read"].wait,
            Duration::ZERO
        );
        troubles.succeeded("Read");
        assert!(troubles.view(now).is_empty());
    }
}
