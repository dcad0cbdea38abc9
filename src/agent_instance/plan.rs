//! What to do next: one pure function from what is wanted and what is to a few steps.
//!
//! Read it top to bottom, the first line that applies decides. Steps of one plan need no output of one another; whatever depends on their
//! outcome waits for the next look. The rules that must never break are in the invariants of the crate documentation; the places that keep
//! them say so.

use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

use super::{
    desired::{Agent, Desired, Identity, Want},
    step::Step,
    world::{
        Attempt, ClassView, ConfigureFailure, Configured, ContactProblem, Cure, Hello,
        InstallPhase, Known, Power, ProjectView, SecretsView, SendOutcome, ServerView, Trouble,
        Upgrade, World,
    },
};
use crate::api::{Bootstrap, Disk, HealthState, ProvisioningRecord, ServerStatus, VoiceRecord};
use crate::hetzner::Place;
use crate::notification::event::Event;

mod creation;
use creation::server_lost;
mod health;
mod hold;
pub use hold::DELETION_HELD;
#[cfg(test)]
mod model;
mod notice;
mod orders;
mod recovery;
mod removal;
mod replacement;
mod restoration;
mod retention;
mod retype;
mod rollback;
mod serving;
mod suspension;
#[cfg(test)]
mod tests;

/// How long a person's hand is awaited before something that only a person can change is looked at again.
const SLOW: Duration = Duration::from_mins(10);
/// How long to wait before a server that should answer is tried again.
const CONTACT: Duration = Duration::from_secs(15);

/// One lost request is no news.
const TOLD_FROM: u32 = 2;

/// What to do next, and what it means.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Effects, in order; the first that fails ends the round.
    pub steps: Vec<Step>,
    /// Where the instance stands, for its status.
    pub stage: Stage,
    /// When to look again if nothing happens before; none: an event will come.
    pub look_again: Option<Timestamp>,
    /// What is told outside, beside the steps.
    pub notice: Option<Box<Event>>,
}

