//! What is remembered of creations that failed, and where and when the next one is tried; pure.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::{api::RollbackRecord, error::Retry, hetzner::Place};

/// How many failed creations are remembered; how many there were is told by the number of the last.
const REMEMBERED: usize = 5;
/// How much of what was seen is remembered, in bytes.
const MESSAGE: usize = 500;
/// Between a creation that failed and the next.
const PAUSE: Retry = Retry::Growing(Duration::from_secs(10), Duration::from_mins(10));

/// What is remembered once a creation has failed. Each is remembered once, by what was decided last.
pub fn with(known: &[RollbackRecord], new: &RollbackRecord) -> Vec<RollbackRecord> {
    let others = |failed: &&RollbackRecord| failed.incarnation != new.incarnation;
    let former: Vec<_> = known.iter().filter(others).collect();
    let over = (former.len() + 1).saturating_sub(REMEMBERED);
    let kept = former.into_iter().skip(over);
    kept.chain([new]).cloned().collect()
}

/// As much of what was seen as is remembered.
pub fn message(words: &str) -> String {
    words[..words.floor_char_boundary(MESSAGE)].to_owned()
}

/// When the attempt after a failed one may begin.
pub fn next_begins(failed: &RollbackRecord) -> Timestamp {
    let times = u32::try_from(failed.attempt).unwrap_or(1);
    let begins = failed.at.0.checked_add(PAUSE.pause(times));
    begins.unwrap_or(Timestamp::MAX)
}

/// The places in the order in which they are tried after a failed creation: those after its own, then from the first.
pub fn places_after(places: &[Place], failed: Option<&RollbackRecord>) -> Vec<Place> {
    let is_its = |place: &Place, failed: &RollbackRecord| {
        (&place.server_type, &place.location) == (&failed.server_type, &failed.location)
    };
    let its = failed.and_then(|failed| places.iter().position(|place| is_its(place, failed)));
    let (before, after) = places.split_at(its.map_or(0, |its| its + 1));
    [after, before].concat()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::*;
    use crate::api::{OnProvisionFailure, RollbackReason};

    fn failed(incarnation: i64, location: &str) -> RollbackRecord {
        RollbackRecord {
            incarnation,
            attempt: incarnation,
            project: "one".into(),
            server_type: "cx23".into(),
            location: location.into(),
            reason: RollbackReason::InstallFailed,
            message: String::new(),
            action: OnProvisionFailure::Retry,
            basis: None,
            at: MicroTime(Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn the_last_five_are_remembered_and_each_once() {
        let mut known = vec![];
        for incarnation in 1..=7 {
            known = with(&known, &failed(incarnation, "nbg1"));
            known = with(&known, &failed(incarnation, "fsn1"));
        }
        let told: Vec<_> = known.iter().map(|failed| failed.incarnation).collect();
        assert_eq!(told, [3, 4, 5, 6, 7]);
        assert!(known.iter().all(|failed| failed.location == "fsn1"));
    }

    #[test]
    fn the_next_place_is_the_one_after_that_which_failed_and_pauses_grow() {
        let place = |location: &str| Place {
            server_type: "cx23".into(),
            location: location.into(),
        };
        let all = ["nbg1", "fsn1", "hel1"].map(place);
        for (after, first) in [
            (None, "nbg1"),
            (Some("nbg1"), "fsn1"),
            (Some("fsn1"), "hel1"),
            (Some("hel1"), "nbg1"),
            (Some("ash"), "nbg1"),
        ] {
            let after = after.map(|location| failed(1, location));
            let order = places_after(&all, after.as_ref());
            assert_eq!((order.len(), order[0].location.as_str()), (3, first));
        }
        let begins = [1, 2, 3, 60].map(|attempt| next_begins(&failed(attempt, "nbg1")).as_second());
        assert_eq!(begins, [10, 20, 40, 600]);
    }
}
