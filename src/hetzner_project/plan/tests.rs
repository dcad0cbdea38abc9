//! Each line of the plan, as a table.

use super::*;
use crate::{
    api::TokenSecretRef,
    hetzner_project::world::{Claim, FirewallView, KeyName},
    trouble::Trouble,
};

const ME: &str = "me";

fn desired() -> Desired {
    let token = TokenSecretRef {
        namespace: "ns".into(),
        name: "hetzner".into(),
        key: "token".into(),
    };
    Desired {
        name: "one".into(),
        absent: false,
        token,
        ssh_keys: vec![],
        max_servers: None,
    }
}

fn absent() -> Desired {
    Desired {
        absent: true,
        ..desired()
    }
}

fn token() -> Token {
    Token::Present {
        held: true,
        deleting: false,
        shared_with: None,
    }
}

fn key(holder: &str) -> KeyView {
    KeyView {
        id: 7,
        ours: true,
        holder: Some(holder.into()),
    }
}

/// A project whose token was never used.
fn new() -> World {
    World {
        finalizer: true,
        token: token(),
        seen: Some(Seen {
            listed: true,
            ..Seen::default()
        }),
        holder: ME.into(),
        ..World::default()
    }
}

/// A project with these keys in it and this identity in its status.
fn with(identity: Option<i64>, keys: Vec<KeyView>) -> World {
    let mut world = new();
    world.status.identity = identity;
    world.seen.as_mut().unwrap().keys = Some(keys);
    world
}

/// A project in which this process acts.
fn trusted() -> World {
    let mut world = with(Some(7), vec![key(ME)]);
    world.seen.as_mut().unwrap().holds = true;
    world
}

fn change(mut world: World, change: impl FnOnce(&mut Seen)) -> World {
    change(world.seen.as_mut().unwrap());
    world
}

fn claiming(mut world: World, claims: &[(i64, bool, Option<bool>)]) -> World {
    world.claims = claims
        .iter()
        .map(|&(id, listed, answered)| Claim {
            id,
            listed,
            answered,
        })
        .collect();
    world.instances = claims.len();
    world
}

fn reason(plan: &Plan) -> &str {
    match &plan.stage {
        Stage::Unusable(reason, _)
        | Stage::Blocked(reason, _)
        | Stage::Incomplete(reason, _)
        | Stage::Troubled(reason, _)
        | Stage::Deleting(reason, _) => reason,
        Stage::Checking(_) => "Checking",
        Stage::Usable => "Usable",
        Stage::Gone => "Gone",
    }
}

/// Steps and reason of a plan.
fn told(desired: &Desired, world: &World) -> (Vec<Step>, String) {
    let plan = plan(desired, world);
    let reason = reason(&plan).to_owned();
    (plan.steps, reason)
}

fn expect(world: &World, steps: &[Step], reason: &str) {
    assert_eq!(told(&desired(), world), (steps.to_vec(), reason.to_owned()));
}

fn expect_absent(world: &World, steps: &[Step], reason: &str) {
    assert_eq!(told(&absent(), world), (steps.to_vec(), reason.to_owned()));
}

fn refused(desired: &Desired, world: &World) -> bool {
    matches!(plan(desired, world).trust, Trust::Refused(..))
}

fn write(holder: &str) -> Step {
    Step::WriteHolder {
        key: 7,
        holder: holder.into(),
    }
}

#[test]
fn new_project_is_kept_then_its_secret_then_it_connects() {
    expect(
        &World {
            finalizer: false,
            ..new()
        },
        &[Step::AddFinalizer],
        "Checking",
    );
    expect(
        &World {
            token: Token::Present {
                held: false,
                deleting: false,
                shared_with: None,
            },
            ..new()
        },
        &[Step::HoldSecret],
        "Checking",
    );
    expect(
        &World {
            seen: None,
            ..new()
        },
        &[Step::Connect],
        "Checking",
    );
    expect(&new(), &[Step::ReadKeys], "Checking");
}

