//! What is planned for a disk that went with its server.

use super::*;
use crate::{
    agent_instance::world::SnapshotLook,
    api::{
        ConditionType, Disk, HeardOrder, HeardOrders, RecoveryAction::Recreate, RecoveryRecord,
        RollbackReason, RollbackRecord, SnapshotRecord, condition,
    },
    hetzner::{ImageId, Snapshot},
};

pub(in super::super::super) fn snapshot() -> Snapshot {
    Snapshot {
        id: ImageId(9),
        created: Some(at(-500)),
        ..Snapshot::default()
    }
}

fn its_record() -> SnapshotRecord {
    SnapshotRecord {
        id: 9,
        created_at: Time(at(-500)),
        server: 41,
    }
}

fn restoring(incarnation: u32, written: i64) -> ProvisioningRecord {
    ProvisioningRecord {
        snapshot: Some(its_record()),
        ..record(incarnation, written)
    }
}

fn looked(world: World, second: i64, newest: Option<Snapshot>) -> World {
    let look = SnapshotLook {
        server: 41,
        at: at(second),
        newest,
        fits: true,
    };
    changed!(world, snapshot = Some(look))
}

/// The same world, in which a snapshot was just looked for in vain.
pub(super) fn without_snapshot(world: World) -> World {
    looked(world, 0, None)
}

/// The server of an agent that served is gone.
fn lost() -> World {
    let mut world = serving();
    world.servers.clear();
    changed!(world, known = Known::Gone)
}

fn found() -> World {
    looked(lost(), 0, Some(snapshot()))
}

/// The try for it is written down.
fn decided(mut world: World) -> World {
    world.status.recovery = vec![RecoveryRecord {
        action: Recreate,
        at: MicroTime(at(-1)),
        reason: "it is restored from snapshot 9".into(),
    }];
    world
}

/// And its server as well.
fn announced(written: i64) -> World {
    let mut world = decided(found());
    world.status.provisioning = Some(restoring(2, written));
    world.attempt = Attempt {
        incarnation: 2,
        ..Attempt::default()
    };
    world
}

fn given_up(mut world: World, incarnation: i64) -> World {
    world.status.heard = Some(HeardOrders {
        recreate: Some(HeardOrder {
            value: "empty".into(),
            at: MicroTime(now()),
            incarnation,
        }),
        ..HeardOrders::default()
    });
    world
}

fn words(plan: &Plan) -> String {
    super::super::super::status::words(&plan.stage).1
}

fn looks(made_of: Option<i64>) -> [Step; 1] {
    let (project, server) = ("one".into(), 41);
    [Step::FindSnapshot {
        project,
        server,
        made_of,
    }]
}

#[test]
fn a_snapshot_of_a_lost_disk_is_looked_for_once_and_then_seldom() {
    let plan = present(&lost());
    assert_eq!(plan.steps, looks(None));
    assert!(
        matches!(plan.stage, Stage::Unhealthy("ServerLost", _)),
        "what will be restored is not Stalled: {plan:?}"
    );
    let none = present(&without_snapshot(lost()));
    assert_eq!((none.steps.len(), none.look_again), (0, Some(at(600))));
    assert!(
        words(&none).contains("there is no snapshot of it; to start again with an empty one"),
        "{none:?}"
    );
    let mut old = looked(lost(), -600, None);
    old.status.conditions = vec![condition(
        ConditionType::Stalled,
        Some(true),
        "ServerLost",
        "",
    )];
    let plan = present(&old);
    assert_eq!(
        (&plan.steps[..], plan.stage),
        (&looks(None)[..], none.stage)
    );
    let unusable = ProjectView {
        unusable: Some(("WrongProject", "x".into())),
        ..project("one")
    };
    assert_eq!(
        present(&changed!(lost(), projects = vec![unusable])).steps,
        []
    );
    let mut of_another = found();
    of_another.status.server.as_mut().unwrap().id = 42;
    assert!(matches!(
        present(&of_another).steps[..],
        [Step::FindSnapshot { server: 42, .. }]
    ));
}

#[test]
fn a_lost_disk_is_restored_from_its_snapshot_within_the_budget() {
    let plan = present(&found());
    let [Step::WriteRecovery(written)] = &plan.steps[..] else {
        panic!("{plan:?}");
    };
    assert_eq!(written.action, Recreate);
    for said in ["snapshot 9 of", "what came after that is lost"] {
        assert!(
            written.reason.contains(said) && words(&plan).contains(said),
            "{plan:?}"
        );
    }
    let plan = present(&decided(found()));
    assert_eq!(plan.steps, [Step::Announce(restoring(2, 0))]);
    assert_eq!(reason(&plan), "Recreating");
    let mut world = announced(-1);
    world.attempt.announced = Some(at(-1));
    assert_eq!(
        present(&world).steps,
        [Step::CreateServer(restoring(2, -1))]
    );
    let mut spent = decided(found());
    spent.status.provisioning.as_mut().unwrap().at = MicroTime(now());
    assert_eq!(reason(&present(&spent)), "RecoveryExhausted");
    let mut never = agent();
    never.lifecycle.recovery.recreations = 0;
    let plan = present(&changed!(
        found(),
        class = ClassView::Usable(Box::new(never))
    ));
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str()),
        (0, "ServerLost")
    );
    assert!(words(&plan).contains("snapshot 9"), "{plan:?}");
}

