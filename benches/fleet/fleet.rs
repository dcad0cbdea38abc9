//! Many instances: created at once, calm, and under an operator that begins anew.

use std::collections::BTreeSet;
use std::time::Duration;

use bed::{Outcome, Write, ensure, wait_within};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::lives::{by_kind, is_status};
use crate::processes::{cpu_between, cpu_by_program, cpu_seconds, resident_mib};
use crate::scale::Scale;
use crate::stack::{PATIENCE, Stack};
use crate::summary::{Summary, number, quantile};
use crate::timeline::{Timeline, seconds, timelines};

/// The write-ahead record of the holder, at each take-over of the Lease, is no mutation of what the fleet is.
const HOLDER: (&str, &str) = ("PUT", "/ssh_keys/{id}");
/// Longer than an operator that starts needs for all its requests.
const START: Duration = Duration::from_secs(20);
/// How long all must have been silent before it counts as calm.
const SETTLED: Duration = Duration::from_secs(15);

/// Creates so many instances at once and waits until all are Ready.
pub(crate) async fn burst(stack: &Stack, instances: usize, summary: &mut Summary) -> Outcome {
    stack.create_secrets(0..instances).await?;
    let before = stack.writes()?.len();
    stack.cloud.forget_requests();
    let (cpu, began, clock) = (cpu_by_program()?, Timestamp::now(), Instant::now());
    stack.create(0..instances).await?;
    let applied = clock.elapsed().as_secs_f64();
    stack.all_ready(instances).await?;
    let spent = cpu_between(&cpu, &cpu_by_program()?, clock.elapsed().as_secs_f64());
    let writes = stack.writes()?.split_off(before);
    let lines = timelines(stack, &writes)?;
    ensure(lines.len() == instances, || {
        format!("{} of {instances} have a timeline", lines.len())
    })?;
    after_boot(&lines, (began, applied, &spent), summary)?;
    let name = |what: &str| format!("burst_{instances}_{what}");
    summary.add(
        name("429s"),
        (number(stack.answered_with(429)), "answers"),
        instances,
        format!("simulator's count, limit 3600 an hour: {}", stack.routes()),
    )?;
    added(("time_added", ""), &lines, summary)?;
    let status = writes.iter().filter(|write| is_status(write)).count();
    summary.add(
        name("status_writes_to_ready"),
        (number(status) / number(instances), "writes"),
        instances,
        format!("audit log; of all writes: {}", by_kind(&writes)),
    )?;
    memory(stack, instances, summary)
}

fn after_boot(
    lines: &[Timeline],
    (began, applied, spent): (Timestamp, f64, &str),
    summary: &mut Summary,
) -> Outcome {
    let n = lines.len();
    let longest = |to: fn(&Timeline) -> f64| lines.iter().map(to).fold(0.0, f64::max);
    let all_ready = lines
        .iter()
        .map(|line| seconds(began, line.ready))
        .fold(0.0, f64::max);
    let created = lines
        .iter()
        .map(|line| seconds(began, line.created))
        .fold(0.0, f64::max);
    let boot = longest(|line| seconds(line.created, line.installed));
    summary.add(
        format!("burst_{n}_after_boot_s"),
        (all_ready - boot, "s"),
        n,
        format!(
            "first apply to last Ready (audit log) {all_ready:.1} s, less the longest boot from POST to installed (simulator, install.log) {boot:.1} s; \
             applying took {applied:.1} s, the last POST came after {created:.1} s; {spent}"
        ),
    )
}

/// Name, length and source of a span of a life.
type Span = (&'static str, fn(&Timeline) -> f64, &'static str);

/// How long an instance waited for the operator once its server was ready to be configured, whole and in its parts.
pub(crate) fn added(
    (name, whose): (&str, &str),
    lines: &[Timeline],
    summary: &mut Summary,
) -> Outcome {
    let spans: [Span; 4] = [
        (
            "",
            |line| seconds(line.installed, line.ready),
            "installed and SSH up (simulator, install.log) to the status write that says Ready (audit log)",
        ),
        (
            "_to_voice",
            |line| seconds(line.installed, line.voice),
            "of it: until the record of the voice is written",
        ),
        (
            "_to_agent",
            |line| seconds(line.voice, line.runs),
            "of it: from there until the agent runs (seen by the simulator)",
        ),
        (
            "_to_ready",
            |line| seconds(line.runs, line.ready),
            "of it: from there until Ready is written",
        ),
    ];
    for (part, span, how) in spans {
        let mut values: Vec<f64> = lines.iter().map(span).collect();
        let (median, most) = (quantile(&mut values, 0.5), quantile(&mut values, 0.99));
        summary.add(
            format!("{name}{part}_p95_s"),
            (quantile(&mut values, 0.95), "s"),
            lines.len(),
            format!("{whose}{how}; p50 {median:.2}, p99 {most:.2}"),
        )?;
    }
    Ok(())
}

fn memory(stack: &Stack, instances: usize, summary: &mut Summary) -> Outcome {
    summary.add(
        format!("memory_{instances}_mib"),
        (resident_mib(stack.process()?)?, "MiB"),
        instances,
        "VmRSS of the operator when all are Ready",
    )
}

/// Creates the rest of the large fleet.
pub(crate) async fn grow(stack: &Stack, scale: &Scale, summary: &mut Summary) -> Outcome {
    stack.create_secrets(scale.burst..scale.fleet).await?;
    stack.create(scale.burst..scale.fleet).await?;
    stack.all_ready(scale.fleet).await?;
    memory(stack, scale.fleet, summary)
}

