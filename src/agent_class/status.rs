//! What a class reports of itself: a pure function of the world and of what the plan found.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    plan::{Finding, Plan},
    world::World,
};
use crate::{
    api::{AgentClassStatus, ConditionType, condition, set_condition},
    rollout::words,
};

/// The status to be.
pub fn status(
    world: &World,
    plan: &Plan,
    generation: Option<i64>,
    now: Timestamp,
) -> AgentClassStatus {
    let former = &world.status;
    let held = world.counts_wait.is_some();
    let course = &world.rollout.course;
    let updated = i64::try_from(world.rollout.progress.updated).unwrap_or(i64::MAX);
    let (boot_revision, config_revision) = world.revisions.clone().unzip();
    let mut next = AgentClassStatus {
        observed_generation: match (&plan.rendered, &plan.firewall, former.observed_generation) {
            (Finding::Open(_), _, Some(observed)) | (_, Finding::Open(_), Some(observed)) => {
                Some(observed)
            }
            _ => generation.max(former.observed_generation),
        },
        boot_revision,
        config_revision,
        revision: Some(course.target.name.clone()).filter(|name| !name.is_empty()),
        good_revision: match &world.rollout {
            look if look.progress.proven => Some(look.goal.name.clone()),
            _ => former.good_revision.clone(),
        },
        failed_revision: (world.rollout.progress.failed).then(|| course.attempt.clone()),
        updated_instances: former.updated_instances.filter(|_| held).or(Some(updated)),
        instances: former.instances.filter(|_| held).or(Some(world.instances)),
        ready_instances: former
            .ready_instances
            .filter(|_| held)
            .or(Some(world.ready_instances)),
        released_hold: world
            .hold
            .word
            .clone()
            .or_else(|| former.released_hold.clone()),
        conditions: former.conditions.clone(),
    };
    for (kind, found) in conditions(plan) {
        let known = former
            .conditions
            .iter()
            .any(|known| known.type_ == kind.as_str());
        match found {
            Found::New(found) => set_condition(&mut next.conditions, found, generation, now),
            Found::Open(_) if known => {}
            Found::Open(what) => set_condition(
                &mut next.conditions,
                condition(kind, None, "Checking", what),
                generation,
                now,
            ),
        }
    }
    set_condition(&mut next.conditions, rollout(world, held), generation, now);
    world.hold.tell(&mut next.conditions, generation, now);
    next
}

/// Where the rollout stands. The numbers in its message wait for their turn as all counts do.
fn rollout(world: &World, held: bool) -> Condition {
    let found = words::told(&world.rollout);
    let told = world.status.conditions.iter().find(|told| {
        let same = (&told.type_, &told.status, &told.reason);
        held && same == (&found.type_, &found.status, &found.reason)
    });
    told.cloned().unwrap_or(found)
}

