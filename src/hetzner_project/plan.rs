//! What to do next for a project: one pure function.
//!
//! Read it top to bottom, the first line that applies decides. The rule behind most lines is I9: a token is believed only while the project
//! shows the SSH key that was first seen there, or a server that we know; until then nothing is created, replaced or deleted.

use std::time::Duration;

use super::{
    connection::Refusal,
    desired::Desired,
    step::Step,
    world::{KeyView, Seen, Token, World},
};

mod footing;
mod furnishing;
mod removal;
#[cfg(test)]
mod tests;

/// What the holder label says when two operators act in one project.
pub const CONFLICT: &str = "conflict";
/// One lost request is no news.
const TOLD_FROM: u32 = 2;

/// What to do next, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Effects, in order; the first that fails ends the round.
    pub steps: Vec<Step>,
    /// Where the project stands, for its status.
    pub stage: Stage,
    /// What others may do in the project.
    pub trust: Trust,
    /// The identity that the status shall name.
    pub identity: Option<i64>,
    /// When to look again at the latest; none: as usual.
    pub look_again: Option<Duration>,
}

/// Where a project stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing new is known yet: what.
    Checking(&'static str),
    /// There is no token, or not of this project.
    Unusable(&'static str, String),
    /// The token is right, but nothing may be changed.
    Blocked(&'static str, String),
    /// Servers live on, none is created.
    Incomplete(&'static str, String),
    /// Hetzner or Kubernetes does not answer.
    Troubled(&'static str, String),
    /// All is well.
    Usable,
    /// Being deleted.
    Deleting(&'static str, String),
    /// Nothing of ours is left.
    Gone,
}

/// What others may do in a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// What they might before.
    AsBefore,
    /// Nothing: why.
    Refused(&'static str, String),
    /// Everything, except what is held.
    Granted {
        /// The key that servers are created with.
        key: Option<i64>,
        /// Why no server may be created.
        creates_held: Option<Refusal>,
    },
}

/// What shows that this is the project that was first seen.
enum Footing<'a> {
    /// Our key.
    Key(&'a KeyView),
    /// A server of ours; our key is not there.
    Server,
    /// Nothing, and nothing is missed.
    New,
}

/// Decides what to do next for one project.
pub fn plan(desired: &Desired, world: &World) -> Plan {
    let look = Look { desired, world };
    let plan = if desired.absent {
        look.absent()
    } else {
        look.present()
    };
    let plan = match &world.seen {
        Some(seen) => Look::paced(plan, seen).looking_again(seen.counts_wait),
        None => plan,
    };
    if desired.absent {
        plan.told_as_deletion()
    } else {
        plan
    }
}

impl Plan {
    fn told_as_deletion(mut self) -> Self {
        self.stage = match self.stage {
            Stage::Unusable(reason, message)
            | Stage::Blocked(reason, message)
            | Stage::Incomplete(reason, message)
            | Stage::Troubled(reason, message) => Stage::Deleting(reason, message),
            Stage::Checking(what) => Stage::Deleting("Checking", what.into()),
            Stage::Usable => Stage::Deleting("Deleting", "what is left of it is removed".into()),
            stage @ (Stage::Deleting(..) | Stage::Gone) => stage,
        };
        self
    }

    fn looking_again(mut self, wait: Option<Duration>) -> Self {
        self.look_again = self.look_again.into_iter().chain(wait).min();
        self
    }

    fn trusting(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    fn refused(self) -> Self {
        let trust = match &self.stage {
            Stage::Unusable(reason, message) | Stage::Blocked(reason, message) => {
                Trust::Refused(reason, message.clone())
            }
            _ => Trust::AsBefore,
        };
        self.trusting(trust)
    }
}

/// One look at one project.
struct Look<'a> {
    desired: &'a Desired,
    world: &'a World,
}

impl Look<'_> {
    fn act(&self, step: Step, stage: Stage) -> Plan {
        Plan {
            steps: vec![step],
            ..self.wait(stage)
        }
    }

    fn wait(&self, stage: Stage) -> Plan {
        Plan {
            steps: vec![],
            stage,
            trust: Trust::AsBefore,
            identity: self.world.status.identity,
            look_again: None,
        }
    }

    fn present(&self) -> Plan {
        if !self.world.finalizer {
            return self.act(Step::AddFinalizer, Stage::Checking("is taken in"));
        }
        if let Some(stage) = self.no_token() {
            return self.wait(stage).refused();
        }
        if matches!(
            self.world.token,
            Token::Present {
                held: false,
                deleting: false,
                ..
            }
        ) {
            return self.act(Step::HoldSecret, Stage::Checking("keeps its token"));
        }
        let Some(seen) = &self.world.seen else {
            return self.act(Step::Connect, Stage::Checking("connects"));
        };
        match self.footing(seen) {
            Ok(Footing::Key(key)) => self.owned(seen, key),
            Ok(Footing::Server | Footing::New) => self.create_key(seen),
            Err(plan) => *plan,
        }
    }

    /// The whole way back: first whatever the project needs to be trusted, so that instances can delete their servers, then what is left.
    fn absent(&self) -> Plan {
        if !self.world.finalizer {
            return self.wait(Stage::Gone);
        }
        if let Some(stage) = self.no_token() {
            return self.without_token(stage);
        }
        let Some(seen) = &self.world.seen else {
            return self.act(Step::Connect, Stage::Checking("connects"));
        };
        // Another object goes on caring for the project.
        if self.twin(seen).is_some() {
            return self.act(Step::LetGo, Stage::Gone);
        }
        match self.footing(seen) {
            Ok(Footing::Key(key)) => self
                .holder(seen, key)
                .unwrap_or_else(|| self.leave(seen, Some(key))),
            Ok(Footing::Server | Footing::New) => self.leave(seen, None),
            Err(plan) => *plan,
        }
    }

    fn no_token(&self) -> Option<Stage> {
        let (secret, key) = (self.desired.secret(), &self.desired.token.key);
        let (reason, message) = match &self.world.token {
            Token::Present { .. } => return None,
            Token::SecretMissing => (
                "SecretMissing",
                format!(
                    "there is no Secret {secret}; create it with the API token under the key {key:?}"
                ),
            ),
            Token::KeyMissing => (
                "KeyMissing",
                format!(
                    "Secret {secret} has nothing under the key {key:?}; put the project's API token there"
                ),
            ),
            Token::Malformed => (
                "TokenMalformed",
                format!(
                    "what Secret {secret} holds under the key {key:?} cannot be a token: it has characters that none has"
                ),
            ),
            Token::Unreadable(why) => {
                return Some(Stage::Troubled(
                    "SecretUnreadable",
                    format!("Secret {secret} cannot be read: {why}"),
                ));
            }
        };
        Some(Stage::Unusable(reason, message))
    }

    /// Looks at the keys in time, and lets steps that failed wait.
    fn paced(mut plan: Plan, seen: &Seen) -> Plan {
        let failed = plan
            .steps
            .first()
            .and_then(|step| seen.troubles.get(step.kind()));
        let failed = failed.filter(|trouble| trouble.credentials);
        let overdue = seen.stale && seen.keys.is_some();
        if overdue {
            plan.steps = vec![Step::ReadKeys];
        }
        let trouble = plan
            .steps
            .first()
            .and_then(|step| seen.troubles.get(step.kind()));
        if let Some(trouble) = trouble.filter(|trouble| !trouble.wait.is_zero()) {
            plan.steps.clear();
            plan.look_again = Some(trouble.wait);
        }
        let Some(trouble) = trouble
            .filter(|trouble| trouble.credentials)
            .or(failed)
            .or(trouble)
        else {
            return plan;
        };
        if trouble.credentials {
            plan.stage = Stage::Unusable(trouble.reason, trouble.message.clone());
            return plan.refused();
        }
        let quiet = trouble.times < TOLD_FROM && seen.keys.is_some();
        if !quiet && !matches!(plan.stage, Stage::Unusable(..) | Stage::Blocked(..)) {
            plan.stage = Stage::Troubled(trouble.reason, trouble.message.clone());
        }
        plan
    }
}
