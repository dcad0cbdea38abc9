//! What is to be done for a subscription: a pure function of what is wanted, what is, and the time.
//!
//! A refusal (a Secret that is another's, a duplicate) stops whatever would be bought or changed, and nothing that takes away: an agent that is
//! not entitled is suspended all the same.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    declaration::Declaration,
    desired::Desired,
    entitlement::{Entitlement, decide},
    step::Step,
    world::{InstanceView, Ours, SecretView, World},
};

/// What is to be done, and what it follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What the state entitles to.
    pub entitlement: Entitlement,
    /// Why nothing is created or changed: reason and message.
    pub refusal: Option<(&'static str, String)>,
    /// What to do now, in order.
    pub steps: Vec<Step>,
    /// When something changes by itself.
    pub look_again: Option<Timestamp>,
}

/// Plans; `lead` is how long before the deed it is announced.
pub fn plan(desired: &Desired, world: &World, lead: Duration, now: Timestamp) -> Plan {
    let entitlement = decide(&desired.terms, &world.past(), now);
    let refusal = refusal(desired, world);
    let steps = if desired.is_absent() {
        leave(desired, world, &entitlement)
    } else {
        let first = (!world.finalizer).then_some(Step::AddFinalizer);
        let next = keep(desired, world, &entitlement, refusal.is_some(), now);
        first.into_iter().chain(next).collect()
    };
    Plan {
        look_again: desired.terms.next(&entitlement, lead, now),
        entitlement,
        refusal,
        steps,
    }
}

fn refusal(desired: &Desired, world: &World) -> Option<(&'static str, String)> {
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
    now: Timestamp,
) -> Option<Step> {
    match &world.instance {
        InstanceView::NotOurs(_) => None,
        InstanceView::Absent if refused || !entitlement.creates => None,
        InstanceView::Absent => Some(Step::Create(Declaration::new(desired, false, None))),
        InstanceView::Ours(ours) if ours.deleting => None,
        InstanceView::Ours(ours) if entitlement.terminates(now) => {
            Some(Step::Terminate(ours.target.clone()))
        }
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
    let (suspend, terminate_at) = (!entitlement.entitled, entitlement.terminate_at);
    let wanted = Declaration::new(desired, suspend, terminate_at);
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
