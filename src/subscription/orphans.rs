//! Instances that a subscription has left: each ends when it says that it does, and none before.
//!
//! A subscription that is deleted leaves its instance suspended, with its `terminate-at`. One that vanished without that, as when somebody took
//! off its finalizer, or a backup was restored in another order, is given time, and then the instance is suspended and kept for a week.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _};

use super::{
    SubscriptionFlags, announcement,
    declaration::{Announced, Declaration, Target, terminate_at, unentitled_since},
    entitlement::{earlier, later, whole_second},
    event,
    guard::{Census, is_confirmed},
    observe::{census, confirmation, is_subscribed, subscription_of},
    perform,
    plan::settles,
    send,
};
use crate::{
    agent_instance::desired::Identity,
    api::{AgentInstance, AnnouncedEvent, Announcement, Notice, Subscription},
    context::Context,
    error::Setback,
    labels,
    notification::delivery::Delivery,
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
    /// From when on all are known that were left with it; none while that is not known.
    pub settles: Option<Timestamp>,
    /// What was declared of it.
    pub declared: Declaration,
    /// What the receiver of the webhook knows.
    pub webhook: Webhook,
}

/// What the receiver of the webhook knows of an orphan's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Webhook {
    /// Whether there is one.
    pub on: bool,
    /// What it took last from this process.
    pub taken: Option<AnnouncedEvent>,
    /// Whether the end has waited for it for as long as it may.
    pub is_late: bool,
}

/// What is done about an orphan.
#[derive(Clone, Debug, PartialEq)]
pub enum Deed {
    /// It is suspended and told its end, or that it has none yet.
    Keep(Declaration),
    /// People are told that it ends soon, and then it is declared that they were.
    Announce(Declaration),
    /// The receiver of the webhook is told.
    Notify(AnnouncedEvent),
    /// It is deleted.
    Terminate,
}

