//! What is planned for an agent by where it is asked, and by who answers there.

use super::*;
use crate::api::{ConditionType, condition};

/// An agent whose probes met somebody else.
fn met_stranger() -> World {
    let mut world = probed(serving(), Some(HealthState::Unknown));
    let view = world.servers[0].guest.health.as_mut().unwrap();
    view.stranger = true;
    world
}

fn moved(mut world: World) -> World {
    world.servers[0].ipv4 = Some("127.1.0.2".into());
    world
}

fn homeless(mut world: World) -> World {
    world.servers[0].ipv4 = None;
    world
}

#[test]
fn i6_a_probe_is_for_the_address_that_the_server_has() {
    let probe = |presumed| {
        vec![Step::Probe {
            server: 41,
            epoch: 3,
            presumed,
        }]
    };
    let end = vec![Step::EndProbes { server: 41 }];
    let unprobed = |world: World| {
        let mut world = homeless(world);
        world.servers[0].guest.health = None;
        world
    };
    let mut by_ipv6 = homeless(serving());
    by_ipv6.servers[0].ipv6 = Some("2001:db8::1".into());
    for (what, world, steps, told) in [
        ("as it was", serving(), vec![], "Serving"),
        ("another one", moved(serving()), probe(None), "Starting"),
        ("the other family's", by_ipv6, probe(None), "Starting"),
        ("none any more", homeless(serving()), end, "NoAddress"),
        ("still none", unprobed(serving()), vec![], "NoAddress"),
    ] {
        let plan = present(&world);
        assert_eq!(
            (&plan.steps, reason(&plan).as_str()),
            (&steps, told),
            "{what}"
        );
    }
    let mut due = homeless(serving());
    due.status.secrets_tag = Some("old".into());
    assert_eq!(reason(&present(&due)), "NoAddress", "nor is it configured");
}

#[test]
fn i5_somebody_else_in_a_servers_place_is_told_and_neither_sent_anything_nor_rebooted() {
    let stalled = |world: &World| {
        let plan = present(world);
        let told = matches!(plan.stage, Stage::Stalled("HostKeyChanged", _));
        (plan.steps.len(), told)
    };
    assert_eq!(stalled(&met_stranger()), (0, true));
    let mut late = met_stranger();
    late.status.health = Some(HealthStatus {
        state: HealthState::Unknown,
        since: Time(at(-7200)),
    });
    assert_eq!(stalled(&late), (0, true), "no rung of the ladder is for it");
    let mut due = met_stranger();
    due.status.secrets_tag = Some("old".into());
    assert_eq!(stalled(&due), (0, true), "nothing is sent there");
    let plan = present(&moved(met_stranger()));
    assert!(
        matches!(plan.steps[..], [Step::Probe { .. }]),
        "who answers at a former address says nothing of the server"
    );
}

#[test]
fn what_was_told_of_somebody_else_stays_told_until_a_new_process_has_heard_of_the_server() {
    let mut stalled = condition(
        ConditionType::Stalled,
        Some(true),
        "HostKeyChanged",
        "another",
    );
    stalled.last_transition_time = Time(at(-60));
    let mut world = serving();
    world.status.conditions = vec![stalled];
    world.status.health = Some(HealthStatus {
        state: HealthState::Unknown,
        since: Time(at(-60)),
    });
    world.servers[0].guest.health = None;
    world.recovery.unreachable = Duration::from_mins(5);
    let plan = present(&world);
    assert_eq!(
        plan.stage,
        Stage::Stalled("HostKeyChanged", "another".into())
    );
    assert!(matches!(plan.steps[..], [Step::Probe { .. }]));
    let heard = probed(world, Some(HealthState::Unknown));
    assert_eq!(reason(&present(&heard)), "Unreachable");
}
