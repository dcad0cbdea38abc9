//! The projects at Hetzner, as one instance sees them.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use kube::{ResourceExt as _, runtime::reflector::ObjectRef};

use super::{
    super::{
        desired::Agent,
        world::{ClassView, ProjectView, ServerView},
    },
    Look,
};
use crate::{
    hetzner::{Next, Place},
    hetzner_project::connection::Connection,
};

impl Look<'_> {
    /// The projects of the class in its order, those that hold or were asked for a server, and all where nothing is written down.
    pub(super) fn projects(
        &self,
        class: &ClassView,
        wants_place: bool,
        servers: &[ServerView],
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
            .filter_map(|name| self.project(name, agent.filter(|_| wants_place)))
            .collect()
    }

    fn project(&self, name: &str, agent: Option<&Agent>) -> Option<ProjectView> {
        self.ctx.stores.projects.get(&ObjectRef::new(name))?;
        let connection = match self.ctx.connections.get(name) {
            Some(Ok(connection)) => connection,
            refused => {
                let unseen = refused.is_none();
                let unusable = refused
                    .and_then(Result::err)
                    .unwrap_or(("ProjectNotConnected", "it is being connected".into()));
                return Some(ProjectView {
                    name: name.to_owned(),
                    unusable: Some(unusable),
                    unseen,
                    ..ProjectView::default()
                });
            }
        };
        let standing = connection.standing();
        let snapshot = connection.inventory.snapshot();
        let held = standing
            .max_servers
            .filter(|max| snapshot.servers().count() >= *max)
            .map(|max| {
                let message =
                    format!("HetznerProject {name} allows {max} servers: see its spec.maxServers");
                ("ServerLimitReached", message, self.in_a_minute())
            });
        let over_quota = connection.stock.over_quota_until(self.moment.steady).map(|until| {
            let message = format!("Hetzner's limit for project {name} is used up; ask Hetzner to raise it (Console, Limits)");
            ("QuotaExceeded", message, self.moment.on_the_wall(until))
        });
        Some(ProjectView {
            name: name.to_owned(),
            unseen: !standing.looked_at
                || (standing.refused.is_none() && !snapshot.first_list_done()),
            unusable: standing.refused,
            synced: snapshot.first_list_done(),
            listed_at: snapshot
                .list()
                .map(|list| self.moment.on_the_wall(list.started_at)),
            creates_held: held.or(over_quota),
            place: agent.and_then(|agent| self.place(&connection, &agent.places)),
            firewall: agent.is_some_and(|agent| standing.firewalls.contains_key(&agent.class)),
        })
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
