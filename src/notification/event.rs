//! What there is to tell of an instance: a pure function of its status and of what was told last.
//!
//! An event is made of a condition's words and of nothing else: what is not in the status cannot get out this way (I5). Recoveries and updates
//! that nobody was told the beginning of are told by their end only; what is under way is no news.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::{SignedDuration, Timestamp},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::api::{AgentInstanceStatus, ConditionType, Notice, NotifiedStatus, TimingStep};

/// How much of a condition's message is told, in bytes.
const MESSAGE_MAX: usize = 1024;
/// Of its reason.
const REASON_MAX: usize = 256;

/// One event about one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub notice: Notice,
    /// The condition's reason.
    pub reason: String,
    /// The condition's message.
    pub message: String,
    /// When it happened.
    pub at: Timestamp,
    /// The same each time this is sent, and no other event's.
    pub id: String,
}

/// Whom an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Name of the fleet.
    pub fleet: String,
    /// Namespace of the instance.
    pub namespace: String,
    /// Name of the instance.
    pub name: String,
    /// UID of the instance.
    pub uid: String,
    /// Name of its class.
    pub class: String,
    /// The number of its newest server.
    pub incarnation: u32,
}

impl Event {
    /// The end of an instance whose deletion was asked for at `at`.
    pub fn deleted(uid: &str, told: Option<&NotifiedStatus>, at: Timestamp) -> Self {
        Self::new(
            uid,
            told,
            Notice::Deleted,
            ("Deleted", "it was deleted"),
            at,
        )
    }

    /// What is announced of a subscription's agent; `at` is the time that it tells.
    pub fn announced(uid: &str, notice: Notice, message: &str, at: Timestamp) -> Self {
        Self::new(uid, None, notice, (notice.as_str(), message), at)
    }

    /// The id goes on from that of the event before, so that a thing that happens again is another event.
    fn new(
        uid: &str,
        told: Option<&NotifiedStatus>,
        notice: Notice,
        (reason, message): (&str, &str),
        at: Timestamp,
    ) -> Self {
        let reason = cut(reason, REASON_MAX);
        let before = told.map_or("", |told| told.id.as_str());
        let mut hash = Sha256::new();
        for part in [uid, before, notice.as_str(), reason, &at.to_string()] {
            hash.update(part);
            hash.update([0]);
        }
        Self {
            notice,
            reason: reason.to_owned(),
            message: cut(message, MESSAGE_MAX).to_owned(),
            at,
            id: hex::encode(&hash.finalize()[..16]),
        }
    }

    /// What the status says of it once it was taken.
    pub fn taken(&self) -> NotifiedStatus {
        NotifiedStatus {
            event: self.notice,
            reason: self.reason.clone(),
            at: Time(self.at),
            id: self.id.clone(),
        }
    }

    /// The event as `CloudEvents` 1.0 writes it in JSON.
    ///
    /// Source: <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>.
    pub fn json(&self, subject: &Subject) -> String {
        let Subject {
            fleet,
            namespace,
            name,
            uid,
            class,
            incarnation,
        } = subject;
        json!({
            "specversion": "1.0",
            "id": self.id,
            "source": format!("/agentfleet/{fleet}"),
            "type": format!("dev.agentfleet.instance.{}", self.notice.as_str()),
            "subject": format!("{namespace}/{name}"),
            "time": self.at.to_string(),
            "datacontenttype": "application/json",
            "data": {
                "namespace": namespace,
                "name": name,
                "uid": uid,
                "class": class,
                "incarnation": incarnation,
                "reason": self.reason,
                "message": self.message,
            },
        })
        .to_string()
    }
}

/// The event that is due for an instance that shall live.
pub fn due(
    uid: &str,
    status: &AgentInstanceStatus,
    told: Option<&NotifiedStatus>,
) -> Option<Event> {
    let (stands, condition) = standing(status)?;
    let last = told.map(|told| told.event);
    let notice = match (stands, last) {
        (Notice::Ready, Some(Notice::Ready | Notice::Recovered | Notice::Resumed)) => {
            was_brought_back(status, condition, told?).then_some(Notice::Recovered)?
        }
        (Notice::Ready, Some(Notice::Stalled)) => Notice::Recovered,
        (Notice::Ready, Some(Notice::Suspended)) => Notice::Resumed,
        (stands, Some(last))
            if stands == last && told?.reason == cut(&condition.reason, REASON_MAX) =>
        {
            return None;
        }
        (stands, _) => stands,
    };
    let words = (condition.reason.as_str(), condition.message.as_str());
    Some(Event::new(
        uid,
        told,
        notice,
        words,
        condition.last_transition_time.0,
    ))
}

