//! The places that `spec.maxServers` leaves.

use std::sync::{Mutex, PoisonError};

/// How many servers are being asked for: what is under way is in no list yet, and two of them must not both get the last place.
#[derive(Debug, Default)]
pub struct Room(Mutex<usize>);

/// A place that is taken; it goes when the server is among those that are there, or is none.
#[derive(Debug)]
pub struct Taken<'a>(&'a Room);

impl Room {
    /// Takes a place, unless those that are `there` and those under way leave none.
    pub fn take(&self, max: Option<usize>, there: impl FnOnce() -> usize) -> Option<Taken<'_>> {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if max.is_some_and(|max| there() + *under_way >= max) {
            return None;
        }
        *under_way += 1;
        Some(Taken(self))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut under_way = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *under_way = under_way.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_takes_a_place_until_it_is_there_or_is_refused() {
        let room = Room::default();
        let first = room.take(Some(3), || 1);
        let second = room.take(Some(3), || 1);
        assert!(first.is_some() && second.is_some());
        assert!(room.take(Some(3), || 1).is_none());
        assert!(room.take(None, || 1).is_some(), "there is no limit");
        drop(first);
        assert!(room.take(Some(3), || 2).is_none(), "it became a server");
        assert!(room.take(Some(3), || 1).is_some(), "it was refused");
    }
}
