//! Each line of the table, forward and back, and what holds for any sequence of states and times.

use proptest::prelude::*;

use super::*;

const HOUR: i64 = 3600;
const GRACE: i64 = 72 * HOUR;
const RETENTION: i64 = 168 * HOUR;
const PAUSED: i64 = 720 * HOUR;
const ALL: [SubscriptionState; 8] = [
    Incomplete,
    IncompleteExpired,
    Trialing,
    Active,
    PastDue,
    Unpaid,
    Paused,
    Canceled,
];

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000_000 + second).unwrap()
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(seconds.unsigned_abs())
}

fn terms(state: SubscriptionState) -> Terms {
    Terms {
        state,
        paid_until: None,
        cancel_at: None,
        grace: seconds(GRACE),
        retention: seconds(RETENTION),
        paused_retention: seconds(PAUSED),
        deleted_at: None,
    }
}

fn paid(state: SubscriptionState, until: i64) -> Terms {
    Terms {
        paid_until: Some(at(until)),
        ..terms(state)
    }
}

impl Entitlement {
    /// What is remembered of it.
    fn past(&self) -> Past {
        Past {
            first_seen: self.first_seen.clone(),
            suspended: !self.entitled,
            terminate_at: self.terminate_at,
            kept_until: self.kept_until,
            unentitled_since: self.unentitled_since,
        }
    }
}

/// What follows of terms that were seen one after the other, each at its second.
fn follows(life: &[(i64, Terms)]) -> Entitlement {
    let mut past = Past::default();
    let mut last = None;
    for (second, terms) in life {
        let entitlement = decide(terms, &past, at(*second));
        past = entitlement.past();
        last = Some(entitlement);
    }
    last.unwrap()
}

/// Whether it runs, until when, and until when it is kept; in seconds.
fn told(life: &[(i64, Terms)]) -> (bool, Option<i64>, Option<i64>) {
    let found = follows(life);
    let second = |time: Timestamp| time.as_second() - 1_000_000_000;
    (
        found.entitled,
        found.suspend_at.map(second),
        found.terminate_at.map(second),
    )
}

#[test]
fn each_state_has_its_line_in_the_table() {
    let now = 10;
    for (state, expected) in [
        (Incomplete, (false, None, Some(now + RETENTION))),
        (IncompleteExpired, (false, None, Some(now + RETENTION))),
        (Trialing, (true, None, None)),
        (Active, (true, None, None)),
        (PastDue, (true, Some(now + GRACE), None)),
        (Unpaid, (false, None, Some(now + RETENTION))),
        (Paused, (false, None, Some(now + PAUSED))),
        (Canceled, (false, None, Some(now + RETENTION))),
    ] {
        let life = [(0, terms(Active)), (now, terms(state))];
        assert_eq!(told(&life), expected, "{state}");
    }
}

/// What a state that was seen at `first`, and is followed by another at `second`, leads to: paid to second 100, and to nothing more.
fn expected(
    (first, from): (i64, SubscriptionState),
    (second, to): (i64, SubscriptionState),
) -> (bool, Option<i64>, Option<i64>) {
    let seen = |state| if from == state { first } else { second };
    let kept = |state| if state == Paused { PAUSED } else { RETENTION };
    let latest = if from == to { first } else { second };
    // An end that was planned before stands.
    let planned = match from {
        Active | Trialing | PastDue => 0,
        state => 100.max(first) + kept(state),
    };
    let ends = Some((100.max(latest) + kept(to)).max(planned));
    match to {
        Active | Trialing => (true, None, None),
        PastDue => (true, Some(seen(PastDue) + GRACE), None),
        Canceled if matches!(from, Active | Trialing | PastDue | Canceled) => {
            (true, Some(100), ends)
        }
        Incomplete | IncompleteExpired | Unpaid | Paused | Canceled => (false, None, ends),
    }
}

#[test]
fn from_every_state_to_every_state_and_back_follows_what_the_two_say() {
    for from in ALL {
        for to in ALL {
            let mut life = vec![
                (0, paid(Active, 100)),
                (5, paid(from, 100)),
                (9, paid(to, 100)),
            ];
            assert_eq!(told(&life), expected((5, from), (9, to)), "{from} to {to}");
            let there = follows(&life);
            life.push((12, paid(from, 100)));
            let back = follows(&life);
            assert_eq!(
                back.entitled,
                follows(&life[..2]).entitled && (from != Canceled || there.entitled),
                "{from} to {to} and back"
            );
            if !matches!(to, Active | Trialing) {
                let ends = back
                    .terminate_at
                    .is_none_or(|end| Some(end) >= there.terminate_at);
                assert!(ends, "{from} to {to} and back");
            }
            life.push((20, paid(Active, 100)));
            assert_eq!(told(&life), (true, None, None), "{from} to {to}");
            assert_eq!(follows(&life).kept_until, None);
        }
    }
}

