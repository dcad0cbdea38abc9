//! The end of a project: everything of ours goes before the object does.

use super::{Look, Plan, Stage, Trust};
use crate::hetzner_project::{
    step::Step,
    world::{FirewallView, KeyView, Seen},
};

impl Look<'_> {
    /// A project that never had an identity holds nothing of ours.
    pub(super) fn without_token(&self, stage: Stage) -> Plan {
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

    pub(super) fn leave(&self, seen: &Seen, key: Option<&KeyView>) -> Plan {
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

    fn firewalls_left(&self, firewalls: &[FirewallView]) -> Plan {
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
}

fn in_use(message: String) -> Stage {
    Stage::Deleting("InUse", message)
}
