//! One look at everything that matters to an instance.
//!
//! Reads the stores of the Kubernetes watches, the inventories and what is remembered; asks the API server only for a Secret that has changed.
//! No request to Hetzner is made here.

mod offered;
mod projects;
mod secrets;

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;
use kube::{ResourceExt as _, runtime::reflector::ObjectRef};

pub use secrets::{SECRET_OF_ANOTHER, instance_keys, of_another, read_secret};

use super::{
    desired::{Agent, Desired, Identity, Want},
    memory::Memory,
    notices, talk,
    world::{
        ClassView, GuestView, Known, Meanwhile, Power, SecretsView, ServerView, SnapshotLook, World,
    },
};
use crate::{
    api::{AgentClass, AgentInstance, FINALIZER},
    context::Context,
    health::{breaker::Verdict, holds},
    hetzner::{Server, ServerStatus},
    hetzner_project::{connection::Connection, retype::Retype},
    inventory::{Key, Presence},
    kube_ext::CallError,
    labels,
    rollout::{self, Share},
    subscription::guard::deletions,
};

/// One moment by both clocks: the wall's for records, the monotonic one for pauses.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For what is written down.
    pub wall: Timestamp,
    /// For what is waited for.
    pub steady: Instant,
}

impl Moment {
    /// Now, in the microseconds that Kubernetes keeps: what is written down must equal what is read back.
    pub fn now() -> Self {
        let wall = Timestamp::now();
        Self {
            wall: Timestamp::from_microsecond(wall.as_microsecond()).unwrap_or(wall),
            steady: Instant::now(),
        }
    }

    /// A time of the monotonic clock on the wall's.
    pub fn on_the_wall(&self, at: Instant) -> Timestamp {
        let ahead = at.saturating_duration_since(self.steady);
        let behind = self.steady.saturating_duration_since(at);
        self.wall
            .checked_add(ahead)
            .and_then(|time| time.checked_sub(behind))
            .unwrap_or(self.wall)
    }
}

/// Takes the picture that the plan is made from.
///
/// # Errors
/// When the API server cannot be asked for a Secret or a namespace.
pub async fn observe(
    ctx: &Context,
    instance: &AgentInstance,
    desired: &Desired,
    moment: Moment,
) -> Result<World, CallError> {
    let look = Look {
        ctx,
        instance,
        identity: desired.identity(),
        moment,
    };
    let prerequisites = match desired {
        Desired::Absent(_) | Desired::Retained(_) => Prerequisites::default(),
        Desired::Present(_, want) => look.prerequisites(want).await?,
    };
    let mut world = look.world(desired, prerequisites);
    if desired.want().is_some() && (world.ails() || world.is_out_of_reach()) {
        world.hold = look.hold(&world);
    }
    Ok(world)
}

/// What an instance needs before it can have a server.
#[derive(Default)]
struct Prerequisites {
    class: ClassView,
    rollout: Share,
    meanwhile: Option<Meanwhile>,
    may_move: bool,
    secrets: SecretsView,
}

struct Look<'a> {
    ctx: &'a Context,
    instance: &'a AgentInstance,
    identity: &'a Identity,
    moment: Moment,
}

