//! One look at everything that matters to an instance.
//!
//! Reads the stores of the Kubernetes watches, the inventories and what is remembered; asks the API server only for a Secret that has changed.
//! No request to Hetzner is made here.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api, ResourceExt as _,
    core::{Selector, SelectorExt as _},
    runtime::reflector::ObjectRef,
};

use super::{
    description,
    desired::{Agent, Desired, Identity, Want},
    memory::Memory,
    talk,
    world::{ClassView, Known, Power, ProjectView, SecretsView, ServerView, World},
};
use crate::{
    api::{AgentClass, AgentInstance, FINALIZER},
    context::Context,
    hetzner::{Next, Place, Server, ServerStatus},
    hetzner_project::connection::Connection,
    inventory::{Key, Presence},
    keys::ServerKeys,
    kube_ext::{CallError, call},
    labels,
    naming::instance_hash,
    secret_files::SecretData,
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
    /// Now.
    pub fn now() -> Self {
        Self {
            wall: Timestamp::now(),
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
    let (class, secrets) = match desired {
        Desired::Absent(_) => (ClassView::Missing, SecretsView::Unknown),
        Desired::Present(_, want) => look.prerequisites(want).await?,
    };
    Ok(look.world(desired, class, secrets))
}

struct Look<'a> {
    ctx: &'a Context,
    instance: &'a AgentInstance,
    identity: &'a Identity,
    moment: Moment,
}

impl Look<'_> {
    fn world(&self, desired: &Desired, class: ClassView, secrets: SecretsView) -> World {
        let connections = self.ctx.connections.all();
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
            let servers = self.servers(&connections, memory);
            let wants_place = matches!(desired, Desired::Present(..)) && servers.is_empty();
            World {
                finalizer: self
                    .instance
                    .finalizers()
                    .iter()
                    .any(|finalizer| finalizer == FINALIZER),
                known: self.known(&connections, &servers),
                projects: self.projects(&class, wants_place, &servers),
                attempt: memory.attempt.clone(),
                fresh_epoch: memory.fresh_epoch,
                trouble: memory.trouble(&basis),
                status,
                class,
                secrets,
                servers,
            }
        })
    }

    async fn prerequisites(&self, want: &Want) -> Result<(ClassView, SecretsView), CallError> {
        let class = self.ctx.stores.classes.get(&ObjectRef::new(&want.class));
        let Some(class) =
            class.filter(|class| class.metadata.deletion_timestamp.is_none() || self.has_server())
        else {
            return Ok((ClassView::Missing, SecretsView::Unknown));
        };
        let view = match self.refusal(&class).await? {
            Some((reason, message)) if !self.has_server() => ClassView::Refused(reason, message),
            _ => match Agent::of(&class, want) {
                Ok(agent) => ClassView::Usable(Box::new(agent)),
                Err(refused) => ClassView::Refused("OverrideNotAllowed", refused.to_string()),
            },
        };
        let secrets = match &view {
            ClassView::Usable(agent) => self.secrets(agent, want).await?,
            _ => SecretsView::Unknown,
        };
        Ok((view, secrets))
    }

    fn has_server(&self) -> bool {
        self.instance
            .status
            .as_ref()
            .is_some_and(|status| status.server.is_some())
    }

    /// What the admin of the class has not offered to this instance.
    async fn refusal(
        &self,
        class: &AgentClass,
    ) -> Result<Option<(&'static str, String)>, CallError> {
        let name = class.name_any();
        if !self.namespace_allowed(class).await? {
            let message = format!(
                "AgentClass {name} is not offered to namespace {}: see its spec.namespaceSelector",
                self.identity.namespace
            );
            return Ok(Some(("NamespaceNotAllowed", message)));
        }
        let Some(limit) = class.spec.limits.instances else {
            return Ok(None);
        };
        let over = self.rank(&name) >= usize::try_from(limit).unwrap_or_default();
        let message = format!(
            "AgentClass {name} allows {limit} instances; its admin sets spec.limits.instances"
        );
        Ok(over.then_some(("LimitReached", message)))
    }

    async fn namespace_allowed(&self, class: &AgentClass) -> Result<bool, CallError> {
        let Some(selector) = class.spec.namespace_selector.clone() else {
            return Ok(true);
        };
        let Ok(selector) = Selector::try_from(selector) else {
            return Ok(false);
        };
        let namespaces: Api<Namespace> = Api::all(self.ctx.clients.read.clone());
        let namespace = call("GET namespaces", namespaces.get(&self.identity.namespace)).await?;
        Ok(selector.matches(namespace.labels()))
    }

    /// How many instances of the class are older than this one.
    fn rank(&self, class: &str) -> usize {
        let age = |instance: &AgentInstance| {
            (instance.metadata.creation_timestamp.clone(), instance.uid())
        };
        let own = age(self.instance);
        let others = self.ctx.stores.instances.state();
        others
            .iter()
            .filter(|other| other.spec.class_name == class && age(other) < own)
            .count()
    }

    /// Measures the Secret against the class; one that was measured before is not read again.
    async fn secrets(&self, agent: &Agent, want: &Want) -> Result<SecretsView, CallError> {
        if agent.spec.secret_keys.is_empty() && agent.spec.secret_files.is_empty() {
            return Ok(measure_secret(
                agent,
                "",
                &SecretData::default(),
                &instance_keys(self.ctx, self.identity),
            ));
        }
        let Some(name) = &want.secret else {
            let message = format!(
                "AgentClass {} asks for a Secret: set spec.secretName",
                agent.class
            );
            return Ok(SecretsView::Unmet("SecretNotNamed", message));
        };
        let known = self
            .ctx
            .stores
            .secrets
            .get(&ObjectRef::new(name).within(&self.identity.namespace));
        let version = known.and_then(|secret| secret.resource_version());
        let measure = format!(
            "{name} {version:?} {} {:?}",
            agent.config_revision, agent.spec.secret_keys
        );
        let remembered = self
            .ctx
            .memories
            .with(&self.identity.uid, |memory| memory.secrets.clone());
        if let Some((by, view)) = remembered
            && by == measure
        {
            return Ok(view);
        }
        let view = match read_secret(self.ctx, &self.identity.namespace, name).await? {
            None => SecretsView::Unmet(
                "SecretMissing",
                format!(
                    "there is no Secret {name} in namespace {}",
                    self.identity.namespace
                ),
            ),
            Some(secret) => measure_secret(
                agent,
                name,
                &secret,
                &instance_keys(self.ctx, self.identity),
            ),
        };
        self.ctx.memories.with(&self.identity.uid, |memory| {
            memory.secrets = Some((measure, view.clone()))
        });
        Ok(view)
    }

    fn servers(&self, connections: &[Arc<Connection>], memory: &mut Memory) -> Vec<ServerView> {
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
                servers.push(self.server(
                    &connection.project,
                    &entry.server,
                    entry.presence,
                    memory,
                ));
            }
        }
        servers
    }

    fn server(
        &self,
        project: &str,
        server: &Server,
        presence: Presence,
        memory: &mut Memory,
    ) -> ServerView {
        let id = server.id.number();
        let mut guest = memory.guest(id).view.clone();
        guest.busy = talk::is_busy(self.ctx, &talk::GuestKey::new(self.identity, id));
        ServerView {
            project: project.to_owned(),
            id,
            name: server.name.clone(),
            uid: labels::text(&server.labels, labels::UID),
            incarnation: labels::number(&server.labels, labels::INCARNATION),
            boot_revision: server.labels.get(labels::BOOT_REVISION).cloned(),
            ipv4: server.ipv4().map(|address| address.to_string()),
            ipv6: server.ipv6().map(|address| address.to_string()),
            server_type: server.server_type.name.clone(),
            location: server.location.name.clone(),
            created_at: server.created,
            power: power(&server.status),
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

    /// The projects of the class in its order, those that hold or were asked for a server, and all where nothing is written down.
    fn projects(
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
                let unusable = refused
                    .and_then(Result::err)
                    .unwrap_or(("ProjectNotConnected", "it is being connected".into()));
                return Some(ProjectView {
                    name: name.to_owned(),
                    unusable: Some(unusable),
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
            .on_the_wall(self.moment.steady + std::time::Duration::from_mins(1))
    }
}

fn power(status: &ServerStatus) -> Power {
    match status {
        ServerStatus::Off => Power::Off,
        ServerStatus::Running | ServerStatus::Starting | ServerStatus::Initializing => Power::On,
        _ => Power::Busy,
    }
}

/// The keys that tag an instance's secret files, on whichever of its servers.
pub fn instance_keys(ctx: &Context, identity: &Identity) -> ServerKeys {
    let master = ctx.keyring.current();
    master.server_keys(&instance_hash(
        master.fleet(),
        &identity.namespace,
        &identity.name,
    ))
}

/// Reads a Secret; none if there is none.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn read_secret(
    ctx: &Context,
    namespace: &str,
    name: &str,
) -> Result<Option<SecretData>, CallError> {
    let secrets: Api<Secret> = Api::namespaced(ctx.clients.read.clone(), namespace);
    match call("GET secrets", secrets.get(name)).await {
        Ok(secret) => Ok(Some(
            secret
                .data
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.0.into()))
                .collect(),
        )),
        Err(CallError::Gone { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn measure_secret(
    agent: &Agent,
    name: &str,
    secret: &SecretData,
    keys: &ServerKeys,
) -> SecretsView {
    let missing: Vec<String> = agent
        .spec
        .secret_keys
        .iter()
        .filter(|key| key.required && !secret.contains_key(&key.name))
        .map(|key| match &key.description {
            Some(description) => format!("{} ({description})", key.name),
            None => key.name.clone(),
        })
        .collect();
    if !missing.is_empty() {
        return SecretsView::Unmet(
            "SecretKeyMissing",
            format!("Secret {name} lacks {}", missing.join(", ")),
        );
    }
    match description::secret_files(&agent.spec, secret, keys) {
        Ok((_, tag)) => SecretsView::Met { tag },
        Err(unmade) => SecretsView::Unmet(
            "SecretUnusable",
            format!("Secret {name}: {}", crate::kube_ext::error_chain(&unmade)),
        ),
    }
}