#[test]
fn i9_a_restoration_is_held_like_any_replacement() {
    let plan = present(&changed!(found(), hold = Some("AgentClass small".into())));
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str(), plan.look_again),
        (0, "ServerLost", Some(at(15)))
    );
    assert!(words(&plan).contains("RecoveryHeld of AgentClass small"));
    let mut paused = found();
    paused.recovery.paused = true;
    assert_eq!(present(&paused).steps, []);
}

#[test]
fn i6_no_empty_server_takes_the_place_of_a_disk_that_can_come_back() {
    // An empty one was announced while the class said that disks are worth nothing.
    let mut world = announced(-1);
    world.status.provisioning = Some(record(2, -1));
    let second = ProvisioningRecord {
        attempt: Some(2),
        ..restoring(3, 0)
    };
    let next = [Step::Announce(second)];
    assert_eq!(present(&world).steps, next, "the next one has its disk");
    // The server that was to have it came to nothing.
    let mut nothing = announced(-100);
    let lost_too = changed!(nothing.clone(), status.voice = None);
    nothing.status.server.as_mut().unwrap().id = 42;
    nothing.status.server.as_mut().unwrap().incarnation = 2;
    nothing.attempt.outcome = SendOutcome::Created;
    assert_eq!(present(&nothing).steps, next);
    let forgotten = changed!(nothing.clone(), snapshot = None);
    assert_eq!(present(&forgotten).steps, looks(Some(9)));
    let gone = without_snapshot(nothing);
    assert_eq!(reason(&present(&gone)), "ServerLost");
    assert_ne!(reason(&present(&lost_too)), "ServerLost", "it never spoke");
}

#[test]
fn a_person_may_give_up_a_disk_and_an_empty_server_takes_its_place() {
    let plan = present(&given_up(found(), 1));
    assert_eq!(plan.steps, [Step::Announce(record(2, 0))]);
    let plan = present(&given_up(announced(-100), 2));
    assert!(
        matches!(&plan.steps[..], [Step::Announce(next)] if next.snapshot.is_none() && next.incarnation == 3),
        "{plan:?}"
    );
    let mut disposable = agent();
    disposable.lifecycle.disk = Disk::Disposable;
    let world = changed!(found(), class = ClassView::Usable(Box::new(disposable)));
    let plan = present(&decided(world));
    assert_eq!(plan.steps, [Step::Announce(record(2, 0))]);
}

#[test]
fn a_snapshot_that_fits_no_listed_type_or_project_waits_for_a_person() {
    let mut large = found();
    large.snapshot.as_mut().unwrap().fits = false;
    let plan = present(&large);
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str(), plan.look_again),
        (0, "NoTypeForSnapshot", Some(at(600)))
    );
    assert!(matches!(plan.stage, Stage::Stalled(..)));
    large.snapshot.as_mut().unwrap().at = at(-600);
    assert_eq!(present(&large).steps, looks(None));
    let mut elsewhere = agent();
    elsewhere.projects = vec!["two".into()];
    let world = decided(changed!(
        found(),
        class = ClassView::Usable(Box::new(elsewhere))
    ));
    let plan = present(&world);
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str()),
        (0, "NoProjectForSnapshot")
    );
}

#[test]
fn a_suspended_instance_is_restored_when_it_shall_run_again() {
    let suspended = |world: &World| {
        let want = Want {
            suspend: true,
            ..want()
        };
        let desired = Desired::Present(identity(), Box::new(want));
        super::plan(&desired, world, FLEET, now())
    };
    assert_eq!(suspended(&lost()).steps, looks(None));
    let plan = suspended(&found());
    assert_eq!((plan.steps.len(), reason(&plan).as_str()), (0, "Suspended"));
    assert!(words(&plan).contains("snapshot 9"), "{plan:?}");
}

#[test]
fn i13_the_server_that_is_made_of_the_snapshot_is_the_agents() {
    let mut world = announced(-30);
    world.servers = vec![server(2)];
    world.attempt.outcome = SendOutcome::Created;
    let plan = present(&world);
    assert!(
        matches!(plan.steps[..], [Step::Hello { server: 42, .. }]),
        "{plan:?}"
    );
    assert_eq!(reason(&plan), "Recreating");
    world.status.provisioning = Some(record(2, -30));
    assert_eq!(
        reason(&present(&world)),
        "ServerLost",
        "one of another disk is not"
    );
}

#[test]
fn i14_a_restored_disk_is_kept_when_the_creation_of_its_server_fails() {
    let mut world = announced(-400);
    world.servers = vec![ServerView {
        created_at: Some(at(-400)),
        ..server(2)
    }];
    world.servers[0].guest.tried_since = Some(at(-60));
    world.servers[0].guest.contact = Some((ContactProblem::Silent("no route".into()), now()));
    world.known = Known::Present;
    let told = world.status.server.as_mut().unwrap();
    (told.id, told.incarnation, told.host_key) = (42, 2, None);
    let plan = present(&world);
    let [Step::WriteRollback(failed)] = &plan.steps[..] else {
        panic!("{plan:?}");
    };
    assert_eq!(
        (failed.reason, failed.action),
        (
            RollbackReason::FirstContactOverdue,
            crate::api::OnProvisionFailure::Keep
        )
    );
    let written: Vec<RollbackRecord> = vec![failed.clone()];
    let plan = present(&changed!(world, status.rollbacks = written));
    assert_eq!(reason(&plan), "ProvisionFailed");
    assert!(
        !plan
            .steps
            .iter()
            .any(|step| matches!(step, Step::DeleteServer { .. })),
        "{plan:?}"
    );
}
