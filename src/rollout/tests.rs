//! What one instance is given, by what was decided and by what it tells of itself now.

use super::*;
use turns::Why;

fn class(colour: &str, disk: Disk) -> AgentClass {
    let mut class: AgentClass = serde_json::from_value(serde_json::json!({
        "apiVersion": "agentfleet.dev/v1alpha1", "kind": "AgentClass", "metadata": {"name": "small"},
        "spec": {
            "projects": ["one"], "serverTypes": ["cx23"], "locations": ["nbg1"], "image": "debian-13",
            "firewall": {"sshFrom": ["10.0.0.0/8"]},
            "agent": {"service": {"execStart": ["/bin/agent"]}, "environment": {"COLOUR": colour}}
        }
    }))
    .unwrap();
    class.spec.lifecycle.disk = disk;
    class
}

fn named(name: &str) -> Revision {
    Revision {
        name: name.into(),
        ..Revision::default()
    }
}

/// The class describes `r2`; `goal` is what all are to have.
fn standing(goal: &str) -> Standing {
    Standing {
        course: Course {
            target: named("r2"),
            attempt: "r2.ab12".into(),
            ..Course::default()
        },
        goal: named(goal),
        newcomers: named(goal),
        ..Standing::default()
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "as it is looked up, beside what was never decided"
)]
fn takes(revision: &str, moves: bool) -> Option<Turn> {
    Some(Turn::Takes {
        revision: revision.into(),
        moves,
    })
}

struct Told<'a> {
    has: Has,
    good: Option<&'a str>,
    refused: Option<&'a str>,
}

const NEW: Told<'static> = Told {
    has: Has::Nothing,
    good: None,
    refused: None,
};

fn with(revision: &str) -> Told<'_> {
    Told {
        has: Has::Revision(revision.into()),
        good: Some("r1"),
        refused: None,
    }
}

/// The revision that is given, whose content `r1` is red and `r2` green; the reason; and whether it may move.
fn given(told: Told<'_>, goal: &str, turn: Option<Turn>) -> (String, &'static str, bool) {
    given_of(&class("green", Disk::Preserve), told, goal, turn)
}

fn given_of(
    class_now: &AgentClass,
    told: Told<'_>,
    goal: &str,
    turn: Option<Turn>,
) -> (String, &'static str, bool) {
    let own = Own {
        class: class_now,
        has: told.has,
        good: told.good.map(str::to_owned),
        refused: told.refused.map(str::to_owned),
    };
    let kept = |revision: &str| (revision == "r1").then(|| class("red", Disk::Preserve));
    let given = own.share(&standing(goal), turn, kept);
    let colour = given
        .class
        .map(|class| class.spec.agent.environment["COLOUR"].clone());
    let revision = match colour.as_deref() {
        Some("red") => "r1",
        Some(_) => "r2",
        None => "none",
    };
    if revision != "none" {
        assert_eq!(given.share.revision, revision);
        assert_eq!(given.share.attempt.is_some(), revision == "r2");
    }
    let why = given.share.why.map_or("", |(reason, _)| reason);
    (revision.to_owned(), why, given.may_move)
}

#[test]
fn each_instance_is_given_what_was_decided_for_it() {
    let keeps = || Some(Turn::Keeps(Why::Waits));
    let unknown = Told {
        has: Has::Unknown,
        ..with("")
    };
    let lost = with("r0");
    // It was given a turn as a newcomer, and speaks since then.
    let newcomer = Told {
        good: None,
        ..with("r1")
    };
    let table = [
        (with("r1"), "r2", takes("r2", false), ("r2", "", false)),
        (with("r1"), "r2", takes("r2", true), ("r2", "", true)),
        (with("r1"), "r2", keeps(), ("r1", "WaitsForTurn", false)),
        (
            with("r1"),
            "r2",
            Some(Turn::Keeps(Why::Stopped)),
            ("r1", "RolloutStopped", false),
        ),
        (
            with("r2"),
            "r1",
            takes("r1", false),
            ("r1", "RolledBack", false),
        ),
        (unknown, "r2", keeps(), ("none", "WaitsForTurn", false)),
        (lost, "r2", keeps(), ("none", "WaitsForTurn", false)),
        (
            newcomer,
            "r2",
            takes("r1", false),
            ("r1", "RolledBack", false),
        ),
        (NEW, "r2", None, ("r2", "", false)),
        (NEW, "r1", None, ("r1", "RolledBack", false)),
    ];
    for (told, goal, turn, (revision, why, moves)) in table {
        let decided = format!("{turn:?} to {:?}", told.has);
        assert_eq!(
            given(told, goal, turn),
            (revision.into(), why, moves),
            "{decided}"
        );
    }
}

