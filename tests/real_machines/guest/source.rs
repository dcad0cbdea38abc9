//! Another ref in place: it arrives whole, or the former one stays.

use bed::{AGENT_REFS, AgentRepository, Bed, Instance, Outcome, manifests};
use serde_json::{Value, json};

use super::{AS_IT_IS, ask};

/// Where the class has its source.
const SOURCE: &str = "/home/agent/app";
/// How long a command may take, in the guest on a server.
const STEP_TIMEOUT: &str = "/^STEP_TIMEOUT = /s/[0-9]+/";

/// The small agent at a ref, updated by these commands.
fn at(bed: &Bed, repository: &AgentRepository, reference: &str, update: &[&str]) -> Value {
    let mut class = bed.class();
    let agent = &mut class["spec"]["agent"];
    agent["source"] = json!({"url": repository.url(), "ref": reference, "directory": SOURCE});
    agent["install"] = json!(["./install.sh"]);
    agent["update"] = json!(update);
    agent["environment"] = json!({"SECRETS": "API_KEY"});
    agent["service"]["execStart"] = json!(["/usr/bin/python3", "agent.py"]);
    agent["service"]["startLimitBurst"] = json!(2);
    class
}

/// Waits until the agent serves at a ref.
async fn serves(bed: &Bed, one: &Instance<'_>, reference: &str) -> Outcome {
    bed.wait_until(&format!("the agent serves at {reference}"), async || {
        // While git writes another one there is none for a moment.
        let found = one.shell(&format!("cat {SOURCE}/VERSION || true")).await?;
        Ok(found.trim() == reference)
    })
    .await?;
    one.is("UpToDate").await?;
    one.ready().await?;
    Ok(())
}

