//! The watches of Kubernetes: they fill the stores and feed the controllers.

use std::{fmt::Debug, hash::Hash, sync::Arc, time::Instant};

use futures::{
    FutureExt as _, Stream, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream::BoxStream,
};
use k8s_openapi::api::{apps::v1::ControllerRevision, core::v1::Secret};
use kube::{
    Api, Client, Resource,
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

use super::wakes::{Owners, Woken, wake_classes, wake_owners, waking_class, waking_users};
use crate::{
    agent_class, agent_instance,
    api::{AgentClass, AgentInstance, HetznerProject, Subscription},
    context::{Context, Stores},
    hetzner_project,
    http::Liveness,
    kube_ext, labels,
    subscription::{self, declaration, references::References},
};

/// How many subscriptions are looked at side by side.
const SUBSCRIPTIONS_AT_ONCE: u16 = 32;
/// How many instances are looked at side by side; a look waits for the API server and Hetzner only.
const INSTANCES_AT_ONCE: u16 = 64;

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
    watch_beside(api, config, liveness, keep, |_| ())
}

/// The same, where something beside the store follows what is shown.
fn watch_beside<K>(
    api: Api<K>,
    config: watcher::Config,
    liveness: &Liveness,
    keep: fn(&mut K),
    follow: impl Fn(&watcher::Event<K>) + Send + 'static,
) -> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let (liveness, synced) = (liveness.clone(), CancellationToken::new());
    let first = synced.clone();
    let objects = watcher(api, config)
        .default_backoff()
        .modify(keep)
        .inspect_ok(follow)
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

/// The watches, one for each kind.
pub(super) struct Watches {
    instances: Watch<AgentInstance>,
    classes: Watch<AgentClass>,
    projects: Watch<HetznerProject>,
    subscriptions: Watch<Subscription>,
    references: References,
    secrets: Watch<PartialObjectMeta<Secret>>,
    revisions: Watch<ControllerRevision>,
}

impl Watches {
    pub(super) fn new(client: &Client, namespace: &str, liveness: &Liveness) -> Self {
        let all = watcher::Config::default;
        let ours = all().labels(labels::CLASS);
        let own = Api::namespaced(client.clone(), namespace);
        let references = References::default();
        let followed = references.clone();
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
            subscriptions: watch_beside(
                Api::all(client.clone()),
                all(),
                liveness,
                drop_managed_fields,
                move |event| followed.follow(event),
            ),
            references,
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
            references: self.references.clone(),
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

    /// Runs the controllers.
    pub(super) async fn control(self, ctx: Arc<Context>, woken: Woken, liveness: Liveness) {
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
            .reconcile_on(woken.instances);
        let classes = waking_users(self.classes.objects, ctx.stores.clone(), ctx.wake.clone());
        let classes =
            Controller::for_stream(classes, self.classes.store).reconcile_on(woken.classes);
        let projects = Controller::for_stream(self.projects.objects, self.projects.store)
            .reconcile_on(woken.projects);
        let several = controller::Config::default().concurrency(SUBSCRIPTIONS_AT_ONCE);
        let subscriptions =
            Controller::for_stream(self.subscriptions.objects, self.subscriptions.store)
                .with_config(several)
                .reconcile_on(woken.subscriptions);
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
