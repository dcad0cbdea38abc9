//! What is planned for a server that another one takes the place of.

use super::*;
use crate::{
    agent_instance::{status::status, world::Meanwhile},
    api::{
        Disk, HeardOrder, HeardOrders, OnProvisionFailure, RollbackReason, RollbackRecord,
        RolloutStrategy,
    },
    rollout::Share,
};

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

/// The old server did not do as told, or did not answer, so many times in a row, the last time that long ago.
fn in_vain(world: World, released: Option<bool>, (times, ago): (u32, i64)) -> World {
    with_old(world, |old| {
        old.created_at = Some(at(-3600));
        old.guest.released = released.map(|done| (4, done));
        old.guest.in_vain = Some((times, at(-ago)));
        if released.is_none() {
            let problem = ContactProblem::Silent("no route".into());
            old.guest.contact = Some((problem, at(-ago)));
        }
    })
}

#[test]
fn i13_a_server_that_is_not_silent_since_is_told_again_and_goes_when_that_was_in_vain_twice() {
    let silenced_before = with_old(taken(Disk::Disposable), |old| {
        old.guest.released = Some((3, true));
    });
    let asked = |released, times| in_vain(taken(Disk::Disposable), released, times);
    for (world, expected) in vec![
        (silenced_before, "release"),
        (asked(Some(false), (1, 1)), "wait"),
        (asked(Some(false), (1, 20)), "release"),
        (asked(Some(false), (2, 1)), "delete"),
        (asked(None, (1, 1)), "wait"),
        (asked(None, (1, 20)), "release"),
        (asked(None, (2, 1)), "delete"),
        // It has answered since, and is told again after a pause.
        (
            with_old(asked(None, (2, 20)), |old| old.guest.contact = None),
            "release",
        ),
        (
            with_old(asked(None, (2, 1)), |old| old.guest.busy = true),
            "wait",
        ),
    ] {
        let plan = present(&world);
        match (expected, &plan.steps[..]) {
            ("wait", [])
            | ("release", [Step::Release { server: 41, .. }])
            | ("delete", [Step::DeleteServer { id: 41, .. }]) => {}
            _ => panic!("{expected}: {plan:?}"),
        }
        assert_eq!(reason(&plan), "Updating");
    }
}

#[test]
fn i9_while_many_are_out_of_reach_none_is_deleted_since_it_cannot_be_silenced() {
    let held = |world: World| changed!(world, hold = Some("AgentClass small".to_owned()));
    for released in [None, Some(false)] {
        let world = held(in_vain(taken(Disk::Disposable), released, (3, 20)));
        let plan = present(&world);
        assert!(matches!(plan.steps[..], [Step::Hello { server: 41, .. }]));
        let Stage::Troubled("CannotRelease", words) = &plan.stage else {
            panic!("{plan:?}");
        };
        assert!(
            words.contains("RecoveryHeld of AgentClass small"),
            "{words}"
        );
        // A person knows what he does.
        let plan = ordered(&given_up(world));
        assert!(matches!(
            plan.steps[..],
            [Step::DeleteServer { id: 41, .. }]
        ));
    }
}

