//! What is planned for what people order by annotations.

use super::*;
use crate::api::{
    ConditionType, HeardOrder, HeardOrders, Recovery, RecoveryAction, RecoveryRecord, condition,
};

fn told(restart: Option<&str>, retry: Option<&str>, world: &World) -> Plan {
    let want = Want {
        restart: restart.map(str::to_owned),
        retry: retry.map(str::to_owned),
        ..want()
    };
    plan(
        &Desired::Present(identity(), Box::new(want)),
        world,
        FLEET,
        now(),
    )
}

#[expect(clippy::unnecessary_wraps, reason = "as the field that it is for")]
fn order(value: &str, second: i64) -> Option<HeardOrder> {
    Some(HeardOrder {
        value: value.into(),
        at: MicroTime(at(second)),
        incarnation: 1,
    })
}

/// This restart was heard so long ago, by this process or by another.
fn heard(world: World, second: i64, ours: bool) -> World {
    let orders = HeardOrders {
        restart: order("now", second),
        ..HeardOrders::default()
    };
    let world = changed!(world, status.heard = Some(orders));
    changed!(world, fresh_restart = ours.then(|| at(second)))
}

#[test]
fn a_fresh_order_is_written_down_and_changes_nothing_that_is_told() {
    let world = heard(serving(), -50, false);
    let plan = told(Some("now"), Some("go on"), &world);
    let both = HeardOrders {
        restart: order("now", -50),
        retry: order("go on", 0),
        recreate: None,
    };
    assert_eq!(plan.steps, [Step::Hear(both)]);
    assert_eq!(plan.stage, Stage::Serving(None));
    for (restart, retry) in [(Some("now"), None), (None, None)] {
        assert_eq!(
            told(restart, retry, &world).steps,
            [],
            "heard, or withdrawn"
        );
    }
}

#[test]
fn an_order_is_heard_in_the_pause_after_a_failure() {
    let trouble = Trouble {
        reason: "RefusedByHetzner",
        message: "no".into(),
        until: at(600),
        stalled: true,
        times: 7,
    };
    let world = changed!(ready_to_create(), trouble = Some(trouble));
    assert_eq!(told(None, None, &world).steps, []);
    let plan = told(None, Some("go on"), &world);
    assert!(matches!(plan.steps[..], [Step::Hear(_)]), "{plan:?}");
}

#[test]
fn a_restart_that_was_ordered_is_done_by_the_process_that_wrote_it_down() {
    let restart = Step::Restart {
        server: 41,
        epoch: 3,
    };
    for state in [HealthState::Healthy, HealthState::Failed] {
        let world = probed(serving(), Some(state));
        let plan = told(Some("now"), None, &heard(world, -1, true));
        assert_eq!(plan.steps, std::slice::from_ref(&restart));
        assert!(matches!(plan.stage, Stage::Starting(_)), "{plan:?}");
    }
    assert_eq!(
        told(Some("now"), None, &heard(serving(), -1, false)).steps,
        []
    );
    let booting = told(Some("now"), None, &heard(booting(), -1, true));
    assert!(matches!(booting.steps[..], [Step::Hello { .. }]));
}

#[test]
fn i6_what_was_told_of_an_agents_health_before_it_was_ordered_to_start_again_is_old() {
    let mut world = serving();
    world.servers[0].guest.health = None;
    world.status.health = Some(HealthStatus {
        state: HealthState::Healthy,
        since: Time(at(-60)),
    });
    for (restarted, expected) in [(-61, Some(HealthState::Healthy)), (-59, None)] {
        let plan = told(Some("now"), None, &heard(world.clone(), restarted, false));
        assert!(
            matches!(plan.steps[..], [Step::Probe { presumed, .. }] if presumed == expected),
            "{plan:?}"
        );
    }
}

#[test]
fn a_retry_fills_the_budgets_of_recovery_again() {
    let mut world = probed(serving(), Some(HealthState::Failed));
    let mut ready = condition(ConditionType::Ready, Some(false), "ProbeFailed", "");
    ready.last_transition_time = Time(at(-9000));
    world.status.conditions = vec![ready];
    let mut agent = agent();
    agent.lifecycle.recovery = Recovery {
        restarts: 1,
        reboots: 0,
        recreations: 0,
    };
    world.class = ClassView::Usable(Box::new(agent));
    world.status.recovery = vec![RecoveryRecord {
        action: RecoveryAction::Restart,
        at: MicroTime(at(-8000)),
        reason: String::new(),
    }];
    assert_eq!(reason(&told(None, None, &world)), "RecoveryExhausted");
    world.status.heard = Some(HeardOrders {
        retry: order("go on", -1),
        ..HeardOrders::default()
    });
    let plan = told(None, Some("go on"), &world);
    assert!(
        matches!(plan.steps[..], [Step::WriteRecovery(_)]),
        "{plan:?}"
    );
}
