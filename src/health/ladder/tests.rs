//! The rungs as a table, and whatever the probes say as properties.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use proptest::prelude::*;

use super::*;
use crate::{
    api::HealthState,
    health::{Circuit, Reply, circuit},
};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

/// Tries so many seconds before now.
fn tried(tries: &[(RecoveryAction, i64)]) -> Vec<RecoveryRecord> {
    let record = |(action, ago): &(RecoveryAction, i64)| RecoveryRecord {
        action: *action,
        at: MicroTime(at(-ago)),
        reason: String::new(),
    };
    tries.iter().map(record).collect()
}

fn budgets(restarts: i32, reboots: i32, recreations: i32) -> Recovery {
    Recovery {
        restarts,
        reboots,
        recreations,
    }
}

fn rules(budgets: Recovery, replaceable: bool) -> Rules {
    Rules {
        budgets,
        replaceable,
        settle: Duration::from_mins(3),
        unreachable: Duration::from_mins(5),
    }
}

/// What is next now for an agent that last served so many seconds ago.
fn next_after(
    tries: &[(RecoveryAction, i64)],
    served: i64,
    ailment: Ailment,
    rules: &Rules,
) -> Next {
    let tries = tried(tries);
    let history = History {
        tries: &tries,
        served_until: at(-served),
    };
    next(ailment, &history, rules, at(0))
}

#[test]
fn rungs_come_in_order_each_with_its_budget_and_a_pause() {
    use Ailment::Failed;
    use Next::{NoRung, Try, UsedUp, Wait};
    let all = rules(budgets(2, 1, 1), true);
    let kept = rules(budgets(2, 1, 1), false);
    let (first, second) = ((Restart, 3 * HOUR), (Restart, 2 * HOUR));
    let (boot, anew) = ((Reboot, HOUR), (Recreate, 30 * MINUTE));
    for (what, tries, rules, expected) in [
        ("nothing was tried", vec![], all, Try(Restart)),
        ("one is left", vec![first], all, Try(Restart)),
        ("no restart is left", vec![first, second], all, Try(Reboot)),
        (
            "no reboot is left",
            vec![first, second, boot],
            all,
            Try(Recreate),
        ),
        (
            "the disk is kept",
            vec![first, second, boot],
            kept,
            UsedUp(at(21 * HOUR)),
        ),
        (
            "all is used up",
            vec![first, second, boot, anew],
            all,
            UsedUp(at(21 * HOUR)),
        ),
        (
            "a budget is filled again",
            vec![(Restart, 24 * HOUR), second, boot, anew],
            all,
            Try(Restart),
        ),
        (
            "it has just been tried",
            vec![(Restart, MINUTE)],
            all,
            Wait(at(2 * MINUTE)),
        ),
        (
            "a second in a row has twice the time",
            vec![first, (Restart, MINUTE)],
            all,
            Wait(at(5 * MINUTE)),
        ),
        (
            "a boot takes longer",
            vec![first, second, (Reboot, MINUTE)],
            all,
            Wait(at(7 * MINUTE)),
        ),
        (
            "also the last has its time before all is called used up",
            vec![first, (Restart, MINUTE)],
            rules_of(2, 0, 0),
            Wait(at(5 * MINUTE)),
        ),
        ("no restarts", vec![], rules_of(0, 1, 0), Try(Reboot)),
        ("nothing is allowed", vec![], rules_of(0, 0, 0), NoRung),
        (
            "nothing that fits",
            vec![],
            self::rules(budgets(0, 0, 1), false),
            NoRung,
        ),
    ] {
        assert_eq!(
            next_after(&tries, 4 * HOUR, Failed, &rules),
            expected,
            "{what}"
        );
    }
}

fn rules_of(restarts: i32, reboots: i32, recreations: i32) -> Rules {
    rules(budgets(restarts, reboots, recreations), true)
}

