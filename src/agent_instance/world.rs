//! What is: one picture of all that matters to an instance, taken at one moment.
//!
//! Plain data that tests can write down. `observe` in the parent module fills it from the Kubernetes stores, the inventories of the projects
//! and what this process remembers; nothing here reads anything.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::jiff::Timestamp;

use super::{desired::Agent, notices::NoticesView};
use crate::api::{AgentInstanceStatus, Disk, HealthState, ProvisioningRecord, VoiceRecord};
use crate::hetzner::Place;
use crate::hetzner_project::retype::Retype;
use crate::rollout::Share;

mod attempt;
mod guest;
pub use attempt::{Attempt, LookUp, SendOutcome, SnapshotLook};
pub use guest::{
    ConfigureFailure, Configured, ContactProblem, Cure, GuestView, Hello, InstallPhase, Upgrade,
};

/// Everything that a plan for one instance may depend on.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Whether our finalizer is on the object.
    pub finalizer: bool,
    /// The status as it was last written, records included.
    pub status: AgentInstanceStatus,
    /// The class, as far as it can be used.
    pub class: ClassView,
    /// Which revision of the class that is, and why.
    pub rollout: Share,
    /// What a server that another one is prepared for is to have until then, if that is something else.
    pub meanwhile: Option<Meanwhile>,
    /// Whether it is this instance's turn to be given a new server beside the old one, or the old one another type, by the operator's own decision.
    pub may_move: bool,
    /// The instance's Secret.
    pub secrets: SecretsView,
    /// The projects of the class in its order, and any other that holds a server of this instance.
    pub projects: Vec<ProjectView>,
    /// All servers that carry this instance's fleet, namespace and name.
    pub servers: Vec<ServerView>,
    /// What became of the server in the status.
    pub known: Known,
    /// What is remembered of the requests for the server in the provisioning record.
    pub attempt: Attempt,
    /// The epoch that was written ahead by this process and not used yet.
    pub fresh_epoch: Option<i64>,
    /// What the flags say of recovery.
    pub recovery: RecoveryFlags,
    /// How long a server has to switch itself off.
    pub shutdown_grace: Duration,
    /// The object whose status says that no server is rebooted, deleted or replaced to bring agents back; looked up only for one that ails.
    pub hold: Option<String>,
    /// When the try was decided that this process wrote ahead and has not done yet.
    pub fresh_recovery: Option<Timestamp>,
    /// When the order to start the agent's unit again was heard that this process wrote ahead and has not carried out yet.
    pub fresh_restart: Option<Timestamp>,
    /// Why the last step failed, until it may be tried again.
    pub trouble: Option<Trouble>,
    /// What was found when a snapshot of a lost server was looked for last.
    pub snapshot: Option<SnapshotLook>,
    /// What was told outside, and whether anybody listens.
    pub notices: NoticesView,
    /// What matters of its deletion, if that counts as one that takes the agent's memory along.
    pub deletion: Option<DeletionView>,
}

/// A deletion that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeletionView {
    /// Whether the instance says that it is held.
    pub held: bool,
    /// Whether too many others are deleted with it; none while that is not known.
    pub too_many: Option<bool>,
    /// Until when others may be deleted with it that are not known of yet.
    pub settles: Timestamp,
}

/// The revision of the class that an instance has while it is its turn to get another one by a new server.
#[derive(Clone, Debug)]
pub struct Meanwhile {
    /// What that revision and the instance describe.
    pub agent: Box<Agent>,
    /// HMAC over all secret files of it.
    pub tag: String,
}

/// What the flags say of recovery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryFlags {
    /// Whether nothing is recovered in the whole fleet.
    pub paused: bool,
    /// How long a server may be out of reach before that is believed to be its own fault.
    pub unreachable: Duration,
    /// Over which time those that fall at once are counted.
    pub window: Duration,
}

