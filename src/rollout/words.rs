//! What people are told of a rollout.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    Look,
    turns::{Gate, Progress, Why},
};
use crate::api::{ConditionType, RETRY_ANNOTATION, condition};

/// So many names are told.
const NAMES: usize = 3;

/// Why an instance keeps what it has: reason and message.
pub fn keeps(class: &str, target: &str, why: &Why) -> (&'static str, String) {
    let (reason, words) = match why {
        Why::Waits => (
            "WaitsForTurn",
            "it gets it when others of its class are done with it".to_owned(),
        ),
        Why::OutOfReach => ("WaitsForTurn", "it gets it when it can be reached".into()),
        Why::Paused => (
            "RolloutPaused",
            "spec.lifecycle.rollout.paused of the class is true".into(),
        ),
        Why::Closed(reason, words) => (*reason, words.clone()),
        Why::Stopped => (
            "RolloutStopped",
            "it failed on others; see the condition UpToDate of the class".into(),
        ),
    };
    (
        reason,
        format!("AgentClass {class} has revision {target}: {words}"),
    )
}

/// Reason of an instance that went back.
pub const WENT_BACK: &str = "WentBack";

/// Why an instance went back from a revision; the cause may not be known any more.
pub fn went_back(target: &str, good: &str, cause: &str) -> String {
    let colon = if cause.is_empty() { "" } else { ": " };
    format!(
        "revision {target} of the class failed here, so it goes on with {good} ({}){colon}{cause}",
        cure()
    )
}

/// Why an instance is to have another revision than the newest, if it is.
pub fn behind(class: &str, target: &str, goal: &str) -> Option<(&'static str, String)> {
    (goal != target).then(|| {
        let words = format!(
            "revision {target} of AgentClass {class} failed, so its instances are to have {goal}; {}",
            cure()
        );
        ("RolledBack", words)
    })
}

fn cure() -> String {
    format!(
        "change the class, or try it once more by a new value of its annotation {RETRY_ANNOTATION}"
    )
}

/// Where the rollout of a class stands.
pub fn told(look: &Look) -> Condition {
    let (progress, target) = (&look.progress, &look.course.target.name);
    let updated = progress.updated == progress.of;
    let (reason, message) = match &progress.gate {
        _ if progress.back => ("RolledBack", rolled_back(look)),
        _ if progress.failed => ("RolloutFailed", failed(look)),
        _ if updated => ("Updated", String::new()),
        Gate::Paused if progress.waiting > 0 => (
            "RolloutPaused",
            so_far(target, progress, "spec.lifecycle.rollout.paused is true"),
        ),
        Gate::Closed(reason, words) if progress.waiting > 0 => {
            (*reason, so_far(target, progress, words))
        }
        _ => under_way(target, progress),
    };
    let good = updated && !progress.failed;
    condition(ConditionType::UpToDate, Some(good), reason, message)
}

fn so_far(goal: &str, progress: &Progress, words: &str) -> String {
    let Progress { updated, of, .. } = progress;
    format!("{updated} of {of} instances have revision {goal}; {words}")
}

fn under_way(target: &str, progress: &Progress) -> (&'static str, String) {
    let Progress {
        under_way,
        out_of_reach,
        kept,
        fallen,
        waiting,
        ..
    } = progress;
    let (reason, words) = if !under_way.is_empty() || *waiting > 0 {
        ("RollingOut", format!("waits for {}", list(under_way)))
    } else if !fallen.is_empty() {
        (
            "SomeWentBack",
            format!("it failed on {}; {}", list(fallen), cure()),
        )
    } else if !kept.is_empty() {
        let words = format!(
            "only a new server could take up the rest of it, and the disks of these are kept: {}",
            list(kept)
        );
        ("NeedsNewServer", words)
    } else {
        (
            "OutOfReach",
            format!("these cannot be reached: {}", list(out_of_reach)),
        )
    };
    (reason, so_far(target, progress, &words))
}

fn failed(look: &Look) -> String {
    let target = &look.course.target.name;
    let words = format!(
        "it failed on {}, and no further instance gets it; {}",
        list(&look.progress.fallen),
        cure()
    );
    so_far(target, &look.progress, &words)
}

fn rolled_back(look: &Look) -> String {
    let words = format!(
        "{} failed on {}, so all go back; {}",
        look.course.target.name,
        list(&look.progress.fallen),
        cure()
    );
    so_far(&look.goal.name, &look.progress, &words)
}

fn list(names: &[String]) -> String {
    match names {
        [] => "others".into(),
        names if names.len() <= NAMES => names.join(", "),
        names => format!(
            "{} and {} more",
            names[..NAMES].join(", "),
            names.len() - NAMES
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::turns::{Course, Revision};
    use super::*;

    fn told_of(progress: Progress) -> (String, String, String) {
        let revision = |name: &str| Revision {
            name: name.into(),
            ..Revision::default()
        };
        let goal = revision(if progress.back { "r1" } else { "r2" });
        let course = Course {
            target: revision("r2"),
            ..Course::default()
        };
        let told = told(&Look {
            course,
            goal,
            progress,
            ..Look::default()
        });
        (told.status, told.reason, told.message)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_condition_of_a_class_says_how_far_it_is_and_what_it_waits_for() {
        let at = |updated, waiting| Progress {
            of: 20,
            updated,
            waiting,
            ..Progress::default()
        };
        let gate = |gate| Progress { gate, ..at(3, 17) };
        let table = [
            (Progress::default(), "Updated", ""),
            (at(20, 0), "Updated", ""),
            (
                Progress {
                    under_way: names(&["a", "b"]),
                    ..at(3, 15)
                },
                "RollingOut",
                "3 of 20 instances have revision r2; waits for a, b",
            ),
            (gate(Gate::Paused), "RolloutPaused", "paused is true"),
            (
                gate(Gate::Closed("OutsideWindow", "it is day".into())),
                "OutsideWindow",
                "r2; it is day",
            ),
            (
                Progress {
                    kept: names(&["a", "b", "c", "d", "e"]),
                    ..at(15, 0)
                },
                "NeedsNewServer",
                "are kept: a, b, c and 2 more",
            ),
            (
                Progress {
                    out_of_reach: names(&["a"]),
                    ..at(19, 0)
                },
                "OutOfReach",
                "cannot be reached: a",
            ),
            (
                Progress {
                    fallen: names(&["a"]),
                    ..at(19, 0)
                },
                "SomeWentBack",
                "it failed on a; change the class",
            ),
            (
                Progress {
                    failed: true,
                    fallen: names(&["a", "b"]),
                    ..at(2, 18)
                },
                "RolloutFailed",
                "r2; it failed on a, b, and no further instance gets it; change the class, or try it once more by a new value of",
            ),
            (
                Progress {
                    failed: true,
                    back: true,
                    fallen: names(&["a"]),
                    ..at(20, 0)
                },
                "RolledBack",
                "20 of 20 instances have revision r1; r2 failed on a, so all go back",
            ),
        ];
        for (progress, reason, words) in table {
            let (status, said, message) = told_of(progress);
            assert_eq!(
                (said.as_str(), status == "True"),
                (reason, reason == "Updated")
            );
            assert!(message.contains(words), "{message}");
        }
    }
}
