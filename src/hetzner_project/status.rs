//! What a project reports of itself: a pure function of the world and of what the plan found.
//!
//! In calm it must come out the same each time (I4), so the request allowance is told in tenths, and a number near the edge of a tenth does not
//! move it. While nothing new is known, conditions stay as they are.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    plan::{Plan, Stage},
    world::{Seen, World, Zombies},
};
use crate::api::{ConditionType, HetznerProjectStatus, condition, set_condition};

/// Ends of one pause that are told this close to one another are the same.
const SAME_PAUSE: SignedDuration = SignedDuration::from_secs(5);

/// The status to be.
pub fn status(
    world: &World,
    plan: &Plan,
    generation: Option<i64>,
    now: Timestamp,
) -> HetznerProjectStatus {
    let former = &world.status;
    let seen = world.seen.as_ref();
    let mut next = HetznerProjectStatus {
        observed_generation: match plan.stage {
            Stage::Checking(_) if former.observed_generation.is_some() => {
                former.observed_generation
            }
            _ => generation.max(former.observed_generation),
        },
        identity: plan.identity,
        servers: seen
            .filter(|seen| seen.listed && seen.counts_wait.is_none())
            .and_then(|seen| i64::try_from(seen.servers).ok())
            .or(former.servers),
        budget_left: seen
            .and_then(|seen| budget_left(former.budget_left, seen))
            .or(former.budget_left),
        paused_until: seen
            .and_then(|seen| seen.over_quota)
            .map(|until| paused_until(former, until)),
        released_hold: world
            .hold
            .word
            .clone()
            .or_else(|| former.released_hold.clone()),
        conditions: former.conditions.clone(),
    };
    for (kind, found) in conditions(seen, &plan.stage) {
        let known = former
            .conditions
            .iter()
            .any(|known| known.type_ == kind.as_str());
        match found {
            Some(found) => set_condition(&mut next.conditions, found, generation, now),
            None if known => {}
            None => set_condition(
                &mut next.conditions,
                unknown(kind, &plan.stage),
                generation,
                now,
            ),
        }
    }
    world.hold.tell(&mut next.conditions, generation, now);
    next
}

/// All conditions; none: as before.
fn conditions(seen: Option<&Seen>, stage: &Stage) -> [(ConditionType, Option<Condition>); 4] {
    [
        (ConditionType::Ready, ready(stage)),
        (ConditionType::CredentialsValid, credentials(stage)),
        (ConditionType::QuotaAvailable, seen.map(quota)),
        (ConditionType::NoZombies, seen.and_then(no_zombies)),
    ]
}

fn ready(stage: &Stage) -> Option<Condition> {
    let (reason, message) = words(stage);
    match stage {
        Stage::Checking(_) => None,
        Stage::Usable => Some(condition(ConditionType::Ready, Some(true), reason, message)),
        _ => Some(condition(
            ConditionType::Ready,
            Some(false),
            reason,
            message,
        )),
    }
}

fn credentials(stage: &Stage) -> Option<Condition> {
    match stage {
        Stage::Unusable(reason, message) => Some(condition(
            ConditionType::CredentialsValid,
            Some(false),
            reason,
            message.clone(),
        )),
        Stage::Usable | Stage::Blocked(..) | Stage::Incomplete(..) => Some(condition(
            ConditionType::CredentialsValid,
            Some(true),
            "Proven",
            "",
        )),
        Stage::Checking(_) | Stage::Troubled(..) | Stage::Deleting(..) | Stage::Gone => None,
    }
}

fn quota(seen: &Seen) -> Condition {
    match seen.over_quota {
        None => condition(ConditionType::QuotaAvailable, Some(true), "NotExceeded", ""),
        Some(_) => condition(
            ConditionType::QuotaAvailable,
            Some(false),
            "QuotaExceeded",
            "Hetzner refused a server because a limit of the account is reached; ask for a higher one in the Hetzner Console (Limits), or delete \
             servers. It is tried again after a pause",
        ),
    }
}

