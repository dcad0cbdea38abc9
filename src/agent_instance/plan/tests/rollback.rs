//! What is planned for a creation that fails.

use super::*;
use crate::api::{
    HeardOrder, HeardOrders,
    OnProvisionFailure::{self, Keep, Remove, Retry},
    RollbackReason, RollbackRecord,
};
use crate::hetzner::ActionId;

/// Long after `lifecycle.firstContactTimeout`, before `lifecycle.provisionTimeout`.
const MUTE: i64 = -400;
/// Long after both.
const OLD: i64 = -1000;

fn with_level(world: World, level: OnProvisionFailure, attempts: i32) -> World {
    let mut agent = agent();
    agent.lifecycle.on_provision_failure = level;
    agent.lifecycle.max_attempts = attempts;
    changed!(world, class = ClassView::Usable(Box::new(agent)))
}

fn with(mut world: World, change: impl FnOnce(&mut ServerView)) -> World {
    change(&mut world.servers[0]);
    world
}

/// A server whose guest says so of its installation.
fn says(phase: InstallPhase) -> World {
    with(installed(), |server| {
        server.guest.hello.as_mut().unwrap().phase = phase;
    })
}

fn broken() -> World {
    says(InstallPhase::Failed("step install 1 failed".into()))
}

fn failed(attempt: i64, action: OnProvisionFailure, reason: RollbackReason) -> RollbackRecord {
    let ProvisioningRecord {
        project,
        server_type,
        location,
        basis,
        ..
    } = record(1, 0);
    RollbackRecord {
        incarnation: attempt,
        attempt,
        project,
        server_type,
        location,
        reason,
        message: "server 41: step install 1 failed".into(),
        action,
        basis,
        at: MicroTime(now()),
    }
}

/// The same world after this was written down.
fn written(mut world: World, failed: RollbackRecord) -> World {
    world.status.rollbacks = vec![failed];
    world
}

/// Nothing is left of the attempts so far; the last was written down so many seconds ago.
fn rolled_back(attempt: i64, action: OnProvisionFailure, ago: i64) -> World {
    let mut entry = failed(attempt, action, RollbackReason::InstallFailed);
    entry.at = MicroTime(at(-ago));
    let mut world = written(ready_to_create(), entry);
    let incarnation = u32::try_from(attempt).unwrap();
    world.status.provisioning = Some(ProvisioningRecord {
        attempt: Some(attempt),
        ..record(incarnation, -100)
    });
    world.attempt.incarnation = incarnation;
    world
}

fn retried(mut world: World, second: i64) -> World {
    let order = HeardOrder {
        value: "again".into(),
        at: MicroTime(at(second)),
        incarnation: 1,
    };
    world.status.heard = Some(HeardOrders {
        retry: Some(order),
        ..HeardOrders::default()
    });
    world
}

fn deletes(plan: &Plan) -> bool {
    matches!(plan.steps[..], [Step::DeleteServer { id: 41, .. }])
}

fn written_reason(plan: &Plan) -> Option<RollbackReason> {
    match &plan.steps[..] {
        [Step::WriteRollback(failed)] => Some(failed.reason),
        _ => None,
    }
}

#[test]
fn a_failed_installation_is_written_down_before_anything_is_done_about_it() {
    for level in [Retry, Keep, Remove] {
        let plan = present(&with_level(broken(), level, 3));
        let expected = failed(1, level, RollbackReason::InstallFailed);
        assert_eq!(plan.steps, [Step::WriteRollback(expected)]);
        assert_eq!(reason(&plan), "RollingBack");
    }
}

#[test]
fn what_becomes_of_a_failed_server_is_for_the_class_to_say() {
    let after = |level| {
        let world = with_level(broken(), level, 3);
        written(world, failed(1, level, RollbackReason::InstallFailed))
    };
    for level in [Retry, Remove] {
        let plan = present(&after(level));
        assert!(deletes(&plan), "{plan:?}");
        assert_eq!(reason(&plan), "RollingBack");
    }
    let plan = present(&after(Keep));
    assert!(
        matches!(plan.steps[..], [Step::Hello { .. }]),
        "somebody may mend it: {plan:?}"
    );
    assert_eq!(reason(&plan), "ProvisionFailed");
    assert!(deletes(&present(&retried(after(Keep), 1))));
    assert!(
        !deletes(&present(&retried(after(Keep), -1))),
        "an older word"
    );
    let mended = with(after(Retry), |server| {
        server.guest.hello = Some(Hello::default());
    });
    let plan = present(&mended);
    assert!(matches!(plan.steps[..], [Step::WriteVoice(_)]), "{plan:?}");
}

