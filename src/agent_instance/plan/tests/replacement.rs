//! What is planned for a server that another one takes the place of.

use super::*;
use crate::api::{Disk, HeardOrder, HeardOrders};

const OTHER: &str = "another";

/// The class asks for what only a new server can take up.
fn outdated(disk: Disk) -> World {
    let mut wanted = agent();
    wanted.boot_revision = OTHER.into();
    wanted.lifecycle.disk = disk;
    let class = ClassView::Usable(Box::new(wanted));
    changed!(changed!(serving(), class = class), may_move = true)
}

/// A new server beside it, as far as this.
fn beside(mut world: World, hello: Option<InstallPhase>) -> World {
    let mut next = server(2);
    next.boot_revision = Some(OTHER.into());
    next.guest.proven = hello.as_ref().map(|_| "ssh-ed25519 BBBB".into());
    next.guest.hello = hello.map(|phase| Hello {
        phase,
        ..Hello::default()
    });
    world.status.provisioning = Some(record(2, -20));
    world.attempt.incarnation = 2;
    world.servers.push(next);
    world
}

fn prepared(disk: Disk) -> World {
    beside(outdated(disk), Some(InstallPhase::Done))
}

/// Nobody has the voice.
fn taken(disk: Disk) -> World {
    let mut world = prepared(disk);
    world.status.voice = Some(VoiceRecord {
        incarnation: None,
        epoch: 4,
    });
    world
}

fn with_old(mut world: World, change: impl FnOnce(&mut ServerView)) -> World {
    change(&mut world.servers[0]);
    world
}

/// A person gave the server up.
fn given_up(world: World) -> World {
    let order = HeardOrder {
        value: "now".into(),
        at: MicroTime(now()),
        incarnation: 1,
    };
    let orders = HeardOrders {
        recreate: Some(order),
        ..HeardOrders::default()
    };
    changed!(world, status.heard = Some(orders))
}

fn ordered(world: &World) -> Plan {
    let want = Want {
        recreate: Some("now".into()),
        ..want()
    };
    let desired = Desired::Present(identity(), Box::new(want));
    plan(&desired, world, FLEET, now())
}

#[test]
fn a_disposable_server_is_replaced_when_it_is_its_turn_and_serves_meanwhile() {
    let plan = present(&outdated(Disk::Disposable));
    assert!(matches!(&plan.steps[..], [Step::Announce(next)] if next.incarnation == 2));
    assert!(matches!(plan.stage, Stage::Serving(Some(("Replacing", _)))));
    let waits = changed!(outdated(Disk::Disposable), may_move = false);
    assert!(present(&waits).steps.is_empty());
    let installs = |phase| present(&beside(outdated(Disk::Disposable), Some(phase)));
    let plan = installs(InstallPhase::Running);
    assert!(matches!(plan.steps[..], [Step::Hello { server: 42, .. }]));
    assert_eq!(reason(&plan), "Replacing");
    // A creation like any other.
    let plan = installs(InstallPhase::Failed("no".into()));
    assert!(matches!(plan.steps[..], [Step::WriteRollback(_)]));
    assert_eq!(reason(&plan), "Replacing");
}

#[test]
fn i14_a_preserved_server_is_replaced_by_a_persons_word_alone_which_is_written_down_once() {
    let kept = outdated(Disk::Preserve);
    let plan = present(&kept);
    assert_eq!(
        (plan.steps.len(), reason(&plan)),
        (0, "NeedsNewServer".into())
    );
    let plan = ordered(&kept);
    let [Step::Hear(orders)] = &plan.steps[..] else {
        panic!("{plan:?}");
    };
    let heard = orders.recreate.as_ref().unwrap();
    assert_eq!((heard.value.as_str(), heard.incarnation), ("now", 1));
    let plan = ordered(&given_up(kept));
    assert!(matches!(plan.steps[..], [Step::Announce(_)]), "{plan:?}");
    let lost = changed!(given_up(serving()), servers = vec![]);
    let plan = ordered(&changed!(lost, known = Known::Gone));
    assert!(matches!(plan.steps[..], [Step::Announce(_)]), "{plan:?}");
}

#[test]
fn i13_the_voice_is_taken_then_the_old_server_is_silenced_then_the_new_one_has_it() {
    let plan = present(&prepared(Disk::Disposable));
    let nobody = VoiceRecord {
        incarnation: None,
        epoch: 4,
    };
    assert_eq!(plan.steps, [Step::WriteVoice(nobody)]);
    let plan = present(&taken(Disk::Disposable));
    assert_eq!(
        plan.steps,
        [Step::Release {
            server: 41,
            incarnation: 1,
            epoch: 4
        }]
    );
    let silent = with_old(taken(Disk::Disposable), |old| {
        old.guest.released = Some((4, true));
    });
    assert_eq!(silent.front(UID).map(|front| front.id), Some(42));
    // Its host key is written down before anything else is.
    assert_eq!(present(&silent).steps, []);
    let mut told = silent;
    let status = told.status.server.as_mut().unwrap();
    (status.id, status.incarnation) = (42, 2);
    let given = VoiceRecord {
        incarnation: Some(2),
        epoch: 5,
    };
    assert_eq!(present(&told).steps, [Step::WriteVoice(given)]);
}

#[test]
fn i13_a_server_that_is_not_silent_since_is_told_again_or_goes_first() {
    for (released, contact, expected) in [
        (Some((3, true)), None, "release"),
        (Some((4, false)), None, "delete"),
        (
            None,
            Some(ContactProblem::Silent("no route".into())),
            "delete",
        ),
    ] {
        let world = with_old(taken(Disk::Disposable), |old| {
            old.guest.released = released;
            old.guest.contact = contact.map(|problem| (problem, at(-1)));
        });
        let plan = present(&world);
        match (expected, &plan.steps[..]) {
            ("release", [Step::Release { server: 41, .. }])
            | ("delete", [Step::DeleteServer { id: 41, .. }]) => {}
            _ => panic!("{expected}: {plan:?}"),
        }
    }
}

#[test]
fn the_old_server_goes_when_the_agent_serves_on_the_new_one_and_the_new_one_when_it_is_not_needed()
{
    let mut moved = prepared(Disk::Disposable);
    moved.status.voice = Some(VoiceRecord {
        incarnation: Some(2),
        epoch: 5,
    });
    let status = moved.status.server.as_mut().unwrap();
    (status.id, status.incarnation) = (42, 2);
    let starting = moved.clone();
    moved.servers[1].guest.health = Some(HealthView {
        health: agent().health,
        epoch: 5,
        state: Some(HealthState::Healthy),
        words: String::new(),
    });
    let gone = |plan: &Plan, gone: i64| {
        let is = |step: &Step| matches!(step, Step::DeleteServer { id, .. } if *id == gone);
        plan.steps.iter().any(is)
    };
    assert!(gone(&present(&moved), 41));
    let starting = changed!(starting, status.config_revision = None);
    assert!(!gone(&present(&starting), 41));
    let back = changed!(
        prepared(Disk::Disposable),
        class = ClassView::Usable(Box::new(agent()))
    );
    assert!(gone(&present(&back), 42));
}
