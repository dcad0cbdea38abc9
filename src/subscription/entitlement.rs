//! What a state entitles to, and until when: the one table of states, and what follows from it.
//!
//! A pure function of what the billing system says, of what is remembered and of the time. Three rules hold whatever comes in whatever order: an
//! agent runs only while a line of the table lets it; what was planned to be terminated at a time is not terminated before it; and whatever is
//! forgotten counts from now, so that a loss only ever gives time.

use std::{collections::BTreeMap, time::Duration};

use jiff::{Timestamp, ToSpan as _};

use crate::api::SubscriptionState::{
    self, Active, Canceled, Incomplete, IncompleteExpired, PastDue, Paused, Trialing, Unpaid,
};

/// What the billing system says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The state.
    pub state: SubscriptionState,
    /// The end of what was paid.
    pub paid_until: Option<Timestamp>,
    /// From when on it counts as canceled.
    pub cancel_at: Option<Timestamp>,
    /// How long the agent runs on while past due.
    pub grace: Duration,
    /// How long a suspended agent is kept.
    pub retention: Duration,
    /// The same while paused.
    pub paused_retention: Duration,
    /// When the deletion of the subscription was asked for.
    pub deleted_at: Option<Timestamp>,
}

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// When which state was first seen, since it last was trialing or active.
    pub first_seen: BTreeMap<SubscriptionState, Timestamp>,
    /// Whether the agent was not entitled to run when it was last looked at.
    pub suspended: bool,
    /// The time of termination that was planned.
    pub terminate_at: Option<Timestamp>,
    /// The latest that was, since it last was trialing or active.
    pub kept_until: Option<Timestamp>,
    /// When it was first seen that its entitlement goes.
    pub unentitled_since: Option<Timestamp>,
}

/// What follows. All times are whole seconds, as Kubernetes keeps them, and rounded up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entitlement {
    /// The state that counts.
    pub state: SubscriptionState,
    /// When which state was first seen.
    pub first_seen: BTreeMap<SubscriptionState, Timestamp>,
    /// Whether the agent may run.
    pub entitled: bool,
    /// Whether an agent that does not exist may be created.
    pub creates: bool,
    /// When it will be suspended, if it runs and nothing changes.
    pub suspend_at: Option<Timestamp>,
    /// When it will be terminated, if nothing changes.
    pub terminate_at: Option<Timestamp>,
    /// Before which it is not terminated, whatever is said until it is trialing or active.
    pub kept_until: Option<Timestamp>,
    /// When it was first seen that its entitlement goes, now or later.
    pub unentitled_since: Option<Timestamp>,
}

/// For how long a state lets the agent run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    Yes,
    ForGrace,
    UntilPaidIfRunning,
    No,
}

/// For how long a suspended agent is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    ForGood,
    Retention,
    PausedRetention,
}

/// The table.
const fn effect(state: SubscriptionState) -> (Runs, Kept) {
    match state {
        Incomplete | IncompleteExpired | Unpaid => (Runs::No, Kept::Retention),
        Trialing | Active => (Runs::Yes, Kept::ForGood),
        PastDue => (Runs::ForGrace, Kept::ForGood),
        Paused => (Runs::No, Kept::PausedRetention),
        Canceled => (Runs::UntilPaidIfRunning, Kept::Retention),
    }
}

/// What follows from what is said and remembered.
pub fn decide(terms: &Terms, past: &Past, now: Timestamp) -> Entitlement {
    let state = terms.state_at(now);
    let first_seen = seen(state, past, terms.deleted_at.unwrap_or(now));
    let (runs, kept) = effect(state);
    let until = match runs {
        _ if terms.deleted_at.is_some() => Until::Over,
        Runs::Yes => terms.canceled_at().map_or(Until::Open, Until::Time),
        Runs::ForGrace => terms.grace_ends(&first_seen, terms.canceled_at()),
        Runs::UntilPaidIfRunning if past.suspended => Until::Over,
        Runs::UntilPaidIfRunning => {
            terms.grace_ends(&first_seen, Some(terms.paid(state, &first_seen)))
        }
        Runs::No => Until::Over,
    };
    let entitled = match until {
        Until::Open => true,
        Until::Time(time) => now < time,
        Until::Over => false,
    };
    let terminate_at = terms.terminates(kept, past, &first_seen, now);
    Entitlement {
        state,
        entitled,
        creates: entitled && runs == Runs::Yes,
        suspend_at: match until {
            Until::Time(time) if entitled => Some(time),
            _ => None,
        },
        terminate_at,
        kept_until: terminate_at.max(past.kept()).filter(|_| runs != Runs::Yes),
        unentitled_since: terms.lost(past, &first_seen),
        first_seen,
    }
}

/// Until when an agent may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Open,
    Time(Timestamp),
    Over,
}

