//! What Prometheus scrapes agrees with what happened, as the simulator saw it, and tells no name and no secret.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use bed::{
    Bed, FLEET, Operator, Options, Outcome, Pace, TENANT, TOKEN, built, ensure, manifests, oracle,
    wait_for, wait_until,
};
use hetzner_sim::MachineFaults;
use serde_json::{Value, json};

/// Stands in no other word.
const NAME: &str = "wobbegong";

/// The samples of a scrape, as the official client of Prometheus for Python reads them.
struct Scrape {
    text: String,
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Scrape {
    fn parse(text: String) -> Outcome<Self> {
        const READ: &str = r"
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
families = text_string_to_metric_families(sys.stdin.read())
print(json.dumps([(s.name, s.labels, s.value) for family in families for s in family.samples]))
";
        let mut python = Command::new(built("venv/bin/python", "venv")?)
            .args(["-c", READ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = python.stdin.take() {
            stdin.write_all(text.as_bytes())?;
        }
        let read = python.wait_with_output()?;
        ensure(read.status.success(), || format!("not readable: {text}"))?;
        let samples = serde_json::from_slice(&read.stdout)?;
        Ok(Self { text, samples })
    }

    async fn of(operator: &Operator) -> Outcome<Self> {
        let text = wait_for("/metrics answers", async || Ok(operator.scrape().await));
        Self::parse(text.await?)
    }

    /// Waits until the sum of a name and labels is this.
    async fn with(
        operator: &Operator,
        name: &str,
        labels: &[(&str, &str)],
        expected: f64,
    ) -> Outcome<Self> {
        let what = format!("{name} {labels:?} is {expected}");
        wait_for(&what, async || {
            let scrape = Self::of(operator).await?;
            Ok(scrape.has(name, labels, expected).is_ok().then_some(scrape))
        })
        .await
    }

    /// The sum of all samples of a name that have these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|(_, value)| value).sum()
    }

    fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a BTreeMap<String, String>, f64)> {
        let of_name = self.samples.iter().filter(move |sample| sample.0 == name);
        of_name
            .filter(|(_, own, _)| {
                let has =
                    |(key, value): &(&str, &str)| own.get(*key).is_some_and(|own| own == value);
                labels.iter().all(has)
            })
            .map(|(_, labels, value)| (labels, *value))
    }

    fn has(&self, name: &str, labels: &[(&str, &str)], expected: f64) -> Outcome {
        let found = self.sum(name, labels);
        ensure((found - expected).abs() < 0.5, || {
            let lines = self.text.lines().filter(|line| line.starts_with(name));
            let lines: Vec<&str> = lines.collect();
            format!("{name} {labels:?} is {found}, not {expected}: {lines:#?}")
        })
    }

    /// Requests that changed something, by verb and route.
    fn mutations(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for (labels, value) in self.matching("agentfleet_hetzner_requests_total", &[]) {
            if !labels["route"].starts_with("GET ") && labels["code"].starts_with('2') {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "small counts"
                )]
                let value = value as u64;
                *all.entry(labels["route"].clone()).or_default() += value;
            }
        }
        all
    }
}

/// What the simulator says that changed something.
fn mutations(bed: &Bed) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for mutation in bed.cloud().mutations(0) {
        let route = mutation.route.trim_start_matches("/v1");
        *all.entry(format!("{} {route}", mutation.method))
            .or_default() += 1;
    }
    all
}

