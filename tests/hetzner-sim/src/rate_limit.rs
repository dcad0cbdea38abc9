//! The request allowance of a project: a token bucket that refills by the second.
//!
//! Capacity is the hourly limit; a limit of 3600 gains one request each second. `RateLimit-Reset`
//! tells when the bucket is full, not when the next request may come (Hetzner's documentation).

use jiff::{SignedDuration, Timestamp};

/// One project's bucket.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    limit: u32,
    left: f64,
    at: Timestamp,
}

/// What the three headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    pub(crate) limit: u32,
    pub(crate) remaining: u32,
    /// Seconds since the epoch at which the bucket is full.
    pub(crate) reset: i64,
}

impl Bucket {
    pub(crate) fn full(limit: u32, now: Timestamp) -> Self {
        Self {
            limit,
            left: f64::from(limit),
            at: now,
        }
    }

    fn per_second(&self) -> f64 {
        f64::from(self.limit) / 3600.0
    }

    fn refill(&mut self, now: Timestamp) {
        let passed = now.duration_since(self.at).as_secs_f64().max(0.0);
        self.left = (self.left + passed * self.per_second()).min(f64::from(self.limit));
        self.at = now;
    }

    /// Takes one request out of the bucket; false when there is none.
    pub(crate) fn take(&mut self, now: Timestamp) -> bool {
        self.refill(now);
        let granted = self.left >= 1.0;
        if granted {
            self.left -= 1.0;
        }
        granted
    }

    /// Sets what is left, as if a neighbour had used up the rest.
    pub(crate) fn drain_to(&mut self, left: u32, now: Timestamp) {
        self.left = f64::from(left.min(self.limit));
        self.at = now;
    }

    /// Changes the hourly limit; what is left stays, but for what no longer fits.
    pub(crate) fn set_limit(&mut self, limit: u32, now: Timestamp) {
        self.refill(now);
        let was_full = self.left >= f64::from(self.limit);
        self.limit = limit;
        self.left = if was_full {
            f64::from(limit)
        } else {
            self.left.min(f64::from(limit))
        };
    }

    pub(crate) fn allowance(&mut self, now: Timestamp) -> Allowance {
        self.refill(now);
        let missing = f64::from(self.limit) - self.left;
        let seconds = if missing > 0.0 {
            missing / self.per_second()
        } else {
            0.0
        };
        let full = now.saturating_add(SignedDuration::from_secs_f64(seconds.ceil()));
        Allowance {
            limit: self.limit,
            remaining: whole(self.left),
            reset: full.map_or(i64::MAX, Timestamp::as_second),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the bucket holds between 0 and a u32"
)]
fn whole(left: f64) -> u32 {
    left.floor() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn a_full_bucket_allows_the_whole_limit_at_once_and_then_refuses() {
        let mut bucket = Bucket::full(3600, at(0));
        assert!((0..3600).all(|_| bucket.take(at(0))));
        assert!(!bucket.take(at(0)));
    }

    #[test]
    fn a_limit_of_3600_gains_one_request_a_second() {
        let mut bucket = Bucket::full(3600, at(0));
        bucket.drain_to(0, at(0));
        assert!(!bucket.take(at(0)));
        assert_eq!(bucket.allowance(at(7)).remaining, 7);
        assert!((0..7).all(|_| bucket.take(at(7))));
        assert!(!bucket.take(at(7)));
    }

    #[test]
    fn reset_tells_when_the_bucket_is_full() {
        let mut bucket = Bucket::full(3600, at(0));
        bucket.drain_to(3500, at(0));
        assert_eq!(bucket.allowance(at(0)).reset, at(100).as_second());
        bucket.drain_to(0, at(0));
        assert_eq!(bucket.allowance(at(0)).reset, at(3600).as_second());
    }

    #[test]
    fn it_never_holds_more_than_its_limit() {
        let mut bucket = Bucket::full(100, at(0));
        assert_eq!(bucket.allowance(at(90_000)).remaining, 100);
        assert_eq!(bucket.allowance(at(90_000)).reset, at(90_000).as_second());
    }

    #[test]
    fn a_lower_limit_cuts_what_is_left_and_slows_the_refill() {
        let mut bucket = Bucket::full(3600, at(0));
        bucket.set_limit(360, at(0));
        assert_eq!(bucket.allowance(at(0)).remaining, 360);
        bucket.drain_to(0, at(0));
        assert_eq!(bucket.allowance(at(10)).remaining, 1);
    }
}
