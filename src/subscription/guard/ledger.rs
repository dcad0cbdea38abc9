//! What the guard remembers of instances that are no more, and of those that nobody shows it yet.
//!
//! An instance that is there says itself when it was made and when it was deleted. Of one that is gone nothing is left but the line here, which
//! the guard's `ConfigMap` keeps over a restart. It is written soon after the object went and not before: a crash may lose the last lines, which
//! makes the guard forgetful by a few, and no deletion ever waits for that write (I7).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::Notify;

use super::DAY;
use crate::subscription::entitlement::earlier;

/// More lines are not kept, the newest before the others: a `ConfigMap` takes a mebibyte.
const LINES: usize = 5_000;

/// Instances that are gone, by when their deletion was asked for; `namespace/name`.
pub type Gone = BTreeSet<(Timestamp, String)>;

/// What is remembered.
#[derive(Debug, Default)]
pub struct Ledger {
    pages: Mutex<Pages>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Pages {
    /// None until it was read what an earlier process knew.
    gone: Option<Gone>,
    /// Went before that.
    unread: Gone,
    /// Made by this process, and when.
    made: BTreeMap<String, Timestamp>,
}

impl Ledger {
    /// Takes in what an earlier process has written; what is no line is left out.
    pub fn recall(&self, text: &str) {
        let mut pages = self.pages();
        let lines = text.lines().filter_map(|line| {
            let (at, who) = line.split_once(' ')?;
            Some((at.parse().ok()?, who.to_owned()))
        });
        let mut gone: Gone = lines.collect();
        gone.append(&mut pages.unread);
        pages.gone = Some(gone);
    }

    /// Notes that an instance is gone whose deletion was asked for then.
    pub fn went(&self, who: String, at: Timestamp) {
        let mut pages = self.pages();
        let pages = &mut *pages;
        pages
            .gone
            .as_mut()
            .unwrap_or(&mut pages.unread)
            .insert((at, who));
        self.news.notify_one();
    }

    /// Those whose deletion was asked for since then; none while it was not read what an earlier process knew. The others are forgotten.
    pub fn gone_since(&self, since: Timestamp) -> Option<Gone> {
        let mut pages = self.pages();
        let gone = pages.gone.as_mut()?;
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

    /// Those that this process has made today.
    pub fn made_today(&self, now: Timestamp) -> BTreeSet<String> {
        let mut pages = self.pages();
        pages.forget_made(now);
        pages.made.keys().cloned().collect()
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
        let ledger = Ledger::default();
        ledger.went("agents/alice".into(), at(5));
        assert_eq!(ledger.gone_since(at(0)), None, "it was not read yet");
        ledger.recall(&format!(
            "{} agents/bob\nnot a line\n{} agents/carol\n",
            at(3),
            at(-9)
        ));
        let gone = ledger.gone_since(at(0)).unwrap();
        let told: Vec<_> = gone.iter().map(|(_, who)| who.as_str()).collect();
        assert_eq!(told, ["agents/bob", "agents/alice"]);

        let next = Ledger::default();
        next.recall(&text(&gone));
        assert_eq!(next.gone_since(at(0)), Some(gone));
        assert_eq!(next.gone_since(at(6)), Some(Gone::new()));
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
