//! Each line of the decision, as a table.

use super::*;

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

pub(super) fn revision(name: &str) -> Revision {
    Revision {
        name: name.into(),
        boot: "boot".into(),
        ..Revision::default()
    }
}

/// Ready for long with the former revision.
pub(super) fn old(name: &str) -> Member {
    Member {
        uid: name.into(),
        name: name.into(),
        has: Has::Revision("r1".into()),
        boot: Some("boot".into()),
        fits: Fit::Listed,
        ready: Some(at(-3600)),
        health: Some(HealthState::Healthy),
        good: Some("r1".into()),
        ..Member::default()
    }
}

fn new(name: &str) -> Member {
    Member {
        has: Has::Revision("r2".into()),
        good: Some("r2".into()),
        ..old(name)
    }
}

/// Failed on the new revision and back on its old one.
fn went_back(name: &str) -> Member {
    Member {
        refused: Some("r2".into()),
        ..old(name)
    }
}

fn down(member: Member) -> Member {
    Member {
        ready: None,
        health: Some(HealthState::Failed),
        ..member
    }
}

fn granted(member: Member) -> Member {
    Member {
        granted: Some("r2".into()),
        ..member
    }
}

pub(super) fn course() -> Course {
    Course {
        target: revision("r2"),
        attempt: "r2".into(),
        good: Some(revision("r1")),
        failed: false,
    }
}

pub(super) fn rules(max_unavailable: usize) -> Rules {
    Rules {
        max_unavailable,
        max_surge: 1,
        gate: Gate::Open,
        on_failure: OnRolloutFailure::Pause,
        held: None,
        disposable: false,
        replaces: false,
        settle: Duration::from_mins(1),
    }
}

/// A turn in one word: the revision it takes, or what it does instead.
fn word(turn: &Turn) -> String {
    match turn {
        Turn::Takes { revision, moves } => format!("{revision}{}", if *moves { "+" } else { "" }),
        Turn::Keeps(Why::Closed(_, words)) => words.clone(),
        Turn::Keeps(why) => format!("{why:?}"),
        Turn::GoesBack => "GoesBack".into(),
    }
}

fn words(turns: &Turns) -> Vec<String> {
    turns.of.iter().map(word).collect()
}

fn decided(members: &[Member], rules: &Rules) -> Vec<String> {
    words(&turns(members, &course(), rules, at(0)))
}

#[test]
fn no_more_than_may_be_unavailable_get_a_turn() {
    let all = ["a", "b", "c", "d"].map(old);
    assert_eq!(decided(&all, &rules(1)), ["r2", "Waits", "Waits", "Waits"]);
    assert_eq!(decided(&all, &rules(3)), ["r2", "r2", "r2", "Waits"]);
}

#[test]
fn a_turn_that_was_given_is_kept_and_holds_its_place() {
    let all = [old("a"), granted(old("b")), granted(down(old("c")))];
    assert_eq!(decided(&all, &rules(2)), ["Waits", "r2", "r2"]);
}

#[test]
fn who_has_it_holds_a_place_until_it_was_ready_for_a_while() {
    let ready = |seconds: i64| Member {
        ready: Some(at(-seconds)),
        ..new("a")
    };
    for (first, second) in [
        (down(new("a")), "Waits"),
        (ready(59), "Waits"),
        (ready(60), "r2"),
    ] {
        assert_eq!(decided(&[first, old("b")], &rules(1)), ["r2", second]);
    }
    let settles = turns(&[ready(59), old("b")], &course(), &rules(1), at(0)).look_again;
    assert_eq!(settles, Some(at(1)));
}

#[test]
fn those_that_fail_come_first_and_those_out_of_reach_not_at_all() {
    let silent = Member {
        ready: None,
        out_of_reach: true,
        ..old("a")
    };
    let updates = Member {
        ready: None,
        ..old("c")
    };
    let all = [silent, old("b"), updates, down(old("d"))];
    assert_eq!(
        decided(&all, &rules(1)),
        ["OutOfReach", "Waits", "Waits", "r2"]
    );
    assert_eq!(
        decided(&all, &rules(2)),
        ["OutOfReach", "Waits", "r2", "r2"]
    );
    assert_eq!(decided(&all, &rules(3)), ["OutOfReach", "r2", "r2", "r2"]);
}