/// A condition as it is now, or what is being found out.
enum Found {
    New(Condition),
    Open(&'static str),
}

fn conditions(plan: &Plan) -> [(ConditionType, Found); 3] {
    [
        (ConditionType::Ready, ready(plan)),
        (
            ConditionType::Rendered,
            told(ConditionType::Rendered, &plan.rendered, "Offered"),
        ),
        (
            ConditionType::FirewallReady,
            told(ConditionType::FirewallReady, &plan.firewall, "AsDeclared"),
        ),
    ]
}

fn told(kind: ConditionType, finding: &Finding, good: &str) -> Found {
    match finding {
        Finding::Good => Found::New(condition(kind, Some(true), good, "")),
        Finding::Open(what) => Found::Open(what),
        Finding::Bad(reason, message) => {
            Found::New(condition(kind, Some(false), reason, message.clone()))
        }
    }
}

fn ready(plan: &Plan) -> Found {
    if let Some((reason, message)) = &plan.deleting {
        return Found::New(condition(
            ConditionType::Ready,
            Some(false),
            reason,
            message.clone(),
        ));
    }
    match (&plan.rendered, &plan.firewall) {
        (bad @ Finding::Bad(..), _) | (_, bad @ Finding::Bad(..)) => {
            told(ConditionType::Ready, bad, "")
        }
        (open @ Finding::Open(_), _) | (_, open) => told(ConditionType::Ready, open, "Usable"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::breaker::{Hold, Verdict};
    use crate::rollout::turns::Progress;
    use std::time::Duration;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn told(world: &World, plan: &Plan) -> AgentClassStatus {
        status(world, plan, Some(2), at(0))
    }

    fn reasons(status: &AgentClassStatus) -> Vec<(&str, &str)> {
        status
            .conditions
            .iter()
            .map(|found| (found.status.as_str(), found.reason.as_str()))
            .collect()
    }

    fn open() -> Plan {
        Plan {
            rendered: Finding::Open("x"),
            firewall: Finding::Open("y"),
            ..Plan::default()
        }
    }

    fn bad(reason: &'static str) -> Finding {
        Finding::Bad(reason, String::new())
    }

    #[test]
    fn every_condition_exists_from_the_first_visit() {
        let told = told(&World::default(), &open());
        let told = reasons(&told);
        assert_eq!(told[..3], [("Unknown", "Checking"); 3]);
        assert_eq!(told[3..], [("True", "Updated"), ("False", "NotHeld")]);
    }

    #[test]
    fn ready_is_what_is_worst() {
        let world = World::default();
        let conditions = |rendered, firewall| {
            reasons(&told(
                &world,
                &Plan {
                    rendered,
                    firewall,
                    ..Plan::default()
                },
            ))
            .into_iter()
            .take(3)
            .map(|(_, reason)| reason.to_owned())
            .collect::<Vec<_>>()
        };
        assert_eq!(
            conditions(Finding::Good, Finding::Good),
            ["Usable", "Offered", "AsDeclared"]
        );
        assert_eq!(conditions(Finding::Good, bad("A")), ["A", "Offered", "A"]);
        assert_eq!(conditions(bad("B"), bad("A")), ["B", "B", "A"]);
        assert_eq!(
            conditions(Finding::Open("x"), bad("A")),
            ["A", "Checking", "A"]
        );
        let deleting = Plan {
            deleting: Some(("InUse", String::new())),
            ..Plan::default()
        };
        assert_eq!(reasons(&told(&world, &deleting))[0], ("False", "InUse"));
    }

    #[test]
    fn a_hold_stands_until_it_ends_and_a_persons_word_is_kept() {
        let mut world = World::default();
        for (verdict, word, expected, kept) in [
            (
                Verdict::Begins("ClassFalls", "x".into()),
                None,
                ("True", "ClassFalls"),
                None,
            ),
            (Verdict::AsTold, None, ("True", "ClassFalls"), None),
            (
                Verdict::Ends("Released"),
                Some("now"),
                ("False", "Released"),
                Some("now"),
            ),
            (Verdict::AsTold, None, ("False", "Released"), Some("now")),
        ] {
            let said = word.map(str::to_owned);
            world.hold = Hold {
                verdict,
                word: said,
            };
            world.status = told(&world, &Plan::default());
            assert_eq!(reasons(&world.status).last(), Some(&expected));
            assert_eq!(world.status.released_hold.as_deref(), kept);
        }
    }

    #[test]
    fn calm_and_restart_change_nothing() {
        let mut world = World {
            instances: 3,
            ready_instances: 2,
            revisions: Some(("a".into(), "b".into())),
            ..World::default()
        };
        world.status = told(&world, &Plan::default());
        assert_eq!(
            status(&world, &Plan::default(), Some(2), at(60)),
            world.status
        );
        assert_eq!(status(&world, &open(), Some(2), at(60)), world.status);
    }

    #[test]
    fn new_generation_is_observed_when_it_was_looked_at() {
        let mut world = World::default();
        world.status = told(&world, &Plan::default());
        let observed = |plan: &Plan, generation| {
            status(&world, plan, Some(generation), at(0)).observed_generation
        };
        assert_eq!(observed(&open(), 3), Some(2));
        assert_eq!(observed(&Plan::default(), 3), Some(3));
        assert_eq!(observed(&Plan::default(), 1), Some(2));
    }

    /// The look at a rollout that has come so far.
    fn rolling(updated: usize, failed: bool) -> World {
        let mut world = World::default();
        world.rollout.course.target.name = "r2".into();
        world.rollout.course.attempt = "r2.ab12".into();
        world.rollout.goal.name = "r2".into();
        world.rollout.progress = Progress {
            of: 20,
            updated,
            failed,
            proven: updated == 20,
            ..Progress::default()
        };
        world
    }

    #[test]
    fn revisions_that_proved_good_or_bad_are_told_and_the_good_one_is_remembered() {
        let mut world = rolling(3, false);
        world.status.good_revision = Some("r1".into());
        let revisions = |world: &World| {
            let told = told(world, &Plan::default());
            (
                told.revision,
                told.good_revision,
                told.failed_revision,
                told.updated_instances,
            )
        };
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(revisions(&world), (name("r2"), name("r1"), None, Some(3)));
        world.rollout.progress.failed = true;
        assert_eq!(
            revisions(&world),
            (name("r2"), name("r1"), name("r2.ab12"), Some(3))
        );
        assert_eq!(
            revisions(&rolling(20, false)),
            (name("r2"), name("r2"), None, Some(20))
        );
    }

    #[test]
    fn numbers_of_a_rollout_wait_and_another_reason_does_not() {
        let mut world = rolling(3, false);
        world.status = told(&world, &Plan::default());
        let message = |world: &World| {
            let told = told(world, &Plan::default());
            told.conditions[3].message.clone()
        };
        let held = |world: World| World {
            counts_wait: Some(Duration::from_secs(3)),
            ..world
        };
        let status = world.status;
        let later = |updated, failed| World {
            status: status.clone(),
            ..rolling(updated, failed)
        };
        assert!(message(&later(5, false)).starts_with("5 of 20"));
        assert!(message(&held(later(5, false))).starts_with("3 of 20"));
        assert!(message(&held(later(5, true))).starts_with("5 of 20"));
    }

    #[test]
    fn counts_wait_for_their_turn() {
        let mut world = World {
            instances: 5,
            ready_instances: 5,
            counts_wait: Some(Duration::from_secs(3)),
            ..World::default()
        };
        world.status.instances = Some(2);
        world.status.ready_instances = Some(1);
        let early = told(&world, &Plan::default());
        assert_eq!((early.instances, early.ready_instances), (Some(2), Some(1)));
        world.counts_wait = None;
        assert_eq!(told(&world, &Plan::default()).instances, Some(5));
    }
}
