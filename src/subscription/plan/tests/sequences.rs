//! Any sequence of states and times, against what the test itself has seen and heard: no agent ends too early, none runs unpaid, and each comes
//! back with the same server.

use std::collections::HashMap;

use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;

const GRACE: i64 = 3 * DAY;
const RETENTION: i64 = 7 * DAY;
const PAUSED: i64 = 30 * DAY;
const STATES: [&str; 8] = [
    "Incomplete",
    "IncompleteExpired",
    "Trialing",
    "Active",
    "PastDue",
    "Unpaid",
    "Paused",
    "Canceled",
];

/// One thing that happens to a subscription.
#[derive(Clone, Debug)]
enum Happens {
    /// The billing system says a state, and until when it is paid, in seconds from then.
    Says(&'static str, Option<i64>),
    /// Its status is lost.
    Forgets,
    /// It is deleted and made again.
    IsMadeAnew,
    /// Many others lose their entitlement with it.
    IsOneOfMany,
    /// An admin confirms its end.
    IsConfirmed,
    Nothing,
}

fn happens() -> impl Strategy<Value = (i64, Happens)> {
    let paid = proptest::option::of(-RETENTION..2 * RETENTION);
    let says = (proptest::sample::select(STATES.to_vec()), paid)
        .prop_map(|(state, paid)| Happens::Says(state, paid));
    let what = prop_oneof![
        8 => says,
        1 => Just(Happens::Forgets),
        1 => Just(Happens::IsMadeAnew),
        1 => Just(Happens::IsOneOfMany),
        1 => Just(Happens::IsConfirmed),
        3 => Just(Happens::Nothing),
    ];
    (1..2 * RETENTION, what)
}

/// What the test has seen and heard.
struct Witness {
    state: &'static str,
    paid: Option<i64>,
    seen: HashMap<&'static str, i64>,
    /// The last second at which it was surely paid.
    active: i64,
    runs: bool,
    held: bool,
    /// When an admin confirmed its end last.
    word: i64,
    /// The latest end that was told, since it was surely paid or its status was lost.
    told: Option<Timestamp>,
}

fn pays(state: &str) -> bool {
    matches!(state, "Active" | "Trialing")
}

impl Witness {
    fn hears(&mut self, state: &'static str, paid: Option<i64>, now: i64) {
        if pays(self.state) {
            self.active = now;
        }
        (self.state, self.paid) = (state, paid);
        if pays(state) {
            self.seen.clear();
            (self.held, self.told) = (false, None);
        } else {
            self.seen.entry(state).or_insert(now);
        }
    }

    /// What was seen is lost: it counts from now.
    fn forgets(&mut self, now: i64) {
        self.seen.clear();
        self.told = None;
        self.hears(self.state, self.paid, now);
    }

    /// Whether it may run now.
    fn entitled(&self, now: i64) -> bool {
        let in_grace = |due: &i64| now < due + GRACE;
        let grace = self.seen.get("PastDue");
        match self.state {
            "Active" | "Trialing" => true,
            "PastDue" => grace.is_some_and(in_grace),
            "Canceled" => {
                self.runs && self.paid.is_some_and(|paid| now < paid) && grace.is_none_or(in_grace)
            }
            _ => false,
        }
    }

