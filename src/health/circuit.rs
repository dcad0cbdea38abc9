//! The sum of many probes, as a pure state machine.
//!
//! A bad answer and no answer are told apart: the first is the agent's, the second may be the network's, and only the first is a reason to do
//! something about the agent. Probes may come faster than their interval while the agent starts; they do not count faster.

use std::time::{Duration, Instant};

use crate::api::HealthState;

/// What one probe came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The agent serves.
    Good,
    /// It does not: how it says so.
    Bad(String),
    /// The way to it failed: how.
    Silent(String),
    /// What answers there is not its server: how that is known.
    Stranger(String),
}

/// When bad replies count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How many in a row make a difference.
    pub threshold: u32,
    /// How far apart two that count must be, at the least.
    pub interval: Duration,
}

/// All that is known of an agent's health.
#[derive(Clone, Debug, Default)]
pub struct Circuit {
    state: Option<HealthState>,
    words: String,
    stranger: bool,
    bad: Count,
    silent: Count,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    number: u32,
    last: Option<Instant>,
}

impl Count {
    /// Counts one, unless the last that counted is nearer than most of an interval: probes are not made to the microsecond.
    fn up(&mut self, rules: Rules, now: Instant) {
        let near = rules.interval * 9 / 10;
        if self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= near)
        {
            *self = Self {
                number: self.number + 1,
                last: Some(now),
            };
        }
    }
}

impl Circuit {
    /// Begins with what was known before.
    pub fn presuming(state: HealthState) -> Self {
        Self {
            state: Some(state),
            ..Self::default()
        }
    }

    /// The sum of all replies; none before the first good one or enough bad ones, also after a silence.
    pub fn state(&self) -> Option<HealthState> {
        self.state
    }

    /// What the last reply that was not good said.
    pub fn words(&self) -> &str {
        &self.words
    }

    /// Whether somebody else answered in its server's place, and it has not since.
    pub fn meets_stranger(&self) -> bool {
        self.stranger
    }

