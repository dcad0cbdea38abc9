//! What a class reports of itself: a pure function of the world and of what the plan found.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    plan::{Finding, Plan},
    world::World,
};
use crate::api::{AgentClassStatus, ConditionType, condition, set_condition};

/// The status to be.
pub fn status(
    world: &World,
    plan: &Plan,
    generation: Option<i64>,
    now: Timestamp,
) -> AgentClassStatus {
    let former = &world.status;
    let held = world.counts_wait.is_some();
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
    world.hold.tell(&mut next.conditions, generation, now);
    next
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
        let (held, others) = reasons(&told)
            .split_last()
            .map(|(last, others)| (*last, others.to_vec()))
            .unwrap();
        assert_eq!(others, [("Unknown", "Checking"); 3]);
        assert_eq!(held, ("False", "NotHeld"));
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
