//! The operator's one picture of its servers in a project, kept by shared paged lists.
//!
//! Works like a Kubernetes reflector: one task lists, everybody else reads the store and follows
//! its changes, so that thousands of instances cost a page for each fifty of them and not a request
//! each. What our own requests tell enters at once.
//!
//! Invariant: absence from a list is never proof. Pages are no snapshot: a server deleted between
//! two of them hides another. So a server missing from a list is [`Presence::NotListed`] and stays;
//! it is [`Presence::Gone`] only after the API said 404 for its id, or, if we deleted it, after a
//! list begun later that nothing disturbed.

mod poll;
mod snapshot;
mod store;

pub use poll::{Health, Periods};
pub use snapshot::{Entry, Key, KeyLabels, ListFacts, Presence, Snapshot};

use crate::hetzner::{Server, ServerId};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use store::Store;
use tokio::sync::{Notify, broadcast, watch};

/// What to list, and how servers are found again.
#[derive(Clone, Debug)]
pub struct Config {
    /// The label selector of all servers of the fleet.
    pub selector: String,
    /// The two labels that name a server's owner.
    pub key_labels: KeyLabels,
    /// How often to list.
    pub periods: Periods,
}

/// A change of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Servers of these owners came, changed, were missing from a list, or went.
    Servers(Arc<[Key]>),
    /// A full list is done.
    Synced,
}

/// Changes kept for a slow subscriber; one who lags further looks at everything.
const CHANGES_KEPT: usize = 1024;

/// The servers of one project; clones share them.
#[derive(Clone)]
pub struct Inventory(Arc<Inner>);

struct Inner {
    config: Config,
    store: Mutex<Store>,
    changes: broadcast::Sender<Change>,
    health: watch::Sender<Health>,
    wake: Notify,
    poked: AtomicBool,
}

impl Inventory {
    /// An inventory that has not listed anything yet.
    pub fn new(config: Config) -> Self {
        Self(Arc::new(Inner {
            store: Mutex::new(Store::new(config.key_labels.clone())),
            config,
            changes: broadcast::Sender::new(CHANGES_KEPT),
            health: watch::Sender::new(Health::default()),
            wake: Notify::new(),
            poked: AtomicBool::new(false),
        }))
    }

    /// Everything at this moment.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.lock().snapshot()
    }

    /// The servers that bear, or once bore, the labels of this owner, by ascending id.
    pub fn of(&self, key: &Key) -> Vec<Entry> {
        self.lock().of(key)
    }

    /// The last full list, if there was one.
    pub fn last_list(&self) -> Option<ListFacts> {
        self.lock().list()
    }

    /// How many servers there are.
    pub fn count(&self) -> usize {
        self.lock().count()
    }

    /// What is known of the whereabouts of one server.
    pub fn presence(&self, id: ServerId) -> Presence {
        self.lock().presence(id)
    }

    /// Follows the changes from now on. On `Lagged`, look at everything.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.0.changes.subscribe()
    }

    /// Follows whether listing works.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }

    /// Enters a server that a create returned.
    pub fn record_created(&self, server: Server, now: Instant) {
        self.change(|store| store.created(server, now));
    }

    /// Enters what a request for one server returned.
    pub fn record_updated(&self, server: Server, now: Instant) {
        self.change(|store| store.updated(server, now));
    }

    /// Notes that the API said 404 for a server.
    pub fn record_gone(&self, id: ServerId, now: Instant) {
        self.change(|store| store.gone(id, false, now));
    }

    /// To be called before a DELETE is sent; the result takes what became of it.
    pub fn begin_delete(&self, id: ServerId) -> Deletion {
        self.lock().delete_begins();
        Deletion {
            inventory: self.clone(),
            id,
        }
    }

    /// Brings the next list forward.
    pub fn poke(&self) {
        self.0
            .poked
            .store(true, std::sync::atomic::Ordering::Release);
        self.0.wake.notify_one();
    }

    fn change(&self, act: impl FnOnce(&mut Store) -> Vec<Key>) {
        let keys = act(&mut self.lock());
        self.announce(keys);
        self.0.wake.notify_one();
    }

    fn announce(&self, keys: Vec<Key>) {
        if !keys.is_empty() {
            // Without subscribers nobody needs to know.
            let _unheard = self.0.changes.send(Change::Servers(keys.into()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.0.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A DELETE under way. While one is, several pages together prove nothing. Dropped without a word,
/// its outcome is unknown or it was refused, and the server stays as it was.
#[must_use = "tell what became of the DELETE"]
pub struct Deletion {
    inventory: Inventory,
    id: ServerId,
}

impl Deletion {
    /// The DELETE was accepted: the next lists show the server gone.
    pub fn accepted(self, now: Instant) {
        self.inventory
            .change(|store| store.delete_accepted(self.id, now));
    }

    /// The DELETE found the server gone already.
    pub fn not_found(self, now: Instant) {
        self.inventory
            .change(|store| store.gone(self.id, true, now));
    }
}

impl Drop for Deletion {
    fn drop(&mut self) {
        self.inventory.lock().delete_ends();
    }
}

#[cfg(test)]
mod tests;
