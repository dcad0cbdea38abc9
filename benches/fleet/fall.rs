//! Many agents that die in the same moment: how they come back, and what that asks of Hetzner.

use std::collections::BTreeSet;
use std::time::Duration;

use bed::{Outcome, TENANT, manifests, wait_within};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::scale::Scale;
use crate::stack::{PATIENCE, RECOVERIES, Stack, is_ready, name};
use crate::summary::{Summary, number};

/// Between two looks at all instances.
const SELDOM: Duration = Duration::from_secs(5);
/// As many as the breaker still takes for chance: a fifth of the fleet.
const PART: usize = 5;

/// Lets a fifth of the fleet die, of a class whose agents are brought back by a reboot, and waits until all are Ready again.
pub(crate) async fn measure(stack: &Stack, scale: &Scale, summary: &mut Summary) -> Outcome {
    let dying = scale.fleet / PART;
    let recovery = json!({"spec": {"lifecycle": {"recovery": {"restarts": 0}}}});
    let class = stack
        .cluster
        .merge("AgentClass", None, manifests::CLASS, recovery);
    class.await?;
    let servers = servers(stack, dying).await?;
    stack.cloud.forget_requests();
    let began = Instant::now();
    for server in servers {
        bed::die(&stack.cloud, server)?;
    }
    let seen = all_come_back(stack, scale.fleet, dying).await?;
    let back = began.elapsed().as_secs_f64();
    let name = |what: &str| format!("fall_of_{dying}_{what}");
    let how = "probes each 60 s and three failures, no restarts";
    summary.add(
        name("back_s"),
        (back, "s"),
        dying,
        format!(
            "{how}: from their death until all are Ready again, {RECOVERIES} reboots a minute at most; {seen}"
        ),
    )?;
    summary.add(
        name("requests"),
        (number(stack.count()), "requests"),
        dying,
        format!(
            "{how}, simulator's count from their death on: {}",
            stack.routes()
        ),
    )?;
    summary.add(
        name("429s"),
        (number(stack.answered_with(429)), "answers"),
        dying,
        "simulator's count, limit 3600 an hour",
    )
}

/// The servers of the first so many instances.
async fn servers(stack: &Stack, instances: usize) -> Outcome<Vec<u64>> {
    let mut servers = vec![];
    for n in 0..instances {
        let name = name(n);
        let found = stack.cluster.get("AgentInstance", Some(TENANT), &name);
        let id: Value = found.await?.unwrap_or_default()["status"]["server"]["id"].take();
        servers.extend(id.as_u64());
    }
    Ok(servers)
}

/// Waits until so many of a fleet have fallen and all of it is Ready; tells how many were not at worst, by looks each 5 s.
async fn all_come_back(stack: &Stack, fleet: usize, dying: usize) -> Outcome<String> {
    let (mut fallen, mut most) = (BTreeSet::new(), 0);
    let what = format!("{dying} of {fleet} fall and come back");
    wait_within(PATIENCE, &what, async || {
        sleep(SELDOM).await;
        stack.operator.check_alive()?;
        let instances = stack.cluster.list("AgentInstance").await?;
        let down: Vec<String> = instances
            .iter()
            .filter(|instance| !is_ready(instance))
            .map(|instance| instance["metadata"]["name"].to_string())
            .collect();
        most = most.max(down.len());
        let all_ready = down.is_empty();
        fallen.extend(down);
        Ok((all_ready && fallen.len() >= dying).then_some(()))
    })
    .await?;
    Ok(format!(
        "{most} were not Ready at worst, looked at each 5 s"
    ))
}
