//! What a subscription reports of itself: a pure function of the world, of what the plan found, and of the time.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    announcement,
    desired::Desired,
    guard::TOO_MANY,
    plan::Plan,
    world::{InstanceView, Ours, World},
};
use crate::api::{
    ConditionType, FirstSeen, InstanceRef, SubscriptionState, SubscriptionStatus, condition,
    set_condition,
};

/// The status to be.
pub fn status(
    desired: &Desired,
    world: &World,
    plan: &Plan,
    generation: Option<i64>,
    (lead, now): (Duration, Timestamp),
) -> SubscriptionStatus {
    let former = &world.status;
    let entitlement = &plan.entitlement;
    let ours = world.ours();
    let while_there = |at: Option<Timestamp>| ours.and(at).map(Time);
    let seen = entitlement.first_seen.iter();
    let mut next = SubscriptionStatus {
        observed_generation: generation.max(former.observed_generation),
        conditions: former.conditions.clone(),
        instance_ref: ours.map(|ours| InstanceRef {
            name: desired.name.clone(),
            uid: ours.target.uid.clone(),
        }),
        first_seen: seen
            .map(|(state, at)| FirstSeen {
                state: *state,
                at: Time(*at),
            })
            .collect(),
        suspend_at: while_there(entitlement.suspend_at),
        terminate_at: while_there(entitlement.terminate_at),
        kept_until: while_there(entitlement.kept_until),
        announced: announcement::standing(world, plan, lead, now),
        notified: former.notified.clone(),
    };
    if let Some(told) = &next.announced
        && world.taken.is_some()
        && announcement::event(&desired.uid, told).map(|event| event.id) == world.taken
    {
        next.notified = Some(told.clone());
    }
    let found = [
        ready(desired, world, plan),
        entitled(plan),
        plan_pending(desired, ours.filter(|_| entitlement.entitled)),
        held(plan),
    ];
    for found in found {
        set_condition(&mut next.conditions, found, generation, now);
    }
    next
}

fn ready(desired: &Desired, world: &World, plan: &Plan) -> Condition {
    let not = |reason: &str, message: String| {
        condition(ConditionType::Ready, Some(false), reason, message)
    };
    if let Some((reason, message)) = plan.refusal.clone().or_else(|| world.trouble.clone()) {
        return not(reason, message);
    }
    let entitlement = &plan.entitlement;
    match &world.instance {
        InstanceView::NotOurs(_) | InstanceView::Absent if entitlement.creates => {
            not("Creating", "the agent is about to be created".into())
        }
        InstanceView::NotOurs(_) | InstanceView::Absent => {
            let (state, name) = (entitlement.state, &desired.name);
            let message =
                format!("there is no AgentInstance {name}, and none is made while {state}");
            not("NoAgent", message)
        }
        InstanceView::Ours(ours) if ours.deleting => {
            not("Terminating", "the agent is being deleted".into())
        }
        InstanceView::Ours(_) if !entitlement.entitled => {
            let message = "the agent is suspended; its server and its data are kept";
            not("Suspended", message.into())
        }
        InstanceView::Ours(ours) => mirrored(ours),
    }
}

/// What the instance says of itself.
fn mirrored(ours: &Ours) -> Condition {
    let told = ours.condition(ConditionType::Ready);
    let Some(told) = told else {
        let message = "the agent has not been looked at yet";
        return condition(ConditionType::Ready, Some(false), "Creating", message);
    };
    let status = match told.status.as_str() {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    };
    condition(
        ConditionType::Ready,
        status,
        &told.reason,
        told.message.clone(),
    )
}

fn entitled(plan: &Plan) -> Condition {
    let entitlement = &plan.entitlement;
    let state = entitlement.state;
    let message = match (entitlement.entitled, state) {
        (true, SubscriptionState::PastDue) => "the last payment failed: it runs for gracePeriod",
        (true, SubscriptionState::Canceled) => "it runs to the end of what was paid",
        (true, _) => "",
        (false, SubscriptionState::PastDue) => "gracePeriod is over",
        (false, SubscriptionState::Canceled) => "it was canceled, and what was paid is used up",
        (false, _) => "nothing runs in this state",
    };
    let entitled = Some(entitlement.entitled);
    condition(ConditionType::Entitled, entitled, state.as_str(), message)
}

fn held(plan: &Plan) -> Condition {
    let held = |status, reason: &str, message: &str| {
        condition(
            ConditionType::TerminationHeld,
            Some(status),
            reason,
            message,
        )
    };
    if !plan.held || plan.entitlement.terminate_at.is_none() {
        return held(false, "NotHeld", "");
    }
    held(
        true,
        TOO_MANY,
        "so many agents lost their entitlement at about the same time that none of them is deleted: if that was a mistake, put the state back; if it is meant, set the annotation agentfleet.dev/confirm-termination to the present time, as an admin",
    )
}

/// Whether what runs is what is paid for; the instance knows why not.
fn plan_pending(desired: &Desired, ours: Option<&Ours>) -> Condition {
    let pending = |status, reason: &str, message: String| {
        condition(ConditionType::PlanPending, status, reason, message)
    };
    let plan = &desired.plan;
    let Some(ours) = ours else {
        return pending(Some(false), "NothingRuns", String::new());
    };
    if ours.class != *plan {
        let message = format!(
            "the agent is still of AgentClass {}, not {plan}",
            ours.class
        );
        return pending(Some(true), "NotDeclared", message);
    }
    let told = ours.condition(ConditionType::UpToDate);
    match told.filter(|_| ours.observed) {
        Some(told) if told.status == "True" => pending(Some(false), "AsPaid", String::new()),
        Some(told) if told.status == "False" => {
            pending(Some(true), &told.reason, told.message.clone())
        }
        _ => pending(
            None,
            "Checking",
            "the agent has not been looked at yet".into(),
        ),
    }
}
