//! `strategy: Replace`: each revision gets servers of its own, and what is true of rollouts in place is true of these.

use super::*;

/// The class of the other tests with new servers for each revision, two at once.
fn replacing(motto: &str, on_failure: &str) -> Value {
    let rollout = json!({
        "strategy": "Replace", "maxUnavailable": 2, "maxSurge": 2, "onFailure": on_failure,
    });
    let mut class = probed_class(motto, &rollout);
    class["spec"]["lifecycle"]["disk"] = json!("Disposable");
    class
}

async fn servers(bed: &Bed, names: &[String]) -> Outcome<BTreeSet<u64>> {
    let mut servers = BTreeSet::new();
    for name in names {
        servers.insert(bed.instance(name).ready().await?);
    }
    Ok(servers)
}

/// Waits until nothing but the servers of so many instances is left.
async fn servers_left(bed: &Bed, count: usize) -> Outcome {
    bed.wait_until("each has one server", async || {
        Ok(bed.cloud().servers().len() == count)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_a_bad_revision_stops_after_the_first_new_servers_and_a_good_one_gets_one_for_each()
-> Outcome {
    let bed = bed(&replacing("good", "Pause")).await?;
    let names = many(&bed, 6).await?;
    let former = servers(&bed, &names).await?;
    bed.cluster.apply(&replacing("bad", "Pause")).await?;
    let message = told(&bed, "False", "RolloutFailed").await?;
    assert!(message.contains("agentfleet.dev/retry"), "{message}");
    let mut back = 0;
    for name in &names {
        bed.instance(name).ready().await?;
        let status = bed.instance(name).status().await?;
        assert_eq!(status["recovery"], Value::Null, "{status:#}");
        back += usize::from(status["refusedRevision"].is_string());
    }
    servers_left(&bed, 6).await?;
    assert_eq!((back, most_down(&bed)?), (2, 2));
    assert_eq!(have(&bed, &names, "good").await?, 6);
    assert_eq!(
        servers(&bed, &names).await?,
        former,
        "the old ones speak again"
    );
    assert_eq!(bed.requests_to("POST", "/servers"), 8);

    // A Secret is no revision.
    let secret = bed.apply_secret("a05").await?;
    bed.instance("a05")
        .has_in_file(manifests::SECRET_FILE, &secret)
        .await?;
    assert_eq!(bed.requests_to("POST", "/servers"), 8);

    bed.cluster.apply(&replacing("better", "Pause")).await?;
    settled(&bed, 6).await?;
    servers_left(&bed, 6).await?;
    assert_eq!(have(&bed, &names, "better").await?, 6);
    assert!(servers(&bed, &names).await?.is_disjoint(&former));
    assert_eq!(bed.requests_to("POST", "/servers"), 14);
    oracle::calm(&bed).await?;
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_no_server_can_be_prepared_for_fails_and_all_stay_as_they_were() -> Outcome
{
    let class = |install: &[&str]| {
        let mut class = replacing("good", "Rollback");
        class["spec"]["lifecycle"]["maxAttempts"] = json!(1);
        class["spec"]["agent"]["install"] = json!(install);
        class
    };
    let bed = bed(&class(&[])).await?;
    let names = many(&bed, 4).await?;
    let former = servers(&bed, &names).await?;
    bed.cluster
        .apply(&class(&["echo no such package; false"]))
        .await?;
    let message = told(&bed, "False", "RolledBack").await?;
    assert!(message.contains("all go back"), "{message}");
    servers_left(&bed, 4).await?;
    assert_eq!(servers(&bed, &names).await?, former);
    assert_eq!(most_down(&bed)?, 0, "nobody was silent for it");
    assert_eq!(bed.requests_to("POST", "/servers"), 6);

    // A person's word lets it be tried once more.
    let patch = json!({"metadata": {"annotations": {"agentfleet.dev/retry": "again"}}});
    bed.cluster
        .merge("AgentClass", None, manifests::CLASS, patch)
        .await?;
    bed.wait_until("two more were bought", async || {
        Ok(bed.requests_to("POST", "/servers") == 8)
    })
    .await?;
    told(&bed, "False", "RolledBack").await?;
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_probe_was_changed_since_it_was_made_is_gone_back_to_and_no_other_bought()
-> Outcome {
    let mut bed = bed(&replacing("good", "Pause")).await?;
    let names = many(&bed, 2).await?;
    let former = servers(&bed, &names).await?;
    let otherwise_probed = |motto| {
        let mut class = replacing(motto, "Pause");
        class["spec"]["health"]["failureThreshold"] = json!(3);
        class
    };
    bed.change(&otherwise_probed("good")).await?;
    settled(&bed, 2).await?;
    bed.operator.restart()?;
    bed.cluster.apply(&otherwise_probed("bad")).await?;
    told(&bed, "False", "RolloutFailed").await?;
    bed.wait_until("both have gone back", async || {
        let mut back = true;
        for name in &names {
            let status = bed.instance(name).status().await?;
            back &= status["refusedRevision"].is_string()
                && status["server"]["id"]
                    .as_u64()
                    .is_some_and(|id| former.contains(&id));
        }
        Ok(back)
    })
    .await?;
    assert_eq!(servers(&bed, &names).await?, former);
    servers_left(&bed, 2).await?;
    assert_eq!(bed.requests_to("POST", "/servers"), 4);
    oracle::calm(&bed).await?;
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}
