//! What people read of the guard: what is held, since when, how many of how many, which, and how to release or to undo it.
//!
//! Pure, and without a clock: what is held says the same each time, so that in calm nothing is written (I4).

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    CREATIONS_HELD,
    ledger::{self, Gone, Page},
};

/// So many are named.
const NAMED: usize = 20;
const SUMMARY: &str = "summary";
/// The key of the causes that people were told of in an event.
const TOLD: &str = "told";

/// What is known of agents that are gone.
pub type Remembered = BTreeMap<Page, Gone>;

/// Why agents are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Too many lost their entitlement at once.
    Unentitled,
    /// Too many were deleted at once.
    Deleted,
    /// Too many were made in a day: these are not.
    Made,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unentitled, Self::Deleted, Self::Made];

    /// Its name in the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unentitled => "Unentitled",
            Self::Deleted => "Deleted",
            Self::Made => "Made",
        }
    }

    /// The key in the `ConfigMap` that tells of it.
    pub fn key(self) -> &'static str {
        match self {
            Self::Unentitled => "terminations",
            Self::Deleted => "deletions",
            Self::Made => "creations",
        }
    }

    /// Reason of the event that tells of it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unentitled => "TerminationsHeld",
            Self::Deleted => "DeletionsHeld",
            Self::Made => CREATIONS_HELD,
        }
    }

    /// What is held, and why, after how many.
    fn sentence(self) -> &'static str {
        match self {
            Self::Unentitled => {
                "agents are held, as so many lost their entitlement at about the same time"
            }
            Self::Deleted => "agents are held, as so many were deleted at about the same time",
            Self::Made => "Subscriptions have no agent, as so many were made within a day",
        }
    }

    /// What is done with them, and what a person can do.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Unentitled => {
                "They are suspended, and none of them is deleted, however long ago its end was.\n\
                 Undo: write the state back in the billing system, or make the Subscriptions again. Each agent comes back with its server.\n\
                 Confirm, as an admin, for each that is meant (on the AgentInstance where the Subscription is gone):\n\
                 kubectl annotate agsub NAME --namespace NAMESPACE agentfleet.dev/confirm-termination=$(date -u +%FT%TZ)"
            }
            Self::Made => {
                "None of them is made before the day is over; no agent that exists is touched.\n\
                 Undo: take back in the billing system what was not meant.\n\
                 Confirm: where all of them are meant, raise --creations-per-day."
            }
            Self::Deleted => {
                "They are left as they are, and run on if they ran; their servers do not go.\n\
                 Undo, for each (Kubernetes takes no deletion back, so its object goes and a new one takes the server up):\n\
                 kubectl patch agent NAME --namespace NAMESPACE --type merge --patch '{\"spec\":{\"deletionPolicy\":\"Retain\"}}'\n\
                 then make the AgentInstance again, if its Subscription does not, and as an admin:\n\
                 kubectl annotate agent NAME --namespace NAMESPACE agentfleet.dev/adopt=SERVER\n\
                 Confirm, as an admin, for each that is meant:\n\
                 kubectl annotate agent NAME --namespace NAMESPACE agentfleet.dev/confirm-termination=$(date -u +%FT%TZ)"
            }
        }
    }
}

/// Agents, or Subscriptions without one, that are held for one cause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Which, by when they were lost: `namespace/name`, with the server where one is needed to undo it.
    pub agents: Vec<(Timestamp, String)>,
    /// Of how many.
    pub of: usize,
}

/// All that is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds(pub BTreeMap<Cause, Held>);

impl Holds {
    /// The data of the `ConfigMap`.
    pub fn data(&self, gone: &Remembered) -> BTreeMap<String, String> {
        let held = self.0.iter().filter(|(_, held)| !held.agents.is_empty());
        let mut data: BTreeMap<String, String> = held
            .map(|(cause, held)| (cause.key().to_owned(), held.told(*cause)))
            .collect();
        let sentences: Vec<&str> = data
            .values()
            .filter_map(|told| told.lines().next())
            .collect();
        let summary = if sentences.is_empty() {
            "Nothing is held.".to_owned()
        } else {
            sentences.join("\n")
        };
        data.insert(SUMMARY.to_owned(), summary);
        for (page, gone) in gone.iter().filter(|(_, gone)| !gone.is_empty()) {
            data.insert(page.key().to_owned(), ledger::text(gone));
        }
        data
    }
}

impl Held {
    fn told(&self, cause: Cause) -> String {
        let mut agents = self.agents.clone();
        agents.sort_unstable();
        let since = agents.first().map(|(at, _)| at.to_string());
        let mut lines = vec![
            format!(
                "{} of {} {}; the first at {}.",
                agents.len(),
                self.of,
                cause.sentence(),
                since.unwrap_or_default()
            ),
            cause.advice().to_owned(),
            "Which:".to_owned(),
        ];
        let named = agents.iter().take(NAMED);
        lines.extend(named.map(|(at, who)| format!("{at} {who}")));
        if let Some(more) = agents.len().checked_sub(NAMED).filter(|more| *more > 0) {
            lines.push(format!("and {more} more"));
        }
        lines.join("\n")
    }
}