fn no_zombies(seen: &Seen) -> Option<Condition> {
    let kind = ConditionType::NoZombies;
    match &seen.zombies {
        Zombies::NotSwept => None,
        Zombies::Off => Some(condition(
            kind,
            None,
            "SweepOff",
            "--zombie-sweep-period is 0",
        )),
        Zombies::None => Some(condition(kind, Some(true), "NoneFound", "")),
        Zombies::Some(reason, message) => Some(condition(kind, Some(false), reason, message)),
    }
}

fn unknown(kind: ConditionType, stage: &Stage) -> Condition {
    if kind == ConditionType::NoZombies {
        let message = "the first sweep comes within a minute of the operator's start";
        return condition(kind, None, "NotSwept", message);
    }
    let (reason, message) = words(stage);
    condition(kind, None, reason, message)
}

/// Reason and message of a stage.
fn words(stage: &Stage) -> (&str, String) {
    match stage {
        Stage::Checking(what) => ("Checking", (*what).into()),
        Stage::Unusable(reason, message)
        | Stage::Blocked(reason, message)
        | Stage::Incomplete(reason, message)
        | Stage::Troubled(reason, message)
        | Stage::Deleting(reason, message) => (reason, message.clone()),
        Stage::Usable => ("Usable", String::new()),
        Stage::Gone => ("Gone", "nothing of this fleet is left in it".into()),
    }
}

/// Rounded down to tenths of the allowance; another tenth is told only when it is left by half a tenth.
fn budget_left(former: Option<i64>, seen: &Seen) -> Option<i64> {
    let (left, limit) = seen.budget?;
    let (left, tenth) = (i64::from(left), (i64::from(limit) / 10).max(1));
    let told = former.filter(|told| told % tenth == 0);
    let near = told.filter(|told| left >= told - tenth / 2 && left < told + tenth + tenth / 2);
    Some(near.unwrap_or(left / tenth * tenth))
}