/// Nothing that tells one instance from another, and no secret.
fn tells_nobody(scrape: &Scrape, status: &Value) -> Outcome {
    let server = &status["server"];
    let (id, name) = (server["id"].to_string(), server["name"].to_string());
    let address = server["ipv4"].to_string();
    for word in [NAME, TENANT, TOKEN, "canary-", &name, &address] {
        let word = word.trim_matches('"');
        ensure(!scrape.text.contains(word), || format!("{word} is told"))?;
    }
    for (_, labels, _) in &scrape.samples {
        ensure(!labels.values().any(|value| *value == id), || {
            format!("server {id} is told: {labels:?}")
        })?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_life_is_counted_as_the_simulator_saw_it() -> Outcome {
    let bed = Bed::with(Options {
        pace: Pace {
            unreachable: "2s",
            ..Pace::default()
        },
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    let mut class = manifests::class();
    class["spec"]["health"] = json!({"interval": "1s", "failureThreshold": 2});
    bed.change(&class).await?;
    let one = bed.create(NAME).await?;
    let server = one.ready().await?;
    let status = one.status().await?;
    oracle::calm(&bed).await?;

    let ready = Scrape::of(&bed.operator).await?;
    let worker = ("class", manifests::CLASS);
    ready.has("agentfleet_leader", &[], 1.0)?;
    ready.has("agentfleet_instances", &[worker, ("phase", "Ready")], 1.0)?;
    ready.has("agentfleet_instances", &[], 1.0)?;
    ready.has("agentfleet_instances_stalled", &[], 0.0)?;
    ready.has(
        "agentfleet_project_ready",
        &[("project", manifests::PROJECT)],
        1.0,
    )?;
    ready.has(
        "agentfleet_class_rollout",
        &[worker, ("state", "Updated")],
        1.0,
    )?;
    ready.has("agentfleet_recovery_held", &[], 0.0)?;
    ready.has("agentfleet_probers", &[], 1.0)?;
    let new = [worker, ("cause", "New")];
    ready.has("agentfleet_servers_created_total", &new, 1.0)?;
    ready.has("agentfleet_servers_created_total", &[], 1.0)?;
    let configured = [("command", "configure"), ("outcome", "done")];
    ready.has("agentfleet_ssh_acts_total", &configured, 1.0)?;
    for timing in status["timings"].as_array().into_iter().flatten() {
        let step = timing["step"].as_str().unwrap_or_default();
        ready.has(
            "agentfleet_lifecycle_step_seconds_count",
            &[("step", step)],
            1.0,
        )?;
    }
    ready.has(
        "agentfleet_lifecycle_step_seconds_count",
        &[("step", "Ready")],
        1.0,
    )?;
    let good = [("kind", "systemd"), ("outcome", "good")];
    let probes = ready.sum("agentfleet_probes_total", &good);
    ensure(probes >= 1.0, || format!("{probes} probes were good"))?;
    for kind in ["AgentInstance", "AgentClass", "HetznerProject"] {
        let done = [("kind", kind), ("outcome", "done")];
        let looks = ready.sum("agentfleet_reconciles_total", &done);
        ensure(looks >= 1.0, || format!("no {kind} was looked at"))?;
    }
    let left = ready.sum("agentfleet_hetzner_budget_left", &[]);
    let limit = ready.sum("agentfleet_hetzner_budget_limit", &[]);
    ensure(0.0 < left && left <= limit, || format!("{left} of {limit}"))?;
    assert_eq!(ready.mutations(), mutations(&bed));
    tells_nobody(&ready, &status)?;

    let frozen = MachineFaults {
        frozen: true,
        ..MachineFaults::default()
    };
    bed.cloud().set_machine_faults(server, frozen)?;
    // A frozen machine is asked to reboot in vain, and then made to.
    let reboot = [worker, ("rung", "Reboot")];
    Scrape::with(&bed.operator, "agentfleet_recoveries_total", &reboot, 2.0).await?;
    one.ready().await?;

    one.delete().await?;
    one.gone().await?;
    bed.wait_until("no server is left", async || {
        Ok(bed.cloud().servers().is_empty())
    })
    .await?;
    let gone = Scrape::with(&bed.operator, "agentfleet_instances", &[], 0.0).await?;
    gone.has("agentfleet_probers", &[], 0.0)?;
    let deletion = [("route", "DELETE /servers/{id}"), ("lane", "delete")];
    gone.has("agentfleet_hetzner_requests_total", &deletion, 1.0)?;
    assert_eq!(gone.mutations(), mutations(&bed));
    gone.has("agentfleet_recoveries_total", &[], 2.0)?;
    tells_nobody(&gone, &status)?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_and_what_belongs_to_nobody_is_counted() -> Outcome {
    let dir = bed::scratch("metrics")?;
    let key = dir.join("webhook-key");
    fs::write(&key, "whsec_SGFsZiBhIGJsb2NrIG9mIGJ5dGVzLCBubyBtb3JlLg==\n")?;
    let key = key.display().to_string();
    let deaf = format!("http://127.0.0.1:{}/hook", bed::free_port()?);
    let flags = [
        ["--zombie-sweep-period", "1s"],
        ["--zombie-min-age", "0s"],
        ["--webhook-url", &deaf],
        ["--webhook-secret-file", &key],
        ["--webhook-patience", "1s"],
    ];
    let bed = Bed::with(Options {
        flags: flags.concat().into_iter().map(str::to_owned).collect(),
        dir: Some(dir),
        ..Options::default()
    })
    .await?;
    bed.cloud().set_rate_limit(0, 100_000)?;
    bed.apply_basics().await?;
    bed.create(NAME).await?.ready().await?;
    let mut class = manifests::class();
    class["metadata"]["name"] = json!("broken");
    class["spec"]["lifecycle"] = json!({"onProvisionFailure": "Remove"});
    class["spec"]["agent"]["install"] = json!(["exit 7"]);
    bed.change(&class).await?;
    bed.apply_secret("two").await?;
    let mut two = manifests::instance(TENANT, "two");
    two["spec"]["className"] = json!("broken");
    bed.cluster.apply(&two).await?;

    let broken = ("class", "broken");
    let given_up = [broken, ("reason", "ProvisionFailed")];
    let failed = Scrape::with(
        &bed.operator,
        "agentfleet_instances_stalled",
        &given_up,
        1.0,
    )
    .await?;
    let removed = [broken, ("reason", "InstallFailed"), ("level", "Remove")];
    failed.has("agentfleet_creation_rollbacks_total", &removed, 1.0)?;
    failed.has("agentfleet_creation_rollbacks_total", &[], 1.0)?;
    failed.has("agentfleet_servers_created_total", &[("cause", "New")], 2.0)?;
    failed.has(
        "agentfleet_webhook_deliveries_total",
        &[("outcome", "done")],
        0.0,
    )?;
    let deaf = [("outcome", "failed")];
    let tries = failed.sum("agentfleet_webhook_deliveries_total", &deaf);
    ensure(tries >= 1.0, || failed.text.clone())?;

    let labels = [
        ("fleet", FLEET),
        ("namespace", TENANT),
        ("name", "gone"),
        ("uid", "an-earlier-one"),
        ("incarnation", "1"),
        ("disk", "Disposable"),
    ];
    let labels = labels.map(|(key, value)| (format!("agentfleet.dev/{key}"), value));
    let host = agentfleet::naming::server_name(FLEET, TENANT, "gone", 1);
    bed.cloud().create_server(
        0,
        &json!({
            "name": host, "server_type": "cx23", "image": "debian-13", "location": "nbg1", "start_after_create": false,
            "labels": BTreeMap::from(labels),
        }),
    )?;
    let swept = [("kind", "server"), ("reason", "Disposable")];
    let swept = Scrape::with(
        &bed.operator,
        "agentfleet_zombies_deleted_total",
        &swept,
        1.0,
    )
    .await?;
    swept.has("agentfleet_zombie_sweep_held", &[], 0.0)?;
    let clean = Scrape::with(&bed.operator, "agentfleet_zombies", &[], 0.0).await?;
    let last = clean.sum("agentfleet_zombie_last_sweep_timestamp_seconds", &[]);
    ensure(last > 1e9, || format!("the last sweep was at {last}"))?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_scraped_too_and_shows_the_fleet_once_it_leads() -> Outcome {
    let mut bed = Bed::start().await?;
    bed.create(NAME).await?.ready().await?;
    let fleet = "agentfleet_instances";
    Scrape::with(&bed.operator, fleet, &[("phase", "Ready")], 1.0).await?;
    let mut standby = bed.replica()?;
    standby.start()?;
    let waits = Scrape::with(&standby, "agentfleet_leader", &[], 0.0).await?;
    waits.has("agentfleet_build_info", &[], 1.0)?;
    waits.has(fleet, &[], 0.0)?;
    waits.has("agentfleet_reconciles_total", &[], 0.0)?;
    assert_eq!(waits.mutations(), BTreeMap::new());

    bed.operator.stop().await?;
    let leads = Scrape::with(&standby, fleet, &[("phase", "Ready")], 1.0).await?;
    leads.has("agentfleet_leader", &[], 1.0)?;
    leads.has("agentfleet_servers_created_total", &[], 0.0)?;
    let steps = leads.sum("agentfleet_lifecycle_step_seconds_count", &[]);
    assert!(
        steps < 0.5,
        "what an earlier process reported is not counted again"
    );

    bed.operator.start()?;
    standby.stop().await?;
    wait_until("the first one leads again", async || {
        let scrape = Scrape::of(&bed.operator).await?;
        Ok(scrape.sum("agentfleet_leader", &[]) > 0.5)
    })
    .await?;
    bed.delete_all().await?;
    bed.finish().await
}
