//! Each verdict, as a table, and what no sequence of pictures may lead to.

use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::zombies::{
    memory::{Memory, Sighting},
    world::ProjectView,
};

const HOUR: Duration = Duration::from_hours(1);
const PERIOD: Duration = Duration::from_mins(10);
const FLAGS: SweepFlags = SweepFlags {
    period: PERIOD,
    min_age: HOUR,
    fuse: 2,
    dry_run: false,
};

fn now() -> Timestamp {
    Timestamp::from_second(10_000_000).unwrap()
}

fn key(name: &str) -> Key {
    Key {
        namespace: "ns".into(),
        name: name.into(),
    }
}

/// An old server of an instance, whose guest has not been asked.
fn server(name: &str) -> ServerView {
    ServerView {
        owner: Some(key(name)),
        uid: format!("uid-{name}"),
        incarnation: 1,
        key_id: "k".into(),
        disposable: true,
        named_so: true,
        address: Some([10, 0, 0, 1].into()),
        ..ServerView::default()
    }
}

fn thing(id: i64, what: What) -> Thing {
    Thing {
        id,
        name: String::new(),
        created: Some(now() - 2 * HOUR),
        what,
        sighting: None,
    }
}

fn of(id: i64, server: ServerView) -> Thing {
    thing(id, What::Server(Box::new(server)))
}

fn serving(name: &str, server: i64, holder: u32) -> (Key, Claim) {
    let claim = Claim {
        uid: format!("uid-{name}"),
        serves: true,
        holder: Some(holder),
        server: Some(server),
    };
    (key(name), claim)
}

/// One project in which instance `alive` serves on server 1.
fn world(things: Vec<Thing>) -> World {
    let mut all = vec![of(1, server("alive"))];
    all.extend(things);
    World {
        projects: vec![ProjectView {
            name: "main".into(),
            held: false,
            things: all,
        }],
        claims: [serving("alive", 1, 3)].into_iter().collect(),
        classes: ["small".to_owned()].into(),
        now: now(),
        steady: Instant::now(),
    }
}

fn verdict_of(what: Thing) -> Verdict {
    let world = world(vec![what]);
    verdict(&world.projects[0].things[1], &world, HOUR)
}

fn changed(change: impl FnOnce(&mut ServerView)) -> Thing {
    let mut changed = server("gone");
    change(&mut changed);
    of(2, changed)
}

#[test]
fn servers_are_judged_by_owner_label_guest_and_age() {
    use Fine::{Busy, Claimed, Retained, Young};
    use Reason::{
        AgeUnknown, DiskKept, Disposable, LabelsChanged, NeverArmed, Protected, WasArmed,
    };
    let kept = |guest| {
        changed(|server| {
            server.disposable = false;
            server.guest = guest;
        })
    };
    let aged = |created| Thing {
        created,
        ..changed(|_| {})
    };
    for (what, thing, expected) in [
        ("unclaimed", changed(|_| {}), Verdict::Sweep(Disposable)),
        ("to be asked", kept(Guest::Unasked), Verdict::Ask),
        (
            "never armed",
            kept(Guest::NeverArmed),
            Verdict::Sweep(NeverArmed),
        ),
        ("was armed", kept(Guest::Armed), Verdict::Person(WasArmed)),
        ("silent", kept(Guest::Silent), Verdict::Person(DiskKept)),
        (
            "off",
            changed(|server| (server.disposable, server.address) = (false, None)),
            Verdict::Person(DiskKept),
        ),
        (
            "of another uid",
            changed(|server| {
                server.owner = Some(key("alive"));
                server.uid = "older".into();
            }),
            Verdict::Fine(Claimed),
        ),
        (
            "retained",
            changed(|server| server.retained = true),
            Verdict::Fine(Retained),
        ),
        (
            "busy",
            changed(|server| server.busy = true),
            Verdict::Fine(Busy),
        ),
        (
            "protected",
            changed(|server| server.protected = true),
            Verdict::Person(Protected),
        ),
        (
            "without labels",
            changed(|server| server.owner = None),
            Verdict::Person(LabelsChanged),
        ),
        (
            "relabelled",
            changed(|server| server.named_so = false),
            Verdict::Person(LabelsChanged),
        ),
        ("young", aged(Some(now() - HOUR / 2)), Verdict::Fine(Young)),
        (
            "from the future",
            aged(Some(now() + HOUR)),
            Verdict::Fine(Young),
        ),
        ("ageless", aged(None), Verdict::Person(AgeUnknown)),
    ] {
        assert_eq!(verdict_of(thing), expected, "{what}");
    }
}

