//! `Subscription`: what a customer has paid for is what runs.
//!
//! ```text
//! Desired::parse → observe → plan → status → perform → look again
//! ```
//! The status comes before the steps: what was first seen, and what follows from it, is written down before anything is done about it, on the
//! version of the object that it was found out from. A subscription owns no instance, since a cascading deletion would take the agent along: it
//! speaks to the instance of its name through [`declaration`], and leaves with it when it is to end. [`orphans`] sees to that.

pub mod announcement;
pub mod declaration;
pub mod desired;
pub mod entitlement;
pub mod guard;
pub mod memory;
mod observe;
pub mod orphans;
mod perform;
pub mod plan;
pub mod references;
pub mod status;
pub mod step;
pub mod world;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{
    Api, Resource as _, ResourceExt as _,
    runtime::{
        controller::Action,
        events::{Event, EventType},
    },
};
use serde_json::json;

use crate::{
    agent_instance::desired::Identity,
    api::{AnnouncedEvent, FINALIZER, Subscription, SubscriptionStatus},
    context::Context,
    error::Setback,
    kube_ext::{
        CallError, add_finalizer, apply_status, error_chain, remove_finalizer, status_changed,
    },
    notification::event::{self as notification, Subject},
    transitions,
};
use desired::Desired;
use observe::observe;
use plan::{Plan, plan};
use step::Step;

/// The field manager of the status.
const STATUS: &str = "agentfleet";
/// How long the watch may take to show what was just written.
const WATCH: Duration = Duration::from_millis(200);
/// How long to wait where a watch should have told before.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest that is waited for a time to come, as clocks are set now and then.
const LONGEST: Duration = Duration::from_hours(1);

/// What the flags say of subscriptions.
#[derive(Clone, Copy, Debug)]
pub struct SubscriptionFlags {
    /// How long before it comes a suspension or a termination is announced.
    pub announce_before: Duration,
    /// How long an instance whose Subscription is missing runs on.
    pub orphan_patience: Duration,
    /// How many agents are too many to lose, or to make.
    pub guard: guard::Limits,
}

/// Looks at a subscription once, and does what there is to do.
///
/// # Errors
/// When Kubernetes does not answer or the view is out of date; everything else is told in the status.
pub async fn reconcile(
    subscription: Arc<Subscription>,
    ctx: Arc<Context>,
) -> Result<Action, CallError> {
    if !ctx.stores.synced.is_cancelled() {
        // What no store shows yet is not missing.
        return Ok(Action::requeue(WATCH));
    }
    let desired = Desired::parse(&subscription);
    let (flags, now) = (&ctx.settings.subscriptions, Timestamp::now());
    let world = observe(&ctx, &subscription, &desired, now);
    let plan = plan(&desired, &world, flags, now);
    let lead = flags.announce_before;
    tracing::debug!(steps = ?plan.steps, entitled = plan.entitlement.entitled, "planned");
    let mut look = Look {
        ctx: &ctx,
        subscription: &subscription,
        desired: &desired,
        version: subscription.resource_version().unwrap_or_default(),
    };
    if !ctx.leadership.holds() {
        return Ok(Action::requeue(PATIENCE));
    }
    let mut retell = None;
    let mut steps = plan.steps.as_slice();
    if let Some((Step::AddFinalizer, rest)) = steps.split_first() {
        look.version = add_finalizer(&look.api(), &*subscription, FINALIZER).await?;
        steps = rest;
    }
    if !desired.is_absent() {
        let generation = subscription.metadata.generation;
        let next = status::status(&desired, &world, &plan, generation, (lead, now));
        look.report(&world.status, &next).await?;
        retell = look.notify(&next);
    }
    for step in steps {
        if let Err(setback) = look.perform(step).await {
            return Ok(Action::requeue(look.failed(step, setback)));
        }
    }
    if plan.steps == [Step::RemoveFinalizer] {
        ctx.subscriptions.forget(&desired.uid);
        ctx.notifications.forget(&desired.identity());
    }
    ctx.subscriptions.succeeded(&desired.uid);
    let pause = next(&ctx, &plan, now).into_iter().chain(retell).min();
    Ok(pause.map_or_else(Action::await_change, Action::requeue))
}

/// How long to wait after a look in which all was done; none where only a change can bring anything new.
fn next(ctx: &Context, plan: &Plan, now: Timestamp) -> Option<Duration> {
    let own = match plan.steps.last() {
        Some(Step::RemoveFinalizer) => return None,
        Some(_) => Some(PATIENCE),
        // Whoever it waits for may be another subscription, of which it is not told.
        None if plan.refusal.is_some() || plan.held => Some(ctx.settings.project_period),
        None => None,
    };
    let due = plan.look_again.map(|at| at.duration_since(now));
    let due = due.map(|due| Duration::try_from(due).unwrap_or_default().min(LONGEST));
    due.into_iter().chain(own).min()
}

