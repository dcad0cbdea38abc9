//! Takes the picture from stores, inventories and what is remembered; no request is made here.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{ResourceExt as _, runtime::reflector::ObjectRef};

use super::{
    desired::Desired,
    memory::Memory,
    world::{Checked, FirewallView, NetworkView, ObjectView, ProjectView, World},
};
use crate::{
    api::{AgentClass, AgentClassStatus, AgentInstance, ConditionType, FINALIZER, is_true},
    context::Context,
    health::holds,
    hetzner::{Firewall, FirewallResource, Server, ServerId, ServerStatus},
    hetzner_project::connection::{Connection, Refusal},
    inventory::{Presence, Snapshot},
    kube_ext::COUNTS_PERIOD,
    labels,
    rollout::{self, revisions},
};

/// How long what the catalogue said is believed.
const CHECK_PERIOD: Duration = Duration::from_hours(1);
/// A younger server may not show its firewall yet.
const FIREWALL_SHOWS: Duration = Duration::from_mins(1);

/// Looks at a class.
pub fn observe(ctx: &Context, class: &AgentClass, desired: &Desired) -> World {
    let instances: Vec<Arc<AgentInstance>> = ctx
        .stores
        .instances
        .state()
        .into_iter()
        .filter(|instance| instance.spec.class_name == desired.name)
        .collect();
    let ready = |instance: &&Arc<AgentInstance>| {
        instance
            .status
            .as_ref()
            .is_some_and(|status| is_true(&status.conditions, ConditionType::Ready))
    };
    let status = class.status.clone().unwrap_or_default();
    let (named, ready) = (
        count(instances.len()),
        count(instances.iter().filter(ready).count()),
    );
    let owners = instances
        .iter()
        .map(|instance| {
            (
                instance.namespace().unwrap_or_default(),
                instance.name_any(),
            )
        })
        .collect();
    let look = Look {
        ctx,
        desired,
        owners,
        now: Instant::now(),
    };
    let wall = Timestamp::now();
    let hold = holds::of_class(ctx, class, wall);
    let mut rollout = rollout::look(ctx, class, wall);
    let rollout_wait = rollout
        .look_again
        .map(|at| Duration::try_from(at.duration_since(wall)).unwrap_or_default());
    let updated = count(rollout.progress.updated);
    let plain = revisions::plain(class);
    ctx.classes.with(&desired.name, |memory| World {
        rollout: {
            rollout.housekeeping = memory.not_done(rollout.housekeeping, look.now);
            rollout
        },
        rollout_wait,
        finalizer: class
            .finalizers()
            .iter()
            .any(|finalizer| finalizer == FINALIZER),
        instances: named,
        ready_instances: ready,
        counts_wait: look.counts_wait(
            memory,
            counts(&status) == (Some(named), Some(ready), Some(updated)),
        ),
        revisions: plain.map(|plain| (plain.boot_revision, plain.config_revision)),
        checked: look.checked(memory, &status, class.metadata.generation),
        projects: look.projects(memory),
        troubles: memory.troubles.view(look.now),
        hold,
        status,
    })
}

/// The counts that are told.
pub fn counts(status: &AgentClassStatus) -> (Option<i64>, Option<i64>, Option<i64>) {
    (
        status.instances,
        status.ready_instances,
        status.updated_instances,
    )
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

struct Look<'a> {
    ctx: &'a Context,
    desired: &'a Desired,
    /// Namespace and name of the class's instances.
    owners: HashSet<(String, String)>,
    now: Instant,
}

