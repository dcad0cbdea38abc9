//! `HetznerProject`: one project at Hetzner, its token, its limits.
//!
//! ```text
//! Desired::parse → observe → plan → trust and status → perform → look again
//! ```
//! What the plan finds goes into the connection's standing first, so that no instance goes on in a project that is not believed any more (I9).

pub mod connection;
mod dependents;
pub mod desired;
mod firewall_list;
mod memory;
mod observe;
mod perform;
pub mod plan;
pub mod request;
pub mod retype;
pub mod room;
pub mod snapshots;
pub mod status;
pub mod step;
pub mod world;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Api, Resource as _, ResourceExt as _, runtime::controller::Action};

use self::{
    desired::Desired,
    observe::{Observed, observe},
    plan::{Plan, Trust, plan},
    request::Failure,
    status::status,
    step::Step,
};
use crate::{
    api::{HetznerProject, HetznerProjectStatus},
    context::Context,
    error::Setback,
    hetzner::SshKeyId,
    kube_ext::{apply_status, error_chain, status_changed},
    transitions,
};

/// The field manager of all that is not a write-ahead record.
const MANAGER: &str = "agentfleet";
/// How long the watch may take to show what was just written.
const WATCH: Duration = Duration::from_millis(200);
/// How long to wait after Kubernetes did not answer.
const KUBERNETES: Duration = Duration::from_secs(5);

/// Looks at a project once, and does what there is to do.
///
/// # Errors
/// When Kubernetes does not answer or the view is out of date; everything else is told in the status.
pub async fn reconcile(project: Arc<HetznerProject>, ctx: Arc<Context>) -> Result<Action, Failure> {
    if !ctx.stores.synced.is_cancelled() {
        return Ok(Action::requeue(WATCH));
    }
    let desired = Desired::parse(&project);
    let observed = observe(&ctx, &project, &desired).await?;
    let plan = plan(&desired, &observed.world);
    trust(&ctx, &desired, &observed, &plan);
    let takes_in_or_out = matches!(plan.steps.first(), Some(Step::AddFinalizer | Step::LetGo));
    let written = !takes_in_or_out && report(&ctx, &project, &observed, &plan).await?;
    for step in &plan.steps {
        match perform::perform(&ctx, &project, &desired, &observed, step).await {
            Ok(()) => {}
            Err(failure) => return after_failure(&ctx, &observed, step, failure),
        }
    }
    Ok(next(&ctx, &plan, written))
}

/// When to look again after an error of [`reconcile`].
pub fn error_policy<K>(_: Arc<K>, failure: &Failure, _: Arc<Context>) -> Action {
    if let Failure::Kubernetes(crate::kube_ext::CallError::Stale { .. }) = failure {
        return Action::requeue(WATCH);
    }
    tracing::warn!(error = error_chain(failure), "look again later");
    Action::requeue(KUBERNETES)
}

fn next(ctx: &Context, plan: &Plan, written: bool) -> Action {
    match plan.steps.first() {
        Some(Step::LetGo) => Action::await_change(),
        Some(Step::AddFinalizer) => Action::requeue(KUBERNETES),
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
    observed: &Observed,
    step: &Step,
    failure: Failure,
) -> Result<Action, Failure> {
    let now = std::time::Instant::now();
    match (&failure, &observed.connection) {
        (Failure::Budget(at), _) => Ok(Action::requeue(at.0.saturating_duration_since(now))),
        (Failure::NotLeading, _) => Ok(Action::requeue(KUBERNETES)),
        (Failure::Hetzner(_), Some(connection)) => {
            let credentials = failure.of_credentials();
            let setback = Setback::from(failure);
            ctx.metrics.set_back("HetznerProject", setback.reason);
            connection
                .memory()
                .troubles
                .failed(step.kind(), setback, credentials, now);
            Ok(Action::requeue(Duration::ZERO))
        }
        _ => Err(failure),
    }
}

/// Tells everybody what may be done in the project; whoever waited for it is woken.
fn trust(ctx: &Context, desired: &Desired, observed: &Observed, plan: &Plan) {
    let connections = &ctx.connections;
    let known = connections.get(&desired.name).and_then(Result::ok);
    let changed = match (&plan.trust, known) {
        (Trust::AsBefore, _) | (Trust::Granted { .. }, None) => false,
        (Trust::Refused(reason, message), Some(connection)) => connection.update(|standing| {
            standing.looked_at = true;
            standing.refused = Some((reason, message.clone()));
        }),
        (Trust::Refused(reason, message), None) => {
            let refusal = Err((*reason, message.clone()));
            let changed = connections.get(&desired.name).map(Result::err)
                != Some(refusal.as_ref().err().cloned());
            connections.put(&desired.name, refusal);
            changed
        }
        (Trust::Granted { key, creates_held }, Some(connection)) => {
            let seen = observed.world.seen.as_ref();
            let admin_keys = desired
                .ssh_keys
                .iter()
                .filter_map(|name| seen?.admin_keys.get(name)?.clone())
                .collect();
            connection.update(|standing| {
                standing.looked_at = true;
                standing.refused = None;
                standing.creates_held.clone_from(creates_held);
                standing.key = key.map(SshKeyId::from);
                standing.admin_keys = admin_keys;
                standing.max_servers = desired.max_servers;
            })
        }
    };
    if changed {
        dependents::wake(&ctx.stores, &ctx.wake, &desired.name, |_| true);
    }
}

/// Writes the status if it says anything new, and tells transitions as events.
async fn report(
    ctx: &Context,
    project: &HetznerProject,
    observed: &Observed,
    plan: &Plan,
) -> Result<bool, Failure> {
    let former: &HetznerProjectStatus = &observed.world.status;
    let next = status(
        &observed.world,
        plan,
        project.metadata.generation,
        Timestamp::now(),
    );
    let (old, new) = (serde_json::json!(former), serde_json::json!(next));
    if !status_changed(&old, &new) || !ctx.leadership.holds() {
        return Ok(false);
    }
    let api: Api<HetznerProject> = Api::all(ctx.clients.write.clone());
    let version = project.resource_version().unwrap_or_default();
    let applied = apply_status(&api, MANAGER, &project.name_any(), &version, new).await?;
    if let Some(connection) = &observed.connection
        && former.servers != next.servers
    {
        connection.memory().counted_at = Some(std::time::Instant::now());
    }
    transitions::publish(
        &ctx.events,
        &project.object_ref(&()),
        &former.conditions,
        &next.conditions,
    );
    Ok(applied.written)
}
