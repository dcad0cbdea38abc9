//! Keeps the guard's `ConfigMap`: reads what an earlier process remembered, and tells people what is held, once for all of it.
//!
//! Written only when there is something new to tell, and one write tells all that has come together.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Resource as _,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType},
};
use serde_json::json;

use super::{
    super::{
        declaration::{is_termination_held, unentitled_since},
        entitlement::earlier,
        observe::is_subscribed,
    },
    deletions::{has_spoken, is_held, who},
    report::{Cause, DELETED, Held, Holds, is_news},
};
use crate::{
    api::AgentInstance,
    context::Context,
    kube_ext::{CallError, call, error_chain},
};

/// Name of the `ConfigMap`, in the operator's namespace.
pub const NAME: &str = "agentfleet-guard";
/// The field manager of its data.
const MANAGER: &str = "agentfleet-guard";
/// How long is waited for more that comes together.
const PAUSE: Duration = Duration::from_secs(1);

type Data = BTreeMap<String, String>;

/// Keeps it for as long as it is polled, which must be only under the Lease (I11).
pub async fn run(ctx: Arc<Context>) {
    let mut written = recall(&ctx).await;
    loop {
        tokio::select! {
            () = ctx.guard.news() => {}
            () = tokio::time::sleep(ctx.settings.project_period) => {}
        }
        tokio::time::sleep(PAUSE).await;
        if !ctx.stores.synced.is_cancelled() || !ctx.leadership.holds() {
            continue;
        }
        match tell(&ctx, written.as_ref()).await {
            Ok(Some(data)) => written = Some(data),
            Ok(None) => {}
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(error, "what the guard holds is not written");
            }
        }
    }
}

/// Reads what was written before; until then no deletion that may be one of many is done.
async fn recall(ctx: &Context) -> Option<Data> {
    let api: Api<ConfigMap> = Api::namespaced(ctx.clients.read.clone(), &ctx.settings.namespace);
    let found = loop {
        match call("GET configmaps", api.get_opt(NAME)).await {
            Ok(found) => break found,
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(error, "what the guard held is not read");
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    let data = found.map(|found| found.data.unwrap_or_default());
    let deleted = data.as_ref().and_then(|data| data.get(DELETED));
    ctx.guard.recall(deleted.map_or("", String::as_str));
    data
}

/// Tells what is new, if anything is; answers what stands there then.
async fn tell(ctx: &Context, written: Option<&Data>) -> Result<Option<Data>, CallError> {
    let limits = &ctx.settings.subscriptions.guard;
    let window = limits.daily.window.max(limits.soon.window);
    let gone = ctx.guard.gone_since(earlier(Timestamp::now(), window));
    let gone = gone.unwrap_or_default();
    let holds = holds(ctx, gone.len());
    let next = holds.data(&gone);
    if !is_news(written, &next) {
        return Ok(None);
    }
    let map = write(ctx, &next).await?;
    for cause in Cause::ALL {
        let begins = next.contains_key(cause.key())
            && !written.is_some_and(|written| written.contains_key(cause.key()));
        if begins {
            announce(ctx, &map, cause);
        }
    }
    Ok(Some(next))
}

/// What the instances say of themselves.
pub fn holds(ctx: &Context, gone: usize) -> Holds {
    let mut holds: BTreeMap<Cause, Held> = Cause::ALL.map(|cause| (cause, Held::default())).into();
    for instance in ctx.stores.instances.state() {
        for side in sides(&instance) {
            if let Some(held) = holds.get_mut(&side.cause) {
                held.of += usize::from(side.counts);
                held.agents.extend(side.held);
            }
        }
    }
    if let Some(held) = holds.get_mut(&Cause::Deleted) {
        held.of += gone;
    }
    Holds(holds)
}

/// What an instance says of itself for one cause.
struct Side {
    cause: Cause,
    /// Whether it is one of those that are counted.
    counts: bool,
    /// Since when it is held, and how it is named.
    held: Option<(Timestamp, String)>,
}

fn sides(instance: &AgentInstance) -> [Side; 2] {
    let deleted = instance.metadata.deletion_timestamp.as_ref();
    let lost = unentitled_since(instance).filter(|_| is_termination_held(instance));
    let went = deleted.map(|at| at.0).filter(|_| is_held(instance));
    let status = instance.status.as_ref();
    let server = status.and_then(|status| status.server.as_ref());
    let server = server.map_or_else(String::new, |server| format!(" server {}", server.id));
    [
        Side {
            cause: Cause::Unentitled,
            counts: is_subscribed(instance) && deleted.is_none(),
            held: lost
                .filter(|_| deleted.is_none())
                .map(|at| (at, who(instance))),
        },
        Side {
            cause: Cause::Deleted,
            counts: has_spoken(instance),
            held: went.map(|at| (at, format!("{}{server}", who(instance)))),
        },
    ]
}

async fn write(ctx: &Context, data: &Data) -> Result<ConfigMap, CallError> {
    let namespace = &ctx.settings.namespace;
    let api: Api<ConfigMap> = Api::namespaced(ctx.clients.write.clone(), namespace);
    let body = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": NAME}, "data": data,
    });
    let params = PatchParams::apply(MANAGER).force();
    let body = Patch::Apply(body);
    call("PATCH configmaps guard", api.patch(NAME, &params, &body)).await
}

/// One event for all of them.
fn announce(ctx: &Context, map: &ConfigMap, cause: Cause) {
    let told = map.data.as_ref().and_then(|data| data.get(cause.key()));
    let first = told
        .and_then(|told| told.lines().next())
        .unwrap_or_default();
    tracing::error!(reason = cause.reason(), message = first, "held");
    let event = Event {
        type_: EventType::Warning,
        reason: cause.reason().into(),
        note: Some(format!("{first}\n{}", cause.advice())),
        action: "Hold".into(),
        secondary: None,
    };
    ctx.events.publish(&map.object_ref(&()), event);
}