#[test]
fn i14_what_was_made_to_be_kept_is_kept_though_its_class_has_become_another() {
    let made_to_be_kept = |world| with_old(world, |old| old.disk = Disk::Preserve);
    let plan = present(&made_to_be_kept(outdated(Disk::Disposable)));
    let Stage::Serving(Some(("NeedsNewServer", words))) = &plan.stage else {
        panic!("{plan:?}");
    };
    assert!(
        plan.steps.is_empty() && words.contains("made to keep its disk"),
        "{words}"
    );
    let plan = present(&given_up(made_to_be_kept(outdated(Disk::Disposable))));
    assert!(matches!(plan.steps[..], [Step::Announce(_)]), "{plan:?}");
    // What each revision gets a new server for is applied in place.
    let plan = present(&made_to_be_kept(of_another_revision()));
    assert!(
        matches!(plan.steps[..], [Step::Hello { server: 41, .. }]),
        "{plan:?}"
    );
    assert_eq!(plan.stage, Stage::Updating);
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
        address: ADDRESS,
        state: Some(HealthState::Healthy),
        words: String::new(),
        stranger: false,
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

/// The class has another revision, `r2`, each of which gets servers of its own.
fn of_another_revision() -> World {
    let mut wanted = agent();
    wanted.config_revision = "of r2".into();
    wanted.lifecycle.disk = Disk::Disposable;
    wanted.lifecycle.rollout.strategy = RolloutStrategy::Replace;
    let mut world = changed!(serving(), may_move = true);
    world.class = ClassView::Usable(Box::new(wanted));
    world.rollout = Share {
        revision: "r2".into(),
        attempt: Some("r2".into()),
        former: Some("r1".into()),
        ..Share::default()
    };
    world.status.class_revision = Some("r1".into());
    world.status.good_revision = Some("r1".into());
    with_old(world, |old| old.revision = Some("r0".into()))
}

fn usable(world: &mut World) -> &mut Agent {
    match &mut world.class {
        ClassView::Usable(agent) => agent,
        other => panic!("{other:?}"),
    }
}

#[test]
fn where_each_revision_has_servers_of_its_own_none_is_applied_in_place() {
    let plan = present(&of_another_revision());
    assert!(matches!(&plan.steps[..], [Step::Announce(next)] if next.incarnation == 2));
    assert_eq!(reason(&plan), "Replacing");

    let maintained = Want {
        maintenance: true,
        ..want()
    };
    let left_alone = plan_of(&of_another_revision(), maintained);
    let not_its_turn = present(&changed!(of_another_revision(), may_move = false));
    for plan in [left_alone, not_its_turn] {
        assert_eq!(
            (plan.steps.len(), reason(&plan)),
            (0, "NeedsNewServer".into())
        );
    }

    // What is its own is in no revision, and in place it is where the class does not say otherwise.
    let own = changed!(
        of_another_revision(),
        status.class_revision = Some("r2".into())
    );
    let mut in_place = of_another_revision();
    usable(&mut in_place).lifecycle.rollout.strategy = RolloutStrategy::InPlace;
    let mut kept = of_another_revision();
    usable(&mut kept).lifecycle.disk = Disk::Preserve;
    for world in [own, in_place, kept] {
        let plan = present(&world);
        assert!(
            matches!(plan.steps[..], [Step::Hello { server: 41, .. }]),
            "{plan:?}"
        );
        assert_eq!(plan.stage, Stage::Updating);
    }
}

fn plan_of(world: &World, want: Want) -> Plan {
    plan(
        &Desired::Present(identity(), Box::new(want)),
        world,
        FLEET,
        now(),
    )
}

#[test]
fn i13_a_server_of_another_revision_hands_over_to_one_that_was_made_for_it() {
    let with_next = |revision: &str| {
        let mut world = beside(of_another_revision(), Some(InstallPhase::Done));
        let next = &mut world.servers[1];
        (next.revision, next.boot_revision) = (Some(revision.into()), Some(agent().boot_revision));
        world
    };
    let plan = present(&with_next("r2"));
    assert!(
        matches!(&plan.steps[..], [Step::WriteVoice(voice)] if voice.incarnation.is_none()),
        "{plan:?}"
    );
    // One that was made for a revision in between is none.
    let plan = present(&with_next("r1b"));
    assert!(
        matches!(
            &plan.steps[..],
            [Step::Announce(_), Step::DeleteServer { id: 42, .. }]
        ),
        "{plan:?}"
    );

    // While nobody has the voice it is still known what the old one had, though nothing is applied there any more.
    let mut world = with_next("r2");
    world.status.voice = Some(VoiceRecord {
        incarnation: None,
        epoch: 4,
    });
    assert!(matches!(
        present(&world).steps[..],
        [Step::Release { server: 41, .. }]
    ));
    let front = world.front(UID).unwrap();
    let told = status(&world, Some(front), &Stage::Updating, None, now());
    assert_eq!(told.class_revision.as_deref(), Some("r1"));
    let silent = with_old(world, |old| old.guest.released = Some((4, true)));
    let front = silent.front(UID).unwrap();
    assert_eq!(front.id, 42);
    let told = status(&silent, Some(front), &Stage::Updating, None, now());
    assert_eq!(told.class_revision, None);
}

/// The new server has the voice and fails; the old one is still there.
fn handed_over_in_vain() -> World {
    let mut world = beside(of_another_revision(), Some(InstallPhase::Done));
    world.servers[0].revision = Some("r1".into());
    world.servers[1].revision = Some("r2".into());
    world.servers[1].boot_revision = Some(agent().boot_revision);
    world.status.voice = Some(VoiceRecord {
        incarnation: Some(2),
        epoch: 5,
    });
    world.status.config_revision = Some("of r2".into());
    world.status.class_revision = Some("r2".into());
    let status = world.status.server.as_mut().unwrap();
    (status.id, status.incarnation) = (42, 2);
    world.servers[1].guest.health = Some(HealthView {
        health: agent().health,
        epoch: 5,
        address: ADDRESS,
        state: Some(HealthState::Failed),
        words: "says why".into(),
        stranger: false,
    });
    world
}

/// It is to have `r1` again.
fn gone_back(mut world: World) -> World {
    let mut former = agent();
    former.lifecycle = usable(&mut world).lifecycle.clone();
    world.class = ClassView::Usable(Box::new(former));
    world.rollout = Share {
        revision: "r1".into(),
        refused: Some("r2".into()),
        ..Share::default()
    };
    world
}

/// It has proven itself, and its agent has spoken before.
fn has_answered(server: &mut ServerView) {
    server.guest.proven = Some("ssh-ed25519 AAAA".into());
    server.guest.hello = Some(Hello {
        ever_armed: true,
        ..Hello::default()
    });
}

#[test]
fn one_that_failed_gives_the_voice_back_to_the_old_server_if_that_is_still_there() {
    let world = handed_over_in_vain();
    assert!(world.refuses(&world.servers[1]));
    assert_eq!(present(&world).steps, []);

    let mut back = gone_back(world);
    let asked = present(&back);
    assert!(
        matches!(asked.steps[..], [Step::Hello { server: 41, .. }]),
        "{asked:?}"
    );
    let heard = with_old(back.clone(), has_answered);
    let plan = present(&heard);
    assert!(
        matches!(&plan.steps[..], [Step::WriteVoice(voice)] if voice.incarnation.is_none() && voice.epoch == 6),
        "{plan:?}"
    );
    // Taken back before the new one ever spoke, there is nothing to be waited for.
    let mut early = heard;
    early.status.voice = Some(VoiceRecord {
        incarnation: None,
        epoch: 4,
    });
    assert_eq!(early.front(UID).map(|front| front.id), Some(41));
    // It is gone: another one is bought.
    back.servers.remove(0);
    let plan = present(&back);
    assert!(matches!(&plan.steps[..], [Step::Announce(next)] if next.incarnation == 3));
}

#[test]
fn a_server_that_was_made_for_a_revision_with_another_probe_alone_needs_no_other() {
    let mut back = with_old(gone_back(handed_over_in_vain()), |old| {
        old.revision = Some("r0".into());
        has_answered(old);
    });
    let plan = present(&back);
    assert!(
        matches!(plan.steps[..], [Step::Announce(_), ..]),
        "{plan:?}"
    );
    back.rollout.alike = vec!["r0".into()];
    let plan = present(&back);
    assert!(
        matches!(&plan.steps[..], [Step::WriteVoice(voice)] if voice.incarnation.is_none()),
        "{plan:?}"
    );
    // Nor does one that is prepared when the probe is changed.
    let mut next = beside(of_another_revision(), Some(InstallPhase::Done));
    next.rollout.alike = vec!["r1b".into()];
    let plan = present(&with_next_of(next, "r1b"));
    assert!(
        matches!(&plan.steps[..], [Step::WriteVoice(voice)] if voice.incarnation.is_none()),
        "{plan:?}"
    );
}

#[test]
fn a_revision_is_refused_when_no_attempt_to_prepare_a_server_for_it_is_left() {
    use OnProvisionFailure::{Keep, Remove, Retry};
    let mut world = of_another_revision();
    let agent = usable(&mut world).clone();
    let basis = world.basis(&agent);
    world.status.provisioning = Some(ProvisioningRecord {
        basis: basis.clone(),
        ..record(2, -20)
    });
    let refuses = |attempt, action, basis: Option<String>| {
        let mut world = world.clone();
        world.status.provisioning.as_mut().unwrap().basis = basis;
        world.status.rollbacks = vec![RollbackRecord {
            incarnation: 2,
            attempt,
            project: "one".into(),
            server_type: "cx23".into(),
            location: "nbg1".into(),
            reason: RollbackReason::InstallFailed,
            message: "step install 1 failed".into(),
            action,
            basis: None,
            at: MicroTime(now()),
        }];
        world.refuses(&world.servers[0])
    };
    assert!(refuses(3, Retry, basis.clone()) && refuses(1, Remove, basis.clone()));
    assert!(!refuses(2, Retry, basis.clone()), "another one follows");
    assert!(
        !refuses(1, Keep, basis.clone()),
        "somebody is to have a look"
    );
    assert!(!refuses(3, Retry, Some("another".into())), "it was retried");
    // That the old server fails meanwhile says nothing about what it never had.
    let failing = with_old(of_another_revision(), |old| {
        let health = old.guest.health.as_mut().unwrap();
        health.state = Some(HealthState::Failed);
    });
    assert!(!failing.refuses(&failing.servers[0]));
}

#[test]
fn i13_a_changed_secret_reaches_the_old_server_while_another_one_is_prepared() {
    let with_secret = |mut world: World| {
        world.secrets = SecretsView::Met { tag: "new".into() };
        world.meanwhile = Some(Meanwhile {
            agent: Box::new(agent()),
            tag: "new of r1".into(),
        });
        world.fresh_epoch = Some(3);
        with_old(world, |old| old.guest.hello = Some(Hello::default()))
    };
    let given = |world: &World| {
        let plan = present(world);
        matches!(plan.steps[..], [Step::Configure { server: 41, .. }])
    };
    let world = with_secret(of_another_revision());
    assert!(given(&world), "{:?}", present(&world));
    let (due, tag) = world.due(&world.servers[0]).unwrap();
    assert_eq!(
        (due.config_revision.as_str(), tag),
        (agent().config_revision.as_str(), "new of r1"),
        "with what else it has"
    );
    // Only a server that has said that it never spoke may stand beside it then.
    let unheard = with_secret(beside(of_another_revision(), None));
    let mut unheard = with_next_of(unheard, "r2");
    let silence = ContactProblem::Silent("it boots".into());
    unheard.servers[1].guest.contact = Some((silence, at(-20)));
    let steps = present(&unheard).steps;
    assert!(
        matches!(steps[..], [Step::Hello { server: 42, .. }]),
        "nor does that one go for it: {steps:?}"
    );
    let heard = with_secret(beside(of_another_revision(), Some(InstallPhase::Running)));
    assert!(given(&with_next_of(heard, "r2")));
    // While it is started with it, it is not Ready.
    let busy = with_old(world.clone(), |old| old.guest.busy = true);
    assert_eq!(present(&busy).stage, Stage::Updating);
    // What was given is not given again.
    let done = with_old(world, |old| {
        old.guest.configured = Some(Configured {
            epoch: 3,
            sent: (agent().config_revision, "new of r1".into()),
            outcome: Ok(true),
        });
    });
    assert!(!given(&done));
    let ordered = given_up(serving());
    let ordered = with_old(ordered, |old| old.guest.hello = Some(Hello::default()));
    let mut ordered = changed!(ordered, fresh_epoch = Some(3));
    ordered.secrets = SecretsView::Met { tag: "new".into() };
    assert!(matches!(
        ordered_steps(&ordered)[..],
        [Step::Configure { server: 41, .. }]
    ));
}

fn with_next_of(mut world: World, revision: &str) -> World {
    world.servers[1].revision = Some(revision.into());
    world.servers[1].boot_revision = Some(agent().boot_revision);
    world
}

fn ordered_steps(world: &World) -> Vec<Step> {
    ordered(world).steps
}

/// The voice is another server's, and the old one, made to be of this worth, may speak.
fn unsilenced(of_class: Disk, own: Disk) -> World {
    let mut world = changed!(prepared(of_class), may_move = false);
    world.servers[0].disk = own;
    usable(&mut world).boot_revision = agent().boot_revision;
    world.status.voice = Some(VoiceRecord {
        incarnation: Some(2),
        epoch: 5,
    });
    world.fresh_epoch = Some(5);
    let status = world.status.server.as_mut().unwrap();
    (status.id, status.incarnation) = (42, 2);
    status.host_key = Some("ssh-ed25519 BBBB".into());
    world.servers[1].boot_revision = Some(agent().boot_revision);
    world.secrets = SecretsView::Met { tag: "new".into() };
    world
}

#[test]
fn i14_a_preserved_server_that_may_speak_and_does_not_answer_is_a_persons_matter() {
    for (of_class, own) in [
        (Disk::Preserve, Disk::Disposable),
        (Disk::Disposable, Disk::Preserve),
    ] {
        is_waited_for(unsilenced(of_class, own));
    }
}

fn is_waited_for(mut world: World) {
    let silent_since = |world: &World, second| {
        let problem = ContactProblem::Silent("no route".into());
        let world = with_old(world.clone(), |old| {
            old.created_at = Some(at(-3600));
            old.guest.contact = Some((problem, at(second)));
            old.guest.in_vain = Some((2, at(second)));
        });
        present(&world)
    };
    let plan = silent_since(&world, -1);
    assert_eq!(reason(&plan), "CannotRelease");
    assert!(
        plan.steps.is_empty() && plan.look_again.is_some(),
        "{plan:?}"
    );
    let plan = silent_since(&world, -20);
    assert!(matches!(plan.steps[..], [Step::Hello { server: 41, .. }]));
    assert_eq!(reason(&plan), "CannotRelease");
    world.servers[0].guest.busy = true;
    assert_eq!(
        reason(&silent_since(&world, -20)),
        "CannotRelease",
        "while it is asked"
    );
}
