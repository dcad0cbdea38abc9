//! What to try next for an agent whose probes fail, as a pure function of what was tried.
//!
//! The rungs are restart, reboot and recreate, in this order, each with a budget over a day and with pauses that grow while tries in a row do not
//! help. A way to the agent that failed is no reason to touch the agent: then nothing but the server is started again, late, and it is replaced
//! only after that was in vain. Every rung that is still allowed is tried before any is called used up.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::api::{
    Recovery,
    RecoveryAction::{self, Reboot, Recreate, Restart},
    RecoveryRecord,
};

/// How many tries are remembered; the budgets of a class are no more together.
pub const REMEMBERED: usize = 10;
/// Over which time a budget is spent.
const DAY: Duration = Duration::from_hours(24);
/// Where a pause stops to grow: an agent that may be brought back is not served by longer ones, and the budgets bound the tries.
const LONGEST: Duration = Duration::from_hours(1);
/// How much of what the probes said is remembered, in bytes.
const REASON: usize = 300;

/// How an agent does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ailment {
    /// Its probes are bad.
    Failed,
    /// The way to it fails, since then.
    Unknown(Timestamp),
    /// Its server is gone, and seen to be.
    Gone,
}

/// What is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How often each rung may be used in a day.
    pub budgets: Recovery,
    /// Whether a new server is as good as this one, and may help.
    pub replaceable: bool,
    /// How long an agent that was started needs to be told from one that fails.
    pub settle: Duration,
    /// How long a server may be out of reach before that is believed to be its own fault, and how long a boot may take.
    pub unreachable: Duration,
}

/// What was tried, the newest last.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// All tries that are remembered.
    pub tries: &'a [RecoveryRecord],
    /// When the agent last served: tries after that are in a row.
    pub served_until: Timestamp,
}

/// What is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The class has no rung for this.
    NoRung,
    /// What was tried last needs time until then, or the server gets it before the first try.
    Wait(Timestamp),
    /// This.
    Try(RecoveryAction),
    /// All budgets are spent; the first is filled again then.
    UsedUp(Timestamp),
}

impl History<'_> {
    /// The tries since the agent last served.
    pub fn in_row(&self) -> impl DoubleEndedIterator<Item = &RecoveryRecord> {
        let since = self.served_until;
        self.tries.iter().filter(move |done| done.at.0 >= since)
    }

    /// How often an action was tried since the agent last served.
    pub fn times_in_row(&self, action: RecoveryAction) -> u32 {
        let same = self.in_row().filter(|done| done.action == action);
        u32::try_from(same.count()).unwrap_or(u32::MAX)
    }

    /// How often an action was tried in the last day.
    pub fn times_in_day(&self, action: RecoveryAction, now: Timestamp) -> usize {
        self.in_day(now)
            .filter(|done| done.action == action)
            .count()
    }

    fn in_day(&self, now: Timestamp) -> impl Iterator<Item = &RecoveryRecord> {
        let tries = self.tries.iter();
        tries.filter(move |done| after(done.at.0, DAY) > now)
    }

    /// Whether a try of this action is on record for what was there before: within a day, and after `since`.
    pub fn was_decided(
        &self,
        action: RecoveryAction,
        since: Option<Timestamp>,
        now: Timestamp,
    ) -> bool {
        self.in_day(now)
            .any(|done| done.action == action && since.is_none_or(|since| since < done.at.0))
    }

    /// Until when the last try has its time.
    pub fn rests_until(&self, rules: &Rules) -> Option<Timestamp> {
        let last = self.tries.last()?;
        let times = self.times_in_row(last.action).max(1);
        let grown = rules.settle.saturating_mul(1 << (times - 1).min(16));
        let pause = grown.min(LONGEST.max(rules.settle));
        let boot = match last.action {
            Restart => Duration::ZERO,
            Reboot | Recreate => rules.unreachable,
        };
        Some(after(last.at.0, pause + boot))
    }

    /// When one more try of an action is allowed; `None` when it is now.
    fn refills(&self, action: RecoveryAction, rules: &Rules, now: Timestamp) -> Option<Timestamp> {
        let spent = |budget: usize, ours: &dyn Fn(&RecoveryRecord) -> bool| {
            let times: Vec<_> = self.in_day(now).filter(|done| ours(done)).collect();
            let over = times.len().checked_sub(budget)?;
            times.get(over).map(|done| after(done.at.0, DAY))
        };
        let own = spent(rules.budget(action), &|done| done.action == action);
        own.max(spent(REMEMBERED, &|_| true))
    }
}

