//! Takes the picture: from the stores that the watches fill, and from nothing else.

use std::time::Instant;

use jiff::Timestamp;
use kube::{Resource, ResourceExt as _, runtime::reflector::ObjectRef};

use super::{
    declaration::unentitled_since,
    desired::Desired,
    guard::Census,
    world::{InstanceView, SecretView, World},
};
use crate::{
    api::{AgentInstance, CONFIRM_TERMINATION_ANNOTATION, FINALIZER, Subscription},
    context::Context,
    labels,
};

/// What is, as far as this process knows.
pub fn observe(ctx: &Context, subscription: &Subscription, desired: &Desired) -> World {
    if let Some(delivery) = ctx.notifications.take(&desired.identity()) {
        ctx.subscriptions
            .delivered(&desired.uid, delivery, Instant::now());
    }
    let instance = ObjectRef::<AgentInstance>::new(&desired.name).within(&desired.namespace);
    let instance = ctx.stores.instances.get(&instance);
    let view = InstanceView::of(instance.as_deref(), desired);
    // To count all of them for each of them is much for a large fleet.
    let census = if desired.may_lose() || view == InstanceView::Absent {
        census(ctx)
    } else {
        Census::default()
    };
    let finalizers = subscription.finalizers();
    World {
        finalizer: finalizers.iter().any(|present| present == FINALIZER),
        status: subscription.status.clone().unwrap_or_default(),
        instance: view,
        secret: secret(ctx, desired),
        elder: elder(ctx, subscription),
        census,
        confirmation: confirmation(subscription),
        taken: ctx.subscriptions.taken(&desired.uid),
        trouble: ctx.subscriptions.trouble(&desired.uid),
    }
}

/// Counts the agents that came from subscriptions.
pub fn census(ctx: &Context) -> Census {
    let instances = ctx.stores.instances.state();
    let agents = instances.iter().filter(|instance| {
        let came = instance.labels().get(labels::SUBSCRIPTION) == Some(&instance.name_any());
        came && instance.metadata.deletion_timestamp.is_none()
    });
    let counted = agents.map(|agent| {
        let made = agent.metadata.creation_timestamp.as_ref();
        (made.map(|time| time.0), unentitled_since(agent))
    });
    Census::of(counted, Timestamp::now())
}

/// An admin's word that the agent of an object may end although it is one of many.
pub fn confirmation<K: Resource>(object: &K) -> Option<String> {
    let annotations = object.annotations();
    annotations.get(CONFIRM_TERMINATION_ANNOTATION).cloned()
}

fn secret(ctx: &Context, desired: &Desired) -> SecretView {
    let Some(name) = &desired.secret else {
        return SecretView::NotNamed;
    };
    let found = ctx
        .stores
        .secrets
        .get(&ObjectRef::new(name).within(&desired.namespace));
    match found {
        None => SecretView::Missing,
        Some(secret) if secret.labels().get(labels::CUSTOMER) == Some(&desired.customer) => {
            SecretView::Fits
        }
        Some(_) => SecretView::NotTheCustomers,
    }
}

/// The oldest living subscription that is the same one in the billing system, if it is not this one.
fn elder(ctx: &Context, subscription: &Subscription) -> Option<String> {
    let external = subscription.spec.external_ref.as_ref()?;
    let age = |one: &Subscription| {
        let created = one.metadata.creation_timestamp.as_ref();
        (created.map(|time| time.0), one.uid())
    };
    let all = ctx.stores.subscriptions.state();
    let same = all.iter().filter(|other| {
        other.spec.external_ref.as_ref() == Some(external)
            && other.metadata.deletion_timestamp.is_none()
            && age(other) < age(subscription)
    });
    let elder = same.min_by_key(|other| age(other))?;
    let namespace = elder.namespace().unwrap_or_default();
    Some(format!("{namespace}/{}", elder.name_any()))
}
