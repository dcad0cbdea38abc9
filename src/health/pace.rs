//! How fast servers are rebooted and replaced in the whole fleet.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// One turn after another, with a pause between them.
#[derive(Debug)]
pub struct Pace {
    pause: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// So many turns in a minute, and one at the least.
    pub fn per_minute(turns: u32) -> Self {
        Self {
            pause: Duration::from_mins(1) / turns.max(1),
            next: Mutex::default(),
        }
    }

    /// Takes the turn that is now.
    ///
    /// # Errors
    /// When the next one is.
    pub fn take(&self, now: Instant) -> Result<(), Instant> {
        // Nothing panics while it is held.
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        match *next {
            Some(next) if next > now => Err(next),
            _ => {
                *next = Some(now + self.pause);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_keep_their_distance() {
        let (pace, start) = (Pace::per_minute(6), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pace.take(start), Ok(()));
        assert_eq!(pace.take(after(9)), Err(after(10)));
        assert_eq!(pace.take(after(30)), Ok(()));
        assert_eq!(pace.take(after(30)), Err(after(40)));
    }
}