#[test]
fn an_end_that_was_planned_stands_through_past_due_and_only_who_pays_or_tries_takes_it_back() {
    let paused = [(0, terms(Active)), (10, terms(Paused))];
    let after = |more: &[(i64, Terms)]| {
        let mut life = paused.to_vec();
        life.extend_from_slice(more);
        told(&life).2
    };
    let (due, unpaid) = ((20, terms(PastDue)), (30, terms(Unpaid)));
    assert_eq!(after(std::slice::from_ref(&due)), None);
    assert_eq!(after(&[due.clone(), unpaid.clone()]), Some(10 + PAUSED));
    let shorter = Terms {
        paused_retention: seconds(0),
        retention: seconds(0),
        ..terms(Canceled)
    };
    assert_eq!(after(&[due.clone(), (30, shorter)]), Some(10 + PAUSED));
    for back in [Active, Trialing] {
        let paid = (25, terms(back));
        let anew = after(&[due.clone(), paid, unpaid.clone()]);
        assert_eq!(anew, Some(30 + RETENTION), "{back}");
    }
}

#[test]
fn nothing_is_created_but_for_who_pays_or_tries() {
    for state in ALL {
        let creates = follows(&[(0, paid(state, 100))]).creates;
        assert_eq!(creates, matches!(state, Trialing | Active), "{state}");
    }
}

#[test]
fn from_every_state_active_and_trialing_bring_the_agent_back_and_clear_what_was_seen() {
    for state in ALL {
        for back in [Active, Trialing] {
            let found = follows(&[(0, terms(Active)), (5, terms(state)), (9, terms(back))]);
            assert!(found.entitled && found.creates, "{state} to {back}");
            assert_eq!(found.first_seen, BTreeMap::new());
            assert_eq!((found.suspend_at, found.terminate_at), (None, None));
        }
    }
}

#[test]
fn past_due_runs_for_the_grace_of_its_first_sight_and_is_never_terminated() {
    let due = |second| (second, terms(PastDue));
    assert_eq!(told(&[due(0), due(GRACE - 1)]), (true, Some(GRACE), None));
    assert_eq!(told(&[due(0), due(GRACE)]), (false, None, None));
    assert_eq!(told(&[due(0), due(GRACE * 100)]), (false, None, None));
    let anew = [due(0), (GRACE, terms(Active)), due(GRACE + 1)];
    assert_eq!(told(&anew), (true, Some(2 * GRACE + 1), None));
    let undone = [due(0), (5, terms(Unpaid)), due(9)];
    assert_eq!(told(&undone), (true, Some(GRACE), None), "as before Unpaid");
}

#[test]
fn a_period_that_was_extended_although_unpaid_buys_nothing() {
    let far = 9 * RETENTION;
    assert_eq!(told(&[(0, paid(PastDue, far))]), (true, Some(GRACE), None));
    assert!(!follows(&[(0, paid(Active, 5)), (6, paid(Unpaid, far))]).entitled);
    let canceled = [(0, paid(PastDue, far)), (HOUR, paid(Canceled, far))];
    assert_eq!(
        told(&canceled),
        (true, Some(GRACE), Some(far + RETENTION)),
        "canceled after a payment that failed"
    );
}

#[test]
fn canceled_runs_to_the_end_of_what_was_paid_and_never_lifts_a_suspension() {
    let running = [(0, paid(Active, 100)), (10, paid(Canceled, 100))];
    assert_eq!(told(&running), (true, Some(100), Some(100 + RETENTION)));
    for state in [Unpaid, Paused, Incomplete, IncompleteExpired] {
        let suspended = [(0, paid(state, 100)), (10, paid(Canceled, 100))];
        assert!(!follows(&suspended).entitled, "{state}");
    }
    let over = [
        (0, paid(Active, 5)),
        (10, paid(Canceled, 5)),
        (11, paid(Canceled, 900)),
    ];
    assert!(!follows(&over).entitled, "extended when it was over");
    let grace_over = [
        (0, terms(PastDue)),
        (GRACE, terms(PastDue)),
        (GRACE + 1, paid(Canceled, 9 * GRACE)),
    ];
    assert!(!follows(&grace_over).entitled);
}

