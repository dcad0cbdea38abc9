//! Reads what one project holds, all pages of it; nothing waits behind this process but the person who started it.

use std::time::Instant;

use crate::{
    hetzner::{self, Budget, Lane, Permit},
    zombies::world::Thing,
};

/// Reads one project, waiting for its turn where there are few requests left.
pub(super) struct Reader {
    pub(super) hetzner: hetzner::Client,
    pub(super) budget: Budget,
    pub(super) selector: String,
}

impl Reader {
    async fn permit(&self) -> Permit {
        loop {
            match self
                .budget
                .try_acquire(Lane::Other, "sweep", Instant::now())
            {
                Ok(permit) => return permit,
                Err(retry) => tokio::time::sleep_until(retry.0.into()).await,
            }
        }
    }

    pub(super) async fn ssh_keys(&self) -> Result<Vec<i64>, hetzner::Error> {
        let keys = self
            .hetzner
            .ssh_keys_by_label(self.permit().await, &self.selector)
            .await?;
        Ok(keys.iter().map(|key| key.id.number()).collect())
    }

    pub(super) async fn servers(&self, fleet: &str) -> Result<Vec<Thing>, hetzner::Error> {
        let (mut all, mut next) = (vec![], Some(1));
        while let Some(number) = next {
            let permit = self.permit().await;
            let page = self
                .hetzner
                .servers_page(permit, &self.selector, number)
                .await?;
            let things = page.servers.iter();
            all.extend(things.map(|server| Thing::server(server, fleet, true)));
            next = page.next_page.filter(|next| *next > number);
        }
        Ok(all)
    }

    pub(super) async fn firewalls(&self) -> Result<Vec<Thing>, hetzner::Error> {
        let (mut all, mut next) = (vec![], Some(1));
        while let Some(number) = next {
            let permit = self.permit().await;
            let (page, after) = self
                .hetzner
                .firewalls_page(permit, &self.selector, number)
                .await?;
            all.extend(page.iter().map(Thing::firewall));
            next = after.filter(|after| *after > number);
        }
        Ok(all)
    }

    pub(super) async fn snapshots(&self) -> Result<Vec<Thing>, hetzner::Error> {
        let (mut all, mut next) = (vec![], Some(1));
        while let Some(number) = next {
            let permit = self.permit().await;
            let (page, after) = self
                .hetzner
                .snapshots_page(permit, &self.selector, number)
                .await?;
            all.extend(page.iter().map(Thing::snapshot));
            next = after.filter(|after| *after > number);
        }
        Ok(all)
    }
}
