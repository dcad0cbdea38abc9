//! What bad input gets: a condition that names what is wrong and who can change it, no storm of requests, and no further word once it is right.

use bed::{
    Bed, Options, Outcome, TENANT, TOKEN, free_port, manifests, operator, oracle, quick_cloud,
    scratch, write_private,
};
use hetzner_sim::Config;
use serde_json::{Value, json};

const CLASS: (&str, Option<&str>, &str) = ("AgentClass", None, manifests::CLASS);
const PROJECT: (&str, Option<&str>, &str) = ("HetznerProject", None, manifests::PROJECT);

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named_and_the_instance_goes_on_when_it_appears() -> Outcome {
    let bed = Bed::with(Options::default()).await?;
    bed.cluster
        .apply(&manifests::instance(TENANT, "one"))
        .await?;
    let one = bed.instance("one");
    one.condition("Ready", "False", "ClassMissing").await?;
    bed.cluster.apply(&manifests::class()).await?;
    one.told(&["one", TENANT]).await?;
    bed.cluster
        .apply(&manifests::secret(TENANT, "one", "OTHER", "x"))
        .await?;
    one.told(&["API_KEY", "what the agent calls its model with"])
        .await?;
    bed.apply_secret("one").await?;
    one.told(&[manifests::PROJECT]).await?;
    bed.cluster
        .apply(&manifests::project(manifests::PROJECT))
        .await?;
    bed.told(PROJECT, &[&manifests::token_secret(manifests::PROJECT)])
        .await?;
    assert_eq!(bed.cloud().lives().len(), 0);
    bed.apply_token(manifests::PROJECT, TOKEN).await?;
    one.ready().await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_told_at_the_project_and_instances_wait() -> Outcome {
    let bed = Bed::with(Options::default()).await?;
    bed.apply_token(manifests::PROJECT, "wrong").await?;
    bed.cluster
        .apply(&manifests::project(manifests::PROJECT))
        .await?;
    bed.cluster.apply(&manifests::class()).await?;
    let one = bed.create("one").await?;
    bed.wait_until("CredentialsValid=False", async || {
        let project = bed
            .cluster
            .get(PROJECT.0, None, PROJECT.2)
            .await?
            .unwrap_or_default();
        Ok(oracle::condition(&project["status"], "CredentialsValid")
            .is_some_and(|found| found["status"] == "False"))
    })
    .await?;
    one.told(&[manifests::PROJECT, "token"]).await?;
    bed.apply_token(manifests::PROJECT, TOKEN).await?;
    one.ready().await?;
    bed.delete_all().await?;
    bed.finish().await
}

async fn class_says(field: &str, value: Value, words: &[&str]) -> Outcome {
    let bed = Bed::with(Options::default()).await?;
    bed.apply_token(manifests::PROJECT, TOKEN).await?;
    bed.cluster
        .apply(&manifests::project(manifests::PROJECT))
        .await?;
    let mut class = manifests::class();
    class["spec"][field] = value;
    bed.cluster.apply(&class).await?;
    let one = bed.create("one").await?;
    bed.told(CLASS, words).await?;
    assert_eq!(bed.requests_to("POST", "/servers"), 0);
    bed.cluster.apply(&manifests::class()).await?;
    one.ready().await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_server_type_is_named_with_the_valid_ones() -> Outcome {
    class_says(
        "serverTypes",
        json!(["cx99999"]),
        &["serverTypes", "cx99999", "cx23"],
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_location_is_named_with_the_valid_ones() -> Outcome {
    class_says(
        "locations",
        json!(["atlantis"]),
        &["locations", "atlantis", "nbg1"],
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_image_is_named_with_the_valid_ones() -> Outcome {
    class_says(
        "image",
        json!("windows-95"),
        &["image", "windows-95", "debian-13"],
    )
    .await
}

/// Text that does not shrink.
fn noise(length: usize) -> String {
    (0..length)
        .map(|_| char::from(rand::random_range(33..127_u8)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn user_data_that_is_too_large_is_told_with_both_sizes_and_not_sent() -> Outcome {
    let bed = Bed::start().await?;
    let mut class = manifests::class();
    let files = ["a", "b", "c"]
        .map(|name| json!({"path": format!("/home/agent/{name}"), "content": noise(16_000)}));
    class["spec"]["agent"]["files"] = json!(files);
    bed.change(&class).await?;
    let one = bed.create("one").await?;
    let told = one.told(&["32768"]).await?;
    let message = told["message"].as_str().unwrap_or_default();
    let numbers = message.split(|c: char| !c.is_ascii_digit());
    let sizes: Vec<u32> = numbers.filter_map(|number| number.parse().ok()).collect();
    assert!(
        sizes.contains(&32768) && sizes.iter().any(|size| *size > 32768),
        "{message}"
    );
    assert_eq!(bed.requests_to("POST", "/servers"), 0);
    bed.cluster.apply(&manifests::class()).await?;
    one.ready().await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_that_the_class_does_not_allow_is_told_with_who_sets_it() -> Outcome {
    let bed = Bed::start().await?;
    bed.apply_secret("one").await?;
    let mut instance = manifests::instance(TENANT, "one");
    instance["spec"]["overrides"] = json!({"serverTypes": ["cx33"]});
    bed.cluster.apply(&instance).await?;
    let one = bed.instance("one");
    one.told(&["serverTypes", "allowedOverrides", manifests::CLASS])
        .await?;
    assert_eq!(bed.requests_to("POST", "/servers"), 0);
    let mut class = manifests::class();
    class["spec"]["allowedOverrides"] = json!(["ServerTypes"]);
    bed.change(&class).await?;
    one.ready().await?;
    assert_eq!(one.status().await?["server"]["type"], "cx33");
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_the_class_is_not_offered_to_is_told() -> Outcome {
    let bed = Bed::start().await?;
    let mut class = manifests::class();
    class["spec"]["namespaceSelector"] =
        json!({"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}});
    bed.change(&class).await?;
    let one = bed.create("one").await?;
    one.told(&[TENANT, "namespaceSelector"]).await?;
    assert_eq!(bed.requests_to("POST", "/servers"), 0);
    class["spec"]["namespaceSelector"] =
        json!({"matchLabels": {"kubernetes.io/metadata.name": TENANT}});
    bed.change(&class).await?;
    one.ready().await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_class_and_project_are_told_with_who_sets_them() -> Outcome {
    let bed = Bed::start().await?;
    bed.create("one").await?.ready().await?;
    let mut class = manifests::class();
    class["spec"]["limits"] = json!({"instances": 1});
    bed.change(&class).await?;
    let two = bed.create("two").await?;
    two.told(&["limits.instances", "1"]).await?;
    bed.change(&manifests::class()).await?;
    two.ready().await?;

    let mut project = manifests::project(manifests::PROJECT);
    project["spec"]["maxServers"] = json!(2);
    bed.change(&project).await?;
    let three = bed.create("three").await?;
    three.told(&["maxServers", "2"]).await?;
    assert_eq!(bed.cloud().lives().len(), 2);
    bed.cluster
        .apply(&manifests::project(manifests::PROJECT))
        .await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_stock_takes_the_next_place() -> Outcome {
    let bed = Bed::start().await?;
    bed.cloud().set_stock("cx23", "nbg1", Some(0));
    let one = bed.create("one").await?;
    one.ready().await?;
    assert_eq!(one.status().await?["server"]["location"], "fsn1");
    let two = bed.create("two").await?;
    two.ready().await?;
    assert!(
        bed.requests_to("POST", "/servers") <= 3,
        "what is out of stock is remembered for all instances"
    );
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_stock_everywhere_is_told_and_not_asked_for_again_and_again() -> Outcome {
    let bed = Bed::start().await?;
    for location in ["nbg1", "fsn1"] {
        bed.cloud().set_stock("cx23", location, Some(0));
    }
    let one = bed.create("one").await?;
    one.condition("Ready", "False", "OutOfStock").await?;
    oracle::calm(&bed).await?;
    assert!(
        bed.requests_to("POST", "/servers") <= 2,
        "{:#?}",
        bed.cloud().requests()
    );
    assert_eq!(bed.cloud().lives().len(), 0);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_quota_is_told_at_project_and_instance() -> Outcome {
    let bed = Bed::with(Options {
        cloud: Config {
            max_servers: Some(1),
            ..quick_cloud()
        },
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    bed.create("one").await?.ready().await?;
    let two = bed.create("two").await?;
    bed.condition(PROJECT, "QuotaAvailable", "False", "QuotaExceeded")
        .await?;
    two.condition("Ready", "False", "QuotaExceeded").await?;
    oracle::calm(&bed).await?;
    assert!(
        bed.requests_to("POST", "/servers") <= 2,
        "{:#?}",
        bed.cloud().requests()
    );
    bed.instance("one").ready().await?;
    bed.delete_all().await?;
    bed.finish().await
}

/// Runs the operator with these arguments and environment; answers what it said when it ended.
async fn ends_with_one_line(arguments: &[&str], kubeconfig: &str) -> Outcome<String> {
    let output = tokio::process::Command::new(operator()?)
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(bed::PATIENCE, output).await??;
    assert!(!output.status.success(), "{arguments:?} went well");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_flag_a_bad_kubeconfig_and_a_bad_endpoint_end_the_operator_with_a_clear_line()
-> Outcome {
    let flag = ends_with_one_line(&["run", "--settle", "soon"], "/dev/null").await?;
    assert!(flag.contains("--settle") && flag.contains("soon"), "{flag}");
    let kubeconfig = ends_with_one_line(
        &[
            "run",
            "--namespace",
            bed::SYSTEM,
            "--http-listen",
            "127.0.0.1:0",
        ],
        "/nonexistent/kubeconfig",
    )
    .await?;
    assert!(
        kubeconfig.contains("/nonexistent/kubeconfig") && !kubeconfig.contains("panicked"),
        "{kubeconfig}"
    );
    let endpoint = ends_with_one_line(
        &[
            "run",
            "--namespace",
            bed::SYSTEM,
            "--http-listen",
            "127.0.0.1:0",
            "--hcloud-endpoint",
            "nowhere",
        ],
        "/dev/null",
    )
    .await?;
    assert!(endpoint.contains("nowhere"), "{endpoint}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_nobody_reaches_ends_the_operator_with_one_line_that_names_it() -> Outcome
{
    let dir = scratch("unreachable")?;
    let server = format!("https://127.0.0.1:{}", free_port()?);
    let kubeconfig = dir.join("kubeconfig");
    let nowhere = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": server}}],
        "users": [{"name": "x", "user": {"token": "x"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    });
    write_private(&kubeconfig, &nowhere.to_string())?;
    let arguments = [
        "run",
        "--namespace",
        bed::SYSTEM,
        "--http-listen",
        "127.0.0.1:0",
    ];
    let said = ends_with_one_line(&arguments, &kubeconfig.to_string_lossy()).await?;
    std::fs::remove_dir_all(dir)?;
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("agentfleet: "))
        .collect();
    assert!(lines.len() == 1 && lines[0].contains(&server), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_cannot_start_is_told_with_its_last_lines_and_buys_nothing() -> Outcome {
    let slow = Config {
        time_factor: 1.0,
        boot_ssh_s: hetzner_sim::Spread::exactly(2.0),
        boot_cloud_init_s: hetzner_sim::Spread::exactly(2.0),
        ..quick_cloud()
    };
    let bed = Bed::with(Options {
        cloud: slow,
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    let one = bed.create("one").await?;
    bed.wait_until("the server exists", async || {
        Ok(one.status().await?["server"]["id"].is_u64())
    })
    .await?;
    let server = one.status().await?["server"]["id"]
        .as_u64()
        .unwrap_or_default();
    let guest = hetzner_sim::GuestFaults {
        unit_fails: true,
        ..hetzner_sim::GuestFaults::default()
    };
    bed.cloud().set_machine_faults(
        server,
        hetzner_sim::MachineFaults {
            guest,
            ..hetzner_sim::MachineFaults::default()
        },
    )?;
    one.condition("Stalled", "True", "UnitFailed").await?;
    one.told(&["Failed to start"]).await?;
    assert_eq!(
        bed.cloud().lives().len(),
        1,
        "a new server would not cure it"
    );
    bed.cloud()
        .set_machine_faults(server, hetzner_sim::MachineFaults::default())?;
    bed.apply_secret("one").await?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}
