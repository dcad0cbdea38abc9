//! The agent of a customer who does not pay is truly silent, and of one who pays again it has its files.

use bed::{Bed, Outcome, TENANT, manifests};
use hetzner_sim::Stage;
use serde_json::json;

/// How many processes the agent's unit has, and how many run as the agent's user, in whichever unit.
const PROCESSES: &str = "cat /sys/fs/cgroup/system.slice/agent.service/cgroup.procs 2>/dev/null | wc -l; \
    stat -c %U /proc/[0-9]* 2>/dev/null | grep -c '^agent$' || true";
/// Whether this boot has ever run the agent's unit, once all that a boot starts was started.
const EVER_RAN: &str = "systemctl is-system-running --wait | grep -qE 'running|degraded' && systemctl show -p ActiveEnterTimestampMonotonic --value agent";
/// Whoever puts the file back without which the unit does not start, and starts it; systemd takes a condition that does not hold for no failure.
const STARTED_BY_HAND: &str =
    "touch /home/agent/.env; systemctl start agent; systemctl is-active agent || true";

async fn set(bed: &Bed, state: &str) -> Outcome {
    bed.cluster
        .apply(&json!({
            "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription", "metadata": {"namespace": TENANT, "name": "one"},
            "spec": {"customerId": "cus_one", "plan": manifests::CLASS, "state": state, "secretName": "one"},
        }))
        .await?;
    Ok(())
}

async fn is_off(bed: &Bed, server: u64) -> Outcome {
    bed.wait_until("the machine is off", async || {
        Ok(bed.cloud().machine(server)?.stage == Stage::Off)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_an_unpaid_agent_has_no_process_and_a_paid_one_has_its_server_and_its_files_again()
-> Outcome {
    let Some(mut bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let mut secret = manifests::secret(TENANT, "one", "API_KEY", &bed.canaries.fresh());
    secret["metadata"]["labels"] = json!({"agentfleet.dev/customer": "cus_one"});
    bed.cluster.apply(&secret).await?;
    set(&bed, "Active").await?;
    let one = bed.instance("one");
    let server = one.ready().await?;
    one.shell_as_agent("echo remembered > ~/memory").await?;
    assert_eq!(one.shell(PROCESSES).await?, "1\n1\n", "while it serves");

    set(&bed, "Unpaid").await?;
    one.condition("Ready", "False", "Suspended").await?;
    is_off(&bed, server).await?;
    // Not even when somebody switches it on while no operator is there.
    bed.operator.stop().await?;
    bed.cloud().power(server, true)?;
    let one = bed.instance("one");
    let mut seen = String::new();
    bed.wait_until("a whole boot went by", async || {
        seen = one.shell(EVER_RAN).await.unwrap_or_default();
        Ok(!seen.is_empty())
    })
    .await?;
    assert_eq!(seen, "0\n");
    let started = one.shell(STARTED_BY_HAND).await?;
    assert!(started.ends_with("inactive\n"), "{started}");
    assert_eq!(one.shell(PROCESSES).await?, "0\n0\n");
    bed.operator.start()?;
    is_off(&bed, server).await?;

    set(&bed, "Active").await?;
    let one = bed.instance("one");
    assert_eq!(one.ready().await?, server);
    assert_eq!(one.shell("cat /home/agent/memory").await?, "remembered\n");
    assert!(one.file(manifests::SECRET_FILE).await?.is_some());
    assert_eq!(one.shell(PROCESSES).await?, "1\n1\n");
    bed.delete_all().await?;
    bed.finish().await
}