#[test]
fn who_does_not_speak_takes_it_at_once_and_holds_no_place() {
    let silent = Member {
        has: Has::Nothing,
        ready: None,
        ..old("a")
    };
    assert_eq!(
        decided(&[silent.clone(), old("b")], &rules(1)),
        ["r2", "r2"]
    );
    let paused = Rules {
        gate: Gate::Paused,
        ..rules(1)
    };
    assert_eq!(decided(&[silent, old("b")], &paused), ["r2", "Paused"]);
}

#[test]
fn a_closed_gate_gives_no_turn_and_takes_none_that_has_begun() {
    let all = [
        old("a"),
        granted(old("b")),
        granted(down(old("c"))),
        new("d"),
    ];
    for (gate, word) in [
        (Gate::Paused, "Paused"),
        (Gate::Closed("OutsideWindow", "night".into()), "night"),
    ] {
        let rules = Rules { gate, ..rules(3) };
        assert_eq!(decided(&all, &rules), [word, word, "r2", "r2"]);
    }
}

#[test]
fn as_many_failures_as_may_be_unavailable_stop_it() {
    let stuck = Member {
        stalled: true,
        ..down(new("b"))
    };
    let never_ready = Member {
        good: Some("r1".into()),
        ..down(new("b"))
    };
    for failed in [went_back("b"), stuck, never_ready.clone()] {
        let told = word(&turns(std::slice::from_ref(&failed), &course(), &rules(2), at(0)).of[0]);
        let all = [went_back("a"), failed, old("c"), old("d")];
        assert_eq!(decided(&all, &rules(3))[2..], ["r2", "Waits"]);
        assert_eq!(
            decided(&all, &rules(2)),
            ["GoesBack", &told, "Stopped", "Stopped"]
        );
    }
    let late = down(new("b"));
    assert!(
        !turns(&[late], &course(), &rules(1), at(0)).progress.failed,
        "it was Ready with it"
    );
    let fresh = Member {
        good: None,
        ..never_ready
    };
    assert!(
        !turns(&[fresh], &course(), &rules(1), at(0)).progress.failed,
        "it was Ready with nothing"
    );
}

#[test]
fn a_failed_one_stays_failed_and_newcomers_get_the_last_good_one() {
    let course = Course {
        failed: true,
        ..course()
    };
    let newcomer = Member {
        has: Has::Nothing,
        ..old("a")
    };
    let decided = turns(&[newcomer, old("b"), new("c")], &course, &rules(1), at(0));
    assert_eq!(words(&decided), ["r1", "Stopped", "r2"]);
    assert!(decided.progress.failed && !decided.progress.back);
}

#[test]
fn a_rollback_is_a_rollout_of_the_last_good_one_to_all() {
    let rules = Rules {
        on_failure: OnRolloutFailure::Rollback,
        ..rules(1)
    };
    let all = [went_back("a"), new("b"), new("c"), old("d")];
    let decided = turns(&all, &course(), &rules, at(0));
    assert_eq!(words(&decided), ["r1", "r1", "Waits", "r1"]);
    assert!(decided.progress.back);
    let nothing_good = Course {
        good: None,
        ..course()
    };
    let decided = turns(&all, &nothing_good, &rules, at(0));
    assert_eq!(words(&decided), ["GoesBack", "r2", "r2", "Stopped"]);
}

#[test]
fn what_has_proven_itself_cannot_fail_any_more() {
    let good = Course {
        good: Some(revision("r2")),
        failed: true,
        ..course()
    };
    let late = Member {
        good: Some("r1".into()),
        ..down(new("b"))
    };
    assert!(
        !turns(&[late, old("c")], &good, &rules(1), at(0))
            .progress
            .failed
    );
}

