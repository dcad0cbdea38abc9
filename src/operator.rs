//! The running operator: watches, controllers, the Lease and the endpoints, put together.
//!
//! Nothing is decided here. The controllers start when the Lease is held and the process ends when it is lost (I11): a new process begins with
//! nothing remembered, which is cheaper to get right than to forget.

mod wakes;
mod watches;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use secrecy::ExposeSecret as _;
use tokio_util::sync::CancellationToken;

use crate::{
    agent_class,
    agent_instance::{self, talk::Talks},
    bootstrap,
    context::{Context, Settings},
    fleet,
    guest::program::Program,
    health::{self, Probes, canary::Canaries, pace::Pace},
    hetzner, hetzner_project,
    http::{Listener, Liveness, Readiness, routes},
    keys::{Keyring, MasterKey},
    kube_ext::{self, Clients, Events},
    leader::{Candidate, Leadership, Timing},
    metrics::Metrics,
    notification::delivery::{self, Notifications, Receiver, ReceiverError},
    rollout::Rollouts,
    subscription, zombies,
};
use wakes::{Woken, wake_when_over, wake_when_told, wakes};
use watches::Watches;

/// How many servers are listened to at once.
const HELLOS_AT_ONCE: usize = 2_000;
/// How many servers are given something at once.
const ORDERS_AT_ONCE: usize = 64;
/// How many probes run at once.
const PROBES_AT_ONCE: usize = 64;
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
    /// Addresses that should answer whatever becomes of the fleet, each `HOST:PORT`.
    pub canaries: Vec<String>,
    /// How many servers may be rebooted or replaced in a minute to bring agents back.
    pub recoveries_per_minute: u32,
    /// Who is told what happens to instances, if anybody is.
    pub webhook: Option<Receiver>,
    /// How the Lease is held.
    pub lease: Timing,
    /// Where health is served.
    pub http: Option<Listener>,
    /// Where servers post their host keys, if they do.
    pub phone_home: Option<Listener>,
    /// How long nothing may be heard before the process counts as stuck.
    pub silence_max: Duration,
}

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The endpoint of Hetzner's API is not a URL.
    #[error(
        "the Hetzner endpoint {0:?} is not usable: check --hcloud-endpoint, or HCLOUD_ENDPOINT"
    )]
    Endpoint(String, #[source] hetzner::Error),
    /// There is no way to the API server.
    #[error("cannot reach Kubernetes: check KUBECONFIG, or run inside the cluster")]
    Config(#[from] kube::config::InferConfigError),
    /// The clients cannot be made.
    #[error("cannot use the Kubernetes configuration")]
    Client(#[from] kube::Error),
    /// The API server does not answer, or not as it should.
    #[error("the API server at {0} is of no use: check KUBECONFIG")]
    ApiServer(String, #[source] fleet::FleetError),
    /// The master key is missing or wrong.
    #[error(transparent)]
    Fleet(fleet::FleetError),
    /// The master key is not usable.
    #[error("the Secret with the master key is not usable")]
    Key(#[from] crate::keys::KeyError),
    /// The guest program is not one.
    #[error(transparent)]
    Program(#[from] crate::guest::program::NotAProgram),
    /// No HTTP client can be made.
    #[error("cannot make a client for health probes")]
    Probes(#[from] reqwest::Error),
    /// Nobody can be told what happens to instances.
    #[error(transparent)]
    Webhook(#[from] ReceiverError),
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
pub async fn run(mut options: Options, stop: CancellationToken) -> Result<(), OperatorError> {
    let metrics = Metrics::new();
    let notifications = Notifications::new(options.webhook.take(), metrics.clone())?;
    let (clients, server) = reach(&options.settings).await?;
    let (liveness, readiness) = (Liveness::new(options.silence_max), Readiness::default());
    serve(
        options.http.take(),
        routes(liveness.clone(), readiness.clone(), metrics.clone()),
        &stop,
    );
    let master = master_key(&clients, &server, &options).await?;
    let leases: Api<Lease> = Api::namespaced(clients.write.clone(), &options.settings.namespace);
    let (leadership, candidate) = Candidate::new(leases, LEASE, &options.identity, options.lease)?;
    metrics.follow(leadership.clone());
    let prepared = Prepared {
        clients,
        master,
        notifications,
        liveness,
        readiness,
        metrics,
    };
    let resign = CancellationToken::new();
    let candidacy = tokio::spawn(candidate.run(resign.clone().cancelled_owned()));
    let ended = lead(options, prepared, leadership, stop).await;
    resign.cancel();
    let _ended = candidacy.await;
    ended
}

/// What is there before the Lease is held.
struct Prepared {
    clients: Clients,
    master: MasterKey,
    notifications: (Notifications, delivery::Ended),
    liveness: Liveness,
    readiness: Readiness,
    metrics: Metrics,
}

/// Checks what can be checked before anything is asked, and makes the clients of the API server; answers its URL too.
async fn reach(settings: &Settings) -> Result<(Clients, String), OperatorError> {
    let Settings {
        endpoint,
        request_timeout,
        ..
    } = settings;
    hetzner::Client::new(endpoint, String::new().into(), *request_timeout)
        .map_err(|error| OperatorError::Endpoint(endpoint.clone(), error))?;
    let config = kube::Config::infer().await?;
    Ok((kube_ext::clients(&config)?, config.cluster_url.to_string()))
}

async fn master_key(
    clients: &Clients,
    server: &str,
    options: &Options,
) -> Result<MasterKey, OperatorError> {
    let found = fleet::load_or_create(
        clients,
        &options.settings.namespace,
        options.fleet.as_deref(),
    )
    .await
    .map_err(|error| match error {
        fleet::FleetError::Kubernetes(_) => OperatorError::ApiServer(server.to_owned(), error),
        error => OperatorError::Fleet(error),
    })?;
    Ok(MasterKey::new(
        &found.name,
        found.master_key.expose_secret(),
    )?)
}

/// Waits for the Lease, and works until it is lost or `stop` is done.
async fn lead(
    mut options: Options,
    prepared: Prepared,
    leadership: Leadership,
    stop: CancellationToken,
) -> Result<(), OperatorError> {
    let Prepared {
        clients,
        master,
        notifications: (notifications, delivered),
        liveness,
        readiness,
        metrics,
    } = prepared;
    let acquired = stop.run_until_cancelled(leadership.acquired()).await;
    if acquired.is_none() {
        return Ok(());
    }
    tracing::info!(fleet = master.fleet(), "leads");
    let (events, writer) = Events::new(clients.write.clone(), &options.identity);
    tokio::spawn(writer.run());
    let canaries = Arc::new(Canaries::default());
    canaries.watch(options.canaries);
    let (probes, changed) = Probes::new(
        PROBES_AT_ONCE,
        health::http_client()?,
        Arc::clone(&canaries),
        metrics.clone(),
    );
    let pools = (HELLOS_AT_ONCE, ORDERS_AT_ONCE);
    let (talks, [greeted, obeyed]) = Talks::new(pools, probes, metrics.clone());
    let (wake, woken) = wakes();
    let watches = Watches::new(&clients.read, &options.settings.namespace, &liveness);
    let phone_home = options.phone_home.take();
    let context = Arc::new(Context {
        settings: options.settings,
        keyring: Arc::new(Keyring::new(master, vec![])?),
        leadership: leadership.clone(),
        events,
        stores: watches.stores(),
        connections: hetzner_project::connection::Connections::default(),
        memories: agent_instance::memory::Memories::default(),
        classes: agent_class::memory::Memories::default(),
        subscriptions: subscription::memory::Memories::default(),
        guard: subscription::guard::ledger::Ledger::default(),
        rollouts: Rollouts::default(),
        talks,
        canaries,
        pace: Pace::per_minute(options.recoveries_per_minute),
        notifications,
        metrics,
        program: Program::new(include_str!("guest/program.py"))?,
        wake,
        clients,
    });
    context.metrics.show(&context);
    tokio::spawn(wake_when_told(delivered, context.wake.clone()));
    for ended in [greeted, obeyed, changed] {
        tokio::spawn(wake_when_over(ended, context.wake.clone()));
    }
    let pins = Arc::new(agent_instance::phone_home::Pins(context.clone()));
    serve(
        phone_home,
        bootstrap::router(pins, bootstrap::Limits::default()),
        &stop,
    );
    tokio::spawn(tell_when_synced(
        watches.synced(),
        context.stores.synced.clone(),
        readiness,
    ));
    tokio::select! {
        () = Box::pin(work(context, watches, woken, liveness, stop)) => Ok(()),
        () = leadership.lost() => Err(OperatorError::LeaseLost),
    }
}

/// Works until `stop`; no reconcile runs any more when the guard writes its last.
async fn work(
    ctx: Arc<Context>,
    watches: Watches,
    woken: Woken,
    liveness: Liveness,
    stop: CancellationToken,
) {
    let keeper = subscription::guard::keeper::run(ctx.clone(), stop.clone());
    let others = async {
        tokio::select! {
            // What is cut here is taken up as after a crash.
            () = stop.cancelled() => {}
            () = watches.control(ctx.clone(), woken, liveness) => {}
            () = zombies::run(ctx.clone()) => {}
            () = subscription::orphans::run(ctx.clone()) => {}
        }
        stop.cancel();
    };
    tokio::join!(others, keeper);
}

async fn tell_when_synced(
    synced: impl Future<Output = ()>,
    all: CancellationToken,
    readiness: Readiness,
) {
    synced.await;
    all.cancel();
    readiness.set_synced();
}

/// Serves, if there is a listener.
fn serve(listener: Option<Listener>, router: axum::Router, stop: &CancellationToken) {
    let Some(listener) = listener else { return };
    let stop = stop.clone().cancelled_owned();
    tokio::spawn(async move {
        if let Err(error) = listener.serve(router, stop).await {
            tracing::error!(error = kube_ext::error_chain(&error), "an endpoint ended");
        }
    });
}