/// An update is told to fail, and the agent serves on with what it has.
async fn is_refused(bed: &Bed, one: &Instance<'_>, class: &Value, told: &[&str]) -> Outcome {
    let before = one.shell(AS_IT_IS).await?;
    bed.change(class).await?;
    one.told(told).await?;
    one.is("Ready").await?;
    one.serves().await?;
    assert_eq!(one.shell(AS_IT_IS).await?, before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_fails_or_hangs_leaves_the_former_ref_and_its_run() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let [first, second, _] = AGENT_REFS;
    let repository = AgentRepository::serve(&bed.dir().join("repository"), bed.host().into(), &[])?;
    let good = |reference| at(&bed, &repository, reference, &["./install.sh"]);
    bed.change(&good(first)).await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    serves(&bed, &one, first).await?;

    one.shell(&no_way_to(&repository)).await?;
    let told = [
        "SourceFailed",
        "git ended with",
        "unable to access",
        repository.url(),
    ];
    is_refused(&bed, &one, &good(second), &told).await?;
    one.shell("nft delete table ip down").await?;
    serves(&bed, &one, second).await?;

    let fails = at(
        &bed,
        &repository,
        first,
        &["true", "echo why it fails; exit 7"],
    );
    let told = [
        "CommandFailed",
        "update command 2 ended with 7",
        "why it fails",
    ];
    is_refused(&bed, &one, &fails, &told).await?;

    let program = "/usr/local/lib/agentfleet/guest";
    one.shell(&format!("sed -Ei '{STEP_TIMEOUT}5/' {program}"))
        .await?;
    let hangs = at(
        &bed,
        &repository,
        first,
        &["echo hangs; sleep 1000 & sleep 1001"],
    );
    let told = [
        "CommandFailed",
        "update command 1 did not end in time",
        "hangs",
    ];
    is_refused(&bed, &one, &hangs, &told).await?;
    one.shell("! pgrep -x sleep").await?;
    one.shell(&format!("sed -Ei '{STEP_TIMEOUT}900/' {program}"))
        .await?;

    bed.change(&good(first)).await?;
    serves(&bed, &one, first).await?;
    bed.delete_all().await?;
    bed.finish().await
}

/// Refuses connections to the host of a repository, on the machine.
fn no_way_to(repository: &AgentRepository) -> String {
    let port = repository.url().trim_end_matches("/agent.git");
    let port = port.rsplit(':').next().unwrap_or_default();
    format!(
        "nft 'add table ip down; add chain ip down out {{ type filter hook output priority 0; }}; \
         add rule ip down out tcp dport {port} reject with tcp reset'"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_goes_on_when_its_connection_is_cut_and_nothing_else_runs_beside_it() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let [first, second, _] = AGENT_REFS;
    let repository = AgentRepository::serve(&bed.dir().join("repository"), bed.host().into(), &[])?;
    bed.change(&at(&bed, &repository, first, &[])).await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    serves(&bed, &one, first).await?;

    let waits = "echo once >> ../updates; until test -e ../go; do sleep 0.1; done";
    bed.change(&at(&bed, &repository, second, &[waits])).await?;
    bed.wait_until("the update waits", async || {
        Ok(one.shell("test -e /home/agent/updates").await.is_ok())
    })
    .await?;
    let refusal = ask(&one, "restart", 0).await?;
    assert_eq!(refusal["error"]["code"], "Busy", "{refusal}");
    one.shell("pkill -KILL -f '^sshd-session: agentfleet'")
        .await?;
    one.told(&["GuestUnreachable"]).await?;
    one.shell("touch /home/agent/go").await?;
    serves(&bed, &one, second).await?;
    assert_eq!(one.shell("cat /home/agent/updates").await?, "once\n");
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_dies_at_its_start_gives_way_to_the_one_before_and_keeps_the_secret()
-> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let [first, second, broken] = AGENT_REFS;
    let repository = AgentRepository::serve(&bed.dir().join("repository"), bed.host().into(), &[])?;
    let noted = |reference: &str| format!("echo {reference} >> /home/agent/updates");
    let good = |reference| at(&bed, &repository, reference, &[&noted(reference)]);
    bed.change(&good(first)).await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    serves(&bed, &one, first).await?;
    let files =
        "sha256sum /home/agent/.env; cat /home/agent/app/.git/HEAD /etc/agentfleet/agent.json";
    let before = one.shell(files).await?;

    bed.change(&good(broken)).await?;
    let told = one.condition("UpToDate", "False", "WentBack").await?;
    for words in [
        "agent.service: did not stay up",
        "what it had before runs again",
        "and tells everybody [redacted]",
        "this version dies at its start",
    ] {
        assert!(told.contains(words), "{told}");
    }
    one.ready().await?;
    one.serves().await?;
    assert_eq!(one.shell(files).await?, before);
    let updates = one.shell("cat /home/agent/updates").await?;
    assert_eq!(updates, format!("{broken}\n{first}\n"));
    one.shell("! find /home /etc -name '.*.agentfleet-*' | grep .")
        .await?;

    bed.change(&good(second)).await?;
    serves(&bed, &one, second).await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_its_probe_finds_wanting_gives_way_to_the_last_good_one() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let [first, second, _] = AGENT_REFS;
    let repository = AgentRepository::serve(&bed.dir().join("repository"), bed.host().into(), &[])?;
    let class = |reference| {
        let mut class = at(&bed, &repository, reference, &["./install.sh"]);
        let command = format!("grep -qx {first} {SOURCE}/VERSION");
        class["spec"]["health"] =
            json!({"exec": {"command": command}, "interval": "1s", "failureThreshold": 2});
        class
    };
    bed.change(&class(first)).await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    serves(&bed, &one, first).await?;
    bed.wait_until("the first is known to be good", async || {
        let class = bed.cluster.get("AgentClass", None, manifests::CLASS);
        let status = class.await?.unwrap_or_default()["status"].clone();
        Ok(status["revision"].is_string() && status["goodRevision"] == status["revision"])
    })
    .await?;

    bed.change(&class(second)).await?;
    let told = one.condition("UpToDate", "False", "WentBack").await?;
    assert!(told.contains("the probe command ended with 1"), "{told}");
    assert_eq!(one.ready().await?, server);
    let version = one.shell(&format!("cat {SOURCE}/VERSION")).await?;
    assert_eq!(version.trim(), first);
    one.condition("UpToDate", "False", "WentBack").await?;
    assert!(one.status().await?["recovery"].is_null(), "nothing else");
    bed.delete_all().await?;
    bed.finish().await
}
