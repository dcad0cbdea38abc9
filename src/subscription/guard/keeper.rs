//! Keeps the guard's `ConfigMap`: reads what an earlier process remembered, and tells people what is held, once for all of it.
//!
//! Written only when there is something new to tell, and one write tells all that has come together.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        declaration::{is_termination_held, unentitled_since},
        observe::is_subscribed,
    },
    CREATIONS_HELD,
    deletions::{has_spoken, is_held, remembered, who},
    ledger::Page,
    report::{Cause, Held, Holds, Remembered, is_news, note_told, untold},
};
use crate::{
    api::{AgentInstance, ConditionType, Subscription},
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

/// Keeps it until `stop`, when it writes what is not written yet; polled only under the Lease (I11).
pub async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    let Some(mut written) = stop.run_until_cancelled(recall(&ctx)).await else {
        return;
    };
    while !stop.is_cancelled() {
        stop.run_until_cancelled(more_to_tell(&ctx)).await;
        if !ctx.stores.synced.is_cancelled() || !ctx.leadership.holds() {
            continue;
        }
        if let Err(error) = tell(&ctx, &mut written).await {
            let error = error_chain(&error);
            tracing::warn!(error, "what the guard holds is not written");
        }
    }
}

/// Waits until there may be something new, and for more that comes together.
async fn more_to_tell(ctx: &Context) {
    tokio::select! {
        () = ctx.guard.news() => {}
        () = tokio::time::sleep(ctx.settings.project_period) => {}
    }
    tokio::time::sleep(PAUSE).await;
}

/// Reads what was written before; until then no deletion that may be one of many is done.
async fn recall(ctx: &Context) -> Option<ConfigMap> {
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
    let data = found.as_ref().and_then(|found| found.data.as_ref());
    ctx.guard.recall(|page| data?.get(page.key()));
    found
}

/// Tells what is new, if anything is.
///
/// That an event was told is written after it: a crash in between tells it twice, and none is lost.
async fn tell(ctx: &Context, written: &mut Option<ConfigMap>) -> Result<(), CallError> {
    let now = Timestamp::now();
    let known = |page| (page, remembered(ctx, page, now).unwrap_or_default());
    let gone: Remembered = Page::ALL.map(known).into();
    let mut next = holds(ctx, &gone).data(&gone);
    let before = written.as_ref().and_then(|map| map.data.as_ref());
    let untold = untold(before, &mut next);
    if is_news(before, &next) {
        *written = Some(write(ctx, &next).await?);
    }
    let Some(map) = written else { return Ok(()) };
    let mut told = vec![];
    for cause in untold {
        if announce(ctx, map, cause).await {
            told.push(cause);
        }
    }
    if !told.is_empty() {
        note_told(&mut next, &told);
        *map = write(ctx, &next).await?;
    }
    Ok(())
}

/// What the instances, and the subscriptions without one, say of themselves.
pub fn holds(ctx: &Context, gone: &Remembered) -> Holds {
    let mut holds: BTreeMap<Cause, Held> = Cause::ALL.map(|cause| (cause, Held::default())).into();
    let instances = ctx.stores.instances.state();
    let subscriptions = ctx.stores.subscriptions.state();
    let sides = instances.iter().flat_map(|instance| sides(instance));
    for side in sides.chain(subscriptions.iter().map(|one| waiting(one))) {
        if let Some(held) = holds.get_mut(&side.cause) {
            held.of += usize::from(side.counts);
            held.agents.extend(side.held);
        }
    }
    let pages = [
        (Cause::Unentitled, Page::Ended),
        (Cause::Deleted, Page::Deleted),
    ];
    for (cause, page) in pages {
        if let (Some(held), Some(gone)) = (holds.get_mut(&cause), gone.get(&page)) {
            held.of += gone.len();
        }
    }
    Holds(holds)
}

/// What an object says of itself for one cause.
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

/// A subscription whose agent is not made since so many were.
fn waiting(subscription: &Subscription) -> Side {
    let status = subscription.status.as_ref();
    let conditions = status.into_iter().flat_map(|status| &status.conditions);
    let mut ready = conditions.filter(|told| told.type_ == ConditionType::Ready.as_str());
    let held = ready.find(|told| told.reason == CREATIONS_HELD);
    let lives = subscription.metadata.deletion_timestamp.is_none();
    let namespace = subscription.namespace().unwrap_or_default();
    let who = format!("{namespace}/{}", subscription.name_any());
    Side {
        cause: Cause::Made,
        counts: lives,
        held: held
            .filter(|_| lives)
            .map(|told| (told.last_transition_time.0, who)),
    }
}

async fn write(ctx: &Context, data: &Data) -> Result<ConfigMap, CallError> {
    let namespace = &ctx.settings.namespace;
    let api: Api<ConfigMap> = Api::namespaced(ctx.clients.write.clone(), namespace);
    let body = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": NAME}, "data": data,
    });
    let params = PatchParams::apply(MANAGER).force();
    let body = Patch::Apply(body);
    let written = call("PATCH configmaps guard", api.patch(NAME, &params, &body)).await?;
    Ok(ConfigMap {
        // What others may have put there is not ours.
        data: Some(data.clone()),
        ..written
    })
}

/// One event for all of them; answers whether it is written.
async fn announce(ctx: &Context, map: &ConfigMap, cause: Cause) -> bool {
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
    ctx.events.deliver(&map.object_ref(&()), event).await
}