#[test]
fn a_revision_is_proven_when_nobody_waits_and_most_serve_with_it() {
    let proven = |members: &[Member]| turns(members, &course(), &rules(2), at(0)).progress.proven;
    let silent = Member {
        out_of_reach: true,
        ready: None,
        ..old("d")
    };
    assert!(proven(&[new("a"), new("b"), went_back("c")]));
    assert!(proven(&[new("a"), new("b"), silent]));
    assert!(!proven(&[new("a"), new("b"), old("c")]));
    assert!(!proven(&[new("a"), down(new("b"))]));
    assert!(!proven(&[]));
}

#[test]
fn new_servers_are_given_one_beside_the_other_only_where_a_disk_is_disposable() {
    let moved = Member {
        boot: Some("older".into()),
        ..old("a")
    };
    let misfit = Member {
        fits: Fit::No,
        ..new("b")
    };
    let all = [moved.clone(), misfit.clone(), old("c")];
    assert_eq!(decided(&all, &rules(1)), ["r2", "r2", "Waits"]);
    let disposable = Rules {
        disposable: true,
        ..rules(3)
    };
    assert_eq!(decided(&all, &disposable), ["r2+", "r2", "r2"]);
    let under_way = Member {
        moving: true,
        ..misfit.clone()
    };
    assert_eq!(
        decided(&[moved.clone(), under_way.clone(), old("c")], &disposable),
        ["Waits", "r2+", "r2"]
    );
    let paused = Rules {
        gate: Gate::Paused,
        ..disposable
    };
    assert_eq!(
        decided(&[moved, under_way, misfit], &paused),
        ["Paused", "r2+", "r2"]
    );
}

#[test]
fn where_each_revision_has_servers_of_its_own_a_turn_is_a_new_server() {
    let rules = Rules {
        disposable: true,
        replaces: true,
        ..rules(3)
    };
    let all = ["a", "b"].map(old);
    assert_eq!(decided(&all, &rules), ["r2+", "Waits"], "maxSurge is 1");
    let both = Rules {
        max_surge: 2,
        ..rules.clone()
    };
    assert_eq!(decided(&all, &both), ["r2+", "r2+"]);
    let few = Rules {
        max_unavailable: 1,
        ..both.clone()
    };
    assert_eq!(decided(&all, &few), ["r2+", "Waits"], "it may fail there");
    let retyped = Member {
        fits: Fit::ByAnotherType,
        ..old("a")
    };
    assert_eq!(decided(&[retyped, old("b")], &rules), ["r2+", "Waits"]);
    // One that has it holds its place until it has settled, and needs nothing more.
    let fresh = Member {
        ready: Some(at(-1)),
        ..new("a")
    };
    let tight = Rules {
        max_unavailable: 1,
        ..rules.clone()
    };
    assert_eq!(decided(&[fresh, old("b")], &tight), ["r2", "Waits"]);
    let closed = Rules {
        gate: Gate::Paused,
        ..rules.clone()
    };
    // A process that begins anew goes on with what it finds prepared.
    let prepared = Member {
        moving: true,
        prepared: true,
        ..old("b")
    };
    assert_eq!(
        decided(&[old("a"), prepared.clone()], &closed),
        ["Paused", "r2+"]
    );
    assert_eq!(decided(&[old("a"), prepared], &rules), ["Waits", "r2+"]);
    let back = Rules {
        on_failure: OnRolloutFailure::Rollback,
        max_unavailable: 1,
        ..rules.clone()
    };
    let failed = [went_back("a"), new("b"), old("c")];
    assert_eq!(decided(&failed, &back), ["r1", "r1+", "r1"]);
    let stopped = Rules {
        max_unavailable: 1,
        ..rules
    };
    assert_eq!(decided(&failed, &stopped), ["GoesBack", "r2", "Stopped"]);
}

