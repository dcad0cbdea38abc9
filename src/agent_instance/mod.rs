//! `AgentInstance`: one agent, one server.
//!
//! One look: parse → observe → plan → perform → status → requeue. What is wanted and what is are data, the plan is a pure function of both, and
//! effects happen in `perform` only. Nothing waits here: every wait is a requeue or an event.

mod creation;
mod description;
pub mod desired;
mod line_up;
mod lost_disk;
pub mod memory;
pub mod notices;
mod observe;
mod perform;
pub mod phone_home;
pub mod plan;
mod revision;
pub mod rollback;
pub mod status;
pub mod step;
pub mod talk;
pub mod timings;
pub mod world;

use std::{sync::Arc, time::Duration};

use kube::{Resource as _, ResourceExt as _, runtime::controller::Action};
use serde_json::{Value, json};
use tracing::Instrument as _;

use crate::{
    api::{AgentInstance, AgentInstanceStatus, ConditionType, is_true},
    context::Context,
    error::Setback,
    kube_ext::{CallError, status_changed},
    transitions,
};
use desired::{Desired, Identity};
use memory::Memory;
use observe::{Moment, observe};
use perform::Performer;
use plan::{Plan, Stage, plan};
use step::Step;
use world::World;

pub use creation::{Birth, user_data};

/// The field manager of everything in the status but the write-ahead records.
const STATUS: &str = "agentfleet";
/// How soon to look again while the stores have not had their first lists.
const SYNCING: Duration = Duration::from_millis(100);

/// Looks at one instance and does what is next.
///
/// # Errors
/// When the API server could not be asked; the controller's error policy tries again.
pub async fn reconcile(
    instance: Arc<AgentInstance>,
    ctx: Arc<Context>,
) -> Result<Action, CallError> {
    if !ctx.stores.synced.is_cancelled() {
        // What no store shows yet is not missing.
        return Ok(Action::requeue(SYNCING));
    }
    let version = instance.resource_version().unwrap_or_default();
    let uid = instance.uid().unwrap_or_default();
    if ctx
        .memories
        .with(&uid, |memory| is_replaced(&mut memory.replaced, &version))
    {
        return Ok(Action::await_change());
    }
    let (desired, moment) = (Desired::parse(&instance), Moment::now());
    let world = observe(&ctx, &instance, &desired, moment).await?;
    let plan = plan(&desired, &world, ctx.keyring.fleet(), moment.wall);
    tracing::debug!(stage = ?plan.stage, steps = ?plan.steps, "planned");
    let next = next_status(&instance, &desired, &world, &plan, moment);
    ctx.memories.with(&uid, |memory| {
        for (timing, begun) in timings::unmeasured(&world, &next.timings, memory.measured) {
            ctx.metrics.reached(timing, begun);
        }
        memory.measured = timings::last(world.incarnation(), &next.timings);
        memory.attempt.timings.clone_from(&next.timings);
    });
    let mut performer = Performer {
        ctx: &ctx,
        instance: &instance,
        desired: &desired,
        world: &world,
        moment,
        version,
    };
    if let Some(event) = &plan.notice {
        performer.notify(event);
    }
    let failed = perform_all(&mut performer, &plan).await;
    if plan.stage == Stage::Gone {
        notices::let_go(&ctx, desired.identity(), &world.notices);
        ctx.memories.forget(&uid);
        wake_owners(&ctx, &instance);
        return Ok(Action::await_change());
    }
    let goes_on = (failed.is_none() && !plan.steps.is_empty()).then_some(Duration::ZERO);
    if plan.stage == Stage::AsBefore {
        let again = failed.or(goes_on);
        return Ok(requeue(again.or_else(|| remaining(&plan, moment))));
    }
    if goes_on.is_some() && can_wait(&world.status) {
        return Ok(requeue(goes_on));
    }
    let reported = report(&mut performer, &next).await;
    let again = failed.or(goes_on).or(reported.err());
    Ok(requeue(again.or_else(|| remaining(&plan, moment))))
}

/// Whether what is reported may stay until the next look, which follows a step at once: all of it is there, and it does not say Ready, which may
/// be over (I6).
fn can_wait(reported: &AgentInstanceStatus) -> bool {
    !reported.conditions.is_empty() && !is_true(&reported.conditions, ConditionType::Ready)
}

