//! An agent that does not serve any more, or whose server is gone: what is tried, and how it is told.
//!
//! Each try is written ahead, and done in a later look by the process that wrote it and by no other: a crash loses a try, and never doubles one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{
    Agent, CONTACT, HealthState, Look, Plan, Power, ServerStatus, ServerView, Stage, Step,
    Timestamp, delete,
};
use crate::{
    api::{
        ConditionType, MAINTENANCE_ANNOTATION, RECREATE_ANNOTATION, RecoveryAction, RecoveryRecord,
        TimingStep,
    },
    health::ladder::{self, Ailment, History, Next, Rules},
};

/// Why an agent does not serve.
pub(super) struct Cause<'a> {
    pub(super) ailment: Ailment,
    /// Reason for a condition where nothing is tried.
    pub(super) reason: &'static str,
    /// What the probes say; empty when they have not been asked again.
    pub(super) words: &'a str,
}

impl Look<'_> {
    /// Why nothing is repaired, if a person said so.
    pub(super) fn hands_off(&self) -> Option<String> {
        if self.want.is_some_and(|want| want.maintenance) {
            Some(format!(
                "it is left alone as long as it has the annotation {MAINTENANCE_ANNOTATION}"
            ))
        } else if self.world.recovery.paused {
            Some("the operator was told by --pause-recovery to recover nothing".into())
        } else {
            None
        }
    }

    /// Why this is not done now, if it is held: a restart is never, as no server is touched for it.
    fn held(&self, action: RecoveryAction) -> Option<String> {
        let who = self.world.hold.as_ref()?;
        (action != RecoveryAction::Restart).then(|| {
            format!(
                "no server is touched for it as long as RecoveryHeld of {who} is True: see there"
            )
        })
    }

    /// What is done for an agent whose probes fail.
    pub(super) fn recover(&self, server: &ServerView, agent: &Agent, cause: &Cause<'_>) -> Plan {
        let disposable = self.world.is_disposable(server);
        let (history, rules) = (self.history(), self.rules(agent, disposable));
        let words = match history.in_row().next_back() {
            Some(last) if cause.words.is_empty() => &last.reason,
            _ => cause.words,
        };
        let waits = || Plan::wait(self.ailing(agent, cause));
        if self.hands_off().is_some() || server.power == Power::Busy {
            return waits();
        }
        if let Some(record) = self.fresh_try()
            && rules.allow(record.action, cause.ailment, &history, self.now)
            && self.held(record.action).is_none()
        {
            return self.carry_out(server, agent, record.action);
        }
        match ladder::next(cause.ailment, &history, &rules, self.now) {
            Next::NoRung => waits(),
            Next::Wait(until) => waits().until(until),
            Next::Try(action) => match self.held(action) {
                Some(why) => self.wait_for_release(cause, &why),
                None => self.write_try(agent, action, words),
            },
            Next::UsedUp(until) => {
                let words = if disposable {
                    words.to_owned()
                } else {
                    format!("{words}; its disk is kept")
                };
                Plan::wait(used_up(agent, &words, until)).until(until)
            }
        }
    }

    fn wait_for_release(&self, cause: &Cause<'_>, why: &str) -> Plan {
        let stage = Stage::Unhealthy(cause.reason, format!("{}; {why}", cause.words));
        Plan::wait(stage).until(self.now + CONTACT)
    }

    /// A `Disposable` server is replaced by a new one when the old one is surely gone. A try that was written down stands for this server until
    /// the next is announced, whichever process wrote it: there is nothing here that could happen twice.
    pub(super) fn replace(&self, server: &ServerStatus, agent: &Agent) -> Plan {
        let words = format!("server {} in project {} is gone", server.id, server.project);
        let announced = self
            .world
            .record()
            .is_some_and(|record| record.incarnation > server.incarnation);
        let without = format!(
            "{words}; lifecycle.recovery.recreations of AgentClass {} lets no other take its place; for an empty one, an admin sets the annotation {RECREATE_ANNOTATION}",
            agent.class
        );
        self.bring_back(
            agent,
            &words,
            announced,
            Stage::Stalled("ServerLost", without),
        )
    }

    /// What a server that is surely gone is followed by, within the budget; `otherwise` where the class has none for that.
    pub(super) fn bring_back(
        &self,
        agent: &Agent,
        words: &str,
        announced: bool,
        otherwise: Stage,
    ) -> Plan {
        let cause = Cause {
            ailment: Ailment::Gone,
            reason: "ServerLost",
            words,
        };
        let asked = self.world.record().map(|record| record.at.0);
        let decided = self
            .history()
            .was_decided(RecoveryAction::Recreate, asked, self.now);
        if announced || decided {
            return self.create();
        }
        if self.hands_off().is_some() {
            return Plan::wait(self.ailing(agent, &cause));
        }
        let rules = self.rules(agent, true);
        match ladder::next(cause.ailment, &self.history(), &rules, self.now) {
            Next::Try(action) => match self.held(action) {
                Some(why) => self.wait_for_release(&cause, &why),
                None => self.write_try(agent, action, cause.words),
            },
            Next::UsedUp(until) => Plan::wait(used_up(agent, cause.words, until)).until(until),
            Next::NoRung | Next::Wait(_) => Plan::wait(otherwise),
        }
    }

    /// What is under way for an agent that has not served again since it was tried, told in place of the steps that this takes.
    pub(super) fn told_as_recovery(&self, plan: Plan) -> Plan {
        let under_way = matches!(
            plan.stage,
            Stage::Creating | Stage::Booting(_) | Stage::Installing | Stage::Starting(_)
        );
        let (true, Ok(agent)) = (under_way, self.class()) else {
            return plan;
        };
        match self.recovering(agent) {
            Some(stage) => Plan { stage, ..plan },
            None => plan,
        }
    }

    /// Where an agent stands that was tried to be brought back and has not served since.
    pub(super) fn recovering(&self, agent: &Agent) -> Option<Stage> {
        let history = self.history();
        let last = history.in_row().next_back()?;
        Some(self.told(agent, last.action, &last.reason, 0))
    }

    fn ailing(&self, agent: &Agent, cause: &Cause<'_>) -> Stage {
        match (self.hands_off(), self.recovering(agent)) {
            (Some(why), _) => Stage::Unhealthy(cause.reason, format!("{}; {why}", cause.words)),
            (None, Some(stage)) => stage,
            (None, None) => Stage::Unhealthy(cause.reason, cause.words.to_owned()),
        }
    }

    fn write_try(&self, agent: &Agent, action: RecoveryAction, words: &str) -> Plan {
        let record = RecoveryRecord {
            action,
            at: MicroTime(self.now),
            reason: ladder::reason(words),
        };
        let stage = self.told(agent, action, &record.reason, 1);
        Plan::act(Step::WriteRecovery(record), stage)
    }

    /// The try that this process wrote ahead and has not done yet.
    fn fresh_try(&self) -> Option<&RecoveryRecord> {
        let last = self.world.status.recovery.last()?;
        (self.world.fresh_recovery == Some(last.at.0)).then_some(last)
    }

    fn carry_out(&self, server: &ServerView, agent: &Agent, action: RecoveryAction) -> Plan {
        let project = server.project.clone();
        let step = match action {
            RecoveryAction::Restart => Step::Restart {
                server: server.id,
                epoch: self.world.voice().map_or(0, |voice| voice.epoch),
            },
            RecoveryAction::Reboot => Step::Reboot {
                project,
                id: server.id,
                // A frozen machine does not hear that it is asked.
                hard: self.history().times_in_row(action) > 1,
            },
            RecoveryAction::Recreate => delete(server),
        };
        let stage = self.recovering(agent).unwrap_or(Stage::Creating);
        match action {
            RecoveryAction::Restart => Plan::act(step, stage),
            _ => self.at_hetzner(&server.project, step, stage),
        }
    }

    fn told(&self, agent: &Agent, action: RecoveryAction, cause: &str, more: usize) -> Stage {
        let (reason, what) = match action {
            RecoveryAction::Restart => ("Restarting", "its unit is started again"),
            RecoveryAction::Reboot => ("Rebooting", "its server is rebooted"),
            RecoveryAction::Recreate => ("Recreating", "its server is replaced by a new one"),
        };
        let times = self.history().times_in_day(action, self.now) + more;
        let budget = self.rules(agent, false).budget(action).max(times);
        Stage::Recovering(
            reason,
            format!("{what} (try {times} of {budget} in 24 hours): {cause}"),
        )
    }

    fn history(&self) -> History<'_> {
        let conditions = &self.world.status.conditions;
        let ready = conditions
            .iter()
            .find(|condition| condition.type_ == ConditionType::Ready.as_str());
        let served_until = match ready {
            Some(ready) if ready.status == "True" => self.now,
            Some(ready) => ready.last_transition_time.0,
            None => Timestamp::MIN,
        };
        let retried = self.retried_at();
        let tries = &self.world.status.recovery;
        let before = tries.partition_point(|done| Some(done.at.0) < retried);
        History {
            tries: &tries[before..],
            served_until,
        }
    }

    fn rules(&self, agent: &Agent, disposable: bool) -> Rules {
        let health = &agent.health;
        Rules {
            budgets: agent.lifecycle.recovery,
            replaceable: disposable && self.may_serve_elsewhere(),
            settle: health.interval.get() * health.failure_threshold.unsigned_abs()
                + health.initial_delay.get(),
            unreachable: self.world.recovery.unreachable,
        }
    }

    /// An agent that never served on its server would not on a new one (the times of a server that was taken up are not known).
    fn may_serve_elsewhere(&self) -> bool {
        let timings = &self.world.status.timings;
        timings.is_empty() || timings.iter().any(|seen| seen.step == TimingStep::Ready)
    }

    /// Since when the status tells a state of health.
    pub(super) fn told_since(&self, state: HealthState) -> Timestamp {
        let told = self.world.status.health.as_ref();
        told.filter(|told| told.state == state)
            .map_or(self.now, |told| told.since.0)
    }

    /// Whether what the status tells of an agent's health is from before the last try, or the last order to start it again.
    pub(super) fn was_tried_since(&self, told: Timestamp) -> bool {
        let last = self.world.status.recovery.last().map(|last| last.at.0);
        last.max(self.restarted_at()).is_some_and(|at| at >= told)
    }
}

fn used_up(agent: &Agent, cause: &str, until: Timestamp) -> Stage {
    // A time that moves would be news each time.
    let until = until
        .round(k8s_openapi::jiff::Unit::Minute)
        .unwrap_or(until);
    Stage::Stalled(
        "RecoveryExhausted",
        format!(
            "{cause}; all that lifecycle.recovery of AgentClass {} allows within 24 hours was tried in vain. See status.recovery, and `journalctl` on the server; it goes on by itself when class or Secret is changed, when a probe is good, and with the next try after {until}",
            agent.class
        ),
    )
}
