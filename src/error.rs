//! One place that turns an error into a pause and the words of a condition.
//!
//! Steps do not retry. What they report becomes a [`Setback`]: a reason and a message for people, and how long the requeue waits before the
//! same is tried again. Messages say what is wrong, where, and what to do; they never hold a token or a secret.

use std::time::Duration;

use crate::{
    hetzner::{Class, Error as HetznerError},
    kube_ext::{CallError, error_chain},
};

/// Why a step did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setback {
    /// CamelCase reason for a condition.
    pub reason: &'static str,
    /// What is wrong, where, and what to do.
    pub message: String,
    /// Whether only a person can help.
    pub stalled: bool,
    /// When to try again.
    pub retry: Retry,
}

/// When to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// After a pause that doubles with each time in a row, from the first to the second.
    Growing(Duration, Duration),
    /// After exactly this: somebody told when.
    After(Duration),
}

const BRIEF: Retry = Retry::Growing(Duration::from_millis(500), Duration::from_secs(30));
/// For what takes its time.
pub const SLOW: Retry = Retry::Growing(Duration::from_secs(15), Duration::from_mins(10));
/// Nobody needs to be told of a pause up to this.
const A_MOMENT: Duration = Duration::from_secs(5);
/// A view of an object that is out of date is followed by a newer one at once.
const STALE: Retry = Retry::After(Duration::from_millis(200));

impl Setback {
    /// Something that may pass by itself.
    pub fn passing(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            stalled: false,
            retry: BRIEF,
        }
    }

    /// Something that takes its time.
    pub fn slow(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            retry: SLOW,
            ..Self::passing(reason, message)
        }
    }

    /// Something that only a person can mend; it is tried again, slowly, in case he did so elsewhere.
    pub fn lasting(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            stalled: true,
            retry: SLOW,
            ..Self::passing(reason, message)
        }
    }

    /// Something that is possible again after a known time.
    pub fn until(reason: &'static str, message: impl Into<String>, pause: Duration) -> Self {
        Self {
            retry: Retry::After(pause),
            ..Self::passing(reason, message)
        }
    }

    /// This process does not hold the Lease, so it changes nothing (I11).
    pub fn not_leading() -> Self {
        Self::until(
            "NotLeading",
            "this replica does not hold the lease",
            Duration::from_secs(1),
        )
    }

    /// The pause of what is over in a moment: a view that was out of date, a turn that is near.
    pub fn brief(&self) -> Option<Duration> {
        match self.retry {
            Retry::After(pause) if pause <= A_MOMENT => Some(pause),
            _ => None,
        }
    }

    /// How long to wait after this many times in a row.
    pub fn pause(&self, times: u32) -> Duration {
        self.retry.pause(times)
    }
}

impl Retry {
    /// How long to wait after this many times in a row.
    pub fn pause(self, times: u32) -> Duration {
        match self {
            Self::After(pause) => pause,
            Self::Growing(first, most) => first
                .saturating_mul(1 << times.saturating_sub(1).min(16))
                .min(most),
        }
    }
}

impl From<HetznerError> for Setback {
    fn from(error: HetznerError) -> Self {
        let message = error_chain(&error);
        match error.class() {
            Class::Transient | Class::Conflict | Class::Locked => {
                Self::passing("HetznerUnavailable", message)
            }
            Class::Maintenance => Self::slow("HetznerMaintenance", message),
            Class::Throttled => Self::passing("RateLimited", message),
            Class::Credentials => Self::slow("TokenRefused", message),
            Class::NotFound => Self::passing("NotFound", message),
            Class::OutOfStock => Self::passing("OutOfStock", message),
            Class::Quota => Self::slow("QuotaExceeded", message),
            Class::NameTaken => Self::passing("NameTaken", message),
            Class::BlockedUntilPerson => Self::lasting("RefusedByHetzner", message),
        }
    }
}

impl From<CallError> for Setback {
    fn from(error: CallError) -> Self {
        let message = error_chain(&error);
        match error {
            CallError::Stale { .. } => Self {
                retry: STALE,
                ..Self::passing("StaleView", message)
            },
            CallError::Gone { .. } => Self::passing("ObjectGone", message),
            CallError::Invalid { .. } => Self::lasting("RefusedByKubernetes", message),
            CallError::Transient { .. } | CallError::TimedOut { .. } => {
                Self::passing("KubernetesUnavailable", message)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_unless_the_time_is_known() {
        let setback = Setback::passing("X", "");
        assert_eq!(
            [1, 2, 3, 60].map(|times| setback.pause(times).as_millis()),
            [500, 1000, 2000, 30_000]
        );
        assert_eq!(
            Setback::until("X", "", Duration::from_secs(7)).pause(9),
            Duration::from_secs(7)
        );
    }
}