#[test]
fn missing_token_is_told_and_nothing_may_be_changed() {
    for (token, reason) in [
        (Token::SecretMissing, "SecretMissing"),
        (Token::KeyMissing, "KeyMissing"),
        (Token::Malformed, "TokenMalformed"),
    ] {
        let world = World { token, ..trusted() };
        expect(&world, &[], reason);
        assert!(refused(&desired(), &world));
    }
    let world = World {
        token: Token::Unreadable("down".into()),
        ..trusted()
    };
    expect(&world, &[], "SecretUnreadable");
    assert_eq!(
        plan(&desired(), &world).trust,
        Trust::AsBefore,
        "what worked goes on"
    );
}

#[test]
fn first_key_is_made_and_becomes_the_identity_before_anything_is_allowed() {
    expect(&with(None, vec![]), &[Step::CreateKey], "Checking");
    let found = with(None, vec![key("before")]);
    expect(&found, &[], "Checking");
    assert_eq!(plan(&desired(), &found).identity, Some(7));
    assert_eq!(plan(&desired(), &found).trust, Trust::AsBefore);
}

#[test]
fn taken_key_name_is_looked_up_and_a_foreign_key_not_touched() {
    expect(
        &change(with(None, vec![]), |seen| seen.key_name = KeyName::Taken),
        &[Step::LookUpKeyName],
        "Checking",
    );
    let foreign = change(with(None, vec![]), |seen| {
        seen.key_name = KeyName::Foreign(9);
    });
    expect(&foreign, &[], "KeyNameTaken");
    assert!(refused(&desired(), &foreign));
}

#[test]
fn two_objects_for_one_project_are_refused() {
    let mut world = with(None, vec![key(ME)]);
    world.others.insert(7, "other".into());
    expect(&world, &[], "SameProject");
    assert!(refused(&desired(), &world));
    expect_absent(&world, &[Step::LetGo], "Gone");
}

#[test]
fn identity_that_no_list_shows_is_asked_for_by_id() {
    let world = with(Some(7), vec![]);
    expect(&world, &[Step::LookUpIdentity(7)], "Checking");
    let unlabelled = KeyView {
        id: 7,
        ours: false,
        holder: Some(ME.into()),
    };
    expect(
        &change(world.clone(), |seen| {
            seen.by_id = Some((7, Some(unlabelled)));
        }),
        &[write(ME)],
        "Checking",
    );
    expect(
        &change(world, |seen| seen.by_id = Some((3, None))),
        &[Step::LookUpIdentity(7)],
        "Checking",
    );
}

#[test]
fn token_of_another_project_changes_nothing_wrong_project() {
    let other = change(with(Some(7), vec![]), |seen| seen.by_id = Some((7, None)));
    let of_same_fleet = change(with(Some(7), vec![KeyView { id: 8, ..key("x") }]), |seen| {
        seen.by_id = Some((7, None));
    });
    let status_lost = with(None, vec![]);
    for world in [
        other.clone(),
        of_same_fleet,
        claiming(other.clone(), &[(1, false, Some(false))]),
        claiming(status_lost.clone(), &[(1, false, Some(false))]),
    ] {
        expect(&world, &[], "WrongProject");
        assert!(refused(&desired(), &world));
    }
    expect(
        &claiming(status_lost, &[(1, false, None)]),
        &[Step::LookUpServer(1)],
        "Checking",
    );
    let many: Vec<_> = (1..9)
        .map(|id| (id, false, (id <= 3).then_some(false)))
        .collect();
    expect(&claiming(other.clone(), &many), &[], "WrongProject");
    expect_absent(&other, &[], "WrongProject");
}

#[test]
fn known_server_proves_a_project_whose_key_is_gone() {
    let gone = change(with(Some(7), vec![]), |seen| seen.by_id = Some((7, None)));
    expect(
        &claiming(gone.clone(), &[(1, true, None)]),
        &[Step::CreateKey],
        "Checking",
    );
    expect(
        &claiming(
            gone.clone(),
            &[(1, false, Some(false)), (2, false, Some(true))],
        ),
        &[Step::CreateKey],
        "Checking",
    );
    let made = change(claiming(gone, &[(1, true, None)]), |seen| {
        seen.keys = Some(vec![KeyView { id: 9, ..key(ME) }]);
    });
    assert_eq!(plan(&desired(), &made).identity, Some(9));
    expect(
        &claiming(with(None, vec![]), &[(1, true, None)]),
        &[Step::CreateKey],
        "Checking",
    );
}

