//! Each line of the plan, as a table.

use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

use super::*;
use crate::{
    agent_instance::world::{Attempt, ConfigureFailure, Configured, GuestView, LookUp},
    api::{AgentClass, AgentInstance, HealthStatus},
    health::HealthView,
    hetzner_project::retype::Retype,
};

pub(super) const FLEET: &str = "fleet";
pub(super) const UID: &str = "uid-1";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn now() -> Timestamp {
    at(0)
}

fn class() -> AgentClass {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "agentfleet.dev/v1alpha1", "kind": "AgentClass", "metadata": {"name": "small"},
        "spec": {
            "projects": ["one", "two"], "serverTypes": ["cx23"], "locations": ["nbg1", "fsn1"], "image": "debian-13",
            "firewall": {"sshFrom": ["10.0.0.0/8"]},
            "agent": {"service": {"execStart": ["/bin/agent"]}}
        }
    }))
    .unwrap()
}

pub(super) fn want() -> Want {
    let instance = AgentInstance::new(
        "a",
        serde_json::from_value(serde_json::json!({"className": "small"})).unwrap(),
    );
    match Desired::parse(&instance) {
        Desired::Present(_, want) => *want,
        Desired::Absent(_) | Desired::Retained(_) => unreachable!("no deletion timestamp"),
    }
}

pub(super) fn identity() -> Identity {
    Identity {
        namespace: "ns".into(),
        name: "a".into(),
        uid: "uid-1".into(),
    }
}

pub(super) fn agent() -> Agent {
    Agent::of(&class(), &want()).unwrap()
}

fn place() -> Place {
    Place {
        server_type: "cx23".into(),
        location: "nbg1".into(),
    }
}

pub(super) fn project(name: &str) -> ProjectView {
    ProjectView {
        name: name.into(),
        unusable: None,
        unseen: false,
        synced: true,
        listed_at: Some(at(-5)),
        creates_held: None,
        place: Some(Ok(place())),
        firewall: true,
    }
}

/// An accepted instance whose class, Secret and projects are fine, without a server.
fn ready_to_create() -> World {
    World {
        finalizer: true,
        class: ClassView::Usable(Box::new(agent())),
        secrets: SecretsView::Met { tag: "tag".into() },
        projects: vec![project("one"), project("two")],
        ..World::default()
    }
}

fn record(incarnation: u32, written: i64) -> ProvisioningRecord {
    ProvisioningRecord {
        incarnation: i64::from(incarnation),
        server_name: identity().server_name(FLEET, incarnation),
        project: "one".into(),
        server_type: "cx23".into(),
        location: "nbg1".into(),
        attempt: Some(1),
        basis: Some(agent().basis("tag", &[None; 2])),
        snapshot: None,
        at: MicroTime(at(written)),
    }
}

fn recorded(written: i64) -> World {
    let mut world = ready_to_create();
    world.status.provisioning = Some(record(1, written));
    world.attempt.incarnation = 1;
    world
}

/// Where all servers are.
pub(super) const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 1, 0, 1));

pub(super) fn server(incarnation: u32) -> ServerView {
    ServerView {
        project: "one".into(),
        id: 40 + i64::from(incarnation),
        name: identity().server_name(FLEET, incarnation),
        uid: "uid-1".into(),
        incarnation,
        boot_revision: Some(agent().boot_revision),
        revision: None,
        disk: Disk::Disposable,
        ipv4: Some(ADDRESS.to_string()),
        ipv6: None,
        server_type: "cx23".into(),
        location: "nbg1".into(),
        retype: Retype::Impossible,
        created_at: Some(at(-30)),
        power: Power::On,
        retained: false,
        blocked: false,
        listed: true,
        deleting: false,
        guest: GuestView::default(),
    }
}

fn with_server(mut world: World, server: ServerView) -> World {
    world.status.server = Some(ServerStatus {
        project: server.project.clone(),
        id: server.id,
        name: server.name.clone(),
        incarnation: i64::from(server.incarnation),
        ipv4: server.ipv4.clone(),
        ipv6: None,
        server_type: None,
        location: None,
        disk: None,
        created_at: None,
        host_key: None,
        silent_since_epoch: None,
    });
    world.servers.push(server);
    world
}

fn booting() -> World {
    let mut world = recorded(-40);
    world.attempt = Attempt {
        sent: Some(at(-40)),
        announced: Some(at(-40)),
        outcome: SendOutcome::Created,
        ..world.attempt
    };
    with_server(world, server(1))
}

fn pinned() -> World {
    let mut world = booting();
    world.status.server.as_mut().unwrap().host_key = Some("ssh-ed25519 AAAA".into());
    world
}

fn installed() -> World {
    let mut world = pinned();
    world.servers[0].guest.hello = Some(Hello {
        epoch: 0,
        ..Hello::default()
    });
    world
}

