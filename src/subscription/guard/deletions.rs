//! Deletions of instances, counted: by people, by a prune, by the deletion of a namespace.
//!
//! A deletion counts when it takes an agent's memory along: the agent has spoken, its server is not to be kept, no admin has confirmed it, and
//! its subscription has not ended it (that counts as the loss of its entitlement, before and after it is gone). An instance that was one of too
//! many says so itself from then on, as the objects around it may go in other ways.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::{
    super::{
        declaration::{Declaration, terminate_at, unentitled_since},
        entitlement::{earlier, later},
        observe::{confirmation, is_subscribed, subscription_of},
    },
    Census, DAY, is_confirmed,
    ledger::{Gone, Page},
};
use crate::{
    agent_instance::world::DeletionView,
    api::{AgentInstance, DELETION_HELD_ANNOTATION, DeletionPolicy},
    context::Context,
};

/// How far the clocks of the API server and of this process may be apart.
const SKEW: Duration = Duration::from_secs(5);

/// An instance as it is named to people.
pub fn who(instance: &AgentInstance) -> String {
    format!(
        "{}/{}",
        instance.namespace().unwrap_or_default(),
        instance.name_any()
    )
}

/// Whether there is a memory to lose: the agent was given the voice once.
pub fn has_spoken(instance: &AgentInstance) -> bool {
    let status = instance.status.as_ref();
    status.is_some_and(|status| status.voice.is_some())
}

/// Whether an instance says that its deletion is held.
pub fn is_held(instance: &AgentInstance) -> bool {
    instance
        .annotations()
        .contains_key(DELETION_HELD_ANNOTATION)
}

/// When a deletion was asked for, if it counts.
pub fn counted(instance: &AgentInstance) -> Option<Timestamp> {
    let at = instance.metadata.deletion_timestamp.as_ref()?.0;
    let kept = instance.spec.deletion_policy == DeletionPolicy::Retain;
    let confirmed = is_confirmed(confirmation(instance).as_deref(), at);
    (has_spoken(instance) && !kept && !confirmed && !is_over(instance, at)).then_some(at)
}

/// When an instance lost its entitlement that its subscription has ended for that, unless an admin has confirmed it.
pub fn ended(ctx: &Context, instance: &AgentInstance) -> Option<Timestamp> {
    let lost = lost_and_over(instance)?;
    let subscription = subscription_of(ctx, instance);
    let words = [
        confirmation(instance),
        subscription.and_then(|one| confirmation(one.as_ref())),
    ];
    let confirmed = words.iter().any(|word| is_confirmed(word.as_deref(), lost));
    (!confirmed).then_some(lost)
}

fn lost_and_over(instance: &AgentInstance) -> Option<Timestamp> {
    let at = instance.metadata.deletion_timestamp.as_ref()?.0;
    (is_subscribed(instance) && is_over(instance, at)).then(|| unentitled_since(instance))?
}

/// Notes what an instance was that is gone.
pub fn let_go(ctx: &Context, instance: &AgentInstance) {
    let made = instance.metadata.creation_timestamp.as_ref();
    let told = [
        (Page::Deleted, counted(instance)),
        (Page::Ended, ended(ctx, instance)),
        (
            Page::Made,
            made.map(|made| made.0).filter(|_| is_subscribed(instance)),
        ),
    ];
    for (page, at) in told {
        if let Some(at) = at {
            ctx.guard.note(page, who(instance), at);
        }
    }
}

/// Whether the end that its subscription has told had come.
fn is_over(instance: &AgentInstance, at: Timestamp) -> bool {
    if terminate_at(instance).is_none() {
        return false;
    }
    let declared = Declaration::found(instance);
    let ended = declared
        .terminate_at
        .is_some_and(|end| earlier(end, SKEW) <= at);
    ended && declared.suspend && !declared.held
}

/// What matters of the deletion of an instance, if it counts.
pub fn view(ctx: &Context, instance: &AgentInstance, now: Timestamp) -> Option<DeletionView> {
    let at = counted(instance)?;
    let limits = &ctx.settings.subscriptions.guard;
    let held = is_held(instance);
    // To count all of them for each of them is much for a large fleet.
    let census = (!held).then(|| census(ctx, now)).flatten();
    let alone = census
        .as_ref()
        .is_some_and(|census| census.agents < limits.least);
    Some(DeletionView {
        held,
        too_many: census.map(|census| census.too_many(at, limits)),
        settles: if alone {
            at
        } else {
            later(at, limits.patience)
        },
    })
}

/// Counts all agents that have a memory, those that went lately among them; none while it is not known who did.
pub fn census(ctx: &Context, now: Timestamp) -> Option<Census> {
    let gone = remembered(ctx, Page::Deleted, now)?;
    let instances = ctx.stores.instances.state();
    let there = instances.iter().filter(|instance| has_spoken(instance));
    let there = there.map(|instance| (instance.as_ref(), counted(instance)));
    Some(count(there, &gone))
}

/// Those of a page that still matter; none while it is not known who they are.
pub fn remembered(ctx: &Context, page: Page, now: Timestamp) -> Option<Gone> {
    let limits = &ctx.settings.subscriptions.guard;
    let window = limits.daily.window.max(limits.soon.window);
    let long = match page {
        Page::Deleted => window,
        // Whoever was lost in one window with them may have others in his own.
        Page::Ended => window.saturating_mul(2),
        Page::Made => DAY,
    };
    ctx.guard.since(page, earlier(now, long))
}

