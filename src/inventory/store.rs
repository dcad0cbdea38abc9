//! The store behind the inventory; no I/O.
//!
//! Everything that enters gets a tick of one logical clock. What a page says counts only for
//! servers that nothing newer is known of, and a list judges only servers that entered before it
//! began, so answers may overtake each other without harm.

use super::snapshot::{Entry, Key, KeyLabels, ListFacts, Presence, Snapshot};
use crate::hetzner::{Server, ServerId, ServerStatus};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A list under way.
pub(super) struct Listing {
    number: u64,
    began: u64,
    deletes_in_flight: usize,
    started_at: Instant,
    pages: u32,
    totals: BTreeSet<Option<u64>>,
    seen: BTreeSet<ServerId>,
}

/// A page asked for.
pub(super) struct Asked(u64);

struct Known {
    server: Arc<Server>,
    keys: Vec<Key>,
    /// When something newer than any page asked for before came in.
    entered: u64,
    missing: Option<Missing>,
    deleted: Option<Deleted>,
    changed_at: Instant,
}

/// Missing from lists.
#[derive(Clone, Copy)]
struct Missing {
    since: Instant,
    confirmed: Option<Instant>,
}

/// Deleted by us.
#[derive(Clone, Copy)]
struct Deleted {
    accepted: u64,
    /// Lists begun afterwards that did not settle it.
    lists: u32,
}

struct Gone {
    tick: u64,
    at: Instant,
    by_us: bool,
}

/// Lists that may leave a deleted server unsettled before it has to be asked for.
const UNSETTLED_LISTS: u32 = 2;
/// How long it is remembered that a server is gone.
const REMEMBER_GONE: Duration = Duration::from_hours(1);

impl Known {
    fn presence(&self) -> Presence {
        let unsettled = self
            .deleted
            .is_some_and(|deleted| deleted.lists < UNSETTLED_LISTS);
        match self.missing {
            _ if unsettled => Presence::Deleting,
            Some(Missing { since, confirmed }) => Presence::NotListed {
                since: Some(since),
                confirmed,
            },
            None => Presence::Listed,
        }
    }

    fn entry(&self) -> Entry {
        Entry {
            server: Arc::clone(&self.server),
            presence: self.presence(),
        }
    }

    fn in_flux(&self) -> bool {
        let settled = matches!(
            self.server.status,
            ServerStatus::Running | ServerStatus::Off
        );
        !settled || self.server.locked || self.missing.is_some() || self.deleted.is_some()
    }
}

/// The servers of one project.
pub(super) struct Store {
    labels: KeyLabels,
    tick: u64,
    servers: BTreeMap<ServerId, Known>,
    keys: HashMap<Key, BTreeSet<ServerId>>,
    gone: BTreeMap<ServerId, Gone>,
    deletes_in_flight: usize,
    last_delete: u64,
    list: Option<ListFacts>,
    snapshot: Option<Arc<Snapshot>>,
}

impl Store {
    pub(super) fn new(labels: KeyLabels) -> Self {
        Self {
            labels,
            tick: 0,
            servers: BTreeMap::new(),
            keys: HashMap::new(),
            gone: BTreeMap::new(),
            deletes_in_flight: 0,
            last_delete: 0,
            list: None,
            snapshot: None,
        }
    }

    pub(super) fn snapshot(&mut self) -> Arc<Snapshot> {
        if let Some(snapshot) = &self.snapshot {
            return Arc::clone(snapshot);
        }
        let unasked_for = |known: &&Known| known.deleted.is_none();
        let missing = self
            .servers
            .values()
            .filter(unasked_for)
            .filter_map(|known| known.missing);
        let missing = missing.filter(|missing| missing.confirmed.is_none());
        let unasked = self.gone.values().filter(|gone| !gone.by_us);
        let snapshot = Arc::new(Snapshot {
            servers: self
                .servers
                .iter()
                .map(|(id, known)| (*id, known.entry()))
                .collect(),
            keys: self.keys.clone(),
            vanished: missing
                .map(|missing| missing.since)
                .chain(unasked.map(|gone| gone.at))
                .collect(),
            list: self.list,
        });
        self.snapshot = Some(Arc::clone(&snapshot));
        snapshot
    }

