//! Each line of the plan, as a table.

use super::*;
use crate::{agent_class::world::Checked, trouble::Trouble};

fn desired() -> Desired {
    Desired {
        name: "small".into(),
        absent: false,
        projects: vec!["one".into()],
        server_types: vec!["cx23".into()],
        locations: vec!["nbg1".into()],
        image: "debian-13".into(),
        network: None,
        rules: vec![],
    }
}

fn absent() -> Desired {
    Desired {
        absent: true,
        ..desired()
    }
}

fn firewall(id: i64) -> FirewallView {
    FirewallView {
        id,
        labelled: true,
        ruled: true,
        applied: false,
    }
}

fn project(firewalls: &[FirewallView]) -> ProjectView {
    ProjectView {
        name: "one".into(),
        object: ObjectView::Living,
        named: true,
        firewalls: Some(firewalls.to_vec()),
        ..ProjectView::default()
    }
}

fn world(project: ProjectView) -> World {
    let checked = Some(Checked {
        outcome: Ok(()),
        due: false,
    });
    World {
        finalizer: true,
        checked,
        projects: vec![project],
        ..World::default()
    }
}

fn usable() -> World {
    world(project(&[firewall(4)]))
}

fn refused() -> ProjectView {
    ProjectView {
        unusable: Some(("WrongProject", "x".into())),
        ..project(&[firewall(4)])
    }
}

fn one(step: ProjectStep) -> Vec<Step> {
    vec![Step::In("one".into(), step)]
}

fn reason(finding: &Finding) -> &str {
    match finding {
        Finding::Good => "Good",
        Finding::Open(_) => "Open",
        Finding::Bad(reason, _) => reason,
    }
}

/// Steps, and what is found of the firewall.
fn expect(world: &World, steps: Vec<Step>, found: &str) {
    let plan = plan(&desired(), world);
    assert_eq!((plan.steps, reason(&plan.firewall)), (steps, found));
}

#[test]
fn finalizer_comes_first_and_a_class_without_it_goes() {
    expect(
        &World {
            finalizer: false,
            ..usable()
        },
        vec![Step::AddFinalizer],
        "Good",
    );
    assert_eq!(
        plan(
            &absent(),
            &World {
                finalizer: false,
                ..usable()
            }
        ),
        Plan::default()
    );
}

#[test]
fn firewall_is_looked_for_made_and_told_to_instances() {
    expect(
        &world(ProjectView {
            firewalls: None,
            ..project(&[])
        }),
        one(ProjectStep::ReadFirewalls),
        "Open",
    );
    expect(
        &world(project(&[])),
        one(ProjectStep::CreateFirewall),
        "Open",
    );
    expect(&usable(), vec![], "Good");
    assert_eq!(
        plan(&desired(), &usable()).firewalls,
        [("one".to_owned(), Some(4))].into()
    );
}

#[test]
fn drift_of_labels_and_rules_is_repaired_while_the_firewall_stays_in_use() {
    for (drifted, step) in [
        (
            FirewallView {
                labelled: false,
                ..firewall(4)
            },
            ProjectStep::LabelFirewall(4),
        ),
        (
            FirewallView {
                ruled: false,
                ..firewall(4)
            },
            ProjectStep::SetRules(4),
        ),
    ] {
        let world = world(project(&[drifted]));
        expect(&world, one(step), "Open");
        assert_eq!(plan(&desired(), &world).firewalls["one"], Some(4));
    }
}

#[test]
fn servers_without_their_firewall_get_it_back_some_at_a_time() {
    let unguarded: Vec<i64> = (1..=30).collect();
    let world = world(ProjectView {
        unguarded: unguarded.clone(),
        ..project(&[firewall(4)])
    });
    expect(
        &world,
        one(ProjectStep::Guard {
            firewall: 4,
            servers: unguarded[..25].to_vec(),
        }),
        "Open",
    );
}

