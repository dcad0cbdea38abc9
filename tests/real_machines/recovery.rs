//! What happens to servers and agents of their own, and what brings them back.

use bed::{Bed, Instance, Outcome, Pace, manifests, oracle};
use hetzner_sim::MachineFaults;
use serde_json::{Value, json};

use crate::record::{Record, is_ready, tells};

/// A boot of the machine and a start of the agent's unit in it.
const START: &str = "cat /proc/1/stat | cut -d' ' -f22; systemctl show -p InvocationID agent";

/// A bed whose agents are asked each second. A busy host answers late: that is no silence.
async fn bed(unreachable: &'static str) -> Outcome<Option<Bed>> {
    let pace = Pace {
        unreachable,
        ..Pace::default()
    };
    let Some(bed) = Bed::start_real_at(pace).await? else {
        return Ok(None);
    };
    let mut class = bed.class();
    class["spec"]["health"] = json!({"interval": "1s", "timeout": "3s", "failureThreshold": 2});
    bed.change(&class).await?;
    Ok(Some(bed))
}

async fn tries(one: &Instance<'_>) -> Outcome<Vec<String>> {
    Ok(tried(&one.status().await?))
}

fn tried(status: &Value) -> Vec<String> {
    let tries = status["recovery"].as_array().cloned().unwrap_or_default();
    let action = |done: &Value| done["action"].as_str().unwrap_or_default().to_owned();
    tries.iter().map(action).collect()
}

/// Waits until the instance stopped being Ready, and is again; answers its server.
async fn comes_back(bed: &Bed, one: &Instance<'_>, what: &'static str) -> Outcome<u64> {
    let mut record = Record::begin(what);
    record
        .until(bed, one, "it is seen not to serve", |status| {
            oracle::condition(status, "Ready").is_some_and(|ready| ready["status"] == "False")
        })
        .await?;
    record.until(bed, one, "Ready", is_ready).await?;
    record.end(bed, one).await?;
    one.ready().await
}

