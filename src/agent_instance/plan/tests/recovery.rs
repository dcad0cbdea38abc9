//! What is planned for an agent that fails, and for a server that is gone.

use super::*;
use crate::{
    agent_instance::world::RecoveryFlags,
    api::{
        ConditionType, Disk, Recovery, RecoveryAction,
        RecoveryAction::{Reboot, Recreate, Restart},
        RecoveryRecord, Timing, TimingStep, condition,
    },
};

const HOUR: i64 = 3600;

/// An agent of this state that has not been Ready for two hours.
fn ailing(state: HealthState) -> World {
    let mut world = probed(serving(), Some(state));
    let mut ready = condition(ConditionType::Ready, Some(false), "ProbeFailed", "");
    ready.last_transition_time = Time(at(-2 * HOUR));
    world.status.conditions = vec![ready];
    world.status.health = Some(HealthStatus {
        state,
        since: Time(at(-60)),
    });
    world.recovery = RecoveryFlags {
        paused: false,
        unreachable: Duration::from_mins(5),
        window: Duration::from_mins(10),
    };
    world
}

/// The same after these tries, of which this process wrote the last just now.
fn tried(mut world: World, tries: &[(RecoveryAction, i64)]) -> World {
    let records = tries.iter().map(|(action, second)| RecoveryRecord {
        action: *action,
        at: MicroTime(at(*second)),
        reason: "was out of memory".into(),
    });
    world.status.recovery = records.collect();
    world.fresh_recovery = tries.last().map(|(_, second)| at(*second));
    world
}

fn forgotten(world: World) -> World {
    changed!(world, fresh_recovery = None)
}

fn allowing(world: World, disk: Disk, budgets: (i32, i32, i32)) -> World {
    let mut agent = agent();
    agent.lifecycle.disk = disk;
    agent.lifecycle.recovery = Recovery {
        restarts: budgets.0,
        reboots: budgets.1,
        recreations: budgets.2,
    };
    changed!(world, class = ClassView::Usable(Box::new(agent)))
}

fn disposable(world: World) -> World {
    allowing(world, Disk::Disposable, (0, 0, 1))
}

fn vanished(mut world: World) -> World {
    world.servers.clear();
    changed!(world, known = Known::Gone)
}

fn written(action: RecoveryAction, reason: &str) -> Vec<Step> {
    vec![Step::WriteRecovery(RecoveryRecord {
        action,
        at: MicroTime(now()),
        reason: reason.into(),
    })]
}

fn words(plan: &Plan) -> String {
    super::super::super::status::words(&plan.stage).1
}

#[test]
fn a_try_is_written_down_and_then_done_by_whoever_wrote_it() {
    let plan = present(&ailing(HealthState::Failed));
    assert_eq!(plan.steps, written(Restart, "says why"));
    let told = "its unit is started again (try 1 of 5 in 24 hours): says why";
    assert_eq!(plan.stage, Stage::Recovering("Restarting", told.into()));

    let world = tried(ailing(HealthState::Failed), &[(Restart, -1)]);
    let plan = present(&world);
    let restart = Step::Restart {
        server: 41,
        epoch: 3,
    };
    assert_eq!(plan.steps, [restart]);
    let plan = present(&forgotten(world));
    assert_eq!(
        (plan.steps.len(), plan.look_again, reason(&plan).as_str()),
        (0, Some(at(179)), "Restarting"),
        "after a crash the try is lost, not doubled"
    );
    assert!(words(&plan).contains("try 1 of 5 in 24 hours): was out of memory"));

    let stale = tried(ailing(HealthState::Failed), &[(Restart, -200)]);
    assert_eq!(
        present(&stale).steps,
        written(Restart, "says why"),
        "its time is over"
    );
    let unreachable = tried(ailing(HealthState::Unknown), &[(Restart, -1)]);
    assert_eq!(present(&unreachable).steps, [], "it does not fit any more");
}

#[test]
fn a_server_is_asked_to_reboot_and_its_power_is_cut_when_that_did_not_help() {
    let reboot = |tries: &[_]| {
        let world = allowing(ailing(HealthState::Failed), Disk::Preserve, (0, 2, 0));
        present(&tried(world, tries)).steps
    };
    let step = |hard| Step::Reboot {
        project: "one".into(),
        id: 41,
        hard,
    };
    assert_eq!(reboot(&[(Reboot, -1)]), [step(false)]);
    assert_eq!(reboot(&[(Reboot, -HOUR), (Reboot, -1)]), [step(true)]);
    assert_eq!(
        reboot(&[(Reboot, -3 * HOUR), (Reboot, -1)]),
        [step(false)],
        "it served in between"
    );
}

