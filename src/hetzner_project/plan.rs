//! What to do next for a project: one pure function.
//!
//! Read it top to bottom, the first line that applies decides. The rule behind most lines is I9: a token is believed only while the project
//! shows the SSH key that was first seen there, or a server that we know; until then nothing is created, replaced or deleted.

use std::time::Duration;

use super::{
    connection::Refusal,
    desired::Desired,
    step::Step,
    world::{KeyName, KeyView, Seen, Token, World},
};

#[cfg(test)]
mod tests;

/// What the holder label says when two operators act in one project.
pub const CONFLICT: &str = "conflict";
/// How many servers are asked for by id to prove a project.
const PROOFS: usize = 3;
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

impl<'a> Look<'a> {
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

    /// A project that never had an identity holds nothing of ours.
    fn without_token(&self, stage: Stage) -> Plan {
        let Stage::Unusable(reason, message) = stage else {
            return self.wait(stage);
        };
        if self.world.status.identity.is_none() && self.world.instances == 0 {
            return self.act(Step::LetGo, Stage::Gone);
        }
        let message = format!(
            "{message}; without the token nobody can tell whether servers are left in the project at Hetzner"
        );
        self.wait(Stage::Unusable(reason, message)).refused()
    }

    fn footing(&self, seen: &'a Seen) -> Result<Footing<'a>, Box<Plan>> {
        let Some(keys) = &seen.keys else {
            let plan = self.act(Step::ReadKeys, Stage::Checking("looks for its identity"));
            return Err(Box::new(plan));
        };
        if let Some(id) = self.world.status.identity {
            if let Some(key) = keys.iter().find(|key| key.id == id) {
                return Ok(Footing::Key(key));
            }
            match &seen.by_id {
                Some((asked, Some(key))) if *asked == id => return Ok(Footing::Key(key)),
                Some((asked, None)) if *asked == id => self.proof()?,
                _ => {
                    let stage = Stage::Checking("looks for its identity");
                    return Err(Box::new(self.act(Step::LookUpIdentity(id), stage)));
                }
            }
        } else if !self.world.claims.is_empty() && keys.is_empty() {
            self.proof()?;
        }
        let known = self.world.status.identity.is_some() || !self.world.claims.is_empty();
        match keys.first() {
            Some(key) => self.not_twice(seen).map(|()| Footing::Key(key)),
            None if known => Ok(Footing::Server),
            None => Ok(Footing::New),
        }
    }

    /// The other object for this very project, as long as this one has no identity of its own.
    fn twin(&self, seen: &Seen) -> Option<&String> {
        let key = seen.keys.as_ref()?.first()?;
        let other = self.world.others.get(&key.id)?;
        self.world.status.identity.is_none().then_some(other)
    }

    /// Two objects for one project would count its servers, and spend its requests, twice.
    fn not_twice(&self, seen: &Seen) -> Result<(), Box<Plan>> {
        let Some(other) = self.twin(seen) else {
            return Ok(());
        };
        let message = format!(
            "the token in Secret {} belongs to the project of HetznerProject {other}; put this project's own token there",
            self.desired.secret()
        );
        let stage = Stage::Unusable("SameProject", message);
        Err(Box::new(self.wait(stage).refused()))
    }

    /// Where our key is not to be seen, a server of ours proves the project (I9).
    fn proof(&self) -> Result<(), Box<Plan>> {
        let claims = &self.world.claims;
        if claims
            .iter()
            .any(|claim| claim.listed || claim.answered == Some(true))
        {
            return Ok(());
        }
        if let Some(unasked) = claims
            .iter()
            .take(PROOFS)
            .find(|claim| claim.answered.is_none())
        {
            let stage = Stage::Checking("looks for a server that it knows");
            return Err(Box::new(self.act(Step::LookUpServer(unasked.id), stage)));
        }
        let stage = Stage::Unusable("WrongProject", self.wrong_project());
        Err(Box::new(self.wait(stage).refused()))
    }

    fn wrong_project(&self) -> String {
        let servers = self.world.claims.len();
        let missed = match self.world.status.identity {
            Some(id) if servers == 0 => format!("SSH key {id}, which marks this project"),
            Some(id) => format!(
                "SSH key {id}, which marks this project, and any of {servers} known servers"
            ),
            None => format!("any of {servers} known servers"),
        };
        format!(
            "the token in Secret {} shows a project without {missed}, so it is a token of another project; put one of the right project there. \
             Until then nothing is created, replaced or deleted",
            self.desired.secret()
        )
    }

    fn create_key(&self, seen: &Seen) -> Plan {
        match seen.key_name {
            KeyName::Free => self.act(
                Step::CreateKey,
                Stage::Checking("marks the project as its own"),
            ),
            KeyName::Taken => self.act(
                Step::LookUpKeyName,
                Stage::Checking("marks the project as its own"),
            ),
            KeyName::Foreign(id) => {
                let message = format!(
                    "SSH key {id} in the project has the name of this fleet's key but not its labels, so it is not touched; rename or delete it at Hetzner"
                );
                self.wait(Stage::Blocked("KeyNameTaken", message)).refused()
            }
        }
    }

    /// The key is there: who acts, and is all else that servers need?
    fn owned(&self, seen: &Seen, key: &KeyView) -> Plan {
        if self.world.status.identity != Some(key.id) {
            return Plan {
                identity: Some(key.id),
                ..self.wait(Stage::Checking("writes down its identity"))
            };
        }
        if let Some(plan) = self.holder(seen, key) {
            return plan;
        }
        let held = |stage: Stage| match &stage {
            Stage::Incomplete(reason, message) => Some((*reason, message.clone())),
            _ => None,
        };
        let plan = self.furnish(seen);
        let creates_held = held(plan.stage.clone());
        match plan.stage {
            // What is not known yet must not let a server be created without it.
            Stage::Checking(_) => plan,
            _ => plan.trusting(Trust::Granted {
                key: Some(key.id),
                creates_held,
            }),
        }
    }

    /// Who acts in the project stands on its key: two who do so are copies of one cluster.
    fn holder(&self, seen: &Seen, key: &KeyView) -> Option<Plan> {
        let write = |holder: &str| Step::WriteHolder {
            key: key.id,
            holder: holder.into(),
        };
        match key.holder.as_deref() {
            Some(CONFLICT) => Some(self.wait(Self::contested(key)).refused()),
            Some(holder) if holder == self.world.holder && key.ours => None,
            Some(holder) if holder != self.world.holder && !holder.is_empty() && seen.holds => {
                let plan = self.act(write(CONFLICT), Self::contested(key));
                Some(plan.refused())
            }
            _ => Some(self.act(write(&self.world.holder), Stage::Checking("takes over"))),
        }
    }

    fn contested(key: &KeyView) -> Stage {
        let message = format!(
            "another operator acts in this project for the same fleet, as a copy of this cluster would; stop it, then remove the label {} from SSH \
             key {} at Hetzner. Until then nothing is created, replaced or deleted",
            crate::labels::HOLDER,
            key.id
        );
        Stage::Blocked("AnotherOperator", message)
    }

    fn furnish(&self, seen: &Seen) -> Plan {
        let unasked: Vec<String> = self
            .desired
            .ssh_keys
            .iter()
            .filter(|name| !seen.admin_keys.contains_key(*name))
            .cloned()
            .collect();
        if !unasked.is_empty() {
            return self.act(
                Step::ReadAdminKeys(unasked),
                Stage::Checking("reads the keys of people"),
            );
        }
        if !seen.listed {
            return self.wait(Stage::Checking("lists its servers"));
        }
        if let Token::Present {
            deleting: true,
            held: true,
            shared_with,
        } = &self.world.token
        {
            return self.secret_deleted(seen, shared_with.as_deref());
        }
        let missing: Vec<&str> = self
            .desired
            .ssh_keys
            .iter()
            .filter(|name| matches!(seen.admin_keys.get(*name), Some(None)))
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            let message = format!(
                "spec.sshKeys names keys that the project at Hetzner does not have: {}; add them there or take them out here. Until then no server is created",
                missing.join(", ")
            );
            return self.wait(Stage::Incomplete("SshKeyMissing", message));
        }
        self.wait(Stage::Usable)
    }

