//! What is planned for an instance that is deleted together with others.

use super::*;
use crate::agent_instance::world::DeletionView;

fn absent(world: &World) -> Plan {
    plan(&Desired::Absent(identity()), world, FLEET, now())
}

/// Deleted, with or without too many others, some time ago.
fn deleted(world: World, too_many: Option<bool>) -> World {
    World {
        deletion: Some(DeletionView {
            held: false,
            too_many,
            settles: at(-1),
        }),
        ..world
    }
}

fn deletion(world: &mut World) -> &mut DeletionView {
    world.deletion.as_mut().unwrap()
}

#[test]
fn i9_one_of_too_many_is_marked_and_then_left_as_it_is() {
    let mut world = deleted(serving(), Some(true));
    let plan = absent(&world);
    assert_eq!(plan.steps, [Step::HoldDeletion]);
    assert_eq!(reason(&plan), "DeletionHeld");
    deletion(&mut world).held = true;
    for too_many in [Some(true), Some(false), None] {
        deletion(&mut world).too_many = too_many;
        let plan = absent(&world);
        assert_eq!(plan.steps, [], "held, whatever becomes of the others");
        assert_eq!(
            (reason(&plan).as_str(), plan.look_again),
            ("DeletionHeld", None)
        );
    }
    let Stage::Deleting(_, told) = absent(&world).stage else {
        panic!("it is being deleted");
    };
    for words in [
        "server 41",
        "Retain",
        "agentfleet.dev/adopt: \"41\"",
        "confirm-termination",
    ] {
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn one_of_few_goes_when_all_had_time_to_be_counted() {
    let removed = |plan: &Plan| matches!(plan.steps[..], [Step::WriteVoice(_)]);
    assert!(removed(&absent(&deleted(serving(), Some(false)))));
    let mut early = deleted(serving(), Some(false));
    deletion(&mut early).settles = at(5);
    let plan = absent(&early);
    assert_eq!((&plan.steps[..], plan.look_again), (&[][..], Some(at(5))));
    let plan = absent(&deleted(serving(), None));
    assert!(plan.steps.is_empty() && plan.look_again.is_some(), "unread");
    assert_eq!(reason(&plan), "DeletionCounted");
}

#[test]
fn what_holds_no_memory_and_what_is_meant_go_whoever_else_does() {
    for world in [booting(), pinned()] {
        let plan = absent(&deleted(world, Some(true)));
        assert!(matches!(
            plan.steps[..],
            [Step::DeleteServer { id: 41, .. }]
        ));
    }
    let mut nothing = deleted(ready_to_create(), Some(true));
    nothing.status.voice = None;
    assert_eq!(absent(&nothing).steps, [Step::RemoveFinalizer]);
    // An admin's word, `Retain` and the end of a subscription leave nothing that counts.
    let meant = World {
        deletion: None,
        ..serving()
    };
    assert!(matches!(absent(&meant).steps[..], [Step::WriteVoice(_)]));
    let mut going = deleted(serving(), Some(true));
    going.servers[0].deleting = true;
    assert_eq!(absent(&going).steps, [], "Hetzner is at it already");
    assert_eq!(reason(&absent(&going)), "ServerDeleting");
}
