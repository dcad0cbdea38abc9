//! An instance in the rollout of its class: what it goes back from, and what it tells.

use super::*;
use crate::{
    agent_instance::status::status,
    api::{AgentInstanceStatus, ConditionType, Health, RecoveryAction, is_true},
    rollout::Share,
};

/// It was Ready with `r1`, and was given `r2`, which is what the class describes.
fn updated(mut world: World) -> World {
    world.rollout = Share {
        revision: "r2".into(),
        attempt: Some("r2.ab12".into()),
        former: Some("r1".into()),
        ..Share::default()
    };
    world.status.class_revision = Some("r2".into());
    world.status.good_revision = Some("r1".into());
    world
}

fn failing() -> World {
    updated(probed(serving(), Some(HealthState::Failed)))
}

fn reported(world: &World) -> AgentInstanceStatus {
    let stage = present(world).stage;
    status(world, world.servers.first(), &stage, Some(1), now())
}

#[test]
fn i6_a_server_that_is_not_the_one_that_is_wanted_is_not_up_to_date_whatever_its_health() {
    for state in [
        HealthState::Healthy,
        HealthState::Failed,
        HealthState::Unknown,
    ] {
        for (booted, expected) in [(agent().boot_revision, true), ("older".into(), false)] {
            let mut world = probed(serving(), Some(state));
            world.servers[0].boot_revision = Some(booted.clone());
            let told = reported(&world).conditions;
            let current = is_true(&told, ConditionType::UpToDate);
            assert_eq!(current, expected, "{state:?} {booted}: {told:?}");
        }
    }
}

#[test]
fn an_agent_that_fails_with_what_it_never_served_with_goes_back_and_nothing_else_is_tried() {
    let world = failing();
    let plan = present(&world);
    assert_eq!(plan.steps, []);
    assert!(
        matches!(plan.stage, Stage::Unhealthy("ProbeFailed", _)),
        "{plan:?}"
    );
    let told = reported(&world);
    assert_eq!(told.refused_revision.as_deref(), Some("r2.ab12"));
    assert_eq!(told.good_revision.as_deref(), Some("r1"));
    let says = |told: &AgentInstanceStatus| {
        let found = told.conditions.iter().find(|told| told.type_ == "UpToDate");
        found.is_some_and(|told| told.reason == "WentBack" && told.message.ends_with("says why"))
    };
    assert!(says(&told), "{:?}", told.conditions);

    // The cause stays told while it goes back.
    let mut back = world.clone();
    back.status = told;
    back.rollout.attempt = None;
    back.rollout.why = Some(("WentBack", "no cause".into()));
    assert!(says(&reported(&back)));

    // It was Ready with it before, or it has nothing to go back to: then it is brought back as ever.
    for former in [None, Some("r1".to_owned())] {
        let mut world = failing();
        world.rollout.attempt = former.as_ref().and(None);
        world.rollout.former = former;
        let step = present(&world).steps.pop();
        assert!(
            matches!(&step, Some(Step::WriteRecovery(done)) if done.action == RecoveryAction::Restart),
            "{step:?}"
        );
        assert_eq!(reported(&world).refused_revision, None);
    }
}

#[test]
fn what_the_guest_refused_is_gone_back_from_when_it_is_to_blame() {
    let given = |cure, times, of_content| {
        let mut world = refused(serving(), "tag", cure, Some(at(60)));
        world = updated(world);
        world.status.class_revision = Some("r1".into());
        if let Some(Configured {
            outcome: Err(failure),
            ..
        }) = &mut world.servers[0].guest.configured
        {
            (failure.times, failure.of_content) = (times, of_content);
        }
        reported(&world).refused_revision.is_some()
    };
    assert!(given(Cure::Change, 1, true));
    assert!(given(Cure::Time, 2, true));
    assert!(!given(Cure::Time, 1, true), "the network may be at fault");
    assert!(!given(Cure::Time, 5, false), "it may be out of reach");
}

#[test]
fn what_the_agent_still_has_is_not_given_to_it_again() {
    let given = |of_content| {
        let mut world = refused(serving(), "tag", Cure::Time, None);
        if let Some(Configured {
            sent,
            outcome: Err(failure),
            ..
        }) = &mut world.servers[0].guest.configured
        {
            sent.0 = "bad".into();
            failure.of_content = of_content;
        }
        present(&world)
    };
    let plan = given(true);
    assert_eq!(
        (&plan.steps[..], &plan.stage),
        (&[][..], &Stage::Serving(None))
    );
    // Of an answer that was lost it is not known what came of the order.
    assert!(!given(false).steps.is_empty());
}

#[test]
fn a_server_that_is_out_of_reach_is_no_reason_to_go_back() {
    let world = updated(probed(serving(), Some(HealthState::Unknown)));
    assert_eq!(reported(&world).refused_revision, None);
}

