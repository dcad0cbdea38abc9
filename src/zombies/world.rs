//! What is: everything with our fleet's label, and everybody who may claim it, at one moment.
//!
//! Plain data that tests can write down; nothing here reads anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::memory::Sighting;
use crate::{
    api::{AgentInstance, ConditionType, Disk, is_true},
    hetzner::{Firewall, Server, ServerStatus, Snapshot},
    inventory::Key,
    labels, naming,
};

/// Everything that a plan for a sweep may depend on.
#[derive(Clone, Debug)]
pub struct World {
    /// The projects that may be believed, each with what is in it.
    pub projects: Vec<ProjectView>,
    /// Who claims servers.
    pub claims: Claims,
    /// The classes that exist.
    pub classes: BTreeSet<String>,
    /// Now, for ages.
    pub now: Timestamp,
    /// The same, for sightings.
    pub steady: Instant,
}

/// One project.
#[derive(Clone, Debug, Default)]
pub struct ProjectView {
    /// Name of the `HetznerProject`.
    pub name: String,
    /// Why nothing may be deleted there now, though it may be believed: so many servers vanished.
    pub held: bool,
    /// All that carries our fleet's label.
    pub things: Vec<Thing>,
}

/// What instances say of their servers.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    by_name: BTreeMap<Key, Claim>,
    servers: BTreeSet<i64>,
}

/// One instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Its UID.
    pub uid: String,
    /// Whether its agent serves and it is not being deleted.
    pub serves: bool,
    /// The incarnation that its record says holds the voice.
    pub holder: Option<u32>,
    /// The server that its status names.
    pub server: Option<i64>,
}

/// Kinds of things at Hetzner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A server.
    Server,
    /// A firewall.
    Firewall,
    /// An SSH key.
    SshKey,
    /// A snapshot.
    Snapshot,
}

impl Kind {
    /// The word for people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Firewall => "firewall",
            Self::SshKey => "SSH key",
            Self::Snapshot => "snapshot",
        }
    }

    /// The command that deletes one.
    pub fn command(self, id: i64) -> String {
        let noun = match self {
            Self::Server => "server",
            Self::Firewall => "firewall",
            Self::SshKey => "ssh-key",
            Self::Snapshot => "image",
        };
        format!("hcloud {noun} delete {id}")
    }
}

/// One thing with our fleet's label.
#[derive(Clone, Debug)]
pub struct Thing {
    /// Id at Hetzner.
    pub id: i64,
    /// Its name there; a snapshot's description.
    pub name: String,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// What it is.
    pub what: What,
    /// When a sweep found it first, and for what.
    pub sighting: Option<Sighting>,
}

/// What a thing is.
#[derive(Clone, Debug)]
pub enum What {
    /// A server.
    Server(Box<ServerView>),
    /// A firewall.
    Firewall {
        /// The class in its label.
        class: Option<String>,
        /// Whether it protects anything.
        applied: bool,
    },
    /// An SSH key that is not the one which marks the project.
    SshKey,
    /// A snapshot.
    Snapshot,
}

/// A server, as its labels and its guest tell.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own; no two of them make a state"
)]
#[derive(Clone, Debug, Default)]
pub struct ServerView {
    /// The instance in its labels; none when they do not name one.
    pub owner: Option<Key>,
    /// The UID in its labels.
    pub uid: String,
    /// The incarnation in its labels.
    pub incarnation: u32,
    /// The version of the master key in its labels.
    pub key_id: String,
    /// Whether its disk is worth nothing, by its label.
    pub disposable: bool,
    /// Whether its name is the one that belongs to those labels: else somebody has edited one of them.
    pub named_so: bool,
    /// Whether a person wants it kept without an instance.
    pub retained: bool,
    /// Whether Hetzner refuses to delete it.
    pub protected: bool,
    /// Whether something is being done to it, or a list did not show it.
    pub busy: bool,
    /// Where its SSH answers, if it is on.
    pub address: Option<IpAddr>,
    /// What its guest says.
    pub guest: Guest,
}

/// What the guest of an unclaimed server says of its past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guest {
    /// Nobody asked it.
    #[default]
    Unasked,
    /// It proved its host key, and no agent ever ran there.
    NeverArmed,
    /// It proved its host key, and an agent has run there.
    Armed,
    /// It did not answer, or proved nothing.
    Silent,
}

impl World {
    /// The servers that `which` wants by project and id, each with its name.
    pub fn servers_mut(
        &mut self,
        which: impl Fn(&str, i64) -> bool,
    ) -> Vec<(&str, &mut ServerView)> {
        let mut wanted = vec![];
        for project in &mut self.projects {
            for thing in &mut project.things {
                match &mut thing.what {
                    What::Server(server) if which(&project.name, thing.id) => {
                        wanted.push((thing.name.as_str(), server.as_mut()));
                    }
                    _ => {}
                }
            }
        }
        wanted
    }
}

