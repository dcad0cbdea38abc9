//! Which of an instance's servers is the agent's, which one is to be, and why; pure.
//!
//! Most instances have one server. A second one stands beside it while it is replaced: booted and installed first, so that the agent is silent for
//! as long as it takes to hand the voice over, and no longer.

use super::{
    desired::Agent,
    world::{ClassView, ServerView, World},
};
use crate::{
    api::{Disk, ServerStatus},
    hetzner_project::retype::Retype,
};

/// Why a server is not the one that is wanted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// A person asked for a new one.
    Ordered,
    /// It was born with what the class no longer says.
    Boot,
    /// It is of another revision, and each gets servers of its own.
    Revision,
    /// The class no longer lists its type, and it can become one that is listed.
    Type,
    /// The class no longer lists its project, type or location.
    Place,
}

impl Misfit {
    /// What it needs, for a condition.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Type => "NeedsOtherType",
            Self::Ordered | Self::Boot | Self::Revision | Self::Place => "NeedsNewServer",
        }
    }

    /// Whether it is of another revision than the one that is wanted, in what it cannot take up.
    pub const fn is_replaced(self) -> bool {
        matches!(self, Self::Boot | Self::Revision)
    }

    /// What is the matter, for a condition.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Ordered => "a new server was asked for",
            Self::Boot => "the class changed in what only a new server can take up",
            Self::Revision => "the class changed, and replaces its servers for that",
            Self::Type => "the class no longer lists the type of the server",
            Self::Place => {
                "the class no longer lists the project, the type or the location of the server"
            }
        }
    }
}

/// Why a server is not the one that is wanted, if it is not; servers up to the number `given_up` are not.
fn misfit(agent: &Agent, given_up: Option<i64>, server: &ServerView) -> Option<Misfit> {
    let booted = server.boot_revision.as_ref();
    if Some(i64::from(server.incarnation)) <= given_up {
        Some(Misfit::Ordered)
    } else if booted.is_some_and(|revision| *revision != agent.boot_revision) {
        Some(Misfit::Boot)
    } else {
        misplaced(agent, server)
    }
}

fn misplaced(agent: &Agent, server: &ServerView) -> Option<Misfit> {
    let types = agent.types_at(&server.project, &server.location);
    if types.contains(&server.server_type.as_str()) {
        return None;
    }
    match server.retype {
        _ if types.is_empty() => Some(Misfit::Place),
        Retype::Unknown => None,
        Retype::Impossible => Some(Misfit::Place),
        Retype::To(_) => Some(Misfit::Type),
    }
}

impl World {
    /// The servers of one object.
    pub fn own<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a ServerView> {
        self.servers.iter().filter(move |server| server.uid == uid)
    }

    /// Why a server is not the one that is wanted; unknown, and so never, while the class cannot be used.
    pub fn misfit(&self, server: &ServerView) -> Option<Misfit> {
        match &self.class {
            ClassView::Usable(agent) => match misfit(agent, self.status.given_up(), server) {
                found @ Some(Misfit::Ordered | Misfit::Boot) => found,
                _ if self.is_of_another_revision(agent, server) => Some(Misfit::Revision),
                found => found,
            },
            _ => None,
        }
    }

    /// Whether the operator may give up what is on a server by its own decision (I14). A class that calls its disks disposable does not speak of
    /// those that were made before; one that keeps them speaks of all.
    pub fn is_disposable(&self, server: &ServerView) -> bool {
        server.disk == Disk::Disposable && self.makes_disposable()
    }

    /// The same of a server that is gone, by what is known of it.
    pub fn was_disposable(&self, server: &ServerStatus) -> bool {
        server.disk != Some(Disk::Preserve) && self.makes_disposable()
    }

    fn makes_disposable(&self) -> bool {
        matches!(&self.class, ClassView::Usable(agent) if agent.disk() == Disk::Disposable)
    }

    /// Whether a server was made for, or has, another revision than the one that is wanted, where each gets servers of its own. What an
    /// instance changes of its own is in no revision.
    fn is_of_another_revision(&self, agent: &Agent, server: &ServerView) -> bool {
        let applied = self.applied(server);
        let is_applied = applied.is_some_and(|(config, _)| config == agent.config_revision);
        if !agent.lifecycle.replaces() || !self.is_disposable(server) || is_applied {
            return false;
        }
        let told = self.status.server.as_ref();
        let told = told.filter(|told| told.id == server.id);
        let told = told.and(self.status.class_revision.as_ref());
        let has = told.or(server.revision.as_ref());
        has.is_some_and(|has| !self.rollout.is_met_by(has))
    }

    /// The server that the agent runs on, or is about to: the holder of the voice; while nobody has it, the one that had it last, until that is
    /// surely silent and another is ready to be given it.
    pub fn front<'a>(&'a self, uid: &'a str) -> Option<&'a ServerView> {
        let newest = || self.own(uid).max_by_key(|server| server.incarnation);
        if self.voice().is_none() {
            return newest();
        }
        if let Some(holder) = self.voice_holder() {
            let holding = self.own(uid).find(|server| server.incarnation == holder);
            return holding.or_else(newest);
        }
        let told = self.status.server.as_ref().map(|server| server.id);
        let Some(last) = self.own(uid).find(|server| Some(server.id) == told) else {
            return newest();
        };
        if self.cannot_speak(last) {
            return self.successor(uid, last).or(Some(last));
        }
        Some(last)
    }

    /// The server that is to take the place of another, as far as there is one.
    pub fn successor<'a>(&'a self, uid: &'a str, of: &ServerView) -> Option<&'a ServerView> {
        let (id, misfit) = (of.id, self.misfit(of));
        misfit?;
        self.own(uid)
            .filter(|server| server.id != id && !server.deleting && self.misfit(server).is_none())
            .max_by_key(|server| server.incarnation)
    }

    /// Whether a server has said that its agent is silent since nobody, or another one, has the voice.
    pub fn is_silent(&self, server: &ServerView) -> bool {
        let told = server.guest.released;
        told.is_some_and(|(epoch, done)| done && epoch >= self.taken_at())
    }

    /// The epoch with which a server last proved that its agent is silent, to this process or to one before.
    pub fn silent_since(&self, server: &ServerView) -> Option<i64> {
        let told = self.status.server.as_ref();
        let told = told.filter(|told| told.id == server.id);
        let proven = server.guest.released.filter(|(_, done)| *done);
        told.and_then(|told| told.silent_since_epoch)
            .max(proven.map(|(epoch, _)| epoch))
    }

    /// Whether nobody has the voice, and a server has proven since that was taken from it that its agent is silent: it is so as long as it is off.
    pub fn is_silent_in_the_dark(&self, server: &ServerView) -> bool {
        let taken = self.voice().filter(|voice| voice.incarnation.is_none());
        taken.is_some_and(|voice| self.silent_since(server) >= Some(voice.epoch))
    }

    /// Whether its agent is silent, or never spoke.
    pub fn cannot_speak(&self, server: &ServerView) -> bool {
        let hello = server.guest.hello.as_ref();
        self.is_silent(server) || hello.is_some_and(|hello| !hello.ever_armed)
    }

    /// The epoch with which the voice was taken from whoever had it before. Who is given it gets the next one.
    pub fn taken_at(&self) -> i64 {
        let given = |voice: &crate::api::VoiceRecord| i64::from(voice.incarnation.is_some());
        self.voice().map_or(0, |voice| voice.epoch - given(voice))
    }
}