#[test]
fn back_on_its_old_revision_it_is_ready_and_says_why_it_is_not_up_to_date() {
    let mut world = serving();
    world.rollout = Share {
        revision: "r1".into(),
        former: Some("r1".into()),
        refused: Some("r2.ab12".into()),
        why: Some(("WentBack", "r2 failed here".into())),
        ..Share::default()
    };
    let told = reported(&world);
    assert!(is_true(&told.conditions, ConditionType::Ready));
    let found = told.conditions.iter().find(|told| told.type_ == "UpToDate");
    let found = found.map(|told| {
        (
            told.status.as_str(),
            told.reason.as_str(),
            told.message.as_str(),
        )
    });
    assert_eq!(found, Some(("False", "WentBack", "r2 failed here")));
    assert_eq!(
        told.refused_revision.as_deref(),
        Some("r2.ab12"),
        "as long as it counts"
    );
    assert_eq!(told.class_revision.as_deref(), Some("r1"));
    assert_eq!(told.good_revision.as_deref(), Some("r1"));
}

#[test]
fn the_revision_is_told_by_what_was_applied() {
    let mut world = updated(serving());
    world.status.class_revision = Some("r1".into());
    assert_eq!(reported(&world).class_revision.as_deref(), Some("r2"));
    assert_eq!(reported(&world).good_revision.as_deref(), Some("r2"));

    // It has its turn, and not the configuration yet.
    world.status.config_revision = Some("of r1".into());
    let told = reported(&world);
    assert_eq!(told.class_revision.as_deref(), Some("r1"));

    // Where only the boot differs, the one that is prepared for it will have it.
    let mut replaced = updated(serving());
    replaced.status.class_revision = Some("r1".into());
    let mut wanted = agent();
    wanted.boot_revision = "newer".into();
    for (disk, revision) in [(Disk::Disposable, "r1"), (Disk::Preserve, "r2")] {
        wanted.lifecycle.disk = disk;
        replaced.class = ClassView::Usable(Box::new(wanted.clone()));
        let told = reported(&replaced).class_revision;
        assert_eq!(told.as_deref(), Some(revision), "{disk:?}");
    }

    // A server that was never configured has none.
    let booting = updated(with_server(ready_to_create(), server(1)));
    assert_eq!(reported(&booting).class_revision, None);
}

#[test]
fn what_another_stage_says_of_being_up_to_date_comes_first() {
    let mut world = serving();
    world.rollout.why = Some(("WaitsForTurn", "x".into()));
    world.servers[0].blocked = true;
    let told = reported(&world);
    let reasons = told
        .conditions
        .iter()
        .filter(|told| told.type_ == "UpToDate");
    let reasons: Vec<_> = reasons.map(|told| told.reason.as_str()).collect();
    assert_eq!(reasons, ["ProviderBlocked"]);
}

/// How `r2` is probed.
fn by_command() -> Health {
    serde_json::from_value(serde_json::json!({"exec": {"command": "true"}})).unwrap()
}

/// It was Ready with `r1`, and is given `r2`, which is the same but for its probes.
fn given_another_probe() -> World {
    let mut world = updated(serving());
    world.class = ClassView::Usable(Box::new(Agent {
        health: by_command(),
        ..agent()
    }));
    world.rollout.asked = Some(agent().health);
    world.status.class_revision = Some("r1".into());
    world.status.health = Some(HealthStatus {
        state: HealthState::Healthy,
        since: Time(at(-60)),
    });
    world
}

fn asks_anew(plan: &Plan) -> bool {
    let presumes_nothing = |step: &Step| matches!(step, Step::Probe { presumed: None, .. });
    matches!(&plan.steps[..], [step] if presumes_nothing(step))
}

#[test]
fn i6_an_agent_with_another_probe_is_not_ready_before_that_is_good_whatever_others_said() {
    let told = |state| {
        Some(HealthStatus {
            state,
            since: Time(at(-60)),
        })
    };
    let states = [
        HealthState::Healthy,
        HealthState::Failed,
        HealthState::Unknown,
    ];
    let probed_before = states.map(|state| {
        let world = probed(given_another_probe(), Some(state));
        changed!(world, status.health = told(state))
    });
    let just_started = states.map(|state| {
        let mut world = changed!(given_another_probe(), status.health = told(state));
        world.servers[0].guest.health = None;
        world
    });
    for world in probed_before.into_iter().chain(just_started) {
        let plan = present(&world);
        assert!(asks_anew(&plan), "nothing is given to the guest: {plan:?}");
        assert_eq!(plan.stage, Stage::Starting(String::new()));
        let told = reported(&world);
        assert!(!is_true(&told.conditions, ConditionType::Ready));
        let revisions = (
            told.class_revision.as_deref(),
            told.good_revision.as_deref(),
        );
        assert_eq!(revisions, (Some("r2"), Some("r1")));
        // What is told of a revision is what its own probes said, also to a process that begins anew.
        assert_eq!((told.health, told.refused_revision), (None, None));
    }
}

