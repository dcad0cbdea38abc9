//! A bad revision reaches as few as may be unavailable, and nobody keeps it.

use bed::TENANT;
use hetzner_sim::{GuestFaults, MachineFaults};

use super::*;

/// How many have nothing to do with what is wrong with the class.
const MANY: usize = 20;

/// The same with a probe that looks for what no agent has.
fn mistyped_class(motto: &str, rollout: &Value) -> Value {
    let mut class = probed_class(motto, rollout);
    class["spec"]["health"]["exec"] = json!({"command": "test -e moto"});
    class
}

/// How many went back from the revision that the class has; nothing else was tried for any.
async fn went_back(bed: &Bed, names: &[String]) -> Outcome<usize> {
    let mut back = 0;
    for name in names {
        bed.instance(name).ready().await?;
        let status = bed.instance(name).status().await?;
        ensure(status["recovery"].is_null(), || {
            format!("nothing else is tried: {status:#}")
        })?;
        back += usize::from(status["refusedRevision"].is_string());
    }
    Ok(back)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_probe_stops_after_the_first_of_twenty_and_newcomers_get_the_good_one() -> Outcome
{
    let rollout = json!({"maxUnavailable": 2});
    let bed = bed(&probed_class("good", &rollout)).await?;
    let names = many(&bed, MANY).await?;
    let given = voices(&bed, &names).await?;
    bed.cluster.apply(&mistyped_class("good", &rollout)).await?;
    let message = told(&bed, "False", "RolloutFailed").await?;
    assert!(message.contains("agentfleet.dev/retry"), "{message}");
    assert_eq!(went_back(&bed, &names).await?, 2);
    assert_eq!(most_down(&bed)?, 2);
    assert_eq!(voices(&bed, &names).await?, given, "no guest heard of it");
    told_in_events(&bed, ("AgentInstance", "WentBack"), 2).await?;
    told_in_events(&bed, ("AgentClass", "RolloutFailed"), 1).await?;

    let late = bed.create("late").await?;
    late.ready().await?;
    late.condition("UpToDate", "False", "RolloutStopped")
        .await?;

    // A good one begins anew.
    let quicker = json!({"maxUnavailable": 7});
    bed.cluster.apply(&probed_class("better", &quicker)).await?;
    settled(&bed, MANY + 1).await?;
    assert_eq!(have(&bed, &names, "better").await?, MANY);
    assert_eq!(status(&bed).await?["failedRevision"], Value::Null);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_fails_when_some_of_twenty_have_it_is_rolled_back_on_these_too() -> Outcome
{
    let rollout = json!({"maxUnavailable": 2, "onFailure": "Rollback"});
    let class = |motto: &str| {
        let mut class = class(motto, &rollout);
        let command = "! grep -q bad motto || ! grep -q picky .env";
        class["spec"]["health"]["exec"] = json!({"command": command});
        class
    };
    let bed = bed(&class("good")).await?;
    let names = many(&bed, MANY).await?;
    for picky in ["a04", "a05"] {
        let secret = manifests::secret(TENANT, picky, "API_KEY", "picky");
        bed.cluster.apply(&secret).await?;
        let picky = bed.instance(picky);
        picky.has_in_file(manifests::SECRET_FILE, "picky").await?;
        picky.ready().await?;
    }
    settled(&bed, MANY).await?;
    let (good, given) = (status(&bed).await?, voices(&bed, &names).await?);
    bed.cluster.apply(&class("bad")).await?;
    let message = told(&bed, "False", "RolledBack").await?;
    assert!(
        message.contains("a04") && message.contains("a05"),
        "{message}"
    );
    are_back(&bed, &names, &good).await?;
    assert_eq!(have(&bed, &names, "good").await?, MANY);
    assert_eq!(went_back(&bed, &names).await?, 2);
    assert_eq!(most_down(&bed)?, 2);
    let now = voices(&bed, &names).await?;
    let had_it = names.iter().filter(|name| now[*name] != given[*name]);
    let had_it = had_it.count();
    assert!((4..=10).contains(&had_it), "{had_it} had it");
    told_in_events(&bed, ("AgentInstance", "WentBack"), 2).await?;
    told_in_events(&bed, ("AgentClass", "RolledBack"), 1).await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_guests_refuse_is_rolled_back_everywhere_when_the_class_says_so() -> Outcome
{
    let rollout = json!({"maxUnavailable": 1, "onFailure": "Rollback"});
    let bed = bed(&class("good", &rollout)).await?;
    let names = many(&bed, 5).await?;
    let good = status(&bed).await?["revision"].clone();
    for name in &names {
        let server = bed.instance(name).ready().await?;
        let guest = GuestFaults {
            source_fails: true,
            ..GuestFaults::default()
        };
        let faults = MachineFaults {
            guest,
            ..MachineFaults::default()
        };
        bed.cloud().set_machine_faults(server, faults)?;
    }
    let mut sourced = class("bad", &rollout);
    sourced["spec"]["agent"]["source"] = json!({
        "url": "https://example.invalid/agent.git", "ref": "main", "directory": "/home/agent/source",
    });
    bed.cluster.apply(&sourced).await?;
    let message = told(&bed, "False", "RolledBack").await?;
    assert!(message.contains("all go back"), "{message}");
    for name in &names {
        bed.instance(name).ready().await?;
        assert_eq!(bed.instance(name).status().await?["classRevision"], good);
    }
    let status = status(&bed).await?;
    assert_eq!(status["goodRevision"], good);
    assert_eq!(status["failedRevision"], status["revision"]);
    assert_eq!(have(&bed, &names, "good").await?, 5);
    bed.delete_all().await?;
    bed.finish().await
}
