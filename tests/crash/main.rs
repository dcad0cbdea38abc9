//! The crash matrix: the operator dies right before and right after each of its calls, and each life goes well all the same.
//!
//! The calls come from recordings of whole lives, so new calls are covered by themselves. A seeded sample runs by default (the seed is
//! printed, `AGENTFLEET_CRASH_SEED` sets it), all with `AGENTFLEET_CRASH_MATRIX=full`; `AGENTFLEET_CRASH_POINT` takes those whose name, as a failure
//! tells it, holds that text.

mod life;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use bed::{AT_ONCE, Call, Failure, Moment, Outcome, ensure};

use life::{Life, Story};

/// How many points a sample has.
const SAMPLE: usize = 10;
/// Whether two writes become one hangs on the moment, so that a life may not come to the last of them: so many lives are lived for a point.
const LIVES: usize = 3;

/// Where the operator dies.
#[derive(Clone)]
struct Point {
    story: Story,
    call: Call,
    moment: Moment,
}

impl Point {
    fn name(&self) -> String {
        let Self {
            story,
            call,
            moment,
        } = self;
        format!(
            "{story:?}: {moment:?} {} {} #{}",
            call.site, call.call, call.occurrence
        )
    }
}

/// Reads, renewals of the Lease and `hello` are many, and each like the first; so are Events, which are a courtesy.
fn only_the_first_counts(call: &Call) -> bool {
    let reads = ["GET ", "LIST ", "WATCH "]
        .iter()
        .any(|verb| call.call.starts_with(verb));
    reads
        || call.call.contains("leases")
        || call.call.contains("events")
        || matches!(call.call.as_str(), "hello" | "status" | "probe" | "logs")
}

/// The calls of all lives. What two lives side by side do not both make hangs on the moment, and may not be reached by a third; what is like a
/// call of a former story is left out.
async fn recorded() -> Outcome<Vec<(Story, Call)>> {
    let (mut calls, mut alike) = (vec![], BTreeSet::new());
    for story in Story::ALL {
        let (one, other) = tokio::try_join!(Box::pin(a_life(story)), Box::pin(a_life(story)))?;
        let others: BTreeSet<_> = other.iter().map(key).collect();
        let mut seen = BTreeSet::new();
        let counts = |call: &Call| !only_the_first_counts(call) || alike.insert(of(call));
        let own = one
            .into_iter()
            .filter(|call| others.contains(&key(call)) && seen.insert(key(call)))
            .filter(counts);
        calls.extend(own.map(|call| (story, call)));
    }
    Ok(calls)
}

fn of(call: &Call) -> (String, String) {
    (call.site.clone(), call.call.clone())
}

fn key(call: &Call) -> (String, String, u64) {
    let (site, name) = of(call);
    (site, name, call.occurrence)
}

async fn a_life(story: Story) -> Outcome<Vec<Call>> {
    let mut life = Life::begin(story, None).await?;
    let calls = life.live().await?;
    life.end().await?;
    Ok(calls)
}

async fn survives(point: &Point) -> Outcome {
    for _ in 0..LIVES {
        let mut life = Life::begin(point.story, Some((&point.call, point.moment))).await?;
        life.live().await?;
        let reached = life.crash().await?;
        life.end().await?;
        if reached {
            return Ok(());
        }
    }
    Err(Failure::new(format!("not reached in {LIVES} lives")))
}

fn seed() -> u64 {
    let told = std::env::var("AGENTFLEET_CRASH_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    told.unwrap_or_else(|| rand::random_range(0..1_000_000))
}

/// All points, those that are asked for, or a sample with as many of each story, in which each point of a story is as likely as the other.
fn chosen(mut points: Vec<Point>) -> Vec<Point> {
    let all = points.len();
    if std::env::var("AGENTFLEET_CRASH_MATRIX").as_deref() == Ok("full") {
        println!("crash matrix: all {all} points");
        return points;
    }
    if let Ok(part) = std::env::var("AGENTFLEET_CRASH_POINT") {
        points.retain(|point| point.name().contains(&part));
        println!("crash matrix: {} of {all} points", points.len());
        return points;
    }
    let seed = seed();
    let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
    rand::seq::SliceRandom::shuffle(points.as_mut_slice(), &mut random);
    let mut drawn = BTreeMap::<_, usize>::new();
    let mut turns: Vec<_> = points
        .into_iter()
        .map(|point| {
            let turn = drawn.entry(point.story).or_default();
            *turn += 1;
            (*turn, point)
        })
        .collect();
    turns.sort_by_key(|(turn, _)| *turn);
    turns.truncate(SAMPLE);
    println!("crash matrix: {SAMPLE} of {all} points, AGENTFLEET_CRASH_SEED={seed}");
    turns.into_iter().map(|(_, point)| point).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn i1_i2_i13_a_crash_around_any_call_costs_no_server_and_no_voice() -> Outcome {
    let calls = recorded().await?;
    for (story, own) in [
        (Story::Whole, "POST /servers"),
        (Story::Update, "configure"),
        (Story::Return, "configure"),
        (Story::Replacement, "release"),
        (Story::Suspension, "POST /servers/{id}/actions/shutdown"),
        (Story::Rollback, "DELETE /servers/{id}"),
        (Story::Subscription, "DELETE agentinstances"),
    ] {
        let made = calls
            .iter()
            .any(|(of, call)| *of == story && call.call == own);
        ensure(made, || format!("{story:?} was not recorded: {calls:?}"))?;
    }
    let points = calls.into_iter().flat_map(|(story, call)| {
        [Moment::Before, Moment::After].map(|moment| Point {
            story,
            call: call.clone(),
            moment,
        })
    });
    let todo = Mutex::new(chosen(points.collect()));
    let failures = Mutex::new(Vec::new());
    let worker = async || {
        while let Some(point) = next(&todo) {
            if let Err(failure) = survives(&point).await {
                let name = point.name();
                eprintln!("{name}: {failure}");
                failures
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(format!("{name}: {failure}"));
            }
        }
    };
    futures::future::join_all((0..AT_ONCE).map(|_| worker())).await;
    let failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!(
            "{} points failed:\n{}",
            failures.len(),
            failures.join("\n")
        )))
    }
}

fn next<T>(todo: &Mutex<Vec<T>>) -> Option<T> {
    todo.lock().unwrap_or_else(PoisonError::into_inner).pop()
}