/// Waits until events tell, in this order, whether an instance is Ready and why not.
async fn told_in_order(bed: &Bed, one: &Instance<'_>, reasons: &[&str]) -> Outcome {
    bed.wait_until(&format!("{reasons:?} are told"), async || {
        let mut events = bed.cluster.list("Event").await?;
        events.retain(|event| {
            event["regarding"]["name"] == one.name.as_str() && event["action"] == "Ready"
        });
        events.sort_by_key(|event| event["eventTime"].to_string());
        let mut told = events.iter();
        Ok(reasons
            .iter()
            .all(|reason| told.any(|event| event["reason"] == *reason)))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_stopped_or_killed_for_good_is_started_again() -> Outcome {
    let Some(bed) = bed("5m").await? else {
        return Ok(());
    };
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let mutations = bed.latest_mutation();
    one.shell("systemctl stop agent").await?;
    let stopped = comes_back(&bed, &one, "agent stopped").await?;
    assert_eq!(stopped, server);
    let story = ["Serving", "Restarting", "Serving"];
    told_in_order(&bed, &one, &story).await?;
    one.shell(
        "mkdir -p /run/systemd/system/agent.service.d && \
         printf '[Service]\\nRestart=no\\n' > /run/systemd/system/agent.service.d/99-no.conf && \
         systemctl daemon-reload && systemctl kill -s KILL agent",
    )
    .await?;
    let killed = comes_back(&bed, &one, "agent killed for good").await?;
    assert_eq!(killed, server);
    told_in_order(&bed, &one, &[&story[..], &story[1..]].concat()).await?;
    assert_eq!(tries(&one).await?, ["Restart", "Restart"]);
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_machine_is_reset_and_its_agent_speaks_again() -> Outcome {
    let Some(bed) = bed("3s").await? else {
        return Ok(());
    };
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let mutations = bed.latest_mutation();
    let before = one.shell(START).await?;
    let frozen = MachineFaults {
        frozen: true,
        ..MachineFaults::default()
    };
    bed.cloud().set_machine_faults(server, frozen)?;
    let mut record = Record::begin("machine frozen");
    record
        .until(&bed, &one, "it was rebooted twice", |status| {
            tried(status) == ["Reboot", "Reboot"]
        })
        .await?;
    record.until(&bed, &one, "Ready", is_ready).await?;
    record.end(&bed, &one).await?;
    assert_eq!(one.ready().await?, server);
    assert_ne!(one.shell(START).await?, before);
    assert_eq!(
        bed.mutations_after(mutations),
        [
            "POST /servers/{id}/actions/reboot",
            "POST /servers/{id}/actions/reset"
        ]
    );
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_a_lost_disk_comes_back_from_a_snapshot_and_the_agent_remembers() -> Outcome {
    let Some(bed) = bed("5m").await? else {
        return Ok(());
    };
    // It says where it speaks, and cannot be installed where it has lived.
    let mut class = bed.class();
    class["spec"]["agent"]["install"] = json!(["test ! -e memory", "echo born > memory"]);
    let speaks = "cat /proc/sys/kernel/random/boot_id >> spoken; exec sleep infinity";
    let service = &mut class["spec"]["agent"]["service"];
    service["workingDirectory"] = json!("/home/agent");
    service["execStart"] = json!(["/bin/sh", "-c", speaks]);
    bed.change(&class).await?;
    let one = bed.create("one").await?;
    let first = one.ready().await?;
    let refresh = format!("echo REFRESHED=yes >> {}", manifests::SECRET_FILE);
    one.shell(&format!("echo learnt >> /home/agent/memory; {refresh}"))
        .await?;
    let refreshed = one.file(manifests::SECRET_FILE).await?;
    one.act("create_image", json!({"description": "by hand"}))
        .await?;
    let path = format!("/servers/{first}");
    bed.at_hetzner("DELETE", &path, &json!(null)).await?;
    let second = comes_back(&bed, &one, "deleted by hand, restored").await?;
    assert_ne!(second, first);
    let memory = one.file("/home/agent/memory").await?;
    assert_eq!(memory.as_deref(), Some("born\nlearnt\n"));
    assert_eq!(one.file(manifests::SECRET_FILE).await?, refreshed);
    let spoken = one.file("/home/agent/spoken").await?.unwrap_or_default();
    let boots: Vec<_> = spoken.lines().collect();
    assert_eq!(boots.len(), 2, "once on each server: {spoken}");
    let boot = one.shell("cat /proc/sys/kernel/random/boot_id").await?;
    assert_eq!(boots[1], boot.trim_end());
    assert_ne!(boots[0], boots[1]);
    assert_eq!(tries(&one).await?, ["Recreate"]);
    one.condition("UpToDate", "True", "AsDeclared").await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_server_has_no_sshd_any_more_is_left_alone_for_a_while() -> Outcome {
    let Some(bed) = bed("5m").await? else {
        return Ok(());
    };
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let before = one.shell(START).await?;
    let mutations = bed.latest_mutation();
    one.shell("systemctl stop ssh.socket ssh.service 2>/dev/null; systemctl stop ssh")
        .await?;
    let mut record = Record::begin("sshd stopped");
    record
        .until(&bed, &one, "Unreachable", |status| {
            tells(status, "Healthy", "Unknown", "Unreachable")
        })
        .await?;
    oracle::calm(&bed).await?;
    one.condition("Ready", "False", "Unreachable").await?;
    one.shell("systemctl start ssh").await?;
    record.until(&bed, &one, "Ready", is_ready).await?;
    record.end(&bed, &one).await?;
    assert_eq!(one.ready().await?, server);
    assert_eq!(one.shell(START).await?, before, "nobody touched it");
    assert_eq!(tries(&one).await?, [""; 0]);
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_switched_off_by_hand_is_switched_on_and_its_agent_serves() -> Outcome {
    let Some(bed) = bed("5m").await? else {
        return Ok(());
    };
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let before = one.shell(START).await?;
    one.act("poweroff", json!(null)).await?;
    let back = comes_back(&bed, &one, "powered off").await?;
    assert_eq!(back, server);
    assert_ne!(one.shell(START).await?, before);
    assert_eq!(tries(&one).await?, [""; 0]);
    told_in_order(&bed, &one, &["Serving", "PoweredOff", "Serving"]).await?;
    bed.delete_all().await?;
    bed.finish().await
}