impl Rules {
    /// How often an action may be tried in a day.
    pub fn budget(&self, action: RecoveryAction) -> usize {
        let Recovery {
            restarts,
            reboots,
            recreations,
        } = self.budgets;
        let budget = match action {
            Restart => restarts,
            Reboot => reboots,
            Recreate => recreations,
        };
        usize::try_from(budget).unwrap_or_default()
    }

    /// The rungs for an ailment, the first to be tried first.
    fn rungs(&self, ailment: Ailment, history: &History<'_>) -> Vec<RecoveryAction> {
        let in_vain = history.times_in_row(Reboot) > 0;
        let fits = |action: &RecoveryAction| match (action, ailment) {
            (Restart, _) => ailment == Ailment::Failed,
            (Reboot, _) => ailment != Ailment::Gone,
            (Recreate, Ailment::Unknown(_)) => self.replaceable && in_vain,
            (Recreate, Ailment::Failed) => self.replaceable,
            (Recreate, Ailment::Gone) => true,
        };
        let all = [Restart, Reboot, Recreate].into_iter();
        all.filter(|action| self.budget(*action) > 0 && fits(action))
            .collect()
    }

    /// Whether an action that was written down still fits.
    pub fn allow(
        &self,
        action: RecoveryAction,
        ailment: Ailment,
        history: &History<'_>,
        now: Timestamp,
    ) -> bool {
        let rests = history.rests_until(self).is_some_and(|until| until > now);
        rests && self.rungs(ailment, history).contains(&action)
    }
}

/// What to try next.
pub fn next(ailment: Ailment, history: &History<'_>, rules: &Rules, now: Timestamp) -> Next {
    let rungs = rules.rungs(ailment, history);
    if rungs.is_empty() {
        return Next::NoRung;
    }
    let patience = match ailment {
        Ailment::Unknown(since) => Some(after(since, rules.unreachable)),
        Ailment::Failed => None,
        // There is nothing left that could come back.
        Ailment::Gone => return first_of(&rungs, history, rules, now),
    };
    match history.rests_until(rules).max(patience) {
        Some(until) if until > now => Next::Wait(until),
        _ => first_of(&rungs, history, rules, now),
    }
}

fn first_of(
    rungs: &[RecoveryAction],
    history: &History<'_>,
    rules: &Rules,
    now: Timestamp,
) -> Next {
    let refills = rungs
        .iter()
        .map(|action| (history.refills(*action, rules, now), *action));
    // The first that is allowed now, else the one that is allowed soonest.
    match refills.min_by_key(|(at, _)| *at) {
        Some((None, action)) => Next::Try(action),
        Some((Some(at), _)) => Next::UsedUp(at),
        None => Next::NoRung,
    }
}

/// What is remembered once a try was added.
pub fn with(tries: &[RecoveryRecord], new: &RecoveryRecord) -> Vec<RecoveryRecord> {
    let kept = (tries.len() + 1).saturating_sub(REMEMBERED);
    let former = tries.iter().skip(kept);
    former.chain([new]).cloned().collect()
}

/// As much of what the probes said as is remembered.
pub fn reason(words: &str) -> String {
    words[..words.floor_char_boundary(REASON)].to_owned()
}

fn after(at: Timestamp, pause: Duration) -> Timestamp {
    at.checked_add(pause).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
