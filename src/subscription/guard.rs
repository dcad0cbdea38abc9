//! The guard: what takes many agents away at once is more likely a mistake than many customers leaving.
//!
//! It counts agents by the time at which entitlement was first seen to go, which stands on each of them as an annotation: so a restart forgets
//! nothing, and a subscription that is deleted counts like one that was canceled. None ends before so much time is over since then that others
//! would be known that go with it, however short its retention. An agent that was in a window with too many says so itself from then on, as the
//! others may be put back one by one, and is kept beyond its end until an admin confirms it. Likewise, when too many were made in a day, no more
//! are.
//!
//! Deletions of the instances themselves are counted in the same way, by [`deletions`]; of all that are gone the [`ledger`] knows. What is held
//! is told by the [`keeper`], in one `ConfigMap` that a [`report`] fills.

pub mod deletions;
pub mod keeper;
pub mod ledger;
pub mod report;

use std::time::Duration;

use jiff::Timestamp;

use super::entitlement::{earlier, later};

/// What the flags say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In a short time, such as ten minutes.
    pub soon: Limit,
    /// In a long one, such as a day.
    pub daily: Limit,
    /// So many are never too many to lose.
    pub least: usize,
    /// How many agents may be made in a day.
    pub creations: usize,
    /// How long a deletion, and an end, waits for others that may come with it, before anything is done about it.
    pub patience: Duration,
}

/// How many in what time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// In what time.
    pub window: Duration,
    /// Which part of all agents, in percent.
    pub percent: usize,
}

/// What is counted: agents, and those of them that were lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// How many there are.
    pub agents: usize,
    /// When those were lost that were, in order.
    losses: Vec<Timestamp>,
    /// How many were made in the last day.
    pub made_today: usize,
}

/// The value of the annotations of what is held.
pub const TOO_MANY: &str = "TooManyAtOnce";

/// The reason of a Subscription whose agent is not made today.
pub const CREATIONS_HELD: &str = "CreationsHeld";

/// The day in which creations are counted.
pub const DAY: Duration = Duration::from_hours(24);

impl Census {
    /// Counts agents, each by when it was lost, if it was.
    pub fn of(agents: impl Iterator<Item = Option<Timestamp>>) -> Self {
        let mut census = Self::default();
        for lost in agents {
            census.agents += 1;
            census.losses.extend(lost);
        }
        census.losses.sort_unstable();
        census
    }

    /// Of which it matters only how many were made today.
    pub fn of_today(made_today: usize) -> Self {
        Self {
            made_today,
            ..Self::default()
        }
    }

    /// Whether too many agents were lost together with one that was lost then.
    pub fn too_many(&self, lost: Timestamp, limits: &Limits) -> bool {
        [limits.soon, limits.daily].into_iter().any(|limit| {
            let count = self.together(lost, limit.window);
            count >= limits.least && count * 100 > self.agents * limit.percent
        })
    }

    /// The most that were lost in one window with `lost` in it.
    fn together(&self, lost: Timestamp, window: Duration) -> usize {
        let before = |at: Timestamp| self.losses.partition_point(|loss| *loss < at);
        let until = |at: Timestamp| self.losses.partition_point(|loss| *loss <= at);
        let first = before(earlier(lost, window));
        let starts = self.losses[first..until(lost)].iter().enumerate();
        let counts = starts.map(|(index, start)| until(later(*start, window)) - (first + index));
        counts.max().unwrap_or_default()
    }

    /// Whether no more agents are made today.
    pub fn is_full(&self, limits: &Limits) -> bool {
        self.made_today >= limits.creations
    }
}

impl Limits {
    /// Why no more agents are made today: reason and message.
    pub fn creations_held(&self, made: usize) -> (&'static str, String) {
        let message = format!(
            "{made} agents were made within a day, and no more are before that is over: raise --creations-per-day if all of them are meant"
        );
        (CREATIONS_HELD, message)
    }
}

/// Whether an admin's word covers a loss: it names a time, and the loss was before it.
pub fn is_confirmed(word: Option<&str>, lost: Timestamp) -> bool {
    let at: Option<Timestamp> = word.and_then(|word| word.parse().ok());
    at.is_some_and(|at| lost <= at)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the documents say, and the flags by default.
    pub(in crate::subscription) const LIMITS: Limits = Limits {
        soon: Limit {
            window: Duration::from_mins(10),
            percent: 20,
        },
        daily: Limit {
            window: DAY,
            percent: 30,
        },
        least: 5,
        creations: 100,
        patience: Duration::from_secs(15),
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn census(agents: usize, losses: &[i64]) -> Census {
        let lost = losses.iter().map(|second| Some(at(*second)));
        let rest = std::iter::repeat_n(None, agents - losses.len());
        Census::of(lost.chain(rest))
    }

    #[test]
    fn few_are_customers_who_leave_and_many_at_once_are_a_mistake() {
        let many = |agents, count: i64, pause: i64| {
            let losses: Vec<i64> = (0..count).map(|index| index * pause).collect();
            let census = census(agents, &losses);
            losses
                .iter()
                .filter(|loss| census.too_many(at(**loss), &LIMITS))
                .count()
        };
        assert_eq!(many(4, 4, 0), 0, "a fleet too small to tell");
        assert_eq!(many(25, 5, 1), 0, "a fifth");
        assert_eq!(many(24, 5, 1), 5, "more than a fifth, and all of them");
        assert_eq!(many(200, 200, 1), 200);
        assert_eq!(many(200, 60, 1_000), 0, "a third in most of a day");
        assert_eq!(many(200, 61, 1_000), 61, "and more");
        assert_eq!(many(200, 61, 24 * 3600), 0, "one a day");
    }

    #[test]
    fn one_that_left_alone_is_not_held_with_others() {
        let mut losses = vec![-3 * 24 * 3600];
        losses.extend(0..50);
        let census = census(100, &losses);
        assert!(!census.too_many(at(losses[0]), &LIMITS));
        assert!(census.too_many(at(0), &LIMITS));
    }

    #[test]
    fn a_word_covers_what_was_lost_before_it_and_nothing_later() {
        let word = at(10).to_string();
        assert!(is_confirmed(Some(&word), at(10)));
        assert!(!is_confirmed(Some(&word), at(11)));
        assert!(!is_confirmed(Some("yes"), at(0)) && !is_confirmed(None, at(0)));
    }

    proptest! {
        #[test]
        fn whatever_is_not_held_is_a_small_part_in_every_window(
            agents in 1_usize..120, seconds in proptest::collection::vec(0_i64..200_000, 0..120)
        ) {
            let losses = &seconds[..seconds.len().min(agents)];
            let census = census(agents, losses);
            let free: Vec<i64> = losses.iter().copied()
                .filter(|loss| !census.too_many(at(*loss), &LIMITS)).collect();
            for limit in [LIMITS.soon, LIMITS.daily] {
                let window = i64::try_from(limit.window.as_secs()).unwrap();
                for start in &free {
                    let together = free.iter().filter(|loss| (*start..=start + window).contains(loss)).count();
                    prop_assert!(together < LIMITS.least || together * 100 <= agents * limit.percent);
                }
            }
        }
    }
}