/// The class of an instance.
#[derive(Clone, Debug, Default)]
pub enum ClassView {
    /// Not looked at.
    #[default]
    Unknown,
    /// There is none, or it cannot be used: reason and message.
    Refused(&'static str, String),
    /// What it and the instance describe.
    Usable(Box<Agent>),
}

/// The Secret of an instance, measured against what its class asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SecretsView {
    /// Not looked at, or something is wrong with it: reason and message.
    #[default]
    Unknown,
    /// Reason and message, naming the Secret or the keys.
    Unmet(&'static str, String),
    /// Everything is there; the tag changes when any secret file would.
    Met {
        /// HMAC over all secret files.
        tag: String,
    },
}

/// A project, as an instance sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProjectView {
    /// Name of the `HetznerProject`.
    pub name: String,
    /// Why nothing may be changed there: reason and message. None: the token is good and it is the project that was first seen.
    pub unusable: Option<(&'static str, String)>,
    /// Whether nothing can be said of it yet: this process has only begun to look at it.
    pub unseen: bool,
    /// Whether the first full list of servers is in.
    pub synced: bool,
    /// When the last full list began.
    pub listed_at: Option<Timestamp>,
    /// Why no server may be created there now: reason, message, and when to look again.
    pub creates_held: Option<(&'static str, String, Timestamp)>,
    /// Which of the instance's places is in stock there, or when to ask again.
    pub place: Option<Result<Place, Timestamp>>,
    /// Whether the class's firewall stands there.
    pub firewall: bool,
}

/// A server that carries this instance's fleet, namespace and name.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, and any of them may be true together"
)]
pub struct ServerView {
    /// The project that holds it.
    pub project: String,
    /// Id at Hetzner.
    pub id: i64,
    /// Name at Hetzner.
    pub name: String,
    /// The UID that its labels name.
    pub uid: String,
    /// The incarnation that its labels name.
    pub incarnation: u32,
    /// The boot revision that its labels name.
    pub boot_revision: Option<String>,
    /// The revision of its class that its labels name.
    pub revision: Option<String>,
    /// What its labels say that its disk is worth: what the class said when it was made.
    pub disk: Disk,
    /// Public IPv4 address.
    pub ipv4: Option<String>,
    /// Public IPv6 address.
    pub ipv6: Option<String>,
    /// Server type.
    pub server_type: String,
    /// Location.
    pub location: String,
    /// What could become of it where only its type is not listed any more.
    pub retype: Retype,
    /// When Hetzner created it.
    pub created_at: Option<Timestamp>,
    /// What Hetzner says of its power.
    pub power: Power,
    /// Whether it is labelled as one that outlives its instance.
    pub retained: bool,
    /// Whether Hetzner blocked its address.
    pub blocked: bool,
    /// Whether the latest full list held it.
    pub listed: bool,
    /// Whether this process asked Hetzner to delete it.
    pub deleting: bool,
    /// What is remembered of its guest.
    pub guest: GuestView,
}

impl ServerView {
    /// The public address that it is reached at.
    pub fn address(&self) -> Option<IpAddr> {
        let mut known = [&self.ipv4, &self.ipv6].into_iter().flatten();
        known.find_map(|text| text.parse().ok())
    }

    /// What its probes say of somebody who answers in its place.
    pub fn stranger(&self) -> Option<&str> {
        let probed = self.guest.health.as_ref();
        let met = probed.filter(|view| view.stranger && Some(view.address) == self.address());
        met.map(|view| view.words.as_str())
    }
}

/// What Hetzner says of a server's power.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Power {
    /// On, or on its way.
    #[default]
    On,
    /// Off.
    Off,
    /// Hetzner is doing something with it.
    Busy,
}

/// What became of the server that the status names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Known {
    /// The status names none, or it is among the servers.
    #[default]
    Present,
    /// No list has shown it; only a GET by id can tell.
    Unseen,
    /// It exists, but no longer carries our labels.
    Relabelled,
    /// Hetzner said that it is gone.
    Gone,
}

