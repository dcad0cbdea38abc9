//! The projects at Hetzner, as one instance sees them.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use kube::{ResourceExt as _, runtime::reflector::ObjectRef};

use super::{
    super::{
        desired::Agent,
        rollback,
        world::{ClassView, ProjectView, ServerView},
    },
    Look,
};
use crate::{
    hetzner::{Next, Place, Snapshot},
    hetzner_project::connection::{Connection, Standing},
};

impl Look<'_> {
    /// The projects of the class in its order, those that hold or were asked for a server, and all where nothing is written down.
    pub(super) fn projects(
        &self,
        class: &ClassView,
        wants_place: bool,
        servers: &[ServerView],
        snapshot: Option<&Snapshot>,
    ) -> Vec<ProjectView> {
        let agent = match class {
            ClassView::Usable(agent) => Some(agent.as_ref()),
            _ => None,
        };
        let status = self.instance.status.as_ref();
        let mut names: Vec<String> = agent
            .map(|agent| agent.projects.clone())
            .unwrap_or_default();
        names.extend(servers.iter().map(|server| server.project.clone()));
        names.extend(
            status
                .and_then(|status| status.server.as_ref())
                .map(|server| server.project.clone()),
        );
        names.extend(
            status
                .and_then(|status| status.provisioning.as_ref())
                .map(|record| record.project.clone()),
        );
        if names.is_empty() {
            names.extend(
                self.ctx
                    .stores
                    .projects
                    .state()
                    .iter()
                    .map(|project| project.name_any()),
            );
        }
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
            .iter()
            .filter_map(|name| self.project(name, agent.filter(|_| wants_place), snapshot))
            .collect()
    }

    /// A project; a server that is to be made of a snapshot has fewer places there.
    fn project(
        &self,
        name: &str,
        agent: Option<&Agent>,
        snapshot: Option<&Snapshot>,
    ) -> Option<ProjectView> {
        self.ctx.stores.projects.get(&ObjectRef::new(name))?;
        let connection = match self.ctx.connections.get(name) {
            Some(Ok(connection)) => connection,
            refused => {
                let unusable = refused
                    .clone()
                    .and_then(Result::err)
                    .unwrap_or(("ProjectNotConnected", "it is being connected".into()));
                return Some(ProjectView {
                    name: name.to_owned(),
                    unseen: refused.is_none(),
                    unusable: Some(unusable),
                    ..ProjectView::default()
                });
            }
        };
        let standing = connection.standing();
        let list = connection.inventory.last_list();
        Some(ProjectView {
            name: name.to_owned(),
            unseen: !standing.looked_at || (standing.refused.is_none() && list.is_none()),
            synced: list.is_some(),
            listed_at: list.map(|list| self.moment.on_the_wall(list.started_at)),
            creates_held: self.creates_held(&connection, &standing),
            place: agent.and_then(|agent| {
                let places = self.places(agent);
                let places = match snapshot {
                    Some(snapshot) => connection.holding(&places, snapshot),
                    None => places,
                };
                self.place(&connection, &places)
            }),
            firewall: agent.is_some_and(|agent| standing.firewalls.contains_key(&agent.class)),
            unusable: standing.refused,
        })
    }

    /// The places of the class; after a creation that failed the next one comes first.
    fn places(&self, agent: &Agent) -> Vec<Place> {
        let status = self.instance.status.as_ref();
        let record = status.and_then(|status| status.provisioning.as_ref());
        let failed = status.and_then(|status| status.rollbacks.last());
        let failed =
            failed.filter(|failed| record.is_some_and(|record| record.basis == failed.basis));
        rollback::places_after(&agent.places, failed)
    }

    fn creates_held(
        &self,
        connection: &Connection,
        standing: &Standing,
    ) -> Option<(&'static str, String, Timestamp)> {
        let name = &connection.project;
        if let Some((reason, message)) = standing.creates_held.clone() {
            return Some((reason, message, self.in_a_minute()));
        }
        if let Some(max) = standing
            .max_servers
            .filter(|max| connection.inventory.count() >= *max)
        {
            let message = connection.limit_reached(max);
            return Some(("ServerLimitReached", message, self.in_a_minute()));
        }
        let until = connection.stock.over_quota_until(self.moment.steady)?;
        let message = format!(
            "Hetzner's limit for project {name} is used up; ask Hetzner to raise it (Console, Limits)"
        );
        Some(("QuotaExceeded", message, self.moment.on_the_wall(until)))
    }

    fn place(&self, connection: &Connection, places: &[Place]) -> Option<Result<Place, Timestamp>> {
        match connection.stock.next_place(places, self.moment.steady)? {
            Next::Place(place) => Some(Ok(place.clone())),
            Next::OutOfStock(until) | Next::OverQuota(until) => {
                Some(Err(self.moment.on_the_wall(until)))
            }
        }
    }

    fn in_a_minute(&self) -> Timestamp {
        self.moment
            .on_the_wall(self.moment.steady + Duration::from_mins(1))
    }
}
