//! What answers whatever becomes of one class: addresses that an admin names, and the agents of other classes over SSH.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::net::TcpStream;

/// Between two looks at an address.
const PERIOD: Duration = Duration::from_secs(5);
/// How long an address may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// An address that did not answer for so long is silent.
const FRESH: Duration = Duration::from_secs(15);

/// What the canary says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// There is nobody to ask.
    Nobody,
    /// It should answer, and does not.
    Silent,
    /// It answers, without a break for so long.
    Answers(Duration),
}

/// All that is known of who answers.
#[derive(Debug, Default)]
pub struct Canaries(Mutex<HashMap<Source, Streak>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    Address(String),
    Class(String),
}

/// Answers that followed one another.
#[derive(Clone, Copy, Debug)]
struct Streak {
    since: Instant,
    last: Instant,
    /// How soon the next one is due.
    fresh: Duration,
}

impl Streak {
    fn is_broken(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) > self.fresh
    }
}

impl Canaries {
    /// Listens to these addresses for ever, each `HOST:PORT`; so long as nothing is known, they answer.
    pub fn watch(self: &Arc<Self>, addresses: Vec<String>) {
        for address in addresses {
            let source = Source::Address(address.clone());
            self.heard(source.clone(), FRESH, Instant::now());
            let canaries = Arc::clone(self);
            tokio::spawn(async move {
                loop {
                    if answers(&address).await {
                        canaries.heard(source.clone(), FRESH, Instant::now());
                    } else {
                        tracing::debug!(address, "the canary is silent");
                    }
                    tokio::time::sleep(PERIOD).await;
                }
            });
        }
    }

    /// A server of a class answered over SSH, and is asked again within `fresh`.
    pub fn class_answered(&self, class: &str, fresh: Duration) {
        self.heard(Source::Class(class.to_owned()), fresh, Instant::now());
    }

    fn heard(&self, source: Source, fresh: Duration, now: Instant) {
        let mut streaks = self.streaks();
        let streak = streaks.entry(source).or_insert(Streak {
            since: now,
            last: now,
            fresh,
        });
        if streak.is_broken(now) {
            streak.since = now;
        }
        (streak.last, streak.fresh) = (now, fresh);
    }

    /// What answers beside a class, of the addresses and of the other classes that have agents who serve.
    pub fn beside(&self, class: &str, serving: &BTreeSet<String>, now: Instant) -> Canary {
        let streaks = self.streaks();
        let counts = |source: &Source| match source {
            Source::Address(_) => true,
            Source::Class(name) => name != class && serving.contains(name),
        };
        let asked: Vec<&Streak> = streaks
            .iter()
            .filter(|(source, _)| counts(source))
            .map(|(_, streak)| streak)
            .collect();
        let unbroken = asked.iter().filter(|streak| !streak.is_broken(now));
        match unbroken.map(|streak| streak.since).min() {
            Some(since) => Canary::Answers(now.saturating_duration_since(since)),
            None if asked.is_empty() => Canary::Nobody,
            None => Canary::Silent,
        }
    }

    fn streaks(&self) -> MutexGuard<'_, HashMap<Source, Streak>> {
        // Nothing panics while it is held, so a poisoned one still guards a whole value.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether somebody takes a connection there.
pub(super) async fn answers(address: impl tokio::net::ToSocketAddrs) -> bool {
    let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await;
    matches!(connected, Ok(Ok(_)))
}

/// Whether a text is `HOST:PORT`.
///
/// # Errors
/// What is wrong with it.
pub fn address(text: &str) -> Result<String, String> {
    let literal = text.parse::<SocketAddr>().is_ok();
    let named = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if literal || named {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is no address; write one such as 192.0.2.7:443 or status.example.com:443"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Duration = Duration::from_mins(2);

    /// Sources with the minutes at which they were heard, and what they say at a minute.
    fn beside(heard: &[(Source, &[u64])], minute: u64) -> Canary {
        let (canaries, start) = (Canaries::default(), Instant::now());
        let after = |minute| start + Duration::from_mins(minute);
        for (source, minutes) in heard {
            for minute in *minutes {
                canaries.heard(source.clone(), FRESH, after(*minute));
            }
        }
        let serving = ["own", "other"].map(str::to_owned).into();
        canaries.beside("own", &serving, after(minute))
    }

    fn class(name: &str) -> Source {
        Source::Class(name.into())
    }

    #[test]
    fn what_answers_beside_a_class() {
        let minutes = |minutes| Canary::Answers(Duration::from_mins(minutes));
        let address = Source::Address("192.0.2.7:443".into());
        for (heard, minute, expected) in [
            (vec![], 5, Canary::Nobody),
            (vec![(class("own"), &[1, 2, 3, 4][..])], 5, Canary::Nobody),
            (vec![(class("empty"), &[1, 2, 3, 4])], 5, Canary::Nobody),
            (vec![(class("other"), &[1, 2, 3, 4])], 5, minutes(4)),
            (vec![(class("other"), &[1, 2])], 5, Canary::Silent),
            (vec![(class("other"), &[1, 2, 8, 9])], 10, minutes(2)),
            (vec![(address.clone(), &[1, 2])], 5, Canary::Silent),
            (
                vec![(address, &[1]), (class("other"), &[4, 5])],
                5,
                minutes(1),
            ),
        ] {
            assert_eq!(beside(&heard, minute), expected, "{heard:?} at {minute}");
        }
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        assert!(address("192.0.2.7:443").is_ok() && address("[2001:db8::1]:22").is_ok());
        assert!(address("192.0.2.7").is_err() && address("host:https").is_err());
    }
}
