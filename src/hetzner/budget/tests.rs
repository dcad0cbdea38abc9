//! The budget against a model of Hetzner's bucket, on a clock of the test's own.

use super::*;
use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Hetzner's side: a token bucket.
struct Server {
    limit: u32,
    tokens: f64,
    as_of: Duration,
    refused: usize,
}

impl Server {
    fn refill(&mut self, at: Duration) {
        let since = at.abs_diff(self.as_of).as_secs_f64();
        self.as_of = at;
        let limit = f64::from(self.limit);
        self.tokens = (self.tokens + since * limit / 3600.0).min(limit);
    }

    /// Takes a token; tells the headers and whether the answer is a 429.
    fn request(&mut self, at: Duration) -> (RateLimit, bool) {
        self.refill(at);
        let throttled = self.tokens < 1.0;
        if throttled {
            self.refused += 1;
        } else {
            self.tokens -= 1.0;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and the limit"
        )]
        let remaining = self.tokens as u32;
        (
            RateLimit {
                limit: self.limit,
                remaining,
            },
            throttled,
        )
    }
}

/// What happens at an instant; ties in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Drain(u32),
    Arrive(usize),
    Answer(usize),
    Ask(usize),
}

struct Caller {
    lane: Lane,
    name: String,
    latency: Duration,
    asks: usize,
    granted: Option<Duration>,
    done: bool,
    permit: Option<Permit>,
    told: Option<(RateLimit, bool)>,
}

struct World {
    epoch: Instant,
    server: Server,
    budget: Budget,
    callers: Vec<Caller>,
    events: BinaryHeap<Reverse<(Duration, Event)>>,
    /// When each ask happened, to find storms.
    asked: Vec<Duration>,
}

impl World {
    fn new(limit: u32, tokens: u32) -> Self {
        Self {
            epoch: Instant::now(),
            server: Server {
                limit,
                tokens: f64::from(tokens),
                as_of: Duration::ZERO,
                refused: 0,
            },
            budget: Budget::new(),
            callers: Vec::new(),
            events: BinaryHeap::new(),
            asked: Vec::new(),
        }
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.events.push(Reverse((at, event)));
    }

    /// A caller who asks at `at`, comes back as told, and asks again after a 429.
    fn caller(&mut self, lane: Lane, at: Duration, latency: Duration) -> usize {
        let index = self.callers.len();
        self.callers.push(Caller {
            lane,
            name: format!("{lane:?} {index}"),
            latency,
            asks: 0,
            granted: None,
            done: false,
            permit: None,
            told: None,
        });
        self.at(at, Event::Ask(index));
        index
    }

    fn run(&mut self, until: Duration) {
        while let Some(Reverse((at, event))) = self.events.pop() {
            if at > until {
                return;
            }
            match event {
                Event::Drain(tokens) => {
                    self.server.refill(at);
                    self.server.tokens = (self.server.tokens - f64::from(tokens)).max(0.0);
                }
                Event::Ask(index) => self.ask(index, at),
                Event::Arrive(index) => {
                    self.callers[index].told = Some(self.server.request(at));
                    self.at(at + self.callers[index].latency, Event::Answer(index));
                }
                Event::Answer(index) => self.answer(index, at),
            }
        }
    }

    fn ask(&mut self, index: usize, at: Duration) {
        self.asked.push(at);
        let caller = &mut self.callers[index];
        caller.asks += 1;
        match self
            .budget
            .try_acquire(caller.lane, &caller.name, self.epoch + at)
        {
            Ok(permit) => {
                caller.permit = Some(permit);
                caller.granted = Some(at);
                let arrival = at + caller.latency;
                self.at(arrival, Event::Arrive(index));
            }
            Err(RetryAt(retry)) => {
                let retry = retry - self.epoch;
                assert!(retry > at, "a refused caller is told a later time");
                self.at(retry, Event::Ask(index));
            }
        }
    }

    fn answer(&mut self, index: usize, at: Duration) {
        let caller = &mut self.callers[index];
        let (rate, throttled) = caller.told.take().unwrap();
        caller
            .permit
            .take()
            .unwrap()
            .answered(Some(rate), throttled, self.epoch + at);
        caller.done = !throttled;
        if throttled {
            self.at(at, Event::Ask(index));
        }
    }

    fn all_done(&self) -> bool {
        self.callers.iter().all(|caller| caller.done)
    }

    fn grants(&self, lane: Lane) -> Vec<Duration> {
        let of_lane = self.callers.iter().filter(|caller| caller.lane == lane);
        of_lane.map(|caller| caller.granted.unwrap()).collect()
    }