#[test]
fn servers_that_another_class_had_before_leave_its_firewall_when_they_are_behind_their_own() {
    let both = ProjectView {
        former: vec![(7, (1..=30).collect()), (8, vec![31])],
        ..project(&[firewall(4)])
    };
    let leave = ProjectStep::Unguard {
        firewall: 7,
        servers: (1..=25).collect(),
    };
    expect(&world(both.clone()), one(leave), "Good");
    let bare = ProjectView {
        unguarded: vec![32],
        ..both
    };
    let guard = ProjectStep::Guard {
        firewall: 4,
        servers: vec![32],
    };
    expect(&world(bare), one(guard), "Open");
}

#[test]
fn second_firewall_of_a_late_request_goes_unless_it_is_used() {
    expect(
        &world(project(&[firewall(4), firewall(5)])),
        one(ProjectStep::DeleteFirewall(5)),
        "Good",
    );
    let used = FirewallView {
        applied: true,
        ..firewall(5)
    };
    expect(&world(project(&[firewall(4), used])), vec![], "Good");
}

#[test]
fn list_is_renewed_in_time_without_a_change_of_status() {
    expect(
        &world(ProjectView {
            stale: true,
            ..project(&[firewall(4)])
        }),
        one(ProjectStep::ReadFirewalls),
        "Good",
    );
}

#[test]
fn project_that_is_missing_or_not_trusted_is_told_and_one_not_known_yet_is_not() {
    expect(&world(refused()), vec![], "WrongProject");
    let missing = ProjectView {
        object: ObjectView::Missing,
        unusable: Some(("ProjectMissing", "x".into())),
        ..project(&[])
    };
    expect(&world(missing), vec![], "ProjectMissing");
    let pending = ProjectView {
        pending: true,
        ..refused()
    };
    expect(&world(pending), vec![], "Open");
}

#[test]
fn trouble_in_one_project_does_not_hold_up_another() {
    let two = ProjectView {
        name: "two".into(),
        ..project(&[])
    };
    let world = World {
        projects: vec![refused(), two],
        ..usable()
    };
    expect(
        &world,
        vec![Step::In("two".into(), ProjectStep::CreateFirewall)],
        "WrongProject",
    );
}

#[test]
fn project_that_is_not_named_any_more_or_goes_loses_its_firewall_once_unused() {
    for changed in [
        ProjectView {
            named: false,
            ..project(&[firewall(4)])
        },
        ProjectView {
            object: ObjectView::Deleting,
            ..project(&[firewall(4)])
        },
    ] {
        let world = world(changed.clone());
        expect(&world, one(ProjectStep::DeleteFirewall(4)), "Good");
        assert_eq!(plan(&desired(), &world).firewalls["one"], None);
        let used = FirewallView {
            applied: true,
            ..firewall(4)
        };
        let busy = ProjectView {
            firewalls: Some(vec![used]),
            ..changed
        };
        expect(&self::world(busy.clone()), vec![], "Good");
        expect(
            &self::world(ProjectView {
                stale: true,
                ..busy
            }),
            one(ProjectStep::ReadFirewalls),
            "Good",
        );
    }
    let never = ProjectView {
        named: false,
        stale: true,
        ..project(&[])
    };
    expect(&world(never), vec![], "Good");
    let refused = ProjectView {
        named: false,
        ..refused()
    };
    expect(&world(refused), vec![], "Good");
}

#[test]
fn catalogue_is_asked_once_per_generation_and_when_due() {
    let check = || vec![Step::CheckCatalogue("one".into())];
    expect(
        &World {
            checked: None,
            ..usable()
        },
        check(),
        "Good",
    );
    assert_eq!(
        reason(
            &plan(
                &desired(),
                &World {
                    checked: None,
                    ..usable()
                }
            )
            .rendered
        ),
        "Open"
    );
    let wrong = |due| World {
        checked: Some(Checked {
            outcome: Err("spec.image: x".into()),
            due,
        }),
        ..usable()
    };
    expect(&wrong(false), vec![], "Good");
    expect(&wrong(true), check(), "Good");
    assert_eq!(
        plan(&desired(), &wrong(true)).rendered,
        Finding::Bad("NotOffered", "spec.image: x".into())
    );
    expect(
        &World {
            checked: None,
            ..world(refused())
        },
        vec![],
        "WrongProject",
    );
}

