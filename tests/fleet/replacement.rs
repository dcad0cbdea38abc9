//! A server that is no longer what is wanted gives way to one that was prepared beside it, and at no instant do both run the agent.

use bed::{Bed, Instance, Outcome, manifests, oracle, wait_until};
use hetzner_sim::{Fault, FaultBody, FaultRule, MachineFaults};
use serde_json::{Value, json};

const RECREATE: &str = "agentfleet.dev/recreate";

/// The class with a disk of this kind, and with swap of this size, which only a new server can take up.
fn class(disk: &str, swap: &str) -> Value {
    let mut class = manifests::class();
    class["spec"]["lifecycle"] = json!({"disk": disk});
    class["spec"]["agent"]["swap"] = json!(swap);
    class
}

async fn bed(disk: &str) -> Outcome<Bed> {
    let bed = Bed::start().await?;
    bed.apply_basics().await?;
    bed.change(&class(disk, "1G")).await?;
    Ok(bed)
}

/// Waits until the agent serves on another server than that one, which is gone.
async fn serves_elsewhere(bed: &Bed, one: &Instance<'_>, former: u64) -> Outcome<u64> {
    wait_until("it serves on another server", async || {
        let status = one.status().await?;
        let ready = bed::oracle::condition(&status, "Ready");
        Ok(ready.is_some_and(|ready| ready["status"] == "True")
            && status["server"]["id"] != json!(former))
    })
    .await?;
    wait_until("the former server is gone", async || {
        Ok(bed.cloud().machine(former).is_err())
    })
    .await?;
    one.ready().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_a_disposable_server_is_replaced_by_one_prepared_beside_it_which_gets_what_the_agent_changed()
-> Outcome {
    let bed = bed("Disposable").await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let refreshed = "API_KEY=\"refreshed by the agent\"\n";
    let root = bed.cloud().machine(server)?.root;
    std::fs::write(
        root.join(manifests::SECRET_FILE.trim_start_matches('/')),
        refreshed,
    )?;
    let mutations = bed.latest_mutation();
    bed.change(&class("Disposable", "2G")).await?;
    serves_elsewhere(&bed, &one, server).await?;
    assert_eq!(
        one.file(manifests::SECRET_FILE).await?.as_deref(),
        Some(refreshed)
    );
    assert_eq!(
        bed.mutations_after(mutations),
        ["POST /servers", "DELETE /servers/{id}"]
    );
    one.condition("UpToDate", "True", "AsDeclared").await?;
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i14_a_preserved_server_stays_until_a_person_asks_for_a_new_one() -> Outcome {
    let bed = bed("Preserve").await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let mutations = bed.latest_mutation();
    bed.change(&class("Preserve", "2G")).await?;
    let told = one.condition("UpToDate", "False", "NeedsNewServer").await?;
    assert!(told.contains(RECREATE), "{told}");
    assert_eq!(one.ready().await?, server);
    assert_eq!(bed.mutations_after(mutations), [""; 0]);

    one.annotate(RECREATE, "first").await?;
    let second = serves_elsewhere(&bed, &one, server).await?;
    one.condition("UpToDate", "True", "AsDeclared").await?;
    one.annotate(RECREATE, "second").await?;
    serves_elsewhere(&bed, &one, second).await?;
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_a_server_that_cannot_be_silenced_is_deleted_before_another_one_speaks() -> Outcome {
    let bed = bed("Disposable").await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let frozen = MachineFaults {
        frozen: true,
        ..MachineFaults::default()
    };
    bed.cloud().set_machine_faults(server, frozen)?;
    bed.change(&class("Disposable", "2G")).await?;
    serves_elsewhere(&bed, &one, server).await?;
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_never_boots_leaves_the_old_server_as_it_was() -> Outcome {
    let bed = bed("Disposable").await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let mut broken = class("Disposable", "2G");
    broken["spec"]["agent"]["install"] = json!(["false"]);
    bed.change(&broken).await?;
    one.told(&["prepared beside this one", "failed"]).await?;
    one.condition("UpToDate", "False", "Replacing").await?;
    assert_eq!(one.ready().await?, server);
    // Meanwhile a changed Secret reaches the agent where it is.
    let secret = bed.apply_secret("one").await?;
    one.has_in_file(manifests::SECRET_FILE, &secret).await?;
    assert_eq!(one.ready().await?, server);
    // Taken back, it is as if nothing had been.
    bed.change(&class("Disposable", "1G")).await?;
    one.condition("UpToDate", "True", "AsDeclared").await?;
    wait_until("the other server is gone", async || {
        Ok(bed.cloud().servers().len() == 1)
    })
    .await?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i14_a_preserved_server_that_may_speak_and_does_not_answer_is_waited_for() -> Outcome {
    let mut bed = bed("Disposable").await?;
    let former = bed.create("one").await?.ready().await?;
    bed.cloud().add_fault(FaultRule {
        times: None,
        ..FaultRule::next("DELETE", "/servers/{id}", unavailable())
    });
    bed.change(&class("Disposable", "2G")).await?;
    bed.wait_until("another server has the voice", async || {
        let status = bed.instance("one").status().await?;
        let ready = oracle::condition(&status, "Ready");
        Ok(ready.is_some_and(|ready| ready["status"] == "True")
            && status["server"]["id"] != json!(former))
    })
    .await?;
    // In the middle of it the disks are declared to be worth something, and nobody remembers what the old server has said.
    bed.change(&class("Preserve", "2G")).await?;
    let frozen = MachineFaults {
        frozen: true,
        ..MachineFaults::default()
    };
    bed.cloud().set_machine_faults(former, frozen)?;
    bed.operator.restart()?;
    let one = bed.instance("one");
    let secret = bed.apply_secret("one").await?;
    let told = one.condition("Stalled", "True", "CannotRelease").await?;
    assert!(told.contains(&format!("server {former}")), "{told}");
    assert!(bed.cloud().machine(former).is_ok());

    bed.cloud()
        .set_machine_faults(former, MachineFaults::default())?;
    one.has_in_file(manifests::SECRET_FILE, &secret).await?;
    one.condition("Stalled", "False", "NotStalled").await?;
    bed.cloud().clear_faults();
    wait_until("the former server is gone", async || {
        Ok(bed.cloud().machine(former).is_err())
    })
    .await?;
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}

fn unavailable() -> Fault {
    Fault::Status {
        status: 503,
        code: None,
        message: None,
        commit: false,
        body: FaultBody::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_dies_in_the_middle_of_a_replacement_goes_on_with_it() -> Outcome {
    let mut bed = bed("Disposable").await?;
    let server = bed.create("one").await?.ready().await?;
    bed.change(&class("Disposable", "2G")).await?;
    bed.instance("one")
        .condition("UpToDate", "False", "Replacing")
        .await?;
    bed.operator.kill()?;
    bed.operator.start()?;
    let one = bed.instance("one");
    serves_elsewhere(&bed, &one, server).await?;
    assert_eq!(bed.requests_to("POST", "/servers"), 2, "no third one");
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}

/// The class lists this type alone.
fn listing(server_type: &str) -> Value {
    let mut class = class("Preserve", "1G");
    class["spec"]["serverTypes"] = json!([server_type]);
    // An agent that is Ready for so long counts as such.
    class["spec"]["health"] = json!({"interval": "1s"});
    class
}

async fn becomes(bed: &Bed, one: &Instance<'_>, server_type: &str) -> Outcome {
    wait_until("its server has the listed type", async || {
        Ok(one.status().await?["server"]["type"] == server_type)
    })
    .await?;
    one.condition("UpToDate", "True", "AsDeclared").await?;
    assert_eq!(bed.requests_to("POST", "/servers"), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn i14_a_server_becomes_one_of_a_listed_type_with_its_disk_and_one_that_cannot_stays()
-> Outcome {
    let bed = bed("Preserve").await?;
    bed.change(&listing("cx23")).await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let disk = || bed.cloud().servers()[0]["primary_disk_size"].clone();
    let (mutations, size) = (bed.latest_mutation(), disk());
    bed.change(&listing("cx33")).await?;
    becomes(&bed, &one, "cx33").await?;
    assert_eq!(one.ready().await?, server);
    assert_eq!(disk(), size, "the way back stays open");
    assert_eq!(
        bed.mutations_after(mutations),
        [
            "POST /servers/{id}/actions/shutdown",
            "POST /servers/{id}/actions/change_type"
        ]
    );
    // Of another architecture.
    bed.change(&listing("cax21")).await?;
    one.condition("UpToDate", "False", "NeedsNewServer").await?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}
