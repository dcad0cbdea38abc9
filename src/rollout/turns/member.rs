//! An instance as its rollout sees it, and what can be said of it alone.

use k8s_openapi::jiff::Timestamp;

use super::Course;
use crate::api::HealthState;

/// A revision of a class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// Its name.
    pub name: String,
    /// The boot revision that servers of it have.
    pub boot: String,
    /// The config revision that they have, but for what an instance asks for of its own.
    pub config: String,
}

impl Revision {
    /// Whether servers of both are the same, however their agents are probed.
    pub fn is_like(&self, other: &Self) -> bool {
        (&self.boot, &self.config) == (&other.boot, &other.config)
    }
}

/// Which revision an agent speaks with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Has {
    /// It does not speak: it is suspended, or has no server, or that was never configured.
    #[default]
    Nothing,
    /// One that is not known any more.
    Unknown,
    /// This.
    Revision(String),
}

/// Whether a server is what a class lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fit {
    /// It is.
    #[default]
    Listed,
    /// But for its type, and it can become one that is.
    ByAnotherType,
    /// It is not, nor can it become so.
    No,
}

/// An instance of the class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, and any of them may be true together"
)]
pub struct Member {
    /// UID.
    pub uid: String,
    /// Name, for people.
    pub name: String,
    /// What it speaks with.
    pub has: Has,
    /// Boot revision of its server.
    pub boot: Option<String>,
    /// Whether its server is still what the class lists.
    pub fits: Fit,
    /// Whether its disk is kept, whatever the class says of its disks.
    pub keeps_disk: bool,
    /// Since when it is Ready.
    pub ready: Option<Timestamp>,
    /// What its probes say.
    pub health: Option<HealthState>,
    /// Whether only a person can help it.
    pub stalled: bool,
    /// Whether nothing can be given to it: its server does not answer, or is gone.
    pub out_of_reach: bool,
    /// The revision with which it was Ready last.
    pub good: Option<String>,
    /// The try of a revision that failed here.
    pub refused: Option<String>,
    /// The revision that it was given a turn for.
    pub granted: Option<String>,
    /// Whether it was let get a new server, or another type.
    pub moving: bool,
    /// Whether a server stands beside the one that speaks, to take its place.
    pub prepared: bool,
}

impl Member {
    pub(super) fn has(&self, revision: &Revision) -> bool {
        matches!(&self.has, Has::Revision(name) if *name == revision.name)
    }

    pub(super) fn speaks(&self) -> bool {
        self.has != Has::Nothing
    }

    /// Whether it refused this try of the target and has something to go back to.
    pub(super) fn refuses(&self, course: &Course) -> bool {
        self.speaks() && self.good.is_some() && self.refused.as_ref() == Some(&course.attempt)
    }

    /// Whether the target failed on it, which was Ready with another revision before.
    pub(super) fn fell(&self, course: &Course) -> bool {
        let before = self.good.as_ref();
        let ever_ready = before == Some(&course.target.name);
        let fails = self.health == Some(HealthState::Failed) && !ever_ready;
        let is_down = self.ready.is_none() && (fails || self.stalled);
        self.refuses(course) || (self.has(&course.target) && before.is_some() && is_down)
    }

    /// Whether its server is not what the class asks for.
    pub(super) fn misfits(&self, goal: &Revision) -> bool {
        self.fits != Fit::Listed || self.has_other_boot(goal)
    }

    pub(super) fn has_other_boot(&self, goal: &Revision) -> bool {
        self.boot.as_ref().is_some_and(|boot| *boot != goal.boot)
    }

    /// Whether its own server becomes what the class asks for, with its disk.
    pub(super) fn is_to_retype(&self, goal: &Revision) -> bool {
        self.fits == Fit::ByAnotherType && !self.has_other_boot(goal)
    }
}