    /// Takes a reply; whether the sum is another one now.
    pub fn take(&mut self, reply: Reply, rules: Rules, now: Instant) -> bool {
        let (before, stranger) = (self.state, self.stranger);
        match reply {
            Reply::Good => *self = Self::presuming(HealthState::Healthy),
            Reply::Bad(words) => {
                self.words = words;
                self.stranger = false;
                self.silent = Count::default();
                self.bad.up(rules, now);
                self.state = match self.state {
                    Some(HealthState::Failed) => before,
                    _ if self.bad.number >= rules.threshold => Some(HealthState::Failed),
                    // Nobody says that it serves, and too few that it does not.
                    None | Some(HealthState::Unknown) => None,
                    Some(_) => Some(HealthState::Degraded),
                };
            }
            Reply::Silent(words) => {
                self.words = words;
                self.silent.up(rules, now);
                if self.silent.number >= rules.threshold {
                    self.state = Some(HealthState::Unknown);
                }
            }
            // No number of further ones would make it any surer.
            Reply::Stranger(words) => {
                (self.words, self.stranger) = (words, true);
                self.state = Some(HealthState::Unknown);
            }
        }
        (self.state, self.stranger) != (before, stranger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HealthState::{Degraded, Failed, Healthy, Unknown};

    const RULES: Rules = Rules {
        threshold: 3,
        interval: Duration::from_mins(1),
    };

    /// Replies an interval apart: `+` good, `-` bad, `?` silent, `!` a stranger's; answers the state after each.
    fn after(replies: &str) -> Vec<Option<HealthState>> {
        let (mut circuit, start) = (Circuit::default(), Instant::now());
        let states = replies.chars().zip(0..).map(|(reply, nth)| {
            let reply = match reply {
                '+' => Reply::Good,
                '-' => Reply::Bad("bad".into()),
                '!' => Reply::Stranger("who".into()),
                _ => Reply::Silent("silent".into()),
            };
            circuit.take(reply, RULES, start + RULES.interval * nth);
            circuit.state()
        });
        states.collect()
    }

    #[test]
    fn replies_in_a_row_make_the_sum() {
        let (h, d, f, u) = (Some(Healthy), Some(Degraded), Some(Failed), Some(Unknown));
        for (replies, states) in [
            ("+", vec![h]),
            ("--+", vec![None, None, h]),
            ("---", vec![None, None, f]),
            ("+--+", vec![h, d, d, h]),
            ("+----+", vec![h, d, d, f, f, h]),
            ("+??+", vec![h, h, h, h]),
            ("+???-", vec![h, h, h, u, None]),
            ("+???--+", vec![h, h, h, u, None, None, h]),
            ("+-?-?-", vec![h, d, d, d, d, f]),
            ("???+", vec![None, None, u, h]),
            ("---???", vec![None, None, f, f, f, u]),
            ("+!+", vec![h, u, h]),
            ("!-", vec![u, None]),
        ] {
            assert_eq!(after(replies), states, "{replies}");
        }
    }

    #[test]
    fn a_stranger_is_news_at_once_and_until_the_server_itself_answers() {
        let (mut circuit, start) = (Circuit::presuming(Unknown), Instant::now());
        let mut takes = |reply, second| {
            let now = start + Duration::from_secs(second);
            let news = circuit.take(reply, RULES, now);
            (news, circuit.meets_stranger())
        };
        let who = || Reply::Stranger("another key".into());
        assert_eq!(takes(who(), 0), (true, true));
        assert_eq!(takes(who(), 1), (false, true));
        assert_eq!(takes(Reply::Silent("refused".into()), 2), (false, true));
        assert_eq!(takes(Reply::Bad("fails".into()), 3), (true, false));
        assert_eq!(takes(who(), 4), (true, true));
        assert_eq!(takes(Reply::Good, 5), (true, false));
    }

    /// The sum as the docs tell it, found out from the end: how long it has been bad, or silent, since something else was said.
    fn told_of(replies: &[char]) -> Option<HealthState> {
        let since_good = replies.rsplit(|reply| *reply == '+').next().unwrap();
        let was_good = since_good.len() < replies.len();
        let mut state = was_good.then_some(Healthy);
        let (mut bad, mut silent) = (0, 0);
        for reply in since_good {
            (bad, silent) = if *reply == '-' {
                (bad + 1, 0)
            } else {
                (bad, silent + 1)
            };
            state = match (reply, state) {
                ('-', Some(Failed)) => Some(Failed),
                ('-', _) if bad >= 3 => Some(Failed),
                ('-', Some(Healthy | Degraded)) => Some(Degraded),
                ('-', _) => None,
                ('?', _) if silent >= 3 => Some(Unknown),
                (_, state) => state,
            };
        }
        state
    }

    #[test]
    fn every_sequence_of_replies_makes_the_sum_that_it_should() {
        for length in 1..=8 {
            for nth in 0..3_usize.pow(length) {
                let digit = |place| ['+', '-', '?'][nth / 3_usize.pow(place) % 3];
                let replies: Vec<char> = (0..length).map(digit).collect();
                let text: String = replies.iter().collect();
                let ended = after(&text).pop().flatten();
                assert_eq!(ended, told_of(&replies), "{text}");
                if ended == Some(Healthy) {
                    assert!(replies.contains(&'+'), "{text}: nobody said so");
                }
            }
        }
    }

    #[test]
    fn probes_in_quick_succession_count_once_for_each_interval() {
        let (mut circuit, start) = (Circuit::default(), Instant::now());
        for second in 0..108 {
            circuit.take(
                Reply::Bad("starts".into()),
                RULES,
                start + Duration::from_secs(second),
            );
        }
        assert_eq!(circuit.state(), None);
        assert!(circuit.take(
            Reply::Bad("starts".into()),
            RULES,
            start + Duration::from_secs(108)
        ));
        assert_eq!((circuit.state(), circuit.words()), (Some(Failed), "starts"));
    }
}