/// One look at one subscription.
struct Look<'a> {
    ctx: &'a Context,
    subscription: &'a Subscription,
    desired: &'a Desired,
    /// The version of the object that the next write replaces.
    version: String,
}

impl Look<'_> {
    fn api(&self) -> Api<Subscription> {
        Api::namespaced(self.ctx.clients.write.clone(), &self.desired.namespace)
    }

    async fn perform(&self, step: &Step) -> Result<(), Setback> {
        let name = (self.desired.namespace.as_str(), self.desired.name.as_str());
        match step {
            // Done before the status is written, which needs the version that comes of it.
            Step::AddFinalizer => Ok(()),
            Step::RemoveFinalizer => {
                Ok(remove_finalizer(&self.api(), self.subscription, FINALIZER).await?)
            }
            Step::Create(declaration) => perform::create(self.ctx, name, declaration).await,
            Step::Declare(declaration, target) => {
                perform::declare(self.ctx, name, declaration, target).await
            }
            Step::Terminate(target) => {
                perform::terminate(self.ctx, name, Some(self.subscription), target).await
            }
        }
    }

    fn failed(&self, step: &Step, setback: Setback) -> Duration {
        if setback.brief().is_none() {
            let (reason, message) = (setback.reason, &setback.message);
            tracing::warn!(?step, reason, message, "step failed");
        }
        self.ctx.subscriptions.failed(&self.desired.uid, setback)
    }

    /// Sends what is announced on its way to the receiver of the webhook, which waits for nobody; answers when to try again what he did not take.
    fn notify(&self, status: &SubscriptionStatus) -> Option<Duration> {
        let Self { ctx, desired, .. } = self;
        let told = status.announced.as_ref();
        let told = told
            .filter(|told| ctx.notifications.are_on() && status.notified.as_ref() != Some(told))?;
        let event = announcement::event(&desired.uid, told)?;
        let about = desired.identity();
        send(ctx, (&about, &about), event, &desired.plan)
    }

    /// Writes the status if it says anything new, and tells people what is new in it.
    async fn report(
        &self,
        former: &SubscriptionStatus,
        next: &SubscriptionStatus,
    ) -> Result<(), CallError> {
        let new = json!(next);
        if !status_changed(&json!(former), &new) {
            return Ok(());
        }
        apply_status(&self.api(), STATUS, &self.desired.name, &self.version, new).await?;
        let object = self.subscription.object_ref(&());
        let (before, after) = (&former.conditions, &next.conditions);
        transitions::publish(&self.ctx.events, &object, before, after);
        if let Some(told) = &next.announced
            && next.announced != former.announced
        {
            self.ctx
                .events
                .publish(&object, event(told.event, announcement::words(told)));
        }
        Ok(())
    }
}

/// Sends an event about an agent on its way, unless it waits to be tried again; answers for how long it does.
fn send(
    ctx: &Context,
    (about, way): (&Identity, &Identity),
    event: notification::Event,
    class: &str,
) -> Option<Duration> {
    let now = std::time::Instant::now();
    let wait = ctx.subscriptions.waits(&way.uid, &event.id, now);
    if !wait.is_zero() {
        return Some(wait);
    }
    let subject = Subject {
        fleet: ctx.keyring.fleet().to_owned(),
        namespace: about.namespace.clone(),
        name: about.name.clone(),
        uid: about.uid.clone(),
        class: class.to_owned(),
        incarnation: 0,
    };
    ctx.notifications.start(way, event, subject);
    None
}

/// An announcement as people see it.
fn event(announced: AnnouncedEvent, note: String) -> Event {
    let type_ = match announced {
        AnnouncedEvent::Suspended => EventType::Normal,
        _ => EventType::Warning,
    };
    Event {
        type_,
        reason: announced.as_str().to_owned(),
        note: Some(note),
        action: "Announce".to_owned(),
        secondary: None,
    }
}

/// How long to wait after a look that failed.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the form that kube's Controller asks for"
)]
pub fn error_policy(subscription: Arc<Subscription>, error: &CallError, _: Arc<Context>) -> Action {
    if let CallError::Stale { .. } = error {
        return Action::requeue(WATCH);
    }
    let name = subscription.name_any();
    tracing::warn!(
        subscription = name,
        error = error_chain(error),
        "look failed"
    );
    Action::requeue(PATIENCE)
}