fn voiced(epoch: i64) -> World {
    let mut world = installed();
    world.status.voice = Some(VoiceRecord {
        incarnation: Some(1),
        epoch,
    });
    world
}

fn serving() -> World {
    let mut world = pinned();
    world.status.voice = Some(VoiceRecord {
        incarnation: Some(1),
        epoch: 3,
    });
    world.status.config_revision = Some(agent().config_revision);
    world.status.secrets_tag = Some("tag".into());
    probed(world, Some(HealthState::Healthy))
}

/// What the probes say of the agent of [`serving`].
fn probed(mut world: World, state: Option<HealthState>) -> World {
    world.servers[0].guest.health = Some(HealthView {
        health: agent().health,
        epoch: 3,
        address: ADDRESS,
        state,
        words: "says why".into(),
        stranger: false,
    });
    world
}

fn present(world: &World) -> Plan {
    plan(
        &Desired::Present(identity(), Box::new(want())),
        world,
        FLEET,
        now(),
    )
}

fn absent(world: &World) -> Plan {
    plan(&Desired::Absent(identity()), world, FLEET, now())
}

fn reason(plan: &Plan) -> String {
    super::super::status::words(&plan.stage).0.to_owned()
}

macro_rules! changed {
    ($world:expr, $($field:ident).+ = $value:expr) => {{
        let mut world = $world;
        world.$($field).+ = $value;
        world
    }};
}

// After the macro that it uses.
mod health;
mod hold;
mod notice;
mod orders;
mod recovery;
mod replacement;
mod restoration;
mod retention;
mod retype;
mod rollback;
mod rollout;
mod suspension;

pub(super) use restoration::snapshot;

#[test]
fn nothing_is_written_down_before_the_finalizer_is_on() {
    let world = changed!(ready_to_create(), finalizer = false);
    assert_eq!(present(&world).steps, [Step::AddFinalizer]);
}

#[test]
fn a_server_is_written_down_before_it_is_asked_for() {
    let plan = present(&ready_to_create());
    assert_eq!(plan.steps, [Step::Announce(record(1, 0))]);
}

#[test]
fn each_missing_prerequisite_has_its_reason_and_buys_nothing() {
    let both = |view: ProjectView| {
        let two = ProjectView {
            name: "two".into(),
            ..view.clone()
        };
        vec![view, two]
    };
    let unusable = ProjectView {
        unusable: Some(("WrongProject", "x".into())),
        ..project("one")
    };
    let unlisted = ProjectView {
        synced: false,
        ..project("one")
    };
    let held = ProjectView {
        creates_held: Some(("QuotaExceeded", "x".into(), at(60))),
        ..project("one")
    };
    let bare = ProjectView {
        firewall: false,
        ..project("one")
    };
    let sold_out = ProjectView {
        place: Some(Err(at(60))),
        ..project("one")
    };
    let table = vec![
        (
            changed!(
                ready_to_create(),
                class = ClassView::Refused("ClassMissing", "c".into())
            ),
            "ClassMissing",
        ),
        (
            changed!(
                ready_to_create(),
                class = ClassView::Refused("LimitReached", "5".into())
            ),
            "LimitReached",
        ),
        (
            changed!(ready_to_create(), secrets = SecretsView::Unknown),
            "SecretUnread",
        ),
        (
            changed!(
                ready_to_create(),
                secrets = SecretsView::Unmet("SecretMissing", "s".into())
            ),
            "SecretMissing",
        ),
        (
            changed!(ready_to_create(), projects = vec![]),
            "ProjectMissing",
        ),
        (
            changed!(ready_to_create(), projects = both(unusable)),
            "WrongProject",
        ),
        (
            changed!(ready_to_create(), projects = vec![unlisted, project("two")]),
            "ProjectNotListed",
        ),
        (
            changed!(ready_to_create(), projects = both(held)),
            "QuotaExceeded",
        ),
        (
            changed!(ready_to_create(), projects = both(bare)),
            "FirewallNotReady",
        ),
        (
            changed!(ready_to_create(), projects = both(sold_out)),
            "OutOfStock",
        ),
    ];
    for (world, expected) in table {
        let plan = present(&world);
        assert_eq!(
            (plan.steps.as_slice(), reason(&plan).as_str()),
            ([].as_slice(), expected)
        );
    }
}

#[test]
fn the_next_project_is_taken_when_the_first_cannot_have_a_server() {
    let sold_out = ProjectView {
        place: Some(Err(at(60))),
        ..project("one")
    };
    let plan = present(&changed!(
        ready_to_create(),
        projects = vec![sold_out, project("two")]
    ));
    assert_eq!(
        plan.steps,
        [Step::Announce(ProvisioningRecord {
            project: "two".into(),
            ..record(1, 0)
        })]
    );
}

