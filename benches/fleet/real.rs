//! Real machines: how long each step of a life takes, and what of it is the operator's.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bed::{Outcome, TENANT, manifests, wait_within};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use serde_json::Value;
use sha2::Sha256;
use tokio::time::{Instant, sleep};

use crate::fleet::added;
use crate::healing;
use crate::scale::Scale;
use crate::stack::{PATIENCE, PROOF, Stack, name};
use crate::summary::{Summary, quantile};
use crate::timeline::{seconds, timelines};

/// How many boot at once to be measured: as many as there are processors, or each would measure the others.
const AT_ONCE: usize = 2;
/// How many boot at once to see that all of them become Ready.
const TEN: usize = 10;
/// Instances that want no server: the fuse on spending, which counts instances, would take waves of servers for a loop.
const IDLE: Range<usize> = 9000..9050;
/// Between two looks at a file on a machine's disk.
const OFTEN: Duration = Duration::from_millis(20);

/// Provisions ten instances at once on real machines, and so many more a few at a time; says so where there are none.
pub(crate) async fn measure(scale: &Scale, summary: &mut Summary) -> Outcome {
    let simulator = match bed::real_cloud().await? {
        Ok(simulator) => simulator,
        Err(error) => {
            println!("real machines are left out: {error}");
            return Ok(());
        }
    };
    let stack = Stack::on(simulator, &[]).await?;
    stack.apply_all(IDLE.map(idle).collect()).await?;
    let began = Instant::now();
    provision(&stack, 0..TEN).await?;
    let mut ten = [began.elapsed().as_secs_f64()];
    remove(&stack, 0..TEN).await?;
    let mut spans: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let (mut lives, mut rotations) = (vec![], vec![]);
    let all = TEN + scale.real;
    for first in (TEN..all).step_by(AT_ONCE) {
        let before = stack.writes()?.len();
        let numbers = first..(first + AT_ONCE).min(all);
        provision(&stack, numbers.clone()).await?;
        lives.extend(timelines(&stack, &stack.writes()?.split_off(before))?);
        for n in numbers.clone() {
            steps(&stack, n, &mut spans).await?;
            rotations.push(rotation(&stack, n).await?);
        }
        remove(&stack, numbers).await?;
    }
    let two = "real machines, two at a time; ";
    added(("ready_after_boot", two), &lives, summary)?;
    tell(
        summary,
        "rotation_seen",
        &mut rotations,
        "apply of a changed Secret to the proof of the agent, started again, that it has the new value (machine's disk)",
    )?;
    tell(
        summary,
        "ten_at_once_all_ready",
        &mut ten,
        "ten at once: apply to all Ready, looked at each 5 s",
    )?;
    for (step, mut values) in spans {
        tell(
            summary,
            &format!("step_{step}"),
            &mut values,
            "status.timings: time since the step before",
        )?;
    }
    healing::measure(&stack, scale.healing, summary).await?;
    stack.close();
    Ok(())
}

fn idle(n: usize) -> Value {
    let mut instance = manifests::instance(TENANT, &name(n));
    instance["spec"]["className"] = "none".into();
    instance
}

/// Creates instances, and waits until they are Ready.
async fn provision(stack: &Stack, numbers: Range<usize>) -> Outcome {
    stack.create_secrets(numbers.clone()).await?;
    stack.create(numbers.clone()).await?;
    stack.all_ready(numbers.len()).await
}

/// Deletes instances again: each systemd holds inotify instances, and the kernel's usual limit of them ends at some thirty machines.
async fn remove(stack: &Stack, numbers: Range<usize>) -> Outcome {
    stack.delete(numbers).await?;
    stack.all_ready(0).await
}

/// The time of each step since the one before, by the instance's own status.
async fn steps(stack: &Stack, n: usize, spans: &mut BTreeMap<String, Vec<f64>>) -> Outcome {
    let instance = instance(stack, n).await?;
    let mut last: Option<Timestamp> = None;
    for (place, timing) in instance["status"]["timings"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let at: Timestamp = timing["at"].as_str().unwrap_or_default().parse()?;
        if let Some(last) = last.replace(at) {
            let step = timing["step"].as_str().unwrap_or_default();
            spans
                .entry(format!("{place}_{step}"))
                .or_default()
                .push(seconds(last, at));
        }
    }
    Ok(())
}

async fn instance(stack: &Stack, n: usize) -> Outcome<Value> {
    let name = name(n);
    let found = stack.cluster.get("AgentInstance", Some(TENANT), &name);
    Ok(found.await?.unwrap_or_default())
}

/// Seconds until the agent runs with a changed Secret.
async fn rotation(stack: &Stack, n: usize) -> Outcome<f64> {
    let id = instance(stack, n).await?["status"]["server"]["id"].as_u64();
    let file = stack.cloud.machine(id.unwrap_or_default())?.root;
    let file = file.join(PROOF.trim_start_matches('/'));
    let value = format!("rotated-{n}");
    let mut proof = Hmac::<Sha256>::new_from_slice(b"proof")?;
    proof.update(value.as_bytes());
    let proof = hex::encode(proof.finalize().into_bytes());
    let secret = manifests::secret(TENANT, &name(n), "API_KEY", &value);
    let began = Instant::now();
    stack.apply_all(vec![secret]).await?;
    wait_within(PATIENCE, "the agent has the new Secret", async || {
        let there = std::fs::read_to_string(&file).is_ok_and(|text| text == proof);
        if !there {
            sleep(OFTEN).await;
        }
        Ok(there.then_some(()))
    })
    .await?;
    Ok(began.elapsed().as_secs_f64())
}

fn tell(summary: &mut Summary, what: &str, values: &mut [f64], how: &str) -> Outcome {
    let n = values.len();
    let (median, most) = (quantile(values, 0.5), quantile(values, 0.99));
    summary.add(
        format!("{what}_p95_s"),
        (quantile(values, 0.95), "s"),
        n,
        format!("real machines, two at a time unless told otherwise; {how}; p50 {median:.2}, p99 {most:.2}"),
    )
}