#[test]
fn a_living_instance_leaves_a_server_behind_only_when_it_serves_on_a_later_one() {
    let left = |change: fn(&mut ServerView, &mut Claim)| {
        let mut earlier = server("alive");
        let (owner, mut claim) = serving("alive", 1, 3);
        change(&mut earlier, &mut claim);
        let mut world = world(vec![of(2, earlier)]);
        world.claims = [(owner, claim)].into_iter().collect();
        verdict(&world.projects[0].things[1], &world, HOUR)
    };
    assert_eq!(left(|_, _| {}), Verdict::Sweep(Reason::LeftBehind));
    for change in [
        (|server, _| server.incarnation = 3) as fn(&mut ServerView, &mut Claim),
        |server, _| server.incarnation = 4,
        |server, _| server.uid = "older".into(),
        |_, claim| claim.serves = false,
        |_, claim| claim.holder = None,
        |_, claim| claim.server = Some(2),
        |_, claim| claim.server = None,
    ] {
        assert_eq!(left(change), Verdict::Fine(Fine::Claimed));
    }
}

#[test]
fn firewalls_of_lost_classes_go_and_keys_and_snapshots_are_told() {
    let firewall = |class: &str, applied| {
        let class = Some(class.to_owned()).filter(|class| !class.is_empty());
        verdict_of(thing(2, What::Firewall { class, applied }))
    };
    assert_eq!(firewall("lost", false), Verdict::Sweep(Reason::ClassGone));
    assert_eq!(firewall("lost", true), Verdict::Fine(Fine::Claimed));
    assert_eq!(firewall("small", false), Verdict::Fine(Fine::Claimed));
    assert_eq!(firewall("", false), Verdict::Person(Reason::LabelsChanged));
    for what in [What::SshKey, What::Snapshot] {
        assert_eq!(verdict_of(thing(2, what)), Verdict::Person(Reason::NotOurs));
    }
}

fn seen(mut thing: Thing, reason: Reason, settled: bool) -> Thing {
    thing.sighting = Some(Sighting { reason, settled });
    thing
}

fn fates(world: &World, flags: &SweepFlags) -> Vec<Fate> {
    let found = plan(world, flags);
    let deleted = found.steps.len();
    let fates: Vec<Fate> = found.findings.iter().map(|found| found.fate).collect();
    let goes = fates.iter().filter(|fate| **fate == Fate::Goes).count();
    assert_eq!(deleted, goes, "a step for each, and no other");
    fates
}

#[test]
fn nothing_goes_at_first_sight_nor_for_another_reason_than_it_was_seen_for() {
    let gone = || of(2, server("gone"));
    for (thing, fate) in [
        (gone(), Fate::SeenOnce),
        (seen(gone(), Reason::Disposable, false), Fate::SeenOnce),
        (seen(gone(), Reason::NeverArmed, true), Fate::SeenOnce),
        (seen(gone(), Reason::Disposable, true), Fate::Goes),
    ] {
        assert_eq!(fates(&world(vec![thing]), &FLAGS), [fate]);
    }
    let twice = seen(gone(), Reason::Disposable, true);
    let dry = SweepFlags {
        dry_run: true,
        ..FLAGS
    };
    assert_eq!(fates(&world(vec![twice.clone()]), &dry), [Fate::WouldGo]);
    let mut vanishing = world(vec![twice]);
    vanishing.projects[0].held = true;
    assert_eq!(fates(&vanishing, &FLAGS), [Fate::Held]);
}

#[test]
fn one_sweep_deletes_no_more_than_the_fuse() {
    let gone = (2..5).map(|id| seen(of(id, server("gone")), Reason::Disposable, true));
    let fates = fates(&world(gone.collect()), &FLAGS);
    assert_eq!(fates, [Fate::Goes, Fate::Goes, Fate::Waits]);
}

/// So many claimed servers and so many that are not, all seen twice.
fn crowd(claimed: i64, unclaimed: i64) -> World {
    let mut world = world(vec![]);
    world.projects[0].things = (0..claimed)
        .map(|id| of(id, server(&format!("alive-{id}"))))
        .chain((0..unclaimed).map(|id| {
            let gone = of(1000 + id, server(&format!("gone-{id}")));
            seen(gone, Reason::Disposable, true)
        }))
        .collect();
    let claims = (0..claimed).map(|id| serving(&format!("alive-{id}"), id, 1));
    world.claims = claims.collect();
    world
}

#[test]
fn nothing_goes_while_so_many_are_unclaimed_that_the_picture_may_be_wrong() {
    for (claimed, unclaimed, expected) in [
        (1, 3, None),
        (1, 4, Some(Hold::TooMany(4, 5))),
        (16, 4, None),
        (15, 4, Some(Hold::TooMany(4, 19))),
        (0, 1, Some(Hold::NothingClaimed)),
        (0, 500, Some(Hold::NothingClaimed)),
        (0, 0, None),
    ] {
        let found = plan(&crowd(claimed, unclaimed), &FLAGS);
        assert_eq!(found.hold, expected, "{claimed} {unclaimed}");
        assert_eq!(found.steps.is_empty(), expected.is_some() || unclaimed == 0);
    }
    // A project whose servers nobody claims is no less suspect in a large fleet.
    let mut two = crowd(100, 0);
    two.projects.extend(crowd(0, 4).projects);
    assert_eq!(plan(&two, &FLAGS).hold, Some(Hold::TooMany(4, 4)));
}

