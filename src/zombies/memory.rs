//! What this process remembers from one sweep to the next: what was found, since when and for what.
//!
//! It may be lost at any time: then everything has to be seen twice again, which is what a new process should do.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{
    finding::{Finding, Reason},
    world::Kind,
};
use crate::hetzner_project::connection::Connection;

/// A first sighting, as the plan sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// What it was found for.
    pub reason: Reason,
    /// Whether it is long enough ago, and another list has shown the thing since.
    pub settled: bool,
}

/// What is remembered, by project.
#[derive(Debug, Default)]
pub struct Memory(BTreeMap<String, OfProject>);

#[derive(Debug, Default)]
struct OfProject {
    /// What was seen through one token says nothing of another.
    connection: Weak<Connection>,
    things: BTreeMap<(Kind, i64), Seen>,
}

#[derive(Debug)]
struct Seen {
    reason: Reason,
    first: Instant,
    told: bool,
}

impl Memory {
    /// Forgets a project's sightings unless they were made through this connection.
    pub fn through(&mut self, project: &str, connection: &Arc<Connection>) {
        let connection = Arc::downgrade(connection);
        let known = self.0.entry(project.to_owned()).or_default();
        if !known.connection.ptr_eq(&connection) {
            *known = OfProject {
                connection,
                things: BTreeMap::new(),
            };
        }
    }

    /// The first sighting of a thing; `list` is when the list was begun that shows it now.
    pub fn sighting(
        &self,
        project: &str,
        thing: (Kind, i64),
        list: Instant,
        (now, period): (Instant, Duration),
    ) -> Option<Sighting> {
        let seen = self.0.get(project)?.things.get(&thing)?;
        let ago = now.saturating_duration_since(seen.first);
        Some(Sighting {
            reason: seen.reason,
            settled: ago >= period && list > seen.first,
        })
    }

    /// Remembers what a sweep found, and forgets all that it did not find, or found for something else.
    pub fn sighted(&mut self, findings: &[Finding], now: Instant) {
        let mut before = std::mem::take(&mut self.0);
        for (project, known) in &mut before {
            let connection = std::mem::take(&mut known.connection);
            let things = BTreeMap::new();
            self.0
                .insert(project.clone(), OfProject { connection, things });
        }
        for finding in findings {
            let thing = (finding.kind, finding.id);
            let former = before
                .get_mut(&finding.project)
                .and_then(|known| known.things.remove(&thing))
                .filter(|seen| seen.reason == finding.reason);
            let seen = former.unwrap_or(Seen {
                reason: finding.reason,
                first: now,
                told: false,
            });
            let known = self.0.entry(finding.project.clone()).or_default();
            known.things.insert(thing, seen);
        }
    }

    /// Whether people are to be told of a finding: once for each reason.
    pub fn is_news(&mut self, finding: &Finding) -> bool {
        let seen = self
            .0
            .get_mut(&finding.project)
            .and_then(|known| known.things.get_mut(&(finding.kind, finding.id)));
        seen.is_some_and(|seen| !std::mem::replace(&mut seen.told, true))
    }
}
