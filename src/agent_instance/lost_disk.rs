//! A disk that went with its server, and what it can come back from; pure.
//!
//! An agent without its memory must not look Ready (I6): as long as its disk is lost, no empty server is asked for in its place, unless a person
//! says so or the disk was made to be worth nothing (I14).

use super::world::{Known, World};
use crate::api::{ProvisioningRecord, ServerStatus};

/// A disk that is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostDisk {
    /// The project that held its server, and holds what snapshots there are.
    pub project: String,
    /// Id of the server.
    pub server: i64,
    /// Id of the snapshot that this server was itself made of.
    pub made_of: Option<i64>,
    /// Whether a server that is to take the place of that one was written down already.
    pub announced: bool,
}

impl World {
    /// Whether this is the server that ran the agent last: it holds the voice, or the voice was taken from it.
    pub fn spoke(&self, incarnation: i64) -> bool {
        let voice = self.voice();
        voice.is_some_and(|voice| voice.incarnation.is_none_or(|holder| holder == incarnation))
    }

    /// Whether a person gave a server up, with all that is on it.
    pub fn is_given_up(&self, incarnation: i64) -> bool {
        Some(incarnation) <= self.status.given_up()
    }

    /// The disk that is lost, if one is.
    pub fn lost_disk(&self) -> Option<LostDisk> {
        self.lost_with_its_server().or_else(|| self.not_restored())
    }

    fn lost_with_its_server(&self) -> Option<LostDisk> {
        let gone = self
            .status
            .server
            .as_ref()
            .filter(|_| self.known == Known::Gone);
        let number = gone?.incarnation;
        let missed = |server: &&ServerStatus| !self.was_disposable(server);
        let lost = gone.filter(missed);
        let lost = lost.filter(|_| self.spoke(number) && !self.is_given_up(number))?;
        let record = self.record();
        let of_it = record.filter(|record| record.incarnation == number);
        let made_of = of_it.and_then(|record| record.snapshot.as_ref());
        Some(LostDisk {
            project: lost.project.clone(),
            server: lost.id,
            made_of: made_of.map(|snapshot| snapshot.id),
            announced: record.is_some_and(|record| record.incarnation > number),
        })
    }

    /// The server that was to have it again came to nothing.
    fn not_restored(&self) -> Option<LostDisk> {
        let came_to_nothing = |record: &&ProvisioningRecord| {
            !self.spoke(record.incarnation) && !self.is_given_up(record.incarnation)
        };
        let record = self.record().filter(came_to_nothing)?;
        let snapshot = record.snapshot.as_ref()?;
        Some(LostDisk {
            project: record.project.clone(),
            server: snapshot.server,
            made_of: Some(snapshot.id),
            announced: true,
        })
    }
}
