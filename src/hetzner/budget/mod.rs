//! The request allowance of one project, and the lanes in front of it.
//!
//! Nobody waits in here: a caller asks, gets a [`Permit`] or is told when to come back, and his
//! place is kept meanwhile. A newcomer does not overtake those who wait in his lane, and a lane does
//! not take what those who wait in higher lanes need, so deletes go on while creates queue.

mod bucket;
mod fuse;
mod queue;

pub use fuse::{CreateFuse, Spend};

use bucket::{Bucket, Need, Taken};
use queue::Queue;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a request is for; earlier ones come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Deletes and rollbacks; they alone may use the reserve.
    Delete,
    /// The sweep of servers that nobody claims.
    Zombie,
    /// Servers of new instances.
    Create,
    /// Servers in the place of vanished ones.
    ReplaceVanished,
    /// Servers of a rollout.
    Rollout,
    /// The shared lists of servers; at most a quarter of the limit per hour.
    Inventory,
    /// Everything else.
    Other,
}

impl Lane {
    /// All lanes, the most urgent first.
    pub const ALL: [Self; 7] = [
        Self::Delete,
        Self::Zombie,
        Self::Create,
        Self::ReplaceVanished,
        Self::Rollout,
        Self::Inventory,
        Self::Other,
    ];
}

/// When to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RetryAt(pub Instant);

/// What the `RateLimit-*` headers of an answer tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests per hour; also the size of the bucket.
    pub limit: u32,
    /// Requests left now.
    pub remaining: u32,
}

impl RateLimit {
    /// Reads the headers; `RateLimit-Reset` is of no use, it says when the bucket is full again.
    pub(super) fn from_headers(headers: &reqwest::header::HeaderMap) -> Option<Self> {
        let number = |name| headers.get(name)?.to_str().ok()?.trim().parse().ok();
        let limit = number("ratelimit-limit").filter(|limit| *limit > 0)?;
        Some(Self {
            limit,
            remaining: number("ratelimit-remaining")?,
        })
    }
}

/// What a budget looks like, for status and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetView {
    /// Requests per hour, once known.
    pub limit: Option<u32>,
    /// Requests left by our own, careful count, once known.
    pub left: Option<u32>,
    /// End of the pause after a 429.
    pub paused_until: Option<Instant>,
    /// Callers who wait, by lane.
    pub waiting: Vec<(Lane, usize)>,
}

/// The allowance of one project; clones share it.
#[derive(Clone)]
pub struct Budget(Arc<Mutex<State>>);

struct State {
    bucket: Bucket,
    queues: [Queue; Lane::ALL.len()],
    lists: ListAllowance,
}

/// Leave to send one request.
///
/// Dropped without an answer, its token counts as spent.
#[must_use = "a permit is a request's token"]
pub struct Permit {
    budget: Budget,
    lane: Lane,
    taken: Option<Taken>,
}

/// A place not asked for again is kept this long after the told time, twice the told pause if that
/// is longer, but not longer than the latter.
const KEEP_AT_LEAST: Duration = Duration::from_secs(10);
const KEEP_AT_MOST: Duration = Duration::from_mins(1);

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

