//! A project that is known: who acts in it, and what servers need there beside the token.

use super::{CONFLICT, Look, Plan, Stage, Trust};
use crate::hetzner_project::{
    step::Step,
    world::{KeyView, Seen, Token},
};

impl Look<'_> {
    /// The key is there: who acts, and is all else that servers need?
    pub(super) fn owned(&self, seen: &Seen, key: &KeyView) -> Plan {
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
    pub(super) fn holder(&self, seen: &Seen, key: &KeyView) -> Option<Plan> {
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
}