/// The causes that stand there, and that people were not told of by what was `written` before; notes those that they were.
pub fn untold(
    written: Option<&BTreeMap<String, String>>,
    next: &mut BTreeMap<String, String>,
) -> Vec<Cause> {
    let told = written.and_then(|written| written.get(TOLD));
    let told = |cause: &Cause| told.is_some_and(|told| told.lines().any(|one| one == cause.key()));
    let standing = Cause::ALL.into_iter();
    let standing = standing.filter(|cause| next.contains_key(cause.key()));
    let (told, untold): (Vec<_>, Vec<_>) = standing.partition(told);
    note_told(next, &told);
    untold
}

/// Notes that people were told of these causes.
pub fn note_told(data: &mut BTreeMap<String, String>, causes: &[Cause]) {
    let before = data.get(TOLD).into_iter().flat_map(|told| told.lines());
    let keys: Vec<&str> = before
        .chain(causes.iter().map(|cause| cause.key()))
        .collect();
    if !keys.is_empty() {
        data.insert(TOLD.to_owned(), keys.join("\n"));
    }
}

/// Whether what shall stand there is worth a write: that some of what is gone is forgotten, and no more, is not.
pub fn is_news(
    written: Option<&BTreeMap<String, String>>,
    next: &BTreeMap<String, String>,
) -> bool {
    let Some(written) = written else {
        // A fleet of which nothing was ever held or deleted has none.
        return next.len() > 1;
    };
    let told = |data: &BTreeMap<String, String>| {
        let mut data = data.clone();
        let gone = Page::ALL.map(|page| data.remove(page.key()).unwrap_or_default());
        (data, gone)
    };
    let ((before, gone), (after, left)) = (told(written), told(next));
    let is_new = |(gone, left): (&String, &String)| {
        let only_forgotten = !left.is_empty() && left.lines().all(|line| gone.contains(line));
        gone != left && !only_forgotten
    };
    before != after || gone.iter().zip(&left).any(is_new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn held(count: i64) -> Holds {
        let agents = (0..count).map(|n| (at(n), format!("agents/a{n}")));
        let held = Held {
            agents: agents.rev().collect(),
            of: 200,
        };
        Holds(BTreeMap::from([(Cause::Deleted, held)]))
    }

    fn remembered(page: Page, seconds: std::ops::Range<i64>) -> Remembered {
        let gone = seconds.map(|n| (at(n), format!("agents/a{n}")));
        Remembered::from([(page, gone.collect::<Gone>())])
    }

    #[test]
    fn what_is_held_is_told_with_since_when_how_many_which_and_what_to_do() {
        let data = held(50).data(&Remembered::new());
        let told = &data["deletions"];
        assert!(told.starts_with("50 of 200 agents are held"), "{told}");
        assert!(told.contains(&format!("the first at {}.", at(0))), "{told}");
        for words in ["Retain", "adopt=", "confirm-termination=", "and 30 more"] {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert_eq!(told.matches("agents/a").count(), NAMED);
        assert!(data["summary"].starts_with("50 of 200"));
        assert!(!data.contains_key("terminations"));
        let calm = held(0).data(&Remembered::new());
        assert_eq!(calm["summary"], "Nothing is held.");
        assert_eq!(calm.len(), 1);
    }

    #[test]
    fn a_hold_is_told_until_it_is_written_that_it_was_and_anew_when_it_comes_again() {
        let mut first = held(9).data(&Remembered::new());
        assert_eq!(untold(None, &mut first), [Cause::Deleted]);
        let mut again = held(8).data(&Remembered::new());
        let left = untold(Some(&first), &mut again);
        assert_eq!(left, [Cause::Deleted], "whoever was to tell it is no more");
        note_told(&mut again, &left);
        let mut next = held(7).data(&Remembered::new());
        assert_eq!(untold(Some(&again), &mut next), []);
        let mut over = held(0).data(&Remembered::new());
        assert_eq!(untold(Some(&next), &mut over), []);
        assert_eq!(over.len(), 1, "{over:?}");
        let mut anew = held(9).data(&Remembered::new());
        assert_eq!(untold(Some(&over), &mut anew), [Cause::Deleted]);
    }

    #[test]
    fn in_calm_nothing_is_written_and_what_is_forgotten_waits_for_the_last() {
        let calm = held(0).data(&Remembered::new());
        assert!(!is_news(None, &calm), "none is made of nothing");
        for page in Page::ALL {
            let lines = |held_now, seconds| held(held_now).data(&remembered(page, seconds));
            let two = lines(0, 0..2);
            assert!(is_news(None, &two));
            assert!(!is_news(Some(&two), &two));
            assert!(!is_news(Some(&two), &lines(0, 1..2)));
            assert!(is_news(Some(&two), &lines(0, 0..3)));
            assert!(is_news(Some(&two), &lines(0, 1..3)));
            assert!(is_news(Some(&two), &calm));
            assert!(is_news(Some(&two), &lines(9, 1..2)));
        }
    }
}