#[test]
fn holder_label_is_written_once_at_take_over() {
    for before in [
        key("another process"),
        key(""),
        KeyView {
            holder: None,
            ..key("")
        },
    ] {
        let world = with(Some(7), vec![before]);
        expect(&world, &[write(ME)], "Checking");
        assert_eq!(plan(&desired(), &world).trust, Trust::AsBefore);
    }
    expect(&trusted(), &[], "Usable");
}

#[test]
fn second_operator_stops_mutations_until_a_person_clears_the_label() {
    let foreign = change(with(Some(7), vec![key("copy")]), |seen| seen.holds = true);
    expect(&foreign, &[write(CONFLICT)], "AnotherOperator");
    let conflict = with(Some(7), vec![key(CONFLICT)]);
    expect(&conflict, &[], "AnotherOperator");
    assert!(refused(&desired(), &foreign) && refused(&desired(), &conflict));
    let cleared = change(
        with(
            Some(7),
            vec![KeyView {
                holder: None,
                ..key("")
            }],
        ),
        |seen| seen.holds = true,
    );
    expect(&cleared, &[write(ME)], "Checking");
}

#[test]
fn usable_project_grants_its_key() {
    assert_eq!(
        plan(&desired(), &trusted()).trust,
        Trust::Granted {
            key: Some(7),
            creates_held: None
        }
    );
    let unlisted = change(trusted(), |seen| seen.listed = false);
    expect(&unlisted, &[], "Checking");
    assert_eq!(plan(&desired(), &unlisted).trust, Trust::AsBefore);
}

#[test]
fn unknown_break_glass_key_holds_creations_and_is_named() {
    let desired = Desired {
        ssh_keys: vec!["ops".into(), "boss".into()],
        ..desired()
    };
    assert_eq!(
        told(&desired, &trusted()).0,
        [Step::ReadAdminKeys(vec!["ops".into(), "boss".into()])]
    );
    let world = change(trusted(), |seen| {
        seen.admin_keys = [
            ("ops".into(), Some("ssh-ed25519 A".into())),
            ("boss".into(), None),
        ]
        .into();
    });
    let plan = plan(&desired, &world);
    assert!(
        matches!(&plan.stage, Stage::Incomplete("SshKeyMissing", message) if message.contains("boss") && !message.contains("ops,"))
    );
    assert!(matches!(
        plan.trust,
        Trust::Granted {
            creates_held: Some(("SshKeyMissing", _)),
            ..
        }
    ));
}

#[test]
fn keys_are_looked_at_again_in_time_without_a_change_of_status() {
    expect(
        &change(trusted(), |seen| seen.stale = true),
        &[Step::ReadKeys],
        "Usable",
    );
}

fn deleting_secret(world: World, shared_with: Option<&str>) -> World {
    World {
        token: Token::Present {
            held: true,
            deleting: true,
            shared_with: shared_with.map(str::to_owned),
        },
        ..world
    }
}

#[test]
fn token_secret_stays_while_anything_of_ours_exists() {
    let busy = change(trusted(), |seen| seen.servers = 2);
    expect(&deleting_secret(busy, None), &[], "TokenSecretDeleting");
    let empty = change(trusted(), |seen| seen.firewalls = Some(vec![]));
    expect(
        &deleting_secret(empty.clone(), Some("other")),
        &[],
        "TokenSecretDeleting",
    );
    expect(
        &deleting_secret(trusted(), None),
        &[Step::ReadFirewalls],
        "TokenSecretDeleting",
    );
    expect(
        &deleting_secret(empty, None),
        &[Step::ReleaseSecret],
        "TokenSecretDeleting",
    );
    let firewall = FirewallView {
        id: 4,
        class_exists: true,
        applied: false,
    };
    expect(
        &deleting_secret(
            change(trusted(), |seen| seen.firewalls = Some(vec![firewall])),
            None,
        ),
        &[],
        "TokenSecretDeleting",
    );
}