/// Counts those that are there, each with when it was lost, and those that are gone; what was there a moment ago counts once.
pub fn count<'a>(
    there: impl Iterator<Item = (&'a AgentInstance, Option<Timestamp>)>,
    gone: &Gone,
) -> Census {
    let went = |instance: &AgentInstance, at: Timestamp| {
        let mut then = gone
            .range((at, String::new())..)
            .take_while(|(gone, _)| *gone == at);
        then.any(|(_, name)| *name == who(instance))
    };
    let there = there.filter_map(|(instance, lost)| match lost {
        Some(at) if went(instance, at) => None,
        lost => Some(lost),
    });
    Census::of(there.chain(gone.iter().map(|(at, _)| Some(*at))))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::subscription::declaration::MANAGER;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// An agent that speaks, deleted at second 100.
    fn deleted() -> Value {
        json!({
            "apiVersion": "agentfleet.dev/v1alpha1", "kind": "AgentInstance",
            "metadata": {"namespace": "agents", "name": "alice", "deletionTimestamp": at(100).to_string(), "annotations": {}},
            "spec": {"className": "small"},
            "status": {"voice": {"incarnation": 1, "epoch": 3}},
        })
    }

    fn counts(object: Value) -> bool {
        let instance: AgentInstance = serde_json::from_value(object).unwrap();
        counted(&instance).is_some()
    }

    fn with(change: impl FnOnce(&mut Value)) -> Value {
        let mut object = deleted();
        change(&mut object);
        object
    }

    #[test]
    fn a_deletion_counts_when_it_takes_a_memory_along_and_nobody_has_answered_for_it() {
        assert!(counts(deleted()));
        assert!(!counts(with(|one| {
            one["metadata"]["deletionTimestamp"] = json!(null);
        })));
        assert!(
            !counts(with(|one| one["status"] = json!({}))),
            "it never spoke"
        );
        assert!(!counts(with(|one| {
            one["spec"]["deletionPolicy"] = json!("Retain");
        })));
        let word = |second: i64| {
            with(|one| {
                let annotations = &mut one["metadata"]["annotations"];
                annotations["agentfleet.dev/confirm-termination"] = json!(at(second).to_string());
            })
        };
        assert!(!counts(word(100)));
        assert!(counts(word(99)), "a word from before");
    }

    #[test]
    fn what_a_subscription_ended_in_its_time_was_counted_before() {
        let told = |end: i64, manager: &str, suspend: bool| {
            with(|one| {
                one["spec"]["suspend"] = json!(suspend);
                let key = "agentfleet.dev/terminate-at";
                one["metadata"]["annotations"][key] = json!(at(end).to_string());
                one["metadata"]["managedFields"] = json!([{
                    "manager": manager, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {
                        "f:metadata": {"f:annotations": {format!("f:{key}"): {}}}, "f:spec": {"f:suspend": {}},
                    },
                }]);
            })
        };
        assert!(!counts(told(100, MANAGER, true)));
        assert!(counts(told(100 + 30, MANAGER, true)), "before its time");
        assert!(counts(told(100, MANAGER, false)), "it runs");
        assert!(counts(told(100, "kubectl", true)), "anybody can write that");
        let mut held = told(100, MANAGER, true);
        held["metadata"]["annotations"]["agentfleet.dev/termination-held"] = json!("TooManyAtOnce");
        assert!(counts(held), "it was not to end yet");
    }

    #[test]
    fn what_a_subscription_ended_is_known_by_when_it_lost_its_entitlement() {
        let lost = |change: &dyn Fn(&mut Value)| {
            let mut object = with(|one| {
                let annotations = json!({
                    "agentfleet.dev/terminate-at": at(90).to_string(), "agentfleet.dev/unentitled-since": at(50).to_string(),
                });
                let managed = json!({"f:agentfleet.dev/terminate-at": {}, "f:agentfleet.dev/unentitled-since": {}});
                one["spec"]["suspend"] = json!(true);
                one["metadata"]["labels"] = json!({"agentfleet.dev/subscription": "alice"});
                one["metadata"]["annotations"] = annotations;
                one["metadata"]["managedFields"] = json!([{
                    "manager": MANAGER, "operation": "Apply", "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:metadata": {"f:annotations": managed}, "f:spec": {"f:suspend": {}}},
                }]);
            });
            change(&mut object);
            let instance: AgentInstance = serde_json::from_value(object).unwrap();
            assert!(lost_and_over(&instance).is_none() || counted(&instance).is_none());
            lost_and_over(&instance)
        };
        assert_eq!(lost(&|_| ()), Some(at(50)));
        let none: [&dyn Fn(&mut Value); 3] = [
            &|one| one["metadata"]["deletionTimestamp"] = json!(null),
            &|one| one["metadata"]["labels"] = json!({}),
            &|one| one["metadata"]["deletionTimestamp"] = json!(at(60).to_string()),
        ];
        for change in none {
            assert_eq!(lost(change), None);
        }
    }

    #[test]
    fn who_went_lately_belongs_to_the_whole_and_is_counted_once() {
        let there: Vec<AgentInstance> = (0..10)
            .map(|n| {
                let mut one = deleted();
                one["metadata"]["name"] = json!(n.to_string());
                let at = (n < 2).then(|| at(n).to_string());
                one["metadata"]["deletionTimestamp"] = json!(at);
                serde_json::from_value(one).unwrap()
            })
            .collect();
        let gone = Gone::from([
            (at(0), "agents/0".to_owned()),
            (at(9), "agents/x".to_owned()),
        ]);
        let there = there.iter().map(|one| (one, counted(one)));
        let census = count(there, &gone);
        assert_eq!(census.agents, 11);
        let limits = super::super::tests::LIMITS;
        let least = |least| super::super::Limits { least, ..limits };
        assert!(census.too_many(at(9), &least(3)));
        assert!(!census.too_many(at(9), &least(4)));
    }
}
