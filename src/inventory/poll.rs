//! The task that lists: fast while something changes, slow when calm, never beyond the lists'
//! share of the budget.
//!
//! It is the one place that may wait for a permit, since nothing else runs in it.

use super::snapshot::ListFacts;
use super::{Change, Inventory};
use crate::hetzner::{Budget, Client, Error, Lane, Permit, RetryAt};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::time::sleep_until;

/// How often to list, from start to start.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// While a server is on its way to another state.
    pub fast: Duration,
    /// When all is calm.
    pub slow: Duration,
    /// After a poke.
    pub poked: Duration,
    /// A server longer than this on its way counts as calm: some hang for hours.
    pub flux: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Self {
            fast: Duration::from_secs(10),
            slow: Duration::from_mins(1),
            poked: Duration::from_secs(2),
            flux: Duration::from_mins(10),
        }
    }
}

/// Whether listing works.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// End of the last full list.
    pub last_ok: Option<Instant>,
    /// What is wrong since then.
    pub last_error: Option<Arc<Error>>,
}

/// The clock of the runtime, so that tests may turn it.
fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Inventory {
    /// Lists for ever; to be dropped when the lease or the project is lost.
    pub async fn run(&self, client: &Client, budget: &Budget) -> Infallible {
        let mut failures = 0;
        loop {
            let started = clock();
            failures = match self.poll_once(client, budget).await {
                Ok(_) => 0,
                Err(_) => failures + 1,
            };
            self.wait_for_next(started, failures, budget).await;
        }
    }

    /// Reads one full list, waiting for each page's permit. A page asked for again after a refusal
    /// of the budget is the same page, so a large list ends even if it must wait within.
    ///
    /// # Errors
    /// What was read until then stays; nothing counts as missing because of a list cut short.
    pub async fn poll_once(
        &self,
        client: &Client,
        budget: &Budget,
    ) -> Result<ListFacts, Arc<Error>> {
        let result = self.list(client, budget).await.map_err(Arc::new);
        self.0.health.send_modify(|health| match &result {
            Ok(facts) => {
                *health = Health {
                    last_ok: Some(facts.finished_at),
                    last_error: None,
                }
            }
            Err(error) => health.last_error = Some(Arc::clone(error)),
        });
        result
    }

    async fn list(&self, client: &Client, budget: &Budget) -> Result<ListFacts, Error> {
        let mut listing = self.lock().begin_list(clock());
        let mut next = Some(1);
        while let Some(number) = next {
            let permit = permit(budget).await;
            let asked = self.lock().ask_page();
            let page = client
                .servers_page(permit, &self.0.config.selector, number)
                .await?;
            next = page.next_page.filter(|next| *next > number);
            let changed = self.lock().page(&mut listing, &asked, page, clock());
            self.announce(changed);
        }
        let (facts, changed) = self.lock().finish_list(&listing, clock());
        self.announce(changed);
        let _unheard = self.0.changes.send(Change::Synced);
        Ok(facts)
    }

    /// Sleeps until the next list is due; what happens meanwhile may bring it forward.
    async fn wait_for_next(&self, started: Instant, failures: u32, budget: &Budget) {
        let mut due = self.due(started, failures, budget);
        loop {
            tokio::select! {
                () = sleep_until(due.into()) => return,
                () = self.0.wake.notified() => {}
            }
            due = due.min(self.due(started, failures, budget));
            if self.0.poked.swap(false, Ordering::AcqRel) {
                due = due.min(started + self.0.config.periods.poked);
            }
        }
    }

    fn due(&self, started: Instant, failures: u32, budget: &Budget) -> Instant {
        let Periods {
            fast, slow, flux, ..
        } = self.0.config.periods;
        if failures > 0 {
            let doubled = fast.saturating_mul(1 << failures.min(8));
            return started + doubled.min(slow.max(fast));
        }
        let (pages, in_flux) = {
            let store = self.lock();
            (store.pages(), store.in_flux(flux, clock()))
        };
        if in_flux {
            // A burst may use what calm times have saved.
            return (started + fast).max(budget.list_ready_at(pages, clock()));
        }
        started + slow.max(budget.list_spacing(pages))
    }
}

async fn permit(budget: &Budget) -> Permit {
    loop {
        match budget.try_acquire(Lane::Inventory, "inventory", clock()) {
            Ok(permit) => return permit,
            Err(RetryAt(at)) => sleep_until(at.into()).await,
        }
    }
}
