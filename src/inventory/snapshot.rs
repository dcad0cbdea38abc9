//! What readers of the inventory see.

use crate::hetzner::{Server, ServerId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

/// The owner of a server, by two labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Value of the first label.
    pub namespace: String,
    /// Value of the second label.
    pub name: String,
}

/// The labels that make a [`Key`].
#[derive(Clone, Debug)]
pub struct KeyLabels {
    /// Label of the namespace.
    pub namespace: String,
    /// Label of the name.
    pub name: String,
}

impl KeyLabels {
    pub(super) fn key(&self, server: &Server) -> Option<Key> {
        let label = |name: &String| server.labels.get(name).cloned();
        Some(Key {
            namespace: label(&self.namespace)?,
            name: label(&self.name)?,
        })
    }
}

/// What is known of the whereabouts of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It was in the last list, or entered since.
    Listed,
    /// Lists do not show it: ask for it by id.
    NotListed {
        /// When a list first did not show it; absent if it never was in the store.
        since: Option<Instant>,
        /// When the API last showed it on its own, nevertheless.
        confirmed: Option<Instant>,
    },
    /// We deleted it; the next lists will tell.
    Deleting,
    /// It is no more.
    Gone,
}

impl Presence {
    /// Whether both say the same but for their times: those alone are no news.
    pub(super) fn is_like(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// One server and its whereabouts.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The server as last seen.
    pub server: Arc<Server>,
    /// Its whereabouts.
    pub presence: Presence,
}

/// A full list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListFacts {
    /// Counts from 1.
    pub number: u64,
    /// When its first page was asked for.
    pub started_at: Instant,
    /// When its last page was read.
    pub finished_at: Instant,
    /// Pages it had.
    pub pages: u32,
    /// Servers it showed.
    pub servers: usize,
    /// Whether one `total_entries` stood on all pages and no DELETE of ours was between them.
    pub steady: bool,
}

/// The whole store at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(super) servers: BTreeMap<ServerId, Entry>,
    pub(super) keys: HashMap<Key, BTreeSet<ServerId>>,
    pub(super) vanished: Vec<Instant>,
    pub(super) list: Option<ListFacts>,
}

impl Snapshot {
    /// One server.
    pub fn get(&self, id: ServerId) -> Option<&Entry> {
        self.servers.get(&id)
    }

    /// All servers, by ascending id.
    pub fn servers(&self) -> impl Iterator<Item = &Entry> {
        self.servers.values()
    }

    /// The servers that bear, or once bore, the labels of this owner.
    pub fn of(&self, key: &Key) -> impl Iterator<Item = &Entry> {
        self.keys
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|id| self.servers.get(id))
    }

    /// All owners.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.keys()
    }

    /// The last full list.
    pub fn list(&self) -> Option<&ListFacts> {
        self.list.as_ref()
    }

    /// Whether absence means anything yet.
    pub fn first_list_done(&self) -> bool {
        self.list.is_some()
    }

    /// How many servers went missing since `since` without a DELETE of ours: not listed any more and
    /// not confirmed on their own, or gone.
    pub fn vanished_since(&self, since: Instant) -> usize {
        self.vanished.iter().filter(|at| **at >= since).count()
    }
}
