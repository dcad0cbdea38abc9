//! What is known of the guest of one server, from its own words and from what was tried.

use k8s_openapi::jiff::Timestamp;

use crate::health::HealthView;

/// What this process remembers of a server's guest; all of it may be lost at any time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GuestView {
    /// An act over SSH is under way.
    pub busy: bool,
    /// That act starts the agent's unit again.
    pub restarts: bool,
    /// The host key that was proven, while it is not in the status yet.
    pub proven: Option<String>,
    /// What `hello` said last.
    pub hello: Option<Hello>,
    /// Whether its program is to become the one that this operator brings.
    pub upgrade: Upgrade,
    /// When this process began to try to reach it.
    pub tried_since: Option<Timestamp>,
    /// Why the last try to reach it failed, and when that was.
    pub contact: Option<(ContactProblem, Timestamp)>,
    /// What the last `configure` came to.
    pub configured: Option<Configured>,
    /// When it was last asked to be switched on, or to come back with another type.
    pub powered: Option<Timestamp>,
    /// Whether Hetzner would not give it another type.
    pub retype_refused: bool,
    /// When it was last asked to be switched off, while it is on.
    pub shut_down: Option<Timestamp>,
    /// What its probes say; none while it is not probed.
    pub health: Option<HealthView>,
    /// By when a list is expected to show that it is gone, once this process asked for its deletion.
    pub gone_by: Option<Timestamp>,
    /// The last `release`: the epoch it carried, and whether it was answered.
    pub released: Option<(i64, bool)>,
    /// How many times in a row it has not answered, or not done, what it was asked, and when that was last.
    pub in_vain: Option<(u32, Timestamp)>,
}

impl GuestView {
    /// Whether its probes have said that before it was changed last.
    pub fn is_of_before(&self, view: &HealthView) -> bool {
        let configured = self.configured.as_ref();
        configured.is_some_and(|last| last.epoch > view.epoch && !last.left_as_before())
    }

    /// It has not answered, or not done as told.
    pub fn was_asked_in_vain(&mut self, now: Timestamp) {
        let before = self.in_vain.map_or(0, |(times, _)| times);
        self.in_vain = Some((before.saturating_add(1), now));
    }
}

/// Whether a guest's program is to be replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Upgrade {
    /// It is the one that this operator brings, as far as is known.
    #[default]
    NotNeeded,
    /// It was just replaced; an answer that was asked for before that may still come.
    Done,
    /// It is another one.
    Due,
    /// It is another one, and did not let itself be replaced; it is asked once more before the next `configure`.
    Tried,
}

/// Why a guest could not be talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContactProblem {
    /// Nothing answered: what was tried and how it ended.
    Silent(String),
    /// Somebody answered without being able to prove that he is this server.
    WrongProof(String),
    /// The host key is not the pinned one.
    HostKeyChanged(String),
    /// It answers, but refuses the operator's login.
    LoginRefused(String),
    /// Its answer could not be understood.
    Garbage(String),
}

/// What a guest says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Where the installation stands.
    pub phase: InstallPhase,
    /// The incarnation that it is armed for.
    pub armed: Option<u32>,
    /// Whether its disk was ever armed, on whichever server.
    pub ever_armed: bool,
    /// The instance that it was armed for, by UID.
    pub armed_for: Option<String>,
    /// The highest epoch that it has seen.
    pub epoch: i64,
    /// The config revision and secrets tag that it has applied.
    pub applied: Option<(String, String)>,
}

/// Where the installation on a server stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum InstallPhase {
    /// Under way.
    Running,
    /// Done.
    #[default]
    Done,
    /// A step failed: its name and last lines.
    Failed(String),
}

/// What a `configure` came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configured {
    /// The epoch that it carried.
    pub epoch: i64,
    /// The config revision and secrets tag that were sent.
    pub sent: (String, String),
    /// The guest's answer: whether the unit is active, or what went wrong.
    pub outcome: Result<bool, ConfigureFailure>,
}

impl Configured {
    /// Whether the agent goes on with what it had.
    pub fn left_as_before(&self) -> bool {
        self.outcome
            .as_ref()
            .is_err_and(|failure| failure.as_before)
    }
}

/// Why a `configure` did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigureFailure {
    /// Reason for a condition.
    pub reason: String,
    /// What the guest said, with the unit's last lines.
    pub message: String,
    /// What can help.
    pub cure: Cure,
    /// Whether it is for what was sent, in all likelihood, that it failed.
    pub of_content: bool,
    /// Whether the agent that spoke before goes on with what it had.
    pub as_before: bool,
    /// How many times in a row; the pause grows with it.
    pub times: u32,
    /// When the same is tried again; none: not before class or Secret change.
    pub again: Option<Timestamp>,
}

/// What may be the network's fault must happen so often before the content is blamed.
const BLAMED_FROM: u32 = 2;

impl ConfigureFailure {
    /// Whether the guest itself has said that all is as it was before.
    pub fn was_without_effect(&self) -> bool {
        self.of_content && self.as_before
    }

    /// Whether it is believed that the same would fail again.
    pub(in crate::agent_instance) fn blames_content(&self) -> bool {
        self.of_content && (self.cure == Cure::Change || self.times >= BLAMED_FROM)
    }
}

/// What a `configure` that did not succeed waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cure {
    /// Another class or Secret: with this one the agent cannot live.
    Change,
    /// A person's hand on the server.
    Person,
    /// It may pass by itself.
    Time,
}
