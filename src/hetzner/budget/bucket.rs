//! Our picture of the project's token bucket at Hetzner.
//!
//! Invariant: the estimate is never above what the server would grant. It falls with each request
//! we send, rises by the refill rate, and gives way to any lower count in a header, from which the
//! requests still in flight are taken off, since the server may not have seen them.

use super::RateLimit;
use std::time::{Duration, Instant};

/// Requests in flight while the limit is not known.
const UNKNOWN_IN_FLIGHT: usize = 3;
/// Pauses while the limit is not known: the first, and for each place in the queue.
const UNKNOWN_PAUSE: Duration = Duration::from_millis(500);
const UNKNOWN_SPREAD: Duration = Duration::from_millis(5);
const UNKNOWN_LONGEST: Duration = Duration::from_secs(5);
/// Refills to wait for after a 429; it doubles with each further one, up to the longest.
const THROTTLE_REFILLS: f64 = 2.0;
const MAX_THROTTLE_DOUBLINGS: u32 = 3;
/// Assumed while the limit is not known, per second.
const UNKNOWN_RATE: f64 = 1.0;
/// Added to computed times, so that a caller who comes back then finds his token.
const SLACK: Duration = Duration::from_millis(1);
/// Longest pause told to a caller.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// One token bucket.
pub(super) struct Bucket {
    limit: Option<u32>,
    tokens: f64,
    as_of: Option<Instant>,
    in_flight: usize,
    paused_until: Option<Instant>,
    throttle: Option<Throttle>,
}

/// A run of 429s.
struct Throttle {
    since: Instant,
    count: u32,
    /// The one request that finds out whether it is over is under way.
    probing: bool,
}

/// What a request needs besides one token.
pub(super) struct Need {
    /// Waiters who come first.
    pub(super) ahead: usize,
    /// Whether the reserve may be used.
    pub(super) reserve: bool,
}

/// A token taken from the bucket.
pub(super) struct Taken {
    at: Instant,
    probe: bool,
}

impl Bucket {
    pub(super) fn new() -> Self {
        Self {
            limit: None,
            tokens: 0.0,
            as_of: None,
            in_flight: 0,
            paused_until: None,
            throttle: None,
        }
    }

    /// Requests per hour, once told by a header.
    pub(super) fn limit(&self) -> Option<u32> {
        self.limit
    }

    /// Whole tokens left, once known.
    pub(super) fn left(&mut self, now: Instant) -> Option<u32> {
        self.refill(now);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and a u32 limit"
        )]
        self.limit.map(|_| self.tokens.max(0.0) as u32)
    }

    /// Until when a 429 pauses everything.
    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| *until > now)
    }

    /// Takes a token.
    ///
    /// # Errors
    /// When to come back.
    pub(super) fn take(&mut self, need: &Need, now: Instant) -> Result<Taken, Instant> {
        self.refill(now);
        if let Some(until) = self.paused_until(now) {
            return Err(until + self.refills(count(need.ahead)));
        }
        if self
            .throttle
            .as_ref()
            .is_some_and(|throttle| throttle.probing)
        {
            return Err(now + self.refills(count(need.ahead) + 1.0));
        }
        self.has_token(need, now)?;
        if self.limit.is_some() {
            self.tokens -= 1.0;
        }
        self.in_flight += 1;
        let probe = self.throttle.as_mut().is_some_and(|throttle| {
            throttle.probing = true;
            true
        });
        Ok(Taken { at: now, probe })
    }

    fn has_token(&self, need: &Need, now: Instant) -> Result<(), Instant> {
        let Some(limit) = self.limit else {
            if self.in_flight + need.ahead < UNKNOWN_IN_FLIGHT {
                return Ok(());
            }
            let place = u32::try_from(need.ahead).unwrap_or(u32::MAX);
            let spread = UNKNOWN_SPREAD.saturating_mul(place);
            return Err(now + (UNKNOWN_PAUSE + spread).min(UNKNOWN_LONGEST));
        };
        let reserve = if need.reserve { 0.0 } else { reserve(limit) };
        let missing = reserve + count(need.ahead) + 1.0 - self.tokens;
        if missing <= 0.0 {
            Ok(())
        } else {
            Err(now + self.refills(missing))
        }
    }

    /// Notes an answer.
    pub(super) fn answered(
        &mut self,
        taken: &Taken,
        rate: Option<RateLimit>,
        throttled: bool,
        now: Instant,
    ) {
        self.close(taken);
        self.refill(now);
        if let Some(rate) = rate {
            self.believe(rate);
        }
        if throttled {
            self.throttled(taken, now);
        } else if self
            .throttle
            .as_ref()
            .is_some_and(|throttle| taken.at > throttle.since)
        {
            self.throttle = None;
        }
    }

    /// Gives back a token whose request never left.
    pub(super) fn not_sent(&mut self, taken: &Taken, now: Instant) {
        self.close(taken);
        self.refill(now);
        self.tokens += 1.0;
        self.clamp();
    }

    /// Ends a request that got no answer: its token counts as spent.
    pub(super) fn close(&mut self, taken: &Taken) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if taken.probe
            && let Some(throttle) = &mut self.throttle
        {
            throttle.probing = false;
        }
    }

    fn believe(&mut self, rate: RateLimit) {
        let told = f64::from(rate.remaining) - count(self.in_flight);
        self.tokens = if self.limit.is_none() {
            told
        } else {
            self.tokens.min(told)
        };
        self.limit = Some(rate.limit);
        self.clamp();
    }

    /// A 429: the bucket is empty. Those sent before the last 429 was seen add nothing to it.
    fn throttled(&mut self, taken: &Taken, now: Instant) {
        let count = match &self.throttle {
            Some(throttle) if taken.at <= throttle.since => return,
            Some(throttle) => throttle.count + 1,
            None => 0,
        };
        self.tokens = self.tokens.min(0.0);
        let doublings = count.min(MAX_THROTTLE_DOUBLINGS);
        let pause = self.refills(THROTTLE_REFILLS * f64::from(1 << doublings));
        self.paused_until = Some(now + pause);
        self.throttle = Some(Throttle {
            since: now,
            count,
            probing: false,
        });
    }

    fn refill(&mut self, now: Instant) {
        let since = self
            .as_of
            .map_or(Duration::ZERO, |as_of| now.saturating_duration_since(as_of));
        self.as_of = self.as_of.max(Some(now));
        if self.limit.is_some() {
            self.tokens += since.as_secs_f64() * self.rate();
            self.clamp();
        }
    }

    fn clamp(&mut self) {
        if let Some(limit) = self.limit {
            // Those in flight will still be taken from a bucket that may be full by then.
            self.tokens = self.tokens.min(f64::from(limit) - count(self.in_flight));
        }
    }

    /// Tokens per second.
    fn rate(&self) -> f64 {
        self.limit
            .map_or(UNKNOWN_RATE, |limit| f64::from(limit) / 3600.0)
    }

    /// How long `tokens` take to flow in.
    fn refills(&self, tokens: f64) -> Duration {
        let pause = Duration::try_from_secs_f64(tokens.max(0.0) / self.rate());
        pause.unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE) + SLACK
    }
}

/// Tokens that only deletes may use: 2 % of the limit, at least 5, at most half of a tiny limit.
fn reserve(limit: u32) -> f64 {
    let limit = f64::from(limit);
    (limit * 0.02).max(5.0).min(limit / 2.0)
}

fn count(waiters: usize) -> f64 {
    u32::try_from(waiters).map_or(f64::from(u32::MAX), f64::from)
}
