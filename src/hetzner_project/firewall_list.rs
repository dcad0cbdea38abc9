//! The firewalls of the fleet in one project: one list for all classes.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    connection::Connection,
    request::{Asked, Failure},
};
use crate::{
    hetzner::{Firewall, Lane},
    labels,
};

/// What was listed last, and what our own requests have changed since.
#[derive(Default)]
pub struct FirewallList {
    known: Mutex<Known>,
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    read_at: Option<Instant>,
    changes: u64,
    firewalls: Arc<Vec<Firewall>>,
}

impl FirewallList {
    /// What is known; none before the first list. The second tells whether that is older than `period`.
    pub fn get(&self, period: Duration) -> Option<(Arc<Vec<Firewall>>, bool)> {
        let known = self.lock();
        let read_at = known.read_at?;
        Some((Arc::clone(&known.firewalls), read_at.elapsed() >= period))
    }

    /// What the last list showed, and when that was begun.
    pub fn listed(&self) -> Option<(Arc<Vec<Firewall>>, Instant)> {
        let known = self.lock();
        Some((Arc::clone(&known.firewalls), known.read_at?))
    }

    /// Enters what a request of our own has changed.
    pub fn change(&self, change: impl FnOnce(&mut Vec<Firewall>)) {
        let mut known = self.lock();
        known.changes += 1;
        change(Arc::make_mut(&mut known.firewalls));
    }

    /// Forgets the list: a request may have changed it, or the world is not as it says.
    pub fn forget(&self) {
        self.lock().read_at = None;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Lists the firewalls of the fleet, unless somebody else has just done so.
    ///
    /// # Errors
    /// See [`Failure`]; the former list stays.
    pub async fn list_firewalls(&self, fleet: &str, period: Duration) -> Result<(), Failure> {
        let _one_at_a_time = self.firewalls.reading.lock().await;
        if self.firewalls.get(period).is_some_and(|(_, old)| !old) {
            return Ok(());
        }
        let (begun, changes) = (Instant::now(), self.firewalls.lock().changes);
        let selector = format!("{}={fleet}", labels::FLEET);
        let asked = Asked {
            lane: Lane::Other,
            who: "firewalls",
            route: "GET /firewalls",
        };
        let (mut all, mut next) = (vec![], Some(1));
        while let Some(page) = next {
            let (firewalls, after) = self
                .read(asked, async |client, permit| {
                    client.firewalls_page(permit, &selector, page).await
                })
                .await?;
            all.extend(firewalls);
            next = after.filter(|after| *after > page);
        }
        let mut known = self.firewalls.lock();
        // What was changed meanwhile may be in it or not: it is read once more.
        if known.changes == changes {
            *known = Known {
                read_at: Some(begun),
                changes,
                firewalls: Arc::new(all),
            };
        }
        Ok(())
    }
}