    pub(super) fn of(&self, key: &Key) -> Vec<Entry> {
        let ids = self.keys.get(key).into_iter().flatten();
        ids.filter_map(|id| self.servers.get(id))
            .map(Known::entry)
            .collect()
    }

    pub(super) fn list(&self) -> Option<ListFacts> {
        self.list
    }

    pub(super) fn count(&self) -> usize {
        self.servers.len()
    }

    pub(super) fn presence(&self, id: ServerId) -> Presence {
        match self.servers.get(&id) {
            Some(known) => known.presence(),
            None if self.gone.contains_key(&id) => Presence::Gone,
            None => Presence::NotListed {
                since: None,
                confirmed: None,
            },
        }
    }

    /// Pages of the last list; at least one.
    pub(super) fn pages(&self) -> u32 {
        self.list.map_or(1, |list| list.pages.max(1))
    }

    /// Whether a server is on its way to another state, and has not been for longer than `longest`.
    pub(super) fn in_flux(&self, longest: Duration, now: Instant) -> bool {
        let young = |known: &Known| now.saturating_duration_since(known.changed_at) < longest;
        self.servers
            .values()
            .any(|known| known.in_flux() && young(known))
    }

    /// A create returned this server.
    pub(super) fn created(&mut self, server: Server, now: Instant) -> Vec<Key> {
        let tick = self.next_tick();
        self.enter(server, tick, None, now)
    }

    /// A request for one server returned it; that it is listed is not said thereby.
    pub(super) fn updated(&mut self, server: Server, now: Instant) -> Vec<Key> {
        let tick = self.next_tick();
        let since = match self.servers.get(&server.id) {
            Some(known) => known.missing.map(|missing| missing.since),
            None => Some(now),
        };
        self.enter(
            server,
            tick,
            since.map(|since| Missing {
                since,
                confirmed: Some(now),
            }),
            now,
        )
    }

