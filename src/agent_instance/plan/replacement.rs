//! A server that another one takes the place of: the other is booted and installed beside it, the voice is handed over, and when the agent
//! serves again the first one goes.
//!
//! The record of the voice says each move before it is made (I13): nobody has it while it is taken from the old server, and the new one is given it
//! only when every other server that ever had it has said that its agent is silent, or is gone. One that cannot be silenced is deleted; that is
//! why only a `Disposable` server, or one that a person gave up, is ever replaced (I14).

use super::{
    Agent, CONTACT, ContactProblem, InstallPhase, Look, Plan, Power, ServerView, Stage, Step,
    VoiceRecord, armed_here, delete,
};
use crate::agent_instance::{line_up::Misfit, status};

/// How many times in a row a server is told in vain to be silent before that is believed: an answer may be lost.
const ASKED: u32 = 2;
const CANNOT_RELEASE: &str = "CannotRelease";

/// Whether a server itself has said that it was given the voice.
fn is_known_to_speak(server: &ServerView) -> bool {
    let configured = server.guest.configured.as_ref();
    armed_here(server) || configured.is_some_and(|configured| configured.outcome.is_ok())
}

impl Look<'_> {
    /// Whether a person gave a server up, with all that is on it.
    pub(super) fn is_given_up(&self, incarnation: i64) -> bool {
        self.world.is_given_up(incarnation)
    }

    /// Why a server is to be replaced, if it is, and may be.
    pub(super) fn outdated(&self, server: &ServerView) -> Option<Misfit> {
        let misfit = self.world.misfit(server);
        let misfit = misfit.filter(|misfit| *misfit != Misfit::Type)?;
        // What has begun is not begun anew with each turn.
        let begun = self.world.voice_holder() != Some(server.incarnation);
        let its_turn = begun || (self.world.may_move && self.hands_off().is_none());
        let allowed = self.world.is_disposable(server) && its_turn;
        (misfit == Misfit::Ordered || allowed).then_some(misfit)
    }

    /// What is done for a server that is to be replaced; none if it stays.
    pub(super) fn replaced(&self, front: &ServerView) -> Option<Plan> {
        let agent = self.class().ok()?;
        let misfit = self.outdated(front)?;
        // What does not speak is first brought to it: only then it is known what it is worth.
        let speaks = self.world.voice()?.incarnation == Some(i64::from(front.incarnation));
        let next = self.world.successor(&self.identity.uid, front);
        let next = next.filter(|next| speaks || next.guest.contact.is_none());
        match next {
            Some(next) if self.is_installed(next) => Some(self.hand_over(front, next)),
            Some(next) if speaks => {
                let other = self.on_trial(next, self.towards_serving(next));
                Some(self.beside(front, agent, misfit, other))
            }
            Some(next) => Some(Plan {
                stage: Stage::Updating,
                ..self.towards_serving(next)
            }),
            None => speaks.then(|| self.beside(front, agent, misfit, self.create())),
        }
    }

    fn is_installed(&self, server: &ServerView) -> bool {
        let hello = server.guest.hello.as_ref();
        let installed = hello.is_some_and(|hello| hello.phase == InstallPhase::Done);
        installed && self.world.pinned(server).is_some() && server.power == Power::On
    }

    /// The old server serves while the new one is being prepared; what that needs for itself comes first.
    fn beside(&self, front: &ServerView, agent: &Agent, misfit: Misfit, other: Plan) -> Plan {
        let (_, words) = status::words(&other.stage);
        let note = format!(
            "{}, and is prepared beside this one: {words}",
            misfit.words()
        );
        // What failed with the revision that it goes back from is not mended.
        let own = if front.guest.busy && self.lacks_its_secret(front) {
            // It is being started with it.
            Plan::wait(self.applying(front))
        } else if front.guest.busy || self.world.rollout.refused.is_some() {
            Plan::wait(self.health(front, Some(("Replacing", note))))
        } else if let Some(plan) = self.refreshed(front) {
            plan
        } else {
            self.probed(front, agent, Some(("Replacing", note)))
        };
        let only_probes = own
            .steps
            .iter()
            .all(|step| matches!(step, Step::Probe { .. } | Step::EndProbes { .. }));
        let steps = if only_probes {
            own.steps.into_iter().chain(other.steps).collect()
        } else {
            own.steps
        };
        let look_again = own.look_again.into_iter().chain(other.look_again).min();
        Plan {
            steps,
            look_again,
            ..own
        }
    }

    /// A changed Secret reaches the agent also while another server is prepared for it; that one has said by then that it never spoke.
    pub(super) fn refreshed(&self, front: &ServerView) -> Option<Plan> {
        let (agent, tag) = self.world.due(front)?;
        let wanted = (agent.config_revision.clone(), tag.to_owned());
        self.world.spoken(front)?;
        let is_due = match &front.guest.configured {
            Some(configured) if configured.sent == wanted => {
                let failure = configured.outcome.as_ref().err();
                failure.is_some_and(|failure| failure.again.is_some_and(|again| again <= self.now))
            }
            _ => self.lacks_its_secret(front),
        };
        let next = self.world.successor(&self.identity.uid, front);
        let is_heard = next.is_none_or(|next| next.guest.hello.is_some());
        (is_due && is_heard).then(|| self.configure(front))
    }

    /// Whether it is all that it is to have until then but the Secret, which has changed.
    fn lacks_its_secret(&self, front: &ServerView) -> bool {
        let Some(((config, tag), (agent, wanted))) =
            self.world.spoken(front).zip(self.world.due(front))
        else {
            return false;
        };
        config == agent.config_revision && tag != wanted
    }

    /// Nobody has the voice from here on, until the old server is silent.
    fn hand_over(&self, front: &ServerView, next: &ServerView) -> Plan {
        if self.world.voice_holder().is_none() {
            // Once nobody else may speak, the next one is in front.
            return self
                .hush_others(next)
                .unwrap_or_else(|| Plan::wait(Stage::Updating));
        }
        if front.guest.busy {
            return Plan::wait(Stage::Updating);
        }
        let voice = VoiceRecord {
            incarnation: None,
            epoch: self.epoch(front).max(self.epoch(next)) + 1,
        };
        Plan::act(Step::WriteVoice(voice), Stage::Updating)
    }

    /// What there is to do until no other server of the instance can speak. What never spoke cannot, and goes by itself.
    pub(super) fn hush_others(&self, but: &ServerView) -> Option<Plan> {
        let other = |server: &&ServerView| server.id != but.id && !self.world.cannot_speak(server);
        let other = self.own().find(other)?;
        Some(self.hush(other))
    }

    fn hush(&self, server: &ServerView) -> Plan {
        if server.deleting {
            return self.await_end(server, Stage::Updating);
        }
        let guest = &server.guest;
        let refused = guest
            .released
            .is_some_and(|(told, _)| told >= self.world.taken_at());
        let (times, again) = guest
            .in_vain
            .map_or((0, self.now), |(times, last)| (times, last + CONTACT));
        if times >= ASKED && (refused || guest.contact.is_some()) {
            return self.unreleased(server);
        }
        let stage = if times >= ASKED && !self.may_go(server) {
            self.cannot_release(server)
        } else {
            Stage::Updating
        };
        if guest.busy {
            return Plan::wait(stage);
        }
        if again > self.now {
            return Plan::wait(stage).until(again);
        }
        if self.world.pinned(server).is_none() {
            return Plan {
                stage,
                ..self.contact(server, "must be told to be silent")
            };
        }
        let release = Step::Release {
            server: server.id,
            incarnation: server.incarnation,
            epoch: self.world.voice().map_or(0, |voice| voice.epoch),
        };
        Plan::act(release, stage)
    }

    /// A server that cannot be silenced is deleted, if it may be: merely switched off it would speak when somebody switches it on. Where many
    /// agents are out of reach it is rather the operator who is.
    fn unreleased(&self, server: &ServerView) -> Plan {
        let stage = self.cannot_release(server);
        let held = self.world.hold.is_some() && !self.is_given_up(server.incarnation.into());
        if held || !self.may_go(server) {
            // When it answers, it is told again.
            return Plan {
                stage,
                ..self.contact(server, "")
            };
        }
        if server.guest.busy {
            return Plan::wait(Stage::Updating);
        }
        self.at_hetzner(&server.project, delete(server), Stage::Updating)
    }

    /// Whether it may be deleted for that.
    fn may_go(&self, server: &ServerView) -> bool {
        self.world.is_disposable(server) || self.is_given_up(server.incarnation.into())
    }

    fn cannot_release(&self, server: &ServerView) -> Stage {
        let why = match &server.guest.contact {
            Some((ContactProblem::Silent(why), _)) => why.as_str(),
            _ => "it does not do as told",
        };
        let words = format!(
            "server {} may still run the agent and cannot be told to be silent ({why})",
            server.id
        );
        match &self.world.hold {
            Some(who) if self.may_go(server) => Stage::Troubled(
                CANNOT_RELEASE,
                format!(
                    "{words}; it is not deleted for that as long as RecoveryHeld of {who} is True: see there"
                ),
            ),
            _ => Stage::Stalled(
                CANNOT_RELEASE,
                format!(
                    "{words}; bring it back, or delete it at Hetzner, before another one is given the voice"
                ),
            ),
        }
    }

    /// Servers of this object that are neither the agent's nor about to be: a late answer's, or one that was replaced (I2).
    pub(super) fn surplus(&self, front: &ServerView, serves: bool) -> Vec<Step> {
        if self.world.voice_holder() != Some(front.incarnation) {
            return vec![];
        }
        // What spoke above the record may be what a record from an older day does not know (I14).
        let first = self.world.voice().is_some_and(|voice| voice.epoch <= 1);
        let next = self
            .outdated(front)
            .filter(|_| !self.is_suspended())
            .and_then(|_| self.world.successor(&self.identity.uid, front));
        let unneeded = |server: &&ServerView| {
            let hello = server.guest.hello.as_ref();
            let never_spoke = first || hello.is_some_and(|hello| !hello.ever_armed);
            let above = server.incarnation > front.incarnation;
            let known = never_spoke
                || if above {
                    is_known_to_speak(front) && self.world.is_disposable(server)
                } else {
                    serves
                };
            server.id != front.id
                && next.is_none_or(|next| next.id != server.id)
                && known
                && !server.deleting
                && server.listed
        };
        self.own()
            .filter(unneeded)
            .filter(|server| self.usable(&server.project).is_ok())
            .map(delete)
            .collect()
    }
}
