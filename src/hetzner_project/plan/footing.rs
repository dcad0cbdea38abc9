//! Whether this is the project that was first seen (I9): its key shows it, or a server that we know.

use super::{Footing, Look, Plan};
use crate::hetzner_project::{
    plan::Stage,
    step::Step,
    world::{KeyName, Seen},
};

/// How many servers are asked for by id to prove a project.
const PROOFS: usize = 3;

impl<'a> Look<'a> {
    pub(super) fn footing(&self, seen: &'a Seen) -> Result<Footing<'a>, Box<Plan>> {
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

    /// The other object for this very project, as long as this one has no identity of its own.
    pub(super) fn twin(&self, seen: &Seen) -> Option<&String> {
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

    pub(super) fn create_key(&self, seen: &Seen) -> Plan {
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
}