/// Where an instance stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing is known yet, so nothing is said.
    AsBefore,
    /// Something that a server needs is missing: reason and message.
    Waiting(&'static str, String),
    /// A server is being asked for.
    Creating,
    /// The server exists, its guest has not answered yet: message.
    Booting(String),
    /// Its host key is proven; the agent is being installed and given its secrets.
    Installing,
    /// The installation failed: the step and its last lines.
    InstallFailed(String),
    /// The agent is being given what has changed, and may be started again for it.
    Updating,
    /// Its server is given another type: message.
    Retyping(String),
    /// The guest refused them, or the agent did not start: reason and message.
    ConfigureFailed(String, String),
    /// Everything is given to the agent, and no probe was good yet: what the last one said.
    Starting(String),
    /// The probes fail, and nothing is done about it: reason and what the last one said.
    Unhealthy(&'static str, String),
    /// Its creation failed, and that is undone: message.
    RollingBack(String),
    /// Something was done for an agent that failed, and it has not served since: reason and message.
    Recovering(&'static str, String),
    /// The agent serves. None: as declared; else why the declared configuration cannot be applied, or why only a new server could.
    Serving(Option<(&'static str, String)>),
    /// It shall not run, and that is being brought about: message.
    Suspending(String),
    /// It shall not run, and does not: message.
    Suspended(String),
    /// The last step failed and is tried again: reason and message.
    Troubled(&'static str, String),
    /// Only a person can help: reason and message.
    Stalled(&'static str, String),
    /// Being deleted: reason and message.
    Deleting(&'static str, String),
    /// Nothing of it is left.
    Gone,
}

impl Plan {
    fn act(step: Step, stage: Stage) -> Self {
        Self {
            steps: vec![step],
            stage,
            look_again: None,
            notice: None,
        }
    }

    fn wait(stage: Stage) -> Self {
        Self {
            steps: vec![],
            stage,
            look_again: None,
            notice: None,
        }
    }

    fn until(mut self, at: Timestamp) -> Self {
        self.look_again = Some(self.look_again.map_or(at, |sooner| sooner.min(at)));
        self
    }

    /// The same plan, told as part of a deletion.
    fn told_as_deletion(self) -> Self {
        let stage = match self.stage {
            Stage::Waiting(reason, message)
            | Stage::Troubled(reason, message)
            | Stage::Stalled(reason, message) => Stage::Deleting(reason, message),
            stage => stage,
        };
        Self { stage, ..self }
    }

    /// Whether it does anything, and not what may end the pause.
    fn can_be_held(&self) -> bool {
        !matches!(self.steps[..], [] | [Step::Hear(_)])
    }

    /// Nothing is done before the pause after a failure is over.
    fn held(self, trouble: &Trouble) -> Self {
        let stage = match self.stage {
            stage @ (Stage::Starting(_)
            | Stage::Unhealthy(..)
            | Stage::AsBefore
            | Stage::Serving(_)
            | Stage::Suspended(_)
            | Stage::Stalled(..)) => stage,
            Stage::Deleting(..) => Stage::Deleting(trouble.reason, trouble.message.clone()),
            stage if trouble.times < TOLD_FROM && !trouble.stalled => stage,
            _ if trouble.stalled => Stage::Stalled(trouble.reason, trouble.message.clone()),
            _ => Stage::Troubled(trouble.reason, trouble.message.clone()),
        };
        Self::wait(stage).until(trouble.until)
    }
}

/// Decides what to do next for one instance.
pub fn plan(desired: &Desired, world: &World, fleet: &str, now: Timestamp) -> Plan {
    let look = Look {
        world,
        identity: desired.identity(),
        want: desired.want(),
        fleet,
        now,
    };
    let plan = match desired {
        Desired::Absent(_) => look.absent().told_as_deletion(),
        Desired::Retained(_) => look.retained().told_as_deletion(),
        Desired::Present(_, want) => look.told_as_recovery(look.present(want)),
    };
    let plan = match &world.trouble {
        Some(trouble) if trouble.until > now && plan.can_be_held() => plan.held(trouble),
        _ => plan,
    };
    look.with_notice(plan)
}

/// One look at one instance.
struct Look<'a> {
    world: &'a World,
    identity: &'a Identity,
    want: Option<&'a Want>,
    fleet: &'a str,
    now: Timestamp,
}

impl Look<'_> {
    fn present(&self, want: &Want) -> Plan {
        if !self.world.finalizer {
            return Plan::act(Step::AddFinalizer, Stage::Creating);
        }
        if let Some(stranger) = self.strangers().next() {
            return self.adoption(stranger, want);
        }
        let plan = match self.current() {
            Ok(Some(server)) => self.server(server),
            Ok(None) => self.no_server(),
            Err(plan) => plan,
        };
        // What a person asked for is written down before anything is done about it, and changes nothing by itself.
        match self.unheard(want) {
            Some(orders) => Plan {
                steps: vec![Step::Hear(orders)],
                ..plan
            },
            None => plan,
        }
    }

    /// Whether a project may be believed and changed (I9); if not, reason and message.
    fn usable(&self, project: &str) -> Result<(), (&'static str, String)> {
        match self.world.project(project) {
            None => Err((
                "ProjectMissing",
                format!("HetznerProject {project} does not exist"),
            )),
            Some(ProjectView {
                unusable: Some((reason, message)),
                ..
            }) => Err((*reason, format!("project {project}: {message}"))),
            Some(ProjectView { synced: false, .. }) => Err((
                "ProjectNotListed",
                format!("the servers of project {project} are not listed yet"),
            )),
            Some(_) => Ok(()),
        }
    }

    fn class(&self) -> Result<&Agent, (&'static str, String)> {
        match &self.world.class {
            ClassView::Usable(agent) => Ok(agent),
            ClassView::Refused(reason, message) => Err((*reason, message.clone())),
            ClassView::Unknown => Err(("ClassUnread", "the class was not read yet".into())),
        }
    }

    /// One request to a project, if that may be believed and changed; else the reason why not.
    fn at_hetzner(&self, project: &str, step: Step, stage: Stage) -> Plan {
        match self.usable(project) {
            Ok(()) => Plan::act(step, stage),
            Err((reason, message)) => Plan::wait(Stage::Waiting(reason, message)),
        }
    }

    /// A list alone is never believed: what should live is gone only when a GET by id says so (I9).
    fn confirm_gone(&self, project: &str, id: i64) -> Plan {
        let stage = Stage::Troubled(
            "ServerNotListed",
            format!("server {id} is not in the list of project {project}"),
        );
        self.at_hetzner(
            project,
            Step::ConfirmGone {
                project: project.into(),
                id,
            },
            stage,
        )
    }

    /// Servers of our fleet, namespace and name that belong to another object: perhaps another customer's disk.
    fn strangers(&self) -> impl Iterator<Item = &ServerView> {
        self.world
            .servers
            .iter()
            .filter(|server| server.uid != self.identity.uid)
    }

    fn own(&self) -> impl Iterator<Item = &ServerView> {
        self.world.own(&self.identity.uid)
    }

    /// A server of the same namespace and name but another object blocks everything until a person says which (I9, I12).
    fn adoption(&self, stranger: &ServerView, want: &Want) -> Plan {
        if want.adopt == Some(stranger.id) {
            return Plan::act(
                self.take_up(stranger),
                Stage::Booting(format!("takes up server {}", stranger.id)),
            );
        }
        Plan::wait(Stage::Stalled(
            "AdoptOrDelete",
            format!(
                "server {} ({}) in project {} carries this namespace and name but belongs to an earlier object; to take it up, an admin sets the \
             annotation agentfleet.dev/adopt: \"{}\"; or delete that server",
                stranger.id, stranger.name, stranger.project, stranger.id
            ),
        ))
    }

    fn take_up(&self, stranger: &ServerView) -> Step {
        Step::TakeUp {
            project: stranger.project.clone(),
            id: stranger.id,
            uid: self.identity.uid.clone(),
        }
    }

    /// The server that is, or is to become, the agent (I12, I13).
    ///
    /// While the record of the voice explains all servers that there are, it is the one in front. Otherwise every server is asked, and the armed one
    /// with the highest epoch is the agent.
    fn current(&self) -> Result<Option<&ServerView>, Plan> {
        let Some(front) = self.world.front(&self.identity.uid) else {
            return Ok(None);
        };
        if let Some(plan) = self.holder_out_of_sight(front) {
            return Err(plan);
        }
        if self.is_explained(front) {
            return Ok(Some(front));
        }
        if let Some(unasked) = self.own().find(|server| server.guest.hello.is_none()) {
            return Err(self.contact(unasked, "must say whether it is the agent"));
        }
        let armed = self
            .own()
            .filter(|server| armed_here(server))
            .max_by_key(|server| server.guest.hello.as_ref().map(|hello| hello.epoch));
        Ok(Some(armed.unwrap_or(front)))
    }

    /// Whether what is written down tells what each server is: nobody above the last that was announced, nobody who says that he was given the
    /// voice later.
    fn is_explained(&self, front: &ServerView) -> bool {
        let Some(voice) = self.world.voice() else {
            return self.own().count() == 1;
        };
        let announced = self.world.record().map_or(0, |record| record.incarnation);
        let holder = self.world.voice_holder();
        let in_place = holder.is_none_or(|holder| {
            holder == front.incarnation || (holder < front.incarnation && self.own().count() == 1)
        });
        let contradicts = |server: &ServerView| {
            let hello = server.guest.hello.as_ref();
            let above = i64::from(server.incarnation) > announced.max(i64::from(front.incarnation));
            above || (armed_here(server) && hello.is_some_and(|hello| hello.epoch > voice.epoch))
        };
        in_place
            && !self
                .own()
                .any(|server| server.id != front.id && contradicts(server))
    }

    /// While the server that spoke last is not surely gone, no other one may speak.
    fn holder_out_of_sight(&self, front: &ServerView) -> Option<Plan> {
        let told = self.world.status.server.as_ref()?;
        if told.id == front.id || self.own().any(|server| server.id == told.id) {
            return None;
        }
        match self.world.known {
            Known::Unseen => Some(self.unseen(told)),
            Known::Relabelled => Some(Plan::wait(Stage::Stalled(
                "LabelsChanged",
                relabelled(told),
            ))),
            Known::Gone if !self.is_restored(front) => {
                let lost = self.world.lost_disk();
                lost.map(|lost| Plan::wait(server_lost(&lost, "")))
            }
            Known::Present | Known::Gone => None,
        }
    }
}

fn armed_here(server: &ServerView) -> bool {
    matches!(&server.guest.hello, Some(Hello { armed: Some(incarnation), .. }) if *incarnation == server.incarnation)
}

fn delete(server: &ServerView) -> Step {
    Step::DeleteServer {
        project: server.project.clone(),
        id: server.id,
    }
}

fn relabelled(server: &ServerStatus) -> String {
    format!(
        "server {} in project {} no longer carries this instance's labels; put them back, or delete the server at Hetzner",
        server.id, server.project
    )
}
