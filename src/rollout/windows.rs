//! When a class lets its instances change: pure, by the clock of the time zone that each window names.

use k8s_openapi::jiff::{Timestamp, Zoned, civil::Weekday, tz::TimeZone};

use crate::api::{Day, RolloutWindow};

/// Whether one of these windows is open; no windows, no bounds.
///
/// # Errors
/// The name of a time zone that this machine does not know, if no window is open.
pub fn is_open(windows: &[RolloutWindow], now: Timestamp) -> Result<bool, String> {
    let mut outcome = Ok(windows.is_empty());
    for window in windows {
        match TimeZone::get(&window.time_zone) {
            Ok(zone) if holds(window, &now.to_zoned(zone.clone())) => return Ok(true),
            Ok(_) => {}
            Err(_) => outcome = Err(window.time_zone.clone()),
        }
    }
    outcome
}

/// Whether a window that began today, or on a day before, is still open.
fn holds(window: &RolloutWindow, now: &Zoned) -> bool {
    let length = window.duration.get();
    let days = i64::try_from(length.as_secs() / 86_400).unwrap_or(i64::MAX) + 1;
    (0..=days.min(8)).any(|ago| {
        let opened = begin(window, now, ago).map(|begin| now.timestamp().duration_since(begin));
        opened.is_some_and(|since| {
            std::time::Duration::try_from(since).is_ok_and(|since| since < length)
        })
    })
}

/// When a window began so many days ago, if it did.
fn begin(window: &RolloutWindow, now: &Zoned, days_ago: i64) -> Option<Timestamp> {
    let span = k8s_openapi::jiff::Span::new().days(days_ago);
    let date = now.date().checked_sub(span).ok()?;
    if !window.days.is_empty()
        && !window
            .days
            .iter()
            .any(|day| weekday(*day) == date.weekday())
    {
        return None;
    }
    let (hour, minute) = window.start.split_once(':')?;
    let begin = date.at(hour.parse().ok()?, minute.parse().ok()?, 0, 0);
    // A time that a change of the clocks leaves out is taken as the one that comes after it.
    begin
        .to_zoned(now.time_zone().clone())
        .ok()
        .map(|begin| begin.timestamp())
}

const fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(json: serde_json::Value) -> RolloutWindow {
        serde_json::from_value(json).unwrap()
    }

    fn open_at(windows: &[RolloutWindow], moments: &[&str]) -> Vec<bool> {
        let opened = |moment: &&str| is_open(windows, moment.parse().unwrap()).unwrap();
        moments.iter().map(opened).collect()
    }

    #[test]
    fn without_a_window_any_time_will_do() {
        assert_eq!(open_at(&[], &["2026-03-01T12:00:00Z"]), [true]);
    }

    #[test]
    fn a_window_is_open_from_its_start_for_its_duration_on_its_days() {
        // The 2nd of March 2026 is a Monday.
        let nights =
            window(serde_json::json!({"days": ["Mon", "Fri"], "start": "23:00", "duration": "2h"}));
        let moments = [
            ("2026-03-02T22:59:59Z", false),
            ("2026-03-02T23:00:00Z", true),
            ("2026-03-03T00:59:59Z", true),
            ("2026-03-03T01:00:00Z", false),
            ("2026-03-03T23:30:00Z", false),
            ("2026-03-07T00:30:00Z", true),
        ];
        let asked = moments.map(|(moment, _)| moment);
        assert_eq!(open_at(&[nights], &asked), moments.map(|(_, open)| open));
    }

    #[test]
    fn the_clock_is_that_of_the_time_zone_and_one_of_several_windows_is_enough() {
        let berlin = window(
            serde_json::json!({"start": "02:30", "duration": "30m", "timeZone": "Europe/Berlin"}),
        );
        let noon = window(serde_json::json!({"start": "12:00", "duration": "1m"}));
        let moments = [
            ("2026-01-10T01:30:00Z", true),
            ("2026-07-10T00:30:00Z", true),
            ("2026-07-10T01:30:00Z", false),
            ("2026-07-10T12:00:30Z", true),
            // The night on which 02:30 is left out in Berlin.
            ("2026-03-29T01:35:00Z", true),
        ];
        let asked = moments.map(|(moment, _)| moment);
        assert_eq!(
            open_at(&[berlin, noon], &asked),
            moments.map(|(_, open)| open)
        );
    }

    #[test]
    fn a_window_may_last_for_days() {
        let weekend =
            window(serde_json::json!({"days": ["Sat"], "start": "00:00", "duration": "48h"}));
        let moments = [
            "2026-03-06T23:59:59Z",
            "2026-03-08T23:00:00Z",
            "2026-03-09T00:00:00Z",
        ];
        assert_eq!(open_at(&[weekend], &moments), [false, true, false]);
    }

    #[test]
    fn an_unknown_time_zone_is_told_unless_another_window_is_open() {
        let nowhere = window(
            serde_json::json!({"start": "02:30", "duration": "30m", "timeZone": "Moon/Base"}),
        );
        let always = window(serde_json::json!({"start": "00:00", "duration": "24h"}));
        let now: Timestamp = "2026-03-02T12:00:00Z".parse().unwrap();
        assert_eq!(
            is_open(std::slice::from_ref(&nowhere), now),
            Err("Moon/Base".into())
        );
        assert_eq!(is_open(&[nowhere, always], now), Ok(true));
    }
}