#[test]
fn one_written_record_permits_one_request() {
    let mut world = recorded(-1);
    world.attempt.announced = Some(at(-1));
    assert_eq!(present(&world).steps, [Step::CreateServer(record(1, -1))]);
    world.attempt.sent = Some(at(-1));
    let look_up = Step::LookUp {
        project: "one".into(),
        name: record(1, -1).server_name,
    };
    assert_eq!(
        present(&world).steps,
        std::slice::from_ref(&look_up),
        "the answer was lost"
    );
    world.attempt.looked_up = Some(LookUp {
        at: at(-1),
        foreign: None,
    });
    assert_eq!(
        present(&world).steps,
        [Step::Announce(record(1, 0))],
        "the same name, written down anew"
    );
    let found_after_restart = recorded(-500);
    assert_eq!(
        present(&found_after_restart).steps,
        [look_up],
        "a record of an earlier process"
    );
}

#[test]
fn a_refused_place_is_followed_by_the_next_incarnation_at_once() {
    let mut world = recorded(-1);
    world.attempt = Attempt {
        incarnation: 1,
        announced: Some(at(-1)),
        sent: Some(at(-1)),
        outcome: SendOutcome::OutOfStock,
        ..Attempt::default()
    };
    assert_eq!(present(&world).steps, [Step::Announce(record(2, 0))]);
    world.attempt.unsettled_until = Some(at(30));
    let plan = present(&world);
    assert_eq!(
        (plan.steps.len(), plan.look_again),
        (0, Some(at(30))),
        "an earlier request may still take effect"
    );
}

#[test]
fn i1_a_new_incarnation_waits_until_the_old_request_cannot_take_effect_and_looks_once_more() {
    let mut world = recorded(-200);
    world.attempt.outcome = SendOutcome::Created;
    world.attempt.unsettled_until = Some(at(-10));
    world.projects[0].listed_at = Some(at(-20));
    assert!(matches!(present(&world).steps[..], [Step::LookUp { .. }]));
    world.projects[0].listed_at = Some(at(-5));
    let second = ProvisioningRecord {
        attempt: Some(2),
        ..record(2, 0)
    };
    assert_eq!(present(&world).steps, [Step::Announce(second)]);
}

#[test]
fn i3_a_foreign_server_of_our_name_is_left_alone_and_the_name_not_asked_for_again() {
    let mut world = recorded(-1);
    world.attempt.sent = Some(at(-1));
    world.attempt.announced = Some(at(-1));
    world.attempt.looked_up = Some(LookUp {
        at: at(-1),
        foreign: Some(7),
    });
    let plan = present(&world);
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str(), plan.look_again),
        (0, "NameTaken", Some(at(599)))
    );
    world.attempt.looked_up = Some(LookUp {
        at: at(-700),
        foreign: Some(7),
    });
    assert!(matches!(present(&world).steps[..], [Step::LookUp { .. }]));
}

#[test]
fn an_unproven_server_is_challenged_and_told_nothing() {
    let hello = Step::Hello {
        server: 41,
        incarnation: 1,
    };
    assert_eq!(present(&booting()).steps, std::slice::from_ref(&hello));
    let mut busy = booting();
    busy.servers[0].guest.busy = true;
    assert_eq!(present(&busy).steps, []);
    let mut lied = booting();
    lied.servers[0].guest.contact = Some((ContactProblem::WrongProof("k".into()), at(-1)));
    let plan = present(&lied);
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str(), plan.look_again),
        (0, "HostKeyUnproven", Some(at(14)))
    );
    let mut proven = booting();
    proven.servers[0].guest.proven = Some("ssh-ed25519 AAAA".into());
    assert_eq!(present(&proven).steps, [], "the pin is written first");
}

#[test]
fn a_server_that_posts_its_key_is_not_challenged_while_it_boots() {
    let mut world = booting();
    let ClassView::Usable(agent) = &mut world.class else {
        unreachable!("ready_to_create has one")
    };
    agent.boot.bootstrap = Bootstrap::PhoneHome;
    assert_eq!(present(&world).steps, []);
    world.status.voice = Some(VoiceRecord {
        incarnation: Some(1),
        epoch: 2,
    });
    assert_eq!(
        present(&world).steps,
        [Step::Hello {
            server: 41,
            incarnation: 1
        }],
        "its pin was lost"
    );
}

#[test]
fn an_installed_server_gets_the_voice_and_then_its_secrets() {
    assert_eq!(
        present(&pinned()).steps,
        [Step::Hello {
            server: 41,
            incarnation: 1
        }]
    );
    let voice = Step::WriteVoice(VoiceRecord {
        incarnation: Some(1),
        epoch: 1,
    });
    assert_eq!(present(&installed()).steps, [voice]);
    let world = voiced(1);
    assert_eq!(
        present(&world).steps,
        [Step::WriteVoice(VoiceRecord {
            incarnation: Some(1),
            epoch: 2
        })],
        "the epoch of another process"
    );
    let world = changed!(world, fresh_epoch = Some(1));
    assert_eq!(
        present(&world).steps,
        [Step::Configure {
            server: 41,
            incarnation: 1,
            epoch: 1
        }]
    );
}