    /// The API said 404 for this server; `by_us` if to a DELETE.
    pub(super) fn gone(&mut self, id: ServerId, by_us: bool, now: Instant) -> Vec<Key> {
        let tick = self.next_tick();
        let Some(known) = self.servers.remove(&id) else {
            self.gone.entry(id).or_insert(Gone {
                tick,
                at: now,
                by_us,
            });
            return Vec::new();
        };
        let by_us = by_us || known.deleted.is_some();
        // Its absence began when a list first did not show it.
        let at = known.missing.map_or(now, |missing| missing.since);
        self.gone.insert(id, Gone { tick, at, by_us });
        for key in &known.keys {
            if let Some(ids) = self.keys.get_mut(key) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.keys.remove(key);
                }
            }
        }
        known.keys
    }

    pub(super) fn delete_begins(&mut self) {
        self.deletes_in_flight += 1;
        self.last_delete = self.next_tick();
    }

    pub(super) fn delete_ends(&mut self) {
        self.deletes_in_flight -= 1;
        self.last_delete = self.next_tick();
    }

    pub(super) fn delete_accepted(&mut self, id: ServerId, now: Instant) -> Vec<Key> {
        let accepted = self.next_tick();
        let Some(known) = self.servers.get_mut(&id) else {
            return Vec::new();
        };
        known.deleted = Some(Deleted { accepted, lists: 0 });
        known.changed_at = now;
        known.keys.clone()
    }

    pub(super) fn begin_list(&mut self, now: Instant) -> Listing {
        Listing {
            number: self.list.map_or(1, |list| list.number + 1),
            began: self.next_tick(),
            deletes_in_flight: self.deletes_in_flight,
            started_at: now,
            pages: 0,
            totals: BTreeSet::new(),
            seen: BTreeSet::new(),
        }
    }

    pub(super) fn ask_page(&mut self) -> Asked {
        Asked(self.next_tick())
    }

    /// Enters a page of a list.
    pub(super) fn page(
        &mut self,
        listing: &mut Listing,
        asked: &Asked,
        page: crate::hetzner::Page,
        now: Instant,
    ) -> Vec<Key> {
        listing.pages += 1;
        listing.totals.insert(page.total_entries);
        let mut changed = Vec::new();
        for server in page.servers {
            let id = server.id;
            if self.gone.get(&id).is_some_and(|gone| gone.tick > asked.0) {
                continue;
            }
            listing.seen.insert(id);
            let newer = self
                .servers
                .get(&id)
                .filter(|known| known.entered > asked.0);
            let server = newer.map_or(server, |known| Server::clone(&known.server));
            let entered = newer.map_or(asked.0, |known| known.entered);
            changed.extend(self.enter(server, entered, None, now));
        }
        changed
    }

    /// Ends a list that was read to its last page: what it did not show is missing.
    pub(super) fn finish_list(&mut self, listing: &Listing, now: Instant) -> (ListFacts, Vec<Key>) {
        let facts = self.facts(listing, now);
        let mut changed = Vec::new();
        let mut settled = Vec::new();
        for (id, known) in &mut self.servers {
            if known.entered > listing.began && !listing.seen.contains(id) {
                continue;
            }
            let before = known.presence();
            let shown = listing.seen.contains(id);
            if !shown {
                known.missing.get_or_insert(Missing {
                    since: now,
                    confirmed: None,
                });
            }
            if let Some(deleted) = known
                .deleted
                .as_mut()
                .filter(|deleted| deleted.accepted < listing.began)
            {
                deleted.lists += 1;
                if !shown && facts.steady {
                    settled.push(*id);
                }
            }
            if !known.presence().is_like(before) {
                known.changed_at = now;
                changed.extend(known.keys.iter().cloned());
            }
        }
        for id in settled {
            changed.extend(self.gone(id, true, now));
        }
        self.gone
            .retain(|_, gone| now.saturating_duration_since(gone.at) < REMEMBER_GONE);
        self.list = Some(facts);
        self.snapshot = None;
        (facts, deduplicated(changed))
    }

    fn facts(&self, listing: &Listing, now: Instant) -> ListFacts {
        let undisturbed = listing.deletes_in_flight == 0 && self.last_delete < listing.began;
        let total = listing
            .totals
            .first()
            .copied()
            .flatten()
            .and_then(|total| usize::try_from(total).ok());
        let complete = listing.totals.len() == 1 && total == Some(listing.seen.len());
        ListFacts {
            number: listing.number,
            started_at: listing.started_at,
            finished_at: now,
            pages: listing.pages,
            servers: listing.seen.len(),
            // One page is a snapshot in itself.
            steady: complete && (undisturbed || listing.pages == 1),
        }
    }

    /// Puts a server in, and tells whom that concerns.
    fn enter(
        &mut self,
        server: Server,
        entered: u64,
        missing: Option<Missing>,
        now: Instant,
    ) -> Vec<Key> {
        let id = server.id;
        let key = self.labels.key(&server);
        self.gone.remove(&id);
        let new = !self.servers.contains_key(&id);
        let known = self.servers.entry(id).or_insert_with(|| Known {
            server: Arc::new(Server::default()),
            keys: Vec::new(),
            entered,
            missing,
            deleted: None,
            changed_at: now,
        });
        let before = known.presence();
        known.missing = missing;
        known.entered = entered;
        let same = !new && *known.server == server && known.presence().is_like(before);
        if !same {
            known.server = Arc::new(server);
            known.changed_at = now;
        }
        if let Some(key) = key.filter(|key| !known.keys.contains(key)) {
            self.keys.entry(key.clone()).or_default().insert(id);
            known.keys.push(key);
        }
        if same { Vec::new() } else { known.keys.clone() }
    }

    fn next_tick(&mut self) -> u64 {
        self.snapshot = None;
        self.tick += 1;
        self.tick
    }
}

fn deduplicated(mut keys: Vec<Key>) -> Vec<Key> {
    keys.sort_unstable();
    keys.dedup();
    keys
}
