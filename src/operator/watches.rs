//! The watches of Kubernetes: they fill the stores, wake whoever is concerned, and feed the controllers.

use std::{collections::HashMap, fmt::Debug, hash::Hash, sync::Arc, time::Instant};

use futures::{
    FutureExt as _, Stream, StreamExt as _, TryStreamExt as _, channel::mpsc, future::BoxFuture,
    stream::BoxStream,
};
use k8s_openapi::api::{apps::v1::ControllerRevision, core::v1::Secret};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::ObjectMeta,
    core::PartialObjectMeta,
    runtime::{
        Controller, WatchStreamExt as _,
        controller::{self, Action},
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{
    agent_class,
    agent_instance::{self, talk::Ended},
    api::{AgentClass, AgentInstance, HetznerProject, Subscription},
    context::{Context, Stores, Wake},
    hetzner_project,
    http::Liveness,
    kube_ext, labels,
    notification::delivery,
    rollout::members,
    subscription::{self, declaration},
};

/// How many subscriptions are looked at side by side.
const SUBSCRIPTIONS_AT_ONCE: u16 = 32;
/// How many instances are looked at side by side; a look waits for the API server and Hetzner only.
const INSTANCES_AT_ONCE: u16 = 64;

/// The other ends of [`Wake`].
pub(super) struct Woken {
    instances: mpsc::UnboundedReceiver<ObjectRef<AgentInstance>>,
    classes: mpsc::UnboundedReceiver<ObjectRef<AgentClass>>,
    projects: mpsc::UnboundedReceiver<ObjectRef<HetznerProject>>,
    subscriptions: mpsc::UnboundedReceiver<ObjectRef<Subscription>>,
}

pub(super) fn wakes() -> (Wake, Woken) {
    let (instances, woken_instances) = mpsc::unbounded();
    let (classes, woken_classes) = mpsc::unbounded();
    let (projects, woken_projects) = mpsc::unbounded();
    let (subscriptions, woken_subscriptions) = mpsc::unbounded();
    let woken = Woken {
        instances: woken_instances,
        classes: woken_classes,
        projects: woken_projects,
        subscriptions: woken_subscriptions,
    };
    (
        Wake {
            instances,
            classes,
            projects,
            subscriptions,
        },
        woken,
    )
}

pub(super) async fn wake_when_over(mut ended: Ended, wake: Wake) {
    while let Some(key) = ended.recv().await {
        wake.instance(&key.namespace, &key.name);
    }
}

pub(super) async fn wake_when_told(mut ended: delivery::Ended, wake: Wake) {
    while let Some(instance) = ended.recv().await {
        wake.instance(&instance.namespace, &instance.name);
        // What is announced of an agent is told by its subscription, which has its name.
        wake.subscription(&instance.namespace, &instance.name);
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
        for subscription in self.stores.subscriptions.state() {
            if subscription.spec.secret_name.as_deref() == Some(secret)
                && subscription.namespace().as_deref() == Some(namespace)
            {
                self.wake.subscription(namespace, &subscription.name_any());
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

fn watch<K>(api: Api<K>, config: watcher::Config, liveness: &Liveness, keep: fn(&mut K)) -> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let (liveness, synced) = (liveness.clone(), CancellationToken::new());
    let first = synced.clone();
    let objects = watcher(api, config)
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

/// Of a Secret's metadata only its name, version and customer are of use; what `kubectl apply` keeps there may hold its content.
fn keep_what_names_it(secret: &mut PartialObjectMeta<Secret>) {
    let ObjectMeta {
        name,
        namespace,
        resource_version,
        uid,
        labels,
        ..
    } = std::mem::take(&mut secret.metadata);
    let labels = labels.map(|mut labels| {
        labels.retain(|key, _| key == labels::CUSTOMER);
        labels
    });
    secret.metadata = ObjectMeta {
        name,
        namespace,
        resource_version,
        uid,
        labels: labels.filter(|labels| !labels.is_empty()),
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

/// Looks at a class when one of its former revisions is written, or lost.
async fn wake_classes(
    mut revisions: BoxStream<'static, Result<ControllerRevision, watcher::Error>>,
    wake: Wake,
) {
    while let Some(change) = revisions.next().await {
        match change {
            Ok(revision) => {
                if let Some(class) = revision.labels().get(labels::CLASS) {
                    wake.class(class);
                }
            }
            Err(error) => tracing::warn!(
                error = kube_ext::error_chain(&error),
                "watch of ControllerRevisions failed"
            ),
        }
    }
}

/// The watches, one for each kind.
pub(super) struct Watches {
    instances: Watch<AgentInstance>,
    classes: Watch<AgentClass>,
    projects: Watch<HetznerProject>,
    subscriptions: Watch<Subscription>,
    secrets: Watch<PartialObjectMeta<Secret>>,
    revisions: Watch<ControllerRevision>,
}

impl Watches {
    pub(super) fn new(client: &Client, namespace: &str, liveness: &Liveness) -> Self {
        let all = watcher::Config::default;
        let ours = all().labels(labels::CLASS);
        let own = Api::namespaced(client.clone(), namespace);
        Self {
            instances: watch(
                Api::all(client.clone()),
                all(),
                liveness,
                declaration::keep_declared_fields,
            ),
            classes: watch(
                Api::all(client.clone()),
                all(),
                liveness,
                drop_managed_fields,
            ),
            projects: watch(
                Api::all(client.clone()),
                all(),
                liveness,
                drop_managed_fields,
            ),
            subscriptions: watch(
                Api::all(client.clone()),
                all(),
                liveness,
                drop_managed_fields,
            ),
            secrets: watch(
                Api::all(client.clone()),
                all(),
                liveness,
                keep_what_names_it,
            ),
            revisions: watch(own, ours, liveness, drop_managed_fields),
        }
    }

    pub(super) fn stores(&self) -> Stores {
        Stores {
            instances: self.instances.store.clone(),
            classes: self.classes.store.clone(),
            projects: self.projects.store.clone(),
            subscriptions: self.subscriptions.store.clone(),
            secrets: self.secrets.store.clone(),
            revisions: self.revisions.store.clone(),
            synced: CancellationToken::new(),
        }
    }

    /// Waits until each watch has had its first list.
    pub(super) fn synced(&self) -> impl Future<Output = ()> + Send + 'static {
        let all = [
            &self.instances.synced,
            &self.classes.synced,
            &self.projects.synced,
            &self.subscriptions.synced,
            &self.secrets.synced,
            &self.revisions.synced,
        ]
        .map(Clone::clone);
        async move {
            for synced in all {
                synced.cancelled().await;
            }
        }
    }

    /// Runs the controllers until `stop`.
    pub(super) async fn control(
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
        let revisions = tokio::spawn(wake_classes(self.revisions.objects, ctx.wake.clone()));
        let objects = waking_class(self.instances.objects, ctx.wake.clone());
        let many = controller::Config::default().concurrency(INSTANCES_AT_ONCE);
        let instances = Controller::for_stream(objects, self.instances.store)
            .with_config(many)
            .reconcile_on(woken.instances)
            .graceful_shutdown_on(stop.clone().cancelled_owned());
        let classes = waking_users(self.classes.objects, ctx.stores.clone(), ctx.wake.clone());
        let classes = Controller::for_stream(classes, self.classes.store)
            .reconcile_on(woken.classes)
            .graceful_shutdown_on(stop.clone().cancelled_owned());
        let projects = Controller::for_stream(self.projects.objects, self.projects.store)
            .reconcile_on(woken.projects)
            .graceful_shutdown_on(stop.clone().cancelled_owned());
        let several = controller::Config::default().concurrency(SUBSCRIPTIONS_AT_ONCE);
        let subscriptions =
            Controller::for_stream(self.subscriptions.objects, self.subscriptions.store)
                .with_config(several)
                .reconcile_on(woken.subscriptions)
                .graceful_shutdown_on(stop.cancelled_owned());
        tokio::join!(
            watched(
                instances.run(
                    measured("AgentInstance", agent_instance::reconcile),
                    agent_instance::error_policy,
                    ctx.clone()
                ),
                &liveness
            ),
            watched(
                classes.run(
                    measured("AgentClass", agent_class::reconcile),
                    hetzner_project::error_policy,
                    ctx.clone()
                ),
                &liveness
            ),
            watched(
                projects.run(
                    measured("HetznerProject", hetzner_project::reconcile),
                    hetzner_project::error_policy,
                    ctx.clone()
                ),
                &liveness
            ),
            watched(
                subscriptions.run(
                    measured("Subscription", subscription::reconcile),
                    subscription::error_policy,
                    ctx
                ),
                &liveness
            ),
        );
        secrets.abort();
        revisions.abort();
    }
}

/// Looks at the instances of a class when its spec changes; its status is no news to them.
///
/// On the very stream that fills the store: another watch might tell them before the store shows it, and nobody would tell them again.
fn waking_users(
    classes: BoxStream<'static, Result<AgentClass, watcher::Error>>,
    stores: Stores,
    wake: Wake,
) -> impl Stream<Item = Result<AgentClass, watcher::Error>> + Send + 'static {
    let mut seen = HashMap::new();
    classes.inspect_ok(move |class| {
        let name = class.name_any();
        let exists = stores.classes.get(&ObjectRef::from_obj(class)).is_some();
        let spec = (class.uid(), class.metadata.generation, exists);
        if seen.insert(name.clone(), spec.clone()) == Some(spec) {
            return;
        }
        for instance in stores.instances.state() {
            if instance.spec.class_name == name {
                wake.instance(
                    &instance.namespace().unwrap_or_default(),
                    &instance.name_any(),
                );
            }
        }
    })
}

/// Looks at the subscription of an instance that came from one, and at the class of one when what its rollout depends on has changed, on the very stream that fills the store: woken by whoever
/// wrote it, the class might look before the store shows it.
fn waking_class(
    instances: BoxStream<'static, Result<AgentInstance, watcher::Error>>,
    wake: Wake,
) -> impl Stream<Item = Result<AgentInstance, watcher::Error>> + Send + 'static {
    let mut seen = HashMap::new();
    instances.inspect_ok(move |instance| {
        if instance.labels().contains_key(labels::SUBSCRIPTION) {
            let namespace = instance.namespace().unwrap_or_default();
            wake.subscription(&namespace, &instance.name_any());
        }
        let uid = instance.uid().unwrap_or_default();
        let told = members::news(instance);
        let news = if instance.metadata.deletion_timestamp.is_some() {
            seen.remove(&uid).is_some()
        } else {
            seen.insert(uid, told) != Some(told)
        };
        if news {
            wake.class(&instance.spec.class_name);
        }
    })
}

/// A look that is measured, whatever it looks at.
fn measured<K, E, Look>(
    kind: &'static str,
    look: impl Fn(Arc<K>, Arc<Context>) -> Look,
) -> impl Fn(Arc<K>, Arc<Context>) -> BoxFuture<'static, Result<Action, E>>
where
    Look: Future<Output = Result<Action, E>> + Send + 'static,
{
    move |object, ctx| {
        let (begun, metrics) = (Instant::now(), ctx.metrics.clone());
        let look = look(object, ctx);
        async move {
            let looked = look.await;
            metrics.reconciled(kind, looked.is_ok(), begun.elapsed());
            looked
        }
        .boxed()
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