/// The end of a pause is computed anew each time, so it wavers.
fn paused_until(former: &HetznerProjectStatus, until: Timestamp) -> Time {
    let told = former
        .paused_until
        .as_ref()
        .filter(|told| told.0.duration_since(until).abs() <= SAME_PAUSE);
    told.cloned()
        .unwrap_or_else(|| Time(Timestamp::from_second(until.as_second()).unwrap_or(until)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::is_true, hetzner_project::plan::Trust};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn plan(stage: Stage) -> Plan {
        Plan {
            steps: vec![],
            stage,
            trust: Trust::AsBefore,
            identity: Some(7),
            look_again: None,
        }
    }

    fn usable() -> World {
        World {
            seen: Some(Seen {
                listed: true,
                servers: 3,
                budget: Some((3540, 3600)),
                ..Seen::default()
            }),
            ..World::default()
        }
    }

    fn after(
        former: HetznerProjectStatus,
        mut world: World,
        stage: Stage,
        second: i64,
    ) -> HetznerProjectStatus {
        world.status = former;
        status(&world, &plan(stage), Some(1), at(second))
    }

    fn reason(status: &HetznerProjectStatus, kind: ConditionType) -> (&str, &str) {
        let found = status
            .conditions
            .iter()
            .find(|found| found.type_ == kind.as_str())
            .unwrap();
        (found.status.as_str(), found.reason.as_str())
    }

    #[test]
    fn every_condition_exists_from_the_first_visit() {
        let first = after(
            HetznerProjectStatus::default(),
            World::default(),
            Stage::Checking("connects"),
            0,
        );
        for kind in [
            ConditionType::Ready,
            ConditionType::CredentialsValid,
            ConditionType::QuotaAvailable,
        ] {
            assert_eq!(reason(&first, kind), ("Unknown", "Checking"));
        }
    }

    #[test]
    fn each_stage_has_its_conditions() {
        let told = |stage| after(HetznerProjectStatus::default(), usable(), stage, 0);
        let (ready, valid) = (ConditionType::Ready, ConditionType::CredentialsValid);
        let fine = told(Stage::Usable);
        assert!(
            is_true(&fine.conditions, ready)
                && is_true(&fine.conditions, valid)
                && is_true(&fine.conditions, ConditionType::QuotaAvailable)
        );
        assert_eq!(
            (fine.servers, fine.budget_left, fine.identity),
            (Some(3), Some(3240), Some(7))
        );
        let unusable = told(Stage::Unusable("WrongProject", "x".into()));
        assert_eq!(
            (reason(&unusable, ready), reason(&unusable, valid)),
            (("False", "WrongProject"), ("False", "WrongProject"))
        );
        let blocked = told(Stage::Blocked("AnotherOperator", "x".into()));
        assert_eq!(
            (reason(&blocked, ready), reason(&blocked, valid)),
            (("False", "AnotherOperator"), ("True", "Proven"))
        );
        let incomplete = told(Stage::Incomplete("SshKeyMissing", "x".into()));
        assert_eq!(
            (reason(&incomplete, ready), reason(&incomplete, valid)),
            (("False", "SshKeyMissing"), ("True", "Proven"))
        );
        let deleting = after(fine, usable(), Stage::Deleting("InUse", "x".into()), 9);
        assert_eq!(
            (reason(&deleting, ready), reason(&deleting, valid)),
            (("False", "InUse"), ("True", "Proven"))
        );
    }

    #[test]
    fn calm_and_restart_change_nothing() {
        let calm = after(HetznerProjectStatus::default(), usable(), Stage::Usable, 0);
        assert_eq!(after(calm.clone(), usable(), Stage::Usable, 60), calm);
        let restarted = World::default();
        for stage in [Stage::Checking("connects"), Stage::Checking("takes over")] {
            assert_eq!(after(calm.clone(), restarted.clone(), stage, 90), calm);
        }
    }

    #[test]
    fn generation_is_observed_once_it_was_checked_and_never_goes_back() {
        let former = HetznerProjectStatus {
            observed_generation: Some(1),
            ..HetznerProjectStatus::default()
        };
        let world = World {
            status: former,
            ..usable()
        };
        let observed = |stage, generation| {
            status(&world, &plan(stage), Some(generation), at(0)).observed_generation
        };
        assert_eq!(observed(Stage::Checking("reads"), 2), Some(1));
        assert_eq!(observed(Stage::Usable, 2), Some(2));
        assert_eq!(observed(Stage::Usable, 0), Some(1));
    }

    #[test]
    fn budget_is_told_in_tenths_and_does_not_flicker_at_their_edges() {
        let told = |former, left| {
            budget_left(
                former,
                &Seen {
                    budget: Some((left, 3600)),
                    ..Seen::default()
                },
            )
        };
        assert_eq!(told(None, 3600), Some(3600));
        assert_eq!(told(None, 3239), Some(2880));
        assert_eq!(told(Some(3240), 3239), Some(3240));
        assert_eq!(told(Some(3240), 3061), Some(3240));
        assert_eq!(told(Some(3240), 3059), Some(2880));
        assert_eq!(told(Some(2880), 3419), Some(2880));
        assert_eq!(told(Some(2880), 3420), Some(3240));
        assert_eq!(
            told(Some(500), 3420),
            Some(3240),
            "another limit, other tenths"
        );
    }

    #[test]
    fn exhausted_quota_is_told_with_its_end_and_does_not_waver() {
        let mut world = usable();
        world.seen.as_mut().unwrap().over_quota = Some(at(600));
        let first = after(
            HetznerProjectStatus::default(),
            world.clone(),
            Stage::Usable,
            0,
        );
        assert_eq!(
            reason(&first, ConditionType::QuotaAvailable),
            ("False", "QuotaExceeded")
        );
        world.seen.as_mut().unwrap().over_quota = Some(at(601));
        assert_eq!(after(first.clone(), world, Stage::Usable, 1), first);
        assert_eq!(
            after(first, usable(), Stage::Usable, 700).paused_until,
            None
        );
    }

    #[test]
    fn another_count_waits_until_it_may_be_written() {
        let mut world = usable();
        let first = after(
            HetznerProjectStatus::default(),
            world.clone(),
            Stage::Usable,
            0,
        );
        let seen = world.seen.as_mut().unwrap();
        (seen.servers, seen.counts_wait) = (4, Some(std::time::Duration::from_secs(1)));
        assert_eq!(after(first.clone(), world.clone(), Stage::Usable, 1), first);
        world.seen.as_mut().unwrap().counts_wait = None;
        assert_eq!(after(first, world, Stage::Usable, 2).servers, Some(4));
    }
}
