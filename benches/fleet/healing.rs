//! What becomes of an agent in a life that does not go well, on real machines: how soon its death is seen, how long it is silent while it is
//! updated or moved, how soon a server that vanished has a successor.

use std::path::PathBuf;
use std::time::Duration;

use bed::{Outcome, TENANT, manifests, run_in, wait_within};
use hetzner_sim::Shell;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::stack::{PATIENCE, Stack, is_ready, name};
use crate::summary::{Summary, quantile};

/// Where the agent writes down each beat: seconds of the epoch.
const BEATS: &str = "/home/agent/beats";
/// Between two looks.
const OFTEN: Duration = Duration::from_millis(20);
/// Of the probes; the timeout is as long.
const INTERVAL: u64 = 5;
/// So many servers may vanish: the breaker takes the third within ten minutes for something that all of them have in common, and waits for a person.
const VANISHING: usize = 2;
/// The first instance that these are.
const FIRST: usize = 5000;

/// What was seen in one round, in seconds.
#[derive(Default)]
struct Seen {
    detected: Vec<f64>,
    restarted: Vec<f64>,
    updated: Vec<f64>,
    moved: Vec<f64>,
    replaced: Vec<f64>,
    booted: Vec<f64>,
}

/// Lets so many agents die, be updated, move and lose their server, one after the other.
pub(crate) async fn measure(stack: &Stack, rounds: usize, summary: &mut Summary) -> Outcome {
    let mut seen = Seen::default();
    for n in FIRST..FIRST + rounds {
        round(stack, n, &mut seen).await?;
    }
    let interval = format!(
        "real machines, one at a time; probes each {INTERVAL} s, timeout {INTERVAL} s, three failures"
    );
    let mut tell = |what: &str, values: &mut [f64], how: String| {
        let (most, median) = (quantile(values, 0.95), quantile(values, 0.5));
        summary.add(
            what,
            (most, "s"),
            values.len(),
            format!("{how}; p50 {median:.2}"),
        )
    };
    tell(
        "detect_dead_process_s",
        &mut seen.detected,
        format!("{interval}; kill -9 of an agent that systemd does not restart, to Ready False"),
    )?;
    tell(
        "restart_to_ready_p95_s",
        &mut seen.restarted,
        format!("{interval}; from there to Ready True"),
    )?;
    tell(
        "inplace_update_gap_p95_s",
        &mut seen.updated,
        "real machines, one at a time; the longest pause between two beats of the agent while its environment changes".into(),
    )?;
    tell(
        "switchover_gap_p95_s",
        &mut seen.moved,
        "real machines, one at a time; last beat on the old server to the first one on the new"
            .into(),
    )?;
    let booted = quantile(&mut seen.booted, 0.5);
    tell(
        "vanished_disposable_to_ready_s",
        &mut seen.replaced,
        format!(
            "real machines, one at a time; deleted by hand, to Ready on another server; shared lists each 60 s, a first server took {booted:.2}"
        ),
    )
}

async fn round(stack: &Stack, n: usize, seen: &mut Seen) -> Outcome {
    let one = One { stack, n };
    stack.apply_all(vec![class(stack, "first", false)]).await?;
    stack.create_secrets(n..n + 1).await?;
    let began = Instant::now();
    stack.create(n..n + 1).await?;
    one.until("Ready", is_ready).await?;
    seen.booted.push(began.elapsed().as_secs_f64());
    one.settle().await;

    let server = one.server().await?;
    let kill = Shell {
        command: "systemctl kill --signal KILL agent".into(),
        ..Shell::default()
    };
    run_in(&stack.cloud, server, &kill).await?;
    let killed = Instant::now();
    one.until("not Ready", |object| !is_ready(object)).await?;
    seen.detected.push(killed.elapsed().as_secs_f64());
    let noticed = Instant::now();
    one.until("Ready again", is_ready).await?;
    seen.restarted.push(noticed.elapsed().as_secs_f64());
    one.settle().await;

    seen.updated.push(one.update().await?);
    one.settle().await;
    seen.moved.push(one.moves().await?);
    one.settle().await;

    if n < FIRST + VANISHING {
        seen.replaced.push(one.vanishes().await?);
    }
    stack.delete(n..n + 1).await?;
    stack.all_ready(0).await
}

