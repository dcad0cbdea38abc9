//! What is planned for an instance that shall not run.

use super::*;
use crate::api::Disk;

const GRACE: Duration = Duration::from_mins(1);

fn suspended(world: &World) -> Plan {
    let want = Want {
        suspend: true,
        ..want()
    };
    let desired = Desired::Present(identity(), Box::new(want));
    plan(&desired, world, FLEET, now())
}

fn serves() -> World {
    changed!(serving(), shutdown_grace = GRACE)
}

/// The voice was taken from the server by this process, or by another.
fn taken(ours: bool) -> World {
    let mut world = serves();
    world.status.voice = Some(VoiceRecord {
        incarnation: None,
        epoch: 4,
    });
    changed!(world, fresh_epoch = ours.then_some(4))
}

fn with(mut world: World, change: impl FnOnce(&mut ServerView)) -> World {
    change(&mut world.servers[0]);
    world
}

fn released(done: bool) -> World {
    with(taken(true), |server| {
        server.guest.released = Some((4, done));
    })
}

fn place() -> (String, i64) {
    ("one".into(), 41)
}

#[test]
fn an_agent_is_silenced_before_its_server_is_switched_off() {
    let nobody = Step::WriteVoice(VoiceRecord {
        incarnation: None,
        epoch: 4,
    });
    let plan = suspended(&serves());
    assert_eq!(
        (&plan.steps[..], reason(&plan).as_str()),
        (&[nobody][..], "Suspending")
    );
    let release = Step::Release {
        server: 41,
        incarnation: 1,
        epoch: 4,
    };
    assert_eq!(suspended(&taken(true)).steps, [release]);
    let (project, id) = place();
    let shutdown = Step::Shutdown { project, id };
    for silent in [true, false] {
        assert_eq!(
            suspended(&released(silent)).steps,
            std::slice::from_ref(&shutdown)
        );
    }
    let asked = |ago: i64| {
        with(released(true), |server| {
            server.guest.shut_down = Some(at(-ago));
        })
    };
    let plan = suspended(&asked(20));
    assert_eq!((plan.steps.len(), plan.look_again), (0, Some(at(40))));
    let (project, id) = place();
    assert_eq!(
        suspended(&asked(60)).steps,
        [Step::PowerOff { project, id }]
    );
}

#[test]
fn what_another_process_left_half_done_is_asked_for() {
    let unasked = with(taken(false), |server| server.guest.hello = None);
    assert!(matches!(
        suspended(&unasked).steps[..],
        [Step::Hello { .. }]
    ));
    let silent = with(unasked.clone(), |server| {
        server.guest.contact = Some((ContactProblem::Silent("no route".into()), now()));
    });
    assert!(matches!(
        suspended(&silent).steps[..],
        [Step::Shutdown { .. }]
    ));
    let says = |armed: Option<u32>| {
        with(taken(false), |server| {
            server.guest.hello = Some(Hello {
                phase: InstallPhase::Done,
                armed,
                epoch: 7,
                ..Hello::default()
            });
        })
    };
    let outranks = Step::WriteVoice(VoiceRecord {
        incarnation: None,
        epoch: 8,
    });
    assert_eq!(suspended(&says(Some(1))).steps, [outranks]);
    assert!(matches!(
        suspended(&says(None)).steps[..],
        [Step::Shutdown { .. }]
    ));
}

#[test]
fn a_server_that_is_off_stays_off_and_nothing_is_bought() {
    let off = |world| with(world, |server| server.power = Power::Off);
    let plan = suspended(&off(released(true)));
    assert_eq!((plan.steps.len(), plan.look_again), (0, None));
    assert_eq!(reason(&plan), "Suspended");
    let plan = suspended(&off(serves()));
    assert!(matches!(
        plan.steps[..],
        [Step::WriteVoice(VoiceRecord {
            incarnation: None,
            ..
        })]
    ));
    let plan = suspended(&ready_to_create());
    assert_eq!((plan.steps.len(), reason(&plan).as_str()), (0, "Suspended"));
}

#[test]
fn i14_a_server_that_vanished_while_it_was_off_is_missed() {
    let gone = |disk| {
        let mut agent = agent();
        agent.lifecycle.disk = disk;
        let world = changed!(taken(false), class = ClassView::Usable(Box::new(agent)));
        let world = changed!(world, known = Known::Gone);
        super::restoration::without_snapshot(changed!(world, servers = vec![]))
    };
    for plan in [
        suspended(&gone(Disk::Preserve)),
        present(&gone(Disk::Preserve)),
    ] {
        assert_eq!(
            (plan.steps.len(), reason(&plan).as_str()),
            (0, "ServerLost")
        );
    }
    let disposable = gone(Disk::Disposable);
    assert_eq!(reason(&suspended(&disposable)), "Suspended");
    for (known, expected) in [
        (Disk::Preserve, "ServerLost"),
        (Disk::Disposable, "Suspended"),
    ] {
        let mut made_so = disposable.clone();
        made_so.status.server.as_mut().unwrap().disk = Some(known);
        assert_eq!(reason(&suspended(&made_so)), expected);
    }
}

#[test]
fn an_agent_that_may_run_again_is_given_everything_anew() {
    let off = with(released(true), |server| server.power = Power::Off);
    assert!(matches!(present(&off).steps[..], [Step::PowerOn { .. }]));
    let voice = Step::WriteVoice(VoiceRecord {
        incarnation: Some(1),
        epoch: 5,
    });
    let up = with(released(true), |server| {
        server.guest.hello = Some(Hello {
            phase: InstallPhase::Done,
            epoch: 4,
            ..Hello::default()
        });
    });
    assert_eq!(present(&up).steps, [voice]);
}
