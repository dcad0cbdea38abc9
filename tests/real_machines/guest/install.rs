//! An installation that fails or is cut: what is told of it, and how it goes on.

use std::net::IpAddr;

use bed::{AGENT_REFS, AgentRepository, Bed, Instance, Outcome, TENANT, manifests};
use serde_json::{Value, json};

/// An instance of a class of its own.
async fn create<'a>(bed: &'a Bed, name: &str, agent: &[(&str, Value)]) -> Outcome<Instance<'a>> {
    bed.change(&class(bed, name, agent)).await?;
    bed.apply_secret(name).await?;
    let mut instance = manifests::instance(TENANT, name);
    instance["spec"]["className"] = json!(name);
    bed.cluster.apply(&instance).await?;
    Ok(bed.instance(name))
}

/// The usual class under another name, with these fields of its agent.
fn class(bed: &Bed, name: &str, agent: &[(&str, Value)]) -> Value {
    let mut class = bed.class();
    class["metadata"]["name"] = json!(name);
    class["spec"]["lifecycle"] = json!({"onProvisionFailure": "Keep"});
    for (field, value) in agent {
        class["spec"]["agent"][*field] = value.clone();
    }
    class
}

/// Where nobody serves anything: a port below all that are given out.
fn nobody(host: IpAddr) -> String {
    format!("http://{host}:9/agent.git")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_step_is_told_with_its_last_lines_and_the_next_run_goes_on_from_there() -> Outcome
{
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let host = bed.host().into();
    let url = nobody(host);
    let source = json!({"url": url, "ref": AGENT_REFS[0], "directory": "/home/agent/app"});
    let packages = create(
        &bed,
        "packages",
        &[("packages", json!(["no-such-package"]))],
    )
    .await?;
    let clones = create(&bed, "clones", &[("source", source)]).await?;
    let told = [
        "step packages failed",
        "PackageFailed",
        "Unable to locate package no-such-package",
    ];
    packages.told(&told).await?;
    packages
        .condition("Stalled", "True", "ProvisionFailed")
        .await?;
    clones
        .told(&[
            "step source failed",
            "SourceFailed",
            &format!("unable to access '{url}/'"),
        ])
        .await?;
    clones
        .condition("Stalled", "True", "ProvisionFailed")
        .await?;
    clones
        .shell("test ! -e /home/agent/app/installed.txt")
        .await?;

    let repository = AgentRepository::serve(&bed.dir().join("repository"), host, &[])?;
    let found = format!(
        "git config --system url.{}.insteadOf {url}",
        repository.url()
    );
    clones
        .shell(&format!("{found} && systemctl restart agentfleet-install"))
        .await?;
    clones.ready().await?;
    clones
        .shell("test -e /home/agent/app/installed.txt")
        .await?;
    bed.delete_all().await?;
    bed.finish().await
}

/// What the install commands below have noted.
const NOTED: &str = "tr '\\n' ' ' < /home/agent/noted";

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_command_is_told_and_a_reboot_in_the_middle_of_the_next_is_gone_on_from() -> Outcome
{
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let commands = json!([
        "echo first >> noted",
        "echo second >> noted; test -e mended || { echo this is missing: mended; exit 7; }",
        "echo third >> noted; while ! test -e go; do sleep 0.1; done",
    ]);
    let one = create(&bed, "one", &[("install", commands)]).await?;
    one.told(&[
        "step install 2 failed",
        "the command ended with 7",
        "this is missing: mended",
    ])
    .await?;
    one.condition("Stalled", "True", "ProvisionFailed").await?;

    one.shell("touch /home/agent/mended && systemctl start --no-block agentfleet-install")
        .await?;
    reaches(&bed, &one, "first second second third ").await?;
    one.condition("Stalled", "False", "NotStalled").await?;
    one.act("reboot", json!(null)).await?;
    reaches(&bed, &one, "first second second third third ").await?;
    one.shell("touch /home/agent/go").await?;
    one.ready().await?;
    assert_eq!(one.shell(NOTED).await?, "first second second third third ");
    bed.delete_all().await?;
    bed.finish().await
}

async fn reaches(bed: &Bed, one: &Instance<'_>, noted: &str) -> Outcome {
    bed.wait_until(&format!("its install has noted {noted}"), async || {
        Ok(one.shell(NOTED).await.is_ok_and(|now| now == noted))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_at_its_first_start_is_told_and_starts_on_that_server_when_it_can()
-> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let dies = json!({"execStart": ["/bin/sh", "-c", "echo no model for me; exit 3"]});
    let one = create(&bed, "one", &[("service", dies)]).await?;
    let told = one.condition("Stalled", "True", "UnitFailed").await?;
    for words in ["agent.service: did not stay up", "no model for me"] {
        assert!(told.contains(words), "{told}");
    }
    let server = one.status().await?["server"]["id"].as_u64();
    bed.change(&class(&bed, "one", &[])).await?;
    assert_eq!(Some(one.ready().await?), server);
    one.condition("Stalled", "False", "NotStalled").await?;
    assert_eq!(bed.cloud().lives().len(), 1);
    bed.delete_all().await?;
    bed.finish().await
}
