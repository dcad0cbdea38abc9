//! A fuse on spending: however a bug or a mistake multiplies creates, a project buys no more than
//! so many servers an hour.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_hours(1);
/// Creates per hour that are allowed whatever the size of the fleet.
const MIN_CREATES: usize = 20;
/// Creates per hour and instance.
const PER_INSTANCE: usize = 2;

/// Counts the creates of the last hour of one project.
#[derive(Debug, Default)]
pub struct CreateFuse(Mutex<VecDeque<Instant>>);

/// A create that the fuse let through; it counts, unless it is told to have been refused.
#[must_use = "tell `refused` if nothing was bought"]
#[derive(Debug)]
pub struct Spend<'a> {
    fuse: &'a CreateFuse,
    at: Instant,
}

impl CreateFuse {
    /// Allows a create while fewer than max(20, 2 × `instances`) happened within an hour.
    ///
    /// # Errors
    /// The time at which the next one is allowed.
    pub fn try_create(&self, instances: usize, now: Instant) -> Result<Spend<'_>, Instant> {
        let mut creates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while creates
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= WINDOW)
        {
            creates.pop_front();
        }
        let allowed = MIN_CREATES.max(instances.saturating_mul(PER_INSTANCE));
        if let Some(oldest) = creates
            .len()
            .checked_sub(allowed)
            .and_then(|over| creates.get(over))
        {
            return Err(*oldest + WINDOW);
        }
        creates.push_back(now);
        Ok(Spend {
            fuse: self,
            at: now,
        })
    }
}

impl Spend<'_> {
    /// Takes the create back: it was refused, so nothing was bought.
    pub fn refused(self) {
        let mut creates = self.fuse.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = creates.iter().rposition(|at| *at == self.at) {
            creates.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuse_blows_at_twenty_an_hour_and_lifts_when_the_first_is_an_hour_old() {
        let (fuse, start) = (CreateFuse::default(), Instant::now());
        for second in 0..20 {
            assert!(
                fuse.try_create(3, start + Duration::from_secs(second))
                    .is_ok()
            );
        }
        let later = start + Duration::from_mins(1);
        assert_eq!(fuse.try_create(3, later).err(), Some(start + WINDOW));
        assert!(
            fuse.try_create(11, later).is_ok(),
            "a larger fleet may buy more"
        );
        assert_eq!(
            fuse.try_create(3, later).err(),
            Some(start + Duration::from_secs(1) + WINDOW)
        );
        assert!(
            fuse.try_create(3, start + Duration::from_secs(1) + WINDOW)
                .is_ok()
        );
    }

    #[test]
    fn refused_create_does_not_count() {
        let (fuse, start) = (CreateFuse::default(), Instant::now());
        for _ in 0..100 {
            fuse.try_create(0, start).unwrap().refused();
        }
        assert!(fuse.try_create(0, start).is_ok());
    }
}