#[test]
fn what_is_to_be_canceled_runs_on_until_then_and_counts_as_canceled_from_then_on() {
    let cancels = |state, second| Terms {
        cancel_at: Some(at(second)),
        ..paid(state, 50)
    };
    assert_eq!(told(&[(0, cancels(Active, 20))]), (true, Some(50), None));
    let life = [(0, cancels(Active, 20)), (30, cancels(Active, 20))];
    assert_eq!(told(&life), (true, Some(50), Some(50 + RETENTION)));
    assert_eq!(follows(&life).state, Canceled);
    let thought_better = [life[0].clone(), life[1].clone(), (40, paid(Active, 50))];
    assert_eq!(told(&thought_better), (true, None, None));
    let unpaid = [(0, cancels(Unpaid, 20)), (30, cancels(Unpaid, 20))];
    assert_eq!(follows(&unpaid).state, Unpaid);
}

#[test]
fn times_in_the_past_shorten_nothing_and_termination_never_moves_earlier() {
    let old = -9 * RETENTION;
    assert_eq!(
        told(&[(0, paid(Unpaid, old))]),
        (false, None, Some(RETENTION))
    );
    let canceled = [(0, terms(Active)), (10, paid(Canceled, old))];
    assert_eq!(told(&canceled), (false, None, Some(10 + RETENTION)));
    let paused = [(0, terms(Paused)), (10, terms(Unpaid))];
    assert_eq!(told(&paused), (false, None, Some(PAUSED)));
    let mut shorter = terms(Unpaid);
    shorter.retention = seconds(HOUR);
    assert_eq!(
        told(&[(0, terms(Unpaid)), (10, shorter)]),
        (false, None, Some(RETENTION))
    );
    let sooner_paid = [(0, paid(Canceled, 500)), (10, paid(Canceled, 5))];
    assert_eq!(told(&sooner_paid), (false, None, Some(500 + RETENTION)));
}

#[test]
fn a_termination_that_was_not_planned_before_leaves_a_whole_retention() {
    let life = [
        (0, terms(Unpaid)),
        (10, terms(PastDue)),
        (3 * RETENTION, terms(PastDue)),
        (4 * RETENTION, terms(Unpaid)),
    ];
    assert_eq!(told(&life), (false, None, Some(5 * RETENTION)));
}

#[test]
fn what_was_lost_counts_from_now() {
    let now = at(1_000 * HOUR);
    let forgotten = decide(&paid(Unpaid, 0), &Past::default(), now);
    assert_eq!(forgotten.first_seen[&Unpaid], now);
    assert_eq!(forgotten.terminate_at, Some(later(now, seconds(RETENTION))));
    let forgotten = decide(&terms(PastDue), &Past::default(), now);
    assert_eq!(forgotten.suspend_at, Some(later(now, seconds(GRACE))));
}

#[test]
fn a_subscription_that_is_deleted_is_suspended_and_kept_whatever_it_said() {
    for state in ALL {
        let deleted = Terms {
            deleted_at: Some(at(20)),
            ..paid(state, 100)
        };
        let found = follows(&[(0, paid(state, 100)), (20, deleted)]);
        assert!(!found.entitled && !found.creates, "{state}");
        let kept = if state == Paused { PAUSED } else { RETENTION };
        assert_eq!(found.terminate_at, Some(at(100 + kept)), "{state}");
    }
}

#[test]
fn fractions_of_seconds_are_never_cut_off() {
    let now = at(0) + 300.milliseconds();
    let found = decide(&terms(Unpaid), &Past::default(), now);
    assert_eq!(found.first_seen[&Unpaid], at(1));
    assert_eq!(found.terminate_at, Some(at(1 + RETENTION)));
    assert!(!found.terminates(at(RETENTION) + 999.milliseconds()));
    assert!(found.terminates(at(1 + RETENTION)));
}

#[test]
fn the_next_time_that_matters_is_told_with_its_announcement() {
    let next = |terms: &Terms, now| {
        let found = follows(&[(0, terms.clone())]);
        terms.next(&found, seconds(24 * HOUR), at(now))
    };
    let due = terms(PastDue);
    assert_eq!(next(&due, 0), Some(at(GRACE - 24 * HOUR)));
    assert_eq!(next(&due, GRACE - 24 * HOUR), Some(at(GRACE)));
    assert_eq!(next(&due, GRACE), None);
    assert_eq!(next(&terms(Active), 0), None);
    let canceled = Terms {
        cancel_at: Some(at(5)),
        ..paid(Active, GRACE)
    };
    assert_eq!(next(&canceled, 0), Some(at(5)));
}

/// One thing that happens to a subscription, and how long after the one before.
#[derive(Clone, Debug)]
enum Happens {
    Says(SubscriptionState, Option<i64>, Option<i64>),
    StatusIsLost,
    Nothing,
}