#[test]
fn an_outdated_guest_is_upgraded_once_while_it_installs_and_then_listened_to() {
    let mut world = installed();
    let guest = &mut world.servers[0].guest;
    guest.hello.as_mut().unwrap().phase = InstallPhase::Running;
    guest.upgrade = Upgrade::Due;
    let plan = present(&world);
    let upgrade = Step::Upgrade {
        server: 41,
        epoch: 1,
    };
    assert_eq!((plan.steps, plan.stage), (vec![upgrade], Stage::Installing));
    world.servers[0].guest.upgrade = Upgrade::Tried;
    assert!(matches!(present(&world).steps[..], [Step::Hello { .. }]));
    world.servers[0].guest.upgrade = Upgrade::Due;
    world.servers[0].guest.busy = true;
    assert_eq!(present(&world).steps, []);
}

#[test]
fn a_running_or_failed_installation_is_told_and_watched() {
    for (phase, expected) in [
        (InstallPhase::Running, "Installing"),
        (InstallPhase::Failed("clone".into()), "InstallFailed"),
    ] {
        let mut world = installed();
        // Nobody knows whether this server has ever served.
        world.status.provisioning = None;
        world.servers[0].guest.hello.as_mut().unwrap().phase = phase;
        let plan = present(&world);
        assert_eq!(
            (plan.steps.as_slice(), reason(&plan).as_str()),
            (
                [Step::Hello {
                    server: 41,
                    incarnation: 1
                }]
                .as_slice(),
                expected
            )
        );
    }
}

#[test]
fn i4_a_serving_instance_is_left_alone() {
    let plan = present(&serving());
    assert_eq!(
        (plan.steps.as_slice(), plan.look_again, plan.stage),
        ([].as_slice(), None, Stage::Serving(None))
    );
}

#[test]
fn i6_whether_an_agent_serves_is_what_its_probes_say() {
    for (state, expected) in [
        (Some(HealthState::Healthy), Stage::Serving(None)),
        (Some(HealthState::Degraded), Stage::Serving(None)),
        (None, Stage::Starting("says why".into())),
    ] {
        let plan = present(&probed(serving(), state));
        assert_eq!(
            (plan.steps.as_slice(), plan.stage),
            ([].as_slice(), expected)
        );
    }
}

#[test]
fn an_agent_is_probed_as_declared_and_presumed_to_be_as_it_was_last_known() {
    let up = |epoch| Configured {
        epoch,
        sent: (agent().config_revision, "tag".into()),
        outcome: Ok(true),
    };
    let over_http = {
        let mut agent = agent();
        agent.health.http = serde_json::from_value(serde_json::json!({"port": 80})).unwrap();
        ClassView::Usable(Box::new(agent))
    };
    let with = |mut world: World, change: &dyn Fn(&mut GuestView)| {
        change(&mut world.servers[0].guest);
        world
    };
    let unprobed = with(serving(), &|guest| guest.health = None);
    let just_configured = with(unprobed.clone(), &|guest| guest.configured = Some(up(3)));
    let mut told = unprobed.clone();
    told.status.health = Some(HealthStatus {
        state: HealthState::Failed,
        since: Time(now()),
    });
    let failing = probed(serving(), Some(HealthState::Failed));
    let older = with(serving(), &|guest| {
        guest.health.as_mut().unwrap().epoch = 2;
    });
    for (what, world, presumed) in [
        ("nothing is known", unprobed, None),
        (
            "systemd said so",
            just_configured.clone(),
            Some(HealthState::Healthy),
        ),
        (
            "it may not answer yet",
            changed!(just_configured, class = over_http.clone()),
            None,
        ),
        ("the status says so", told, Some(HealthState::Failed)),
        (
            "another probe said so, which is no word on this one",
            changed!(failing, class = over_http),
            None,
        ),
        ("another configuration is another agent", older, None),
    ] {
        let step = Step::Probe {
            server: 41,
            epoch: 3,
            presumed,
        };
        assert_eq!(present(&world).steps, [step], "{what}");
    }
}

#[test]
fn a_guest_is_greeted_before_it_is_given_anything_new() {
    let world = changed!(serving(), status.secrets_tag = Some("old".into()));
    let plan = present(&world);
    assert_eq!(
        plan.steps,
        [Step::Hello {
            server: 41,
            incarnation: 1
        }]
    );
    assert_eq!(plan.stage, Stage::Updating);
}

