//! An instance that is to go while its server stays: the agent is silenced, the server labelled, and only then the object let go.
//!
//! Its fleet, namespace and name stay on it, so that a new instance of that name finds it and a person may have it taken up.

use super::{CONTACT, Look, Plan, Power, ServerView, Stage, Step};

impl Look<'_> {
    pub(super) fn retained(&self) -> Plan {
        if !self.world.finalizer {
            return Plan::wait(Stage::Gone);
        }
        match self.own().find(|server| !server.retained) {
            Some(server) => self.retain(server),
            None => self.without_server(),
        }
    }

    fn retain(&self, server: &ServerView) -> Plan {
        let stage = retaining(server);
        if let Err((reason, message)) = self.usable(&server.project) {
            return Plan::wait(Stage::Deleting(reason, message));
        }
        if server.deleting {
            return self.await_end(server, stage);
        }
        if !server.listed {
            return self.confirm_gone(&server.project, server.id);
        }
        let plan = match server.power {
            Power::Busy => Plan::wait(stage.clone()).until(self.now + CONTACT),
            Power::Off => label(server),
            Power::On => self.silence(server).unwrap_or_else(|| self.leave(server)),
        };
        Plan { stage, ..plan }
    }

    /// An agent that could not be told to be silent is made so by the plug.
    fn leave(&self, server: &ServerView) -> Plan {
        let guest = &server.guest;
        let told = matches!(guest.released, Some((_, true)));
        let says = guest
            .hello
            .as_ref()
            .is_some_and(|hello| hello.armed.is_none());
        // Another process has released it; what it said before this one did anything counts.
        let disarmed = says && guest.released.is_none() && guest.configured.is_none();
        if told || disarmed || self.was_never_armed(server) {
            label(server)
        } else {
            self.switch_off(server, retaining(server))
        }
    }
}

fn label(server: &ServerView) -> Plan {
    let (project, id) = (server.project.clone(), server.id);
    Plan::act(Step::Retain { project, id }, retaining(server))
}

fn retaining(server: &ServerView) -> Stage {
    Stage::Deleting(
        "ServerRetaining",
        format!(
            "server {} stops its agent and is kept; Hetzner bills it on",
            server.id
        ),
    )
}
