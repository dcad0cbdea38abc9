//! What is to be done for a subscription: a pure function of what is wanted, what is, and the time.
//!
//! A refusal (a Secret that is another's, a duplicate) stops whatever would be bought or changed, and nothing that takes away: an agent that is
//! not entitled is suspended all the same.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    SubscriptionFlags,
    declaration::Declaration,
    desired::Desired,
    entitlement::{Entitlement, decide, later},
    guard::{Census, Limits, is_confirmed},
    step::Step,
    world::{InstanceView, Ours, SecretView, World},
};

/// How soon to look again whether it is known who else was lost.
const COUNTING: Duration = Duration::from_secs(1);

/// What is to be done, and what it follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What the state entitles to.
    pub entitlement: Entitlement,
    /// Whether so many others lost their entitlement with it that it is not terminated.
    pub held: bool,
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
        leave(desired, world, (&entitlement, held))
    } else {
        let first = (!world.finalizer).then_some(Step::AddFinalizer);
        let next = keep(desired, world, (&entitlement, held), refusal.is_some());
        let next = match next {
            // Whatever else was to be declared is declared by then.
            None if !held && entitlement.terminates(now) => {
                let settled = settles(
                    world.census.as_ref(),
                    entitlement.unentitled_since,
                    &flags.guard,
                );
                terminate(world).filter(|_| settled.is_some_and(|at| at <= now))
            }
            next => next,
        };
        first.into_iter().chain(next).collect()
    };
    let counting = world.census.is_none() && !held && entitlement.terminates(now);
    Plan {
        look_again: if counting {
            Some(later(now, COUNTING))
        } else {
            look_again(desired, &entitlement, flags, now)
        },
        entitlement,
        held,
        refusal,
        steps,
    }
}

/// When something changes by itself; also when all are known that lost their entitlement together with this one.
fn look_again(
    desired: &Desired,
    entitlement: &Entitlement,
    flags: &SubscriptionFlags,
    now: Timestamp,
) -> Option<Timestamp> {
    let next = desired.terms.next(entitlement, flags.announce_before, now);
    let Limits {
        soon,
        daily,
        patience,
        ..
    } = flags.guard;
    let windows = [soon.window, daily.window, patience];
    let lost = entitlement.unentitled_since.into_iter();
    lost.flat_map(|lost| windows.map(|window| later(lost, window)))
        .filter(|at| *at > now)
        .chain(next)
        .min()
}

/// Whether so many others lost their entitlement with this one that it does not end. It stays so, as the others are put back one by one, until it
/// is entitled again or an admin confirms its end.
fn held(world: &World, entitlement: &Entitlement, limits: &Limits) -> bool {
    let (Some(ours), Some(lost)) = (world.ours(), entitlement.unentitled_since) else {
        return false;
    };
    let census = world.census.as_ref();
    let too_many = || census.is_some_and(|census| census.too_many(lost, limits));
    let together = || ours.declared.held || too_many();
    !is_confirmed(world.confirmation.as_deref(), lost) && together()
}

/// When so much time is over since an agent was lost that others would be known that were lost with it, however short its retention; none while
/// it is not known who was.
pub(super) fn settles(
    census: Option<&Census>,
    lost: Option<Timestamp>,
    limits: &Limits,
) -> Option<Timestamp> {
    let alone = census?.agents < limits.least;
    let at = lost.filter(|_| !alone).unwrap_or(Timestamp::MIN);
    Some(later(at, limits.patience))
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
    let full = world
        .census
        .as_ref()
        .filter(|census| census.is_full(limits));
    if world.instance == InstanceView::Absent
        && let Some(census) = full
    {
        return Some(limits.creations_held(census.made_today));
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
    (entitlement, held): (&Entitlement, bool),
    refused: bool,
) -> Option<Step> {
    match &world.instance {
        InstanceView::NotOurs(_) => None,
        InstanceView::Absent if refused || !entitlement.creates => None,
        InstanceView::Absent => Some(Step::Create(Declaration::new(desired, entitlement, false))),
        InstanceView::Ours(ours) if ours.deleting => None,
        InstanceView::Ours(ours) => declare(
            declaration(desired, ours, (entitlement, held), refused),
            ours,
        ),
    }
}

/// What is done for one that goes: its instance is suspended and told its end, and then it may go.
fn leave(desired: &Desired, world: &World, (entitlement, held): (&Entitlement, bool)) -> Vec<Step> {
    if !world.finalizer {
        return vec![];
    }
    let open = match &world.instance {
        InstanceView::Ours(ours) if !ours.deleting => {
            declare(declaration(desired, ours, (entitlement, held), true), ours)
        }
        _ => None,
    };
    vec![open.unwrap_or(Step::RemoveFinalizer)]
}

/// What is declared; as it was, where nothing may be changed but that.
fn declaration(
    desired: &Desired,
    ours: &Ours,
    (entitlement, held): (&Entitlement, bool),
    as_it_was: bool,
) -> Declaration {
    let wanted = Declaration::new(desired, entitlement, held);
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