#[test]
fn a_changed_secret_or_configuration_is_applied_in_place() {
    let greeted = |mut world: World| {
        world.servers[0].guest.hello = Some(Hello {
            epoch: 3,
            ..Hello::default()
        });
        world
    };
    for world in [
        changed!(greeted(serving()), status.secrets_tag = Some("old".into())),
        changed!(
            greeted(serving()),
            status.config_revision = Some("old".into())
        ),
    ] {
        assert_eq!(
            present(&world).steps,
            [Step::WriteVoice(VoiceRecord {
                incarnation: Some(1),
                epoch: 4
            })]
        );
        let world = changed!(world, fresh_epoch = Some(3));
        assert_eq!(
            present(&world).steps,
            [Step::Configure {
                server: 41,
                incarnation: 1,
                epoch: 3
            }]
        );
    }
}

#[test]
fn a_serving_instance_goes_on_when_its_class_or_secret_is_gone() {
    for (world, expected) in [
        (
            changed!(
                serving(),
                class = ClassView::Refused("ClassMissing", "c".into())
            ),
            "ClassMissing",
        ),
        (
            changed!(
                serving(),
                secrets = SecretsView::Unmet("SecretMissing", "s".into())
            ),
            "SecretMissing",
        ),
    ] {
        let plan = present(&world);
        assert!(
            matches!(&plan.stage, Stage::Serving(Some((reason, _))) if *reason == expected),
            "{plan:?}"
        );
        assert_eq!(plan.steps, []);
    }
}

#[test]
fn nothing_of_another_customers_secret_is_given_to_any_agent() {
    for world in [
        ready_to_create(),
        recorded(-40),
        installed(),
        voiced(3),
        serving(),
    ] {
        let another = SecretsView::Unmet("SecretOfAnother", "s".into());
        let plan = present(&changed!(world, secrets = another));
        let buys_or_gives = |step: &Step| {
            matches!(
                step,
                Step::Announce(_) | Step::CreateServer(_) | Step::Configure { .. }
            )
        };
        assert!(!plan.steps.iter().any(buys_or_gives), "{plan:?}");
        assert_eq!(reason(&plan), "SecretOfAnother");
    }
}

#[test]
fn what_a_new_server_alone_could_take_up_is_said_and_nothing_is_done() {
    let mut world = serving();
    world.servers[0].boot_revision = Some("older".into());
    let plan = present(&world);
    assert!(matches!(
        plan.stage,
        Stage::Serving(Some(("NeedsNewServer", _)))
    ));
    assert_eq!(plan.steps, []);
}

/// The guest did not take what it was sent.
fn refused(mut world: World, tag: &str, cure: Cure, again: Option<Timestamp>) -> World {
    let failure = ConfigureFailure {
        reason: "Refused".into(),
        message: "why".into(),
        cure,
        of_content: true,
        as_before: cure != Cure::Change,
        times: 2,
        again,
    };
    world.servers[0].guest.configured = Some(Configured {
        epoch: 3,
        sent: (agent().config_revision, tag.into()),
        outcome: Err(failure),
    });
    world
}

#[test]
fn i6_an_agent_that_could_not_be_given_what_changed_is_still_asked_for_its_health() {
    let changed = changed!(serving(), status.secrets_tag = Some("old".into()));
    let later = now() + CONTACT;
    let world = refused(changed, "tag", Cure::Person, Some(later));
    let plan = present(&world);
    assert!(
        matches!(&plan.stage, Stage::Serving(Some(("ConfigureFailed", words))) if words == "Refused: why"),
        "{plan:?}"
    );
    assert_eq!((plan.steps.len(), plan.look_again), (0, Some(later)));
    let dead = present(&probed(world.clone(), Some(HealthState::Failed)));
    assert!(
        matches!(&dead.stage, Stage::Recovering(_, words) if words.ends_with("says why; Refused: why")),
        "{dead:?}"
    );
    let mut unasked = world.clone();
    unasked.servers[0].guest.health = None;
    unasked.status.health = Some(HealthStatus {
        state: HealthState::Healthy,
        since: Time(now()),
    });
    let asked = present(&unasked);
    assert!(
        matches!(asked.steps[..], [Step::Probe { .. }]),
        "its probes ended with the order"
    );
    assert!(
        matches!(asked.stage, Stage::Serving(Some(("ConfigureFailed", _)))),
        "nothing was done to it: {asked:?}"
    );
    let mut due = refused(world, "tag", Cure::Person, Some(now()));
    due.servers[0].guest.hello = Some(Hello::default());
    assert!(matches!(present(&due).steps[..], [Step::WriteVoice(_)]));
}

