//! Gathers what the breaker decides by, from the stores, the inventories and the canary.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{Resource, ResourceExt as _};

use super::breaker::{ClassView, Count, Hold, Told, Verdict, View};
use crate::{
    api::{
        AgentClass, AgentInstance, AgentInstanceStatus, ConditionType, HealthState, HetznerProject,
        RELEASE_HOLD_ANNOTATION, is_true,
    },
    context::Context,
    inventory::Presence,
};

/// How much of an annotation's value is kept to know it again, in bytes.
const WORD: usize = 128;

/// A person's word that a hold shall end, as it is kept in the status once it was heard.
fn word<K: Resource>(object: &K) -> Option<String> {
    let word = object
        .meta()
        .annotations
        .as_ref()?
        .get(RELEASE_HOLD_ANNOTATION)?;
    Some(word[..word.floor_char_boundary(WORD)].to_owned())
}

/// Whether reboots and new servers for the agents of a class are held.
pub fn of_class(ctx: &Context, class: &AgentClass, now: Timestamp) -> Hold {
    let name = class.name_any();
    let status = class.status.as_ref();
    let told = Told::of(status.map_or(&[], |status| &status.conditions), now);
    let heard = status.and_then(|status| status.released_hold.as_ref());
    let word = word(class);
    let view = view(ctx, told, word.as_ref(), heard, now);
    let from = told.counts_from(view.window, now);
    let (mut own, mut fleet, mut serving) = (Count::default(), Count::default(), BTreeSet::new());
    for instance in ctx.stores.instances.state() {
        let Some(status) = living(&instance) else {
            continue;
        };
        let missing = is_missing(ctx, status);
        let fell = fell(status, missing, now).is_some_and(|at| at > from);
        let fell = usize::from(fell);
        let mine = usize::from(instance.spec.class_name == name);
        fleet.of += 1;
        fleet.fallen += fell;
        own.of += mine;
        own.fallen += fell * mine;
        if answers(status, missing) {
            serving.insert(instance.spec.class_name.clone());
        }
    }
    let canary = ctx.canaries.beside(&name, &serving, Instant::now());
    let verdict = view.of_class(&ClassView {
        class: &name,
        own,
        fleet,
        canary,
    });
    Hold { verdict, word }
}

/// Whether new servers for what vanished from a project are held (I9).
pub fn of_project(ctx: &Context, project: &HetznerProject, now: Timestamp) -> Hold {
    let name = project.name_any();
    let status = project.status.as_ref();
    let told = Told::of(status.map_or(&[], |status| &status.conditions), now);
    let heard = status.and_then(|status| status.released_hold.as_ref());
    let word = word(project);
    let view = view(ctx, told, word.as_ref(), heard, now);
    let from = told.counts_from(view.window, now);
    let Some(Ok(connection)) = ctx.connections.get(&name) else {
        let verdict = Verdict::AsTold;
        return Hold { verdict, word };
    };
    let snapshot = connection.inventory.snapshot();
    let ago = Duration::try_from(now.duration_since(from)).unwrap_or_default();
    let mut vanished = Count {
        of: 0,
        fallen: Instant::now()
            .checked_sub(ago)
            .map_or(0, |since| snapshot.vanished_since(since)),
    };
    for instance in ctx.stores.instances.state() {
        let Some(status) = living(&instance) else {
            continue;
        };
        let Some(server) = status
            .server
            .as_ref()
            .filter(|server| server.project == name)
        else {
            continue;
        };
        vanished.of += 1;
        // What was gone before this process began is in no store.
        let never_seen = connection.inventory.presence(server.id.into())
            == Presence::NotListed {
                since: None,
                confirmed: None,
            };
        if snapshot.first_list_done() && never_seen && down_since(status, now) > from {
            vanished.fallen += 1;
        }
    }
    let verdict = view.of_project(&name, vanished);
    Hold { verdict, word }
}

fn view(
    ctx: &Context,
    told: Told,
    word: Option<&String>,
    heard: Option<&String>,
    now: Timestamp,
) -> View {
    View {
        told,
        released: word.is_some_and(|word| heard != Some(word)),
        window: ctx.settings.recovery.window,
        now,
    }
}

