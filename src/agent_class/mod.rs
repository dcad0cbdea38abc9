//! `AgentClass`: what to run and on which machine.
//!
//! ```text
//! Desired::parse → observe → plan → standing and status → perform → look again
//! ```
//! A class owns one firewall in each of its projects, made before the first server needs it; its id goes into the standing of the connection,
//! where instances find it.

pub mod desired;
pub mod memory;
mod observe;
mod perform;
pub mod plan;
pub mod rendered;
pub mod status;
pub mod step;
pub mod world;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{Api, Resource as _, ResourceExt as _, runtime::controller::Action};

use self::{
    desired::Desired,
    plan::{Plan, plan},
    status::status,
    step::Step,
    world::World,
};
use crate::{
    api::{AgentClass, AgentClassStatus},
    context::Context,
    error::Setback,
    hetzner_project::request::Failure,
    kube_ext::{apply_status, status_changed},
    rollout::revisions,
    transitions,
};

pub use crate::hetzner_project::error_policy;

/// The field manager of the status.
const MANAGER: &str = "agentfleet";
/// How long the watch may take to show what was just written.
const WATCH: Duration = Duration::from_millis(200);
/// How long to wait for the Lease, or for the watch to show our finalizer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at a class once, and does what there is to do.
///
/// # Errors
/// When Kubernetes does not answer or the view is out of date; everything else is told in the status.
pub async fn reconcile(class: Arc<AgentClass>, ctx: Arc<Context>) -> Result<Action, Failure> {
    if !ctx.stores.synced.is_cancelled() {
        return Ok(Action::requeue(WATCH));
    }
    let former = revisions::in_use(&ctx, &class);
    let desired = Desired::parse(&class, ctx.settings.guest_port, &former);
    let world = observe::observe(&ctx, &class, &desired);
    let plan = plan(&desired, &world);
    publish(&ctx, &desired, &plan);
    let takes_in_or_out = matches!(
        plan.steps.first(),
        Some(Step::AddFinalizer | Step::RemoveFinalizer)
    );
    let written = !takes_in_or_out && report(&ctx, &class, &world, &plan).await?;
    for step in &plan.steps {
        let outcome = perform::perform(&ctx, &class, &desired, step).await;
        let key = step.key();
        match outcome {
            Ok(()) => ctx
                .classes
                .with(&desired.name, |memory| memory.troubles.succeeded(&key)),
            Err(failure) => return after_failure(&ctx, &desired, &key, failure),
        }
    }
    Ok(next(&ctx, &desired, &plan, written))
}

fn next(ctx: &Context, desired: &Desired, plan: &Plan, written: bool) -> Action {
    match plan.steps.first() {
        Some(Step::RemoveFinalizer) => {
            ctx.classes.forget(&desired.name);
            ctx.rollouts.forget(&desired.name);
            Action::await_change()
        }
        Some(Step::AddFinalizer) => Action::requeue(PATIENCE),
        _ if written => Action::requeue(WATCH),
        Some(_) => Action::requeue(Duration::ZERO),
        None => Action::requeue(
            plan.look_again
                .unwrap_or(ctx.settings.project_period)
                .min(ctx.settings.project_period),
        ),
    }
}

/// A failed request is remembered, and the next look says so; what Kubernetes refused goes to the error policy.
fn after_failure(
    ctx: &Context,
    desired: &Desired,
    key: &str,
    failure: Failure,
) -> Result<Action, Failure> {
    let now = Instant::now();
    match &failure {
        Failure::Budget(at) => Ok(Action::requeue(at.0.saturating_duration_since(now))),
        Failure::NotLeading => Ok(Action::requeue(PATIENCE)),
        Failure::Hetzner(_) => {
            let credentials = failure.of_credentials();
            let setback = Setback::from(failure);
            ctx.metrics.set_back("AgentClass", setback.reason);
            ctx.classes.with(&desired.name, |memory| {
                memory.troubles.failed(key, setback, credentials, now);
            });
            Ok(Action::requeue(Duration::ZERO))
        }
        Failure::Kubernetes(_) => Err(failure),
    }
}

/// Tells instances which firewall protects them in each project; those that waited for it are woken.
fn publish(ctx: &Context, desired: &Desired, plan: &Plan) {
    let mut news = false;
    for (project, firewall) in &plan.firewalls {
        let Some(Ok(connection)) = ctx.connections.get(project) else {
            continue;
        };
        news |= connection.update(|standing| {
            match firewall {
                Some(id) => standing
                    .firewalls
                    .insert(desired.name.clone(), (*id).into()),
                None => standing.firewalls.remove(&desired.name),
            };
        });
    }
    if news {
        for instance in ctx
            .stores
            .instances
            .state()
            .iter()
            .filter(|instance| instance.spec.class_name == desired.name)
        {
            ctx.wake.instance(
                &instance.namespace().unwrap_or_default(),
                &instance.name_any(),
            );
        }
    }
}

/// Writes the status if it says anything new, and tells transitions as events.
async fn report(
    ctx: &Context,
    class: &AgentClass,
    world: &World,
    plan: &Plan,
) -> Result<bool, Failure> {
    let former: &AgentClassStatus = &world.status;
    let next = status(world, plan, class.metadata.generation, Timestamp::now());
    let new = serde_json::json!(next);
    if !status_changed(&serde_json::json!(former), &new) || !ctx.leadership.holds() {
        return Ok(false);
    }
    let api: Api<AgentClass> = Api::all(ctx.clients.write.clone());
    let version = class.resource_version().unwrap_or_default();
    let applied = apply_status(&api, MANAGER, &class.name_any(), &version, new).await?;
    transitions::publish(
        &ctx.events,
        &class.object_ref(&()),
        &former.conditions,
        &next.conditions,
    );
    if observe::counts(former) != observe::counts(&next) {
        ctx.classes.with(&class.name_any(), |memory| {
            memory.counted_at = Some(Instant::now());
        });
    }
    Ok(applied.written)
}
