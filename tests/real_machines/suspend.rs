//! A suspended agent is truly silent, and a resumed one has its files.

use bed::{Bed, Outcome, manifests};
use hetzner_sim::Stage;
use serde_json::{Value, json};

/// Whether a boot of this machine has ever run the agent's unit, by what systemd says.
const NEVER_RAN: &str = "systemctl show -p ActiveEnterTimestampMonotonic --value agent";

/// The agent begins by writing the boot that it speaks in.
const SPEAKS: &str =
    "cat /proc/sys/kernel/random/boot_id >> /home/agent/spoken; exec sleep infinity";

async fn set(bed: &Bed, suspend: bool) -> Outcome {
    let spec: Value = json!({"spec": {"suspend": suspend}});
    bed.cluster
        .merge("AgentInstance", Some(bed::TENANT), "one", spec)
        .await
}

async fn is_off(bed: &Bed, server: u64) -> Outcome {
    bed.wait_until("the machine is off", async || {
        Ok(bed.cloud().machine(server)?.stage == Stage::Off)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_a_suspended_server_is_off_silent_when_it_is_switched_on_or_gets_another_type_and_has_its_files_when_it_runs_again()
-> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let mut class = bed.class();
    class["spec"]["agent"]["service"]["execStart"] = json!(["/bin/sh", "-c", SPEAKS]);
    bed.change(&class).await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    one.shell("echo remembered > /home/agent/memory").await?;
    set(&bed, true).await?;
    one.condition("Ready", "False", "Suspended").await?;
    is_off(&bed, server).await?;

    bed.cloud().power(server, true)?;
    bed.wait_until("a whole boot went by without the agent", async || {
        Ok(one.shell(NEVER_RAN).await.is_ok_and(|at| at.trim() == "0"))
    })
    .await?;
    is_off(&bed, server).await?;

    class["spec"]["serverTypes"] = json!(["cx33"]);
    bed.change(&class).await?;
    bed.wait_until("its server has the other type", async || {
        Ok(one.status().await?["server"]["type"] == "cx33")
    })
    .await?;
    is_off(&bed, server).await?;
    one.condition("Ready", "False", "Suspended").await?;

    set(&bed, false).await?;
    assert_eq!(one.ready().await?, server);
    let spoken = one.shell("cat /home/agent/spoken").await?;
    assert_eq!(spoken.lines().count(), 2, "before and after: {spoken}");
    assert_eq!(one.shell("cat /home/agent/memory").await?, "remembered\n");
    assert!(one.file(manifests::SECRET_FILE).await?.is_some());
    bed.delete_all().await?;
    bed.finish().await
}