    /// The Secret goes when nothing here needs it any more.
    fn secret_deleted(&self, seen: &Seen, shared_with: Option<&str>) -> Plan {
        let kept = |why: String| {
            Stage::Incomplete(
                "TokenSecretDeleting",
                format!(
                    "Secret {} is being deleted and is kept {why}; no server is created meanwhile",
                    self.desired.secret()
                ),
            )
        };
        if self.world.instances > 0 || seen.servers > 0 {
            return self.wait(kept(format!(
                "until its {} servers are gone",
                seen.servers.max(self.world.instances)
            )));
        }
        if let Some(other) = shared_with {
            return self.wait(kept(format!("because HetznerProject {other} uses it too")));
        }
        match seen.firewalls.as_deref() {
            None => self.act(
                Step::ReadFirewalls,
                kept("until nothing of ours is left".into()),
            ),
            Some([]) => self.act(
                Step::ReleaseSecret,
                kept("until nothing of ours is left".into()),
            ),
            Some(some) => self.wait(kept(format!("until its {} firewalls are gone", some.len()))),
        }
    }

    /// Everything of ours goes before the object does.
    fn leave(&self, seen: &Seen, key: Option<&KeyView>) -> Plan {
        let held = (
            "ProjectDeleting",
            format!("HetznerProject {} is being deleted", self.desired.name),
        );
        let trust = Trust::Granted {
            key: key.map(|key| key.id),
            creates_held: Some(held),
        };
        self.left(seen, key).trusting(trust)
    }

    fn left(&self, seen: &Seen, key: Option<&KeyView>) -> Plan {
        if !seen.listed {
            return self.wait(Stage::Checking("lists its servers"));
        }
        let servers = seen.servers.max(self.world.instances);
        if servers > 0 {
            return self.wait(in_use(format!(
                "{servers} servers of this fleet are in it; delete their AgentInstances first"
            )));
        }
        match seen.firewalls.as_deref() {
            None => return self.act(Step::ReadFirewalls, Stage::Checking("lists its firewalls")),
            Some([]) => {}
            Some(some) => return self.firewalls_left(some),
        }
        match (self.world.status.identity, key) {
            // Forgotten before it goes, or a crash in between would make this look like another project.
            (Some(_), _) => Plan {
                identity: None,
                ..self.wait(Stage::Checking("gives up its identity"))
            },
            (None, Some(key)) => self.act(
                Step::DeleteKey(key.id),
                Stage::Checking("deletes its SSH key"),
            ),
            (None, None) => self.act(Step::LetGo, Stage::Gone),
        }
    }

    fn firewalls_left(&self, firewalls: &[super::world::FirewallView]) -> Plan {
        match firewalls
            .iter()
            .find(|firewall| !firewall.class_exists && !firewall.applied)
        {
            Some(orphan) => self.act(
                Step::DeleteFirewall(orphan.id),
                in_use("a firewall of a class that is gone is deleted".into()),
            ),
            None => self.wait(in_use(format!(
                "{} firewalls of AgentClasses are in it; they go as soon as no server uses them",
                firewalls.len()
            ))),
        }
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

fn in_use(message: String) -> Stage {
    Stage::Deleting("InUse", message)
}