/// Its class and project count it, and may wait for it to go.
fn wake_owners(ctx: &Context, instance: &AgentInstance) {
    ctx.wake.class(&instance.spec.class_name);
    if let Some(server) = instance
        .status
        .as_ref()
        .and_then(|status| status.server.as_ref())
    {
        ctx.wake.project(&server.project);
    }
}

/// Whether a view is older than our own last write; the watch will bring a newer one.
fn is_replaced(replaced: &mut Vec<String>, version: &str) -> bool {
    let known = replaced.iter().any(|old| old == version);
    if !known {
        replaced.clear();
    }
    known
}

/// Carries out the steps in order; the first that fails ends the round and says when to look again.
async fn perform_all(performer: &mut Performer<'_>, plan: &Plan) -> Option<Duration> {
    let Identity {
        namespace,
        name,
        uid,
    } = performer.desired.identity().clone();
    let instance = format!("{namespace}/{name}");
    for step in &plan.steps {
        let span = tracing::info_span!(
            "step",
            instance,
            incarnation = performer.world.incarnation()
        );
        match performer.perform(step).instrument(span).await {
            Ok(()) => performer.ctx.memories.with(&uid, Memory::succeeded),
            Err(setback) => return Some(after(performer.ctx, &uid, step, setback)),
        }
    }
    None
}

/// What takes a moment is no news; all else is remembered, and the next look says so.
fn after(ctx: &Context, uid: &str, step: &Step, setback: Setback) -> Duration {
    ctx.metrics.set_back("AgentInstance", setback.reason);
    if let Some(pause) = setback.brief() {
        return pause;
    }
    tracing::warn!(
        ?step,
        reason = setback.reason,
        message = setback.message,
        "step failed"
    );
    ctx.memories
        .with(uid, |memory| memory.failed(setback, Moment::now().wall));
    Duration::ZERO
}

fn remaining(plan: &Plan, moment: Moment) -> Option<Duration> {
    let until = plan.look_again?.duration_since(moment.wall);
    Some(Duration::try_from(until).unwrap_or_default())
}

fn requeue(after: Option<Duration>) -> Action {
    after.map_or_else(Action::await_change, Action::requeue)
}

/// What this look reports, if it reports.
fn next_status(
    instance: &AgentInstance,
    desired: &Desired,
    world: &World,
    plan: &Plan,
    moment: Moment,
) -> AgentInstanceStatus {
    let uid = &desired.identity().uid;
    let current = world.front(uid);
    let generation = instance.metadata.generation;
    status::status(world, current, &plan.stage, generation, moment.wall)
}

/// Writes the status if it says anything new, and tells people of transitions.
async fn report(performer: &mut Performer<'_>, next: &AgentInstanceStatus) -> Result<(), Duration> {
    let former = &performer.world.status;
    if !status_changed(&news(former), &news(next)) {
        return Ok(());
    }
    match performer.apply_status(STATUS, reported(next)).await {
        Ok(()) => {
            let object = performer.instance.object_ref(&());
            transitions::publish(
                &performer.ctx.events,
                &object,
                &former.conditions,
                &next.conditions,
            );
            if is_true(&former.conditions, ConditionType::Ready)
                != is_true(&next.conditions, ConditionType::Ready)
            {
                performer
                    .ctx
                    .wake
                    .class(&performer.instance.spec.class_name);
            }
            Ok(())
        }
        Err(setback) => {
            tracing::debug!(message = setback.message, "status not written");
            Err(setback.pause(1))
        }
    }
}

/// The fields of the status that are reports; the records have a manager of their own.
fn reported(status: &AgentInstanceStatus) -> Value {
    let mut fields = json!(status);
    if let Some(fields) = fields.as_object_mut() {
        fields.remove("provisioning");
        fields.remove("voice");
        fields.remove("heard");
        fields.remove("rollbacks");
        fields.remove("recovery");
    }
    fields
}

/// What makes the status worth a write: times come with what they are the times of.
fn news(status: &AgentInstanceStatus) -> Value {
    let untimed = AgentInstanceStatus {
        timings: vec![],
        ..status.clone()
    };
    reported(&untimed)
}

/// How long to wait after a look that failed.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the form that kube's Controller asks for"
)]
pub fn error_policy(instance: Arc<AgentInstance>, error: &CallError, _: Arc<Context>) -> Action {
    let setback = Setback::passing("KubernetesUnavailable", crate::kube_ext::error_chain(error));
    tracing::warn!(
        instance = instance.name_any(),
        message = setback.message,
        "look failed"
    );
    Action::requeue(setback.pause(3))
}
