//! A creation that fails: what becomes of its server, and whether another one is bought.
//!
//! Only a server that was never armed is rolled back, since there is nothing on it that could be missed (I14). That it failed is written down
//! before anything is done about it, and the number of the attempt stands in the record that permits a server: whatever crashes, no more are
//! bought than are allowed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{
    Agent, Bootstrap, CONTACT, ContactProblem, Duration, InstallPhase, Look, Plan, Power,
    ProvisioningRecord, SendOutcome, ServerView, Stage, Step, Timestamp, delete,
};
use crate::{
    agent_instance::rollback,
    api::{OnProvisionFailure, RETRY_ANNOTATION, RollbackReason, RollbackRecord},
};

/// How long after its time silence alone proves that a server was never armed. A status that was restored from an older day may name one that
/// has served since (I9, I14).
const PROOF: Duration = Duration::from_hours(1);

/// What failed about a creation.
struct Failure {
    reason: RollbackReason,
    words: String,
}

impl Look<'_> {
    /// What is done with a server that is to become the agent: the ordinary, unless its creation has failed.
    pub(super) fn on_trial(&self, server: &ServerView, ordinary: Plan) -> Plan {
        let (true, Ok(agent)) = (self.was_never_armed(server), self.class()) else {
            return ordinary;
        };
        let ordinary = match self.follow_up_due(server, agent) {
            Some(due) if due <= self.now => {
                return Plan {
                    steps: vec![self.follow_up(server)],
                    ..ordinary
                };
            }
            Some(due) => ordinary.until(due),
            None => ordinary,
        };
        match self.failure(server, agent) {
            Some(failure) if self.hands_off().is_none() => {
                self.roll_back(server, agent, &failure, ordinary)
            }
            _ => match self.due(server, agent).filter(|due| *due > self.now) {
                Some(due) => ordinary.until(due),
                None => ordinary,
            },
        }
    }

    /// Whether this is the server of the record in hand, and nobody has given it the voice.
    pub(super) fn was_never_armed(&self, server: &ServerView) -> bool {
        let recorded = self.world.record().is_some_and(|record| {
            (&record.server_name, &record.project) == (&server.name, &server.project)
        });
        let passed_by = self.world.voice().is_none_or(|voice| {
            let holder = voice.incarnation;
            holder.is_some_and(|holder| holder < i64::from(server.incarnation))
        });
        let hello = server.guest.hello.as_ref();
        let was_armed = hello.is_some_and(|hello| hello.ever_armed || hello.armed.is_some());
        recorded && passed_by && !was_armed
    }

    /// When Hetzner is asked what became of a creation that was under way when it answered: of a server that is found off, or has been silent for
    /// half of its time, and once more before it is given up. One that boots as it should makes itself known before that, and costs nothing.
    fn follow_up_due(&self, server: &ServerView, agent: &Agent) -> Option<Timestamp> {
        let attempt = &self.world.attempt;
        if attempt.incarnation != server.incarnation
            || attempt.running.is_empty()
            || server.guest.hello.is_some()
            || self.is_known(server)
            || self.usable(&server.project).is_err()
        {
            return None;
        }
        let created = server.created_at?;
        let timeout = agent.lifecycle.first_contact_timeout.get();
        let times = [timeout / 2, timeout].map(|after| created.checked_add(after).ok());
        match attempt.asked {
            None if server.power == Power::Off => Some(self.now),
            asked => times.into_iter().flatten().find(|time| asked < Some(*time)),
        }
    }

    fn follow_up(&self, server: &ServerView) -> Step {
        Step::FollowUp {
            project: server.project.clone(),
            actions: self.world.attempt.running.clone(),
        }
    }

    fn failure(&self, server: &ServerView, agent: &Agent) -> Option<Failure> {
        let attempt = &self.world.attempt;
        let half = attempt.half_failed.as_ref();
        if let Some(why) = half.filter(|_| attempt.incarnation == server.incarnation) {
            return Some(Failure {
                reason: RollbackReason::CreationHalfFailed,
                words: format!("server {}: {why}", server.id),
            });
        }
        let hello = server.guest.hello.as_ref();
        match hello.map(|hello| &hello.phase) {
            Some(InstallPhase::Failed(why)) => Some(Failure {
                reason: RollbackReason::InstallFailed,
                words: format!("server {}: {why}", server.id),
            }),
            _ if self.due(server, agent)? > self.now => None,
            Some(_) => Some(Failure {
                reason: RollbackReason::ProvisionOverdue,
                words: format!(
                    "server {}: the installation takes longer than lifecycle.provisionTimeout of AgentClass {}",
                    server.id, agent.class
                ),
            }),
            None => self.silent(server, agent),
        }
    }

    /// When its creation will have failed, if nothing is heard; in each process it gets a moment to be heard.
    fn due(&self, server: &ServerView, agent: &Agent) -> Option<Timestamp> {
        let (_, timeout) = self.timeout(server, agent)?;
        let due = server.created_at?.checked_add(timeout).ok()?;
        if server.guest.hello.is_some() || self.waits_for_call(server) {
            return Some(due);
        }
        let heard_by = server.guest.tried_since? + timeout.min(CONTACT);
        Some(due.max(heard_by))
    }

    /// What it has to have done next, and in what time.
    fn timeout(&self, server: &ServerView, agent: &Agent) -> Option<(RollbackReason, Duration)> {
        let lifecycle = &agent.lifecycle;
        let provision = (
            RollbackReason::ProvisionOverdue,
            lifecycle.provision_timeout.get(),
        );
        let hello = server.guest.hello.as_ref();
        match hello.map(|hello| &hello.phase) {
            Some(InstallPhase::Done) => None,
            Some(_) => Some(provision),
            None if self.is_known(server) => Some(provision),
            None => Some((
                RollbackReason::FirstContactOverdue,
                lifecycle.first_contact_timeout.get(),
            )),
        }
    }

    fn is_known(&self, server: &ServerView) -> bool {
        self.world.pinned(server).is_some() || server.guest.proven.is_some()
    }

    /// Whether it is the server's turn to make itself known.
    pub(super) fn waits_for_call(&self, server: &ServerView) -> bool {
        let calls = |agent: &Agent| agent.boot.bootstrap == Bootstrap::PhoneHome;
        self.class().is_ok_and(calls) && self.is_booting(server) && !self.is_known(server)
    }

    fn silent(&self, server: &ServerView, agent: &Agent) -> Option<Failure> {
        let (reason, timeout) = self.timeout(server, agent)?;
        let seen = match server.guest.contact.as_ref().map(|(problem, _)| problem) {
            // Somebody has to look at that.
            Some(ContactProblem::HostKeyChanged(_)) => return None,
            Some(
                ContactProblem::Silent(why)
                | ContactProblem::WrongProof(why)
                | ContactProblem::LoginRefused(why)
                | ContactProblem::Garbage(why),
            ) => format!(" ({why})"),
            None => String::new(),
        };
        let limit = if reason == RollbackReason::FirstContactOverdue {
            "firstContactTimeout"
        } else {
            "provisionTimeout"
        };
        let proof_ends = server.created_at? + timeout + PROOF;
        let proven = proof_ends > self.now || self.failed(server.incarnation.into()).is_some();
        let words = format!(
            "server {} has not made itself known within lifecycle.{limit} of AgentClass {}{seen}",
            server.id, agent.class
        );
        proven.then_some(Failure { reason, words })
    }

    fn roll_back(
        &self,
        server: &ServerView,
        agent: &Agent,
        failure: &Failure,
        ordinary: Plan,
    ) -> Plan {
        let level = self.level(server, agent);
        if let Some(who) = self.world.hold.as_ref().filter(|_| failure.may_be_ours()) {
            let words = format!(
                "{}; no server is deleted for it as long as RecoveryHeld of {who} is True: see there",
                failure.words
            );
            return Plan::wait(Stage::RollingBack(words)).until(self.now + CONTACT);
        }
        let Some((record, failed)) = self
            .world
            .record()
            .map(|record| (record, self.failed(record.incarnation)))
        else {
            return ordinary;
        };
        match failed {
            None => self.write_down(record, level, failure),
            Some(failed) if level == OnProvisionFailure::Keep && !self.was_retried(failed) => {
                Plan {
                    stage: kept(server, failure),
                    ..ordinary
                }
            }
            Some(_) => {
                let stage = rolling_back(failure.reason, &failure.words);
                // As long as it bears the name, no late request can bring another one of that name.
                if let Some(until) = self.world.attempt.unsettled_until
                    && until > self.now
                {
                    return Plan::wait(stage).until(until);
                }
                self.at_hetzner(&server.project, delete(server), stage)
            }
        }
    }

    /// What is on a restored disk may be nowhere else any more (I14).
    fn level(&self, server: &ServerView, agent: &Agent) -> OnProvisionFailure {
        if self.is_restored(server) {
            OnProvisionFailure::Keep
        } else {
            agent.lifecycle.on_provision_failure
        }
    }

    fn write_down(
        &self,
        record: &ProvisioningRecord,
        action: OnProvisionFailure,
        failure: &Failure,
    ) -> Plan {
        let failed = RollbackRecord {
            incarnation: record.incarnation,
            attempt: record.attempt.unwrap_or(1),
            project: record.project.clone(),
            server_type: record.server_type.clone(),
            location: record.location.clone(),
            reason: failure.reason,
            message: rollback::message(&failure.words),
            action,
            basis: record.basis.clone(),
            at: MicroTime(self.now),
        };
        Plan::act(
            Step::WriteRollback(failed),
            rolling_back(failure.reason, &failure.words),
        )
    }

    /// What is written down of the creation of an incarnation that failed.
    pub(super) fn failed(&self, incarnation: i64) -> Option<&RollbackRecord> {
        let failed = &self.world.status.rollbacks;
        failed
            .iter()
            .rfind(|failed| failed.incarnation == incarnation)
    }

    /// What attempts are counted for.
    pub(super) fn basis(&self, agent: &Agent) -> Option<String> {
        self.world.basis(agent)
    }

    /// The number of the next attempt to create a server, or why there is none now.
    pub(super) fn next_attempt(&self, agent: &Agent) -> Result<i64, Plan> {
        let same = |record: &&ProvisioningRecord| {
            record.basis == self.basis(agent) && !self.spoke(record.incarnation)
        };
        let Some(record) = self.world.record().filter(same) else {
            return Ok(1);
        };
        let number = record.attempt.unwrap_or(1);
        let last = number >= i64::from(agent.lifecycle.max_attempts);
        let outcome = self.world.attempt.outcome;
        let answered = self.world.attempt.sent == Some(record.at.0);
        match self.failed(record.incarnation) {
            Some(failed) => self.after_failure(agent, failed, last),
            None if answered && outcome == SendOutcome::Rejected => {
                Err(self.rejected(record, agent))
            }
            None if answered
                && matches!(outcome, SendOutcome::OutOfStock | SendOutcome::Refused) =>
            {
                Ok(number)
            }
            None if last => {
                let words = format!("{} went before its agent served", record.server_name);
                Err(Plan::wait(given_up(&words, number)))
            }
            None => Ok(number + 1),
        }
    }

    fn after_failure(
        &self,
        agent: &Agent,
        failed: &RollbackRecord,
        last: bool,
    ) -> Result<i64, Plan> {
        if last || failed.action != OnProvisionFailure::Retry {
            let words = format!("{}: {}", failed.reason.as_str(), failed.message);
            return Err(Plan::wait(given_up(&words, failed.attempt)));
        }
        let begins = rollback::next_begins(failed);
        if begins <= self.now {
            return Ok(failed.attempt + 1);
        }
        let words = format!(
            "attempt {} of {} failed, the next follows: {}",
            failed.attempt, agent.lifecycle.max_attempts, failed.message
        );
        Err(Plan::wait(rolling_back(failed.reason, &words)).until(begins))
    }

    fn rejected(&self, record: &ProvisioningRecord, agent: &Agent) -> Plan {
        let why = self.world.trouble.as_ref();
        let failure = Failure {
            reason: RollbackReason::CreationRefused,
            words: why.map_or_else(
                || "Hetzner refused it".into(),
                |trouble| trouble.message.clone(),
            ),
        };
        self.write_down(record, agent.lifecycle.on_provision_failure, &failure)
    }
}

impl Failure {
    /// Whether the operator's own network can be what failed.
    fn may_be_ours(&self) -> bool {
        use RollbackReason::{FirstContactOverdue, ProvisionOverdue};
        matches!(self.reason, FirstContactOverdue | ProvisionOverdue)
    }
}

pub(super) fn rolling_back(reason: RollbackReason, words: &str) -> Stage {
    Stage::RollingBack(format!("{}: {words}", reason.as_str()))
}

fn kept(server: &ServerView, failure: &Failure) -> Stage {
    Stage::Stalled(
        "ProvisionFailed",
        format!(
            "{}: {}. Server {} is kept for a look, and billed. When the annotation {RETRY_ANNOTATION} is given a new value, it is deleted and another one bought",
            failure.reason.as_str(),
            failure.words,
            server.id
        ),
    )
}

fn given_up(words: &str, attempts: i64) -> Stage {
    let times = if attempts == 1 { "attempt" } else { "attempts" };
    Stage::Stalled(
        "ProvisionFailed",
        format!(
            "{words}. Nothing of it is left outside the cluster, and after {attempts} {times} (see status.rollbacks) nothing more is bought until class, spec or Secret is changed, or the annotation {RETRY_ANNOTATION} is given a new value"
        ),
    )
}