#[test]
fn i6_an_agent_that_is_back_on_what_it_had_serves_and_one_that_is_not_is_stalled() {
    let changed = changed!(serving(), status.secrets_tag = Some("old".into()));
    let mut world = refused(changed, "tag", Cure::Change, None);
    assert_eq!(reason(&present(&world)), "Refused");
    assert!(matches!(present(&world).stage, Stage::ConfigureFailed(..)));
    if let Some(Configured {
        outcome: Err(failure),
        ..
    }) = &mut world.servers[0].guest.configured
    {
        failure.as_before = true;
    }
    let plan = present(&world);
    assert!(
        matches!(&plan.stage, Stage::Serving(Some(("ConfigureFailed", words))) if words == "Refused: why"),
        "{plan:?}"
    );
    assert_eq!((plan.steps.len(), plan.look_again), (0, None));
}

#[test]
fn a_first_configuration_that_waits_for_a_person_says_so_and_a_passing_fault_only_when_it_comes_again()
 {
    let later = Some(now() + CONTACT);
    let world = refused(voiced(1), "tag", Cure::Person, later);
    assert!(
        matches!(present(&world).stage, Stage::ConfigureFailed(reason, _) if reason == "Refused")
    );
    let mut world = refused(world, "tag", Cure::Time, later);
    assert_eq!(reason(&present(&world)), "ConfigureFailed");
    if let Some(Configured {
        outcome: Err(failure),
        ..
    }) = &mut world.servers[0].guest.configured
    {
        failure.times = 1;
    }
    assert_eq!(present(&world).stage, Stage::Installing);
}

#[test]
fn a_configuration_that_the_agent_cannot_live_with_is_not_sent_again() {
    let mut world = refused(voiced(1), "tag", Cure::Change, None);
    let plan = present(&world);
    assert_eq!((plan.steps.len(), reason(&plan).as_str()), (0, "Refused"));
    assert_eq!(plan.look_again, None);
    world = refused(world, "earlier", Cure::Change, None);
    assert!(
        matches!(present(&world).steps[..], [Step::WriteVoice(_)]),
        "the Secret changed since"
    );
    let mut back = refused(serving(), "newer", Cure::Change, None);
    back.servers[0].guest.hello = Some(Hello::default());
    assert!(
        matches!(present(&back).steps[..], [Step::WriteVoice(_)]),
        "the former one is given again, as the newer may have taken its place"
    );
}

#[test]
fn i9_a_server_that_no_list_shows_is_asked_for_by_id() {
    let mut world = serving();
    world.servers[0].listed = false;
    assert_eq!(
        present(&world).steps,
        [Step::ConfirmGone {
            project: "one".into(),
            id: 41
        }]
    );
    let unusable = ProjectView {
        unusable: Some(("WrongProject", "x".into())),
        ..project("one")
    };
    let world = changed!(world, projects = vec![unusable, project("two")]);
    assert_eq!(
        present(&world).steps,
        [],
        "a token of another project is believed nothing"
    );
}

#[test]
fn i14_a_lost_server_that_spoke_is_not_replaced_by_our_own_decision() {
    let mut world = serving();
    world.servers.clear();
    world.known = Known::Gone;
    let world = restoration::without_snapshot(world);
    let plan = present(&world);
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str()),
        (0, "ServerLost")
    );
    let world = changed!(world, known = Known::Relabelled);
    assert_eq!(reason(&present(&world)), "LabelsChanged");
    let world = changed!(world, known = Known::Unseen);
    assert_eq!(
        present(&world).steps,
        [Step::ConfirmGone {
            project: "one".into(),
            id: 41
        }]
    );
}

#[test]
fn i12_a_server_of_an_earlier_object_waits_for_a_person() {
    let mut world = ready_to_create();
    world.servers.push(ServerView {
        uid: "uid-0".into(),
        ..server(1)
    });
    let plan = present(&world);
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str()),
        (0, "AdoptOrDelete")
    );
    let desired = Desired::Present(
        identity(),
        Box::new(Want {
            adopt: Some(41),
            ..want()
        }),
    );
    let taken = super::plan(&desired, &world, FLEET, now());
    assert_eq!(
        taken.steps,
        [Step::TakeUp {
            project: "one".into(),
            id: 41,
            uid: "uid-1".into()
        }]
    );
    let desired = Desired::Present(
        identity(),
        Box::new(Want {
            adopt: Some(99),
            ..want()
        }),
    );
    assert_eq!(
        super::plan(&desired, &world, FLEET, now()).steps,
        [],
        "another id"
    );
}

#[test]
fn i12_with_all_status_lost_the_armed_server_with_the_highest_epoch_is_the_agent() {
    let mut world = ready_to_create();
    world.servers = vec![server(1), server(2)];
    assert!(
        matches!(present(&world).steps[..], [Step::Hello { .. }]),
        "all are asked first"
    );
    let armed = |incarnation, epoch| {
        Some(Hello {
            armed: Some(incarnation),
            epoch,
            ..Hello::default()
        })
    };
    world.servers[0].guest.hello = armed(1, 9);
    world.servers[1].guest.hello = armed(2, 4);
    world.status.server = Some(ServerStatus {
        host_key: Some("k".into()),
        ..with_server(ready_to_create(), server(1))
            .status
            .server
            .unwrap()
    });
    assert_eq!(
        present(&world).steps,
        [Step::WriteVoice(VoiceRecord {
            incarnation: Some(1),
            epoch: 10
        })]
    );
}

