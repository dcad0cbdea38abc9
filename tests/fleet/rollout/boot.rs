//! A revision that only new servers can take up, in a class that else changes in place.

use bed::TENANT;

use super::*;

/// On which agents a probe fails whose servers are late.
const PICKY: &str = "a01";

/// A class with this swap, whose agents do not like servers that were installed when `newer` was there, if their Secret says so.
fn class_with(bed: &Bed, swap: &str, on_failure: &str) -> Value {
    let rollout = json!({"maxUnavailable": 1, "maxSurge": 1, "onFailure": on_failure});
    let mut class = class("the same", &rollout);
    let newer = newer(bed).display().to_string();
    class["spec"]["agent"]["install"] = json!([format!("test ! -e {newer} || touch late")]);
    class["spec"]["agent"]["swap"] = json!(swap);
    class["spec"]["lifecycle"]["disk"] = json!("Disposable");
    let command = "! test -e late || ! grep -q picky .env";
    class["spec"]["health"]["exec"] = json!({"command": command});
    class
}

/// All fake machines see the same files.
fn newer(bed: &Bed) -> std::path::PathBuf {
    bed.dir().join("newer")
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_a_bad_boot_revision_stops_after_the_first_hand_over_that_fails_and_goes_back_when_told()
-> Outcome {
    let bed = Bed::with(Options::default()).await?;
    bed.apply_basics().await?;
    bed.change(&class_with(&bed, "1G", "Pause")).await?;
    let names = many(&bed, 20).await?;
    let secret = manifests::secret(TENANT, PICKY, "API_KEY", "picky");
    bed.cluster.apply(&secret).await?;
    bed.instance(PICKY)
        .has_in_file(manifests::SECRET_FILE, "picky")
        .await?;
    let former = servers_by_name(&bed, &names).await?;
    let good = status(&bed).await?;
    std::fs::write(newer(&bed), "")?;

    bed.cluster.apply(&class_with(&bed, "2G", "Pause")).await?;
    let message = told(&bed, "False", "RolloutFailed").await?;
    assert!(message.contains(PICKY), "{message}");
    bed.wait_until("what failed is gone", async || {
        Ok(bed.cloud().servers().len() == names.len())
    })
    .await?;
    let now = servers_by_name(&bed, &names).await?;
    let moved = names.iter().filter(|name| now[*name] != former[*name]);
    assert_eq!(
        moved.collect::<Vec<_>>(),
        ["a00"],
        "{PICKY} is back on its own"
    );
    let one_good_one_bad = u64::try_from(names.len())? + 2;
    assert_eq!(bed.requests_to("POST", "/servers"), one_good_one_bad);
    bed.instance(PICKY)
        .condition("UpToDate", "False", "WentBack")
        .await?;
    let status_of = async |name| bed.instance(name).status().await;
    assert_eq!(status_of(PICKY).await?["recovery"], Value::Null);
    assert_ne!(
        status_of("a00").await?["bootRevision"],
        good["bootRevision"]
    );
    told_in_events(&bed, ("AgentClass", "RolloutFailed"), 1).await?;

    bed.cluster
        .apply(&class_with(&bed, "2G", "Rollback"))
        .await?;
    told(&bed, "False", "RolledBack").await?;
    are_back(&bed, &names, &good).await?;
    assert_eq!(
        bed.requests_to("POST", "/servers"),
        one_good_one_bad + 1,
        "one more of the good one"
    );
    assert_eq!(most_down(&bed)?, 1);
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}