#[test]
fn a_server_out_of_reach_is_rebooted_late_and_replaced_only_after_that_was_in_vain() {
    use Next::{NoRung, Try, UsedUp, Wait};
    let unknown = |ago: i64| Ailment::Unknown(at(-ago));
    let (once, twice) = ((Reboot, 2 * HOUR), (Reboot, HOUR));
    for (what, tries, served, since, rules, expected) in [
        (
            "it may come back",
            vec![],
            MINUTE,
            MINUTE,
            rules_of(5, 2, 1),
            Wait(at(4 * MINUTE)),
        ),
        (
            "it does not",
            vec![],
            HOUR,
            5 * MINUTE,
            rules_of(5, 2, 1),
            Try(Reboot),
        ),
        (
            "still not",
            vec![once],
            3 * HOUR,
            HOUR,
            rules_of(5, 2, 1),
            Try(Reboot),
        ),
        (
            "in vain",
            vec![once, twice],
            3 * HOUR,
            10 * MINUTE,
            rules_of(5, 2, 1),
            Try(Recreate),
        ),
        (
            "rebooted for something else, before it served again",
            vec![once, twice],
            MINUTE * 30,
            10 * MINUTE,
            rules_of(5, 2, 1),
            UsedUp(at(22 * HOUR)),
        ),
        (
            "the disk is kept",
            vec![once, twice],
            3 * HOUR,
            10 * MINUTE,
            rules(budgets(5, 2, 1), false),
            UsedUp(at(22 * HOUR)),
        ),
        ("no reboots", vec![], HOUR, HOUR, rules_of(5, 0, 1), NoRung),
    ] {
        assert_eq!(
            next_after(&tries, served, unknown(since), &rules),
            expected,
            "{what}"
        );
    }
}

#[test]
fn a_vanished_server_is_replaced_at_once_within_the_budget() {
    let gone = |tries: &[_]| next_after(tries, 0, Ailment::Gone, &rules_of(5, 2, 1));
    assert_eq!(gone(&[(Restart, 1)]), Next::Try(Recreate));
    assert_eq!(gone(&[(Recreate, HOUR)]), Next::UsedUp(at(23 * HOUR)));
    assert_eq!(
        next_after(&[], 0, Ailment::Gone, &rules_of(5, 2, 0)),
        Next::NoRung
    );
}

#[test]
fn no_more_is_tried_in_a_day_than_is_remembered() {
    let tries: Vec<_> = (1..=10).rev().map(|hour| (Restart, hour * HOUR)).collect();
    let next = next_after(&tries, 12 * HOUR, Ailment::Failed, &rules_of(10, 10, 10));
    assert_eq!(next, Next::UsedUp(at(14 * HOUR)));
    let newest = with(&tried(&tries), &tried(&[(Reboot, 0)])[0]);
    assert_eq!(
        (newest.len(), newest[9].action, newest[0].at.0),
        (REMEMBERED, Reboot, at(-9 * HOUR))
    );
}

#[test]
fn a_try_that_was_written_down_is_done_only_in_its_time_and_where_it_fits() {
    let tries = tried(&[(Restart, MINUTE)]);
    let history = History {
        tries: &tries,
        served_until: at(-2 * MINUTE),
    };
    let all = rules_of(5, 2, 1);
    let allowed = |ailment, second| all.allow(Restart, ailment, &history, at(second));
    assert!(allowed(Ailment::Failed, 0));
    assert!(!allowed(Ailment::Unknown(at(-HOUR)), 0));
    assert!(!allowed(Ailment::Failed, 2 * MINUTE));
}

/// An agent whose every probe is thrown, with the circuit, the ladder and what both remember.
struct Life {
    rules: Rules,
    circuit: Circuit,
    since: Timestamp,
    tries: Vec<RecoveryRecord>,
    served_until: Timestamp,
    all: Vec<(RecoveryAction, Timestamp, HealthState)>,
}

impl Life {
    fn new(rules: Rules) -> Self {
        Self {
            rules,
            circuit: Circuit::presuming(HealthState::Healthy),
            since: at(0),
            tries: vec![],
            served_until: at(0),
            all: vec![],
        }
    }

    fn probed(&mut self, reply: Reply, now: Timestamp, steady: std::time::Instant) {
        let interval = Duration::from_mins(1);
        let counting = circuit::Rules {
            threshold: 3,
            interval,
        };
        if self.circuit.take(reply, counting, steady) {
            self.since = now;
        }
        let state = match self.circuit.state() {
            None => return,
            Some(HealthState::Healthy | HealthState::Degraded) => {
                self.served_until = now;
                return;
            }
            Some(state) => state,
        };
        let ailment = if state == HealthState::Failed {
            Ailment::Failed
        } else {
            Ailment::Unknown(self.since)
        };
        let history = History {
            tries: &self.tries,
            served_until: self.served_until,
        };
        if let Next::Try(action) = next(ailment, &history, &self.rules, now) {
            assert!(action != Recreate || self.rules.replaceable);
            let record = RecoveryRecord {
                action,
                at: MicroTime(now),
                reason: String::new(),
            };
            self.tries = with(&self.tries, &record);
            self.all.push((action, now, state));
            self.circuit = Circuit::default();
        }
    }