/// An agent that beats, and that systemd does not restart. Whether its user may become root only a new server can take up.
fn class(stack: &Stack, round: &str, sudo: bool) -> Value {
    let beat = format!(
        "import time\nwhile True:\n open('{BEATS}', 'a').write(f'{{time.time()}}\\n')\n time.sleep(.02)"
    );
    let mut class = manifests::class();
    let spec = &mut class["spec"];
    spec["firewall"]["sshFrom"] = json!([stack.operators()]);
    spec["lifecycle"] =
        json!({"disk": "Disposable", "recovery": {"restarts": 3, "recreations": 3}});
    let every = format!("{INTERVAL}s");
    spec["health"] =
        json!({"systemd": {}, "interval": every, "timeout": every, "failureThreshold": 3});
    let agent = &mut spec["agent"];
    agent["sudo"] = json!(sudo);
    agent["service"]["execStart"] = json!(["/usr/bin/python3", "-c", beat]);
    agent["service"]["restart"] = json!("Never");
    agent["environment"] = json!({"ROUND": round});
    class
}

/// One instance.
struct One<'a> {
    stack: &'a Stack,
    n: usize,
}

impl One<'_> {
    async fn object(&self) -> Outcome<Value> {
        let name = name(self.n);
        let found = self.stack.cluster.get("AgentInstance", Some(TENANT), &name);
        Ok(found.await?.unwrap_or_default())
    }

    async fn server(&self) -> Outcome<u64> {
        let object = self.object().await?;
        Ok(object["status"]["server"]["id"]
            .as_u64()
            .unwrap_or_default())
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Outcome {
        wait_within(
            PATIENCE,
            &format!("{} is {what}", name(self.n)),
            async || {
                let so = is_so(&self.object().await?);
                if !so {
                    sleep(OFTEN).await;
                }
                Ok(so.then_some(()))
            },
        )
        .await
    }

    /// A rollout takes an agent for Ready once it was for one interval.
    async fn settle(&self) {
        sleep(Duration::from_secs(INTERVAL + 1)).await;
    }

    /// The longest pause of the agent while it is given another environment.
    async fn update(&self) -> Outcome<f64> {
        let (server, before) = (self.server().await?, self.object().await?);
        let former = self.beats(server)?.len();
        self.stack
            .apply_all(vec![class(self.stack, "second", false)])
            .await?;
        self.until("updated", |object| {
            let revision = |object: &Value| object["status"]["configRevision"].clone();
            is_ready(object) && revision(object) != revision(&before)
        })
        .await?;
        wait_within(PATIENCE, "the agent beats after the update", async || {
            sleep(OFTEN).await;
            let ages = self.beats(server)?;
            Ok((ages.len() > former + 10).then_some(()))
        })
        .await?;
        let beats = self.beats(server)?;
        let pauses = beats[former.saturating_sub(1)..]
            .windows(2)
            .map(|pair| pair[1] - pair[0]);
        Ok(pauses.fold(0.0, f64::max))
    }

    /// The pause of the agent while it moves to a new server.
    async fn moves(&self) -> Outcome<f64> {
        let old = self.server().await?;
        self.stack
            .apply_all(vec![class(self.stack, "second", true)])
            .await?;
        let mut last = f64::NAN;
        let first = wait_within(PATIENCE, "the agent beats on another server", async || {
            last = self
                .beats(old)
                .ok()
                .and_then(|beats| beats.last().copied())
                .unwrap_or(last);
            let new = self.server().await?;
            let first = (new != old).then(|| self.beats(new)).transpose()?;
            let first = first.and_then(|beats| beats.first().copied());
            if first.is_none() {
                sleep(OFTEN).await;
            }
            Ok(first)
        })
        .await?;
        self.until("Ready there", |object| {
            is_ready(object) && object["status"]["server"]["id"] != json!(old)
        })
        .await?;
        Ok(first - last)
    }

    /// How long it is not Ready when its server is deleted by hand.
    async fn vanishes(&self) -> Outcome<f64> {
        let server = self.server().await?;
        let vanished = Instant::now();
        self.stack.cloud.vanish(server)?;
        self.until("Ready elsewhere", |object| {
            is_ready(object) && object["status"]["server"]["id"] != json!(server)
        })
        .await?;
        Ok(vanished.elapsed().as_secs_f64())
    }

    fn beats(&self, server: u64) -> Outcome<Vec<f64>> {
        let root: PathBuf = self.stack.cloud.machine(server)?.root;
        let text = std::fs::read_to_string(root.join(BEATS.trim_start_matches('/')));
        let text = text.unwrap_or_default();
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}