#[test]
fn no_guest_is_asked_while_nothing_would_go() {
    let mut held = crowd(0, 1);
    let What::Server(only) = &mut held.projects[0].things[0].what else {
        panic!("not a server");
    };
    only.disposable = false;
    assert_eq!(plan(&held, &FLAGS).steps, []);
}

#[test]
fn a_second_look_lets_live_whatever_is_not_the_same_any_more() {
    let still = |reason, server: &ServerView, claim: Option<&Claim>| {
        is_still(reason, 2, server, &key("gone"), claim)
    };
    let gone = server("gone");
    assert!(still(Reason::Disposable, &gone, None));
    assert!(still(Reason::NeverArmed, &gone, None));
    let (_, claim) = serving("gone", 9, 3);
    assert!(still(Reason::LeftBehind, &gone, Some(&claim)));
    assert!(!still(Reason::LeftBehind, &gone, None));
    assert!(!still(Reason::Disposable, &gone, Some(&claim)));
    assert!(!still(Reason::NeverArmed, &gone, Some(&claim)));
    assert!(!still(Reason::DiskKept, &gone, None));
    for change in [
        (|server| server.retained = true) as fn(&mut ServerView),
        |server| server.protected = true,
        |server| server.busy = true,
        |server| server.named_so = false,
        |server| server.owner = Some(key("other")),
        |server| server.disposable = false,
    ] {
        let mut other = server("gone");
        change(&mut other);
        assert!(!still(Reason::Disposable, &other, None));
    }
}

#[test]
fn sightings_settle_after_a_period_and_another_list_and_begin_anew_after_a_gap() {
    let (mut memory, start) = (Memory::default(), Instant::now());
    let finding = plan(&world(vec![of(2, server("gone"))]), &FLAGS).findings;
    let settled = |memory: &Memory, list, now| {
        let sighting = memory.sighting("main", (Kind::Server, 2), list, (now, PERIOD));
        sighting.map(|sighting| sighting.settled)
    };
    memory.sighted(&finding, start);
    let almost = start + PERIOD.saturating_sub(Duration::from_secs(1));
    assert_eq!(settled(&memory, start + PERIOD, start + PERIOD), Some(true));
    assert_eq!(
        settled(&memory, start, start + PERIOD),
        Some(false),
        "the same list"
    );
    assert_eq!(settled(&memory, almost, almost), Some(false));
    memory.sighted(&finding, start + PERIOD);
    assert_eq!(
        settled(&memory, start + PERIOD, start + PERIOD),
        Some(true),
        "the first one counts"
    );
    memory.sighted(&[], start + 2 * PERIOD);
    assert_eq!(
        settled(&memory, start + 3 * PERIOD, start + 3 * PERIOD),
        None
    );
}

/// One picture: which of the instances the stores show, and how much later than the one before it was taken.
fn pictures() -> impl Strategy<Value = Vec<(Vec<bool>, u64, bool)>> {
    let picture = (
        prop::collection::vec(any::<bool>(), 12),
        0_u64..1200,
        any::<bool>(),
    );
    prop::collection::vec(picture, 1..12)
}

proptest! {
    #[test]
    fn i9_no_sequence_of_pictures_deletes_what_was_claimed_in_one_of_the_last_two(pictures in pictures()) {
        let (mut memory, start) = (Memory::default(), Instant::now());
        let (mut elapsed, mut list, mut before): (_, _, Option<Vec<bool>>) = (0, start, None);
        for (shown, later, listed) in pictures {
            elapsed += later;
            let now = start + Duration::from_secs(elapsed);
            if listed {
                list = now;
            }
            let mut world = crowd(0, 0);
            world.projects[0].things = (0..12).map(|id| of(id, server(&format!("a-{id}")))).collect();
            world.claims = shown.iter().zip(0..).filter(|(shown, _)| **shown)
                .map(|(_, id)| serving(&format!("a-{id}"), id, 1)).collect();
            for thing in &mut world.projects[0].things {
                thing.sighting = memory.sighting("main", (Kind::Server, thing.id), list, (now, PERIOD));
            }
            let found = plan(&world, &FLAGS);
            memory.sighted(&found.findings, now);
            let deleted: Vec<usize> = found.steps.iter().filter_map(|step| match step {
                Step::Delete(target, _) => usize::try_from(target.id).ok(),
                Step::Ask(_) => None,
            }).collect();
            prop_assert!(deleted.len() <= FLAGS.fuse);
            for id in deleted {
                prop_assert!(!shown[id], "{id} is claimed");
                prop_assert!(before.as_ref().is_some_and(|before| !before[id]), "{id} was claimed a sweep ago");
                let unclaimed = shown.iter().filter(|shown| !**shown).count();
                prop_assert!(unclaimed <= 3, "{unclaimed} of 12 are unclaimed");
            }
            before = Some(shown);
        }
    }
}
