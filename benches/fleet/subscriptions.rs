//! Subscriptions: how soon one has its instance, and what many of them cost.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bed::{Outcome, TENANT, wait_within};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::fleet::settled;
use crate::lives::by_kind;
use crate::processes::{cpu_seconds, resident_mib};
use crate::scale::Scale;
use crate::stack::{PATIENCE, Stack};
use crate::summary::{Summary, number, quantile};

/// How many are looked at one by one.
const ONE_BY_ONE: usize = 50;
/// Between two looks at all of them.
const SELDOM: Duration = Duration::from_secs(5);

/// Fills a cluster with subscriptions, whose plan is no class that is there, so that what is measured is theirs and not their servers'.
pub(crate) async fn measure(scale: &Scale, summary: &mut Summary) -> Outcome {
    let stack = Stack::with(&["--creations-per-day", "1000000"]).await?;
    let (some, many) = (scale.subscribed, scale.subscriptions);
    subscribe(&stack, 0..some).await?;
    memory(&stack, some, summary)?;
    calm(&stack, some, summary).await?;
    change(&stack, some, summary).await?;
    let mut spans = vec![];
    for n in some..some + ONE_BY_ONE {
        spans.push(one_more(&stack, n).await?);
    }
    let (median, most) = (quantile(&mut spans, 0.5), quantile(&mut spans, 1.0));
    summary.add(
        "subscription_to_instance_p95_s",
        (quantile(&mut spans, 0.95), "s"),
        ONE_BY_ONE,
        format!(
            "beside {some} others, one at a time: from before the apply until its instance is read from the API server, looked for each 50 ms; p50 {median:.3}, most {most:.3}"
        ),
    )?;
    subscribe(&stack, some + ONE_BY_ONE..many).await?;
    memory(&stack, many, summary)?;
    stack.close();
    Ok(())
}

fn subscription(n: usize) -> Value {
    json!({
        "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription",
        "metadata": {"namespace": TENANT, "name": name(n)},
        "spec": {"customerId": format!("cus_{n}"), "plan": "none", "state": "Active"},
    })
}

fn name(n: usize) -> String {
    format!("customer-{n:04}")
}

/// Writes so many, and waits until each has its instance.
async fn subscribe(stack: &Stack, numbers: Range<usize>) -> Outcome {
    let wanted = numbers.end;
    stack.apply_all(numbers.map(subscription).collect()).await?;
    let what = format!("{wanted} subscriptions have an instance");
    wait_within(PATIENCE, &what, async || {
        sleep(SELDOM).await;
        stack.operator.check_alive()?;
        let instances = stack.cluster.list("AgentInstance").await?.len();
        Ok((instances == wanted).then_some(()))
    })
    .await?;
    settled(stack).await
}

/// Seconds from the apply of one more until its instance is there.
async fn one_more(stack: &Stack, n: usize) -> Outcome<f64> {
    let (one, began) = (subscription(n), Instant::now());
    stack.cluster.apply(&one).await?;
    wait_within(PATIENCE, "it has its instance", async || {
        let name = name(n);
        let found = stack.cluster.get("AgentInstance", Some(TENANT), &name);
        Ok(found.await?.map(|_| ()))
    })
    .await?;
    Ok(began.elapsed().as_secs_f64())
}

fn memory(stack: &Stack, subscriptions: usize, summary: &mut Summary) -> Outcome {
    summary.add(
        format!("subscriptions_{subscriptions}_memory_mib"),
        (resident_mib(stack.process()?)?, "MiB"),
        subscriptions,
        "VmRSS of the operator with so many Subscriptions, each with an instance that has no server",
    )
}

/// Changes the state of all of them; counts what the operator writes for it.
async fn change(stack: &Stack, subscriptions: usize, summary: &mut Summary) -> Outcome {
    let before = stack.writes()?.len();
    let changed = (0..subscriptions).map(|n| {
        let mut one = subscription(n);
        one["spec"]["state"] = json!("PastDue");
        one["spec"]["gracePeriod"] = json!("8000h");
        one
    });
    stack.apply_all(changed.collect()).await?;
    settled(stack).await?;
    let writes = stack.writes()?.split_off(before);
    let mut times = BTreeMap::new();
    for write in &writes {
        if let Some(name) = write.what.strip_prefix("patch subscriptions/status ") {
            *times.entry(name).or_insert(0) += 1;
        }
    }
    let most = times.values().copied().max().unwrap_or_default();
    summary.add(
        format!("subscriptions_{subscriptions}_change_status_writes_each"),
        (number(most), "writes"),
        subscriptions,
        format!(
            "the most for one of them when all become PastDue, from the audit log; {} of them had any, {} in all; all writes: {}",
            times.len(),
            times.values().sum::<usize>(),
            by_kind(&writes)
        ),
    )
}

async fn calm(stack: &Stack, subscriptions: usize, summary: &mut Summary) -> Outcome {
    let (before, cpu) = (stack.writes()?.len(), cpu_seconds(stack.process()?)?);
    let began = Instant::now();
    sleep(Duration::from_mins(1)).await;
    let seconds = began.elapsed().as_secs_f64();
    let (writes, used) = (
        stack.writes()?.split_off(before),
        cpu_seconds(stack.process()?)? - cpu,
    );
    let name = |what: &str| format!("subscriptions_{subscriptions}_calm_{what}");
    summary.add(
        name("kubernetes_writes"),
        (number(writes.len()), "writes"),
        subscriptions,
        format!(
            "audit log, the Lease left out, in {seconds:.0} s of calm: {}",
            by_kind(&writes)
        ),
    )?;
    summary.add(
        name("core_percent"),
        (used / seconds * 100.0, "% of a core"),
        subscriptions,
        format!("{used:.2} s of user and system time of the operator in {seconds:.0} s of calm"),
    )
}