#[test]
fn a_server_that_becomes_one_of_another_type_is_down_meanwhile_and_takes_no_place_beside_others() {
    let another = |name| Member {
        fits: Fit::ByAnotherType,
        ..new(name)
    };
    let all = [another("a"), another("b"), old("c")];
    assert_eq!(decided(&all, &rules(1)), ["r2+", "r2", "Waits"]);
    assert_eq!(decided(&all, &rules(3)), ["r2+", "r2+", "r2"]);
    let under_way = Member {
        moving: true,
        ..another("b")
    };
    let all = [another("a"), under_way, old("c")];
    assert_eq!(decided(&all, &rules(1)), ["r2", "r2+", "Waits"]);
    let told = turns(&all, &course(), &rules(1), at(0)).progress;
    assert_eq!((told.under_way, told.kept), (vec!["b".into()], vec![]));
}

#[test]
fn progress_tells_how_far_it_is_and_who_is_waited_for() {
    let kept = Member {
        boot: Some("older".into()),
        ..new("d")
    };
    let all = [new("a"), down(new("b")), old("c"), kept];
    let told = turns(&all, &course(), &rules(1), at(0)).progress;
    assert_eq!((told.of, told.updated, told.waiting), (4, 2, 1));
    assert_eq!(
        (told.under_way, told.kept),
        (vec!["b".to_owned()], vec!["d".to_owned()])
    );
}

#[test]
fn a_quota_that_is_used_up_takes_the_turn_of_whoever_asked_for_a_server_in_vain() {
    let rules = Rules {
        gate: Gate::Closed("QuotaExceeded", "limit".into()),
        held: Some(("QuotaExceeded", "limit".into())),
        disposable: true,
        replaces: true,
        ..rules(3)
    };
    let in_vain = Member {
        moving: true,
        ..granted(old("a"))
    };
    let prepared = Member {
        prepared: true,
        ..in_vain.clone()
    };
    let told = turns(&[in_vain, prepared], &course(), &rules, at(0));
    assert_eq!(words(&told), ["limit", "r2+"]);
    assert_eq!((told.progress.gate, told.progress.waiting), (rules.gate, 1));
}

#[test]
fn i9_while_many_fall_no_server_is_begun_beside_another_and_what_is_in_place_goes_on() {
    let rules = Rules {
        held: Some(("RecoveryHeld", "many fall".into())),
        disposable: true,
        replaces: true,
        ..rules(3)
    };
    let begun = Member {
        moving: true,
        ..granted(old("b"))
    };
    let prepared = Member {
        prepared: true,
        ..begun.clone()
    };
    let handing_over = down(begun.clone());
    let all = [old("a"), begun, prepared, handing_over];
    assert_eq!(
        decided(&all, &rules),
        ["many fall", "many fall", "r2+", "r2+"]
    );
    let told = turns(&all, &course(), &rules, at(0)).progress;
    assert_eq!(
        (told.gate, told.waiting),
        (Gate::Closed("RecoveryHeld", "many fall".into()), 2)
    );
    let misfit = Member {
        fits: Fit::No,
        ..new("a")
    };
    let retyped = Member {
        fits: Fit::ByAnotherType,
        ..new("b")
    };
    let in_place = Rules {
        replaces: false,
        ..rules.clone()
    };
    let all = [misfit, retyped, old("c")];
    assert_eq!(decided(&all, &in_place), ["r2", "r2+", "r2"]);
    let paused = Rules {
        gate: Gate::Paused,
        ..rules
    };
    assert_eq!(decided(&[old("a")], &paused), ["Paused"]);
}

#[test]
fn i14_what_was_made_to_be_kept_gets_in_place_what_others_get_new_servers_for() {
    let rules = Rules {
        disposable: true,
        replaces: true,
        ..rules(3)
    };
    let kept = |member| Member {
        keeps_disk: true,
        fits: Fit::No,
        ..member
    };
    let all = [kept(old("a")), kept(new("b")), old("c")];
    assert_eq!(decided(&all, &rules), ["r2", "r2", "r2+"]);
    let told = turns(&all, &course(), &rules, at(0)).progress;
    assert_eq!(told.kept, ["b"]);
}
