//! What an instance reports of itself: a pure function of the world and of what the plan found.
//!
//! A report can always be made anew, so nothing here decides anything. The write-ahead records are not touched: they have a field manager of
//! their own. Never `Ready` while the agent is not serving (I6), and a transition time moves only when the condition does.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::{
    plan::Stage,
    timings::timings,
    world::{ServerView, World},
};
use crate::api::{
    AgentInstanceStatus, ConditionType, ServerStatus, condition, is_true, set_condition,
};

/// The status to be, records left as they are.
pub fn status(
    world: &World,
    current: Option<&ServerView>,
    stage: &Stage,
    generation: Option<i64>,
    now: Timestamp,
) -> AgentInstanceStatus {
    let former = &world.status;
    let applied = current.and_then(|server| world.applied(server));
    // What was last known of a server that is out of sight stays known.
    let kept = |known: &Option<String>| known.clone().filter(|_| current.is_none());
    let mut next = AgentInstanceStatus {
        phase: Some(phase(stage).into()),
        observed_generation: generation.max(former.observed_generation),
        conditions: former.conditions.clone(),
        incarnation: Some(i64::from(world.incarnation())),
        provisioning: former.provisioning.clone(),
        voice: former.voice.clone(),
        server: current
            .map(|server| server_status(world, server))
            .or_else(|| former.server.clone()),
        boot_revision: current.map_or_else(
            || former.boot_revision.clone(),
            |server| server.boot_revision.clone(),
        ),
        config_revision: applied
            .as_ref()
            .map(|(config, _)| config.clone())
            .or_else(|| kept(&former.config_revision)),
        secrets_tag: applied
            .map(|(_, tag)| tag)
            .or_else(|| kept(&former.secrets_tag)),
        timings: vec![],
    };
    for found in conditions(world, current, stage) {
        set_condition(&mut next.conditions, found, generation, now);
    }
    let ready = is_true(&next.conditions, ConditionType::Ready);
    next.timings = timings(world, current, ready, now);
    next
}

/// One word for people.
fn phase(stage: &Stage) -> &'static str {
    match stage {
        Stage::Waiting(..) | Stage::AsBefore => "Pending",
        Stage::Creating | Stage::Booting(_) | Stage::Installing | Stage::Troubled(..) => {
            "Provisioning"
        }
        Stage::Serving(_) => "Ready",
        Stage::Updating => "Updating",
        Stage::InstallFailed(_) | Stage::ConfigureFailed(..) | Stage::Stalled(..) => "Stalled",
        Stage::Deleting(..) | Stage::Gone => "Deleting",
    }
}

fn server_status(world: &World, server: &ServerView) -> ServerStatus {
    ServerStatus {
        project: server.project.clone(),
        id: server.id,
        name: server.name.clone(),
        incarnation: i64::from(server.incarnation),
        ipv4: server.ipv4.clone(),
        ipv6: server.ipv6.clone(),
        server_type: Some(server.server_type.clone()),
        location: Some(server.location.clone()),
        created_at: server.created_at.map(Time),
        host_key: world
            .pinned(server)
            .map(str::to_owned)
            .or_else(|| server.guest.proven.clone()),
    }
}

fn conditions(world: &World, current: Option<&ServerView>, stage: &Stage) -> [Condition; 7] {
    use ConditionType::{
        Bootstrapped, Configured, Healthy, Ready, ServerCreated, Stalled, UpToDate,
    };
    let serves = matches!(stage, Stage::Serving(_));
    let active = serves && current.and_then(active).unwrap_or(true);
    let spoken = current.is_some_and(|server| world.spoken(server).is_some());
    let proven = current.is_some_and(|server| server_status(world, server).host_key.is_some());
    let current_as_declared = matches!(stage, Stage::Serving(None));
    [
        found(Ready, active, "Serving", stage),
        found(ServerCreated, current.is_some(), "Created", stage),
        found(Bootstrapped, proven, "HostKeyProven", stage),
        found(Configured, serves && spoken, "Applied", stage),
        found(Healthy, active, "UnitActive", stage),
        found(UpToDate, current_as_declared, "AsDeclared", stage),
        match stage {
            Stage::Stalled(..) | Stage::InstallFailed(_) | Stage::ConfigureFailed(..) => {
                let (reason, message) = words(stage);
                condition(Stalled, Some(true), reason, message)
            }
            _ => condition(Stalled, Some(false), "NotStalled", ""),
        },
    ]
}

/// True for the given reason, or else false for the stage's own.
fn found(kind: ConditionType, holds: bool, because: &str, stage: &Stage) -> Condition {
    let (reason, message) = words(stage);
    if holds {
        condition(kind, Some(true), because, "")
    } else {
        condition(kind, Some(false), reason, message)
    }
}

/// Whether the agent's unit is active, by the guest's last word.
fn active(server: &ServerView) -> Option<bool> {
    let configured = server.guest.configured.as_ref();
    let said = || server.guest.hello.as_ref().map(|hello| hello.active);
    configured
        .map(|configured| configured.outcome == Ok(true))
        .or_else(said)
}

/// Reason and message of a stage.
pub fn words(stage: &Stage) -> (&str, String) {
    match stage {
        Stage::Waiting(reason, message)
        | Stage::Troubled(reason, message)
        | Stage::Stalled(reason, message)
        | Stage::Deleting(reason, message)
        | Stage::Serving(Some((reason, message))) => (reason, message.clone()),
        Stage::ConfigureFailed(reason, message) => (reason, message.clone()),
        Stage::Creating => ("Creating", "a server is being asked for".into()),
        Stage::Booting(message) => ("Booting", message.clone()),
        Stage::Installing => (
            "Installing",
            "the agent is being installed and given its secrets".into(),
        ),
        Stage::InstallFailed(message) => ("InstallFailed", message.clone()),
        Stage::Updating => (
            "Updating",
            "the agent is being given what has changed".into(),
        ),
        Stage::Serving(None) => ("UnitInactive", "the agent's unit is not active".into()),
        Stage::AsBefore => ("NotSeenYet", "nothing is known yet".into()),
        Stage::Gone => ("Gone", "nothing of it is left".into()),
    }
}
