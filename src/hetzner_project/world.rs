//! What is: one picture of all that matters to a project, taken at one moment.
//!
//! Plain data that tests can write down; nothing here reads anything.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

use crate::{api::HetznerProjectStatus, health::breaker::Hold, trouble::Trouble};

/// Everything that a plan for one project may depend on.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Whether our finalizer is on the object.
    pub finalizer: bool,
    /// The status as it was last written.
    pub status: HetznerProjectStatus,
    /// The token's Secret.
    pub token: Token,
    /// What was seen through this token; none while there is no connection with it.
    pub seen: Option<Seen>,
    /// How many instances have a server in the project, or are asking for one.
    pub instances: usize,
    /// Servers in the project that instances say they have.
    pub claims: Vec<Claim>,
    /// Whether new servers for what vanished are held.
    pub hold: Hold,
    /// The identities of all other projects, with their names.
    pub others: BTreeMap<i64, String>,
    /// The id by which this process marks the projects that it acts in.
    pub holder: String,
}

/// The Secret that should hold the token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Token {
    /// There is none of that name.
    #[default]
    SecretMissing,
    /// It does not have the key, or nothing stands there.
    KeyMissing,
    /// No HTTP header can hold what stands there.
    Malformed,
    /// The API server did not show it: why.
    Unreadable(String),
    /// It is there.
    Present {
        /// Whether our finalizer is on the Secret.
        held: bool,
        /// Whether the Secret is being deleted.
        deleting: bool,
        /// Another project that uses the same Secret.
        shared_with: Option<String>,
    },
}

/// What was seen through one token.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The SSH keys that carry our fleet; none before the first look.
    pub keys: Option<Vec<KeyView>>,
    /// Whether it is time for another look at the keys.
    pub stale: bool,
    /// What became of a key that no look by label showed, when asked for by id.
    pub by_id: Option<(i64, Option<KeyView>)>,
    /// What Hetzner said when our key was to be made.
    pub key_name: KeyName,
    /// The public keys of people by name; none: there is no such key.
    pub admin_keys: BTreeMap<String, Option<String>>,
    /// Whether the first full list of servers is in.
    pub listed: bool,
    /// How many servers of the fleet exist.
    pub servers: usize,
    /// How long another count than before must not be written.
    pub counts_wait: Option<Duration>,
    /// The firewalls of the fleet, as of a fresh list.
    pub firewalls: Option<Vec<FirewallView>>,
    /// Whether this process marked the key as its own.
    pub holds: bool,
    /// What is left of the request allowance, and its size.
    pub budget: Option<(u32, u32)>,
    /// Until when the quota pauses creations.
    pub over_quota: Option<Timestamp>,
    /// Steps that failed last, by kind.
    pub troubles: BTreeMap<String, Trouble>,
    /// What the sweep found.
    pub zombies: Zombies,
}

/// What the sweep found in a project.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Zombies {
    /// This process has not swept yet.
    #[default]
    NotSwept,
    /// It never does.
    Off,
    /// Nothing.
    None,
    /// Some: reason and message.
    Some(&'static str, String),
}

/// An SSH key in the project.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyView {
    /// Id at Hetzner.
    pub id: i64,
    /// Whether it carries our fleet.
    pub ours: bool,
    /// Who acts in the project, says its label.
    pub holder: Option<String>,
}

/// What is known of the name of our key, after Hetzner said that it is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KeyName {
    /// Hetzner did not say so.
    #[default]
    Free,
    /// It did; by whom is not known.
    Taken,
    /// By a key that does not carry our fleet.
    Foreign(i64),
}

/// A server that an instance says it has in this project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Id at Hetzner.
    pub id: i64,
    /// Whether a list showed it.
    pub listed: bool,
    /// Whether Hetzner showed it when asked by id.
    pub answered: Option<bool>,
}

/// A firewall of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirewallView {
    /// Id at Hetzner.
    pub id: i64,
    /// Whether its class exists.
    pub class_exists: bool,
    /// Whether it protects anything.
    pub applied: bool,
}