#[test]
fn what_an_instance_tells_now_counts_more_than_what_was_decided_before_it() {
    let refused = |refused| Told {
        refused: Some(refused),
        ..with("r2")
    };
    let turn = || takes("r2", false);
    assert_eq!(
        given(refused("r2.ab12"), "r2", turn()),
        ("r1".into(), "WentBack", false)
    );
    assert_eq!(
        given(refused("r2"), "r2", turn()),
        ("r2".into(), "", false),
        "another try"
    );
    let nothing_good = Told {
        good: None,
        ..refused("r2.ab12")
    };
    assert_eq!(given(nothing_good, "r2", turn()), ("r2".into(), "", false));
    let has_it = given(with("r2"), "r2", Some(Turn::Keeps(Why::Waits)));
    let disposable = class("green", Disk::Disposable);
    let back = given_of(&disposable, refused("r2.ab12"), "r2", turn());
    assert_eq!(
        back,
        ("r1".into(), "WentBack", true),
        "to the server that it had"
    );
    assert_eq!(has_it, ("r2".into(), "", false));
}

#[test]
fn a_new_word_of_a_person_begins_a_new_try() {
    let mut class = class("red", Disk::Preserve);
    let plain = attempt(&class, &named("r2"));
    let mut said = |word: &str| {
        class
            .annotations_mut()
            .insert(RETRY_ANNOTATION.into(), word.into());
        attempt(&class, &named("r2"))
    };
    let (first, second, none) = (said("now"), said("again"), said(""));
    assert_eq!((plain.as_str(), none.as_str()), ("r2", "r2"));
    assert!(
        first != second && first.starts_with("r2."),
        "{first} {second}"
    );
    assert_eq!(first, said("now"));
}

#[test]
fn how_its_revision_is_probed_is_told_where_another_way_is_to_come() {
    let probed = |colour, seconds| {
        let mut class = class(colour, Disk::Preserve);
        class.spec.health.interval = crate::api::Duration::from_secs(seconds);
        class
    };
    let asked = |had: u64, turn| {
        let now = probed("green", 60);
        let own = Own {
            class: &now,
            has: Has::Revision("r1".into()),
            good: Some("r1".into()),
            refused: None,
        };
        let given = own.share(&standing("r2"), turn, |_| Some(probed("red", had)));
        given
            .share
            .asked
            .map(|health| health.interval.get().as_secs())
    };
    assert_eq!(asked(5, takes("r2", false)), Some(5));
    assert_eq!(asked(60, takes("r2", false)), None, "it stays the same");
    assert_eq!(asked(5, Some(Turn::Keeps(Why::Waits))), None);
}

#[test]
fn revisions_that_differ_in_their_probes_alone_are_alike() {
    let revision = |name: &str, boot: &str, config: &str| Revision {
        name: name.into(),
        boot: boot.into(),
        config: config.into(),
    };
    let standing = Standing {
        revisions: vec![
            revision("r2", "boot", "config"),
            revision("r1", "boot", "config"),
            revision("r0", "boot", "another"),
            revision("r00", "another", "config"),
        ],
        ..standing("r2")
    };
    let class = class("green", Disk::Disposable);
    let own = Own {
        class: &class,
        has: Has::Revision("r1".into()),
        good: Some("r1".into()),
        refused: None,
    };
    let given = own.share(&standing, takes("r2", true), |_| None);
    assert_eq!(given.share.alike, ["r1"]);
    let met = ["r2", "r1", "r0", "r00"].map(|name| given.share.is_met_by(name));
    assert_eq!(met, [true, true, false, false]);
}

#[test]
fn the_revision_that_a_server_was_made_of_is_kept_though_nobody_has_it_any_more() {
    let nobody = Members {
        all: vec![],
        objects: vec![],
    };
    let used = used(&nobody, &standing("r2").course, ["r1".into()].into());
    let kept: Vec<String> = (0..8).map(|nth| format!("small-r{nth}")).collect();
    let done = Housekeeping::of("small", "r2", &kept, Some(&used));
    assert_eq!(done.drop, ["small-r0"]);
}
