//! What is planned for a server that can become one of a listed type.

use super::*;
use crate::{agent_instance::status::status, api::Disk};

const GRACE: Duration = Duration::from_mins(1);

/// The class lists another type now, and it is this instance's turn.
fn unlisted() -> World {
    let mut world = changed!(serving(), shutdown_grace = GRACE);
    let mut agent = agent();
    for place in &mut agent.places {
        place.server_type = "cx33".into();
    }
    agent.lifecycle.disk = Disk::Preserve;
    world.class = ClassView::Usable(Box::new(agent));
    world.servers[0].retype = Retype::To("cx33".into());
    changed!(world, may_move = true)
}

fn with(mut world: World, change: impl FnOnce(&mut ServerView)) -> World {
    change(&mut world.servers[0]);
    world
}

fn off() -> World {
    with(unlisted(), |server| server.power = Power::Off)
}

#[test]
fn i14_a_kept_server_becomes_one_of_a_listed_type_with_its_disk() {
    let plan = present(&unlisted());
    assert!(
        matches!(plan.steps[..], [Step::Shutdown { id: 41, .. }]),
        "{plan:?}"
    );
    assert_eq!(reason(&plan), "Retyping");
    let asked = |second| {
        present(&with(unlisted(), |server| {
            server.guest.shut_down = Some(at(second));
        }))
    };
    assert_eq!(
        (asked(-1).steps.len(), asked(-1).look_again),
        (0, Some(at(-1) + GRACE))
    );
    assert!(matches!(
        asked(-60).steps[..],
        [Step::PowerOff { id: 41, .. }]
    ));
    let plan = present(&off());
    assert!(
        matches!(&plan.steps[..], [Step::ChangeType { id: 41, server_type, .. }] if server_type == "cx33"),
        "{plan:?}"
    );
    let waits = with(off(), |server| server.guest.powered = Some(at(-1)));
    assert_eq!(present(&waits).steps, []);
    let at_work = with(unlisted(), |server| server.power = Power::Busy);
    assert_eq!(present(&at_work).steps, []);
}

#[test]
fn a_server_keeps_its_type_until_it_is_its_turn_and_that_is_told() {
    let plan = present(&changed!(unlisted(), may_move = false));
    assert_eq!(
        (plan.steps.len(), reason(&plan)),
        (0, "NeedsOtherType".into())
    );
    let plan = present(&changed!(off(), may_move = false));
    assert!(matches!(plan.steps[..], [Step::PowerOn { .. }]), "{plan:?}");
    let paused = changed!(unlisted(), recovery.paused = true);
    assert_eq!(present(&paused).steps, []);
}

#[test]
fn a_server_that_no_listed_type_can_be_given_needs_another_one_and_one_of_which_that_is_not_known_waits()
 {
    let of = |retype| present(&with(unlisted(), |server| server.retype = retype));
    assert_eq!(reason(&of(Retype::Impossible)), "NeedsNewServer");
    assert_eq!(of(Retype::Unknown).stage, Stage::Serving(None));
    let new = with(unlisted(), |server| {
        server.boot_revision = Some("older".into());
    });
    assert_eq!(reason(&present(&new)), "NeedsNewServer");
}

#[test]
fn i6_a_server_that_comes_back_serves_only_when_a_probe_says_so() {
    let mut world = with(serving(), |server| {
        server.guest.health = None;
        server.guest.configured = None;
    });
    world.status.health = Some(HealthStatus {
        state: HealthState::Healthy,
        since: Time(at(-100)),
    });
    assert!(
        matches!(present(&world).stage, Stage::Serving(_)),
        "an operator began anew"
    );
    let back = with(world, |server| server.guest.powered = Some(at(-30)));
    assert!(matches!(present(&back).stage, Stage::Starting(_)));
}

#[test]
fn a_suspended_server_gets_its_type_in_the_dark_and_is_off_again() {
    let want = Want {
        suspend: true,
        ..want()
    };
    let suspended = |world: &World| {
        plan(
            &Desired::Present(identity(), Box::new(want.clone())),
            world,
            FLEET,
            now(),
        )
    };
    let mut dark = changed!(off(), may_move = false);
    dark.status.voice = Some(VoiceRecord {
        incarnation: None,
        epoch: 4,
    });
    // What has not said that it is silent would speak as soon as it is on.
    for unproven in [None, Some((4, false)), Some((3, true))] {
        dark.servers[0].guest.released = unproven;
        let plan = suspended(&dark);
        assert_eq!((plan.steps.len(), reason(&plan)), (0, "Suspended".into()));
    }
    dark.servers[0].guest.released = Some((4, true));
    assert!(matches!(
        suspended(&dark).steps[..],
        [Step::ChangeType { .. }]
    ));
    let on = with(dark.clone(), |server| server.power = Power::On);
    assert!(matches!(suspended(&on).steps[..], [Step::Shutdown { .. }]));
    // That it has said so is told in the status, to a process that begins anew.
    let current = dark.servers.first();
    let told = status(&dark, current, &suspended(&dark).stage, None, now());
    dark.status.server = told.server;
    dark.servers[0].guest = GuestView::default();
    let anew = |taken: VoiceRecord| {
        let mut dark = dark.clone();
        dark.status.voice = Some(taken);
        suspended(&dark).steps
    };
    let nobody = |epoch| VoiceRecord {
        incarnation: None,
        epoch,
    };
    assert!(matches!(anew(nobody(4))[..], [Step::ChangeType { .. }]));
    // It may have been given the voice since.
    assert_eq!(anew(nobody(5)), []);
}
