//! What the token of a project opens: client, budget, inventory and all else that the objects of one project share.
//!
//! A connection belongs to one token for ever, because a token belongs to one project at Hetzner for ever: another token is another
//! connection, whose inventory begins empty and is believed nothing until the project's identity is seen (I9).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::task::JoinSet;

use super::{
    firewall_list::FirewallList, memory::Memory, room::Room, snapshots::SnapshotList,
    world::Zombies,
};
use crate::{
    hetzner::{Budget, Catalogue, Client, CreateFuse, FirewallId, SshKeyId, Stock},
    inventory::Inventory,
};

/// How long names of types, locations and images are kept.
const CATALOGUE_AGE: Duration = Duration::from_hours(1);

/// One project at Hetzner, as seen with one token.
pub struct Connection {
    /// Name of the `HetznerProject`.
    pub project: String,
    /// The client; each request needs a permit of the budget.
    pub client: Client,
    /// The request allowance.
    pub budget: Budget,
    /// The servers of this fleet.
    pub inventory: Arc<Inventory>,
    /// Server types, locations and images.
    pub catalogue: Catalogue,
    /// What is sold out.
    pub stock: Stock,
    /// The limit of creates per hour.
    pub fuse: CreateFuse,
    /// What the limit of servers leaves.
    pub room: Room,
    /// What the project's own reconciler found.
    pub standing: RwLock<Standing>,
    /// The firewalls of this fleet.
    pub firewalls: FirewallList,
    /// The snapshots, of whichever fleet.
    pub(super) snapshots: SnapshotList,
    zombies: Mutex<Zombies>,
    token: SecretString,
    memory: Mutex<Memory>,
    /// End with the connection.
    tasks: Mutex<JoinSet<()>>,
}

/// Reason and message of why something cannot be used.
pub type Refusal = (&'static str, String);

/// Whether a project may be believed and changed, and what every server there needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// Whether anything was found out about the project through this token yet.
    pub looked_at: bool,
    /// Why nothing may be changed there; none once the project's identity was seen.
    pub refused: Option<Refusal>,
    /// Why no server may be created there, though all else may be done.
    pub creates_held: Option<Refusal>,
    /// The key that every server is created with: its private half exists nowhere.
    pub key: Option<SshKeyId>,
    /// Public keys of people who may log in as `agentfleet-admin`.
    pub admin_keys: Vec<String>,
    /// The limit in the project's spec.
    pub max_servers: Option<usize>,
    /// The firewall of each class, by the name of the class.
    pub firewalls: BTreeMap<String, FirewallId>,
    /// Ids of Hetzner networks, by name.
    pub networks: BTreeMap<String, u64>,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            looked_at: false,
            refused: Some((
                "ProjectUnproven",
                "the project's identity was not seen yet".into(),
            )),
            creates_held: None,
            key: None,
            admin_keys: vec![],
            max_servers: None,
            firewalls: BTreeMap::new(),
            networks: BTreeMap::new(),
        }
    }
}

