//! The life of an instance when nothing goes wrong: Ready, changed, at rest, restarted, deleted; and what it costs.

use bed::{Bed, Outcome, Pace, TENANT, ensure, manifests, oracle};
use serde_json::json;

const CONDITIONS: [&str; 7] = [
    "Ready",
    "ServerCreated",
    "Bootstrapped",
    "Configured",
    "Healthy",
    "UpToDate",
    "Stalled",
];

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_becomes_ready_takes_a_new_secret_and_leaves_nothing() -> Outcome {
    let bed = Bed::start().await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let status = one.status().await?;
    for field in ["ipv4", "type", "location", "createdAt", "hostKey"] {
        ensure(status["server"][field].is_string(), || {
            format!("no server.{field} in {status:#}")
        })?;
    }
    ensure(status["phase"] == "Ready", || format!("{status:#}"))?;

    let mutations = bed.latest_mutation();
    let secret = bed.apply_secret("one").await?;
    one.has_in_file(manifests::SECRET_FILE, &secret).await?;
    assert_eq!(
        one.ready().await?,
        server,
        "a Secret is no reason for another server"
    );
    assert_eq!(bed.mutations_after(mutations), [""; 0]);

    one.delete().await?;
    one.gone().await?;
    assert_eq!(bed.cloud().servers().len(), 0);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_class_is_applied_on_the_same_server() -> Outcome {
    let bed = Bed::start().await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let mut class = manifests::class();
    class["spec"]["agent"]["environment"] = json!({"COLOUR": "green"});
    class["spec"]["agent"]["files"] = json!([{"path": "/home/agent/motto", "content": "steady"}]);
    bed.cluster.apply(&class).await?;
    one.has_in_file("/home/agent/motto", "steady").await?;
    one.has_in_file("/etc/agentfleet/environment", "COLOUR")
        .await?;

    bed.cluster.apply(&manifests::class()).await?;
    bed.wait_until("the file that is no longer declared is gone", async || {
        Ok(one.file("/home/agent/motto").await?.is_none())
    })
    .await?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_at_once_cost_few_requests_each() -> Outcome {
    let bed = Bed::start().await?;
    bed.condition(
        ("AgentClass", None, manifests::CLASS),
        "Ready",
        "True",
        "Usable",
    )
    .await?;
    bed.cloud().forget_requests();
    for name in ["one", "two", "three"] {
        bed.create(name).await?;
    }
    for name in ["one", "two", "three"] {
        bed.instance(name).ready().await?;
    }
    for name in ["one", "two", "three"] {
        bed.instance(name).delete().await?;
    }
    for name in ["one", "two", "three"] {
        bed.instance(name).gone().await?;
    }
    let requests = bed.cloud().requests();
    let mutations: u64 = requests
        .iter()
        .filter(|route| route.method != "GET")
        .map(|route| route.count)
        .sum();
    assert_eq!(
        mutations, 6,
        "one POST and one DELETE for each: {requests:#?}"
    );
    let single = requests
        .iter()
        .filter(|route| route.method == "GET" && route.route.contains("{id}"));
    let single: Vec<_> = single.collect();
    assert!(
        single.is_empty(),
        "beside shared lists nothing is asked: {single:#?}"
    );
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i4_after_ready_nothing_is_written_any_more() -> Outcome {
    let bed = Bed::start().await?;
    for name in ["one", "two"] {
        bed.create(name).await?;
    }
    for name in ["one", "two"] {
        bed.instance(name).ready().await?;
    }
    oracle::calm(&bed).await?;
    bed.delete_all().await?;
    bed.finish().await
}

/// A write, with what it says of Ready.
fn told(write: &bed::Write) -> String {
    let ready = oracle::condition(&write.event["responseObject"]["status"], "Ready")
        .cloned()
        .unwrap_or_default();
    format!(
        "{} {} {}",
        write.what, ready["reason"], write.event["requestObject"]["note"]
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn i10_a_restart_changes_nothing_and_asks_little() -> Outcome {
    // So rarely that what is counted is what the restart asks for, however long that takes.
    let mut bed = Bed::start_at(Pace {
        slow: "20s",
        project: "20s",
        ..Pace::default()
    })
    .await?;
    for name in ["one", "two", "three"] {
        bed.create(name).await?;
    }
    let mut servers = Vec::new();
    for name in ["one", "two", "three"] {
        servers.push(bed.instance(name).ready().await?);
    }
    // Counts in a status may come late.
    oracle::calm(&bed).await?;
    bed.operator.stop().await?;
    let (mutations, writes) = (bed.latest_mutation(), bed.writes()?.len());
    bed.cloud().forget_requests();
    bed.operator.start()?;
    // It is at work once it serves a change.
    let secret = bed.apply_secret("two").await?;
    bed.instance("two")
        .has_in_file(manifests::SECRET_FILE, &secret)
        .await?;
    let requests: u64 = bed.cloud().requests().iter().map(|route| route.count).sum();
    assert!(requests <= 1 + 5, "{:#?}", bed.cloud().requests());
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    // While its agent takes the new Secret, the instance is not Ready, and its class counts one less.
    let of_two = |write: &bed::Write| {
        write.what.contains("/two") || write.what.contains("agentclasses/status")
    };
    let foreign = |write: &bed::Write| !write.is_lease() && !of_two(write);
    let written: Vec<_> = bed
        .writes()?
        .split_off(writes)
        .into_iter()
        .filter(foreign)
        .map(|write| told(&write))
        .collect();
    assert_eq!(
        written, [""; 0],
        "nothing but the instance with the new Secret is written"
    );
    for (name, server) in ["one", "two", "three"].into_iter().zip(servers) {
        assert_eq!(bed.instance(name).ready().await?, server);
    }
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_every_condition_is_there_from_the_first_visit_and_generations_never_go_back() -> Outcome
{
    let bed = Bed::start().await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    bed.cluster
        .merge(
            "AgentInstance",
            Some(TENANT),
            "one",
            json!({"spec": {"environment": {"A": "1"}}}),
        )
        .await?;
    one.has_in_file("/etc/agentfleet/environment", "A=").await?;
    one.ready().await?;
    let statuses = bed
        .writes()?
        .into_iter()
        .filter(|write| write.what == "patch agentinstances/status tenant/one");
    let statuses: Vec<_> = statuses
        .map(|write| write.event["responseObject"]["status"].clone())
        .collect();
    assert!(!statuses.is_empty(), "no status was written");
    let mut generation = 0;
    for status in statuses
        .iter()
        .filter(|status| status["conditions"].is_array())
    {
        for kind in CONDITIONS {
            assert!(
                oracle::condition(status, kind).is_some(),
                "no {kind} in {status:#}"
            );
        }
        let observed = status["observedGeneration"].as_u64().unwrap_or_default();
        assert!(
            observed >= generation,
            "observedGeneration went from {generation} to {observed}"
        );
        generation = observed;
    }
    assert_eq!(generation, 2);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i5_a_secret_file_has_its_mode_and_holds_the_secret_alone() -> Outcome {
    use std::os::unix::fs::PermissionsExt as _;
    let bed = Bed::start().await?;
    let secret = bed.apply_secret("one").await?;
    bed.cluster
        .apply(&manifests::instance(TENANT, "one"))
        .await?;
    let one = bed.instance("one");
    let server = one.ready().await?;
    one.has_in_file(manifests::SECRET_FILE, &secret).await?;
    let file = bed
        .cloud()
        .machine(server)?
        .root
        .join(manifests::SECRET_FILE.trim_start_matches('/'));
    assert_eq!(
        std::fs::metadata(file)?.permissions().mode() & 0o7777,
        0o600
    );
    // That the value is nowhere else is looked for at the end of every test.
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_answer_and_a_stop_ends_well() -> Outcome {
    let mut bed = Bed::start().await?;
    for path in ["/healthz", "/readyz"] {
        bed.wait_until(path, async || Ok(bed.operator.get(path).await == Some(200)))
            .await?;
    }
    let status = bed.operator.stop().await?;
    assert!(status.success(), "{status}: {}", bed.operator.last_words());
    bed.finish().await
}