    /// Most asks within any second.
    fn busiest_second(&self) -> usize {
        let from = |start: &Duration| {
            let end = *start + SECOND;
            self.asked
                .iter()
                .filter(|at| (*start..end).contains(at))
                .count()
        };
        self.asked.iter().map(from).max().unwrap_or(0)
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn lane() -> impl Strategy<Value = Lane> {
    (0..Lane::ALL.len()).prop_map(|index| Lane::ALL[index])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bucket_of_the_server_is_never_exceeded(
        limit in 20u32..4000,
        share in 0u32..=100,
        callers in prop::collection::vec((lane(), 0u32..60_000, 1u32..3000), 1..400),
    ) {
        let mut world = World::new(limit, 3 + (limit - 3) * share / 100);
        for (lane, at, latency) in callers {
            world.caller(lane, at * MS, latency * MS);
        }
        world.run(Duration::from_hours(48));
        prop_assert_eq!(world.server.refused, 0);
        prop_assert!(world.all_done());
    }

    #[test]
    fn neighbour_who_drains_the_bucket_causes_no_storm(
        drains in prop::collection::vec((0u32..600, 1u32..3600), 1..60),
        latencies in prop::collection::vec(1u32..2000, 100),
    ) {
        let mut world = World::new(3600, 3600);
        for (second, tokens) in drains {
            world.at(second * SECOND, Event::Drain(tokens));
        }
        for (index, latency) in (0..).zip(latencies) {
            let lane = if index % 10 == 0 { Lane::Delete } else { Lane::Create };
            world.caller(lane, index * 6 * SECOND, latency * MS);
        }
        world.run(Duration::from_hours(4));
        prop_assert!(world.all_done());
        // One drain surprises those in flight, and then one probe a time finds the bucket empty.
        prop_assert!(world.server.refused <= 2 * 60, "{} times 429", world.server.refused);
        prop_assert!(world.busiest_second() <= 20, "{} asks in a second", world.busiest_second());
    }
}

/// A budget that knows its limit and what is left.
fn informed(limit: u32, remaining: u32, now: Instant) -> Budget {
    let budget = Budget::new();
    let permit = budget.try_acquire(Lane::Other, "first", now).ok().unwrap();
    permit.answered(Some(RateLimit { limit, remaining }), false, now);
    budget
}

#[test]
fn at_most_three_requests_are_in_flight_before_the_first_header() {
    let (budget, now) = (Budget::new(), Instant::now());
    let mut permits: Vec<Permit> = (0..3)
        .map(|who| {
            budget
                .try_acquire(Lane::Create, &who.to_string(), now)
                .ok()
                .unwrap()
        })
        .collect();
    assert!(budget.try_acquire(Lane::Create, "3", now).is_err());
    drop(permits.pop());
    assert!(budget.try_acquire(Lane::Create, "3", now).is_ok());
    permits.remove(0).answered(
        Some(RateLimit {
            limit: 3600,
            remaining: 3000,
        }),
        false,
        now,
    );
    assert_eq!(
        budget.view(now).left,
        Some(2999),
        "the other one in flight may not be counted yet"
    );
    assert!(budget.try_acquire(Lane::Create, "4", now).is_ok());
}

#[test]
fn deletes_go_on_while_five_hundred_creates_wait() {
    let mut world = World::new(3600, 20);
    for _ in 0..500 {
        world.caller(Lane::Create, Duration::ZERO, 50 * MS);
    }
    let deletes: Vec<usize> = (0..30)
        .map(|n| world.caller(Lane::Delete, 60 * SECOND + n * 10 * SECOND, 50 * MS))
        .collect();
    world.run(Duration::from_mins(30));
    assert!(world.all_done());
    assert_eq!(world.server.refused, 0);
    for (n, index) in (0..).zip(deletes) {
        let waited = world.callers[index]
            .granted
            .unwrap()
            .abs_diff(60 * SECOND + n * 10 * SECOND);
        assert_eq!(
            waited,
            Duration::ZERO,
            "the reserve is there for delete {n}"
        );
    }
}

#[test]
fn places_are_kept_and_nobody_storms() {
    let mut world = World::new(3600, 100);
    for index in 0..500 {
        world.caller(Lane::Create, index * MS, 100 * MS);
    }
    world.run(Duration::from_mins(20));
    assert!(world.all_done());
    let waited = &world.grants(Lane::Create)[100..];
    assert!(waited.is_sorted(), "those who came first are served first");
    assert!(
        world.callers.iter().all(|caller| caller.asks <= 4),
        "a waiter asks a few times in all"
    );
    let after_arrival: Vec<_> = world.asked.iter().filter(|at| **at > 10 * SECOND).collect();
    assert!(
        after_arrival
            .windows(4)
            .all(|asks| asks[3].abs_diff(*asks[0]) >= SECOND),
        "waiters come back one by one"
    );
}

#[test]
fn newcomer_does_not_overtake_and_lower_lane_leaves_what_higher_lanes_need() {
    let now = Instant::now();
    let budget = informed(3600, 72, now);
    let RetryAt(first) = budget.try_acquire(Lane::Create, "a", now).err().unwrap();
    let RetryAt(second) = budget.try_acquire(Lane::Create, "b", now).err().unwrap();
    assert!(second - first >= 990 * MS);
    // One token is there by now, and it is the first one's.
    assert!(budget.try_acquire(Lane::Create, "c", first).is_err());
    assert!(budget.try_acquire(Lane::Rollout, "d", first).is_err());
    assert!(budget.try_acquire(Lane::Other, "e", first).is_err());
    assert!(budget.try_acquire(Lane::Create, "a", first).is_ok());
    assert!(budget.try_acquire(Lane::Delete, "f", first).is_ok());
}

#[test]
fn place_of_a_caller_who_stays_away_is_given_up() {
    let now = Instant::now();
    let budget = informed(3600, 72, now);
    for who in 0..10 {
        assert!(
            budget
                .try_acquire(Lane::Create, &who.to_string(), now)
                .is_err()
        );
    }
    let later = now + Duration::from_mins(5);
    assert_eq!(
        budget.view(later).waiting[Lane::Create as usize],
        (Lane::Create, 0)
    );
    assert!(budget.try_acquire(Lane::Create, "new", later).is_ok());
}

#[test]
fn throttled_request_pauses_by_the_refill_rate_and_then_one_request_probes() {
    let now = Instant::now();
    let budget = informed(3600, 3000, now);
    let [one, two] = ["a", "b"].map(|who| budget.try_acquire(Lane::Delete, who, now).ok().unwrap());
    one.answered(
        Some(RateLimit {
            limit: 3600,
            remaining: 0,
        }),
        true,
        now,
    );
    let until = budget.view(now).paused_until.unwrap();
    assert!(
        (2 * SECOND..3 * SECOND).contains(&(until - now)),
        "two refills, not until the bucket is full"
    );
    two.answered(
        Some(RateLimit {
            limit: 3600,
            remaining: 0,
        }),
        true,
        now + 10 * MS,
    );
    assert_eq!(
        budget.view(now).paused_until,
        Some(until),
        "sent before the 429 was seen, it adds nothing"
    );
    assert!(budget.try_acquire(Lane::Delete, "c", now + SECOND).is_err());
    // By then several tokens have flowed in, but whether that is so must be found out.
    let later = until + 10 * SECOND;
    let probe = budget.try_acquire(Lane::Delete, "c", later).ok().unwrap();
    assert!(
        budget.try_acquire(Lane::Delete, "d", later).is_err(),
        "one probe at a time"
    );
    let rate = RateLimit {
        limit: 3600,
        remaining: 5,
    };
    probe.answered(Some(rate), false, later);
    assert!(budget.try_acquire(Lane::Delete, "d", later).is_ok());
}

#[test]
fn full_bucket_does_not_hide_those_in_flight() {
    let now = Instant::now();
    let budget = informed(3600, 3600, now);
    let names = ["a", "b", "c"];
    let slow = names.map(|who| budget.try_acquire(Lane::Create, who, now).ok().unwrap());
    assert_eq!(budget.view(now + Duration::from_mins(1)).left, Some(3597));
    drop(slow);
}

#[test]
fn lists_use_at_most_a_quarter_of_the_limit_in_any_hour() {
    let (start, mut now) = (Instant::now(), Instant::now());
    let budget = informed(3600, 3600, start);
    let mut sent = Vec::new();
    while now < start + Duration::from_hours(3) {
        match budget.try_acquire(Lane::Inventory, "list", now) {
            Ok(permit) => {
                permit.answered(None, false, now);
                sent.push(now);
            }
            Err(RetryAt(at)) => now = at,
        }
    }
    let busiest = sent.iter().map(|from| {
        sent.iter()
            .filter(|at| (*from..*from + Duration::from_hours(1)).contains(*at))
            .count()
    });
    let busiest = busiest.max().unwrap();
    assert!((850..=900).contains(&busiest), "{busiest} of 3600");
    assert!(
        budget.try_acquire(Lane::Other, "other", now).is_ok(),
        "a list without a share holds up nobody"
    );
}

#[test]
fn lists_of_a_thousand_servers_are_spaced_below_a_quarter_of_the_limit() {
    let now = Instant::now();
    let budget = informed(3600, 3600, now);
    let spacing = budget.list_spacing(20);
    assert!(
        (100 * SECOND..110 * SECOND).contains(&spacing),
        "{spacing:?}"
    );
    assert_eq!(budget.list_ready_at(20, now), now);
}

#[test]
fn five_thousand_waiters_are_all_served_in_turn() {
    let mut world = World::new(36_000, 1000);
    for _ in 0..5000 {
        world.caller(Lane::Create, Duration::ZERO, 100 * MS);
    }
    world.run(Duration::from_mins(20));
    assert!(world.all_done());
    assert_eq!(world.server.refused, 0);
    assert!(world.asked.len() <= 4 * 5000, "{} asks", world.asked.len());
}

#[test]
fn unsent_request_gives_its_token_back_and_a_lost_one_does_not() {
    let now = Instant::now();
    let budget = informed(3600, 100, now);
    budget
        .try_acquire(Lane::Create, "a", now)
        .ok()
        .unwrap()
        .not_sent(now);
    assert_eq!(budget.view(now).left, Some(100));
    drop(budget.try_acquire(Lane::Create, "a", now));
    assert_eq!(budget.view(now).left, Some(99));
}
