//! The crash matrix: the operator dies right before and right after each of its calls, and one life goes well all the same.
//!
//! The calls come from a recording of two whole lives, so new calls are covered by themselves. A seeded sample runs by default (the seed is
//! printed, `AGENTFLEET_CRASH_SEED` sets it), all with `AGENTFLEET_CRASH_MATRIX=full`.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bed::{AT_ONCE, Bed, Call, Failure, Moment, Options, Outcome, ensure, manifests, wait_within};

/// How many points a sample has.
const SAMPLE: usize = 10;
/// A life with a crash in it takes seconds; this is used up by a failure only.
const LIFE_STEP: Duration = Duration::from_secs(90);
/// What the operator does after all else was seen to be done, it does by then.
const AFTERWARDS: Duration = Duration::from_secs(20);
/// Whether two writes become one hangs on the moment, so that a life may not come to the last of them: so many lives are lived for a point.
const LIVES: usize = 3;

/// One life, in which the operator is started again whenever it has crashed.
struct Life {
    bed: Bed,
    crashed: bool,
}

impl Life {
    async fn begin(point: Option<&(Call, Moment)>) -> Outcome<Self> {
        let mut bed = Bed::with(Options {
            operator: false,
            ..Options::default()
        })
        .await?;
        bed.apply_basics().await?;
        match point {
            Some((call, moment)) => bed.operator.start_to_crash_at(call, *moment)?,
            None => bed.operator.start()?,
        }
        Ok(Self {
            bed,
            crashed: false,
        })
    }

    /// Waits for a step of the life, over a crash.
    async fn until(&mut self, what: &str, reached: impl AsyncFn(&Bed) -> Outcome<bool>) -> Outcome {
        wait_within(LIFE_STEP, what, async || {
            if !self.crashed && self.bed.operator.has_crashed()? {
                self.crashed = true;
                self.bed.operator.start()?;
            }
            Ok(reached(&self.bed).await?.then_some(()))
        })
        .await
    }

    /// Created, Ready, given another Secret, deleted, class and project too.
    async fn live(&mut self) -> Outcome {
        self.bed.create("one").await?;
        self.until("Ready", async |bed| is_ready(bed).await).await?;
        let secret = self.bed.apply_secret("one").await?;
        self.until("the new Secret is on the server", async |bed| {
            Ok(bed
                .instance("one")
                .file(manifests::SECRET_FILE)
                .await?
                .is_some_and(|file| file.contains(&secret))
                && is_ready(bed).await?)
        })
        .await?;
        self.bed.instance("one").serves().await?;
        for (kind, namespace, name) in [
            ("AgentInstance", Some(bed::TENANT), "one"),
            ("AgentClass", None, manifests::CLASS),
            ("HetznerProject", None, manifests::PROJECT),
        ] {
            self.bed.cluster.delete(kind, namespace, name).await?;
            self.until(&format!("the {kind} is gone"), async |bed| {
                Ok(bed.cluster.get(kind, namespace, name).await?.is_none())
            })
            .await?;
        }
        Ok(())
    }

    /// Waits for a crash that may come after all else was seen to be done; whether it came.
    async fn crash(&mut self) -> Outcome<bool> {
        let crash = wait_within(AFTERWARDS, "the point is reached", async || {
            Ok((self.crashed || self.bed.operator.has_crashed()?).then_some(()))
        });
        let reached = crash.await.is_ok();
        if reached && !self.crashed {
            self.bed.operator.start()?;
        }
        Ok(reached)
    }

    async fn end(self) -> Outcome {
        self.bed.delete_all().await?;
        self.bed.finish().await
    }
}

async fn is_ready(bed: &Bed) -> Outcome<bool> {
    let status = bed.instance("one").status().await?;
    Ok(bed::oracle::condition(&status, "Ready").is_some_and(|ready| ready["status"] == "True"))
}

/// Reads, renewals of the Lease and `hello` are many, and each like the first; so are Events, which are a courtesy.
fn only_the_first_counts(call: &Call) -> bool {
    let reads = ["GET ", "LIST ", "WATCH "]
        .iter()
        .any(|verb| call.call.starts_with(verb));
    reads
        || call.call.contains("lease")
        || call.call.contains("events")
        || matches!(call.call.as_str(), "hello" | "status" | "probe" | "logs")
}

/// The calls of a life; what two lives side by side do not both make hangs on the moment, and may not be reached by a third.
async fn recorded() -> Outcome<Vec<Call>> {
    let (calls, others) = tokio::try_join!(Box::pin(a_life()), Box::pin(a_life()))?;
    let others: BTreeSet<_> = others.iter().map(key).collect();
    let mut seen = BTreeSet::new();
    Ok(calls
        .into_iter()
        .filter(|call| call.occurrence == 1 || !only_the_first_counts(call))
        .filter(|call| others.contains(&key(call)) && seen.insert(key(call)))
        .collect())
}

fn key(call: &Call) -> (String, String, u64) {
    (call.site.clone(), call.call.clone(), call.occurrence)
}

async fn a_life() -> Outcome<Vec<Call>> {
    let mut life = Life::begin(None).await?;
    life.live().await?;
    let calls = life.bed.operator.calls()?;
    life.end().await?;
    Ok(calls)
}

async fn survives(point: &(Call, Moment)) -> Outcome {
    for _ in 0..LIVES {
        let mut life = Life::begin(Some(point)).await?;
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

/// All points, or a sample in which each is as likely as the other.
fn chosen(mut points: Vec<(Call, Moment)>) -> Vec<(Call, Moment)> {
    let all = points.len();
    if std::env::var("AGENTFLEET_CRASH_MATRIX").as_deref() == Ok("full") {
        println!("crash matrix: all {all} points");
        return points;
    }
    let seed = seed();
    let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
    rand::seq::SliceRandom::shuffle(points.as_mut_slice(), &mut random);
    points.truncate(SAMPLE);
    println!(
        "crash matrix: {} of {all} points, AGENTFLEET_CRASH_SEED={seed}",
        points.len()
    );
    points
}

#[tokio::test(flavor = "multi_thread")]
async fn i1_i2_i13_a_crash_around_any_call_costs_no_server_and_no_voice() -> Outcome {
    let calls = recorded().await?;
    ensure(
        calls.iter().any(|call| call.call == "POST /servers"),
        || format!("nothing was recorded: {calls:?}"),
    )?;
    let points = calls
        .into_iter()
        .flat_map(|call| [(call.clone(), Moment::Before), (call, Moment::After)])
        .collect();
    let todo = Mutex::new(chosen(points));
    let failures = Mutex::new(Vec::new());
    let worker = async || {
        while let Some(point) = next(&todo) {
            if let Err(failure) = survives(&point).await {
                let (call, moment) = point;
                let name = format!(
                    "{moment:?} {} {} #{}",
                    call.site, call.call, call.occurrence
                );
                failures
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(format!("{name}: {failure}"));
            }
        }
    };
    assert_eq!(AT_ONCE, 2, "as many workers as there are control planes");
    tokio::join!(worker(), worker());
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