#[test]
fn a_probe_that_fails_is_gone_back_from_and_the_former_one_asked_again() {
    let mut world = given_another_probe();
    world.status.class_revision = Some("r2".into());
    world.rollout.asked = None;
    let world = asked_by(world, by_command(), HealthState::Failed);
    assert_eq!(present(&world).steps, [], "nothing is tried for it");
    let told = reported(&world);
    assert_eq!(told.refused_revision.as_deref(), Some("r2.ab12"));
    assert_eq!(told.good_revision.as_deref(), Some("r1"));

    let mut back = world;
    back.status = told;
    back.class = ClassView::Usable(Box::new(agent()));
    back.rollout = Share {
        revision: "r1".into(),
        refused: Some("r2.ab12".into()),
        why: Some(("WentBack", "r2 failed here".into())),
        asked: Some(by_command()),
        ..Share::default()
    };
    assert!(asks_anew(&present(&back)));
    let told = reported(&back);
    assert_eq!(
        (told.class_revision.as_deref(), told.health),
        (Some("r1"), None)
    );
}

fn asked_by(world: World, health: Health, state: HealthState) -> World {
    let mut world = probed(world, Some(state));
    if let Some(view) = &mut world.servers[0].guest.health {
        view.health = health;
    }
    world
}

#[test]
fn what_the_former_probes_say_is_no_word_on_another_revision() {
    let mut world = given_another_probe();
    world.status.class_revision = Some("r2".into());
    let failed = asked_by(world, agent().health, HealthState::Failed);
    assert!(!failed.refuses(&failed.servers[0]));
}

#[test]
fn an_agent_is_asked_as_its_revision_says_until_it_has_another() {
    let unapplied = |agent: &mut Agent| agent.config_revision = "of r2".into();
    let prepared_beside = |agent: &mut Agent| {
        (agent.boot_revision, agent.lifecycle.disk) = ("newer".into(), Disk::Disposable);
    };
    let changes: [&dyn Fn(&mut Agent); 2] = [&unapplied, &prepared_beside];
    for change in changes {
        let mut world = given_another_probe();
        if let ClassView::Usable(agent) = &mut world.class {
            change(agent);
        }
        let (server, ClassView::Usable(wanted)) = (&world.servers[0], &world.class) else {
            unreachable!("it is usable");
        };
        assert_eq!(world.probes(server, wanted), &agent().health);
        assert!(!world.is_asked_anew(server, wanted));
        let told = reported(&world);
        assert_eq!(told.class_revision.as_deref(), Some("r1"));
        let state = told.health.map(|health| health.state);
        assert_eq!(state, Some(HealthState::Healthy));
    }
}

/// It was Ready with `r1`, whose probe is the same, and has just been given `r2`.
fn given_another_configuration() -> World {
    let mut world = changed!(
        updated(probed(serving(), Some(HealthState::Healthy))),
        status.class_revision = Some("r1".into())
    );
    let by_command = Agent {
        health: by_command(),
        ..agent()
    };
    let has = (by_command.config_revision.clone(), "tag".into());
    world.class = ClassView::Usable(Box::new(by_command));
    world.status.config_revision = Some("of r1".into());
    world.status.health = Some(HealthStatus {
        state: HealthState::Healthy,
        since: Time(at(-60)),
    });
    let guest = &mut world.servers[0].guest;
    let view = guest.health.as_mut().unwrap();
    (view.health, view.epoch) = (self::by_command(), 2);
    guest.hello = Some(Hello {
        applied: Some(has.clone()),
        armed: Some(1),
        ..Hello::default()
    });
    guest.configured = Some(Configured {
        epoch: 3,
        sent: has,
        outcome: Ok(true),
    });
    world
}

#[test]
fn i6_what_was_said_of_another_configuration_makes_no_revision_a_good_one() {
    let begun_anew = |mut world: World| {
        let guest = &mut world.servers[0].guest;
        (guest.health, guest.configured) = (None, None);
        world
    };
    let given = given_another_configuration();
    let written = changed!(given.clone(), status = reported(&given));
    for (what, world) in [
        ("it was just given it", given.clone()),
        ("the operator began anew", begun_anew(given)),
        (
            "the operator began anew after it told of it",
            begun_anew(written),
        ),
    ] {
        let plan = present(&world);
        assert!(asks_anew(&plan), "{what}: {plan:?}");
        let told = reported(&world);
        assert!(!is_true(&told.conditions, ConditionType::Ready), "{what}");
        let revisions = (told.class_revision, told.good_revision, told.health);
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(revisions, (name("r2"), name("r1"), None), "{what}");
    }
}