/// What an instance has come to, with the condition that says so; none while it is under way.
fn standing(status: &AgentInstanceStatus) -> Option<(Notice, &Condition)> {
    let stalled = found(status, ConditionType::Stalled)?;
    let ready = found(status, ConditionType::Ready)?;
    if stalled.status == "True" {
        return Some((stalled_as(status, stalled), stalled));
    }
    match (ready.status.as_str(), ready.reason.as_str()) {
        ("True", _) => {
            let not_updated = found(status, ConditionType::UpToDate)
                .filter(|condition| condition.status == "False");
            match not_updated.map(|condition| (condition.reason.as_str(), condition)) {
                Some(("ConfigureFailed", condition)) => Some((Notice::UpdateFailed, condition)),
                Some(("WentBack", condition)) => Some((Notice::RolledBack, condition)),
                _ => Some((Notice::Ready, ready)),
            }
        }
        (_, "Suspended") => Some((Notice::Suspended, ready)),
        _ => None,
    }
}

/// A server on which no agent has ever served is a creation that failed; the times of one that was taken up are not known.
fn stalled_as(status: &AgentInstanceStatus, stalled: &Condition) -> Notice {
    let created = found(status, ConditionType::ServerCreated);
    let without_server = created.is_some_and(|created| created.status != "True");
    let timings = &status.timings;
    let served = timings
        .iter()
        .any(|timing| timing.step == TimingStep::Ready);
    match stalled.reason.as_str() {
        "ProvisionFailed" if without_server => Notice::RolledBack,
        "ProvisionFailed" => Notice::Failed,
        _ if !timings.is_empty() && !served => Notice::Failed,
        _ => Notice::Stalled,
    }
}

