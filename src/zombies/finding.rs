//! What a sweep found, in words that stay the same from sweep to sweep.

use std::fmt;

use super::world::{Kind, Thing, What};

/// Why a thing is a zombie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its instance serves on a later server.
    LeftBehind,
    /// Its instance does not exist, and its disk is disposable.
    Disposable,
    /// Its instance does not exist, and its guest proved that no agent ever ran there.
    NeverArmed,
    /// Its class does not exist, and it protects nothing.
    ClassGone,
    /// Its instance does not exist, and its disk may hold what an agent wrote.
    DiskKept,
    /// The same, and its guest proved that an agent has run there.
    WasArmed,
    /// Its labels do not name an instance, or not the one that its name stands for.
    LabelsChanged,
    /// Hetzner was told never to delete it.
    Protected,
    /// Nobody knows how old it is.
    AgeUnknown,
    /// The operator makes only one such thing for a project, and this is another.
    NotOurs,
}

/// What becomes of a zombie in this sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was seen for the first time, or too short a while ago.
    SeenOnce,
    /// It is deleted.
    Goes,
    /// It would be deleted, but so many are unclaimed that the picture may be wrong.
    Held,
    /// It is deleted in a later sweep: this one has done enough.
    Waits,
    /// It would be deleted, but the operator was told only to tell.
    WouldGo,
    /// It is for a person.
    Stays,
}

/// One zombie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The project it is in.
    pub project: String,
    /// Its kind.
    pub kind: Kind,
    /// Its id at Hetzner.
    pub id: i64,
    /// Its name there.
    pub name: String,
    /// Whose it was: namespace/name of an instance, or a class.
    pub owner: String,
    /// Why it is one.
    pub reason: Reason,
    /// What becomes of it.
    pub fate: Fate,
}

/// Why nothing is deleted, however sure each single case looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Not one server is claimed: the instances are not there yet, or not any more.
    NothingClaimed,
    /// So many of so many are unclaimed.
    TooMany(usize, usize),
}

impl Finding {
    pub(super) fn of(project: &str, thing: &Thing, reason: Reason, fate: Fate) -> Self {
        Self {
            project: project.to_owned(),
            kind: thing.kind(),
            id: thing.id,
            name: thing.name.clone(),
            owner: thing.owner(),
            reason,
            fate,
        }
    }

    /// What it is and why, in one sentence that stays the same from sweep to sweep.
    pub fn sentence(&self) -> String {
        let Self {
            kind,
            id,
            name,
            owner,
            reason,
            ..
        } = self;
        let named = if name.is_empty() {
            String::new()
        } else {
            format!(" ({name})")
        };
        format!("{} {id}{named}: {}", kind.word(), reason.words(owner))
    }
}

impl Thing {
    /// Whose it was, as its labels say.
    pub fn owner(&self) -> String {
        match &self.what {
            What::Server(server) => server
                .owner
                .as_ref()
                .map(|owner| format!("{}/{}", owner.namespace, owner.name))
                .unwrap_or_default(),
            What::Firewall { class, .. } => class.clone().unwrap_or_default(),
            What::SshKey | What::Snapshot => String::new(),
        }
    }
}

impl Reason {
    /// The word for tables and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeftBehind => "LeftBehind",
            Self::Disposable => "Disposable",
            Self::NeverArmed => "NeverArmed",
            Self::ClassGone => "ClassGone",
            Self::DiskKept => "DiskKept",
            Self::WasArmed => "WasArmed",
            Self::LabelsChanged => "LabelsChanged",
            Self::Protected => "Protected",
            Self::AgeUnknown => "AgeUnknown",
            Self::NotOurs => "NotOurs",
        }
    }

    /// The reason for people; `owner` is what the labels name.
    pub fn words(self, owner: &str) -> String {
        match self {
            Self::LeftBehind => format!("AgentInstance {owner} serves on a later server"),
            Self::Disposable => {
                format!("there is no AgentInstance {owner}, and its disk is Disposable")
            }
            Self::NeverArmed => format!(
                "there is no AgentInstance {owner}, and its guest proved that no agent ever ran on it"
            ),
            Self::ClassGone => format!("there is no AgentClass {owner}, and it protects nothing"),
            Self::DiskKept => {
                format!("there is no AgentInstance {owner}, and its disk may hold an agent's data")
            }
            Self::WasArmed => {
                format!("there is no AgentInstance {owner}, and an agent has run on it")
            }
            Self::LabelsChanged => {
                "it carries this fleet's label, and its other labels do not fit its name".into()
            }
            Self::Protected => format!(
                "nothing claims it as {owner}, and it is protected against deletion at Hetzner"
            ),
            Self::AgeUnknown => "Hetzner does not tell how old it is".into(),
            Self::NotOurs => "it carries this fleet's label, and agentfleet did not make it".into(),
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingClaimed => {
                f.write_str("no server of this fleet belongs to an AgentInstance")
            }
            Self::TooMany(unclaimed, of) => {
                write!(f, "{unclaimed} of {of} servers belong to no AgentInstance")
            }
        }?;
        f.write_str(
            ": likelier the AgentInstances are missing than the servers too many, so nothing is deleted. Apply the AgentInstances again, or delete \
             the servers by hand",
        )
    }
}
