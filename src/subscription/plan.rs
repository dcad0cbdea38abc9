//! What is to be done for a subscription: a pure function of what is wanted, what is, and the time.
//!
//! A refusal (a Secret that is another's, a duplicate) stops whatever would be bought or changed, and nothing that takes away: an agent that is
//! not entitled is suspended all the same.

use jiff::Timestamp;

use super::{
    SubscriptionFlags,
    declaration::Declaration,
    desired::Desired,
    entitlement::{Entitlement, decide},
    guard::{Limits, is_confirmed},
    step::Step,
    world::{InstanceView, Ours, SecretView, World},
};

/// What is to be done, and what it follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What the state entitles to.
    pub entitlement: Entitlement,
    /// With how many others its entitlement went, if they are so many that it is not terminated.
    pub held: Option<usize>,
    /// Why nothing is created or changed: reason and message.
    pub refusal: Option<(&'static str, String)>,
    /// What to do now, in order.
    pub steps: Vec<Step>,
    /// When something changes by itself.
    pub look_again: Option<Timestamp>,
}

/// Plans.
pub fn plan(desired: &Desired, world: &World, flags: &SubscriptionFlags, now: Timestamp) -> Plan {
    let entitlement = decide(&desired.terms, &world.past(), now);
    let held = held(world, &entitlement, &flags.guard);
    let refusal = refusal(desired, world, &flags.guard);
    let steps = if desired.is_absent() {
        leave(desired, world, &entitlement)
    } else {
        let first = (!world.finalizer).then_some(Step::AddFinalizer);
        let next = keep(desired, world, &entitlement, refusal.is_some());
        let next = match next {
            // Whatever else was to be declared is declared by then.
            None if held.is_none() && entitlement.terminates(now) => terminate(world),
            next => next,
        };
        first.into_iter().chain(next).collect()
    };
    Plan {
        look_again: desired.terms.next(&entitlement, flags.announce_before, now),
        entitlement,
        held,
        refusal,
        steps,
    }
}

/// With how many others this one lost its entitlement, where that is too many and nobody has confirmed it.
fn held(world: &World, entitlement: &Entitlement, limits: &Limits) -> Option<usize> {
    let ours = world.ours()?;
    let lost = ours.unentitled_since.or(entitlement.unentitled_since)?;
    if is_confirmed(world.confirmation.as_deref(), lost) {
        return None;
    }
    world.census.too_many(lost, limits)
}

fn terminate(world: &World) -> Option<Step> {
    let ours = world.ours().filter(|ours| !ours.deleting)?;
    Some(Step::Terminate(ours.target.clone()))
}

fn refusal(desired: &Desired, world: &World, limits: &Limits) -> Option<(&'static str, String)> {
    let Desired { name, customer, .. } = desired;
    if let Some(elder) = &world.elder {
        let message = format!(
            "Subscription {elder} is older and has the same externalRef: delete one of them, or correct its externalRef"
        );
        return Some(("Duplicate", message));
    }
    if let InstanceView::NotOurs(whose) = world.instance {
        let message = format!(
            "AgentInstance {name} {whose}: it is not touched; delete it, or use another name"
        );
        return Some(("NameTaken", message));
    }
    if world.instance == InstanceView::Absent && world.census.is_full(limits) {
        let message = format!(
            "{} agents were made within a day, and no more are before that is over: raise --creations-per-day if all of them are meant",
            world.census.made_today
        );
        return Some(("CreationsHeld", message));
    }
    let secret = desired.secret.as_deref().unwrap_or_default();
    match world.secret {
        SecretView::NotNamed | SecretView::Fits => None,
        SecretView::Missing => Some((
            "SecretMissing",
            format!("there is no Secret {secret} in this namespace"),
        )),
        SecretView::NotTheCustomers => Some((
            "SecretOfAnother",
            format!("Secret {secret} does not carry the label agentfleet.dev/customer={customer}"),
        )),
    }
}

/// What is done for a subscription that is there.
fn keep(
    desired: &Desired,
    world: &World,
    entitlement: &Entitlement,
    refused: bool,
) -> Option<Step> {
    match &world.instance {
        InstanceView::NotOurs(_) => None,
        InstanceView::Absent if refused || !entitlement.creates => None,
        InstanceView::Absent => Some(Step::Create(Declaration::new(desired, entitlement))),
        InstanceView::Ours(ours) if ours.deleting => None,
        InstanceView::Ours(ours) => declare(declaration(desired, ours, entitlement, refused), ours),
    }
}

/// What is done for one that goes: its instance is suspended and told its end, and then it may go.
fn leave(desired: &Desired, world: &World, entitlement: &Entitlement) -> Vec<Step> {
    if !world.finalizer {
        return vec![];
    }
    let open = match &world.instance {
        InstanceView::Ours(ours) if !ours.deleting => {
            declare(declaration(desired, ours, entitlement, true), ours)
        }
        _ => None,
    };
    vec![open.unwrap_or(Step::RemoveFinalizer)]
}

/// What is declared; as it was, where nothing may be changed but that.
fn declaration(
    desired: &Desired,
    ours: &Ours,
    entitlement: &Entitlement,
    as_it_was: bool,
) -> Declaration {
    let wanted = Declaration::new(desired, entitlement);
    if !as_it_was {
        return wanted;
    }
    Declaration {
        class: ours.class.clone(),
        secret: ours.declared.secret.clone(),
        environment: ours.declared.environment.clone(),
        ..wanted
    }
}

fn declare(wanted: Declaration, ours: &Ours) -> Option<Step> {
    (wanted != ours.declared).then(|| Step::Declare(wanted, ours.target.clone()))
}

#[cfg(test)]
pub(super) mod tests;
