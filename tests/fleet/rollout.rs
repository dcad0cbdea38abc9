//! A change of a class reaches its instances a few at a time, stops by itself when it is bad, and goes back.

mod bad;
mod boot;
mod replace;

use std::collections::{BTreeMap, BTreeSet};

use bed::{Bed, Options, Outcome, ensure, manifests, oracle, quick_cloud};
use hetzner_sim::Config;
use jiff::Timestamp;
use serde_json::{Value, json};

const MOTTO: &str = "/home/agent/motto";

/// A class whose agents are asked each second, with this said of its rollouts, and a motto that its agents carry.
fn class(motto: &str, rollout: &Value) -> Value {
    let mut class = manifests::class();
    class["spec"]["health"] = json!({"interval": "1s", "timeout": "10s", "failureThreshold": 2});
    class["spec"]["lifecycle"] = json!({"rollout": rollout});
    class["spec"]["agent"]["files"] = json!([{"path": MOTTO, "content": motto}]);
    class
}

/// The same with a probe that an agent with the motto `bad` fails.
fn probed_class(motto: &str, rollout: &Value) -> Value {
    let mut class = class(motto, rollout);
    class["spec"]["health"]["exec"] = json!({"command": "! grep -q bad motto"});
    class
}

async fn bed(class: &Value) -> Outcome<Bed> {
    let bed = Bed::with(Options::default()).await?;
    bed.apply_basics().await?;
    bed.change(class).await?;
    Ok(bed)
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|nth| format!("a{nth:02}")).collect()
}

/// So many instances that are Ready. Machines boot for one test at a time, as no processor is there for sixty at once.
async fn many(bed: &Bed, count: usize) -> Outcome<Vec<String>> {
    static BOOTS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = BOOTS.lock().await;
    for name in names(count) {
        bed.create(&name).await?;
    }
    for name in names(count) {
        bed.instance(&name).ready().await?;
    }
    settled(bed, count).await?;
    Ok(names(count))
}

async fn status(bed: &Bed) -> Outcome<Value> {
    let class = bed
        .cluster
        .get("AgentClass", None, manifests::CLASS)
        .await?;
    Ok(class.unwrap_or_default()["status"].clone())
}

/// Waits until the class tells that the revision that it has now is good.
async fn settled(bed: &Bed, count: usize) -> Outcome {
    bed.wait_until("the revision of the class has proven itself", async || {
        let status = status(bed).await?;
        let good = status["revision"].is_string() && status["goodRevision"] == status["revision"];
        Ok(good && status["updatedInstances"] == json!(count))
    })
    .await
}

/// Waits until the class tells this of its rollout; answers the message.
async fn told(bed: &Bed, status: &str, reason: &str) -> Outcome<String> {
    let class = ("AgentClass", None, manifests::CLASS);
    bed.condition(class, "UpToDate", status, reason).await
}

/// Waits until there is an Event of this reason about so many objects of a kind, or more.
async fn told_in_events(bed: &Bed, (kind, reason): (&str, &str), count: usize) -> Outcome {
    bed.wait_until(&format!("{count} are told of {reason}"), async || {
        let events = bed.cluster.list("Event").await?;
        let told = events
            .iter()
            .filter(|event| event["reason"] == reason && event["regarding"]["kind"] == kind);
        let about: BTreeSet<String> = told
            .map(|event| event["regarding"]["uid"].to_string())
            .collect();
        Ok(about.len() >= count)
    })
    .await
}

/// Waits until each serves with the revision that its class had then, on one server. The class itself counts them at its own pace.
async fn are_back(bed: &Bed, names: &[String], then: &Value) -> Outcome {
    bed.wait_until("all are as they were", async || {
        for name in names {
            let now = bed.instance(name).status().await?;
            let revisions = (&now["classRevision"], &now["bootRevision"]);
            if revisions != (&then["revision"], &then["bootRevision"]) {
                return Ok(false);
            }
        }
        Ok(down(bed).await?.is_empty() && bed.cloud().servers().len() == names.len())
    })
    .await
}

/// The record of the voice of each: whoever is given anything by a guest gets another epoch first.
async fn voices(bed: &Bed, names: &[String]) -> Outcome<BTreeMap<String, Value>> {
    let mut voices = BTreeMap::new();
    for name in names {
        let status = bed.instance(name).status().await?;
        voices.insert(name.clone(), status["voice"].clone());
    }
    Ok(voices)
}

