//! Who is looked at when something else has changed: what a watch has shown, or what ended beside the reconcilers, concerns more than its own object.

use std::collections::HashMap;

use futures::{Stream, StreamExt as _, TryStreamExt as _, channel::mpsc, stream::BoxStream};
use k8s_openapi::api::{apps::v1::ControllerRevision, core::v1::Secret};
use kube::{
    ResourceExt as _,
    core::PartialObjectMeta,
    runtime::{reflector::ObjectRef, watcher},
};

use crate::{
    agent_instance::talk::Ended,
    api::{AgentClass, AgentInstance, HetznerProject, Subscription},
    context::{Stores, Wake},
    kube_ext, labels,
    notification::delivery,
    rollout::members,
};

/// The other ends of [`Wake`].
pub(super) struct Woken {
    pub(super) instances: mpsc::UnboundedReceiver<ObjectRef<AgentInstance>>,
    pub(super) classes: mpsc::UnboundedReceiver<ObjectRef<AgentClass>>,
    pub(super) projects: mpsc::UnboundedReceiver<ObjectRef<HetznerProject>>,
    pub(super) subscriptions: mpsc::UnboundedReceiver<ObjectRef<Subscription>>,
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
pub(super) struct Owners {
    pub(super) stores: Stores,
    pub(super) wake: Wake,
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

/// Looks at whoever names a Secret when it changes.
pub(super) async fn wake_owners(
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
pub(super) async fn wake_classes(
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

/// Looks at the instances of a class when its spec changes; its status is no news to them.
///
/// On the very stream that fills the store: another watch might tell them before the store shows it, and nobody would tell them again.
pub(super) fn waking_users(
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
pub(super) fn waking_class(
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
