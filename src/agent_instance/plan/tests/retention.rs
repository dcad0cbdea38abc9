//! What is planned for an instance that is to go while its server stays.

use super::*;

fn retained(world: &World) -> Plan {
    plan(&Desired::Retained(identity()), world, FLEET, now())
}

fn with(mut world: World, change: impl FnOnce(&mut ServerView)) -> World {
    change(&mut world.servers[0]);
    world
}

/// The voice was taken from the server; its guest has answered so, or was not asked yet.
fn silenced(answered: Option<bool>) -> World {
    let mut world = serving();
    world.status.voice = Some(VoiceRecord {
        incarnation: None,
        epoch: 4,
    });
    world.fresh_epoch = Some(4);
    with(world, |server| {
        server.guest.released = answered.map(|done| (4, done));
    })
}

fn label() -> Step {
    Step::Retain {
        project: "one".into(),
        id: 41,
    }
}

#[test]
fn the_agent_is_silenced_then_its_server_labelled_and_then_the_object_goes() {
    let plan = retained(&serving());
    assert!(matches!(
        plan.steps[..],
        [Step::WriteVoice(VoiceRecord {
            incarnation: None,
            epoch: 4
        })]
    ));
    assert_eq!(reason(&plan), "ServerRetaining");
    let plan = retained(&silenced(None));
    assert!(matches!(plan.steps[..], [Step::Release { epoch: 4, .. }]));
    assert_eq!(retained(&silenced(Some(true))).steps, [label()]);
    let labelled = with(silenced(Some(true)), |server| server.retained = true);
    let plan = retained(&labelled);
    assert_eq!(
        (&plan.steps[..], &plan.stage),
        (&[Step::RemoveFinalizer][..], &Stage::Gone)
    );
}

#[test]
fn i13_what_does_not_hear_is_switched_off_before_it_is_left_alone() {
    let deaf = silenced(Some(false));
    assert!(matches!(
        retained(&deaf).steps[..],
        [Step::Shutdown { id: 41, .. }]
    ));
    let off = with(deaf, |server| server.power = Power::Off);
    assert_eq!(retained(&off).steps, [label()]);
}

#[test]
fn i14_nothing_is_deleted_whatever_is_known_of_it() {
    for world in [
        booting(),
        pinned(),
        installed(),
        voiced(3),
        serving(),
        silenced(None),
        silenced(Some(false)),
    ] {
        let plan = retained(&world);
        let gone = |step: &Step| matches!(step, Step::DeleteServer { .. } | Step::RemoveFinalizer);
        assert!(!plan.steps.iter().any(gone), "{plan:?}");
    }
    assert_eq!(retained(&booting()).steps, [label()], "it never spoke");
}