/// The server of each, which serves.
async fn servers_by_name(bed: &Bed, names: &[String]) -> Outcome<BTreeMap<String, u64>> {
    let mut servers = BTreeMap::new();
    for name in names {
        servers.insert(name.clone(), bed.instance(name).ready().await?);
    }
    Ok(servers)
}

/// Those that are not Ready now.
async fn down(bed: &Bed) -> Outcome<BTreeSet<String>> {
    let all = bed.cluster.list("AgentInstance").await?;
    let down = all.iter().filter(|one| {
        oracle::condition(&one["status"], "Ready").is_none_or(|ready| ready["status"] != "True")
    });
    let name = |one: &Value| {
        one["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    Ok(down.map(name).collect())
}

/// Watches the instances until something is so: never may more of them be down.
async fn watched(
    bed: &Bed,
    max: usize,
    what: &str,
    mut is_so: impl AsyncFnMut() -> Outcome<bool>,
) -> Outcome<usize> {
    let mut most = 0;
    bed.wait_until(what, async || {
        let down = down(bed).await?;
        most = most.max(down.len());
        ensure(down.len() <= max, || format!("down at once: {down:?}"))?;
        is_so().await
    })
    .await?;
    Ok(most)
}

/// How often a write made an instance not Ready that was Ready, and the most that were so at once, by the log of the API server.
fn most_down(bed: &Bed) -> Outcome<usize> {
    let (mut ready, mut down, mut most) = (BTreeSet::new(), BTreeSet::new(), 0);
    for write in bed.writes()? {
        let object = &write.event["responseObject"];
        if object["kind"] != "AgentInstance" {
            continue;
        }
        let name = object["metadata"]["name"].to_string();
        match oracle::condition(&object["status"], "Ready") {
            Some(told) if told["status"] == "True" => {
                down.remove(&name);
                ready.insert(name);
            }
            Some(_) if ready.contains(&name) => {
                down.insert(name);
                most = most.max(down.len());
            }
            _ => {}
        }
    }
    Ok(most)
}

async fn have(bed: &Bed, names: &[String], motto: &str) -> Outcome<usize> {
    let mut count = 0;
    for name in names {
        let file = bed.instance(name).file(MOTTO).await?;
        count += usize::from(file.is_some_and(|text| text.contains(motto)));
    }
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_revision_reaches_twenty_and_never_more_are_down_than_may_be() -> Outcome {
    let rollout = json!({"maxUnavailable": 3});
    let bed = bed(&class("first", &rollout)).await?;
    let names = many(&bed, 20).await?;
    let mutations = bed.latest_mutation();
    bed.cluster.apply(&class("second", &rollout)).await?;
    let done = async || {
        let status = status(&bed).await?;
        Ok(status["goodRevision"] == status["revision"] && status["updatedInstances"] == 20)
    };
    told(&bed, "False", "RollingOut").await?;
    bed.instance("a19")
        .condition("UpToDate", "False", "WaitsForTurn")
        .await?;
    watched(&bed, 3, "all have the second revision", done).await?;
    assert_eq!(have(&bed, &names, "second").await?, 20);
    told(&bed, "True", "Updated").await?;
    let most = most_down(&bed)?;
    assert!((2..=3).contains(&most), "{most} were down at once");
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    oracle::calm(&bed).await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_paused_waits_for_its_window_resumes_and_survives_the_operator() -> Outcome {
    let rollout = |paused| json!({"maxUnavailable": 1, "paused": paused});
    let mut bed = bed(&class("first", &rollout(true))).await?;
    let names = many(&bed, 6).await?;
    bed.cluster.apply(&class("second", &rollout(true))).await?;
    told(&bed, "False", "RolloutPaused").await?;
    for name in &names {
        bed.instance(name)
            .condition("UpToDate", "False", "RolloutPaused")
            .await?;
    }
    assert_eq!(have(&bed, &names, "second").await?, 0);

    // A Secret is applied all the same, with what else each has.
    let secret = bed.apply_secret("a00").await?;
    bed.instance("a00")
        .has_in_file(manifests::SECRET_FILE, &secret)
        .await?;
    bed.instance("a00").ready().await?;
    assert_eq!(have(&bed, &names, "second").await?, 0);

    // Twelve hours ahead, for one.
    let ahead = (Timestamp::now().as_second() / 3600 + 12) % 24;
    let window = json!([{"start": format!("{ahead:02}:00"), "duration": "1h"}]);
    let closed = json!({"maxUnavailable": 1, "windows": window});
    bed.cluster.apply(&class("second", &closed)).await?;
    told(&bed, "False", "OutsideWindow").await?;
    for name in &names {
        bed.instance(name)
            .condition("UpToDate", "False", "OutsideWindow")
            .await?;
    }
    assert_eq!(have(&bed, &names, "second").await?, 0);

    bed.cluster.apply(&class("second", &rollout(false))).await?;
    bed.wait_until("the first has it", async || {
        Ok(have(&bed, &names, "second").await? > 0)
    })
    .await?;
    bed.operator.kill()?;
    bed.operator.start()?;
    settled(&bed, 6).await?;
    assert_eq!(have(&bed, &names, "second").await?, 6);
    let most = most_down(&bed)?;
    assert_eq!(most, 1);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_begins_by_itself_when_its_window_opens() -> Outcome {
    let bed = bed(&class("first", &json!({}))).await?;
    let names = many(&bed, 2).await?;
    // It is not the next minute, which may be too soon to see it closed.
    let opens = Timestamp::from_second((Timestamp::now().as_second() / 60 + 2) * 60)?;
    let start = opens.strftime("%H:%M").to_string();
    let rollout = json!({"windows": [{"start": start, "duration": "1h"}]});
    bed.change(&class("second", &rollout)).await?;
    told(&bed, "False", "OutsideWindow").await?;
    assert_eq!(have(&bed, &names, "second").await?, 0);
    bed.wait_until("the first has it", async || {
        Ok(have(&bed, &names, "second").await? > 0)
    })
    .await?;
    assert!(Timestamp::now() >= opens, "not before {opens}");
    settled(&bed, 2).await?;
    assert_eq!(have(&bed, &names, "second").await?, 2);
    bed.delete_all().await?;
    bed.finish().await
}

/// Names of the revisions that are kept.
async fn kept(bed: &Bed) -> Outcome<Vec<String>> {
    let all = bed.cluster.list("ControllerRevision").await?;
    let name = |one: &Value| {
        let name = one["metadata"]["name"].as_str();
        name.unwrap_or_default().to_owned()
    };
    Ok(all.iter().map(name).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_revision_is_no_disaster_and_a_kept_one_is_written_again() -> Outcome {
    let rollout = json!({"paused": true});
    let bed = bed(&class("first", &rollout)).await?;
    let names = many(&bed, 2).await?;
    let [first] = &kept(&bed).await?[..] else {
        return Err(bed::Failure::new("one revision is kept"));
    };
    let system = Some(bed::SYSTEM);
    bed.cluster
        .delete("ControllerRevision", system, first)
        .await?;
    bed.wait_until("it is written again", async || {
        Ok(kept(&bed).await? == [first.clone()])
    })
    .await?;

    bed.cluster.apply(&class("second", &rollout)).await?;
    bed.wait_until("both are kept", async || Ok(kept(&bed).await?.len() == 2))
        .await?;
    bed.cluster
        .delete("ControllerRevision", system, first)
        .await?;
    bed.instance("a00")
        .condition("UpToDate", "False", "RevisionLost")
        .await?;
    for name in &names {
        bed.instance(name).ready().await?;
    }
    bed.cluster.apply(&class("second", &json!({}))).await?;
    settled(&bed, 2).await?;
    assert_eq!(have(&bed, &names, "second").await?, 2);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_leaves_no_second_server_stops_the_rollout_and_nothing_else() -> Outcome {
    let bed = Bed::with(Options {
        cloud: Config {
            max_servers: Some(2),
            ..quick_cloud()
        },
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    let class = |swap: &str| {
        let mut class = class("as it is", &json!({"maxUnavailable": 2}));
        class["spec"]["lifecycle"]["disk"] = json!("Disposable");
        class["spec"]["agent"]["swap"] = json!(swap);
        class
    };
    bed.change(&class("1G")).await?;
    let names = many(&bed, 2).await?;
    bed.change(&class("2G")).await?;
    let words = told(&bed, "False", "QuotaExceeded").await?;
    assert!(words.contains("ask Hetzner to raise it"), "{words}");
    for name in &names {
        bed.instance(name).ready().await?;
    }
    let project = ("HetznerProject", None, manifests::PROJECT);
    bed.condition(project, "QuotaAvailable", "True", "NotExceeded")
        .await?;

    // The place of one that goes is no place for the rollout, but it is one for somebody new.
    let [stays, goes] = [&names[0], &names[1]].map(|name| bed.instance(name));
    let server = stays.ready().await?;
    goes.delete().await?;
    goes.gone().await?;
    bed.create("late").await?.ready().await?;
    assert_eq!(stays.ready().await?, server);
    told(&bed, "False", "QuotaExceeded").await?;
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}