/// Trialing and active clear what was seen; what was lost is seen now, or when the subscription was deleted.
fn seen(
    state: SubscriptionState,
    past: &Past,
    now: Timestamp,
) -> BTreeMap<SubscriptionState, Timestamp> {
    if effect(state).0 == Runs::Yes {
        return BTreeMap::new();
    }
    let mut seen = past.first_seen.clone();
    seen.entry(state).or_insert_with(|| whole_second(now));
    seen
}

impl Terms {
    /// The state that counts: one that was to be canceled by now is.
    fn state_at(&self, now: Timestamp) -> SubscriptionState {
        let runs = matches!(self.state, Trialing | Active | PastDue);
        match self.cancel_at {
            Some(at) if runs && whole_second(at) <= now => Canceled,
            _ => self.state,
        }
    }

    /// When a cancellation that is still to come takes the agent down.
    fn canceled_at(&self) -> Option<Timestamp> {
        let at = whole_second(self.cancel_at?);
        Some(
            self.paid_until
                .map_or(at, |paid| at.max(whole_second(paid))),
        )
    }

    /// The end of what was paid, and not before the state was seen.
    fn paid(
        &self,
        state: SubscriptionState,
        first_seen: &BTreeMap<SubscriptionState, Timestamp>,
    ) -> Timestamp {
        let paid = self.paid_until.map(whole_second);
        paid.max(first_seen.get(&state).copied())
            .unwrap_or(Timestamp::MIN)
    }

    /// When the next of what follows comes to pass, or is to be announced so long before.
    pub fn next(
        &self,
        entitlement: &Entitlement,
        lead: Duration,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let times = [entitlement.suspend_at, entitlement.terminate_at];
        let announced = times.into_iter().flatten();
        announced
            .flat_map(|at| [at, earlier(at, lead)])
            .chain(self.cancel_at.map(whole_second))
            .filter(|at| *at > now)
            .min()
    }

    /// The earlier of `end` and of the grace that is running: what follows a payment that failed was not paid, whatever the period says.
    fn grace_ends(
        &self,
        first_seen: &BTreeMap<SubscriptionState, Timestamp>,
        end: Option<Timestamp>,
    ) -> Until {
        let grace = first_seen.get(&PastDue).map(|at| later(*at, self.grace));
        let earliest = grace.into_iter().chain(end).min();
        earliest.map_or(Until::Open, Until::Time)
    }

    /// When the first thing was seen that takes entitlement away; what was told before stays told.
    fn lost(
        &self,
        past: &Past,
        first_seen: &BTreeMap<SubscriptionState, Timestamp>,
    ) -> Option<Timestamp> {
        let times = first_seen.values().copied().chain(self.deleted_at);
        let first = times.min().map(whole_second)?;
        Some(past.unentitled_since.unwrap_or(first))
    }

    /// The later of paid and first seen times, plus retention; never earlier than was ever planned, and newly planned never earlier than a
    /// whole retention from now.
    fn terminates(
        &self,
        kept: Kept,
        past: &Past,
        first_seen: &BTreeMap<SubscriptionState, Timestamp>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let retention = match (kept, self.deleted_at) {
            (Kept::ForGood, None) => return None,
            (Kept::ForGood | Kept::Retention, _) => self.retention,
            (Kept::PausedRetention, _) => self.paused_retention,
        };
        let times = first_seen.values().copied();
        let times = times.chain(self.paid_until).chain(self.deleted_at);
        let times = times.max().map(whole_second);
        let planned = past.terminate_at.map(whole_second);
        let floor = planned.unwrap_or_else(|| later(whole_second(now), retention));
        let due = times.map(|from| later(from, retention));
        due.max(Some(floor)).max(past.kept())
    }
}

impl Past {
    /// Before which it is not terminated.
    fn kept(&self) -> Option<Timestamp> {
        self.terminate_at.max(self.kept_until).map(whole_second)
    }
}

impl Entitlement {
    /// Whether the agent's time is over.
    pub fn terminates(&self, now: Timestamp) -> bool {
        !self.entitled && self.terminate_at.is_some_and(|at| at <= now)
    }
}

/// A time plus a duration, as late as can be told.
pub fn later(at: Timestamp, duration: Duration) -> Timestamp {
    at.checked_add(duration).unwrap_or(Timestamp::MAX)
}

/// A time less a duration.
pub fn earlier(at: Timestamp, duration: Duration) -> Timestamp {
    at.checked_sub(duration).unwrap_or(Timestamp::MIN)
}

/// The next whole second, if it is none: anything finer would be cut off, and so be earlier, when it is read back.
pub fn whole_second(at: Timestamp) -> Timestamp {
    let whole = Timestamp::from_second(at.as_second()).unwrap_or(at);
    if whole < at {
        whole.checked_add(1.second()).unwrap_or(whole)
    } else {
        whole
    }
}

#[cfg(test)]
mod tests;