impl Claims {
    /// Enters what instances say.
    pub fn of<'a>(instances: impl IntoIterator<Item = &'a AgentInstance>) -> Self {
        instances
            .into_iter()
            .map(|instance| (owner(instance), Claim::of(instance)))
            .collect()
    }

    /// The instance of a namespace and name, whatever its UID.
    pub fn by_name(&self, owner: &Key) -> Option<&Claim> {
        self.by_name.get(owner)
    }

    /// Whether an instance says that this is its server.
    pub fn names_server(&self, id: i64) -> bool {
        self.servers.contains(&id)
    }
}

impl FromIterator<(Key, Claim)> for Claims {
    fn from_iter<T: IntoIterator<Item = (Key, Claim)>>(claims: T) -> Self {
        let by_name: BTreeMap<_, _> = claims.into_iter().collect();
        let servers = by_name.values().filter_map(|claim| claim.server).collect();
        Self { by_name, servers }
    }
}

fn owner(instance: &AgentInstance) -> Key {
    Key {
        namespace: instance.namespace().unwrap_or_default(),
        name: instance.name_any(),
    }
}

impl Claim {
    /// What one instance says.
    pub fn of(instance: &AgentInstance) -> Self {
        let status = instance.status.as_ref();
        let ready = status.is_some_and(|status| is_true(&status.conditions, ConditionType::Ready));
        Self {
            uid: instance.uid().unwrap_or_default(),
            serves: ready && instance.metadata.deletion_timestamp.is_none(),
            holder: status
                .and_then(|status| status.voice.as_ref()?.incarnation)
                .and_then(|incarnation| incarnation.try_into().ok()),
            server: status.and_then(|status| Some(status.server.as_ref()?.id)),
        }
    }

    /// Whether a server is one that this instance has left for a later one, which serves.
    pub fn left_behind(&self, id: i64, server: &ServerView) -> bool {
        self.serves
            && self.uid == server.uid
            && self.server.is_some_and(|own| own != id)
            && self
                .holder
                .is_some_and(|holder| server.incarnation < holder)
    }
}

impl Thing {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self.what {
            What::Server(_) => Kind::Server,
            What::Firewall { .. } => Kind::Firewall,
            What::SshKey => Kind::SshKey,
            What::Snapshot => Kind::Snapshot,
        }
    }

    /// A server, as a list shows it.
    pub fn server(server: &Server, fleet: &str, listed: bool) -> Self {
        Self {
            id: server.id.number(),
            name: server.name.clone(),
            created: server.created,
            what: What::Server(Box::new(ServerView::of(server, fleet, listed))),
            sighting: None,
        }
    }

    /// A firewall, as a list shows it.
    pub fn firewall(firewall: &Firewall) -> Self {
        Self {
            id: firewall.id.number(),
            name: firewall.name.clone(),
            created: firewall.created,
            what: What::Firewall {
                class: label(&firewall.labels, labels::CLASS),
                applied: !firewall.applied_to.is_empty(),
            },
            sighting: None,
        }
    }

    /// A snapshot, as a list shows it.
    pub fn snapshot(snapshot: &Snapshot) -> Self {
        Self {
            id: snapshot.id.number(),
            name: snapshot.description.clone(),
            created: snapshot.created,
            what: What::Snapshot,
            sighting: None,
        }
    }

    /// An SSH key; nothing but its id is of use.
    pub const fn ssh_key(id: i64) -> Self {
        Self {
            id,
            name: String::new(),
            created: None,
            what: What::SshKey,
            sighting: None,
        }
    }
}

impl ServerView {
    /// What one server shows.
    pub fn of(server: &Server, fleet: &str, listed: bool) -> Self {
        let owner = label(&server.labels, labels::NAMESPACE)
            .zip(label(&server.labels, labels::NAME))
            .map(|(namespace, name)| Key { namespace, name });
        let incarnation = labels::number(&server.labels, labels::INCARNATION);
        let named_so = owner.as_ref().is_some_and(|owner| {
            server.name == naming::server_name(fleet, &owner.namespace, &owner.name, incarnation)
        });
        let on = server.status == ServerStatus::Running;
        let settled = on || server.status == ServerStatus::Off;
        let ipv4 = server.ipv4().map(IpAddr::from);
        Self {
            owner,
            uid: labels::text(&server.labels, labels::UID),
            incarnation,
            key_id: labels::text(&server.labels, labels::KEY_ID),
            disposable: labels::disk(&server.labels) == Disk::Disposable,
            named_so,
            retained: server.labels.contains_key(labels::RETAINED),
            protected: server.protection.delete,
            busy: !listed || server.locked || !settled,
            address: ipv4
                .or_else(|| server.ipv6().map(IpAddr::from))
                .filter(|_| on),
            guest: Guest::Unasked,
        }
    }
}

fn label(labels: &crate::hetzner::Labels, key: &str) -> Option<String> {
    labels.get(key).filter(|value| !value.is_empty()).cloned()
}
