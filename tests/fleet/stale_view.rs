//! I12: an operator that plans on an old object. What it hears of instances is held back, somebody else writes the records meanwhile, and
//! something makes the operator want to write them too.

use bed::{
    Bed, FLEET, OPERATOR, Operator, Options, Outcome, TENANT, TOKEN, ensure, manifests, oracle,
};
use hetzner_sim::MachineFaults;
use serde_json::{Value, json};

async fn bed() -> Outcome<Bed> {
    Bed::with(Options {
        late: true,
        ..Options::default()
    })
    .await
}

/// Waits until the operator has tried in vain to write the status of an instance.
async fn is_refused(bed: &Bed) -> Outcome {
    bed.wait_until("a write on the old version is refused", async || {
        let refused = bed.audit.stale_writes_of(OPERATOR)?;
        Ok(refused
            .iter()
            .any(|write| write.what == "patch agentinstances/status tenant/one"))
    })
    .await
}

/// What another holder of the Lease wrote ahead, while this one did not hear of it.
async fn somebody_writes(bed: &Bed, records: Value) -> Outcome {
    bed.cluster
        .merge_status("AgentInstance", Some(TENANT), "one", records)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn i12_a_voice_that_was_written_meanwhile_survives_and_nothing_is_sent_under_an_older_one()
-> Outcome {
    let bed = bed().await?;
    bed.apply_basics().await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let record = one.status().await?["provisioning"].clone();

    // It has heard of all that it wrote itself: until then it would write nothing.
    oracle::calm(&bed).await?;
    bed.late()?.hold();
    let voice = json!({"incarnation": 1, "epoch": 40});
    somebody_writes(&bed, json!({"voice": voice})).await?;
    let secret = bed.apply_secret("one").await?;
    is_refused(&bed).await?;
    let status = one.status().await?;
    assert_eq!(status["voice"], voice);
    assert_eq!(status["provisioning"], record);
    let file = one.file(manifests::SECRET_FILE).await?.unwrap_or_default();
    assert!(!file.contains(&secret), "sent under an epoch of the past");

    bed.late()?.let_go();
    one.has_in_file(manifests::SECRET_FILE, &secret).await?;
    assert_eq!(one.ready().await?, server);
    let epoch = one.status().await?["voice"]["epoch"].as_i64();
    ensure(epoch > Some(40), || format!("the epoch is {epoch:?}"))?;
    assert_eq!(bed.cloud().lives().len(), 1);

    // One that a person has made meanwhile is no Subscription's, though that has its name.
    bed.late()?.hold();
    let mut own = manifests::instance(TENANT, "own");
    own["spec"]["suspend"] = json!(true);
    bed.cluster.apply(&own).await?;
    bed.cluster
        .apply(&json!({
            "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription", "metadata": {"namespace": TENANT, "name": "own"},
            "spec": {"customerId": "cus_own", "plan": manifests::CLASS, "state": "Active"},
        }))
        .await?;
    bed.wait_until("it is refused", async || {
        let refused = bed.audit.stale_writes_of(OPERATOR)?;
        let making = format!("patch agentinstances {TENANT}/own");
        Ok(refused.iter().any(|write| write.what == making))
    })
    .await?;
    bed.late()?.let_go();
    let subscription = ("Subscription", Some(TENANT), "own");
    bed.condition(subscription, "Ready", "False", "NameTaken")
        .await?;
    let found = bed.instance("own").object().await?.unwrap_or_default();
    assert_eq!(found["metadata"]["labels"], Value::Null);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i12_a_server_that_was_announced_meanwhile_is_the_one_that_is_asked_for() -> Outcome {
    let bed = bed().await?;
    bed.cluster
        .apply(&manifests::project(manifests::PROJECT))
        .await?;
    bed.cluster.apply(&manifests::class()).await?;
    let one = bed.create("one").await?;
    one.told(&[manifests::PROJECT, "token"]).await?;

    oracle::calm(&bed).await?;
    bed.late()?.hold();
    let name = agentfleet::naming::server_name(FLEET, TENANT, "one", 2);
    let record = json!({
        "incarnation": 2, "serverName": name, "project": manifests::PROJECT, "type": "cx23", "location": "fsn1",
        "at": jiff::Timestamp::now().to_string(),
    });
    somebody_writes(&bed, json!({"provisioning": record})).await?;
    let written = one.status().await?["provisioning"].clone();
    bed.apply_token(manifests::PROJECT, TOKEN).await?;
    is_refused(&bed).await?;
    assert_eq!(one.status().await?["provisioning"], written);
    assert_eq!(
        bed.requests_to("POST", "/servers"),
        0,
        "what is not written ahead is not sent"
    );

    bed.late()?.let_go();
    one.ready().await?;
    let status = one.status().await?;
    assert_eq!(status["server"]["name"], name, "{status:#}");
    assert_eq!(status["server"]["location"], "fsn1");
    assert_eq!(bed.cloud().lives().len(), 1);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_an_operator_that_is_cut_off_while_the_voice_is_handed_over_leaves_it_to_the_next()
-> Outcome {
    let mut bed = bed().await?;
    bed.apply_basics().await?;
    let class = |swap: &str| {
        let mut class = manifests::class();
        class["spec"]["lifecycle"] = json!({"disk": "Disposable"});
        class["spec"]["agent"]["swap"] = json!(swap);
        class
    };
    bed.change(&class("1G")).await?;
    let server = bed.create("one").await?.ready().await?;
    // It does not do as told, so that nobody has the voice for a while.
    let frozen = MachineFaults {
        frozen: true,
        ..MachineFaults::default()
    };
    bed.cloud().set_machine_faults(server, frozen)?;
    bed.change(&class("2G")).await?;
    bed.wait_until("it is told to be silent", async || {
        let mut calls = bed.operator.calls()?.into_iter();
        Ok(calls.any(|call| call.call == "release"))
    })
    .await?;
    bed.late()?.cut(true);
    bed.cloud()
        .set_machine_faults(server, MachineFaults::default())?;
    let mut next = bed.replica()?;
    next.start()?;
    let cut_off = std::mem::replace(&mut bed.operator, next);

    let one = bed.instance("one");
    bed.wait_until("it serves on another server", async || {
        let status = one.status().await?;
        let ready = oracle::condition(&status, "Ready");
        Ok(ready.is_some_and(|ready| ready["status"] == "True")
            && status["server"]["id"] != json!(server))
    })
    .await?;
    let released = |operator: &Operator| -> Outcome<bool> {
        let mut calls = operator.calls()?.into_iter();
        Ok(calls.any(|call| call.call == "configure"))
    };
    ensure(released(&bed.operator)?, || "who gave it the voice?".into())?;
    bed.late()?.cut(false);
    let epoch = one.status().await?["voice"].clone();
    bed.wait_until("the former server is gone", async || {
        Ok(bed.cloud().machine(server).is_err())
    })
    .await?;
    one.ready().await?;
    assert_eq!(one.status().await?["voice"], epoch);
    drop(cut_off);
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}
