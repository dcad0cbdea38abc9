//! What a project cannot have just now: places out of stock, and creates beyond its quota.
//!
//! All instances share it, so that a sold-out place costs one request now and then and not one of
//! each instance. When a mark lapses, one caller gets the place to try; the others follow once he
//! has reported success.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_mins(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(15);
/// A place marked this long after its last mark lapsed begins with the first pause again.
const FORGET: Duration = Duration::from_mins(30);
const QUOTA_PAUSE: Duration = Duration::from_mins(10);
/// How long one caller may try a place before another gets it.
const TRIAL: Duration = Duration::from_secs(30);

/// A server type in a location.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Name of the server type.
    pub server_type: String,
    /// Name of the location.
    pub location: String,
}

/// Where the next server may be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// Here.
    Place(&'a Place),
    /// All places are out of stock until then.
    OutOfStock(Instant),
    /// The quota is used up; asked again then.
    OverQuota(Instant),
}

/// The stock of one project.
#[derive(Debug, Default)]
pub struct Stock(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    places: HashMap<Place, Mark>,
    quota: Option<Mark>,
}

#[derive(Debug)]
struct Mark {
    until: Instant,
    strikes: u32,
    trial: bool,
}

impl Mark {
    fn holds(&self, now: Instant) -> bool {
        self.until > now
    }

    /// Lets one caller try; for the others the mark holds meanwhile.
    fn begin_trial(&mut self, now: Instant) {
        self.until = now + TRIAL;
        self.trial = true;
    }
}

impl Stock {
    /// The first of `places` that is not marked. To be called right before the create: a lapsed
    /// mark is handed to one caller at a time. `None` if there are no places.
    pub fn next_place<'a>(&self, places: &'a [Place], now: Instant) -> Option<Next<'a>> {
        let mut state = self.lock();
        let State {
            places: marks,
            quota,
        } = &mut *state;
        if let Some(mark) = quota.as_ref().filter(|mark| mark.holds(now)) {
            return Some(Next::OverQuota(mark.until));
        }
        let held = |place: &Place| {
            marks
                .get(place)
                .filter(|mark| mark.holds(now))
                .map(|mark| mark.until)
        };
        let Some(place) = places.iter().find(|place| held(place).is_none()) else {
            return places.iter().filter_map(held).min().map(Next::OutOfStock);
        };
        if let Some(mark) = marks.get_mut(place) {
            mark.begin_trial(now);
        }
        if let Some(mark) = quota {
            mark.begin_trial(now);
        }
        Some(Next::Place(place))
    }

    /// Notes that `place` was refused as out of stock: avoided for a minute, doubling up to a
    /// quarter of an hour. Refusals of requests sent before the mark count as one.
    pub fn out_of_stock(&self, place: &Place, now: Instant) {
        let mut state = self.lock();
        let strikes = match state.places.get(place) {
            Some(mark) if mark.holds(now) && !mark.trial => return,
            Some(mark) if now.saturating_duration_since(mark.until) < FORGET => mark.strikes + 1,
            _ => 0,
        };
        let pause = FIRST_PAUSE
            .saturating_mul(1 << strikes.min(8))
            .min(LONGEST_PAUSE);
        let mark = Mark {
            until: now + pause,
            strikes,
            trial: false,
        };
        state.places.insert(place.clone(), mark);
    }

    /// Notes that the quota is used up: no creates in the project for ten minutes.
    pub fn over_quota(&self, now: Instant) {
        self.lock().quota = Some(Mark {
            until: now + QUOTA_PAUSE,
            strikes: 0,
            trial: false,
        });
    }

    /// Whether `place` is marked, without a claim to try it.
    pub fn is_marked(&self, place: &Place, now: Instant) -> bool {
        let state = self.lock();
        state.places.get(place).is_some_and(|mark| mark.holds(now))
    }

    /// Notes that a server was created in `place`.
    pub fn created(&self, place: &Place) {
        let mut state = self.lock();
        state.places.remove(place);
        // A server placed before the quota was hit says nothing about it.
        state.quota.take_if(|mark| mark.trial);
    }

    /// Until when the quota pauses creates, for conditions.
    pub fn over_quota_until(&self, now: Instant) -> Option<Instant> {
        let state = self.lock();
        let mark = state.quota.as_ref().filter(|mark| mark.holds(now))?;
        Some(mark.until)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(server_type: &str, location: &str) -> Place {
        Place {
            server_type: server_type.into(),
            location: location.into(),
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn sold_out_place_is_avoided_and_then_tried_by_one_caller() {
        let (stock, start) = (Stock::default(), Instant::now());
        let places = [place("cx23", "nbg1"), place("cx23", "fsn1")];
        stock.out_of_stock(&places[0], start);
        assert_eq!(
            stock.next_place(&places, start),
            Some(Next::Place(&places[1]))
        );
        stock.out_of_stock(&places[1], start + SECOND);
        let later = start + 2 * SECOND;
        assert_eq!(
            stock.next_place(&places, later),
            Some(Next::OutOfStock(start + FIRST_PAUSE))
        );

        let lapsed = start + FIRST_PAUSE;
        assert_eq!(
            stock.next_place(&places, lapsed),
            Some(Next::Place(&places[0]))
        );
        assert_eq!(
            stock.next_place(&places, lapsed),
            Some(Next::OutOfStock(lapsed + SECOND))
        );
        stock.created(&places[0]);
        assert_eq!(
            stock.next_place(&places, lapsed),
            Some(Next::Place(&places[0]))
        );
        assert_eq!(
            stock.next_place(&places, lapsed),
            Some(Next::Place(&places[0]))
        );
    }

    #[test]
    fn pauses_double_up_to_a_quarter_of_an_hour_and_a_burst_counts_once() {
        let (stock, mut now) = (Stock::default(), Instant::now());
        let places = [place("cx23", "nbg1")];
        for minutes in [1, 2, 4, 8, 15, 15] {
            for _ in 0..50 {
                stock.out_of_stock(&places[0], now);
            }
            let until = now + minutes * FIRST_PAUSE;
            assert_eq!(
                stock.next_place(&places, now),
                Some(Next::OutOfStock(until))
            );
            now = until;
            assert_eq!(
                stock.next_place(&places, now),
                Some(Next::Place(&places[0]))
            );
        }
        now += 2 * FORGET;
        stock.out_of_stock(&places[0], now);
        assert_eq!(
            stock.next_place(&places, now),
            Some(Next::OutOfStock(now + FIRST_PAUSE))
        );
    }

    #[test]
    fn quota_pauses_the_project_and_is_tried_by_one_caller() {
        let (stock, start) = (Stock::default(), Instant::now());
        let places = [place("cx23", "nbg1")];
        stock.over_quota(start);
        stock.created(&places[0]);
        let until = start + QUOTA_PAUSE;
        assert_eq!(
            stock.next_place(&places, start),
            Some(Next::OverQuota(until))
        );
        assert_eq!(stock.over_quota_until(start), Some(until));
        assert_eq!(
            stock.next_place(&places, until),
            Some(Next::Place(&places[0]))
        );
        assert_eq!(
            stock.next_place(&places, until),
            Some(Next::OverQuota(until + TRIAL))
        );
        stock.created(&places[0]);
        assert_eq!(
            stock.next_place(&places, until),
            Some(Next::Place(&places[0]))
        );
        assert_eq!(stock.over_quota_until(until), None);
    }
}