/// Watches the large fleet while nothing happens.
pub(crate) async fn calm(stack: &Stack, scale: &Scale, summary: &mut Summary) -> Outcome {
    settled(stack).await?;
    let (before, cpu) = (stack.writes()?.len(), cpu_seconds(stack.process()?)?);
    let mutation = latest_mutation(stack);
    stack.cloud.forget_requests();
    sleep(scale.calm).await;
    let used = cpu_seconds(stack.process()?)? - cpu;
    let (n, seconds) = (scale.fleet, scale.calm.as_secs_f64());
    let (requests, limit) = (number(stack.count()), f64::from(3600_u16));
    let name = |what: &str| format!("calm_{n}_{what}");
    let span = format!("in {seconds:.0} s of calm");
    let routes = stack.routes();
    summary.add(
        name("requests"),
        (requests, "requests"),
        n,
        format!("{span}, simulator's count: {routes}"),
    )?;
    let share = requests / (limit * seconds / 3600.0) * 100.0;
    summary.add(
        name("budget_percent"),
        (share, "%"),
        n,
        format!("these of the requests that 3600 an hour allow {span}"),
    )?;
    summary.add(
        name("mutations"),
        (number(mutations(stack, mutation).len()), "requests"),
        n,
        format!("accepted by the simulator {span}"),
    )?;
    let writes = stack.writes()?.split_off(before);
    summary.add(
        name("kubernetes_writes"),
        (number(writes.len()), "writes"),
        n,
        format!(
            "audit log, the Lease left out, {span}: {}",
            by_kind(&writes)
        ),
    )?;
    summary.add(
        name("core_percent"),
        (used / seconds * 100.0, "% of a core"),
        n,
        format!("{used:.2} s of user and system time of the operator {span}, each agent's unit asked for each 60 s over SSH"),
    )?;
    memory_after(stack, scale, summary)
}

fn memory_after(stack: &Stack, scale: &Scale, summary: &mut Summary) -> Outcome {
    summary.add(
        format!("calm_{}_memory_mib", scale.fleet),
        (resident_mib(stack.process()?)?, "MiB"),
        scale.fleet,
        "VmRSS of the operator after the calm",
    )
}

/// Waits until nothing was written anywhere for a while.
pub(crate) async fn settled(stack: &Stack) -> Outcome {
    wait_within(PATIENCE, "nothing is written any more", async || {
        let before = (stack.writes()?.len(), latest_mutation(stack));
        sleep(SETTLED).await;
        Ok((before == (stack.writes()?.len(), latest_mutation(stack))).then_some(()))
    })
    .await
}

fn latest_mutation(stack: &Stack) -> u64 {
    stack
        .cloud
        .mutations(0)
        .last()
        .map_or(0, |mutation| mutation.seq)
}

fn mutations(stack: &Stack, after: u64) -> Vec<String> {
    let mutations = stack.cloud.mutations(after).into_iter();
    mutations
        .filter(|mutation| (mutation.method.as_str(), mutation.route.as_str()) != HOLDER)
        .map(|mutation| format!("{} {}", mutation.method, mutation.path))
        .collect()
}

/// Ends the operator and starts it again.
pub(crate) async fn restart(stack: &mut Stack, scale: &Scale, summary: &mut Summary) -> Outcome {
    let _ended = stack.operator.stop().await?;
    let (before, mutation) = (stack.writes()?.len(), latest_mutation(stack));
    let log = stack.operator.log().len();
    stack.cloud.forget_requests();
    let started = Timestamp::now();
    stack.operator.start_with(&[(
        "AGENTFLEET_LOG_LEVEL",
        "info,agentfleet::agent_instance=debug",
    )])?;
    let looked = wait_within(PATIENCE, "all instances are looked at", async || {
        sleep(Duration::from_millis(500)).await;
        looked_at(&stack.operator.log()[log..], scale.fleet)
    })
    .await?;
    let rest = seconds(Timestamp::now(), started) + START.as_secs_f64();
    sleep(Duration::from_secs_f64(rest.max(0.0))).await;
    let n = scale.fleet;
    let name = |what: &str| format!("restart_{n}_{what}");
    let span = format!(
        "from the start on, {:.0} s",
        seconds(started, Timestamp::now())
    );
    let routes = stack.routes();
    summary.add(
        name("requests"),
        (number(stack.count()), "requests"),
        n,
        format!("simulator's count {span}: {routes}"),
    )?;
    let told = mutations(stack, mutation);
    summary.add(
        name("mutations"),
        (number(told.len()), "requests"),
        n,
        format!(
            "accepted by the simulator {span}, the holder label left out: {}",
            told.join(", ")
        ),
    )?;
    let writes: Vec<Write> = stack.writes()?.split_off(before);
    summary.add(
        name("kubernetes_writes"),
        (number(writes.len()), "writes"),
        n,
        format!(
            "audit log, the Lease left out, {span}: {}",
            by_kind(&writes)
        ),
    )?;
    summary.add(
        name("all_looked_at_s"),
        (seconds(started, looked), "s"),
        n,
        "start of the process to the first look at the last instance that found it serving (operator's log); the Lease was given back before",
    )?;
    summary.add(
        name("memory_mib"),
        (resident_mib(stack.process()?)?, "MiB"),
        n,
        format!("VmRSS of the operator, {span}"),
    )
}

/// When the last of so many instances was first found serving.
fn looked_at(log: &str, instances: usize) -> Outcome<Option<Timestamp>> {
    let mut seen = BTreeSet::new();
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for line in whole.lines().filter(|line| line.contains("Serving(None)")) {
        let line: Value = serde_json::from_str(line)?;
        seen.insert(line["object.ref"].as_str().unwrap_or_default().to_owned());
        if seen.len() == instances {
            let at = line["timestamp"].as_str().unwrap_or_default();
            return Ok(Some(at.parse()?));
        }
    }
    Ok(None)
}
