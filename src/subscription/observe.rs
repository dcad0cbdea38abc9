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
pub fn observe(
    ctx: &Context,
    subscription: &Subscription,
    desired: &Desired,
    now: Timestamp,
) -> World {
    if let Some(delivery) = ctx.notifications.take(&desired.identity()) {
        ctx.subscriptions
            .delivered(&desired.uid, delivery, Instant::now());
    }
    let instance = ObjectRef::<AgentInstance>::new(&desired.name).within(&desired.namespace);
    let instance = ctx.stores.instances.get(&instance);
    let view = InstanceView::of(instance.as_deref(), desired);
    let confirmation = confirmation(subscription);
    // To count all of them for each of them is much for a large fleet.
    let census = match &view {
        InstanceView::Absent => Some(Census::of_today(others_made_today(ctx, desired, now))),
        InstanceView::Ours(ours) if ours.stays_held(confirmation.as_deref()) => None,
        _ if desired.may_lose() => census(ctx, now),
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
        confirmation,
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
fn others_made_today(ctx: &Context, desired: &Desired, now: Timestamp) -> usize {
    let mut made = made_today(ctx, now);
    made.remove(&format!("{}/{}", desired.namespace, desired.name));
    made.len()
}

/// The agents that were made for subscriptions within a day: those that exist, and those that this process has made, whatever the stores show.
pub fn made_today(ctx: &Context, now: Timestamp) -> BTreeSet<String> {
    let mut made = ctx.guard.made_today(now);
    made.extend(made_within_a_day(&ctx.stores.instances.state(), now));
    made
}

/// Those of these agents that were made for subscriptions within a day.
fn made_within_a_day(
    agents: &[Arc<AgentInstance>],
    now: Timestamp,
) -> impl Iterator<Item = String> {
    let yesterday = earlier(now, guard::DAY);
    let made = agents.iter().filter(move |agent| {
        let at = agent.metadata.creation_timestamp.as_ref();
        at.is_some_and(|at| at.0 > yesterday) && is_subscribed(agent)
    });
    made.map(|agent| deletions::who(agent))
}

/// Whether an instance came from a subscription; a label that was copied to another name means nothing.
pub fn is_subscribed(instance: &AgentInstance) -> bool {
    let name = instance.labels().get(labels::SUBSCRIPTION);
    name.is_some() && name == instance.metadata.name.as_ref()
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
    let same = ctx.stores.references.same(external);
    let same = same
        .iter()
        .filter_map(|one| ctx.stores.subscriptions.get(one));
    elder_among(&same.collect::<Vec<_>>(), subscription)
}

fn elder_among(all: &[Arc<Subscription>], subscription: &Subscription) -> Option<String> {
    let external = subscription.spec.external_ref.as_ref()?;
    let age = |one: &Subscription| {
        let created = one.metadata.creation_timestamp.as_ref();
        (created.map(|time| time.0), one.uid())
    };
    let same = all.iter().filter(|other| {
        other.spec.external_ref.as_ref() == Some(external)
            && other.metadata.deletion_timestamp.is_none()
            && age(other) < age(subscription)
    });
    let elder = same.min_by_key(|other| age(other))?;
    let namespace = elder.namespace().unwrap_or_default();
    Some(format!("{namespace}/{}", elder.name_any()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A subscription of that name, made at that second.
    fn made(name: &str, second: i64, others: &Value) -> Arc<Subscription> {
        let at = Timestamp::from_second(1_800_000_000 + second).unwrap();
        let mut object = json!({
            "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription",
            "metadata": {"namespace": "agents", "name": name, "uid": name, "creationTimestamp": at.to_string()},
            "spec": {
                "customerId": "cus_1", "plan": "small", "state": "Active",
                "externalRef": {"system": "stripe", "id": "sub_1"},
            },
        });
        for (key, value) in others.as_object().into_iter().flatten() {
            *object.pointer_mut(key).unwrap() = value.clone();
        }
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn an_agent_counts_among_those_of_today_for_a_day_and_only_if_it_came_from_a_subscription() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let agent = |hours: u64, subscription: Option<&str>| {
            let at = earlier(now, std::time::Duration::from_hours(hours)).to_string();
            let object = json!({
                "apiVersion": "agentfleet.dev/v1alpha1", "kind": "AgentInstance",
                "metadata": {
                    "namespace": "agents", "name": "alice", "creationTimestamp": at,
                    "labels": subscription.map(|name| json!({labels::SUBSCRIPTION: name})),
                },
                "spec": {"className": "small"},
            });
            Arc::new(serde_json::from_value::<AgentInstance>(object).unwrap())
        };
        let table = [
            (agent(0, Some("alice")), true),
            (agent(23, Some("alice")), true),
            (agent(24, Some("alice")), false),
            (agent(25, Some("alice")), false),
            (agent(23, None), false),
            (agent(23, Some("bob")), false),
        ];
        for (agent, counts) in table {
            let made: Vec<_> = made_within_a_day(std::slice::from_ref(&agent), now).collect();
            let expected: &[&str] = if counts { &["agents/alice"] } else { &[] };
            assert_eq!(made, expected, "{:?}", agent.metadata);
        }
    }

    #[test]
    fn of_those_that_are_the_same_in_the_billing_system_the_oldest_counts() {
        let none = json!({});
        let own = made("own", 5, &none);
        let old = |second| made("old", second, &none);
        let of = |id: &str| json!({"/spec/externalRef/id": id});
        let unnamed = json!({"/spec/externalRef": null});
        let mut leaving = (*old(0)).clone();
        leaving.metadata.deletion_timestamp = own.metadata.creation_timestamp.clone();
        let table = [
            ("nobody", vec![], None),
            ("itself", vec![own.clone()], None),
            ("an older one", vec![own.clone(), old(4)], Some("old")),
            ("a younger one", vec![old(6)], None),
            (
                "one of the same second and a lower UID",
                vec![old(5)],
                Some("old"),
            ),
            ("a higher UID", vec![made("p", 5, &none)], None),
            (
                "the oldest of two",
                vec![made("a", 2, &none), old(1), own.clone()],
                Some("old"),
            ),
            ("one that leaves", vec![Arc::new(leaving)], None),
            ("another", vec![made("old", 0, &of("sub_2"))], None),
            (
                "one that says nothing",
                vec![made("old", 0, &unnamed)],
                None,
            ),
        ];
        for (what, all, elder) in table {
            let expected = elder.map(|name| format!("agents/{name}"));
            assert_eq!(elder_among(&all, &own), expected, "{what}");
        }
        let own = made("own", 5, &unnamed);
        let others = [made("old", 0, &unnamed)];
        assert_eq!(elder_among(&others, &own), None, "it says nothing");
    }
}
