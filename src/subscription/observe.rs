//! Takes the picture: from the stores that the watches fill, and from nothing else.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use jiff::Timestamp;
use kube::{Resource, ResourceExt as _, runtime::reflector::ObjectRef};

use super::{
    declaration::unentitled_since,
    desired::Desired,
    entitlement::earlier,
    guard::{self, Census, deletions, ledger::Page},
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
    let census = match view {
        InstanceView::Absent => Some(Census::of_today(others_made_today(ctx, desired))),
        _ if desired.may_lose() => census(ctx, Timestamp::now()),
        _ => None,
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

/// Counts the agents that came from subscriptions, those that were ended lately among them; none while it is not known which were.
pub fn census(ctx: &Context, now: Timestamp) -> Option<Census> {
    let ended = deletions::remembered(ctx, Page::Ended, now)?;
    let instances = ctx.stores.instances.state();
    let agents = instances.iter().filter(|agent| is_subscribed(agent));
    let agents = agents.filter_map(|agent| {
        let lost = match agent.metadata.deletion_timestamp {
            None => unentitled_since(agent),
            Some(_) => Some(deletions::ended(ctx, agent)?),
        };
        Some((agent.as_ref(), lost))
    });
    Some(deletions::count(agents, &ended))
}

/// How many others were made today: one that was about to be made before counts for itself.
fn others_made_today(ctx: &Context, desired: &Desired) -> usize {
    let mut made = made_today(ctx, Timestamp::now());
    made.remove(&format!("{}/{}", desired.namespace, desired.name));
    made.len()
}

/// The agents that were made for subscriptions within a day: those that exist, and those that this process has made, whatever the stores show.
pub fn made_today(ctx: &Context, now: Timestamp) -> BTreeSet<String> {
    let (mut made, yesterday) = (ctx.guard.made_today(now), earlier(now, guard::DAY));
    for agent in ctx.stores.instances.state() {
        let at = agent.metadata.creation_timestamp.as_ref();
        if is_subscribed(&agent) && at.is_some_and(|at| at.0 > yesterday) {
            made.insert(deletions::who(&agent));
        }
    }
    made
}

/// Whether an instance came from a subscription; a label that was copied to another name means nothing.
pub fn is_subscribed(instance: &AgentInstance) -> bool {
    instance.labels().get(labels::SUBSCRIPTION) == Some(&instance.name_any())
}

/// The subscription that an instance came from, if it is there.
pub fn subscription_of(ctx: &Context, instance: &AgentInstance) -> Option<Arc<Subscription>> {
    let namespace = instance.namespace().unwrap_or_default();
    let name = ObjectRef::new(&instance.name_any()).within(&namespace);
    ctx.stores.subscriptions.get(&name)
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