#[test]
fn i12_a_restored_status_does_not_take_the_voice_from_the_newest_server() {
    let mut world = ready_to_create();
    world.status.voice = Some(VoiceRecord {
        incarnation: Some(1),
        epoch: 3,
    });
    world = with_server(world, server(2));
    world.status.server.as_mut().unwrap().host_key = Some("k".into());
    world.servers[0].guest.hello = Some(Hello {
        armed: Some(2),
        epoch: 8,
        ..Hello::default()
    });
    assert_eq!(
        present(&world).steps,
        [Step::WriteVoice(VoiceRecord {
            incarnation: Some(2),
            epoch: 9
        })]
    );
}

#[test]
fn i2_a_late_server_below_the_holder_of_the_voice_is_deleted() {
    let mut world = serving();
    world.status.voice = Some(VoiceRecord {
        incarnation: Some(2),
        epoch: 3,
    });
    world.status.server.as_mut().unwrap().id = 42;
    let mut speaker = server(2);
    speaker.guest = world.servers.remove(0).guest;
    world.servers = vec![server(1), speaker];
    assert_eq!(
        present(&world).steps,
        [Step::DeleteServer {
            project: "one".into(),
            id: 41
        }]
    );
}

#[test]
fn a_server_that_is_off_is_powered_on_and_a_blocked_one_is_reported() {
    let mut world = booting();
    world.servers[0].power = Power::Off;
    assert_eq!(
        present(&world).steps,
        [Step::PowerOn {
            project: "one".into(),
            id: 41
        }]
    );
    world.servers[0].guest.powered = Some(at(-1));
    assert_eq!(
        present(&world).look_again,
        Some(at(14)),
        "that takes a moment"
    );
    world.servers[0].blocked = true;
    let plan = present(&world);
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str()),
        (0, "ProviderBlocked")
    );
}

#[test]
fn a_failed_step_is_not_tried_again_before_its_time() {
    let trouble = Trouble {
        reason: "ApiError",
        message: "m".into(),
        until: at(20),
        stalled: false,
        times: 2,
    };
    let plan = present(&changed!(booting(), trouble = Some(trouble.clone())));
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str(), plan.look_again),
        (0, "ApiError", Some(at(20)))
    );
    let later = Trouble {
        until: at(-1),
        ..trouble
    };
    assert_eq!(
        present(&changed!(booting(), trouble = Some(later)))
            .steps
            .len(),
        1
    );
}

#[test]
fn a_deleted_instance_stops_its_agent_then_its_server_then_lets_go() {
    let mut world = serving();
    assert_eq!(
        absent(&world).steps,
        [Step::WriteVoice(VoiceRecord {
            incarnation: None,
            epoch: 4
        })]
    );
    world.status.voice = Some(VoiceRecord {
        incarnation: None,
        epoch: 4,
    });
    world.fresh_epoch = Some(4);
    assert_eq!(
        absent(&world).steps,
        [Step::Release {
            server: 41,
            incarnation: 1,
            epoch: 4
        }]
    );
    world.servers[0].guest.released = Some((4, false));
    assert_eq!(
        absent(&world).steps,
        [Step::DeleteServer {
            project: "one".into(),
            id: 41
        }],
        "whatever it said"
    );
    world.servers[0].deleting = true;
    world.servers[0].guest.gone_by = Some(now() + Duration::from_secs(1));
    assert_eq!(absent(&world).steps, []);
    world.servers[0].guest.gone_by = Some(now());
    assert_eq!(
        absent(&world).steps,
        [Step::ConfirmGone {
            project: "one".into(),
            id: 41
        }],
        "no list has come in time"
    );
    world.servers.clear();
    world.known = Known::Gone;
    assert_eq!(absent(&world).steps, [Step::RemoveFinalizer]);
    assert_eq!(
        absent(&changed!(world, finalizer = false)).stage,
        Stage::Gone
    );
}

#[test]
fn that_its_end_takes_all_from_a_server_is_no_news() {
    let told = |world: &World| {
        let stage = absent(world).stage;
        super::super::status::status(world, world.servers.first(), &stage, Some(1), now())
    };
    let mut world = serving();
    world.status.server.as_mut().unwrap().location = Some("fsn1".into());
    world.status.voice = Some(VoiceRecord {
        incarnation: None,
        epoch: 4,
    });
    world.fresh_epoch = Some(4);
    world.servers[0].guest.hello = Some(Hello::default());
    world.status = told(&world);
    assert!(world.status.config_revision.is_some());
    world.servers[0].guest.released = Some((4, true));
    assert_eq!(told(&world), world.status);
    world.servers[0].deleting = true;
    assert_eq!(told(&world), world.status);
}

