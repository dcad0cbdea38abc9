//! Events for people when a condition changes, and only then.

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::runtime::events::{Event, EventType};

use crate::{
    agent_instance::plan::DELETION_HELD,
    kube_ext::Events,
    subscription::guard::{CREATIONS_HELD, TOO_MANY},
};

const BAD: [&str; 4] = ["Stalled", "RecoveryHeld", "PlanPending", "TerminationHeld"];
const READY: &str = "Ready";
/// Reasons of what is not yet as it should be because it is under way.
const PROGRESS: [&str; 16] = [
    "Suspending",
    "Creating",
    "Booting",
    "Installing",
    "Starting",
    "Updating",
    "Deleting",
    "WaitsForTurn",
    "RollingOut",
    "RolloutPaused",
    "OutsideWindow",
    // What its class tells once is not told for each of its instances.
    "RolloutStopped",
    // Nor what the guard tells once for all that it holds.
    DELETION_HELD,
    TOO_MANY,
    CREATIONS_HELD,
    "DeletionCounted",
];

/// Tells each condition that has another status, or is false for another reason, than before.
pub fn publish(
    events: &Events,
    object: &ObjectReference,
    before: &[Condition],
    after: &[Condition],
) {
    for event in transitions(before, after) {
        events.publish(object, event);
    }
}

/// A condition that is unknown, that is as it should be at its first sight, or that is on its way, is no news.
///
/// `Stalled` and `Ready` are made of the others and speak for them: one that only repeats what was told before it is left out.
fn transitions(before: &[Condition], after: &[Condition]) -> Vec<Event> {
    let mut ordered: Vec<&Condition> = after.iter().collect();
    ordered.sort_by_key(|condition| match condition.type_.as_str() {
        "Stalled" => 0,
        READY => 1,
        _ => 2,
    });
    let mut told: Vec<&Condition> = vec![];
    for new in ordered {
        if is_news(before, new) && !told.iter().any(|told| says_for(told, new)) {
            told.push(new);
        }
    }
    told.into_iter().map(event).collect()
}

fn is_news(before: &[Condition], new: &Condition) -> bool {
    let old = before.iter().find(|old| old.type_ == new.type_);
    match (old, new.status.as_str()) {
        (_, "Unknown") => false,
        (Some(old), "False") if old.reason == TOO_MANY => false,
        _ if !is_good(new) && PROGRESS.contains(&new.reason.as_str()) => false,
        (Some(old), "True") => old.status == "False",
        (None, _) => !is_good(new),
        (Some(old), _) => (&old.status, &old.reason) != (&new.status, &new.reason),
    }
}

/// Whether one that is told makes another superfluous: all is well, or the same words.
fn says_for(told: &Condition, other: &Condition) -> bool {
    let same_words = (&told.reason, &told.message) == (&other.reason, &other.message);
    is_good(told) == is_good(other) && (same_words || told.type_ == READY && is_good(told))
}

/// Of all conditions these are bad when true.
fn is_good(condition: &Condition) -> bool {
    let is_bad = BAD.contains(&condition.type_.as_str());
    (condition.status == "True") != is_bad
}

fn event(condition: &Condition) -> Event {
    Event {
        type_: if is_good(condition) || condition.reason == "Suspended" {
            EventType::Normal
        } else {
            EventType::Warning
        },
        reason: condition.reason.clone(),
        note: Some(
            format!(
                "{}={}: {}",
                condition.type_, condition.status, condition.message
            )
            .trim_end_matches([':', ' '])
            .to_owned(),
        ),
        action: condition.type_.clone(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ConditionType, condition};

    fn ready(status: Option<bool>, reason: &str) -> Vec<Condition> {
        vec![condition(ConditionType::Ready, status, reason, "")]
    }

    #[test]
    fn transitions_are_told_and_nothing_else() {
        let told = |before: &[Condition], after: Vec<Condition>| transitions(before, &after).len();
        let stalled = |status| vec![condition(ConditionType::Stalled, Some(status), "Why", "")];
        assert_eq!(told(&[], stalled(false)), 0);
        assert_eq!(told(&[], stalled(true)), 1);
        assert_eq!(told(&[], ready(None, "Checking")), 0);
        assert_eq!(told(&[], ready(Some(false), "Missing")), 1);
        assert_eq!(
            told(
                &ready(Some(false), "Missing"),
                ready(Some(false), "Missing")
            ),
            0
        );
        assert_eq!(
            told(&ready(Some(false), "Missing"), ready(Some(false), "Wrong")),
            1
        );
        assert_eq!(
            told(&ready(Some(false), "Wrong"), ready(Some(true), "Usable")),
            1
        );
        assert_eq!(
            told(&ready(None, "Checking"), ready(Some(true), "Usable")),
            0
        );
        let event = transitions(&[], &ready(Some(false), "Missing")).remove(0);
        assert_eq!(
            (event.note.as_deref(), event.type_),
            (Some("Ready=False"), EventType::Warning)
        );
    }

    fn reasons(before: &[Condition], after: &[Condition]) -> Vec<String> {
        let told = transitions(before, after).into_iter();
        told.map(|event| event.reason).collect()
    }

    #[test]
    fn what_is_under_way_is_no_news() {
        assert_eq!(
            reasons(&ready(None, "Checking"), &ready(Some(false), "Booting")),
            [""; 0]
        );
        assert_eq!(
            reasons(
                &ready(Some(false), "Booting"),
                &ready(Some(false), "OutOfStock")
            ),
            ["OutOfStock"]
        );
    }

    #[test]
    fn a_server_that_goes_off_is_news_and_so_is_an_agent_that_serves_again() {
        let serving = ready(Some(true), "Serving");
        let off = ready(Some(false), "PoweredOff");
        let boots = ready(Some(false), "Booting");
        let told = [
            reasons(&serving, &off),
            reasons(&off, &boots),
            reasons(&boots, &serving),
        ];
        assert_eq!(told.concat(), ["PoweredOff", "Serving"]);
    }

    #[test]
    fn conditions_that_say_the_same_are_told_once() {
        use ConditionType::{Healthy, Ready, ServerCreated, Stalled};
        let all = |server: (bool, &str), serves: (bool, &str), stalled: (bool, &str)| {
            [
                (ServerCreated, server),
                (Healthy, serves),
                (Ready, serves),
                (Stalled, stalled),
            ]
            .map(|(kind, (status, reason))| condition(kind, Some(status), reason, ""))
        };
        let booting = all(
            (false, "Creating"),
            (false, "Creating"),
            (false, "NotStalled"),
        );
        let created = all((true, "Created"), (false, "Booting"), (false, "NotStalled"));
        let serving = all((true, "Created"), (true, "Serving"), (false, "NotStalled"));
        let failed = all(
            (true, "Created"),
            (false, "UnitFailed"),
            (true, "UnitFailed"),
        );
        assert_eq!(reasons(&booting, &created), ["Created"]);
        assert_eq!(reasons(&created, &serving), ["Serving"]);
        assert_eq!(reasons(&serving, &failed), ["UnitFailed"]);
        assert_eq!(reasons(&failed, &serving), ["NotStalled", "Serving"]);
    }
}
