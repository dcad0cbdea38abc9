//! Whose server is it: lost and restored status, new UIDs, new clusters, strangers with our names, tokens of other projects, two operators.

use bed::{
    Bed, FLEET, Failure, Options, Outcome, SYSTEM, TENANT, TOKEN, ensure, manifests, oracle,
    quick_cloud,
};
use hetzner_sim::{Config, Fault, FaultRule};
use serde_json::{Value, json};

const MASTER_KEY: &str = agentfleet::fleet::MASTER_KEY_SECRET;
const PROJECT: (&str, Option<&str>, &str) = ("HetznerProject", None, manifests::PROJECT);

/// Waits for something, and fails as soon as anything is bought, changed or deleted at Hetzner meanwhile.
async fn without_mutations<T>(
    bed: &Bed,
    since: u64,
    awaited: impl Future<Output = Outcome<T>>,
) -> Outcome<T> {
    let mutated = bed.wait_for("something changes at Hetzner", async || {
        let seen = bed.mutations_after(since);
        Ok((!seen.is_empty()).then_some(seen))
    });
    tokio::select! {
        outcome = awaited => outcome,
        Ok(seen) = mutated => Err(Failure::new(format!("the operator did at Hetzner: {seen:?}"))),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn i3_a_foreign_server_with_our_name_is_told_and_stays() -> Outcome {
    let bed = Bed::start().await?;
    let name = agentfleet::naming::server_name(FLEET, TENANT, "one", 1);
    let body = json!({"name": name, "server_type": "cx23", "image": "debian-13", "location": "nbg1", "start_after_create": false});
    let foreign = bed.cloud().create_server(0, &body)?;
    let one = bed.create("one").await?;
    let message = one.condition("Stalled", "True", "NameTaken").await?;
    ensure(
        message.contains(&foreign.to_string()) && message.contains(&name),
        || message.clone(),
    )?;
    assert!(bed.requests_to("POST", "/servers") <= 1, "one POST at most");
    one.delete().await?;
    one.gone().await?;
    assert_eq!(bed.cloud().servers().len(), 1, "the foreign server stays");
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i12_with_its_status_lost_an_instance_takes_up_its_server_by_itself() -> Outcome {
    let mut bed = Bed::start().await?;
    let server = bed.create("one").await?.ready().await?;
    bed.operator.kill()?;
    lose_status(&bed).await?;
    let mutations = bed.latest_mutation();
    bed.operator.start()?;
    let one = bed.instance("one");
    let ready = without_mutations(&bed, mutations, one.ready());
    assert_eq!(ready.await?, server);
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.delete_all().await?;
    bed.finish().await
}

async fn lose_status(bed: &Bed) -> Outcome {
    let status = bed.instance("one").status().await?;
    let nulls: serde_json::Map<_, _> = status
        .as_object()
        .into_iter()
        .flatten()
        .map(|(field, _)| (field.clone(), Value::Null))
        .collect();
    bed.cluster
        .merge_status("AgentInstance", Some(TENANT), "one", Value::Object(nulls))
        .await
}

/// The object goes and comes again, its server stays: a restored cluster, or a person who forced a deletion.
async fn make_anew(bed: &mut Bed) -> Outcome {
    bed.operator.kill()?;
    let object = bed.instance("one").object().await?.unwrap_or_default();
    bed.cluster.remove(&object, "AgentInstance").await?;
    bed.cluster
        .apply(&manifests::instance(TENANT, "one"))
        .await?;
    bed.operator.start()
}

#[tokio::test(flavor = "multi_thread")]
async fn i12_a_new_object_of_the_same_name_buys_and_deletes_nothing_until_an_admin_adopts()
-> Outcome {
    let mut bed = Bed::start().await?;
    let server = bed.create("one").await?.ready().await?;
    let mutations = bed.latest_mutation();
    make_anew(&mut bed).await?;
    let one = bed.instance("one");
    let told = one.condition("Stalled", "True", "AdoptOrDelete");
    let message = without_mutations(&bed, mutations, told).await?;
    ensure(
        message.contains(&format!("agentfleet.dev/adopt: \"{server}\"")),
        || message.clone(),
    )?;
    let patch = json!({"metadata": {"annotations": {"agentfleet.dev/adopt": server.to_string()}}});
    let refused = bed
        .tenant()
        .await?
        .merge("AgentInstance", Some(TENANT), "one", patch)
        .await;
    assert!(
        refused.is_err_and(|refused| refused.to_string().contains("agentfleet-admin")),
        "a tenant may not adopt"
    );
    oracle::calm(&bed).await?;
    assert_eq!(
        bed.mutations_after(mutations),
        [""; 0],
        "nothing is bought, changed or deleted before a person's word"
    );

    one.annotate("agentfleet.dev/adopt", &server.to_string())
        .await?;
    assert_eq!(one.ready().await?, server);
    let secret = bed.apply_secret("one").await?;
    one.has_in_file(manifests::SECRET_FILE, &secret).await?;
    assert_eq!(bed.cloud().lives().len(), 1);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i12_an_adopt_annotation_with_the_id_of_a_stranger_takes_up_nothing() -> Outcome {
    let mut bed = Bed::start().await?;
    bed.create("one").await?.ready().await?;
    let body = json!({"name": "somebody-else", "server_type": "cx23", "image": "debian-13", "location": "nbg1", "start_after_create": false});
    let stranger = bed.cloud().create_server(0, &body)?;
    make_anew(&mut bed).await?;
    let one = bed.instance("one");
    one.annotate("agentfleet.dev/adopt", &stranger.to_string())
        .await?;
    one.condition("Stalled", "True", "AdoptOrDelete").await?;
    let mutations = bed.latest_mutation();
    oracle::calm(&bed).await?;
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.finish().await
}

/// What a backup of the master key holds.
async fn master_key(bed: &Bed) -> Outcome<Value> {
    let mut secret = bed
        .cluster
        .get("Secret", Some(SYSTEM), MASTER_KEY)
        .await?
        .unwrap_or_default();
    let name = secret["metadata"]["name"].take();
    secret["metadata"] = json!({"namespace": SYSTEM, "name": name});
    Ok(secret)
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_a_new_cluster_with_the_master_key_deletes_nothing_and_adopts_what_it_is_told_to()
-> Outcome {
    let paused = |simulator| Options {
        simulator: Some(simulator),
        operator: false,
        ..Options::default()
    };
    let (mut old, mut new) = Bed::pair(Options::default(), |old| paused(old.simulator())).await?;
    old.apply_basics().await?;
    let server = old.create("one").await?.ready().await?;
    old.operator.kill()?;
    new.cluster.apply(&master_key(&old).await?).await?;
    let mutations = new.latest_mutation();
    new.operator.start()?;
    new.apply_basics().await?;
    new.condition(PROJECT, "Ready", "True", "Usable").await?;
    oracle::calm(&new).await?;
    assert_eq!(
        new.mutations_after(mutations),
        [""; 0],
        "without any instance nothing is deleted"
    );

    new.create("one")
        .await?
        .condition("Stalled", "True", "AdoptOrDelete")
        .await?;
    new.instance("one")
        .annotate("agentfleet.dev/adopt", &server.to_string())
        .await?;
    assert_eq!(new.instance("one").ready().await?, server);
    assert_eq!(new.cloud().lives().len(), 1);
    new.delete_all().await?;
    old.finish().await?;
    new.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_ends_with_one_clear_line_when_the_master_key_is_lost() -> Outcome {
    let mut bed = Bed::start().await?;
    bed.create("one").await?.ready().await?;
    bed.operator.stop().await?;
    bed.cluster
        .delete("Secret", Some(SYSTEM), MASTER_KEY)
        .await?;
    let mutations = bed.latest_mutation();
    bed.operator.start()?;
    let status = bed.operator.end().await?;
    assert!(!status.success());
    let said = bed.operator.last_words();
    let lines = said
        .lines()
        .filter(|line| line.contains("the master key is lost"))
        .count();
    assert_eq!(lines, 1, "{said}");
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_with_the_status_of_an_older_incarnation_restored_the_newest_server_stays_the_agent_and_is_not_swept()
-> Outcome {
    let sweep = ["--zombie-sweep-period", "1s", "--zombie-min-age", "0s"];
    let mut bed = Bed::with(Options {
        flags: sweep.map(str::to_owned).into(),
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    // The first incarnation finds no stock, so the server is the second.
    bed.cloud()
        .add_fault(FaultRule::next("POST", "/servers", out_of_stock()));
    let server = bed.create("one").await?.ready().await?;
    let status = bed.instance("one").status().await?;
    assert_eq!(status["incarnation"], 2, "{status:#}");
    bed.operator.kill()?;
    lose_status(&bed).await?;
    let mut record = status["provisioning"].clone();
    record["incarnation"] = json!(1);
    record["serverName"] = json!(agentfleet::naming::server_name(FLEET, TENANT, "one", 1));
    let restored =
        json!({"incarnation": 1, "provisioning": record, "voice": {"epoch": 1, "incarnation": 1}});
    bed.cluster
        .merge_status("AgentInstance", Some(TENANT), "one", restored)
        .await?;
    let mutations = bed.latest_mutation();
    bed.operator.start()?;
    let one = bed.instance("one");
    let ready = without_mutations(&bed, mutations, one.ready());
    assert_eq!(ready.await?, server);
    // Each sweep lists the snapshots, and takes two to delete something.
    let before = bed.requests_to("GET", "/images");
    bed.wait_until("it was swept three times", async || {
        Ok(bed.requests_to("GET", "/images") >= before + 3)
    })
    .await?;
    let secret = bed.apply_secret("one").await?;
    bed.instance("one")
        .has_in_file(manifests::SECRET_FILE, &secret)
        .await?;
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.delete_all().await?;
    bed.finish().await
}

fn out_of_stock() -> Fault {
    Fault::Status {
        status: 412,
        code: Some("resource_unavailable".into()),
        message: None,
        commit: false,
        body: hetzner_sim::FaultBody::Json,
    }
}

/// A cloud with more projects, and a token that may only read the first.
fn other_projects() -> Config {
    Config {
        tokens: vec![
            TOKEN.into(),
            "token-of-another-project".into(),
            "token-of-an-empty-project".into(),
        ],
        read_only_tokens: vec!["token-that-reads".into()],
        ..quick_cloud()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_with_a_token_of_another_or_an_empty_project_or_a_rejected_one_nothing_is_created_replaced_or_deleted()
-> Outcome {
    let bed = Bed::with(Options {
        cloud: other_projects(),
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    let server = bed.create("one").await?.ready().await?;
    let body = json!({"name": "theirs", "server_type": "cx23", "image": "debian-13", "location": "nbg1", "start_after_create": false});
    let theirs = bed.cloud().create_server(1, &body)?;
    let mutations = bed.latest_mutation();
    for (token, reason, words) in [
        (
            "token-of-another-project",
            "WrongProject",
            "token of another project",
        ),
        (
            "token-of-an-empty-project",
            "WrongProject",
            "token of another project",
        ),
        ("token-that-hetzner-never-gave", "TokenRejected", "token"),
    ] {
        bed.apply_token(manifests::PROJECT, token).await?;
        let told = bed.condition(PROJECT, "CredentialsValid", "False", reason);
        let message = told.await.map_err(|failure| failure.during(token))?;
        ensure(message.contains(words), || format!("{token}: {message}"))?;
        bed.create("two").await?;
        oracle::calm(&bed).await?;
        assert_eq!(bed.mutations_after(mutations), [""; 0], "{token}");
        bed.cluster
            .delete("AgentInstance", Some(TENANT), "two")
            .await?;
        bed.apply_token(manifests::PROJECT, TOKEN).await?;
        bed.condition(PROJECT, "CredentialsValid", "True", "Proven")
            .await?;
        bed.instance("two").gone().await?;
    }
    bed.cloud().vanish(theirs)?;
    assert_eq!(bed.instance("one").ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_only_read_is_told_and_right_again_when_it_is() -> Outcome {
    let bed = Bed::with(Options {
        cloud: other_projects(),
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    bed.apply_token(manifests::PROJECT, "token-that-reads")
        .await?;
    bed.told(PROJECT, &["Read & Write"]).await?;
    bed.create("one").await?;
    oracle::calm(&bed).await?;
    assert_eq!(bed.cloud().lives().len(), 0);
    bed.apply_token(manifests::PROJECT, TOKEN).await?;
    bed.instance("one").ready().await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_a_second_operator_on_a_copy_of_the_cluster_stops_all_mutations() -> Outcome {
    let paused = |simulator| Options {
        simulator: Some(simulator),
        operator: false,
        ..Options::default()
    };
    let (first, mut second) =
        Bed::pair(Options::default(), |first| paused(first.simulator())).await?;
    first.apply_basics().await?;
    let server = first.create("one").await?.ready().await?;
    second.cluster.apply(&master_key(&first).await?).await?;
    second.apply_basics().await?;
    second.operator.start()?;
    for bed in [&first, &second] {
        bed.condition(PROJECT, "Ready", "False", "AnotherOperator")
            .await?;
    }
    let mutations = first.latest_mutation();
    first.create("two").await?;
    second.create("three").await?;
    first.instance("one").delete().await?;
    oracle::calm(&second).await?;
    assert_eq!(first.mutations_after(mutations), [""; 0]);
    assert_eq!(first.cloud().servers()[0]["id"], server);
    first.finish().await?;
    second.finish().await
}