/// What is told of an instance that has a server and shall keep it.
fn living(instance: &AgentInstance) -> Option<&AgentInstanceStatus> {
    let status = instance.status.as_ref()?;
    let lives = instance.metadata.deletion_timestamp.is_none() && status.server.is_some();
    lives.then_some(status)
}

/// When an agent fell that has not stood up since: what was tried meanwhile makes no new fall.
fn fell(status: &AgentInstanceStatus, missing: bool, now: Timestamp) -> Option<Timestamp> {
    (ails(status, now) || missing).then(|| down_since(status, now))
}

/// Whether an agent should answer as long as the way to it is good: the silence of a server that is gone says nothing of the way.
fn answers(status: &AgentInstanceStatus, missing: bool) -> bool {
    is_true(&status.conditions, ConditionType::Healthy) && !missing
}

/// Whether an agent fails, or has not served since it was tried to bring it back: while it starts again nothing is known of its health.
fn ails(status: &AgentInstanceStatus, now: Timestamp) -> bool {
    let state = status.health.as_ref().map(|health| health.state);
    let tried = status.recovery.last().map(|last| last.at.0);
    matches!(state, Some(HealthState::Failed | HealthState::Unknown))
        || tried >= Some(down_since(status, now))
}

/// Whether the server of an instance is gone, or no list shows it.
pub fn is_missing(ctx: &Context, status: &AgentInstanceStatus) -> bool {
    let Some(server) = &status.server else {
        return false;
    };
    let Some(Ok(connection)) = ctx.connections.get(&server.project) else {
        return false;
    };
    let presence = connection.inventory.presence(server.id.into());
    let unseen = matches!(
        presence,
        Presence::Gone
            | Presence::NotListed {
                confirmed: None,
                ..
            }
    );
    unseen && connection.inventory.last_list().is_some()
}

/// Since when an agent is not Ready; now if it is told to be.
fn down_since(status: &AgentInstanceStatus, now: Timestamp) -> Timestamp {
    let ready = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == ConditionType::Ready.as_str());
    ready
        .filter(|ready| ready.status != "True")
        .map_or(now, |ready| ready.last_transition_time.0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

    use super::*;
    use crate::api::{HealthStatus, RecoveryAction, RecoveryRecord, condition};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// What is told of an agent that is Ready, or not, since second 100.
    fn told(ready: bool, health: Option<HealthState>, tried: Option<i64>) -> AgentInstanceStatus {
        let mut ready = condition(ConditionType::Ready, Some(ready), "Any", "");
        ready.last_transition_time = Time(at(100));
        let since = Time(at(100));
        let try_at = |second| RecoveryRecord {
            action: RecoveryAction::Restart,
            at: MicroTime(at(second)),
            reason: String::new(),
        };
        AgentInstanceStatus {
            conditions: vec![ready],
            health: health.map(|state| HealthStatus { state, since }),
            recovery: tried.map(try_at).into_iter().collect(),
            ..AgentInstanceStatus::default()
        }
    }

    #[test]
    fn a_server_that_is_gone_is_no_canary_though_its_agent_is_still_told_to_be_healthy() {
        for (healthy, missing, expected) in [
            (true, false, true),
            (true, true, false),
            (false, false, false),
        ] {
            let mut status = told(healthy, None, None);
            let healthy = condition(ConditionType::Healthy, Some(healthy), "Any", "");
            status.conditions.push(healthy);
            assert_eq!(answers(&status, missing), expected);
        }
    }

    #[test]
    fn an_agent_that_is_started_again_has_not_stood_up_before_it_serves() {
        use HealthState::{Degraded, Failed, Healthy, Unknown};
        for (what, ready, health, tried, expected) in [
            ("it serves", true, Some(Healthy), None, false),
            ("it served again", true, Some(Healthy), Some(101), false),
            ("it may fall", true, Some(Degraded), None, false),
            ("it starts for the first time", false, None, None, false),
            ("it fell", false, Some(Failed), None, true),
            ("nobody knows", false, Some(Unknown), None, true),
            ("it is started again", false, None, Some(100), true),
            (
                "its try was for a former fall",
                false,
                None,
                Some(99),
                false,
            ),
        ] {
            let status = told(ready, health, tried);
            assert_eq!(ails(&status, at(200)), expected, "{what}");
        }
    }
}
