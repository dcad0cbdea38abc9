//! What the guard remembers of instances that are no more, and of those that nobody shows it yet.
//!
//! An instance that is there says itself when it was made, when it lost its entitlement and when it was deleted. Of one that is gone nothing is
//! left but the lines here, which the guard's `ConfigMap` keeps over a restart. They are written soon after the object went and not before, and
//! when the operator stops: a crash may lose the last lines, which makes the guard forgetful by a few, and no deletion ever waits for that write
//! (I7).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::Notify;

use super::DAY;
use crate::subscription::entitlement::earlier;

/// More lines of one kind are not kept, the newest before the others: a `ConfigMap` takes a mebibyte.
const LINES: usize = 2_000;

/// Instances that are gone, by the time that a page is about; `namespace/name`.
pub type Gone = BTreeSet<(Timestamp, String)>;

/// What is told of instances that are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Page {
    /// They were deleted, by when that was asked for.
    Deleted,
    /// Their subscription ended them, by when their entitlement was seen to go.
    Ended,
    /// They were made for a subscription, by when that was.
    Made,
}

impl Page {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Deleted, Self::Ended, Self::Made];

    /// Its key in the `ConfigMap`.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Ended => "ended",
            Self::Made => "made",
        }
    }
}

/// What is remembered.
#[derive(Debug, Default)]
pub struct Ledger {
    pages: Mutex<Pages>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Pages {
    /// Whether it was read what an earlier process knew.
    read: bool,
    gone: BTreeMap<Page, Gone>,
    /// Made by this process, and when.
    made: BTreeMap<String, Timestamp>,
}

impl Ledger {
    /// Takes in what an earlier process has written; what is no line is left out.
    pub fn recall<'a>(&self, text: impl Fn(Page) -> Option<&'a String>) {
        let mut pages = self.pages();
        for page in Page::ALL {
            let lines = text(page).into_iter().flat_map(|text| text.lines());
            let lines = lines.filter_map(|line| {
                let (at, who) = line.split_once(' ')?;
                Some((at.parse().ok()?, who.to_owned()))
            });
            pages.gone.entry(page).or_default().extend(lines);
        }
        pages.read = true;
    }

    /// Whether it was read what an earlier process knew.
    pub fn is_read(&self) -> bool {
        self.pages().read
    }

    /// Notes an instance that is gone.
    pub fn note(&self, page: Page, who: String, at: Timestamp) {
        let mut pages = self.pages();
        pages.gone.entry(page).or_default().insert((at, who));
        self.news.notify_one();
    }

    /// Those of a page since then; none while it was not read what an earlier process knew. The others are forgotten.
    pub fn since(&self, page: Page, since: Timestamp) -> Option<Gone> {
        let mut pages = self.pages();
        if !pages.read {
            return None;
        }
        let gone = pages.gone.entry(page).or_default();
        *gone = gone.split_off(&(since, String::new()));
        while gone.len() > LINES {
            gone.pop_first();
        }
        Some(gone.clone())
    }

    /// Whether one more may be made today, beside those of today that exist; if so it counts from here on, whatever the stores show.
    pub fn may_make(
        &self,
        who: &str,
        today: &BTreeSet<String>,
        limit: usize,
        now: Timestamp,
    ) -> bool {
        let mut pages = self.pages();
        pages.forget_made(now);
        let others = pages.made.keys().chain(today).collect::<BTreeSet<_>>();
        let count = others.into_iter().filter(|other| *other != who).count();
        if count >= limit {
            return false;
        }
        pages.made.insert(who.to_owned(), now);
        true
    }

    /// Those that this process has made today, and those that were made today and are gone.
    pub fn made_today(&self, now: Timestamp) -> BTreeSet<String> {
        let gone = self.since(Page::Made, earlier(now, DAY));
        let gone = gone.into_iter().flatten().map(|(_, who)| who);
        let mut pages = self.pages();
        pages.forget_made(now);
        gone.chain(pages.made.keys().cloned()).collect()
    }

    /// Says that there may be something new to tell people.
    pub fn has_news(&self) {
        self.news.notify_one();
    }

    /// Waits until there may be.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn forget_made(&mut self, now: Timestamp) {
        let yesterday = earlier(now, DAY);
        self.made.retain(|_, at| *at > yesterday);
    }
}

/// The lines in which it is written down.
pub fn text(gone: &Gone) -> String {
    let lines = gone.iter().map(|(at, who)| format!("{at} {who}"));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn what_is_gone_is_known_to_the_next_process_and_forgotten_in_time() {
        for page in Page::ALL {
            let ledger = Ledger::default();
            ledger.note(page, "agents/alice".into(), at(5));
            assert_eq!(ledger.since(page, at(0)), None, "it was not read yet");
            let former = format!(
                "{} agents/bob\nnot a line\n{} agents/carol\n",
                at(3),
                at(-9)
            );
            ledger.recall(|asked| (asked == page).then_some(&former));
            let gone = ledger.since(page, at(0)).unwrap();
            let told: Vec<_> = gone.iter().map(|(_, who)| who.as_str()).collect();
            assert_eq!(told, ["agents/bob", "agents/alice"]);
            let others = Page::ALL.into_iter().filter(|other| *other != page);
            for other in others {
                assert_eq!(ledger.since(other, at(-99)), Some(Gone::new()));
            }

            let (next, written) = (Ledger::default(), text(&gone));
            next.recall(|asked| (asked == page).then_some(&written));
            assert_eq!(next.since(page, at(0)), Some(gone));
            assert_eq!(next.since(page, at(6)), Some(Gone::new()));
        }
    }

    #[test]
    fn what_was_made_today_and_is_gone_counts_after_a_restart_too() {
        let ledger = Ledger::default();
        let former = format!("{} agents/a\n{} agents/b", at(0), at(-24 * 3600));
        ledger.recall(|page| (page == Page::Made).then_some(&former));
        let today = ledger.made_today(at(9));
        assert_eq!(today, ["agents/a".to_owned()].into());
        assert!(!ledger.may_make("agents/c", &today, 1, at(9)));
        assert!(ledger.made_today(at(24 * 3600 + 1)).is_empty());
    }

    #[test]
    fn what_was_just_made_counts_before_any_store_shows_it() {
        let ledger = Ledger::default();
        let seen = BTreeSet::from(["agents/a".to_owned()]);
        assert!(ledger.may_make("agents/b", &seen, 2, at(0)));
        assert!(
            ledger.may_make("agents/b", &seen, 2, at(1)),
            "the same again"
        );
        assert!(!ledger.may_make("agents/c", &seen, 2, at(2)));
        assert!(ledger.may_make("agents/c", &BTreeSet::new(), 2, at(2)));
        assert!(ledger.may_make("agents/d", &seen, 2, at(48 * 3600)));
    }
}
