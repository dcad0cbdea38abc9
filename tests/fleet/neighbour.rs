//! I8: the allowance of a project is shared with others. A neighbour takes all of it again and again while hundreds of servers are wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bed::{Bed, Options, Outcome, Pace, TENANT, ensure, manifests, quick_cloud, wait_within};
use hetzner_sim::{Config, Control};
use tokio::task::JoinHandle;

/// Two requests a second flow in.
const RATE_LIMIT: u32 = 7200;
/// How many servers are wanted at once.
const WANTED: usize = 500;
/// How many live before, and are deleted meanwhile.
const ALIVE: usize = 6;
/// How long the neighbour pauses, so that a few requests flow in for others.
const PAUSE: Duration = Duration::from_secs(4);

/// Longer than the reserve for deletes takes to flow in, which is a fiftieth of an hour, whatever the rate.
const RECOVERY: Duration = Duration::from_mins(3);

/// Somebody with a token of the same project who uses up whatever there is.
struct Neighbour {
    times: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Neighbour {
    fn moves_in(cloud: Control) -> Self {
        let times = Arc::<AtomicU64>::default();
        let count = Arc::clone(&times);
        let task = tokio::spawn(async move {
            while cloud.drain(0, 0).is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { times, task }
    }

    fn times(&self) -> u64 {
        self.times.load(Ordering::Relaxed)
    }

    fn moves_out(self) {
        self.task.abort();
    }
}

/// Answers to the requests of the project: those that it was allowed, and those that came in vain.
fn answers(bed: &Bed) -> (u64, u64) {
    let requests = bed.cloud().requests();
    let sum = |throttled: bool| {
        let told = requests
            .iter()
            .filter(|asked| (asked.status == 429) == throttled);
        told.map(|asked| asked.count).sum()
    };
    (sum(false), sum(true))
}

/// One after the other would take longer than all else here.
async fn want(bed: &Bed, instances: usize) -> Outcome {
    bed.apply_secret("shared").await?;
    for number in 0..instances {
        let mut instance = manifests::instance(TENANT, &format!("wanted-{number}"));
        instance["spec"]["secretName"] = "shared".into();
        bed.cluster.apply(&instance).await?;
    }
    Ok(())
}

async fn bed() -> Outcome<Bed> {
    let cloud = Config {
        rate_limit: RATE_LIMIT,
        ..quick_cloud()
    };
    // Hundreds of objects at once keep an API server on two cores busy for seconds.
    let pace = Pace {
        lease: "60s",
        ..Pace::default()
    };
    let bed = Bed::with(Options {
        cloud,
        pace,
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    Ok(bed)
}

#[tokio::test(flavor = "multi_thread")]
async fn i8_deletes_go_on_and_nothing_storms_while_500_creates_wait_for_what_a_neighbour_leaves()
-> Outcome {
    let bed = bed().await?;
    let names: Vec<String> = (0..ALIVE).map(|number| format!("alive-{number}")).collect();
    for name in &names {
        bed.create(name).await?;
    }
    for name in &names {
        bed.instance(name).ready().await?;
    }

    let neighbour = Neighbour::moves_in(bed.cloud());
    bed.cloud().forget_requests();
    want(&bed, WANTED).await?;
    bed.wait_until("a request came in vain", async || Ok(answers(&bed).1 > 0))
        .await?;
    for name in &names {
        bed.instance(name).delete().await?;
    }
    for name in &names {
        bed.instance(name).gone().await?;
    }
    let created = bed.cloud().lives().len() - ALIVE;
    ensure(created < WANTED / 2, || {
        format!("{created} of {WANTED} did not have to wait")
    })?;
    storms_not(&bed, &neighbour)?;

    neighbour.moves_out();
    let before = bed.cloud().lives().len();
    wait_within(RECOVERY, "the creates go on", async || {
        Ok((bed.cloud().lives().len() >= before + 10).then_some(()))
    })
    .await?;
    bed.finish().await
}

/// After each drain those in flight come in vain, and then one at a time finds out when it is over.
fn storms_not(bed: &Bed, neighbour: &Neighbour) -> Outcome {
    let (_, in_vain) = answers(bed);
    let drained = neighbour.times();
    ensure(in_vain <= 4 * drained + 10, || {
        format!(
            "{in_vain} requests in vain while the bucket was drained {drained} times: {:#?}",
            bed.cloud().requests()
        )
    })
}
