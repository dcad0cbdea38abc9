//! What an instance reports of itself: a pure function of the world and of what the plan found.
//!
//! A report can always be made anew, so nothing here decides anything. The write-ahead records are not touched: they have a field manager of
//! their own. Never `Ready` while the agent is not serving (I6), and a transition time moves only when the condition does.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::{
    plan::{DELETION_HELD, Stage},
    timings::timings,
    world::{ClassView, ServerView, World},
};
use crate::{
    api::{
        AgentInstanceStatus, ConditionType, HealthState, HealthStatus, ServerStatus, condition,
        is_true, set_condition,
    },
    rollout::words::{WENT_BACK, went_back},
};

/// What `Starting` says: nothing good was heard since a start, or since a silence.
const NOT_GOOD_YET: &str =
    "no health probe was good since the agent was started or could be reached again";

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
    let goes = matches!(stage, Stage::Deleting(..));
    // What was last known of a server that is out of sight stays known, and that its end takes all from it is no news.
    let kept = |known: &Option<String>| known.clone().filter(|_| current.is_none() || goes);
    let mut next = AgentInstanceStatus {
        phase: Some(phase(stage).into()),
        observed_generation: generation.max(former.observed_generation),
        conditions: former.conditions.clone(),
        incarnation: Some(i64::from(world.incarnation())),
        provisioning: former.provisioning.clone(),
        voice: former.voice.clone(),
        server: match (current, &former.server) {
            (Some(server), Some(told)) if goes && told.id == server.id => Some(told.clone()),
            (Some(server), _) => Some(server_status(world, server)),
            (None, told) => told.clone(),
        },
        health: health(world, current, matches!(stage, Stage::Serving(_)), now),
        heard: former.heard.clone(),
        rollbacks: former.rollbacks.clone(),
        recovery: former.recovery.clone(),
        boot_revision: current.map_or_else(
            || former.boot_revision.clone(),
            |server| server.boot_revision.clone(),
        ),
        config_revision: applied
            .as_ref()
            .map(|(config, _)| config.clone())
            .or_else(|| kept(&former.config_revision)),
        class_revision: class_revision(world, current, applied.as_ref()),
        good_revision: former.good_revision.clone(),
        refused_revision: refused_revision(world, current),
        secrets_tag: applied
            .map(|(_, tag)| tag)
            .or_else(|| kept(&former.secrets_tag)),
        notified: world
            .notices
            .told
            .clone()
            .or_else(|| former.notified.clone()),
        timings: vec![],
    };
    for found in conditions(world, current, stage) {
        set_condition(&mut next.conditions, found, generation, now);
    }
    let ready = is_true(&next.conditions, ConditionType::Ready);
    if ready && next.class_revision.is_some() {
        next.good_revision.clone_from(&next.class_revision);
    }
    next.timings = timings(world, current, ready, now);
    next
}

/// The revision of the class that was applied. What was applied before it got another one keeps its name, also while nobody has the voice.
fn class_revision(
    world: &World,
    current: Option<&ServerView>,
    applied: Option<&(String, String)>,
) -> Option<String> {
    let former = world.status.class_revision.clone();
    let Some(server) = current else {
        return former;
    };
    let told = world.status.server.as_ref();
    let is_same = told.is_some_and(|told| told.id == server.id);
    let silenced = is_same
        && world
            .voice()
            .is_some_and(|voice| voice.incarnation.is_none());
    let Some((config, _)) = applied else {
        return former.filter(|_| silenced);
    };
    // Of two revisions that differ in nothing else it has not the one that another server is prepared for.
    let awaits_next = former.is_some()
        && world.status.config_revision.as_ref() == Some(config)
        && world.awaits_next(server);
    match &world.class {
        ClassView::Usable(agent) if agent.config_revision == *config && !awaits_next => {
            Some(world.rollout.revision.clone()).filter(|revision| !revision.is_empty())
        }
        _ => former,
    }
}

/// The try of a revision that failed here, as long as it is the one that the class has.
fn refused_revision(world: &World, current: Option<&ServerView>) -> Option<String> {
    let refuses = current.is_some_and(|server| world.refuses(server));
    match &world.class {
        ClassView::Usable(_) if refuses => world.rollout.attempt.clone(),
        ClassView::Usable(_) => world.rollout.refused.clone(),
        _ => world.status.refused_revision.clone(),
    }
}

/// One word for people.
fn phase(stage: &Stage) -> &'static str {
    match stage {
        Stage::Waiting(..) | Stage::AsBefore => "Pending",
        Stage::Creating | Stage::Booting(_) | Stage::Installing | Stage::Troubled(..) => {
            "Provisioning"
        }
        Stage::Starting(_) => "Starting",
        Stage::Unhealthy(..) => "Unhealthy",
        Stage::Recovering(..) => "Recovering",
        Stage::RollingBack(_) => "RollingBack",
        Stage::Suspending(_) => "Suspending",
        Stage::Suspended(_) => "Suspended",
        Stage::Serving(_) => "Ready",
        Stage::Updating | Stage::Retyping(_) => "Updating",
        Stage::InstallFailed(_) | Stage::ConfigureFailed(..) | Stage::Stalled(..) => "Stalled",
        Stage::Deleting(DELETION_HELD, _) => DELETION_HELD,
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
        disk: Some(server.disk),
        created_at: server.created_at.map(Time),
        host_key: world
            .pinned(server)
            .map(str::to_owned)
            .or_else(|| server.guest.proven.clone()),
        silent_since_epoch: world.silent_since(server),
    }
}

