//! A server whose type alone is not what the class lists any more, and that can become one of a listed type with its disk: it is switched off,
//! changed, and comes back by itself. The voice stays where it is, as the server does.

use super::{CONTACT, Look, Plan, Power, ServerView, Stage, Step};
use crate::{agent_instance::line_up::Misfit, hetzner_project::retype::Retype};

impl Look<'_> {
    /// What is done for a server that is to become one of another type; none if it stays what it is for now.
    pub(super) fn retyped(&self, server: &ServerView) -> Option<Plan> {
        let (Some(Misfit::Type), Retype::To(wanted)) = (self.world.misfit(server), &server.retype)
        else {
            return None;
        };
        let spoke = self.world.spoken(server).is_some();
        let its_turn = self.world.may_move && self.hands_off().is_none();
        if !(its_turn && spoke) || server.guest.busy {
            return None;
        }
        Some(match server.power {
            Power::On => self.switch_off(server, retyping(server, wanted)),
            Power::Busy => Plan::wait(retyping(server, wanted)).until(self.now + CONTACT),
            Power::Off => self.change_type(server, wanted, retyping(server, wanted)),
        })
    }

    /// A server that is off anyway, and whose agent is known not to begin when that switches it on.
    pub(super) fn retyped_in_the_dark(&self, server: &ServerView) -> Option<Plan> {
        if !(self.world.cannot_speak(server) || self.world.is_silent_in_the_dark(server)) {
            return None;
        }
        let (Some(Misfit::Type), Retype::To(wanted)) = (self.world.misfit(server), &server.retype)
        else {
            return None;
        };
        let stage = Stage::Suspending(format!("server {} becomes one of type {wanted}", server.id));
        Some(self.change_type(server, wanted, stage))
    }

    fn change_type(&self, server: &ServerView, wanted: &str, stage: Stage) -> Plan {
        match server.guest.powered {
            Some(asked) if asked + CONTACT > self.now => Plan::wait(stage).until(asked + CONTACT),
            _ => {
                let step = Step::ChangeType {
                    project: server.project.clone(),
                    id: server.id,
                    server_type: wanted.to_owned(),
                };
                self.at_hetzner(&server.project, step, stage)
            }
        }
    }
}

fn retyping(server: &ServerView, wanted: &str) -> Stage {
    Stage::Retyping(format!(
        "server {} is switched off, becomes one of type {wanted} with the disk that it has, and comes back",
        server.id
    ))
}