    /// Whether its time is over.
    fn is_over(&self, now: i64) -> bool {
        let kept = if self.state == "Paused" {
            PAUSED
        } else {
            RETENTION
        };
        let seen = self.seen.get(self.state).copied().unwrap_or(i64::MAX / 2);
        let since = self.paid.into_iter().chain([seen, self.active]);
        let state = !pays(self.state) && self.state != "PastDue";
        state && !self.held && since.into_iter().all(|since| now >= since + kept)
    }
}

/// A subscription, and what is known of it apart from its own code.
struct Trial {
    life: Life,
    witness: Witness,
    /// How often an agent was made.
    made: usize,
}

impl Trial {
    /// Looks until nothing is left to do; each step must be one that the witness finds right.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..6 {
            let before = self.life.world.status.clone();
            let existed = self.life.instance.is_some();
            let steps = self.life.look();
            for step in &steps {
                match step {
                    Step::Create(_) => {
                        prop_assert!(!existed && pays(self.witness.state));
                        self.made += 1;
                    }
                    Step::Terminate(_) => {
                        prop_assert!(self.witness.is_over(self.life.now), "too early");
                    }
                    _ => {}
                }
            }
            self.ends_no_earlier()?;
            if steps.is_empty() && before == self.life.world.status {
                return Ok(());
            }
        }
        Err(TestCaseError::fail("it does not settle"))
    }

    /// What was told of its end stands, also over a time in which nothing was.
    fn ends_no_earlier(&mut self) -> Result<(), TestCaseError> {
        let told = &mut self.witness.told;
        if self.life.instance.is_none() {
            *told = None;
        }
        if let Some(ends) = &self.life.world.status.terminate_at {
            prop_assert!(Some(ends.0) >= *told, "its end moved earlier");
            *told = Some(ends.0);
        }
        Ok(())
    }

    /// Time passes, and it is looked at when it asked for that, and at no other time.
    fn pass(&mut self, seconds: i64) -> Result<(), TestCaseError> {
        let until = self.life.now + seconds;
        while let Some(due) = self.life.plan().look_again {
            let due = due.duration_since(at(0)) + SignedDuration::from_millis(999);
            let due = due.as_secs();
            if due > until {
                break;
            }
            self.life.now = due;
            self.settle()?;
            self.runs_as_it_may()?;
        }
        self.life.now = until;
        self.runs_as_it_may()
    }

    fn runs_as_it_may(&mut self) -> Result<(), TestCaseError> {
        self.witness.runs = self.witness.entitled(self.life.now);
        if self.life.instance.is_some() {
            prop_assert_eq!(
                !self.life.suspended(),
                self.witness.runs,
                "{} at {}",
                self.witness.state,
                self.life.now
            );
        }
        Ok(())
    }

    fn happens(&mut self, what: &Happens) {
        let now = self.life.now;
        match what {
            Happens::Says(state, paid) => {
                let paid = paid.map(|paid| now + paid);
                self.witness.hears(state, paid, now);
                let spec = &mut self.life.subscription.spec;
                spec.state = subscription(state).spec.state;
                spec.paid_until = paid.map(|paid| Time(at(paid)));
            }
            Happens::Forgets => {
                self.witness.forgets(now);
                self.life.world.status = SubscriptionStatus::default();
            }
            Happens::IsMadeAnew => {
                self.life.subscription.metadata.deletion_timestamp = Some(Time(at(now)));
                while self.life.world.finalizer {
                    self.life.look();
                }
                self.life.subscription.metadata.deletion_timestamp = None;
                self.life.world.finalizer = true;
                self.life.world.status = SubscriptionStatus::default();
                (self.witness.runs, self.witness.active) = (false, self.witness.active.max(now));
                self.witness.forgets(now);
            }
            Happens::IsOneOfMany => {
                let lost = self.life.instance.as_ref().and_then(unentitled_since);
                self.life.world.census = Some(Census::of((0..9).map(|_| lost)));
                self.witness.held |= lost.is_some_and(|lost| lost > at(self.witness.word));
            }
            Happens::IsConfirmed => {
                self.life.world.confirmation = Some(at(now).to_string());
                (self.witness.held, self.witness.word) = (false, now);
            }
            Happens::Nothing => {}
        }
    }
}

proptest! {
    #[test]
    fn no_agent_ends_too_early_none_runs_unpaid_and_each_comes_back(
        events in proptest::collection::vec(happens(), 1..30)
    ) {
        let mut trial = Trial {
            life: Life::running(),
            witness: Witness {
                state: "Active", paid: None, seen: HashMap::new(), active: 0, runs: true, held: false, word: -1, told: None,
            },
            made: 1,
        };
        for (pause, what) in events {
            trial.pass(pause)?;
            trial.happens(&what);
            trial.settle()?;
            trial.runs_as_it_may()?;
            // The others are put back, one by one: what is held stays so.
            trial.life.world.census = Some(Census::default());
        }
        let (lived, made) = (trial.life.instance.is_some(), trial.made);
        trial.happens(&Happens::Says("Active", None));
        trial.settle()?;
        prop_assert!(trial.life.instance.is_some() && !trial.life.suspended());
        prop_assert_eq!(trial.made, made + usize::from(!lived), "the same server");
    }
}