#[test]
fn a_server_out_of_reach_is_left_alone_for_a_while() {
    let mut world = ailing(HealthState::Unknown);
    let plan = present(&world);
    assert_eq!(
        (plan.steps.len(), plan.look_again, plan.stage),
        (
            0,
            Some(at(240)),
            Stage::Unhealthy("Unreachable", "says why".into())
        )
    );
    world.status.health.as_mut().unwrap().since = Time(at(-300));
    assert_eq!(present(&world).steps, written(Reboot, "says why"));
    world.servers[0].power = Power::Busy;
    assert_eq!(present(&world).steps, [], "Hetzner is at work on it");
}

#[test]
fn i13_a_server_is_deleted_and_seen_gone_before_its_successor_is_asked_for() {
    let world = tried(disposable(ailing(HealthState::Failed)), &[(Recreate, -1)]);
    let delete = Step::DeleteServer {
        project: "one".into(),
        id: 41,
    };
    assert_eq!(present(&world).steps, [delete]);
    let mut deleting = world;
    deleting.servers[0].deleting = true;
    deleting.servers[0].guest.gone_by = Some(at(10));
    let plan = present(&deleting);
    assert_eq!(
        (plan.steps.len(), plan.look_again, reason(&plan).as_str()),
        (0, Some(at(10)), "Recreating")
    );
    deleting.servers[0].guest.gone_by = Some(at(0));
    let confirm = Step::ConfirmGone {
        project: "one".into(),
        id: 41,
    };
    assert_eq!(present(&deleting).steps, [confirm]);
    let plan = present(&forgotten(vanished(deleting)));
    assert_eq!(
        plan.steps,
        [Step::Announce(record(2, 0))],
        "the try that was written down stands for this"
    );
    assert_eq!(reason(&plan), "Recreating");
}

#[test]
fn a_disposable_server_that_vanished_is_replaced_within_the_budget() {
    let gone = vanished(disposable(ailing(HealthState::Unknown)));
    let cause = "server 41 in project one is gone";
    assert_eq!(present(&gone).steps, written(Recreate, cause));
    let decided = tried(gone.clone(), &[(Recreate, -1)]);
    assert_eq!(
        present(&forgotten(decided.clone())).steps,
        [Step::Announce(record(2, 0))]
    );
    let mut announced = decided;
    announced.status.provisioning = Some(record(2, -1));
    announced.attempt = Attempt {
        incarnation: 2,
        announced: Some(at(-1)),
        ..Attempt::default()
    };
    assert_eq!(
        present(&announced).steps,
        [Step::CreateServer(record(2, -1))]
    );

    let spent = tried(gone.clone(), &[(Recreate, -HOUR)]);
    let mut spent = forgotten(spent);
    spent.status.provisioning = Some(record(1, -HOUR / 2));
    let plan = present(&spent);
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str(), plan.look_again),
        (0, "RecoveryExhausted", Some(at(23 * HOUR))),
        "the try was for the server before this one"
    );
    let never = allowing(gone, Disk::Disposable, (5, 2, 0));
    assert_eq!(reason(&present(&never)), "ServerLost");
}

#[test]
fn an_agent_that_never_served_is_not_given_another_server() {
    let seen = |step| {
        let mut world = disposable(ailing(HealthState::Failed));
        world.status.timings = vec![Timing {
            step,
            at: MicroTime(at(-HOUR)),
        }];
        present(&world)
    };
    assert_eq!(
        seen(TimingStep::Configured).stage,
        Stage::Unhealthy("ProbeFailed", "says why".into())
    );
    assert_eq!(seen(TimingStep::Ready).steps, written(Recreate, "says why"));
}

#[test]
fn i14_with_all_used_up_a_kept_disk_waits_for_a_person_or_a_budget() {
    let world = allowing(ailing(HealthState::Failed), Disk::Preserve, (1, 1, 1));
    let world = tried(world, &[(Restart, -2 * HOUR), (Reboot, -HOUR)]);
    let plan = present(&world);
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str(), plan.look_again),
        (0, "RecoveryExhausted", Some(at(22 * HOUR)))
    );
    assert!(matches!(plan.stage, Stage::Stalled(..)));
    for said in ["says why", "its disk is kept", "AgentClass small"] {
        assert!(words(&plan).contains(said), "{plan:?}");
    }
    // Whatever its class has become since it was made.
    let mut made_so = allowing(world, Disk::Disposable, (1, 1, 1));
    assert_eq!(present(&made_so).steps, written(Recreate, "says why"));
    made_so.servers[0].disk = Disk::Preserve;
    assert_eq!(present(&made_so), plan);
    let mut gone = vanished(disposable(serving()));
    gone.status.server.as_mut().unwrap().disk = Some(Disk::Preserve);
    assert_eq!(reason(&present(&gone)), "ServerLost");
    gone.status.server.as_mut().unwrap().disk = Some(Disk::Disposable);
    assert!(matches!(present(&gone).steps[..], [Step::WriteRecovery(_)]));
}

