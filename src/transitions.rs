//! Events for people when a condition changes, and only then.

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::runtime::events::{Event, EventType};

use crate::kube_ext::Events;

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

/// A condition that is unknown, or that is as it should be at its first sight, is no news.
fn transitions(before: &[Condition], after: &[Condition]) -> impl Iterator<Item = Event> {
    after.iter().filter_map(move |new| {
        let old = before.iter().find(|old| old.type_ == new.type_);
        let news = match (old, new.status.as_str()) {
            (_, "Unknown") => false,
            (Some(old), "True") => old.status == "False",
            (None, _) => !is_good(new),
            (Some(old), _) => (&old.status, &old.reason) != (&new.status, &new.reason),
        };
        news.then(|| event(new))
    })
}

/// Of all conditions only `Stalled` is bad when true.
fn is_good(condition: &Condition) -> bool {
    (condition.status == "True") != (condition.type_ == "Stalled")
}

fn event(condition: &Condition) -> Event {
    Event {
        type_: if is_good(condition) {
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
        let told =
            |before: &[Condition], after: Vec<Condition>| transitions(before, &after).count();
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
        let event = transitions(&[], &ready(Some(false), "Missing"))
            .next()
            .unwrap();
        assert_eq!(
            (event.note.as_deref(), event.type_),
            (Some("Ready=False"), EventType::Warning)
        );
    }
}
