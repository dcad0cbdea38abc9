//! An instance that shall not run for a while: its agent is silenced, its server switched off, and both are as they were when it runs again.
//!
//! Secrets are the switch here too: a server that somebody powers on does not speak, as its guest was told to be silent first. Where it cannot
//! be told, the power goes all the same.

use super::{CONTACT, Look, Plan, Power, ServerView, Stage, Step, VoiceRecord};

impl Look<'_> {
    /// Whether nothing of it shall run.
    pub(super) fn is_suspended(&self) -> bool {
        self.want.is_some_and(|want| want.suspend)
    }

    /// Silence, then darkness.
    pub(super) fn suspend(&self, server: &ServerView) -> Plan {
        match server.power {
            Power::Off => self.dark(server),
            Power::Busy => Plan::wait(suspending(server)).until(self.now + CONTACT),
            Power::On => self
                .silence(server)
                .unwrap_or_else(|| self.switch_off(server, suspending(server))),
        }
    }

    /// Nothing is bought for an instance that shall not run.
    pub(super) fn suspended_without_server() -> Plan {
        Plan::wait(Stage::Suspended("it has no server".into()))
    }

    fn dark(&self, server: &ServerView) -> Plan {
        let stage = Stage::Suspended(format!(
            "server {} is switched off; Hetzner bills it all the same until the instance is deleted",
            server.id
        ));
        match self.taken(server) {
            Some(step) => Plan::act(step, suspending(server)),
            None => self
                .retyped_in_the_dark(server)
                .unwrap_or_else(|| Plan::wait(stage)),
        }
    }

    /// The record says first that nobody may speak (I13).
    fn taken(&self, server: &ServerView) -> Option<Step> {
        let voice = self.world.voice()?;
        (voice.incarnation == Some(i64::from(server.incarnation)))
            .then(|| self.nobody_speaks(server))
    }

    fn nobody_speaks(&self, server: &ServerView) -> Step {
        Step::WriteVoice(VoiceRecord {
            incarnation: None,
            epoch: self.epoch(server) + 1,
        })
    }

    /// What there is to do until its agent is silent, or cannot be told to be.
    pub(super) fn silence(&self, server: &ServerView) -> Option<Plan> {
        self.world.pinned(server)?;
        let voice = self.world.voice()?;
        if server.guest.busy {
            return Some(Plan::wait(suspending(server)));
        }
        if let Some(step) = self.taken(server) {
            return Some(Plan::act(step, suspending(server)));
        }
        let told = server.guest.released;
        if told.is_some_and(|(epoch, _)| epoch >= voice.epoch) {
            return None;
        }
        if self.world.fresh_epoch == Some(voice.epoch) {
            let release = Step::Release {
                server: server.id,
                incarnation: server.incarnation,
                epoch: voice.epoch,
            };
            return Some(Plan::act(release, suspending(server)));
        }
        // Another process wrote that, or somebody switched it on: what it says of itself counts.
        match &server.guest.hello {
            Some(hello) if hello.armed.is_some() => {
                Some(Plan::act(self.nobody_speaks(server), suspending(server)))
            }
            None if server.guest.contact.is_none() => Some(Plan {
                stage: suspending(server),
                ..self.contact(server, "")
            }),
            _ => None,
        }
    }

    /// Asked politely once, then the plug is pulled.
    pub(super) fn switch_off(&self, server: &ServerView, stage: Stage) -> Plan {
        let (project, id) = (server.project.clone(), server.id);
        let step = match server.guest.shut_down {
            None => Step::Shutdown { project, id },
            Some(at) if at + self.world.shutdown_grace > self.now => {
                return Plan::wait(stage).until(at + self.world.shutdown_grace);
            }
            Some(_) => Step::PowerOff { project, id },
        };
        self.at_hetzner(&server.project, step, stage)
    }
}

pub(super) fn suspending(server: &ServerView) -> Stage {
    Stage::Suspending(format!(
        "the agent is silenced, and server {} switched off",
        server.id
    ))
}