fn happens() -> impl Strategy<Value = (i64, Happens)> {
    let time = || proptest::option::of(-RETENTION..2 * RETENTION);
    let says = (proptest::sample::select(ALL.to_vec()), time(), time())
        .prop_map(|(state, paid, cancel)| Happens::Says(state, paid, cancel));
    let what =
        prop_oneof![6 => says, 1 => Just(Happens::StatusIsLost), 3 => Just(Happens::Nothing)];
    (1..RETENTION, what)
}

/// An agent as this module is used on it: looked at when something happens, and whenever a look is due.
struct Agent {
    terms: Terms,
    past: Past,
    lives: bool,
    /// The last second at which the state was seen to let it run for good.
    active: Option<i64>,
    seen: BTreeMap<SubscriptionState, i64>,
    /// The latest end that was told since then, or since the status was lost.
    told: Option<Timestamp>,
}

impl Agent {
    fn look(&mut self, second: i64) -> Result<Entitlement, TestCaseError> {
        let found = decide(&self.terms, &self.past, at(second));
        if matches!(found.state, Active | Trialing) {
            self.seen.clear();
            (self.active, self.told) = (Some(second), None);
            prop_assert!(found.entitled && found.terminate_at.is_none());
        } else {
            self.seen.entry(found.state).or_insert(second);
        }
        if found.entitled {
            self.may_run(&found, second)?;
        }
        if self.lives && found.terminates(at(second)) {
            self.may_end(&found, second)?;
            self.lives = false;
        }
        if let Some(ends) = found.terminate_at {
            prop_assert!(Some(ends) >= self.told, "termination moved earlier");
            self.told = Some(ends);
        }
        self.past = found.past();
        Ok(found)
    }

    /// Paid, within grace, or canceled and paid: told apart from the code by what the test itself has seen.
    fn may_run(&self, found: &Entitlement, second: i64) -> Result<(), TestCaseError> {
        let in_grace = |at: &i64| second < at + GRACE;
        match found.state {
            Active | Trialing => {}
            PastDue => prop_assert!(in_grace(&self.seen[&PastDue])),
            Canceled => {
                prop_assert!(self.terms.paid_until.is_some_and(|paid| at(second) < paid));
                prop_assert!(!self.past.suspended);
                prop_assert!(self.seen.get(&PastDue).is_none_or(in_grace));
            }
            state => prop_assert!(false, "runs while {state}"),
        }
        Ok(())
    }

    /// All that was paid and seen is at least a retention ago.
    fn may_end(&self, found: &Entitlement, second: i64) -> Result<(), TestCaseError> {
        let kept = if found.state == Paused {
            PAUSED
        } else {
            RETENTION
        };
        prop_assert!(!matches!(found.state, Active | Trialing | PastDue));
        prop_assert!(second >= self.seen[&found.state] + kept);
        prop_assert!(self.active.is_none_or(|active| second >= active + kept));
        if let Some(paid) = self.terms.paid_until {
            prop_assert!(at(second) >= later(paid, seconds(kept)));
        }
        Ok(())
    }

    fn hear(&mut self, second: i64, what: &Happens) {
        match what {
            Happens::Says(state, paid, cancel) => {
                self.terms = Terms {
                    paid_until: paid.map(|paid| at(second + paid)),
                    cancel_at: cancel.map(|cancel| at(second + cancel)),
                    ..terms(*state)
                };
            }
            Happens::StatusIsLost => {
                self.past = Past {
                    suspended: self.past.suspended,
                    ..Past::default()
                };
                self.seen.clear();
                self.told = None;
            }
            Happens::Nothing => {}
        }
    }
}

proptest! {
    #[test]
    fn no_sequence_of_states_ends_an_agent_too_early_or_runs_one_unpaid(
        life in proptest::collection::vec(happens(), 1..40)
    ) {
        let mut agent = Agent {
            terms: terms(Active), past: Past::default(), lives: true, active: None, seen: BTreeMap::new(), told: None,
        };
        let mut now = 0;
        for (pause, what) in life {
            let until = now + pause;
            // Looks that are due by themselves.
            loop {
                let found = agent.look(now)?;
                let Some(due) = agent.terms.next(&found, Duration::ZERO, at(now)) else { break };
                let due = due.as_second() - 1_000_000_000;
                if due >= until { break; }
                now = due;
            }
            now = until;
            agent.hear(now, &what);
            agent.look(now)?;
        }
        // While it lives, one word brings it back.
        agent.hear(now, &Happens::Says(Active, None, None));
        prop_assert!(agent.look(now)?.entitled);
    }
}