/// Why a step failed, in words for a condition, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// CamelCase reason.
    pub reason: &'static str,
    /// What is wrong, where, and what to do.
    pub message: String,
    /// Not before this.
    pub until: Timestamp,
    /// Whether only a person can help.
    pub stalled: bool,
    /// How many times in a row; the pause grows with it.
    pub times: u32,
}

impl World {
    /// The record of the server that was asked for last.
    pub fn record(&self) -> Option<&ProvisioningRecord> {
        self.status.provisioning.as_ref()
    }

    /// The record of who holds the voice.
    pub fn voice(&self) -> Option<&VoiceRecord> {
        self.status.voice.as_ref()
    }

    /// The highest incarnation that status, records and servers know of.
    pub fn incarnation(&self) -> u32 {
        let number = |n: i64| u32::try_from(n).unwrap_or_default();
        let recorded = [
            self.status.incarnation.map(number),
            self.record().map(|record| number(record.incarnation)),
            self.voice().and_then(|voice| voice.incarnation).map(number),
        ];
        recorded
            .into_iter()
            .flatten()
            .chain(self.servers.iter().map(|server| server.incarnation))
            .max()
            .unwrap_or_default()
    }

    /// The incarnation that holds the voice by the record.
    pub fn voice_holder(&self) -> Option<u32> {
        self.voice()?
            .incarnation
            .and_then(|n| u32::try_from(n).ok())
    }

    /// A project by its name.
    pub fn project(&self, name: &str) -> Option<&ProjectView> {
        self.projects.iter().find(|project| project.name == name)
    }

    /// The host key that is pinned for a server; of one beside that in the status, the key that it has proven to this process.
    pub fn pinned<'a>(&'a self, server: &'a ServerView) -> Option<&'a str> {
        let told = self.status.server.as_ref();
        match told.filter(|known| known.id == server.id) {
            Some(known) => known.host_key.as_deref(),
            // The status has room for one.
            None if told.is_some() => server.guest.proven.as_deref(),
            None => None,
        }
    }

    /// The config revision and secrets tag that a server has, by its own last word or else by the status.
    pub fn applied(&self, server: &ServerView) -> Option<(String, String)> {
        let configured = server
            .guest
            .configured
            .as_ref()
            .filter(|configured| configured.outcome.is_ok());
        let said = || {
            server
                .guest
                .hello
                .as_ref()
                .and_then(|hello| hello.applied.clone())
        };
        let known = || {
            self.status
                .server
                .as_ref()
                .filter(|known| known.id == server.id)
                // What was taken from it is not applied any more.
                .filter(|_| self.voice_holder() == Some(server.incarnation))?;
            self.status
                .config_revision
                .clone()
                .zip(self.status.secrets_tag.clone())
        };
        configured
            .map(|configured| configured.sent.clone())
            .or_else(said)
            .or_else(known)
    }

    /// Whether the agent does not serve, or its server is gone.
    pub fn ails(&self) -> bool {
        let bad = |state| matches!(state, HealthState::Failed | HealthState::Unknown);
        let told = self.status.health.as_ref().map(|health| health.state);
        let probed = self.servers.iter();
        let probed = probed.filter_map(|server| server.guest.health.as_ref()?.state);
        self.known == Known::Gone || told.into_iter().chain(probed).any(bad)
    }

    /// Whether a server that is not the agent, or not any more, could not be reached, or does not do as told.
    pub fn is_out_of_reach(&self) -> bool {
        let mut waiting = self
            .servers
            .iter()
            .filter(|server| self.voice_holder() != Some(server.incarnation));
        waiting.any(|server| server.guest.contact.is_some() || server.guest.in_vain.is_some())
    }

    /// What the server that holds the voice has applied: it runs the agent.
    pub fn spoken(&self, server: &ServerView) -> Option<(String, String)> {
        self.applied(server)
            .filter(|_| self.voice_holder() == Some(server.incarnation))
    }
}