impl Look<'_> {
    /// How long other counts must not be written.
    fn counts_wait(&self, memory: &Memory, same: bool) -> Option<Duration> {
        let since = self.now.saturating_duration_since(memory.counted_at?);
        COUNTS_PERIOD.checked_sub(since).filter(|_| !same)
    }

    /// What the catalogue said of this generation; after a start, what the status says it did.
    fn checked(
        &self,
        memory: &mut Memory,
        status: &AgentClassStatus,
        generation: Option<i64>,
    ) -> Option<Checked> {
        let rendered = |condition: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            condition.type_ == ConditionType::Rendered.as_str()
                && condition.status == "True"
                && condition.observed_generation == generation
        };
        if memory.checked.is_none()
            && status
                .conditions
                .iter()
                .any(|condition| rendered(&condition))
        {
            memory.checked = Some((generation, self.now, Ok(())));
        }
        let (_, at, outcome) = memory
            .checked
            .as_ref()
            .filter(|(of, ..)| *of == generation)?;
        let period = if outcome.is_ok() {
            CHECK_PERIOD
        } else {
            self.ctx.settings.project_period
        };
        Some(Checked {
            outcome: outcome.clone(),
            due: self.now.saturating_duration_since(*at) >= period,
        })
    }

    /// The class's projects in its order, then all others.
    fn projects(&self, memory: &mut Memory) -> Vec<ProjectView> {
        memory
            .guarded
            .retain(|_, at| at.elapsed() < 2 * self.ctx.settings.inventory_slow + FIREWALL_SHOWS);
        let others = self.ctx.stores.projects.state();
        let names = self
            .desired
            .projects
            .iter()
            .cloned()
            .chain(others.iter().map(|project| project.name_any()));
        let mut met = BTreeSet::new();
        names
            .filter(|name| met.insert(name.clone()))
            .map(|name| self.project(name, memory))
            .collect()
    }

    fn project(&self, name: String, memory: &Memory) -> ProjectView {
        let object = self.ctx.stores.projects.get(&ObjectRef::new(&name));
        let mut view = ProjectView {
            object: object.map_or(ObjectView::Missing, |object| {
                match object.metadata.deletion_timestamp {
                    Some(_) => ObjectView::Deleting,
                    None => ObjectView::Living,
                }
            }),
            named: self.desired.projects.contains(&name),
            ..ProjectView::default()
        };
        let connection = match self.ctx.connections.get(&name) {
            _ if view.object == ObjectView::Missing => {
                return ProjectView {
                    unusable: Some(missing(&name)),
                    name,
                    ..view
                };
            }
            None => {
                return ProjectView {
                    pending: true,
                    unusable: Some(unproven()),
                    name,
                    ..view
                };
            }
            Some(Err(refusal)) => {
                return ProjectView {
                    unusable: Some(refusal),
                    name,
                    ..view
                };
            }
            Some(Ok(connection)) => connection,
        };
        let standing = connection.standing();
        view.pending = !standing.looked_at;
        view.unusable = standing.refused;
        if let Some((firewalls, stale)) = connection.firewalls.get(self.ctx.settings.project_period)
        {
            let fleet = self.ctx.keyring.current().fleet();
            let own = firewalls
                .iter()
                .filter_map(|firewall| FirewallView::of(firewall, self.desired, fleet));
            let own: Vec<_> = own.collect();
            if let Some(first) = own.first() {
                view.unguarded = self.unguarded(&connection, first.id, memory);
                view.former = self.former(&connection, first.id, &firewalls);
            }
            view.firewalls = Some(own);
            view.stale = stale;
        }
        view.network = self.network(&name, &standing.networks, memory);
        ProjectView { name, ..view }
    }

    /// Servers of the class that should show its firewall and do not: somebody took it off, or they were another class's before.
    fn unguarded(&self, connection: &Connection, firewall: i64, memory: &Memory) -> Vec<i64> {
        let settled = Timestamp::now()
            .checked_sub(FIREWALL_SHOWS)
            .unwrap_or(Timestamp::UNIX_EPOCH);
        let snapshot = connection.inventory.snapshot();
        let bare = self.at_rest(&snapshot).filter(|server| {
            let old = server.created.is_some_and(|created| created < settled);
            (old || !server.public_net.firewalls.is_empty()) && !is_behind(server, firewall)
        });
        bare.map(|server| server.id.number())
            .filter(|id| !memory.guarded.contains_key(id))
            .collect()
    }

    /// Servers of the class that are behind its firewall, and behind one of another class of the fleet too.
    fn former(
        &self,
        connection: &Connection,
        firewall: i64,
        all: &[Firewall],
    ) -> Vec<(i64, Vec<i64>)> {
        let snapshot = connection.inventory.snapshot();
        let guarded: BTreeSet<i64> = self
            .at_rest(&snapshot)
            .filter(|server| is_behind(server, firewall))
            .map(|server| server.id.number())
            .collect();
        let of_others = all.iter().filter(|firewall| {
            let class = labels::text(&firewall.labels, labels::CLASS);
            !class.is_empty() && class != self.desired.name
        });
        let both = of_others.map(|other| {
            let applied = other.applied_to.iter().filter_map(FirewallResource::server);
            let applied = applied.map(ServerId::number);
            let both = applied.filter(|id| guarded.contains(id)).collect();
            (other.id.number(), both)
        });
        both.filter(|(_, servers): &(i64, Vec<i64>)| !servers.is_empty())
            .collect()
    }

    /// Servers of the class with which Hetzner does nothing.
    fn at_rest<'s>(&'s self, snapshot: &'s Snapshot) -> impl Iterator<Item = &'s Server> {
        let listed = snapshot
            .servers()
            .filter(|entry| entry.presence == Presence::Listed)
            .map(|entry| &*entry.server);
        listed.filter(|server| {
            matches!(server.status, ServerStatus::Running | ServerStatus::Off)
                && !server.locked
                && self.owns(server)
        })
    }

    fn owns(&self, server: &Server) -> bool {
        self.owners.contains(&(
            labels::text(&server.labels, labels::NAMESPACE),
            labels::text(&server.labels, labels::NAME),
        ))
    }

    fn network(
        &self,
        project: &str,
        known: &std::collections::BTreeMap<String, u64>,
        memory: &Memory,
    ) -> NetworkView {
        let Some(name) = &self.desired.network else {
            return NetworkView::Unknown;
        };
        let asked = memory.networks.get(&(project.to_owned(), name.clone()));
        match asked {
            _ if known.contains_key(name) => NetworkView::Found,
            Some((at, None)) if at.elapsed() < self.ctx.settings.project_period => {
                NetworkView::Missing
            }
            _ => NetworkView::Unknown,
        }
    }
}

fn is_behind(server: &Server, firewall: i64) -> bool {
    let mut applied = server.public_net.firewalls.iter();
    applied.any(|applied| applied.id.number() == firewall)
}

fn missing(name: &str) -> Refusal {
    (
        "ProjectMissing",
        format!("HetznerProject {name} does not exist; create it or take it out of spec.projects"),
    )
}

fn unproven() -> Refusal {
    ("ProjectNotConnected", "it is being connected".into())
}
