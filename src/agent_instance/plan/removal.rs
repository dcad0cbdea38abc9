//! An instance that is to go, and everything it caused with it.

use super::{CONTACT, Known, Look, Plan, ServerView, Stage, Step, VoiceRecord, delete, relabelled};

impl Look<'_> {
    pub(super) fn absent(&self) -> Plan {
        if !self.world.finalizer {
            return Plan::wait(Stage::Gone);
        }
        if let Some(plan) = self.held_back() {
            return plan;
        }
        if let Some(server) = self.own().next() {
            return self.remove(server);
        }
        self.without_server()
    }

    /// No server in sight has to be dealt with any more.
    pub(super) fn without_server(&self) -> Plan {
        match (self.world.known, &self.world.status.server) {
            (Known::Unseen, Some(server)) => self.confirm_gone(&server.project, server.id),
            (Known::Relabelled, Some(server)) => {
                Plan::wait(Stage::Deleting("LabelsChanged", relabelled(server)))
            }
            _ => self.let_go(),
        }
    }

    /// The finalizer goes only when nothing that was asked for can still come to life (I1, I2).
    fn let_go(&self) -> Plan {
        let finish = || Plan::act(Step::RemoveFinalizer, Stage::Gone);
        let Some(record) = self.world.record() else {
            return self
                .unlisted_project()
                .map_or_else(finish, |(reason, message)| {
                    Plan::wait(Stage::Deleting(reason, message))
                });
        };
        if self.world.attempt.unsettled_until.is_some()
            && let Err((reason, message)) = self.usable(&record.project)
        {
            return Plan::wait(Stage::Deleting(reason, message));
        }
        let plan = self.after_settling(record, finish);
        match plan.stage {
            Stage::Gone => plan,
            _ => Plan {
                stage: Stage::Deleting(
                    "Settling",
                    format!(
                        "makes sure that no late request brings {} back",
                        record.server_name
                    ),
                ),
                ..plan
            },
        }
    }

    /// Without a record any project may hold a server of ours: all must have been listed.
    fn unlisted_project(&self) -> Option<(&'static str, String)> {
        self.world
            .projects
            .iter()
            .find(|project| !project.synced)
            .and_then(|project| self.usable(&project.name).err())
    }

    fn remove(&self, server: &ServerView) -> Plan {
        if let Err((reason, message)) = self.usable(&server.project) {
            return Plan::wait(Stage::Deleting(reason, message));
        }
        if server.deleting {
            return self.await_end(server, deleting(server));
        }
        if !server.listed {
            return self.confirm_gone(&server.project, server.id);
        }
        if server.guest.busy {
            return Plan::wait(deleting(server)).until(self.now + CONTACT);
        }
        match self.release(server) {
            Some(plan) => plan,
            None => self.at_hetzner(&server.project, delete(server), deleting(server)),
        }
    }

    /// A list tells that it is gone; where none comes, since others use all requests up, one GET does (I7, I8).
    pub(super) fn await_end(&self, server: &ServerView, stage: Stage) -> Plan {
        match server.guest.gone_by {
            Some(due) if due <= self.now => Plan {
                stage,
                ..self.confirm_gone(&server.project, server.id)
            },
            Some(due) => Plan::wait(stage).until(due),
            None => Plan::wait(stage),
        }
    }

    /// An agent that runs is told to stop once, with an epoch that outranks any `configure` under way; then its server goes, whatever it said.
    fn release(&self, server: &ServerView) -> Option<Plan> {
        let voice = self.world.voice()?;
        let stage = deleting(server);
        self.world.pinned(server)?;
        if voice.incarnation == Some(i64::from(server.incarnation)) {
            return Some(Plan::act(
                Step::WriteVoice(VoiceRecord {
                    incarnation: None,
                    epoch: voice.epoch + 1,
                }),
                stage,
            ));
        }
        let untried = server
            .guest
            .released
            .is_none_or(|(epoch, _)| epoch < voice.epoch);
        let due =
            voice.incarnation.is_none() && self.world.fresh_epoch == Some(voice.epoch) && untried;
        due.then(|| {
            Plan::act(
                Step::Release {
                    server: server.id,
                    incarnation: server.incarnation,
                    epoch: voice.epoch,
                },
                stage,
            )
        })
    }
}

/// One word for all that is done with a server that goes: its agent stops, Hetzner is told, a list no longer shows it.
fn deleting(server: &ServerView) -> Stage {
    Stage::Deleting(
        "ServerDeleting",
        format!("server {} stops its agent and is deleted", server.id),
    )
}
