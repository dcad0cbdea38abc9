//! An instance that shall not run is silent and off, and comes back as it was.

use bed::{Bed, Instance, Options, Outcome, manifests, wait_until};
use hetzner_sim::{MachineFaults, Stage};
use serde_json::json;

async fn set(bed: &Bed, name: &str, suspend: bool) -> Outcome {
    let spec = json!({"spec": {"suspend": suspend}});
    bed.cluster
        .merge("AgentInstance", Some(bed::TENANT), name, spec)
        .await
}

async fn is_off(bed: &Bed, server: u64) -> Outcome {
    wait_until("the server is off", async || {
        Ok(bed.cloud().machine(server)?.stage == Stage::Off)
    })
    .await
}

/// How often an agent has begun to speak.
fn times_spoken(bed: &Bed) -> usize {
    let changes = bed.cloud().voices().into_iter();
    changes.filter(|change| change.speaks).count()
}

async fn suspended(one: &Instance<'_>) -> Outcome {
    let told = one.condition("Ready", "False", "Suspended").await?;
    assert!(told.contains("bills it all the same"), "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_agent_is_silent_and_off_and_the_same_server_serves_again() -> Outcome {
    let bed = Bed::start().await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let mutations = bed.latest_mutation();
    set(&bed, "one", true).await?;
    suspended(&one).await?;
    is_off(&bed, server).await?;
    assert_eq!(one.file(manifests::SECRET_FILE).await?, None, "put away");
    assert_eq!(
        bed.mutations_after(mutations),
        ["POST /servers/{id}/actions/shutdown"]
    );

    // Whoever switches it on finds it silent, and off again.
    let spoke = times_spoken(&bed);
    bed.cloud().power(server, true)?;
    wait_until("it is switched off again", async || {
        Ok(bed.mutations_after(mutations).len() == 2)
    })
    .await?;
    is_off(&bed, server).await?;
    suspended(&one).await?;

    // So does a change of its type, which switches it on too.
    let mut larger = bed.class();
    larger["spec"]["serverTypes"] = json!(["cx33"]);
    bed.change(&larger).await?;
    wait_until(
        "it has the listed type, and is switched off again",
        async || {
            let done = bed.mutations_after(mutations);
            let last = done.last().map(String::as_str);
            Ok(done.len() == 4 && last == Some("POST /servers/{id}/actions/shutdown"))
        },
    )
    .await?;
    is_off(&bed, server).await?;
    suspended(&one).await?;
    assert_eq!(one.status().await?["server"]["type"], "cx33");
    assert_eq!(times_spoken(&bed), spoke);

    set(&bed, "one", false).await?;
    assert_eq!(one.ready().await?, server);
    assert!(one.file(manifests::SECRET_FILE).await?.is_some());
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_server_gets_a_listed_type_also_from_an_operator_that_begins_anew() -> Outcome {
    let mut bed = Bed::start().await?;
    let server = bed.create("one").await?.ready().await?;
    set(&bed, "one", true).await?;
    suspended(&bed.instance("one")).await?;
    is_off(&bed, server).await?;
    let (mutations, spoke) = (bed.latest_mutation(), times_spoken(&bed));
    bed.operator.kill()?;
    let mut larger = bed.class();
    larger["spec"]["serverTypes"] = json!(["cx33"]);
    bed.cluster.apply(&larger).await?;
    bed.operator.start()?;
    bed.wait_until(
        "it has the listed type, and is switched off again",
        async || {
            Ok(bed.mutations_after(mutations)
                == [
                    "POST /servers/{id}/actions/change_type",
                    "POST /servers/{id}/actions/shutdown",
                ])
        },
    )
    .await?;
    is_off(&bed, server).await?;
    let one = bed.instance("one");
    suspended(&one).await?;
    assert_eq!(one.status().await?["server"]["type"], "cx33");
    assert_eq!(times_spoken(&bed), spoke);
    set(&bed, "one", false).await?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_bought_for_an_instance_that_is_suspended_from_the_start() -> Outcome {
    let bed = Bed::start().await?;
    bed.apply_basics().await?;
    bed.apply_secret("one").await?;
    let mut instance = manifests::instance(bed::TENANT, "one");
    instance["spec"]["suspend"] = json!(true);
    bed.cluster.apply(&instance).await?;
    let one = bed.instance("one");
    one.condition("Ready", "False", "Suspended").await?;
    assert_eq!(bed.requests_to("POST", "/servers"), 0);
    set(&bed, "one", false).await?;
    one.ready().await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_server_that_does_not_hear_is_switched_off_and_the_operator_may_die_meanwhile()
-> Outcome {
    let flags = ["--shutdown-grace", "2s"].map(str::to_owned).into();
    let mut bed = Bed::with(Options {
        flags,
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    let server = bed.create("one").await?.ready().await?;
    let mutations = bed.latest_mutation();
    let frozen = MachineFaults {
        frozen: true,
        ..MachineFaults::default()
    };
    bed.cloud().set_machine_faults(server, frozen)?;
    set(&bed, "one", true).await?;
    bed.instance("one")
        .condition("Ready", "False", "Suspending")
        .await?;
    bed.operator.kill()?;
    bed.operator.start()?;
    let one = bed.instance("one");
    suspended(&one).await?;
    is_off(&bed, server).await?;
    let done = bed.mutations_after(mutations);
    assert_eq!(
        done.last().map(String::as_str),
        Some("POST /servers/{id}/actions/poweroff")
    );
    set(&bed, "one", false).await?;
    assert_eq!(one.ready().await?, server);
    set(&bed, "one", true).await?;
    suspended(&one).await?;
    bed.delete_all().await?;
    bed.finish().await
}
