//! The running operator: watches, controllers, the Lease and the endpoints, put together.
//!
//! Nothing is decided here. The controllers start when the Lease is held and the process ends when it is lost (I11): a new process begins with
//! nothing remembered, which is cheaper to get right than to forget.

use std::{fmt::Debug, hash::Hash, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, TryStreamExt as _, channel::mpsc, stream::BoxStream};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Secret};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::ObjectMeta,
    core::PartialObjectMeta,
    runtime::{
        Controller, PredicateConfig, WatchStreamExt as _,
        controller::{self, Action},
        predicates,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use secrecy::ExposeSecret as _;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{
    agent_class, agent_instance,
    agent_instance::talk::{Ended, Talks},
    api::{AgentClass, AgentInstance, HetznerProject},
    bootstrap,
    context::{Context, Settings, Stores, Wake},
    fleet,
    guest::program::Program,
    hetzner, hetzner_project,
    http::{Liveness, Readiness, routes},
    keys::{Keyring, MasterKey},
    kube_ext::{self, Events},
    leader::{Candidate, Timing},
};

/// How many instances are looked at side by side; a look waits for the API server and Hetzner only.
const INSTANCES_AT_ONCE: u16 = 64;
/// How many servers are listened to at once.
const HELLOS_AT_ONCE: usize = 2_000;
/// How many servers are given something at once.
const ORDERS_AT_ONCE: usize = 64;
/// Name of the Lease.
const LEASE: &str = "agentfleet";

/// What the operator is started with.
pub struct Options {
    /// Flags that reconcilers read.
    pub settings: Settings,
    /// The fleet's name, for its first start.
    pub fleet: Option<String>,
    /// This process among others, such as the name of its pod.
    pub identity: String,
    /// How the Lease is held.
    pub lease: Timing,
    /// Where health is served.
    pub http: crate::http::Listener,
    /// Where servers post their host keys, if they do.
    pub phone_home: Option<crate::http::Listener>,
    /// How long nothing may be heard before the process counts as stuck.
    pub silence_max: Duration,
}

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The endpoint of Hetzner's API is not a URL.
    #[error("the Hetzner endpoint is not usable: check --hcloud-endpoint, or HCLOUD_ENDPOINT")]
    Endpoint(#[source] hetzner::Error),
    /// There is no way to the API server.
    #[error("cannot reach Kubernetes: check KUBECONFIG, or run inside the cluster")]
    Config(#[from] kube::config::InferConfigError),
    /// The clients cannot be made.
    #[error("cannot use the Kubernetes configuration")]
    Client(#[from] kube::Error),
    /// The master key is missing or wrong.
    #[error(transparent)]
    Fleet(#[from] fleet::FleetError),
    /// The master key is not usable.
    #[error("the Secret with the master key is not usable")]
    Key(#[from] crate::keys::KeyError),
    /// The guest program is not one.
    #[error(transparent)]
    Program(#[from] crate::guest::program::NotAProgram),
    /// The durations of the Lease do not fit.
    #[error(transparent)]
    Timing(#[from] crate::leader::InvalidTiming),
    /// Another operator holds the Lease now.
    #[error("the lease was lost: another replica takes over")]
    LeaseLost,
}

/// Runs until `stop` is done or the Lease is lost.
///
/// # Errors
/// Why it could not start, or why it had to end.
pub async fn run(options: Options, stop: CancellationToken) -> Result<(), OperatorError> {
    hetzner::Client::new(
        &options.settings.endpoint,
        String::new().into(),
        options.settings.request_timeout,
    )
    .map_err(OperatorError::Endpoint)?;
    let config = kube::Config::infer().await?;
    let clients = kube_ext::clients(&config)?;
    let (liveness, readiness) = (Liveness::new(options.silence_max), Readiness::default());
    serve(
        options.http,
        routes(liveness.clone(), readiness.clone()),
        &stop,
    );
    let found = fleet::load_or_create(
        &clients,
        &options.settings.namespace,
        options.fleet.as_deref(),
    )
    .await?;
    let master = MasterKey::new(&found.name, found.master_key.expose_secret())?;
    let leases: Api<Lease> = Api::namespaced(clients.write.clone(), &options.settings.namespace);
    let (leadership, candidate) = Candidate::new(leases, LEASE, &options.identity, options.lease)?;
    let resign = CancellationToken::new();
    let candidacy = tokio::spawn(candidate.run(resign.clone().cancelled_owned()));
    tokio::select! {
        () = leadership.acquired() => tracing::info!(fleet = found.name, "leads"),
        () = stop.cancelled() => return Ok(()),
    }
    let (events, writer) = Events::new(clients.write.clone(), &options.identity);
    tokio::spawn(writer.run());
    let (talks, ended) = Talks::new(HELLOS_AT_ONCE, ORDERS_AT_ONCE);
    let (wake, woken) = wakes();
    let watches = Watches::new(&clients.read, &liveness);
    let context = Arc::new(Context {
        settings: options.settings,
        keyring: Arc::new(Keyring::new(master, vec![])?),
        leadership: leadership.clone(),
        events,
        stores: watches.stores(),
        connections: hetzner_project::connection::Connections::default(),
        memories: agent_instance::memory::Memories::default(),
        classes: agent_class::memory::Memories::default(),
        talks,
        program: Program::new(include_str!("guest/program.py"))?,
        wake,
        clients,
    });
    for ended in ended {
        tokio::spawn(wake_when_over(ended, context.wake.clone()));
    }
    if let Some(listener) = options.phone_home {
        let sink = Arc::new(agent_instance::phone_home::Pins(context.clone()));
        serve(
            listener,
            bootstrap::router(sink, bootstrap::Limits::default()),
            &stop,
        );
    }
    let (synced, all_synced) = (watches.synced(), context.stores.synced.clone());
    tokio::spawn(async move {
        synced.await;
        all_synced.cancel();
        readiness.set_synced();
    });
    let ended = tokio::select! {
        () = watches.control(context, woken, liveness, stop.clone()) => Ok(()),
        () = leadership.lost() => Err(OperatorError::LeaseLost),
    };
    resign.cancel();
    let _ended = candidacy.await;
    ended
}

fn serve(listener: crate::http::Listener, router: axum::Router, stop: &CancellationToken) {
    let stop = stop.clone().cancelled_owned();
    tokio::spawn(async move {
        if let Err(error) = listener.serve(router, stop).await {
            tracing::error!(error = kube_ext::error_chain(&error), "an endpoint ended");
        }
    });
}

/// The other ends of [`Wake`].
struct Woken {
    instances: mpsc::UnboundedReceiver<ObjectRef<AgentInstance>>,
    classes: mpsc::UnboundedReceiver<ObjectRef<AgentClass>>,
    projects: mpsc::UnboundedReceiver<ObjectRef<HetznerProject>>,
}

fn wakes() -> (Wake, Woken) {
    let (instances, woken_instances) = mpsc::unbounded();
    let (classes, woken_classes) = mpsc::unbounded();
    let (projects, woken_projects) = mpsc::unbounded();
    let woken = Woken {
        instances: woken_instances,
        classes: woken_classes,
        projects: woken_projects,
    };
    (
        Wake {
            instances,
            classes,
            projects,
        },
        woken,
    )
}

async fn wake_when_over(mut ended: Ended, wake: Wake) {
    while let Some(key) = ended.recv().await {
        wake.instance(&key.namespace, &key.name);
    }
}

/// Who may name a Secret.
struct Owners {
    stores: Stores,
    wake: Wake,
}

impl Owners {
    fn wake(&self, namespace: &str, secret: &str) {
        for instance in self.stores.instances.state() {
            if instance.spec.secret_name.as_deref() == Some(secret)
                && instance.namespace().as_deref() == Some(namespace)
            {
                self.wake.instance(namespace, &instance.name_any());
            }
        }
        for project in self.stores.projects.state() {
            let named = &project.spec.token_secret_ref;
            if (named.namespace.as_str(), named.name.as_str()) == (namespace, secret) {
                self.wake.project(&project.name_any());
            }
        }
    }
}

/// A store, the stream that fills it, and the sign that its first list is in.
///
/// Several waiters for a store of the kube crate wake only one of them, and the controller is one already: so the sign is our own.
struct Watch<K: Resource<DynamicType: Hash + Eq + Clone> + 'static> {
    store: Store<K>,
    objects: BoxStream<'static, Result<K, watcher::Error>>,
    synced: CancellationToken,
}

fn watch<K>(api: Api<K>, liveness: &Liveness, keep: fn(&mut K)) -> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let (liveness, synced) = (liveness.clone(), CancellationToken::new());
    let first = synced.clone();
    let objects = watcher(api, watcher::Config::default())
        .default_backoff()
        .modify(keep)
        .reflect(writer)
        .inspect_ok(move |event| {
            liveness.touch();
            if matches!(event, watcher::Event::InitDone) {
                first.cancel();
            }
        })
        .touched_objects()
        .boxed();
    Watch {
        store,
        objects,
        synced,
    }
}

/// Of a Secret's metadata only its name and version are of use; what `kubectl apply` keeps there may hold its content.
fn keep_name_and_version(secret: &mut PartialObjectMeta<Secret>) {
    let ObjectMeta {
        name,
        namespace,
        resource_version,
        uid,
        ..
    } = std::mem::take(&mut secret.metadata);
    secret.metadata = ObjectMeta {
        name,
        namespace,
        resource_version,
        uid,
        ..ObjectMeta::default()
    };
}

/// Who manages which field is of no use here, and the larger half of a small object.
fn drop_managed_fields<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Looks at whoever names a Secret when it changes.
async fn wake_owners(
    mut secrets: BoxStream<'static, Result<PartialObjectMeta<Secret>, watcher::Error>>,
    owners: Owners,
) {
    while let Some(change) = secrets.next().await {
        match change {
            Ok(secret) => owners.wake(&secret.namespace().unwrap_or_default(), &secret.name_any()),
            Err(error) => tracing::warn!(
                error = kube_ext::error_chain(&error),
                "watch of Secrets failed"
            ),
        }
    }
}

/// The watches, one for each kind.
struct Watches {
    instances: Watch<AgentInstance>,
    classes: Watch<AgentClass>,
    projects: Watch<HetznerProject>,
    secrets: Watch<PartialObjectMeta<Secret>>,
}

impl Watches {
    fn new(client: &Client, liveness: &Liveness) -> Self {
        Self {
            instances: watch(Api::all(client.clone()), liveness, drop_managed_fields),
            classes: watch(Api::all(client.clone()), liveness, drop_managed_fields),
            projects: watch(Api::all(client.clone()), liveness, drop_managed_fields),
            secrets: watch(Api::all(client.clone()), liveness, keep_name_and_version),
        }
    }

    fn stores(&self) -> Stores {
        Stores {
            instances: self.instances.store.clone(),
            classes: self.classes.store.clone(),
            projects: self.projects.store.clone(),
            secrets: self.secrets.store.clone(),
            synced: CancellationToken::new(),
        }
    }

    /// Waits until each watch has had its first list.
    fn synced(&self) -> impl Future<Output = ()> + Send + 'static {
        let all = [
            &self.instances.synced,
            &self.classes.synced,
            &self.projects.synced,
            &self.secrets.synced,
        ]
        .map(Clone::clone);
        async move {
            for synced in all {
                synced.cancelled().await;
            }
        }
    }

    /// Runs the controllers until `stop`.
    async fn control(
        self,
        ctx: Arc<Context>,
        woken: Woken,
        liveness: Liveness,
        stop: CancellationToken,
    ) {
        let owners = Owners {
            stores: ctx.stores.clone(),
            wake: ctx.wake.clone(),
        };
        let secrets = tokio::spawn(wake_owners(self.secrets.objects, owners));
        let many = controller::Config::default().concurrency(INSTANCES_AT_ONCE);
        let instances = Controller::for_stream(self.instances.objects, self.instances.store)
            .with_config(many)
            .watches_stream(
                class_changes(&ctx),
                users_of_class(ctx.stores.instances.clone()),
            )
            .reconcile_on(woken.instances)
            .graceful_shutdown_on(stop.clone().cancelled_owned());
        let classes = Controller::for_stream(self.classes.objects, self.classes.store)
            .reconcile_on(woken.classes)
            .graceful_shutdown_on(stop.clone().cancelled_owned());
        let projects = Controller::for_stream(self.projects.objects, self.projects.store)
            .reconcile_on(woken.projects)
            .graceful_shutdown_on(stop.cancelled_owned());
        tokio::join!(
            watched(
                instances.run(
                    agent_instance::reconcile,
                    agent_instance::error_policy,
                    ctx.clone()
                ),
                &liveness
            ),
            watched(
                classes.run(
                    agent_class::reconcile,
                    hetzner_project::error_policy,
                    ctx.clone()
                ),
                &liveness
            ),
            watched(
                projects.run(
                    hetzner_project::reconcile,
                    hetzner_project::error_policy,
                    ctx
                ),
                &liveness
            ),
        );
        secrets.abort();
    }
}

/// Changes of a class's spec; its status is no news to its instances.
fn class_changes(
    ctx: &Context,
) -> impl Stream<Item = Result<AgentClass, watcher::Error>> + Send + 'static {
    watcher(
        Api::<AgentClass>::all(ctx.clients.read.clone()),
        watcher::Config::default(),
    )
    .default_backoff()
    .touched_objects()
    .predicate_filter(predicates::generation, PredicateConfig::default())
}

fn users_of_class(
    instances: Store<AgentInstance>,
) -> impl Fn(AgentClass) -> Vec<ObjectRef<AgentInstance>> + Send + Sync + 'static {
    move |class| {
        let name = class.name_any();
        let instances = instances.state().into_iter();
        let users = instances.filter(|instance| instance.spec.class_name == name);
        users
            .map(|instance| ObjectRef::from_obj(&*instance))
            .collect()
    }
}

/// Runs a controller to its end; every look shows that the process is alive.
async fn watched<K, E>(
    looks: impl Stream<Item = Result<(ObjectRef<K>, Action), controller::Error<E, watcher::Error>>>,
    liveness: &Liveness,
) where
    K: Resource<DynamicType: Clone + Debug + Eq + Hash> + Clone + Debug + DeserializeOwned,
    E: std::error::Error + 'static,
{
    let mut looks = std::pin::pin!(looks.into_stream());
    while let Some(look) = looks.next().await {
        liveness.touch();
        match look {
            Ok(_)
            | Err(controller::Error::ObjectNotFound(_) | controller::Error::ReconcilerFailed(..)) =>
                {}
            Err(error) => tracing::warn!(error = kube_ext::error_chain(&error), "watch failed"),
        }
    }
}