#[test]
fn each_failure_is_known_by_its_time() {
    use RollbackReason::{CreationHalfFailed, FirstContactOverdue, ProvisionOverdue};
    let mute = |world: World, created: i64, tried: Option<i64>| {
        with(world, |server| {
            server.created_at = Some(at(created));
            server.guest.tried_since = tried.map(at);
            server.guest.contact = Some((ContactProblem::Silent("no route".into()), now()));
        })
    };
    let running = |created| {
        with(says(InstallPhase::Running), |server| {
            server.created_at = Some(at(created));
        })
    };
    let mut half = booting();
    half.attempt.half_failed = Some("attach_to_network failed".into());
    let suspicious = |problem: fn(String) -> ContactProblem| {
        with(mute(pinned(), OLD, Some(-20)), |server| {
            server.guest.contact = Some((problem(String::new()), now()));
        })
    };
    let later = MUTE - 3600;
    for (what, world, expected) in vec![
        (
            "mute",
            mute(booting(), MUTE, Some(-20)),
            Some(FirstContactOverdue),
        ),
        ("it has time", mute(booting(), -200, Some(-180)), None),
        (
            "not tried by this process",
            mute(booting(), MUTE, None),
            None,
        ),
        ("tried just now", mute(booting(), MUTE, Some(-14)), None),
        (
            "perhaps it served since",
            mute(booting(), later, Some(-20)),
            None,
        ),
        (
            "fell silent",
            mute(pinned(), OLD, Some(-20)),
            Some(ProvisionOverdue),
        ),
        ("it installs", mute(pinned(), MUTE, Some(-20)), None),
        ("slow", running(OLD), Some(ProvisionOverdue)),
        (
            "slow, and asked late",
            running(OLD * 100),
            Some(ProvisionOverdue),
        ),
        ("at work", running(MUTE), None),
        ("half failed", half, Some(CreationHalfFailed)),
        (
            "refuses",
            suspicious(ContactProblem::LoginRefused),
            Some(ProvisionOverdue),
        ),
        (
            "another's key",
            suspicious(ContactProblem::HostKeyChanged),
            None,
        ),
    ] {
        assert_eq!(written_reason(&present(&world)), expected, "{what}");
    }
    let soon = present(&with(running(-890), |server| server.guest.busy = true));
    assert_eq!((soon.steps.len(), soon.look_again), (0, Some(at(10))));
}

#[test]
fn hetzner_is_asked_what_became_of_a_creation_of_a_server_that_is_off_or_silent_for_long() {
    let actions = vec![ActionId(7), ActionId(8)];
    let under_way = |created: i64, asked: Option<i64>| {
        let mut world = with(booting(), |server| server.created_at = Some(at(created)));
        world.attempt.running.clone_from(&actions);
        world.attempt.asked = asked.map(at);
        world
    };
    let asks = |world: &World| {
        let project = "one".to_owned();
        let actions = actions.clone();
        present(world).steps == [Step::FollowUp { project, actions }]
    };
    let off = |world| with(world, |server| server.power = Power::Off);
    let heard = |world| with(world, |server| server.guest.hello = Some(Hello::default()));
    let known = |world| with(world, |server| server.guest.proven = Some("key".into()));
    for (what, world, expected) in vec![
        ("it has time", under_way(-149, None), false),
        ("half of it is over", under_way(-150, None), true),
        ("asked", under_way(-160, Some(-1)), false),
        ("all of it is over", under_way(-300, Some(-150)), true),
        ("asked again", under_way(-301, Some(-1)), false),
        ("off", off(under_way(-5, None)), true),
        ("off, and asked", off(under_way(-5, Some(-1))), false),
        ("it answers", heard(under_way(-150, None)), false),
        ("known", known(under_way(-150, None)), false),
        (
            "all of it ended well",
            changed!(under_way(-150, None), attempt.running = vec![]),
            false,
        ),
        (
            "of an earlier one",
            changed!(under_way(-150, None), attempt.incarnation = 0),
            false,
        ),
    ] {
        assert_eq!(asks(&world), expected, "{what}");
    }
    let busy = with(under_way(-100, None), |server| server.guest.busy = true);
    assert_eq!(present(&busy).look_again, Some(at(50)));
}

#[test]
fn i14_nothing_that_may_have_spoken_is_rolled_back() {
    let entry = || failed(1, Retry, RollbackReason::InstallFailed);
    let voice = |incarnation| {
        let voice = VoiceRecord {
            incarnation,
            epoch: 1,
        };
        changed!(broken(), status.voice = Some(voice))
    };
    let hello = |change: fn(&mut Hello)| {
        with(broken(), |server| {
            change(server.guest.hello.as_mut().unwrap());
        })
    };
    for (what, world) in [
        ("holds the voice", voice(Some(1))),
        ("it was taken from it", voice(None)),
        ("armed", hello(|hello| hello.armed = Some(1))),
        ("armed once", hello(|hello| hello.ever_armed = true)),
        (
            "taken up, or its record lost",
            changed!(broken(), status.provisioning = None),
        ),
        (
            "another is asked for",
            changed!(broken(), status.provisioning = Some(record(2, -1))),
        ),
    ] {
        for world in [world.clone(), written(world, entry())] {
            let plan = present(&world);
            assert!(!deletes(&plan), "{what}: {plan:?}");
            assert_eq!(written_reason(&plan), None, "{what}");
        }
    }
}