impl Budget {
    /// A budget that knows nothing yet: until the first header at most three requests are in flight.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            bucket: Bucket::new(),
            queues: std::array::from_fn(|_| Queue::default()),
            lists: ListAllowance::default(),
        })))
    }

    /// Asks for leave to send one request; `who` names the caller's place in `lane`.
    ///
    /// # Errors
    /// When to ask again; the place is kept until a little later.
    pub fn try_acquire(&self, lane: Lane, who: &str, now: Instant) -> Result<Permit, RetryAt> {
        let mut state = self.lock();
        let taken = state.try_take(lane, who, now).map_err(RetryAt)?;
        Ok(Permit {
            budget: self.clone(),
            lane,
            taken: Some(taken),
        })
    }

    /// When a list of `pages` fits into the lists' share of the budget.
    pub fn list_ready_at(&self, pages: u32, now: Instant) -> Instant {
        let mut state = self.lock();
        let limit = state.bucket.limit();
        state.lists.ready_at(limit, pages, now)
    }

    /// How far apart lists of `pages` must begin so that they never use more than their share.
    pub fn list_spacing(&self, pages: u32) -> Duration {
        let limit = self.lock().bucket.limit();
        limit.map_or(Duration::ZERO, |limit| {
            ListAllowance::flow(limit, f64::from(pages))
        })
    }

    /// The state at `now`.
    pub fn view(&self, now: Instant) -> BudgetView {
        let mut state = self.lock();
        let mut waiting = Vec::with_capacity(Lane::ALL.len());
        for (lane, queue) in Lane::ALL.into_iter().zip(&mut state.queues) {
            queue.expire(now);
            waiting.push((lane, queue.len()));
        }
        BudgetView {
            limit: state.bucket.limit(),
            left: state.bucket.left(now),
            paused_until: state.bucket.paused_until(now),
            waiting,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn try_take(&mut self, lane: Lane, who: &str, now: Instant) -> Result<Taken, Instant> {
        if lane == Lane::Inventory {
            // Refused by its own share, a list holds up nobody, so it takes no place.
            let ready = self.lists.ready_at(self.bucket.limit(), 1, now);
            if ready > now {
                return Err(ready);
            }
        }
        let need = Need {
            ahead: self.ahead_of(lane, who, now),
            reserve: lane == Lane::Delete,
        };
        let queue = &mut self.queues[lane as usize];
        match self.bucket.take(&need, now) {
            Ok(taken) => {
                queue.leave(who);
                if lane == Lane::Inventory {
                    self.lists.spend();
                }
                Ok(taken)
            }
            Err(at) => {
                let pause = at.saturating_duration_since(now);
                queue.keep(who, at + (2 * pause).clamp(KEEP_AT_LEAST, KEEP_AT_MOST));
                Err(at)
            }
        }
    }

    /// Who waits in higher lanes, and before `who` in this one.
    fn ahead_of(&mut self, lane: Lane, who: &str, now: Instant) -> usize {
        let (higher, rest) = self.queues.split_at_mut(lane as usize);
        let mut ahead = 0;
        for queue in higher {
            queue.expire(now);
            ahead += queue.len();
        }
        rest.first_mut().map_or(ahead, |own| {
            own.expire(now);
            ahead + own.ahead_of(who)
        })
    }
}

impl Permit {
    /// What the request is for.
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Tells the budget of an answer, its headers and whether it was a 429.
    pub(super) fn answered(mut self, rate: Option<RateLimit>, throttled: bool, now: Instant) {
        if let Some(taken) = self.taken.take() {
            self.budget
                .lock()
                .bucket
                .answered(&taken, rate, throttled, now);
        }
    }

    /// Gives the token back: the request never left.
    pub(super) fn not_sent(mut self, now: Instant) {
        if let Some(taken) = self.taken.take() {
            self.budget.lock().bucket.not_sent(&taken, now);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.budget.lock().bucket.close(&taken);
        }
    }
}

/// The lists' own bucket inside the bucket: a burst of 1/16 of the limit and a flow of 3/16 an
/// hour, so that no hour sees more than a quarter.
#[derive(Default)]
struct ListAllowance {
    used: f64,
    as_of: Option<Instant>,
}

impl ListAllowance {
    fn ready_at(&mut self, limit: Option<u32>, pages: u32, now: Instant) -> Instant {
        let Some(limit) = limit else { return now };
        let since = self
            .as_of
            .map_or(Duration::ZERO, |as_of| now.saturating_duration_since(as_of));
        self.as_of = self.as_of.max(Some(now));
        self.used = (self.used - since.as_secs_f64() * Self::rate(limit)).max(0.0);
        let burst = (f64::from(limit) / 16.0).max(1.0);
        let missing = self.used + f64::from(pages).min(burst) - burst;
        if missing > 0.0 {
            now + Self::flow(limit, missing)
        } else {
            now
        }
    }

    fn spend(&mut self) {
        self.used += 1.0;
    }

    /// Requests per second.
    fn rate(limit: u32) -> f64 {
        f64::from(limit) * 3.0 / 16.0 / 3600.0
    }

    /// How long `requests` take at the flow of the share.
    fn flow(limit: u32, requests: f64) -> Duration {
        let slack = Duration::from_millis(1);
        Duration::try_from_secs_f64(requests / Self::rate(limit)).unwrap_or(slack) + slack
    }
}

#[cfg(test)]
mod tests;
