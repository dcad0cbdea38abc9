//! What befalls servers at their owner's or the provider's hand: each failure is told as what it is, and what it takes to be over is written down.

use bed::{Bed, Instance, Outcome, Pace, manifests};
use serde_json::{Value, json};

use crate::record::{Record, is_ready, tells};

/// A boot of the machine and a start of the agent's unit in it.
const START: &str = "cut -d' ' -f22 /proc/1/stat; systemctl show -p InvocationID agent";
/// The process that is the agent.
const PROCESS: &str = "systemctl show -p MainPID --value agent";
const UNIT: &str = "/etc/systemd/system/agent.service";

/// A class whose agents are asked each second, with a disk of this kind.
fn class(bed: &Bed, name: &str, disk: &str) -> Value {
    let mut class = bed.class();
    class["metadata"]["name"] = json!(name);
    class["spec"]["health"] = json!({"interval": "1s", "timeout": "5s", "failureThreshold": 2});
    class["spec"]["lifecycle"] = json!({
        "disk": disk, "recovery": {"restarts": 1, "reboots": 0, "recreations": 1},
    });
    class
}

/// An instance of a class.
async fn create<'a>(bed: &'a Bed, name: &str, class: &Value) -> Outcome<Instance<'a>> {
    bed.change(class).await?;
    bed.apply_secret(name).await?;
    let mut instance = manifests::instance(bed::TENANT, name);
    instance["spec"]["className"] = class["metadata"]["name"].clone();
    bed.cluster.apply(&instance).await?;
    Ok(bed.instance(name))
}

/// Whoever kills the agent's process, systemd starts it again by itself.
async fn is_killed(bed: &Bed, one: &Instance<'_>) -> Outcome {
    let process = one.shell(PROCESS).await?;
    let mut record = Record::begin("agent killed");
    one.shell(&format!("kill -9 {process}")).await?;
    bed.wait_until("another process is the agent", async || {
        let now = one.shell(PROCESS).await?;
        Ok(now != process && now.trim() != "0")
    })
    .await?;
    record.until(bed, one, "Ready", is_ready).await?;
    record.end(bed, one).await
}

/// A unit that is masked cannot be started by anybody; when a person has put it back and started it, all is well again.
async fn is_masked(bed: &Bed, one: &Instance<'_>) -> Outcome {
    let mut record = Record::begin("unit masked");
    one.shell(&format!(
        "mv {UNIT} /root && ln -s /dev/null {UNIT} && systemctl daemon-reload && systemctl kill -s KILL agent"
    ))
    .await?;
    record
        .until(bed, one, "all that is allowed was tried", |status| {
            tells(status, "Stalled", "True", "RecoveryExhausted")
        })
        .await?;
    one.shell(&format!(
        "mv -f /root/agent.service {UNIT} && systemctl daemon-reload && systemctl start agent"
    ))
    .await?;
    record.until(bed, one, "Ready", is_ready).await?;
    record.end(bed, one).await
}

/// While the network is cut nobody knows how the agent is, and nobody touches it.
async fn is_cut_off(bed: &Bed, one: &Instance<'_>, server: u64) -> Outcome {
    let before = one.shell(START).await?;
    let address = bed.cloud().machine(server)?.address.unwrap_or_default();
    let (host, _port) = address.split_once(':').unwrap_or((&address, ""));
    let rule = ["to", host, "blackhole", "pref", "10"];
    let mut record = Record::begin("network cut");
    on_router(bed, &[&["ip", "rule", "add"], rule.as_slice()].concat())?;
    record
        .until(bed, one, "Unreachable", |status| {
            tells(status, "Healthy", "Unknown", "Unreachable")
                && tells(status, "Ready", "False", "Unreachable")
        })
        .await?;
    on_router(bed, &[&["ip", "rule", "del"], rule.as_slice()].concat())?;
    record.until(bed, one, "Ready", is_ready).await?;
    assert_eq!(one.shell(START).await?, before, "nobody touched it");
    record.end(bed, one).await
}

async fn is_deleted(bed: &Bed, server: u64) -> Outcome {
    let path = format!("/servers/{server}");
    bed.at_hetzner("DELETE", &path, &json!(null)).await?;
    Ok(())
}

fn on_router(bed: &Bed, words: &[&str]) -> Outcome {
    let prefix = bed.cloud().on_router()?;
    let ran = std::process::Command::new(&prefix[0])
        .args(&prefix[1..])
        .args(words)
        .output()?;
    let said = String::from_utf8_lossy(&ran.stderr);
    bed::ensure(ran.status.success(), || format!("{words:?}: {said}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn i14_what_is_killed_masked_cut_off_or_deleted_by_hand_is_told_and_comes_back_where_it_may()
-> Outcome {
    let Some(bed) = Bed::start_real_at(Pace::default()).await? else {
        return Ok(());
    };
    let kept = create(&bed, "kept", &class(&bed, "keeps", "Preserve")).await?;
    let one = create(&bed, "one", &class(&bed, manifests::CLASS, "Disposable")).await?;
    let (keeps, server) = (kept.ready().await?, one.ready().await?);
    let mutations = bed.latest_mutation();
    is_killed(&bed, &kept).await?;
    is_masked(&bed, &kept).await?;
    is_cut_off(&bed, &kept, keeps).await?;
    assert_eq!(kept.ready().await?, keeps);
    assert_eq!(bed.mutations_after(mutations), [""; 0]);

    // One after the other: where nothing answers that should, the way to all is likelier to be at fault than a server.
    let mut disposable = Record::begin("deleted at the provider, disposable");
    is_deleted(&bed, server).await?;
    disposable
        .until(&bed, &one, "Ready on another server", |status| {
            is_ready(status) && status["server"]["id"] != json!(server)
        })
        .await?;
    disposable.end(&bed, &one).await?;
    let mut preserved = Record::begin("deleted at the provider, preserved");
    is_deleted(&bed, keeps).await?;
    let lost = |status: &Value| tells(status, "Stalled", "True", "ServerLost");
    preserved.until(&bed, &kept, "ServerLost", lost).await?;
    preserved.end(&bed, &kept).await?;
    assert_ne!(one.ready().await?, server);
    assert!(lost(&kept.status().await?), "it waits for a person");
    assert_eq!(bed.cloud().lives().len(), 3);
    bed.delete_all().await?;
    bed.finish().await
}