/// What the probes say; as before while nobody probes, unless nobody could. What was said of another configuration, or by other probes than a revision has, is
/// not told of this one, unless it was found to serve without them.
fn health(
    world: &World,
    current: Option<&ServerView>,
    is_well: bool,
    now: Timestamp,
) -> Option<HealthStatus> {
    let server = current?;
    let former = match &world.class {
        ClassView::Usable(agent) if world.is_asked_anew(server, agent) => None,
        _ => world.status.health.clone(),
    };
    let former = former.filter(|_| is_well || world.is_told_of(server));
    let state = match (&server.guest.health, &world.class) {
        _ if server.address().is_none() && former.is_some() => HealthState::Unknown,
        (None, _) => return former,
        (Some(view), ClassView::Usable(agent)) if view.health != *world.probes(server, agent) => {
            return None;
        }
        (Some(view), _) if server.guest.is_of_before(view) => return former,
        (Some(view), _) => view.state?,
    };
    let since = Time(now);
    former
        .filter(|former| former.state == state)
        .or(Some(HealthStatus { state, since }))
}

fn conditions(world: &World, current: Option<&ServerView>, stage: &Stage) -> [Condition; 7] {
    use ConditionType::{Bootstrapped, Configured, Healthy, Ready, ServerCreated, Stalled};
    let serves = matches!(stage, Stage::Serving(_));
    let probed = matches!(
        stage,
        Stage::Starting(_) | Stage::Unhealthy(..) | Stage::Recovering(..)
    );
    let spoken = current.is_some_and(|server| world.spoken(server).is_some());
    let proven = current.is_some_and(|server| server_status(world, server).host_key.is_some());
    let unknown = current.is_some_and(|server| {
        let view = server.guest.health.as_ref();
        view.is_some_and(|view| view.state == Some(HealthState::Unknown))
    });
    let as_declared = (probed && spoken) || matches!(stage, Stage::Serving(None));
    [
        found(Ready, serves, "Serving", stage),
        found(ServerCreated, current.is_some(), "Created", stage),
        found(Bootstrapped, proven, "HostKeyProven", stage),
        found(Configured, (serves || probed) && spoken, "Applied", stage),
        match stage {
            // The way to the agent failed, not the agent.
            Stage::Unhealthy("Unreachable", message) => {
                condition(Healthy, None, "Unreachable", message.clone())
            }
            Stage::Recovering(_, message) if unknown => {
                condition(Healthy, None, "Unreachable", message.clone())
            }
            stage => found(Healthy, serves, "ProbeGood", stage),
        },
        up_to_date(world, current, stage, as_declared),
        match stage {
            Stage::Stalled(..) | Stage::InstallFailed(_) | Stage::ConfigureFailed(..) => {
                let (reason, message) = words(stage);
                condition(Stalled, Some(true), reason, message)
            }
            _ => condition(Stalled, Some(false), "NotStalled", ""),
        },
    ]
}

/// Why an instance went back is known only when it does, and stays told until another revision counts.
fn up_to_date(
    world: &World,
    current: Option<&ServerView>,
    stage: &Stage,
    as_declared: bool,
) -> Condition {
    use ConditionType::UpToDate;
    let former = world.status.conditions.iter().find(|told| {
        told.type_ == UpToDate.as_str() && told.reason == WENT_BACK && told.status == "False"
    });
    match (&world.rollout.why, former) {
        _ if current.is_some_and(|server| world.refuses(server)) => {
            let (share, (_, cause)) = (&world.rollout, words(stage));
            let good = share.former.as_deref().unwrap_or_default();
            let message = went_back(&share.revision, good, &cause);
            condition(UpToDate, Some(false), WENT_BACK, message)
        }
        (Some((WENT_BACK, _)), Some(former)) => former.clone(),
        (Some((reason, message)), _) if as_declared || *reason == WENT_BACK => {
            condition(UpToDate, Some(false), reason, message.clone())
        }
        _ if as_declared && let Some(misfit) = current.and_then(|server| world.misfit(server)) => {
            condition(UpToDate, Some(false), misfit.reason(), misfit.words())
        }
        _ => found(UpToDate, as_declared, "AsDeclared", stage),
    }
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

/// Reason and message of a stage.
pub fn words(stage: &Stage) -> (&str, String) {
    match stage {
        Stage::Waiting(reason, message)
        | Stage::Troubled(reason, message)
        | Stage::Stalled(reason, message)
        | Stage::Deleting(reason, message)
        | Stage::Unhealthy(reason, message)
        | Stage::Recovering(reason, message)
        | Stage::Serving(Some((reason, message))) => (reason, message.clone()),
        Stage::ConfigureFailed(reason, message) => (reason, message.clone()),
        Stage::Creating => ("Creating", "a server is being asked for".into()),
        Stage::Booting(message) => ("Booting", message.clone()),
        Stage::Installing => (
            "Installing",
            "the agent is being installed and given its secrets".into(),
        ),
        Stage::InstallFailed(message) => ("InstallFailed", message.clone()),
        Stage::RollingBack(message) => ("RollingBack", message.clone()),
        Stage::Suspending(message) => ("Suspending", message.clone()),
        Stage::Suspended(message) => ("Suspended", message.clone()),
        Stage::Retyping(message) => ("Retyping", message.clone()),
        Stage::Updating => (
            "Updating",
            "the agent is being given what has changed".into(),
        ),
        Stage::Starting(message) if message.is_empty() => ("Starting", NOT_GOOD_YET.into()),
        Stage::Starting(message) => ("Starting", format!("{NOT_GOOD_YET}: {message}")),
        Stage::Serving(None) => ("Serving", String::new()),
        Stage::AsBefore => ("NotSeenYet", "nothing is known yet".into()),
        Stage::Gone => ("Gone", "nothing of it is left".into()),
    }
}