#[test]
fn a_server_that_never_spoke_is_deleted_without_a_word() {
    assert_eq!(
        absent(&booting()).steps,
        [Step::DeleteServer {
            project: "one".into(),
            id: 41
        }]
    );
}

#[test]
fn i1_the_finalizer_stays_while_a_late_request_may_still_take_effect() {
    let mut world = recorded(-100);
    world.attempt.unsettled_until = Some(at(20));
    let plan = absent(&world);
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str(), plan.look_again),
        (0, "Settling", Some(at(20)))
    );
    world.attempt.unsettled_until = Some(at(-10));
    world.projects[0].listed_at = Some(at(-20));
    assert!(matches!(absent(&world).steps[..], [Step::LookUp { .. }]));
    world.attempt.looked_up = Some(LookUp {
        at: at(-2),
        foreign: None,
    });
    assert_eq!(absent(&world).steps, [Step::RemoveFinalizer]);
}

#[test]
fn i7_a_deletion_that_cannot_go_on_says_why() {
    let unusable = ProjectView {
        unusable: Some(("TokenRejected", "401".into())),
        ..project("one")
    };
    for (world, expected) in [
        (
            changed!(serving(), projects = vec![unusable.clone()]),
            "TokenRejected",
        ),
        (
            changed!(booting(), projects = vec![unusable]),
            "TokenRejected",
        ),
        (changed!(booting(), projects = vec![]), "ProjectMissing"),
        (
            changed!(
                changed!(serving(), servers = vec![]),
                known = Known::Relabelled
            ),
            "LabelsChanged",
        ),
        (
            changed!(
                ready_to_create(),
                projects = vec![ProjectView {
                    synced: false,
                    ..project("one")
                }]
            ),
            "ProjectNotListed",
        ),
    ] {
        let plan = absent(&world);
        assert_eq!(reason(&plan), expected);
        assert!(matches!(plan.stage, Stage::Deleting(..)), "{plan:?}");
        assert!(!plan.steps.contains(&Step::RemoveFinalizer));
    }
}

#[test]
fn i12_a_deleted_instance_does_not_take_an_earlier_objects_server_along() {
    let mut world = ready_to_create();
    world.servers.push(ServerView {
        uid: "uid-0".into(),
        ..server(1)
    });
    assert_eq!(absent(&world).steps, [Step::RemoveFinalizer]);
}

#[test]
fn i10_a_restart_says_nothing_before_it_has_looked() {
    let mut world = serving();
    world.servers.clear();
    world.known = Known::Unseen;
    world.projects[0] = ProjectView {
        unseen: true,
        synced: false,
        ..project("one")
    };
    let plan = present(&world);
    assert_eq!(
        (plan.steps.as_slice(), plan.stage),
        ([].as_slice(), Stage::AsBefore)
    );
    world.projects[0] = ProjectView {
        unusable: Some(("TokenRejected", "401".into())),
        ..project("one")
    };
    let plan = present(&world);
    assert_eq!(plan.steps, []);
    assert!(
        matches!(plan.stage, Stage::Serving(Some(("TokenRejected", _)))),
        "it was serving when it was seen last"
    );
}

#[test]
fn a_place_that_the_class_no_longer_lists_is_not_asked_for() {
    let mut world = recorded(-1);
    world.attempt.announced = Some(at(-1));
    world.status.provisioning.as_mut().unwrap().server_type = "cx99".into();
    let plan = present(&world);
    assert!(
        matches!(&plan.steps[..], [Step::Announce(next)] if (&*next.server_type, next.incarnation) == ("cx23", 2))
    );
}

#[test]
fn i12_a_server_that_was_taken_up_is_given_its_new_owner_with_a_higher_epoch() {
    let mut world = voiced(10);
    world.status.config_revision = Some(agent().config_revision);
    world.status.secrets_tag = Some("tag".into());
    world.fresh_epoch = Some(10);
    world.servers[0].guest.hello = Some(Hello {
        armed: Some(1),
        armed_for: Some("uid-0".into()),
        epoch: 9,
        ..Hello::default()
    });
    assert_eq!(
        present(&world).steps,
        [Step::Configure {
            server: 41,
            incarnation: 1,
            epoch: 10
        }]
    );
}

#[test]
fn i5_a_host_key_that_changed_after_it_was_pinned_gets_nothing() {
    let mut world = serving();
    world.status.secrets_tag = Some("old".into());
    world.servers[0].guest.hello = Some(Hello {
        epoch: 3,
        ..Hello::default()
    });
    world.servers[0].guest.contact = Some((ContactProblem::HostKeyChanged("k".into()), at(-1)));
    let plan = present(&world);
    assert_eq!(
        (plan.steps.len(), reason(&plan).as_str()),
        (0, "HostKeyChanged")
    );
}
