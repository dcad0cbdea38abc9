//! Instances that a subscription has left: each ends when it says that it does, and none before.
//!
//! A subscription that is deleted leaves its instance suspended, with its `terminate-at`. One that vanished without that, as when somebody took
//! off its finalizer, or a backup was restored in another order, is given time, and then the instance is suspended and kept for a week.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _, runtime::reflector::ObjectRef};

use super::{
    announcement,
    declaration::{Declaration, Target, terminate_at, unentitled_since},
    entitlement::{earlier, later, whole_second},
    event,
    guard::{Census, is_confirmed},
    observe::{census, confirmation},
    perform,
};
use crate::{
    api::{AgentInstance, AnnouncedEvent, Announcement, Subscription},
    context::Context,
    error::Setback,
    labels,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// How long one is kept of which nobody knows for how long.
const RETENTION: Duration = Duration::from_hours(168);

/// An instance whose subscription is not there, or another customer's.
#[derive(Clone, Debug, PartialEq)]
pub struct Orphan {
    /// Whether there is no subscription of its name at all.
    pub abandoned: bool,
    /// For how long that has been seen.
    pub seen_for: Duration,
    /// Whether it is suspended.
    pub suspended: bool,
    /// When it says that it ends.
    pub terminate_at: Option<Timestamp>,
    /// Whether it is one of too many that were left, and no admin has confirmed it.
    pub held: bool,
    /// What was declared of it.
    pub declared: Declaration,
}

/// What is done about an orphan.
#[derive(Clone, Debug, PartialEq)]
pub enum Deed {
    /// It is suspended and told its end, or that it has none yet.
    Keep(Declaration),
    /// It is deleted.
    Terminate,
}

/// Decides what is done about an orphan, if anything.
pub fn plan(orphan: &Orphan, patience: Duration, now: Timestamp) -> Option<Deed> {
    match orphan.terminate_at {
        Some(_) if orphan.suspended && orphan.held != orphan.declared.held => {
            Some(Deed::Keep(Declaration {
                held: orphan.held,
                ..orphan.declared.clone()
            }))
        }
        Some(at) if orphan.suspended => (at <= now && !orphan.held).then_some(Deed::Terminate),
        _ if !orphan.abandoned || orphan.seen_for < patience => None,
        planned => {
            let kept = later(whole_second(now), RETENTION);
            Some(Deed::Keep(Declaration {
                suspend: true,
                terminate_at: planned.max(Some(kept)),
                unentitled_since: orphan.declared.unentitled_since.or(Some(whole_second(now))),
                ..orphan.declared.clone()
            }))
        }
    }
}

/// What is remembered between two sweeps; all of it may be lost.
#[derive(Default)]
struct Memory {
    since: HashMap<String, Instant>,
    announced: HashSet<String>,
}

/// Looks after orphans for as long as it is polled, which must be only under the Lease (I11).
pub async fn run(ctx: Arc<Context>) {
    let mut memory = Memory::default();
    loop {
        tokio::time::sleep(ctx.settings.project_period).await;
        if ctx.stores.synced.is_cancelled() && ctx.leadership.holds() {
            sweep(&ctx, &mut memory).await;
        }
    }
}

async fn sweep(ctx: &Context, memory: &mut Memory) {
    let mut since = std::mem::take(&mut memory.since);
    let census = census(ctx);
    for instance in ctx.stores.instances.state() {
        let (name, uid) = (instance.name_any(), instance.uid().unwrap_or_default());
        let namespace = instance.namespace().unwrap_or_default();
        let Some(abandoned) = is_orphan(ctx, &instance, (&namespace, &name)) else {
            continue;
        };
        let since = since.remove(&uid).unwrap_or_else(Instant::now);
        memory.since.insert(uid.clone(), since);
        let orphan = Orphan {
            abandoned,
            seen_for: since.elapsed(),
            suspended: instance.spec.suspend,
            terminate_at: terminate_at(&instance),
            held: is_held(ctx, &instance, &census),
            declared: Declaration {
                subscription: name.clone(),
                customer: instance
                    .labels()
                    .get(labels::CUSTOMER)
                    .cloned()
                    .unwrap_or_default(),
                class: instance.spec.class_name.clone(),
                ..Declaration::found(&instance)
            },
        };
        announce(ctx, memory, &instance, &orphan);
        let deed = plan(
            &orphan,
            ctx.settings.subscriptions.orphan_patience,
            Timestamp::now(),
        );
        if let Some(deed) = deed
            && let Err(setback) = carry_out(ctx, (&namespace, &name), &instance, &deed).await
        {
            let (reason, message) = (setback.reason, setback.message);
            tracing::warn!(instance = %format_args!("{namespace}/{name}"), reason, message, "an orphan waits");
        }
    }
    let known = &memory.since;
    memory.announced.retain(|uid| known.contains_key(uid));
}

/// Whether an instance that came from a subscription has lost it; true where there is none of that name.
fn is_orphan(
    ctx: &Context,
    instance: &AgentInstance,
    (namespace, name): (&str, &str),
) -> Option<bool> {
    let label = |key: &str| instance.labels().get(key).map(String::as_str);
    // A label that was copied to another name means nothing.
    if label(labels::SUBSCRIPTION) != Some(name) || instance.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let subscription = ObjectRef::<Subscription>::new(name).within(namespace);
    match ctx.stores.subscriptions.get(&subscription) {
        None => Some(true),
        Some(one) if label(labels::CUSTOMER) != Some(one.spec.customer_id.as_str()) => Some(false),
        Some(_) => None,
    }
}

/// One that does not say since when it is left is one of those that nobody knows.
fn is_held(ctx: &Context, instance: &AgentInstance, census: &Census) -> bool {
    let Some(lost) = unentitled_since(instance) else {
        return false;
    };
    let limits = &ctx.settings.subscriptions.guard;
    let confirmed = is_confirmed(confirmation(instance).as_deref(), lost);
    !confirmed && (Declaration::found(instance).held || census.too_many(lost, limits))
}

async fn carry_out(
    ctx: &Context,
    name: (&str, &str),
    instance: &AgentInstance,
    deed: &Deed,
) -> Result<(), Setback> {
    let target = Target::of(instance);
    match deed {
        Deed::Keep(declaration) => perform::declare(ctx, name, declaration, &target).await,
        Deed::Terminate => {
            let subscription = ObjectRef::<Subscription>::new(name.1).within(name.0);
            let seen = ctx.stores.subscriptions.get(&subscription);
            perform::terminate(ctx, name, seen.as_deref(), &target).await?;
            tell(ctx, instance, AnnouncedEvent::Terminated);
            Ok(())
        }
    }
}

/// Tells the end of an orphan before it comes, once in the life of this process.
fn announce(ctx: &Context, memory: &mut Memory, instance: &AgentInstance, orphan: &Orphan) {
    let lead = ctx.settings.subscriptions.announce_before;
    let near = orphan
        .terminate_at
        .is_some_and(|at| earlier(at, lead) <= Timestamp::now());
    if near && orphan.suspended && memory.announced.insert(instance.uid().unwrap_or_default()) {
        tell(ctx, instance, AnnouncedEvent::TerminatesSoon);
    }
}

fn tell(ctx: &Context, instance: &AgentInstance, announced: AnnouncedEvent) {
    let note = announcement::words(&Announcement {
        event: announced,
        at: terminate_at(instance).map(Time),
    });
    let object = instance.object_ref(&());
    ctx.events.publish(&object, event(announced, note));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000_000 + second).unwrap()
    }

    fn orphan(suspended: bool, terminate_at: Option<Timestamp>) -> Orphan {
        Orphan {
            abandoned: true,
            seen_for: Duration::from_mins(10),
            suspended,
            terminate_at,
            held: false,
            declared: Declaration {
                subscription: "alice".into(),
                customer: "cus_1".into(),
                class: "small".into(),
                secret: None,
                environment: [].into(),
                suspend: suspended,
                terminate_at,
                unentitled_since: terminate_at,
                held: false,
            },
        }
    }

    const PATIENCE: Duration = Duration::from_mins(10);

    #[test]
    fn an_orphan_ends_when_it_says_and_not_before() {
        let orphan = orphan(true, Some(at(100)));
        assert_eq!(plan(&orphan, PATIENCE, at(99)), None);
        assert_eq!(plan(&orphan, PATIENCE, at(100)), Some(Deed::Terminate));
        let one_of_many = Orphan {
            held: true,
            ..orphan.clone()
        };
        let Some(Deed::Keep(declared)) = plan(&one_of_many, PATIENCE, at(100)) else {
            panic!("it is told that it is held");
        };
        assert!(declared.held && declared.suspend);
        let told = Orphan {
            declared,
            ..one_of_many.clone()
        };
        assert_eq!(plan(&told, PATIENCE, at(100)), None);
        let of_another_customer = Orphan {
            abandoned: false,
            ..orphan
        };
        let deed = plan(&of_another_customer, PATIENCE, at(100));
        assert_eq!(deed, Some(Deed::Terminate));
    }

    #[test]
    fn one_that_runs_or_says_nothing_is_given_time_and_then_kept_for_a_week() {
        for told in [None, Some(at(-5))] {
            for suspended in [false, told.is_none()] {
                let found = orphan(suspended, told);
                let kept = plan(&found, PATIENCE, at(0));
                let Some(Deed::Keep(declaration)) = kept else {
                    panic!("{found:?}: {kept:?}");
                };
                assert!(declaration.suspend);
                assert_eq!(declaration.terminate_at, Some(later(at(0), RETENTION)));
                let early = Orphan {
                    seen_for: PATIENCE / 2,
                    ..found.clone()
                };
                assert_eq!(plan(&early, PATIENCE, at(0)), None);
                let other = Orphan {
                    abandoned: false,
                    ..found
                };
                assert_eq!(plan(&other, PATIENCE, at(0)), None);
            }
        }
    }
}