    /// What must hold of all that was tried.
    fn is_legal(&self) {
        for (nth, (action, when, state)) in self.all.iter().enumerate() {
            let day: Vec<_> = self.all[..=nth]
                .iter()
                .filter(|(_, at, _)| after(*at, DAY) > *when)
                .collect();
            let same = day.iter().filter(|(other, ..)| other == action).count();
            assert!(
                same <= self.rules.budget(*action),
                "over budget: {:?}",
                self.all
            );
            assert!(day.len() <= REMEMBERED);
            let unknown = *state == HealthState::Unknown;
            assert!(
                !unknown || *action != Restart,
                "a unit out of reach was restarted"
            );
            if let Some((_, before, _)) = nth.checked_sub(1).map(|former| self.all[former]) {
                assert!(
                    after(before, self.rules.settle) <= *when,
                    "no time to come back"
                );
            }
        }
        let reboots = self.all.iter().filter(|(action, ..)| *action == Reboot);
        let first = reboots.map(|(_, at, _)| *at).min();
        let unreached = self
            .all
            .iter()
            .filter(|(action, _, state)| *action == Recreate && *state == HealthState::Unknown);
        for (_, when, _) in unreached {
            assert!(
                first.is_some_and(|first| first < *when),
                "not rebooted first"
            );
        }
    }
}

/// What is tried for an agent whose probes say this, in spells of so many minutes each: good, bad or silent.
fn lived(spells: impl Iterator<Item = usize>, length: i64, rules: Rules) -> Life {
    let (mut life, start) = (Life::new(rules), std::time::Instant::now());
    let results = spells.flat_map(|kind| (0..length).map(move |_| kind));
    for (kind, minute) in results.zip(0_i64..) {
        let reply = match kind {
            0 => Reply::Good,
            1 => Reply::Bad(String::new()),
            _ => Reply::Silent(String::new()),
        };
        let passed = Duration::from_secs((minute * MINUTE).unsigned_abs());
        life.probed(reply, at(minute * MINUTE), start + passed);
    }
    life
}

#[test]
fn every_sequence_of_probe_results_leads_to_what_is_legal_and_within_budget() {
    // A spell of one result makes no difference yet, one of three does, and the last rung comes after many: fewer spells then, as they take long.
    for (spells, length, replaceable, most) in [
        (8, 1, true, 1),
        (8, 3, true, 2),
        (6, 20, false, 3),
        (6, 20, true, 4),
    ] {
        let mut tried = 0;
        for nth in 0..3_usize.pow(spells) {
            let kinds = (0..spells).map(|place| nth / 3_usize.pow(place) % 3);
            let life = lived(kinds, length, rules(budgets(2, 1, 1), replaceable));
            life.is_legal();
            tried = tried.max(life.all.len());
        }
        assert!(tried >= most, "{tried} tries with spells of {length}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn whatever_the_probes_say_what_is_tried_is_legal_and_within_budget(
        spells in prop::collection::vec((0_u8..3, 1_u32..400), 1..24),
        given in (0_i32..6, 0_i32..4, 0_i32..3),
        replaceable: bool,
    ) {
        let mut life = Life::new(rules(budgets(given.0, given.1, given.2), replaceable));
        let (start, mut minute) = (std::time::Instant::now(), 0_i64);
        for (kind, length) in spells {
            for _ in 0..length {
                let reply = match kind {
                    0 => Reply::Good,
                    1 => Reply::Bad(String::new()),
                    _ => Reply::Silent(String::new()),
                };
                let passed = Duration::from_secs((minute * MINUTE).unsigned_abs());
                life.probed(reply, at(minute * MINUTE), start + passed);
                minute += 1;
            }
        }
        life.is_legal();
    }

    #[test]
    fn an_agent_that_never_comes_back_gets_every_try_that_is_allowed(
        given in (0_i32..5, 0_i32..3, 0_i32..3), unknown: bool,
    ) {
        let mut life = Life::new(rules(budgets(given.0, given.1, given.2), true));
        let start = std::time::Instant::now();
        for minute in 0..20 * 60 {
            let reply = if unknown { Reply::Silent(String::new()) } else { Reply::Bad(String::new()) };
            let passed = Duration::from_secs((minute * MINUTE).unsigned_abs());
            life.probed(reply, at(minute * MINUTE), start + passed);
        }
        let tried: Vec<_> = life.all.iter().map(|(action, ..)| *action).collect();
        let times = |action, number: i32| std::iter::repeat_n(action, usize::try_from(number).unwrap());
        let expected: Vec<_> = if unknown {
            let replaced = if given.1 > 0 { given.2 } else { 0 };
            times(Reboot, given.1).chain(times(Recreate, replaced)).collect()
        } else {
            times(Restart, given.0).chain(times(Reboot, given.1)).chain(times(Recreate, given.2)).collect()
        };
        prop_assert_eq!(tried, expected);
    }
}