#[test]
fn a_person_or_a_hold_keeps_the_server() {
    let mut paused = broken();
    paused.recovery.paused = true;
    assert_eq!(reason(&present(&paused)), "InstallFailed");
    let late = with(says(InstallPhase::Running), |server| {
        server.created_at = Some(at(OLD));
    });
    let held = changed!(late, hold = Some("AgentClass small".into()));
    let plan = present(&held);
    assert_eq!((plan.steps.len(), plan.look_again), (0, Some(at(15))));
    let broken = changed!(broken(), hold = Some("AgentClass small".into()));
    assert!(written_reason(&present(&broken)).is_some());
}

#[test]
fn the_next_attempt_waits_for_its_time_and_there_are_no_more_than_allowed() {
    let plan = present(&rolled_back(1, Retry, 9));
    assert_eq!((plan.steps.len(), plan.look_again), (0, Some(at(1))));
    assert_eq!(reason(&plan), "RollingBack");
    let second = ProvisioningRecord {
        attempt: Some(2),
        ..record(2, 0)
    };
    let again = present(&rolled_back(1, Retry, 10));
    assert_eq!(again.steps, [Step::Announce(second)]);
    for (what, world) in [
        ("the last", rolled_back(3, Retry, 9999)),
        ("as the class says", rolled_back(1, Keep, 9999)),
        ("nor removed", rolled_back(1, Remove, 9999)),
        (
            "fewer now",
            with_level(rolled_back(2, Retry, 9999), Retry, 2),
        ),
    ] {
        let plan = present(&world);
        assert_eq!((plan.steps.len(), plan.look_again), (0, None), "{what}");
        assert_eq!(reason(&plan), "ProvisionFailed", "{what}");
    }
}

#[test]
fn attempts_are_counted_anew_when_something_changed_or_a_person_says_so() {
    let first = |basis: &str, retry| {
        let basis = Some(agent().basis(basis, retry));
        let world = changed!(
            rolled_back(3, Remove, 1),
            secrets = SecretsView::Met { tag: "new".into() }
        );
        let next = ProvisioningRecord {
            attempt: Some(1),
            basis,
            ..record(4, 0)
        };
        (world, [Step::Announce(next)])
    };
    let (world, steps) = first("new", &[None; 2]);
    assert_eq!(present(&world).steps, steps, "another Secret");
    let (world, steps) = first("new", &[Some("again"), None]);
    assert_eq!(present(&retried(world, 0)).steps, steps);
    let (mut world, steps) = first("new", &[None, Some("r2.ab12")]);
    world.rollout.attempt = Some("r2.ab12".into());
    assert_eq!(present(&world).steps, steps, "another try of the rollout");
    let generation = |number| {
        let mut class = class();
        class.metadata.generation = Some(number);
        let of = |generation| Want {
            generation,
            ..want()
        };
        [None, Some(1)].map(|own| {
            Agent::of(&class, &of(own))
                .unwrap()
                .basis("tag", &[None; 2])
        })
    };
    let all: std::collections::BTreeSet<_> = [1, 2].into_iter().flat_map(generation).collect();
    assert_eq!(all.len(), 4);
}

/// The request of the record in hand was answered so.
fn answered(mut world: World, outcome: SendOutcome) -> World {
    let at = world.status.provisioning.as_ref().map(|record| record.at.0);
    (world.attempt.sent, world.attempt.outcome) = (at, outcome);
    world
}

#[test]
fn a_refused_creation_is_an_attempt_and_one_that_finds_no_stock_is_none() {
    let mut world = recorded(-1);
    world.status.provisioning.as_mut().unwrap().attempt = Some(2);
    let next = |attempt| ProvisioningRecord {
        attempt: Some(attempt),
        ..record(2, 0)
    };
    for outcome in [SendOutcome::OutOfStock, SendOutcome::Refused] {
        let plan = present(&answered(world.clone(), outcome));
        assert_eq!(plan.steps, [Step::Announce(next(2))]);
    }
    let rejected = answered(world.clone(), SendOutcome::Rejected);
    let plan = present(&rejected);
    assert_eq!(written_reason(&plan), Some(RollbackReason::CreationRefused));
    let gone = answered(world, SendOutcome::Created);
    assert_eq!(present(&gone).steps, [Step::Announce(next(3))]);
    let gone = with_level(gone, Retry, 2);
    assert_eq!(reason(&present(&gone)), "ProvisionFailed");
}

#[test]
fn the_server_that_takes_the_place_of_one_that_served_is_a_first_attempt() {
    let mut world = recorded(-100);
    world.attempt.outcome = SendOutcome::Created;
    world.status.provisioning.as_mut().unwrap().attempt = Some(3);
    world.status.voice = Some(VoiceRecord {
        incarnation: Some(1),
        epoch: 4,
    });
    assert_eq!(present(&world).steps, [Step::Announce(record(2, 0))]);
}