impl Look<'_> {
    fn world(&self, desired: &Desired, prerequisites: Prerequisites) -> World {
        let Prerequisites {
            class,
            rollout,
            meanwhile,
            may_move,
            secrets,
        } = prerequisites;
        let connections = self.ctx.connections.all();
        let deletion = deletions::view(self.ctx, self.instance, self.moment.wall);
        let basis = format!(
            "{:?} {class:?} {secrets:?}",
            self.instance.metadata.generation
        );
        self.ctx.memories.with(&self.identity.uid, |memory| {
            talk::absorb(self.ctx, self.identity, memory, self.moment.wall);
            let status = self.instance.status.clone().unwrap_or_default();
            if let Some(record) = &status.provisioning {
                memory.find_record(record, self.ctx.settings.window());
            }
            let deleted = self.instance.metadata.deletion_timestamp.as_ref();
            let about = (&status, deleted.map(|at| at.0));
            let notices =
                notices::observe(self.ctx, self.identity, about, memory, self.moment.wall);
            let servers = self.servers(&connections, &class, memory);
            let world = World {
                finalizer: self
                    .instance
                    .finalizers()
                    .iter()
                    .any(|finalizer| finalizer == FINALIZER),
                known: self.known(&connections, &servers),
                projects: vec![],
                attempt: memory.attempt.clone(),
                fresh_epoch: memory.fresh_epoch,
                snapshot: memory.snapshot.clone(),
                recovery: self.ctx.settings.recovery,
                shutdown_grace: self.ctx.settings.shutdown_grace,
                hold: None,
                fresh_recovery: memory.fresh_recovery,
                fresh_restart: memory.fresh_restart,
                trouble: memory.trouble(&basis),
                deletion,
                notices,
                status,
                class,
                rollout,
                meanwhile,
                may_move,
                secrets,
                servers,
            };
            let wants_place = wants_place(desired, &world);
            let snapshot = self.snapshot(&world);
            let newest = snapshot.as_ref().and_then(|look| look.newest.as_ref());
            World {
                projects: self.projects(&world.class, wants_place, &world.servers, newest),
                snapshot,
                ..world
            }
        })
    }

    /// The look for a snapshot of the disk that is lost, if one is, measured against the types that the class lists.
    fn snapshot(&self, world: &World) -> Option<SnapshotLook> {
        let lost = world.lost_disk()?;
        let look = world
            .snapshot
            .clone()
            .filter(|look| look.server == lost.server)?;
        let fits = match (
            &look.newest,
            &world.class,
            self.ctx.connections.get(&lost.project),
        ) {
            (Some(newest), ClassView::Usable(agent), Some(Ok(connection))) => {
                !connection.holding(&agent.places, newest).is_empty()
            }
            _ => true,
        };
        Some(SnapshotLook { fits, ..look })
    }

    async fn prerequisites(&self, want: &Want) -> Result<Prerequisites, CallError> {
        let class = self.ctx.stores.classes.get(&ObjectRef::new(&want.class));
        let Some(class) =
            class.filter(|class| class.metadata.deletion_timestamp.is_none() || self.has_server())
        else {
            let message = format!("there is no AgentClass {}", want.class);
            return Ok(Prerequisites {
                class: ClassView::Refused("ClassMissing", message),
                ..Prerequisites::default()
            });
        };
        let given = rollout::share(self.ctx, &class, self.instance, want, self.moment.wall);
        let view = match self.refusal(&class).await? {
            Some((reason, message)) if !self.has_server() => ClassView::Refused(reason, message),
            _ => class_view(&class, given.class, want),
        };
        let secrets = match &view {
            ClassView::Usable(agent) => self.secrets(agent, want).await?,
            _ => SecretsView::Unknown,
        };
        Ok(Prerequisites {
            class: view,
            rollout: given.share,
            meanwhile: self.meanwhile(given.meanwhile.as_ref(), want).await?,
            may_move: given.may_move,
            secrets,
        })
    }

    /// What it is to have until its new server serves.
    async fn meanwhile(
        &self,
        class: Option<&AgentClass>,
        want: &Want,
    ) -> Result<Option<Meanwhile>, CallError> {
        let Some(Ok(agent)) = class.map(|class| Agent::of(class, want)) else {
            return Ok(None);
        };
        let SecretsView::Met { tag } = self.secrets(&agent, want).await? else {
            return Ok(None);
        };
        let agent = Box::new(agent);
        Ok(Some(Meanwhile { agent, tag }))
    }

    /// Who says, or is about to say, that no server is touched to bring agents back.
    fn hold(&self, world: &World) -> Option<String> {
        let (ctx, now) = (self.ctx, self.moment.wall);
        let class = ObjectRef::new(&self.instance.spec.class_name);
        let class = ctx.stores.classes.get(&class)?;
        let hold = holds::of_class(ctx, &class, now);
        let told = class.status.as_ref().map(|status| &status.conditions);
        if hold.lasts(told) {
            if hold.verdict != Verdict::AsTold {
                ctx.wake.class(&class.name_any());
            }
            return Some(format!("AgentClass {}", class.name_any()));
        }
        let server = world.status.server.as_ref();
        let server = server.filter(|_| world.known == Known::Gone)?;
        let project = ctx.stores.projects.get(&ObjectRef::new(&server.project))?;
        let hold = holds::of_project(ctx, &project, now);
        let told = project.status.as_ref().map(|status| &status.conditions);
        if !hold.lasts(told) {
            return None;
        }
        if hold.verdict != Verdict::AsTold {
            ctx.wake.project(&server.project);
        }
        Some(format!("HetznerProject {}", server.project))
    }

    fn has_server(&self) -> bool {
        self.instance
            .status
            .as_ref()
            .is_some_and(|status| status.server.is_some())
    }

    fn servers(
        &self,
        connections: &[Arc<Connection>],
        class: &ClassView,
        memory: &mut Memory,
    ) -> Vec<ServerView> {
        let key = Key {
            namespace: self.identity.namespace.clone(),
            name: self.identity.name.clone(),
        };
        let mut servers = vec![];
        for connection in connections {
            for entry in connection.inventory.of(&key) {
                if entry.presence == Presence::Gone
                    || !labels::are_ours(
                        &entry.server.labels,
                        self.identity,
                        self.ctx.keyring.fleet(),
                    )
                {
                    continue;
                }
                let seen = self.server(&connection.project, &entry.server, entry.presence, memory);
                servers.push(ServerView {
                    retype: self.retype(connection, &entry.server, class, &seen.guest),
                    ..seen
                });
            }
        }
        servers
    }

    /// What could become of a server where only its type is not listed any more.
    fn retype(
        &self,
        connection: &Connection,
        server: &Server,
        class: &ClassView,
        guest: &GuestView,
    ) -> Retype {
        match class {
            _ if guest.retype_refused => Retype::Impossible,
            ClassView::Usable(agent) => {
                let listed = agent.types_at(&connection.project, &server.location.name);
                connection.retype(server, &listed, self.moment.wall)
            }
            _ => Retype::Unknown,
        }
    }

    fn server(
        &self,
        project: &str,
        server: &Server,
        presence: Presence,
        memory: &mut Memory,
    ) -> ServerView {
        let id = server.id.number();
        if power(&server.status) == Power::Off {
            memory.guest(id).view.shut_down = None;
        }
        let mut guest = memory.guest(id).view.clone();
        let key = talk::GuestKey::new(self.identity, id);
        guest.busy = talk::is_busy(self.ctx, &key);
        guest.health = self.ctx.talks.probes.view(&key);
        ServerView {
            project: project.to_owned(),
            id,
            name: server.name.clone(),
            uid: labels::text(&server.labels, labels::UID),
            incarnation: labels::number(&server.labels, labels::INCARNATION),
            boot_revision: server.labels.get(labels::BOOT_REVISION).cloned(),
            revision: server.labels.get(labels::REVISION).cloned(),
            disk: labels::disk(&server.labels),
            ipv4: server.ipv4().map(|address| address.to_string()),
            ipv6: server.ipv6().map(|address| address.to_string()),
            server_type: server.server_type.name.clone(),
            location: server.location.name.clone(),
            retype: Retype::Unknown,
            created_at: server.created,
            power: power(&server.status),
            retained: server.labels.contains_key(labels::RETAINED),
            blocked: server
                .public_net
                .ipv4
                .as_ref()
                .is_some_and(|address| address.blocked),
            listed: !matches!(
                presence,
                Presence::NotListed {
                    confirmed: None,
                    ..
                }
            ),
            deleting: presence == Presence::Deleting,
            guest,
        }
    }

    fn known(&self, connections: &[Arc<Connection>], servers: &[ServerView]) -> Known {
        let Some(server) = self
            .instance
            .status
            .as_ref()
            .and_then(|status| status.server.as_ref())
        else {
            return Known::Present;
        };
        if servers.iter().any(|seen| seen.id == server.id) {
            return Known::Present;
        }
        let connection = connections
            .iter()
            .find(|connection| connection.project == server.project);
        match connection.map(|connection| connection.inventory.presence(server.id.into())) {
            Some(Presence::Gone) => Known::Gone,
            Some(
                Presence::Listed
                | Presence::NotListed {
                    confirmed: Some(_), ..
                },
            ) => Known::Relabelled,
            _ => Known::Unseen,
        }
    }
}

/// The class at the revision that the instance shall have.
fn class_view(class: &AgentClass, given: Option<AgentClass>, want: &Want) -> ClassView {
    match given.map(|class| Agent::of(&class, want)) {
        Some(Ok(agent)) => ClassView::Usable(Box::new(agent)),
        Some(Err(refused)) => ClassView::Refused("OverrideNotAllowed", refused.to_string()),
        None => {
            let message = format!(
                "the revision that it has is kept no more; it is left as it is until it is its turn to get the one that AgentClass {} has now",
                class.name_any()
            );
            ClassView::Refused("RevisionLost", message)
        }
    }
}

/// Whether a server may have to be asked for: there is none, or none that is as the class asks.
fn wants_place(desired: &Desired, world: &World) -> bool {
    let (Desired::Present(identity, _), ClassView::Usable(_)) = (desired, &world.class) else {
        return false;
    };
    !world
        .own(&identity.uid)
        .any(|server| world.misfit(server).is_none())
}

fn power(status: &ServerStatus) -> Power {
    match status {
        ServerStatus::Off => Power::Off,
        ServerStatus::Running | ServerStatus::Starting | ServerStatus::Initializing => Power::On,
        _ => Power::Busy,
    }
}
