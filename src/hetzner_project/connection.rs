//! What the token of a project opens: client, budget, inventory and all else that the objects of one project share.
//!
//! A connection belongs to one token for ever, because a token belongs to one project at Hetzner for ever: another token is another
//! connection, whose inventory begins empty and is believed nothing until the project's identity is seen (I9).

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use crate::{
    hetzner::{Budget, Catalogue, Client, CreateFuse, FirewallId, SshKeyId, Stock},
    inventory::Inventory,
};

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
    /// What the project's own reconciler found.
    pub standing: RwLock<Standing>,
}

/// Reason and message of why something cannot be used.
pub type Refusal = (&'static str, String);

/// Whether a project may be believed and changed, and what every server there needs.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Why nothing may be changed there; none once the project's identity was seen.
    pub refused: Option<Refusal>,
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

impl Connection {
    /// A copy of the present standing.
    pub fn standing(&self) -> Standing {
        self.standing
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes the standing; tells whether anything changed is up to the caller.
    pub fn update(&self, change: impl FnOnce(&mut Standing)) {
        change(
            &mut self
                .standing
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

/// The connections of all projects, by the name of the `HetznerProject`.
#[derive(Default)]
pub struct Connections(RwLock<BTreeMap<String, Result<Arc<Connection>, Refusal>>>);

impl Connections {
    /// The connection of a project, or why there is none.
    pub fn get(&self, project: &str) -> Option<Result<Arc<Connection>, Refusal>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(project)
            .cloned()
    }

    /// All connections.
    pub fn all(&self) -> Vec<Arc<Connection>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.values()
            .filter_map(|found| found.as_ref().ok().cloned())
            .collect()
    }

    /// Puts a connection, or the reason why there is none, in the place of what was there.
    pub fn put(&self, project: &str, connection: Result<Arc<Connection>, Refusal>) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(project.to_owned(), connection);
    }

    /// Forgets a project.
    pub fn remove(&self, project: &str) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(project);
    }
}
