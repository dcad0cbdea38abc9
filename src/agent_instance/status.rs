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
    world::{InstallPhase, ServerView, World},
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
        config_revision: applied.as_ref().map(|(config, _)| config.clone()),
        secrets_tag: applied.map(|(_, tag)| tag),
    };
    for found in conditions(world, current, stage) {
        set_condition(&mut next.conditions, found, generation, now);
    }
    next
}

/// One word for people.
fn phase(stage: &Stage) -> &'static str {
    match stage {
        Stage::Waiting(..) => "Pending",
        Stage::Creating | Stage::Booting(_) | Stage::Installing(_) | Stage::Troubled(..) => {
            "Provisioning"
        }
        Stage::Configuring => "Configuring",
        Stage::Serving(_) => "Ready",
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
    let (reason, message) = words(stage);
    let serving = matches!(stage, Stage::Serving(_));
    let spoken = current.and_then(|server| world.spoken(server));
    let bootstrapped = current.is_some_and(|server| spoken.is_some() || installed(world, server));
    let step = |kind, done: bool, after: &str| match done {
        true => condition(kind, Some(true), after, ""),
        false => condition(kind, Some(false), reason, message.clone()),
    };
    [
        ready(world, spoken.is_some(), stage),
        step(ConditionType::ServerCreated, current.is_some(), "Created"),
        step(ConditionType::Bootstrapped, bootstrapped, "Installed"),
        step(ConditionType::Configured, serving, "Applied"),
        healthy(world, current, stage),
        up_to_date(stage),
        stalled(stage),
    ]
}

/// While a serving agent is given something new, it goes on being Ready: it was told nothing that takes its data away.
fn ready(world: &World, spoken: bool, stage: &Stage) -> Condition {
    let (reason, message) = words(stage);
    let was = is_true(&world.status.conditions, ConditionType::Ready);
    match stage {
        Stage::Serving(_) => condition(ConditionType::Ready, Some(true), "Serving", ""),
        Stage::Configuring if was && spoken => condition(
            ConditionType::Ready,
            Some(true),
            "Serving",
            "is given its new configuration",
        ),
        _ => condition(ConditionType::Ready, Some(false), reason, message),
    }
}

fn healthy(world: &World, current: Option<&ServerView>, stage: &Stage) -> Condition {
    let (reason, message) = words(stage);
    let was = is_true(&world.status.conditions, ConditionType::Healthy);
    let said = current.and_then(|server| {
        let configured = server
            .guest
            .configured
            .as_ref()
            .map(|configured| configured.outcome == Ok(true));
        configured.or_else(|| server.guest.hello.as_ref().map(|hello| hello.active))
    });
    match (stage, said) {
        (Stage::Serving(_), None | Some(true)) => {
            condition(ConditionType::Healthy, Some(true), "UnitActive", "")
        }
        (Stage::Serving(_), Some(false)) => condition(
            ConditionType::Healthy,
            Some(false),
            "UnitInactive",
            "the agent's unit is not active",
        ),
        (Stage::Configuring, _) if was => {
            condition(ConditionType::Healthy, Some(true), "UnitActive", "")
        }
        _ => condition(ConditionType::Healthy, Some(false), reason, message),
    }
}

fn up_to_date(stage: &Stage) -> Condition {
    match stage {
        Stage::Serving(None) => condition(ConditionType::UpToDate, Some(true), "AsDeclared", ""),
        Stage::Serving(Some((reason, message))) => condition(
            ConditionType::UpToDate,
            Some(false),
            reason,
            message.clone(),
        ),
        _ => {
            let (reason, message) = words(stage);
            condition(ConditionType::UpToDate, Some(false), reason, message)
        }
    }
}

fn stalled(stage: &Stage) -> Condition {
    let (reason, message) = words(stage);
    let stuck = matches!(
        stage,
        Stage::Stalled(..) | Stage::InstallFailed(_) | Stage::ConfigureFailed(..)
    );
    match stuck {
        true => condition(ConditionType::Stalled, Some(true), reason, message),
        false => condition(ConditionType::Stalled, Some(false), "Progressing", ""),
    }
}

fn installed(world: &World, server: &ServerView) -> bool {
    world.pinned(server).is_some()
        && server
            .guest
            .hello
            .as_ref()
            .is_some_and(|hello| hello.phase == InstallPhase::Done)
}

/// Reason and message of a stage.
pub fn words(stage: &Stage) -> (&str, String) {
    match stage {
        Stage::Waiting(reason, message)
        | Stage::Troubled(reason, message)
        | Stage::Stalled(reason, message)
        | Stage::Deleting(reason, message) => (reason, message.clone()),
        Stage::ConfigureFailed(reason, message) => (reason, message.clone()),
        Stage::Creating => ("Creating", "a server is being asked for".into()),
        Stage::Booting(message) => ("Booting", message.clone()),
        Stage::Installing(step) => ("Installing", format!("installs: {step}")),
        Stage::InstallFailed(message) => ("InstallFailed", message.clone()),
        Stage::Configuring => (
            "Configuring",
            "configuration and secrets are on their way".into(),
        ),
        Stage::Serving(_) => ("Serving", String::new()),
        Stage::Gone => ("Gone", "nothing of it is left".into()),
    }
}
