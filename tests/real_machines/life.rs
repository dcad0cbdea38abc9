//! From a create to a delete, and what people do to servers behind the operator's back.

use bed::{Bed, Outcome, SYSTEM, TENANT, manifests, oracle};
use hetzner_sim::Stage;
use serde_json::json;

use crate::record::{Record, tells};

/// What the agent of the class reads as its secrets, byte by byte.
const AS_THE_AGENT_READS: &str = "systemctl show -p MainPID --value agent | xargs -I{} cat /proc/{}/environ | tr '\\0' '\\n' | grep ^API_KEY=";

/// What guards the unit as systemd has it in memory, and whether it has the files as they are.
const GUARD: &str = "systemctl show -p DropInPaths,NeedDaemonReload --value agent";

/// When this boot began, and that the agent runs in it.
const BOOT: &str = "systemctl is-active agent && cut -d' ' -f22 /proc/1/stat";

#[tokio::test(flavor = "multi_thread")]
async fn a_real_debian_becomes_an_agent_takes_new_secrets_and_leaves_nothing() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let status = one.status().await?;
    let steps: Vec<_> = status["timings"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|timing| timing["step"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(steps, oracle::STEPS);
    assert_eq!(one.shell("systemctl --failed --no-legend").await?, "");
    let guard = "/etc/systemd/system/agent.service.d/10-agentfleet.conf\nno\n";
    bed.wait_until("systemd has read the unit's files", async || {
        Ok(one.shell(GUARD).await? == guard)
    })
    .await?;

    let value = bed.apply_secret("one").await?;
    one.has_in_file(manifests::SECRET_FILE, &value).await?;
    one.ready().await?;
    assert_eq!(one.shell(GUARD).await?, guard);
    assert_eq!(
        one.shell(AS_THE_AGENT_READS).await?.trim(),
        format!("API_KEY={value}")
    );
    assert_eq!(
        one.shell("stat -c '%a %U' /home/agent/.env").await?,
        "600 agent\n"
    );

    bed.cluster.delete("Secret", Some(TENANT), "one").await?;
    one.told(&["Secret", "one"]).await?;
    assert_eq!(one.ready().await?, server, "it goes on with what it has");
    let value = bed.apply_secret("one").await?;
    one.has_in_file(manifests::SECRET_FILE, &value).await?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

/// How many probes have met somebody else than the server.
async fn strangers(bed: &Bed) -> Outcome<u64> {
    let scrape = bed.operator.scrape().await.unwrap_or_default();
    let samples = scrape.lines();
    let of = samples.filter(|line| {
        line.starts_with("agentfleet_probes_total") && line.contains("host_key_changed")
    });
    let counts = of.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_a_reboot_keeps_agent_and_host_key_and_a_rebuild_by_hand_is_noticed() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let mut class = bed.class();
    class["spec"]["health"] = json!({"interval": "2s", "failureThreshold": 2});
    bed.change(&class).await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let key = one.status().await?["server"]["hostKey"].clone();
    let boot = one.shell(BOOT).await?;
    one.act("reboot", json!(null)).await?;
    bed.wait_until("the agent runs in another boot", async || {
        let machine = bed.cloud().machine(server)?;
        Ok(machine.stage == Stage::Up && one.shell(BOOT).await.is_ok_and(|now| now != boot))
    })
    .await?;
    assert_eq!(one.ready().await?, server);
    assert_eq!(one.status().await?["server"]["hostKey"], key);

    one.act("rebuild", json!({"image": "debian-13"})).await?;
    let mutations = bed.latest_mutation();
    let mut record = Record::begin("rebuilt by hand");
    record
        .until(&bed, &one, "HostKeyChanged", |status| {
            tells(status, "Stalled", "True", "HostKeyChanged")
                && tells(status, "Ready", "False", "HostKeyChanged")
        })
        .await?;
    one.told(&["the host key is not the pinned one", "nothing was sent"])
        .await?;
    record.end(&bed, &one).await?;
    // It would be given this at once.
    bed.apply_secret("one").await?;
    let seen = strangers(&bed).await?;
    bed.wait_until("it is asked for its health twice more", async || {
        Ok(strangers(&bed).await? >= seen + 2)
    })
    .await?;
    one.condition("Stalled", "True", "HostKeyChanged").await?;
    assert_eq!(
        one.shell("ls /home/agent/.env 2>/dev/null || echo nothing sent")
            .await?
            .trim(),
        "nothing sent"
    );
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    assert_eq!(one.status().await?["recovery"], json!(null));
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i12_with_its_status_lost_an_instance_takes_up_its_server_by_the_resume_key() -> Outcome {
    let Some(mut bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let server = bed.create("one").await?.ready().await?;
    bed.operator.stop().await?;
    let mutations = bed.latest_mutation();
    let status = bed.instance("one").status().await?;
    let fields = status
        .as_object()
        .into_iter()
        .flat_map(|fields| fields.keys());
    let nothing = fields.map(|field| (field.clone(), json!(null))).collect();
    bed.cluster
        .merge_status("AgentInstance", Some(TENANT), "one", nothing)
        .await?;
    bed.operator.start()?;
    assert_eq!(bed.instance("one").ready().await?, server);
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i1_an_operator_that_is_killed_while_a_server_boots_goes_on_with_it() -> Outcome {
    let Some(mut bed) = Bed::start_real().await? else {
        return Ok(());
    };
    bed.create("one").await?;
    for stage in ["ServerCreated", "Bootstrapped"] {
        bed.instance("one").is(stage).await?;
        bed.operator.kill()?;
        bed.operator.start()?;
    }
    bed.instance("one").ready().await?;
    assert_eq!(bed.cloud().lives().len(), 1);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i2_deletion_during_boot_and_install_leaves_nothing() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let mut class = bed.class();
    class["spec"]["agent"]["install"] = json!(["sleep 600"]);
    bed.change(&class).await?;
    let boots = bed.create("boots").await?;
    boots.is("ServerCreated").await?;
    boots.delete().await?;
    boots.gone().await?;
    let installs = bed.create("installs").await?;
    installs.condition("Ready", "False", "Installing").await?;
    installs.delete().await?;
    installs.gone().await?;
    assert_eq!(bed.cloud().servers().len(), 0);
    oracle::calm(&bed).await?;
    assert!(
        bed.cluster
            .get("Secret", Some(SYSTEM), "agentfleet-master-key")
            .await?
            .is_some()
    );
    bed.delete_all().await?;
    bed.finish().await
}
