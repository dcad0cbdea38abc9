//! Whether an agent serves is what its probes say, and nothing is written while they say the same.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use bed::{Bed, Instance, Options, Outcome, manifests, oracle};
use hetzner_sim::{MachineFaults, SshFault};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A bed whose class has these probes, each second.
async fn probed(health: Value) -> Outcome<Bed> {
    let bed = Bed::with(Options::default()).await?;
    bed.apply_basics().await?;
    let mut class = manifests::class();
    class["spec"]["ipv6"] = json!(false);
    if health.get("http").is_some() {
        class["spec"]["firewall"]["healthFrom"] = json!(["127.0.0.0/8"]);
    }
    class["spec"]["health"] = health;
    class["spec"]["health"]["interval"] = json!("1s");
    class["spec"]["health"]["failureThreshold"] = json!(2);
    class["spec"]["lifecycle"]["recovery"] = json!({"restarts": 0, "reboots": 0, "recreations": 0});
    bed.change(&class).await?;
    Ok(bed)
}

async fn home(bed: &Bed, one: &Instance<'_>) -> Outcome<PathBuf> {
    let id = one.status().await?["server"]["id"]
        .as_u64()
        .unwrap_or_default();
    Ok(bed.cloud().machine(id)?.root.join("home/agent"))
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_an_agent_is_ready_for_as_long_as_its_command_says_so() -> Outcome {
    // It tells its Secret, plain and encoded, which nobody must hear of.
    let command = "cat .env; base64 -w0 .env; echo; echo looks for up; test -e up";
    let bed = probed(json!({"exec": {"command": command}})).await?;
    let one = bed.create("one").await?;
    one.condition("Ready", "False", "ProbeFailed").await?;
    one.told(&[
        "the probe command ended with 1: API_KEY=",
        "[redacted]",
        " | looks for up",
    ])
    .await?;
    let up = home(&bed, &one).await?.join("up");
    std::fs::write(&up, "")?;
    let server = one.ready().await?;
    oracle::calm(&bed).await?;

    std::fs::remove_file(&up)?;
    one.condition("Ready", "False", "ProbeFailed").await?;
    assert_eq!(one.status().await?["health"]["state"], "Failed");
    oracle::calm(&bed).await?;
    std::fs::write(&up, "")?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

/// Answers every request with the status of now.
async fn serve(listener: TcpListener, status: Arc<AtomicU16>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let (mut request, status) = ([0; 1024], status.load(Ordering::Relaxed));
        let _ = stream.read(&mut request).await;
        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_answers_over_http_is_ready_and_its_firewall_lets_the_probe_in() -> Outcome {
    let bed = probed(json!({"http": {"port": 8080, "path": "/health"}})).await?;
    let one = bed.create("one").await?;
    one.told(&["GET :8080/health"]).await?;
    let opened = bed
        .cloud()
        .mutations(0)
        .into_iter()
        .filter_map(|mutation| mutation.body["rules"].as_array().cloned())
        .next_back()
        .unwrap_or_default();
    assert!(
        opened.iter().any(|rule| rule["port"] == "8080"),
        "{opened:#?}"
    );
    let address = one.status().await?["server"]["ipv4"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let status = Arc::new(AtomicU16::new(503));
    let listener = TcpListener::bind((address.as_str(), 8080)).await?;
    let serving = tokio::spawn(serve(listener, status.clone()));
    one.told(&["GET :8080/health answers 503"]).await?;
    status.store(204, Ordering::Relaxed);
    one.ready().await?;
    serving.abort();
    one.condition("Ready", "False", "ProbeFailed").await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_cannot_be_asked_is_unknown_and_a_restart_of_the_operator_presumes_nothing_else()
-> Outcome {
    let mut bed = probed(json!({"systemd": {}})).await?;
    let server = bed.create("one").await?.ready().await?;
    let silent = MachineFaults {
        ssh: SshFault::Refuse,
        ..MachineFaults::default()
    };
    bed.cloud().set_machine_faults(server, silent)?;
    bed.instance("one")
        .condition("Healthy", "Unknown", "Unreachable")
        .await?;
    bed.instance("one")
        .condition("Ready", "False", "Unreachable")
        .await?;
    bed.operator.kill()?;
    bed.operator.start()?;
    oracle::calm(&bed).await?;
    bed.instance("one")
        .condition("Ready", "False", "Unreachable")
        .await?;
    bed.cloud()
        .set_machine_faults(server, MachineFaults::default())?;
    assert_eq!(bed.instance("one").ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

/// The IPv4 address in the status of an instance.
async fn address(one: &Instance<'_>) -> Outcome<String> {
    let status = one.status().await?;
    Ok(status["server"]["ipv4"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_an_agent_is_asked_at_the_address_that_its_server_has_now() -> Outcome {
    let bed = probed(json!({"http": {"port": 8080}, "timeout": "3s"})).await?;
    let one = bed.create("one").await?;
    one.told(&["GET :8080/"]).await?;
    let former = address(&one).await?;
    let status = Arc::new(AtomicU16::new(204));
    let listener = TcpListener::bind((former.as_str(), 8080)).await?;
    // Whoever has that address later answers as well as the agent did.
    let stranger = tokio::spawn(serve(listener, status.clone()));
    let server = one.ready().await?;
    let mutations = bed.latest_mutation();

    bed.cloud().change_ipv4(server, true)?;
    one.condition("Ready", "False", "ProbeFailed").await?;
    let now = address(&one).await?;
    assert_ne!(now, former);
    let listener = TcpListener::bind((now.as_str(), 8080)).await?;
    let serving = tokio::spawn(serve(listener, status.clone()));
    assert_eq!(one.ready().await?, server);

    bed.cloud().change_ipv4(server, false)?;
    let told = one.condition("Stalled", "True", "NoAddress").await?;
    assert!(told.contains(&format!("server {server}")), "{told}");
    one.condition("Ready", "False", "NoAddress").await?;
    assert_eq!(one.status().await?["health"]["state"], "Unknown");
    bed.cloud().change_ipv4(server, true)?;
    one.condition("Stalled", "False", "NotStalled").await?;
    serving.abort();
    let listener = TcpListener::bind((address(&one).await?.as_str(), 8080)).await?;
    let serving = tokio::spawn(serve(listener, status.clone()));
    assert_eq!(one.ready().await?, server);

    bed.cloud().block_ipv4(server, true)?;
    one.condition("Stalled", "True", "ProviderBlocked").await?;
    one.condition("Ready", "False", "ProviderBlocked").await?;
    bed.cloud().block_ipv4(server, false)?;
    assert_eq!(one.ready().await?, server);
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    stranger.abort();
    serving.abort();
    bed.delete_all().await?;
    bed.finish().await
}