/// Whether it fell and serves again since that was told, and something was done for it; times of conditions are whole seconds.
fn was_brought_back(
    status: &AgentInstanceStatus,
    ready: &Condition,
    told: &NotifiedStatus,
) -> bool {
    let a_second_later = told.at.0 + SignedDuration::from_secs(1);
    let tried = status.recovery.last();
    ready.last_transition_time.0 > told.at.0
        && tried.is_some_and(|tried| tried.at.0 >= a_second_later)
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn found(status: &AgentInstanceStatus, kind: ConditionType) -> Option<&Condition> {
    let mut conditions = status.conditions.iter();
    conditions.find(|condition| condition.type_ == kind.as_str())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::*;
    use crate::api::{RecoveryAction, RecoveryRecord, Timing, condition, set_condition};

    const UID: &str = "uid-1";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    /// A status whose conditions are these since that second.
    fn status(second: i64, conditions: &[(ConditionType, bool, &str)]) -> AgentInstanceStatus {
        let mut status = AgentInstanceStatus::default();
        let calm = [(ConditionType::Stalled, false, "NotStalled")];
        for (kind, holds, reason) in calm.iter().chain(conditions) {
            let condition = condition(*kind, Some(*holds), reason, format!("{reason}, it says"));
            set_condition(&mut status.conditions, condition, None, at(second));
        }
        status
    }

    fn ready(second: i64) -> AgentInstanceStatus {
        status(second, &[(ConditionType::Ready, true, "Serving")])
    }

    fn stalled(second: i64, reason: &str) -> AgentInstanceStatus {
        let both = [ConditionType::Stalled, ConditionType::Ready];
        status(
            second,
            &both.map(|kind| (kind, kind == ConditionType::Stalled, reason)),
        )
    }

    fn suspended(second: i64) -> AgentInstanceStatus {
        status(second, &[(ConditionType::Ready, false, "Suspended")])
    }

    fn not_updated(second: i64, reason: &str) -> AgentInstanceStatus {
        let ready = (ConditionType::Ready, true, "Serving");
        status(second, &[ready, (ConditionType::UpToDate, false, reason)])
    }

    fn tried(second: i64, mut status: AgentInstanceStatus) -> AgentInstanceStatus {
        status.recovery.push(RecoveryRecord {
            action: RecoveryAction::Restart,
            at: MicroTime(at(second)),
            reason: "the unit is failed".into(),
        });
        status
    }

    fn reached(step: TimingStep, mut status: AgentInstanceStatus) -> AgentInstanceStatus {
        status.timings.push(Timing {
            step,
            at: MicroTime(at(0)),
        });
        status
    }

    /// What is told of one status after the other, all of it taken.
    fn told(life: &[AgentInstanceStatus]) -> Vec<(Notice, String)> {
        let (mut last, mut all) = (None, vec![]);
        for status in life {
            if let Some(event) = due(UID, status, last.as_ref()) {
                last = Some(event.taken());
                all.push((event.notice, event.reason));
            }
            assert_eq!(due(UID, status, last.as_ref()), None, "told twice");
        }
        all
    }

    fn notices(life: &[AgentInstanceStatus]) -> Vec<Notice> {
        told(life).into_iter().map(|(notice, _)| notice).collect()
    }

    fn under_way(second: i64, reason: &str) -> AgentInstanceStatus {
        status(second, &[(ConditionType::Ready, false, reason)])
    }

    #[test]
    fn what_is_under_way_is_not_told() {
        assert_eq!(due(UID, &AgentInstanceStatus::default(), None), None);
        for reason in [
            "Creating",
            "Booting",
            "Restarting",
            "ProbeFailed",
            "Suspending",
        ] {
            assert_eq!(due(UID, &under_way(1, reason), None), None, "{reason}");
        }
    }

    #[test]
    fn a_life_is_told_by_its_transitions_and_each_one_time() {
        use Notice::{Ready, Recovered, Resumed, Stalled, Suspended};
        let life = [
            under_way(1, "Booting"),
            ready(10),
            suspended(20),
            under_way(25, "Booting"),
            ready(30),
            tried(40, under_way(40, "Restarting")),
            tried(40, ready(45)),
            stalled(50, "RecoveryExhausted"),
            stalled(60, "ServerLost"),
            ready(70),
        ];
        assert_eq!(
            notices(&life),
            [
                Ready, Suspended, Resumed, Recovered, Stalled, Stalled, Recovered
            ]
        );
    }

    #[test]
    fn an_agent_that_is_ready_again_without_help_is_no_news() {
        let life = [
            ready(10),
            tried(20, ready(25)),
            tried(20, under_way(30, "Updating")),
            tried(20, ready(35)),
        ];
        assert_eq!(notices(&life), [Notice::Ready, Notice::Recovered]);
        let at_once = [tried(10, ready(10)), tried(10, ready(20))];
        assert_eq!(
            notices(&at_once),
            [Notice::Ready],
            "tried before it was told"
        );
    }

    #[test]
    fn a_creation_that_fails_and_an_agent_that_fell_have_words_of_their_own() {
        let first = reached(TimingStep::Answered, stalled(5, "InstallFailed"));
        assert_eq!(
            notices(&[first.clone(), ready(9)]),
            [Notice::Failed, Notice::Ready]
        );
        let served = reached(TimingStep::Ready, stalled(5, "RecoveryExhausted"));
        assert_eq!(notices(&[served]), [Notice::Stalled]);
        assert_eq!(notices(&[stalled(5, "AdoptOrDelete")]), [Notice::Stalled]);
        let kept = stalled(5, "ProvisionFailed");
        assert_eq!(notices(std::slice::from_ref(&kept)), [Notice::Failed]);
        let mut removed = kept;
        let gone = condition(
            ConditionType::ServerCreated,
            Some(false),
            "ProvisionFailed",
            "",
        );
        set_condition(&mut removed.conditions, gone, None, at(5));
        assert_eq!(notices(&[removed]), [Notice::RolledBack]);
    }

    #[test]
    fn an_update_that_fails_is_told_and_so_is_the_next_that_does_not() {
        use Notice::{Ready, RolledBack, UpdateFailed};
        let life = [
            ready(10),
            not_updated(20, "ConfigureFailed"),
            not_updated(30, "WentBack"),
            not_updated(30, "NeedsNewServer"),
            not_updated(30, "WaitsForTurn"),
        ];
        assert_eq!(notices(&life), [Ready, UpdateFailed, RolledBack, Ready]);
    }

    #[test]
    fn an_event_keeps_its_id_until_it_is_taken_and_shares_it_with_none() {
        let first = due(UID, &ready(10), None).unwrap();
        assert_eq!(due(UID, &ready(10), None).unwrap(), first);
        let taken = first.taken();
        let ids = [
            first.id.clone(),
            due("uid-2", &ready(10), None).unwrap().id,
            due(UID, &ready(11), None).unwrap().id,
            due(UID, &suspended(20), Some(&taken)).unwrap().id,
            due(UID, &suspended(20), None).unwrap().id,
            Event::deleted(UID, Some(&taken), at(30)).id,
        ];
        let mut distinct = ids.to_vec();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
        assert_eq!(Event::deleted(UID, Some(&taken), at(30)).id, ids[5]);
    }

    #[test]
    fn what_waits_is_overtaken_by_what_is_so_now() {
        let told = due(UID, &ready(10), None).unwrap().taken();
        let waits = due(UID, &suspended(20), Some(&told)).unwrap();
        assert_eq!(waits.notice, Notice::Suspended);
        assert_eq!(due(UID, &ready(30), Some(&told)), None, "as it was told");
    }

    #[test]
    fn an_event_holds_a_conditions_words_and_its_subject_and_is_bounded() {
        let long = "é".repeat(MESSAGE_MAX);
        let mut status = suspended(20);
        let said = condition(ConditionType::Ready, Some(false), "Suspended", long);
        set_condition(&mut status.conditions, said, None, at(20));
        let event = due(UID, &status, None).unwrap();
        assert_eq!(event.message.len(), MESSAGE_MAX);
        let subject = Subject {
            fleet: "bed".into(),
            namespace: "agents".into(),
            name: "alice".into(),
            uid: UID.into(),
            class: "small".into(),
            incarnation: 2,
        };
        let written: serde_json::Value = serde_json::from_str(&event.json(&subject)).unwrap();
        let expected = json!({
            "specversion": "1.0", "id": event.id, "source": "/agentfleet/bed", "type": "dev.agentfleet.instance.suspended",
            "subject": "agents/alice", "time": "1970-01-12T13:47:00Z", "datacontenttype": "application/json",
            "data": {
                "namespace": "agents", "name": "alice", "uid": UID, "class": "small", "incarnation": 2,
                "reason": "Suspended", "message": "é".repeat(MESSAGE_MAX / 2),
            },
        });
        assert_eq!(written, expected);
    }
}