#[test]
fn a_class_without_a_rung_tells_what_the_probes_say() {
    for state in [HealthState::Failed, HealthState::Unknown] {
        let plan = present(&allowing(ailing(state), Disk::Preserve, (0, 0, 1)));
        assert!(
            matches!(
                (&plan.steps[..], plan.look_again, &plan.stage),
                ([], None, Stage::Unhealthy(..))
            ),
            "{plan:?}"
        );
    }
}

#[test]
fn nothing_is_repaired_while_somebody_works_on_the_server_or_the_fleet() {
    let by_annotation = |world: &World| {
        let mut want = want();
        want.maintenance = true;
        plan(
            &Desired::Present(identity(), Box::new(want)),
            world,
            FLEET,
            now(),
        )
    };
    let by_flag = |world: &World| {
        let mut world = world.clone();
        world.recovery.paused = true;
        present(&world)
    };
    let mut off = ailing(HealthState::Unknown);
    off.servers[0].power = Power::Off;
    let decided = tried(ailing(HealthState::Failed), &[(Restart, -1)]);
    for (world, because) in [
        (ailing(HealthState::Failed), "ProbeFailed"),
        (decided, "ProbeFailed"),
        (
            vanished(disposable(ailing(HealthState::Failed))),
            "ServerLost",
        ),
        (off, "PoweredOff"),
    ] {
        assert_eq!(present(&world).steps.len(), 1);
        for (plan, who) in [
            (by_annotation(&world), "agentfleet.dev/maintenance"),
            (by_flag(&world), "--pause-recovery"),
        ] {
            assert_eq!((plan.steps.len(), reason(&plan).as_str()), (0, because));
            assert!(words(&plan).contains(who), "{plan:?}");
        }
    }
}

#[test]
fn a_server_that_somebody_switched_off_is_powered_on_and_told_to_be_off() {
    for (mut world, because) in [
        (booting(), "Booting"),
        (serving(), "PoweredOff"),
        (
            tried(ailing(HealthState::Unknown), &[(Reboot, -1)]),
            "Rebooting",
        ),
    ] {
        world.servers[0].power = Power::Off;
        let plan = present(&world);
        assert!(matches!(plan.steps[..], [Step::PowerOn { .. }]), "{plan:?}");
        assert_eq!(reason(&plan), because);
    }
}

#[test]
fn i6_nothing_said_before_a_try_is_presumed_after_it() {
    let presumed = |mut world: World| {
        world.servers[0].guest.health = None;
        match &present(&world).steps[..] {
            [Step::Probe { presumed, .. }] => *presumed,
            other => panic!("{other:?}"),
        }
    };
    let told = ailing(HealthState::Failed);
    assert_eq!(presumed(told.clone()), Some(HealthState::Failed));
    assert_eq!(
        presumed(tried(told.clone(), &[(Restart, -61)])),
        Some(HealthState::Failed)
    );
    assert_eq!(presumed(forgotten(tried(told, &[(Restart, -1)]))), None);
}

#[test]
fn what_comes_back_is_told_as_recovery_until_it_serves() {
    let coming_back = |state| {
        let world = tried(ailing(HealthState::Failed), &[(Restart, -1)]);
        present(&forgotten(probed(world, state))).stage
    };
    assert!(matches!(
        coming_back(None),
        Stage::Recovering("Restarting", _)
    ));
    assert_eq!(
        coming_back(Some(HealthState::Healthy)),
        Stage::Serving(None)
    );
    let mut world = tried(ailing(HealthState::Failed), &[(Restart, -1)]);
    world.servers[0].guest.busy = true;
    assert_eq!(present(&world).stage, Stage::Updating);
    world.servers[0].guest.restarts = true;
    assert_eq!(reason(&present(&world)), "Restarting");
    let mut world = disposable(tried(ailing(HealthState::Failed), &[(Recreate, -1)]));
    world.servers = vec![server(2)];
    assert_eq!(
        reason(&present(&world)),
        "Recreating",
        "its successor boots"
    );
}

#[test]
fn while_it_is_held_no_server_is_touched_and_restarts_go_on() {
    let held = |world: World| changed!(world, hold = Some("AgentClass small".into()));
    let restarts = held(ailing(HealthState::Failed));
    assert_eq!(present(&restarts).steps, written(Restart, "says why"));
    let reboots = |world| allowing(world, Disk::Preserve, (0, 2, 0));
    for world in [
        reboots(ailing(HealthState::Failed)),
        reboots(tried(ailing(HealthState::Failed), &[(Reboot, -1)])),
        disposable(ailing(HealthState::Failed)),
        disposable(tried(ailing(HealthState::Failed), &[(Recreate, -1)])),
        disposable(vanished(serving())),
    ] {
        let plan = present(&held(world));
        assert_eq!(plan.steps, []);
        assert!(plan.look_again.is_some(), "{plan:?}");
    }
    let plan = present(&held(disposable(vanished(serving()))));
    assert_eq!(reason(&plan), "ServerLost");
    assert!(
        words(&plan).ends_with("as long as RecoveryHeld of AgentClass small is True: see there"),
        "{plan:?}"
    );
}