#[test]
fn network_is_found_by_name_or_named_as_missing() {
    let desired = Desired {
        network: Some("inner".into()),
        ..desired()
    };
    let with = |network| {
        plan(
            &desired,
            &world(ProjectView {
                network,
                ..project(&[firewall(4)])
            }),
        )
    };
    assert_eq!(
        with(NetworkView::Unknown).steps,
        one(ProjectStep::FindNetwork)
    );
    assert_eq!(reason(&with(NetworkView::Unknown).rendered), "Open");
    assert_eq!(
        reason(&with(NetworkView::Missing).rendered),
        "NetworkMissing"
    );
    assert_eq!(
        (
            with(NetworkView::Found).steps,
            with(NetworkView::Found).rendered
        ),
        (vec![], Finding::Good)
    );
}

#[test]
fn counts_that_may_not_be_written_yet_bring_the_next_look_forward() {
    let world = World {
        counts_wait: Some(Duration::from_secs(4)),
        ..usable()
    };
    assert_eq!(
        plan(&desired(), &world).look_again,
        Some(Duration::from_secs(4))
    );
}

fn failed(key: &str, times: u32, wait: u64) -> BTreeMap<String, Trouble> {
    let trouble = Trouble {
        reason: "FirewallNameTaken",
        message: String::new(),
        credentials: false,
        times,
        wait: Duration::from_secs(wait),
    };
    [(key.to_owned(), trouble)].into()
}

#[test]
fn failed_step_waits_and_is_told() {
    let world = World {
        troubles: failed("CreateFirewall one", 1, 5),
        ..world(project(&[]))
    };
    expect(&world, vec![], "FirewallNameTaken");
    assert_eq!(
        plan(&desired(), &world).look_again,
        Some(Duration::from_secs(5))
    );
    let due = World {
        troubles: failed("CreateFirewall one", 3, 0),
        ..world
    };
    expect(&due, one(ProjectStep::CreateFirewall), "FirewallNameTaken");
    let stale = |times| World {
        troubles: failed("ReadFirewalls one", times, 5),
        ..self::world(ProjectView {
            stale: true,
            ..project(&[firewall(4)])
        })
    };
    expect(&stale(1), vec![], "Good");
    expect(&stale(2), vec![], "FirewallNameTaken");
}

/// Steps, and why a class that is deleted is not gone yet.
fn expect_absent(world: &World, steps: Vec<Step>, why: Option<&str>) {
    let plan = plan(&absent(), world);
    assert_eq!(
        (plan.steps, plan.deleting.map(|(reason, _)| reason)),
        (steps, why)
    );
}

#[test]
fn deleted_class_waits_for_its_instances_then_its_firewalls() {
    expect_absent(
        &World {
            instances: 2,
            ..usable()
        },
        vec![],
        Some("InUse"),
    );
    expect_absent(
        &world(ProjectView {
            firewalls: None,
            ..project(&[])
        }),
        one(ProjectStep::ReadFirewalls),
        Some("FirewallInUse"),
    );
    expect_absent(
        &world(ProjectView {
            stale: true,
            ..project(&[])
        }),
        one(ProjectStep::ReadFirewalls),
        Some("FirewallInUse"),
    );
    expect_absent(
        &usable(),
        one(ProjectStep::DeleteFirewall(4)),
        Some("FirewallInUse"),
    );
    let used = FirewallView {
        applied: true,
        ..firewall(4)
    };
    expect_absent(&world(project(&[used])), vec![], Some("FirewallInUse"));
    expect_absent(&world(project(&[])), vec![Step::RemoveFinalizer], None);
    assert_eq!(plan(&absent(), &usable()).firewalls["one"], None);
}

#[test]
fn deleted_class_explains_what_it_cannot_reach_and_skips_what_is_gone() {
    expect_absent(&world(refused()), vec![], Some("WrongProject"));
    let gone = ProjectView {
        object: ObjectView::Missing,
        unusable: Some(("ProjectMissing", "x".into())),
        ..project(&[])
    };
    expect_absent(&world(gone), vec![Step::RemoveFinalizer], None);
    let unrelated = ProjectView {
        named: false,
        ..refused()
    };
    expect_absent(&world(unrelated), vec![Step::RemoveFinalizer], None);
}
