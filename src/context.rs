//! What every reconciler shares: clients, stores, and the few things that this process remembers.

use std::{sync::Arc, time::Duration};

use futures::channel::mpsc;
use k8s_openapi::api::{apps::v1::ControllerRevision, core::v1::Secret};
use kube::{
    core::PartialObjectMeta,
    runtime::reflector::{ObjectRef, Store},
};

use tokio_util::sync::CancellationToken;

use crate::{
    agent_class,
    agent_instance::{memory::Memories, talk::Talks, world::RecoveryFlags},
    api::{AgentClass, AgentInstance, HetznerProject, Subscription},
    guest::program::Program,
    health::{canary::Canaries, pace::Pace},
    hetzner_project::connection::Connections,
    keys::Keyring,
    kube_ext::{Clients, Events},
    leader::Leadership,
    metrics::Metrics,
    notification::delivery::Notifications,
    rollout::Rollouts,
    subscription::{self, SubscriptionFlags, guard::ledger::Ledger, references::References},
    zombies::SweepFlags,
};

/// Everything a reconciler may use.
pub struct Context {
    /// What the flags say.
    pub settings: Settings,
    /// Clients of the API server.
    pub clients: Clients,
    /// The fleet's master key in all its versions.
    pub keyring: Arc<Keyring>,
    /// Whether this process may act (I11); asked before each step.
    pub leadership: Leadership,
    /// Events for people.
    pub events: Events,
    /// The objects of the API server.
    pub stores: Stores,
    /// The projects at Hetzner.
    pub connections: Connections,
    /// What is remembered of instances.
    pub memories: Memories,
    /// What is remembered of classes.
    pub classes: agent_class::memory::Memories,
    /// What is remembered of subscriptions.
    pub subscriptions: subscription::memory::Memories,
    /// What is remembered of instances that went, and were made, lately.
    pub guard: Ledger,
    /// Where the rollouts of classes stand.
    pub rollouts: Rollouts,
    /// Acts over SSH that are under way.
    pub talks: Talks,
    /// What answers whatever becomes of one class.
    pub canaries: Arc<Canaries>,
    /// How fast servers are rebooted and replaced.
    pub pace: Pace,
    /// Events about instances that are on their way to the webhook.
    pub notifications: Notifications,
    /// What is counted for Prometheus.
    pub metrics: Metrics,
    /// The guest program that this operator brings.
    pub program: Program,
    /// Asks a controller to look at an object again.
    pub wake: Wake,
}

/// What the flags of `agentfleet run` say.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Base URL of the Hetzner Cloud API.
    pub endpoint: String,
    /// Namespace of the operator itself.
    pub namespace: String,
    /// Port of SSH on servers.
    pub guest_port: u16,
    /// How long a request to Hetzner may take.
    pub request_timeout: Duration,
    /// How long after a request ended without an answer it may still take effect.
    pub settle: Duration,
    /// Pause between lists of servers while something is in flux.
    pub inventory_fast: Duration,
    /// Pause between lists of servers otherwise.
    pub inventory_slow: Duration,
    /// Pause between looks at a project and its firewalls.
    pub project_period: Duration,
    /// Whether and when agents that fail are recovered.
    pub recovery: RecoveryFlags,
    /// What is done about things that belong to nobody.
    pub sweep: SweepFlags,
    /// When what a subscription takes away is announced, and for how long an instance is kept whose subscription is missing.
    pub subscriptions: SubscriptionFlags,
    /// How long a server has to switch itself off before its plug is pulled.
    pub shutdown_grace: Duration,
    /// How long the object of a deleted instance waits until the webhook's receiver has taken its last event.
    pub webhook_patience: Duration,
    /// URL under which servers reach the phone-home endpoint, if there is one.
    pub phone_home_url: Option<String>,
}

impl Settings {
    /// How long after a request was announced it may still take effect at Hetzner.
    pub fn window(&self) -> Duration {
        self.request_timeout + self.settle
    }
}

/// The objects of the API server, as its watches tell them.
#[derive(Clone)]
pub struct Stores {
    /// All instances.
    pub instances: Store<AgentInstance>,
    /// All classes.
    pub classes: Store<AgentClass>,
    /// All projects.
    pub projects: Store<HetznerProject>,
    /// All subscriptions.
    pub subscriptions: Store<Subscription>,
    /// The same by what they are in the billing system.
    pub references: References,
    /// All Secrets, without their content.
    pub secrets: Store<PartialObjectMeta<Secret>>,
    /// Former revisions of classes.
    pub revisions: Store<ControllerRevision>,
    /// Done when all of them have had their first list: what is absent before that may still exist (I9).
    pub synced: CancellationToken,
}

/// Asks a controller to look at an object again.
#[derive(Clone)]
pub struct Wake {
    /// To the instances' controller.
    pub instances: mpsc::UnboundedSender<ObjectRef<AgentInstance>>,
    /// To the classes' controller.
    pub classes: mpsc::UnboundedSender<ObjectRef<AgentClass>>,
    /// To the projects' controller.
    pub projects: mpsc::UnboundedSender<ObjectRef<HetznerProject>>,
    /// To the subscriptions' controller.
    pub subscriptions: mpsc::UnboundedSender<ObjectRef<Subscription>>,
}

impl Wake {
    /// Looks at an instance again. A controller that has ended needs no waking.
    pub fn instance(&self, namespace: &str, name: &str) {
        let _ended = self
            .instances
            .unbounded_send(ObjectRef::new(name).within(namespace));
    }

    /// Looks at a class again.
    pub fn class(&self, name: &str) {
        let _ended = self.classes.unbounded_send(ObjectRef::new(name));
    }

    /// Looks at a subscription again.
    pub fn subscription(&self, namespace: &str, name: &str) {
        let _ended = self
            .subscriptions
            .unbounded_send(ObjectRef::new(name).within(namespace));
    }

    /// Looks at a project again.
    pub fn project(&self, name: &str) {
        let _ended = self.projects.unbounded_send(ObjectRef::new(name));
    }
}