#[test]
fn deleted_project_waits_for_servers_and_firewalls_and_lets_instances_delete_theirs() {
    for world in [
        change(trusted(), |seen| seen.servers = 2),
        claiming(trusted(), &[(1, true, None)]),
    ] {
        expect_absent(&world, &[], "InUse");
        assert!(matches!(
            plan(&absent(), &world).trust,
            Trust::Granted {
                creates_held: Some(("ProjectDeleting", _)),
                ..
            }
        ));
    }
    expect_absent(&trusted(), &[Step::ReadFirewalls], "Checking");
    let view = |class_exists, applied| FirewallView {
        id: 4,
        class_exists,
        applied,
    };
    let guarded = |firewall| change(trusted(), |seen| seen.firewalls = Some(vec![firewall]));
    expect_absent(&guarded(view(true, false)), &[], "InUse");
    expect_absent(&guarded(view(false, true)), &[], "InUse");
    expect_absent(
        &guarded(view(false, false)),
        &[Step::DeleteFirewall(4)],
        "InUse",
    );
}

#[test]
fn deleted_project_gives_up_its_identity_before_its_key_and_goes() {
    let empty = change(trusted(), |seen| seen.firewalls = Some(vec![]));
    expect_absent(&empty, &[], "Checking");
    assert_eq!(plan(&absent(), &empty).identity, None);
    let mut forgotten = empty;
    forgotten.status.identity = None;
    expect_absent(&forgotten, &[Step::DeleteKey(7)], "Checking");
    let clean = change(forgotten, |seen| seen.keys = Some(vec![]));
    expect_absent(&clean, &[Step::LetGo], "Gone");
    expect_absent(
        &World {
            finalizer: false,
            ..clean
        },
        &[],
        "Gone",
    );
}

#[test]
fn deletion_without_a_token_ends_where_nothing_can_be_left_and_else_explains() {
    let missing = |world: World| World {
        token: Token::SecretMissing,
        seen: None,
        ..world
    };
    expect_absent(&missing(new()), &[Step::LetGo], "Gone");
    expect_absent(&missing(trusted()), &[], "SecretMissing");
    expect_absent(
        &missing(claiming(new(), &[(1, false, None)])),
        &[],
        "SecretMissing",
    );
    expect_absent(
        &World {
            seen: None,
            ..trusted()
        },
        &[Step::Connect],
        "Checking",
    );
}

fn trouble(credentials: bool, times: u32, wait: u64) -> Trouble {
    Trouble {
        reason: "Why",
        message: String::new(),
        credentials,
        times,
        wait: Duration::from_secs(wait),
    }
}

#[test]
fn failed_step_waits_and_one_lost_request_is_no_news() {
    let stale = |trouble: Trouble| {
        change(trusted(), |seen| {
            seen.stale = true;
            seen.troubles.insert("ReadKeys".into(), trouble);
        })
    };
    expect(&stale(trouble(false, 1, 5)), &[], "Usable");
    assert_eq!(
        plan(&desired(), &stale(trouble(false, 1, 5))).look_again,
        Some(Duration::from_secs(5))
    );
    expect(&stale(trouble(false, 2, 5)), &[], "Why");
    assert!(!refused(&desired(), &stale(trouble(false, 9, 5))));
    expect(&stale(trouble(false, 2, 0)), &[Step::ReadKeys], "Why");
    let first = change(new(), |seen| {
        seen.troubles
            .insert("ReadKeys".into(), trouble(false, 1, 5));
    });
    expect(&first, &[], "Why");
}

#[test]
fn rejected_token_stops_everything_until_a_request_succeeds() {
    let rejected = change(trusted(), |seen| {
        seen.stale = true;
        seen.troubles.insert("ReadKeys".into(), trouble(true, 1, 0));
    });
    expect(&rejected, &[Step::ReadKeys], "Why");
    assert!(refused(&desired(), &rejected));
    let read_only = change(with(Some(7), vec![key("before")]), |seen| {
        seen.troubles
            .insert("WriteHolder".into(), trouble(true, 1, 5));
    });
    expect(&read_only, &[], "Why");
    assert!(refused(&desired(), &read_only));
    let reread = change(read_only, |seen| seen.stale = true);
    expect(&reread, &[Step::ReadKeys], "Why");
}

#[test]
fn trouble_of_a_step_that_is_not_needed_any_more_is_forgotten() {
    let world = change(trusted(), |seen| {
        seen.troubles
            .insert("WriteHolder".into(), trouble(true, 3, 5));
    });
    expect(&world, &[], "Usable");
}