impl Connection {
    /// A connection that is trusted with nothing yet.
    pub fn new(project: &str, client: Client, token: SecretString, inventory: Inventory) -> Self {
        Self {
            project: project.to_owned(),
            client,
            budget: Budget::new(),
            inventory: Arc::new(inventory),
            catalogue: Catalogue::new(CATALOGUE_AGE),
            stock: Stock::default(),
            fuse: CreateFuse::default(),
            room: Room::default(),
            standing: RwLock::default(),
            firewalls: FirewallList::default(),
            snapshots: SnapshotList::default(),
            zombies: Mutex::default(),
            token,
            memory: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// What is said where so many servers are allowed and no more.
    pub fn limit_reached(&self, max: usize) -> String {
        format!(
            "HetznerProject {} allows {max} servers: see its spec.maxServers",
            self.project
        )
    }

    /// A copy of the present standing.
    pub fn standing(&self) -> Standing {
        self.standing
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes the standing, and tells whether anything is different now.
    pub fn update(&self, change: impl FnOnce(&mut Standing)) -> bool {
        let mut standing = self
            .standing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let before = standing.clone();
        change(&mut standing);
        *standing != before
    }

    /// Whether it was made with this token; takes as long wherever two of one length differ.
    pub fn has_token(&self, token: &SecretString) -> bool {
        let (own, other) = (
            self.token.expose_secret().as_bytes(),
            token.expose_secret().as_bytes(),
        );
        own.len() == other.len()
            && own
                .iter()
                .zip(other)
                .fold(0, |differs, (own, other)| differs | (own ^ other))
                == 0
    }

    /// What the project's reconciler remembers of it.
    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ids of the SSH keys that carry our fleet, and when they were listed.
    pub fn keys(&self) -> Option<(Vec<i64>, Instant)> {
        let memory = self.memory();
        let (read_at, keys) = memory.keys.as_ref()?;
        let ours = keys.iter().filter(|key| key.ours);
        Some((ours.map(|key| key.id).collect(), *read_at))
    }

    /// What the last sweep found.
    pub(super) fn zombies(&self) -> Zombies {
        self.zombies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Enters what a sweep found, and tells whether that is news.
    pub fn tell_zombies(&self, found: Zombies) -> bool {
        let mut told = self.zombies.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *told, found) != *told
    }

    /// Runs a task for as long as the connection lives.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spawn(task);
    }
}

/// The connections of all projects, by the name of the `HetznerProject`.
pub struct Connections {
    all: RwLock<BTreeMap<String, Result<Arc<Connection>, Refusal>>>,
    holder: String,
    leaving: tokio::sync::Mutex<()>,
}

impl Default for Connections {
    fn default() -> Self {
        let holder = hex::encode(rand::random::<[u8; 8]>());
        Self {
            all: RwLock::default(),
            holder,
            leaving: tokio::sync::Mutex::default(),
        }
    }
}

impl Connections {
    /// The connection of a project, or why there is none.
    pub fn get(&self, project: &str) -> Option<Result<Arc<Connection>, Refusal>> {
        self.all
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(project)
            .cloned()
    }

    /// All connections.
    pub fn all(&self) -> Vec<Arc<Connection>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.values()
            .filter_map(|found| found.as_ref().ok().cloned())
            .collect()
    }

    /// Puts a connection, or the reason why there is none, in the place of what was there.
    pub fn put(&self, project: &str, connection: Result<Arc<Connection>, Refusal>) {
        self.all
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(project.to_owned(), connection);
    }

    /// Forgets a project.
    pub fn remove(&self, project: &str) {
        self.all
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(project);
    }

    /// The random id by which this process marks the projects that it acts in.
    pub(super) fn holder(&self) -> &str {
        &self.holder
    }

    /// To be held from the look at who shares a Secret until the object is let go: two who leave at once must not each count on the other.
    pub(super) async fn leaving(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.leaving.lock().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hetzner::stub, inventory};

    #[tokio::test]
    async fn another_token_is_another_connection() {
        let periods = inventory::Periods::default();
        let key_labels = inventory::KeyLabels {
            namespace: "a".into(),
            name: "b".into(),
        };
        let inventory = Inventory::new(inventory::Config {
            selector: "c".into(),
            key_labels,
            periods,
        });
        let connection = Connection::new(
            "one",
            stub::client("http://127.0.0.1:1"),
            "abc".into(),
            inventory,
        );
        for (token, same) in [("abc", true), ("abd", false), ("ab", false), ("", false)] {
            assert_eq!(connection.has_token(&token.into()), same, "{token}");
        }
        assert!(
            connection.standing().refused.is_some(),
            "nothing is believed before the identity was seen"
        );
        assert!(connection.update(|standing| standing.max_servers = Some(1)));
        assert!(!connection.update(|standing| standing.max_servers = Some(1)));
    }
}
