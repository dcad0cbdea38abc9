//! Carries out one step at the API server. A view that is out of date gets a 409 and not its way.

use jiff::Timestamp;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};

use super::{
    declaration::{Declaration, MANAGER, Target},
    observe::made_today,
};
use crate::{
    api::{AgentInstance, Subscription},
    context::Context,
    error::Setback,
    kube_ext::{CallError, call},
};

/// A version that no object has: applied with it, an object is made, and one that somebody else has just made is not merged with.
const NOT_THERE: &str = "1";

/// Makes an instance.
///
/// # Errors
/// When the API server did not do it, or the name is taken, which the next look tells.
pub async fn create(
    ctx: &Context,
    (namespace, name): (&str, &str),
    declaration: &Declaration,
) -> Result<(), Setback> {
    let api = instances(ctx, namespace)?;
    may_make(ctx, &format!("{namespace}/{name}"))?;
    let mut body = declaration.body(namespace, name, None);
    body["metadata"]["resourceVersion"] = NOT_THERE.into();
    let params = PatchParams::apply(MANAGER);
    let body = Patch::Apply(body);
    let request = api.patch(name, &params, &body);
    call("PATCH agentinstances create", request).await?;
    Ok(())
}

/// Asked once more where it is done: many are planned at the same time, and no store shows yet what others have just made.
fn may_make(ctx: &Context, who: &str) -> Result<(), Setback> {
    if !ctx.guard.is_read() {
        let message = "what was made today is not read yet";
        return Err(Setback::until("StaleView", message, super::WATCH));
    }
    let now = Timestamp::now();
    let (today, limits) = (made_today(ctx, now), ctx.settings.subscriptions.guard);
    if ctx.guard.may_make(who, &today, limits.creations, now) {
        Ok(())
    } else {
        let (reason, message) = limits.creations_held(today.len());
        Err(Setback::until(reason, message, ctx.settings.project_period))
    }
}

/// Declares something of an instance.
///
/// # Errors
/// When the API server did not do it.
pub async fn declare(
    ctx: &Context,
    (namespace, name): (&str, &str),
    declaration: &Declaration,
    target: &Target,
) -> Result<(), Setback> {
    let api = instances(ctx, namespace)?;
    let body = declaration.body(namespace, name, Some(target));
    let params = PatchParams::apply(MANAGER).force();
    let body = Patch::Apply(body);
    let request = api.patch(name, &params, &body);
    call("PATCH agentinstances declare", request).await?;
    if declaration.held {
        ctx.guard.has_news();
    }
    Ok(())
}

/// Deletes an instance, after its subscription was read anew: `seen` is what this was planned for, none where there was none.
///
/// # Errors
/// When the subscription, or the instance, is not what was seen any more, or the API server did not do it.
pub async fn terminate(
    ctx: &Context,
    (namespace, name): (&str, &str),
    seen: Option<&Subscription>,
    target: &Target,
) -> Result<(), Setback> {
    let subscriptions: Api<Subscription> = Api::namespaced(ctx.clients.read.clone(), namespace);
    let now = call("GET subscriptions", subscriptions.get_metadata_opt(name)).await?;
    let planned = seen.map(|seen| (seen.uid(), seen.metadata.generation));
    let found = now.map(|now| (now.uid(), now.metadata.generation));
    if planned != found {
        let message = format!("Subscription {name} is not what it was when this was planned");
        return Err(Setback::until("StaleView", message, super::WATCH));
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(target.uid.clone()),
            resource_version: Some(target.version.clone()),
        }),
        ..DeleteParams::default()
    };
    let api = instances(ctx, namespace)?;
    match call("DELETE agentinstances", api.delete(name, &params)).await {
        Ok(_) | Err(CallError::Gone { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Instances of a namespace, if this process may change them (I11).
fn instances(ctx: &Context, namespace: &str) -> Result<Api<AgentInstance>, Setback> {
    if ctx.leadership.holds() {
        Ok(Api::namespaced(ctx.clients.write.clone(), namespace))
    } else {
        Err(Setback::not_leading())
    }
}
