//! Takes the picture: servers from the inventories, claims from the watch stores, firewalls from their shared list. Only snapshots, which nothing
//! else looks at, are listed for it.

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;
use kube::{ResourceExt as _, runtime::reflector::ObjectRef};

use super::{
    memory::Memory,
    world::{Claims, ProjectView, Thing, World},
};
use crate::{
    api::{ConditionType, is_true},
    context::Context,
    hetzner::Lane,
    hetzner_project::{
        connection::Connection,
        request::{Asked, Failure},
    },
    inventory::Presence,
    kube_ext::error_chain,
    labels,
};

/// Looks at everything that carries our label, in all projects that may be believed.
pub async fn observe(ctx: &Context, memory: &mut Memory) -> World {
    let (now, steady) = (Timestamp::now(), Instant::now());
    let mut projects = vec![];
    for connection in ctx.connections.all() {
        let believed = connection.standing().refused.is_none();
        if believed && connection.inventory.last_list().is_some() {
            memory.through(&connection.project, &connection);
            projects.extend(project(ctx, &connection, memory, steady).await);
        }
    }
    let instances = ctx.stores.instances.state();
    let classes = ctx.stores.classes.state();
    World {
        projects,
        claims: Claims::of(instances.iter().map(Arc::as_ref)),
        classes: classes.iter().map(|class| class.name_any()).collect(),
        now,
        steady,
    }
}

async fn project(
    ctx: &Context,
    connection: &Arc<Connection>,
    memory: &Memory,
    now: Instant,
) -> Option<ProjectView> {
    let object = ctx
        .stores
        .projects
        .get(&ObjectRef::new(&connection.project))?;
    let status = object.status.as_ref()?;
    let look = Look {
        ctx,
        connection,
        memory,
        now,
    };
    let mut things = look.servers();
    things.extend(look.firewalls().await);
    things.extend(look.ssh_keys(status.identity?));
    things.extend(look.snapshots().await);
    Some(ProjectView {
        name: connection.project.clone(),
        held: is_true(&status.conditions, ConditionType::RecoveryHeld),
        things,
    })
}

struct Look<'a> {
    ctx: &'a Context,
    connection: &'a Connection,
    memory: &'a Memory,
    now: Instant,
}

impl Look<'_> {
    fn fleet(&self) -> &str {
        self.ctx.keyring.fleet()
    }

    fn seen(&self, mut thing: Thing, list: Instant) -> Thing {
        let key = (thing.kind(), thing.id);
        let clock = (self.now, self.ctx.settings.sweep.period);
        thing.sighting = self
            .memory
            .sighting(&self.connection.project, key, list, clock);
        thing
    }

    fn servers(&self) -> Vec<Thing> {
        let snapshot = self.connection.inventory.snapshot();
        let Some(list) = snapshot.list() else {
            return vec![];
        };
        let entries = snapshot.servers();
        entries
            .map(|entry| {
                let listed = entry.presence == Presence::Listed;
                let thing = Thing::server(&entry.server, self.fleet(), listed);
                self.seen(thing, list.started_at)
            })
            .collect()
    }

    async fn firewalls(&self) -> Vec<Thing> {
        let period = self.ctx.settings.project_period;
        let listed = self.connection.list_firewalls(self.fleet(), period).await;
        let known = self.connection.firewalls.listed();
        match (listed, known) {
            (Ok(()), Some((firewalls, read_at))) => firewalls
                .iter()
                .map(|firewall| self.seen(Thing::firewall(firewall), read_at))
                .collect(),
            (outcome, _) => self.unread("firewalls", outcome.err().as_ref()),
        }
    }

    /// Known from the looks at the project, which end with a list of them.
    fn ssh_keys(&self, identity: i64) -> Vec<Thing> {
        let Some((keys, read_at)) = self.connection.keys() else {
            return vec![];
        };
        let others = keys.into_iter().filter(|id| *id != identity);
        others
            .map(|id| self.seen(Thing::ssh_key(id), read_at))
            .collect()
    }

    async fn snapshots(&self) -> Vec<Thing> {
        let (begun, selector) = (
            Instant::now(),
            format!("{}={}", labels::FLEET, self.fleet()),
        );
        let asked = Asked {
            lane: Lane::Other,
            who: "sweep",
            route: "GET /images snapshots",
        };
        let (mut all, mut next) = (vec![], Some(1));
        while let Some(page) = next {
            let read = self.connection.read(asked, async |client, permit| {
                client.snapshots_page(permit, &selector, page).await
            });
            match read.await {
                Ok((snapshots, after)) => {
                    all.extend(
                        snapshots
                            .iter()
                            .map(|one| self.seen(Thing::snapshot(one), begun)),
                    );
                    next = after.filter(|after| *after > page);
                }
                Err(failure) => return self.unread("snapshots", Some(&failure)),
            }
        }
        all
    }

    /// What cannot be read now is looked at by the next sweep.
    fn unread(&self, what: &str, failure: Option<&Failure>) -> Vec<Thing> {
        if let Some(failure) = failure {
            let (project, error) = (&self.connection.project, error_chain(failure));
            tracing::debug!(project, what, error, "not swept this time");
        }
        vec![]
    }
}