/// Decides what is done about an orphan, if anything; its end is announced so long before.
pub fn plan(
    orphan: &Orphan,
    (patience, lead): (Duration, Duration),
    now: Timestamp,
) -> Option<Deed> {
    match orphan.terminate_at {
        Some(_) if orphan.suspended && orphan.held != orphan.declared.held => {
            Some(Deed::Keep(Declaration {
                held: orphan.held,
                ..orphan.declared.clone()
            }))
        }
        Some(at) if orphan.suspended => {
            let settled = orphan.settles.is_some_and(|settles| settles <= now);
            if at <= now && !orphan.held && settled {
                return Some(end(orphan.webhook));
            }
            (earlier(at, lead) <= now).then(|| announce(orphan))?
        }
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

/// The receiver is told before the object goes, which is all that remembers whether it was.
fn end(webhook: Webhook) -> Deed {
    let told = webhook.taken == Some(AnnouncedEvent::Terminated);
    if !webhook.on || told || webhook.is_late {
        return Deed::Terminate;
    }
    Deed::Notify(AnnouncedEvent::Terminated)
}

fn announce(orphan: &Orphan) -> Option<Deed> {
    let declared = |announced| Declaration {
        announced: Some(announced),
        ..orphan.declared.clone()
    };
    let soon = AnnouncedEvent::TerminatesSoon;
    match orphan.declared.announced {
        None => Some(Deed::Announce(declared(Announced::Told))),
        Some(Announced::Told) if orphan.webhook.taken == Some(soon) => {
            Some(Deed::Keep(declared(Announced::Taken)))
        }
        Some(Announced::Told) if orphan.webhook.on => Some(Deed::Notify(soon)),
        Some(_) => None,
    }
}

/// What is remembered between two sweeps, by UID; all of it may be lost.
#[derive(Default)]
struct Memory(HashMap<String, Seen>);

/// What is remembered of one orphan.
struct Seen {
    /// What is announced of it goes its own way, beside what its instance tells of itself.
    way: Identity,
    since: Instant,
    /// What the receiver of the webhook took last.
    taken: Option<AnnouncedEvent>,
    /// Since when its end waits for the receiver.
    ending: Option<Instant>,
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
    let mut former = std::mem::take(&mut memory.0);
    let left = gather(ctx, &mut former);
    for gone in former.values() {
        ctx.subscriptions.forget(&gone.way.uid);
        ctx.notifications.forget(&gone.way);
    }
    let deeds = Measure::now(ctx).judge(&left);
    for (mut one, deed) in left.into_iter().zip(deeds) {
        if let Some(deed) = deed
            && let Err(setback) = carry_out(ctx, &mut one, &deed).await
        {
            let (reason, message) = (setback.reason, setback.message);
            let Identity {
                namespace, name, ..
            } = &one.about;
            tracing::warn!(instance = %format_args!("{namespace}/{name}"), reason, message, "an orphan waits");
        }
        memory.0.insert(one.about.uid, one.seen);
    }
}

/// An instance that was left, and what is remembered of it.
struct Left {
    about: Identity,
    instance: Arc<AgentInstance>,
    /// The subscription of its name, which is another customer's.
    other: Option<Arc<Subscription>>,
    seen: Seen,
}

/// All of them, with what was remembered, which is taken out of there.
fn gather(ctx: &Context, former: &mut HashMap<String, Seen>) -> Vec<Left> {
    let mut left = vec![];
    for instance in ctx.stores.instances.state() {
        let about = about(&instance);
        let other = subscription_of(ctx, &instance);
        if !is_orphan(&instance, other.as_deref()) {
            continue;
        }
        let known = former.remove(&about.uid);
        let mut seen = known.unwrap_or_else(|| Seen::now(&about));
        seen.hear(ctx);
        left.push(Left {
            about,
            instance,
            other,
            seen,
        });
    }
    left
}

/// What all orphans of a sweep are judged by, before anything is done about the first: the last may have its turn long after it, and who has been
/// lost meanwhile is not in the census.
struct Measure {
    now: Timestamp,
    /// None while it is not known who was lost.
    census: Option<Census>,
    flags: SubscriptionFlags,
    /// How long an end waits for the receiver of the webhook, if there is one.
    webhook: Option<Duration>,
}

impl Measure {
    fn now(ctx: &Context) -> Self {
        let now = Timestamp::now();
        let patience = ctx.settings.webhook_patience;
        Self {
            now,
            census: census(ctx, now),
            flags: ctx.settings.subscriptions,
            webhook: ctx.notifications.are_on().then_some(patience),
        }
    }

    /// What is done about each of them, if anything.
    fn judge(&self, left: &[Left]) -> Vec<Option<Deed>> {
        let periods = (self.flags.orphan_patience, self.flags.announce_before);
        let orphans = left.iter().map(|one| self.orphan(one));
        orphans
            .map(|orphan| plan(&orphan, periods, self.now))
            .collect()
    }

    fn orphan(&self, one: &Left) -> Orphan {
        let Left {
            about: _,
            instance,
            other,
            seen,
        } = one;
        let customer = instance.labels().get(labels::CUSTOMER);
        let (census, lost) = (self.census.as_ref(), unentitled_since(instance));
        Orphan {
            abandoned: other.is_none(),
            seen_for: seen.since.elapsed(),
            suspended: instance.spec.suspend,
            terminate_at: terminate_at(instance),
            held: self.holds(instance),
            settles: settles(census, lost, &self.flags.guard),
            declared: Declaration {
                subscription: instance.name_any(),
                customer: customer.cloned().unwrap_or_default(),
                class: instance.spec.class_name.clone(),
                ..Declaration::found(instance)
            },
            webhook: Webhook {
                on: self.webhook.is_some(),
                taken: seen.taken,
                is_late: seen
                    .ending
                    .zip(self.webhook)
                    .is_some_and(|(ending, patience)| ending.elapsed() >= patience),
            },
        }
    }

    /// Whether an agent is one of too many; one that does not say since when it is left is one of those that nobody knows.
    fn holds(&self, instance: &AgentInstance) -> bool {
        let Some(lost) = unentitled_since(instance) else {
            return false;
        };
        let (census, limits) = (self.census.as_ref(), &self.flags.guard);
        let confirmed = is_confirmed(confirmation(instance).as_deref(), lost);
        let too_many = || census.is_some_and(|census| census.too_many(lost, limits));
        !confirmed && (Declaration::found(instance).held || too_many())
    }
}

fn about(instance: &AgentInstance) -> Identity {
    Identity {
        namespace: instance.namespace().unwrap_or_default(),
        name: instance.name_any(),
        uid: instance.uid().unwrap_or_default(),
    }
}

impl Seen {
    fn now(about: &Identity) -> Self {
        Self {
            way: Identity {
                uid: format!("{}/left", about.uid),
                ..about.clone()
            },
            since: Instant::now(),
            taken: None,
            ending: None,
        }
    }

    /// Takes in what became of the last event.
    fn hear(&mut self, ctx: &Context) {
        let Some(delivery) = ctx.notifications.take(&self.way) else {
            return;
        };
        if let Delivery::Taken(event) = &delivery {
            self.taken = match event.notice {
                Notice::Terminated => Some(AnnouncedEvent::Terminated),
                _ => Some(AnnouncedEvent::TerminatesSoon),
            };
        }
        let now = Instant::now();
        ctx.subscriptions.delivered(&self.way.uid, delivery, now);
    }
}

/// Whether an instance that came from a subscription has lost it: the one of its name is gone, or another customer's.
fn is_orphan(instance: &AgentInstance, subscription: Option<&Subscription>) -> bool {
    let customer = instance.labels().get(labels::CUSTOMER);
    is_subscribed(instance)
        && instance.metadata.deletion_timestamp.is_none()
        && subscription.is_none_or(|one| customer != Some(&one.spec.customer_id))
}

async fn carry_out(ctx: &Context, one: &mut Left, deed: &Deed) -> Result<(), Setback> {
    let Left {
        about,
        instance,
        other,
        seen,
    } = one;
    let (target, name) = (Target::of(instance), (&*about.namespace, &*about.name));
    match deed {
        Deed::Keep(declaration) => perform::declare(ctx, name, declaration, &target).await,
        Deed::Announce(declaration) => {
            tell(ctx, instance, AnnouncedEvent::TerminatesSoon);
            perform::declare(ctx, name, declaration, &target).await
        }
        Deed::Notify(announced) => {
            if *announced == AnnouncedEvent::Terminated {
                seen.ending.get_or_insert_with(Instant::now);
            }
            notify(ctx, (about, &seen.way), instance, *announced);
            Ok(())
        }
        Deed::Terminate => {
            perform::terminate(ctx, name, other.as_deref(), &target).await?;
            tell(ctx, instance, AnnouncedEvent::Terminated);
            Ok(())
        }
    }
}

fn announcement(instance: &AgentInstance, event: AnnouncedEvent) -> Announcement {
    Announcement {
        event,
        at: terminate_at(instance).map(Time),
    }
}

fn tell(ctx: &Context, instance: &AgentInstance, announced: AnnouncedEvent) {
    let note = announcement::words(&announcement(instance, announced));
    let object = instance.object_ref(&());
    ctx.events.publish(&object, event(announced, note));
}

/// The event's id is made of what it tells, so that it is the same after a restart.
fn notify(
    ctx: &Context,
    (about, way): (&Identity, &Identity),
    instance: &AgentInstance,
    announced: AnnouncedEvent,
) {
    let told = announcement(instance, announced);
    if let Some(event) = announcement::event(&about.uid, &told) {
        let _waits = send(ctx, (about, way), event, &instance.spec.class_name);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::guard::tests::LIMITS, *};
    use crate::api::{TERMINATE_AT_ANNOTATION, UNENTITLED_SINCE_ANNOTATION};

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
            settles: Some(at(-100)),
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
                announced: Some(Announced::Taken),
            },
            webhook: Webhook::default(),
        }
    }

    const PATIENCE: Duration = Duration::from_mins(10);
    /// How long an orphan is watched, and how long before its end it is announced.
    const PERIODS: (Duration, Duration) = (PATIENCE, Duration::from_secs(50));

    #[test]
    fn an_orphan_ends_when_it_says_and_not_before() {
        let orphan = orphan(true, Some(at(100)));
        assert_eq!(plan(&orphan, PERIODS, at(99)), None);
        assert_eq!(plan(&orphan, PERIODS, at(100)), Some(Deed::Terminate));
        for settles in [None, Some(at(101))] {
            let early = Orphan {
                settles,
                ..orphan.clone()
            };
            assert_eq!(plan(&early, PERIODS, at(100)), None, "{settles:?}");
        }
        let one_of_many = Orphan {
            held: true,
            ..orphan.clone()
        };
        let Some(Deed::Keep(declared)) = plan(&one_of_many, PERIODS, at(100)) else {
            panic!("it is told that it is held");
        };
        assert!(declared.held && declared.suspend);
        let told = Orphan {
            declared,
            ..one_of_many.clone()
        };
        assert_eq!(plan(&told, PERIODS, at(100)), None);
        let of_another_customer = Orphan {
            abandoned: false,
            ..orphan
        };
        let deed = plan(&of_another_customer, PERIODS, at(100));
        assert_eq!(deed, Some(Deed::Terminate));
    }

    /// An agent that lost its subscription at that second, and of which nothing is kept from then on.
    fn left(name: &str, lost: i64) -> Left {
        let at = at(lost).to_string();
        let instance: AgentInstance = serde_json::from_value(serde_json::json!({
            "apiVersion": "agentfleet.dev/v1alpha1", "kind": "AgentInstance",
            "metadata": {
                "namespace": "agents", "name": name, "uid": name,
                "annotations": {TERMINATE_AT_ANNOTATION: at, UNENTITLED_SINCE_ANNOTATION: at},
            },
            "spec": {"className": "small", "suspend": true},
        }))
        .unwrap();
        let about = about(&instance);
        Left {
            other: None,
            seen: Seen::now(&about),
            instance: Arc::new(instance),
            about,
        }
    }

    #[test]
    fn all_that_are_swept_together_are_judged_by_one_moment_and_the_count_of_that_moment() {
        let left: Vec<Left> = (0..4).map(|nth| left(&format!("a{nth}"), nth)).collect();
        let sweep = |second: i64, lost: usize| {
            let losses = (0..lost).map(|nth| Some(at(i64::try_from(nth).unwrap())));
            let rest = std::iter::repeat_n(None, 20 - lost);
            let measure = Measure {
                now: at(second),
                census: Some(Census::of(losses.chain(rest))),
                flags: SubscriptionFlags {
                    announce_before: Duration::ZERO,
                    orphan_patience: PATIENCE,
                    guard: LIMITS,
                },
                webhook: None,
            };
            let deeds = measure.judge(&left).into_iter().map(|deed| match deed {
                Some(Deed::Keep(declared)) if declared.held => "held",
                Some(Deed::Announce(_)) => "told",
                Some(Deed::Terminate) => "ended",
                deed => panic!("{deed:?}"),
            });
            deeds.collect::<Vec<_>>()
        };
        assert_eq!(sweep(14, 4), ["told"; 4], "others may come with them");
        assert_eq!(sweep(16, 4), ["ended", "ended", "told", "told"]);
        assert_eq!(sweep(18, 4), ["ended"; 4]);
        for second in [14, 16, 18] {
            assert_eq!(sweep(second, 5), ["held"; 4], "at {second}");
        }
    }

    #[test]
    fn the_end_is_announced_to_people_and_to_the_receiver_each_one_time() {
        let soon = AnnouncedEvent::TerminatesSoon;
        let mut orphan = orphan(true, Some(at(100)));
        orphan.declared.announced = None;
        assert_eq!(plan(&orphan, PERIODS, at(49)), None);
        let told = |deed: Option<Deed>| match deed {
            Some(Deed::Announce(declared) | Deed::Keep(declared)) => declared,
            deed => panic!("{deed:?}"),
        };
        orphan.declared = told(plan(&orphan, PERIODS, at(50)));
        assert_eq!(orphan.declared.announced, Some(Announced::Told));
        assert_eq!(plan(&orphan, PERIODS, at(50)), None, "nobody listens");
        orphan.webhook.on = true;
        assert_eq!(plan(&orphan, PERIODS, at(50)), Some(Deed::Notify(soon)));
        orphan.webhook.taken = Some(soon);
        orphan.declared = told(plan(&orphan, PERIODS, at(50)));
        assert_eq!(orphan.declared.announced, Some(Announced::Taken));
        // As after a restart.
        orphan.webhook.taken = None;
        assert_eq!(plan(&orphan, PERIODS, at(99)), None);
        let ends = Some(Deed::Notify(AnnouncedEvent::Terminated));
        assert_eq!(plan(&orphan, PERIODS, at(100)), ends);
        for over in [
            (Some(AnnouncedEvent::Terminated), false, true),
            (None, true, true),
            (None, false, false),
        ] {
            let (taken, is_late, on) = over;
            orphan.webhook = Webhook { on, taken, is_late };
            assert_eq!(
                plan(&orphan, PERIODS, at(100)),
                Some(Deed::Terminate),
                "{over:?}"
            );
        }
    }

    #[test]
    fn one_that_runs_or_says_nothing_is_given_time_and_then_kept_for_a_week() {
        for told in [None, Some(at(-5))] {
            for suspended in [false, told.is_none()] {
                let found = orphan(suspended, told);
                let kept = plan(&found, PERIODS, at(0));
                let Some(Deed::Keep(declaration)) = kept else {
                    panic!("{found:?}: {kept:?}");
                };
                assert!(declaration.suspend);
                assert_eq!(declaration.terminate_at, Some(later(at(0), RETENTION)));
                let early = Orphan {
                    seen_for: PATIENCE / 2,
                    ..found.clone()
                };
                assert_eq!(plan(&early, PERIODS, at(0)), None);
                let other = Orphan {
                    abandoned: false,
                    ..found
                };
                assert_eq!(plan(&other, PERIODS, at(0)), None);
            }
        }
    }
}
