//! A creation that fails is undone as its class says; no more servers are bought than it allows, and what people order acts once.

use std::path::Path;
use std::time::Duration;

use bed::{Bed, Instance, Options, Outcome, manifests, oracle, quick_cloud, wait_within};
use hetzner_sim::{
    ActionFault, Config, Fault, FaultBody, FaultRule, GuestFaults, MachineFaults, Spread,
};
use serde_json::{Value, json};

const RETRY: &str = "agentfleet.dev/retry";
const RESTART: &str = "agentfleet.dev/restart";
/// Two attempts with the pauses before and after them; used up by a failure only.
const ATTEMPTS: Duration = Duration::from_mins(2);

/// A bed whose class says this of the lifecycle and is installed by this command.
async fn bed(cloud: Config, lifecycle: Value, install: &str) -> Outcome<Bed> {
    let bed = Bed::with(Options {
        cloud,
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    change(&bed, lifecycle, install).await?;
    Ok(bed)
}

async fn change(bed: &Bed, lifecycle: Value, install: &str) -> Outcome {
    let mut class = manifests::class();
    class["spec"]["lifecycle"] = lifecycle;
    class["spec"]["agent"]["install"] = json!([install]);
    bed.change(&class).await
}

/// Fails wherever it was not run before: a fake machine runs commands where all see the same files.
fn fails_once(dir: &Path) -> String {
    let tried = dir.join("tried");
    format!(
        "mkdir {} 2>/dev/null && {{ echo this is missing; exit 7; }}; true",
        tried.display()
    )
}

/// The creations that failed: what failed, what was decided, and where.
async fn rollbacks(one: &Instance<'_>) -> Outcome<Vec<[String; 3]>> {
    let status = one.status().await?;
    let failed = status["rollbacks"].as_array().cloned().unwrap_or_default();
    let word = |failed: &Value, key: &str| failed[key].as_str().unwrap_or_default().to_owned();
    let words = |failed: &Value| ["reason", "action", "location"].map(|key| word(failed, key));
    Ok(failed.iter().map(words).collect())
}

/// Waits until nothing more is bought; answers why.
async fn stalled(one: &Instance<'_>, bed: &Bed) -> Outcome<String> {
    let mut told = String::new();
    wait_within(ATTEMPTS, "it is given up", async || {
        bed.operator.check_alive()?;
        let status = one.status().await?;
        let found = oracle::condition(&status, "Stalled");
        told = found.map_or(String::new(), |found| format!("{found}"));
        Ok(found
            .is_some_and(|found| found["status"] == "True" && found["reason"] == "ProvisionFailed")
            .then_some(()))
    })
    .await?;
    Ok(told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_installation_is_followed_by_one_in_the_next_place() -> Outcome {
    let bed = bed(quick_cloud(), json!({}), "true").await?;
    change(&bed, json!({}), &fails_once(bed.dir())).await?;
    let one = bed.create("one").await?;
    one.told(&[
        "InstallFailed",
        "the command ended with 7",
        "this is missing",
    ])
    .await?;
    one.ready().await?;
    let status = one.status().await?;
    assert_eq!(status["server"]["location"], "fsn1");
    assert_eq!(status["provisioning"]["attempt"], 2, "{status:#}");
    assert_eq!(
        rollbacks(&one).await?,
        [["InstallFailed", "Retry", "nbg1"].map(str::to_owned)]
    );
    assert_eq!(
        (bed.cloud().lives().len(), bed.cloud().servers().len()),
        (2, 1)
    );
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i2_servers_that_never_answer_are_bought_as_often_as_allowed_whoever_dies_meanwhile()
-> Outcome {
    let mute = Config {
        boot_ssh_s: Spread::exactly(9999.0),
        boot_cloud_init_s: Spread::exactly(9999.0),
        action_s: Spread::exactly(0.0),
        time_factor: 1.0,
        ..quick_cloud()
    };
    let lifecycle = json!({"firstContactTimeout": "2s", "maxAttempts": 2});
    let mut bed = bed(mute, lifecycle, "true").await?;
    bed.create("one").await?;
    for attempt in [1, 2] {
        let what = format!("attempt {attempt} has failed");
        wait_within(ATTEMPTS, &what, async || {
            Ok((rollbacks(&bed.instance("one")).await?.len() == attempt).then_some(()))
        })
        .await?;
        bed.operator.kill()?;
        bed.operator.start()?;
    }
    let one = bed.instance("one");
    let told = stalled(&one, &bed).await?;
    assert!(told.contains("FirstContactOverdue"), "{told}");
    assert!(told.contains(RETRY), "{told}");
    assert_eq!(
        (bed.cloud().lives().len(), bed.cloud().servers().len()),
        (2, 0)
    );
    let places: Vec<_> = rollbacks(&one)
        .await?
        .into_iter()
        .map(|[.., at]| at)
        .collect();
    assert_eq!(places, ["nbg1", "fsn1"]);
    oracle::calm(&bed).await?;
    assert_eq!(bed.cloud().lives().len(), 2);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_server_is_followed_by_another_when_a_person_says_so_or_the_class_is_mended()
-> Outcome {
    let remove = json!({"onProvisionFailure": "Remove"});
    let mut bed = bed(quick_cloud(), remove.clone(), "exit 7").await?;
    let bought = |bed: &Bed| (bed.cloud().lives().len(), bed.cloud().servers().len());
    bed.create("one").await?;
    stalled(&bed.instance("one"), &bed).await?;
    assert_eq!(bought(&bed), (1, 0));
    bed.operator.kill()?;
    bed.operator.start()?;
    oracle::calm(&bed).await?;
    assert_eq!(bought(&bed), (1, 0));

    let one = bed.instance("one");
    one.annotate(RETRY, "once more").await?;
    bed.wait_until("another one was bought, and removed", async || {
        Ok(rollbacks(&one).await?.len() == 2 && bought(&bed) == (2, 0))
    })
    .await?;
    stalled(&one, &bed).await?;
    oracle::calm(&bed).await?;
    assert_eq!(bought(&bed), (2, 0), "each value does so once");

    change(&bed, remove, "true").await?;
    one.ready().await?;
    assert_eq!(bought(&bed), (3, 1));
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_server_stays_for_a_look_until_a_person_says_so() -> Outcome {
    let keep = json!({"onProvisionFailure": "Keep"});
    let bed = bed(quick_cloud(), keep.clone(), "true").await?;
    change(&bed, keep, &fails_once(bed.dir())).await?;
    let one = bed.create("one").await?;
    let told = stalled(&one, &bed).await?;
    let server = one.status().await?["server"]["id"].clone();
    assert!(told.contains("kept for a look, and billed"), "{told}");
    assert_eq!(bed.cloud().servers().len(), 1);
    assert_eq!(
        rollbacks(&one).await?,
        [["InstallFailed", "Keep", "nbg1"].map(str::to_owned)]
    );
    one.annotate(RETRY, "seen").await?;
    let next = one.ready().await?;
    assert_ne!(json!(next), server);
    assert_eq!(
        (bed.cloud().lives().len(), bed.cloud().servers().len()),
        (2, 1)
    );
    bed.delete_all().await?;
    bed.finish().await
}

fn refused(status: u16, code: &str, times: u64) -> FaultRule {
    let fault = Fault::Status {
        status,
        code: Some(code.into()),
        message: Some("this cannot be".into()),
        commit: false,
        body: FaultBody::Json,
    };
    FaultRule {
        times: Some(times),
        ..FaultRule::next("POST", "/servers", fault)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_is_refused_and_one_that_half_fails_are_attempts_like_any_other() -> Outcome
{
    let bed = bed(quick_cloud(), json!({}), "true").await?;
    bed.cloud().add_fault(refused(422, "invalid_input", 1));
    let one = bed.create("one").await?;
    one.told(&["CreationRefused", "this cannot be"]).await?;
    // As Hetzner answers: it is under way.
    let half = Fault::Action(ActionFault {
        seconds: Some(1.0),
        ..ActionFault::fails("create_server", "action_failed")
    });
    bed.cloud()
        .add_fault(FaultRule::next("POST", "/servers", half));
    one.ready().await?;
    assert_eq!(
        rollbacks(&one).await?,
        [
            ["CreationRefused", "Retry", "nbg1"].map(str::to_owned),
            ["CreationHalfFailed", "Retry", "fsn1"].map(str::to_owned),
        ]
    );
    assert_eq!(
        (bed.cloud().lives().len(), bed.cloud().servers().len()),
        (2, 1)
    );
    assert_eq!(bed.requests_to("GET", "/actions"), 1);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_fails_is_told_and_tried_again() -> Outcome {
    let bed = bed(
        quick_cloud(),
        json!({"onProvisionFailure": "Remove"}),
        "exit 7",
    )
    .await?;
    let fault = Fault::Status {
        status: 503,
        code: None,
        message: None,
        commit: false,
        body: FaultBody::Json,
    };
    let rule = bed.cloud().add_fault(FaultRule {
        times: None,
        ..FaultRule::next("DELETE", "/servers/{id}", fault)
    });
    let one = bed.create("one").await?;
    one.condition("Ready", "False", "HetznerUnavailable")
        .await?;
    assert_eq!(bed.cloud().servers().len(), 1);
    bed.cloud().remove_fault(rule)?;
    stalled(&one, &bed).await?;
    assert_eq!(
        (bed.cloud().lives().len(), bed.cloud().servers().len()),
        (1, 0)
    );
    bed.delete_all().await?;
    bed.finish().await
}

/// How often the agent on a server was started.
fn starts(bed: &Bed, server: u64) -> Outcome<usize> {
    let voice = bed.cloud().machine(server)?.root.join(".machine/voice.log");
    let voice = std::fs::read_to_string(voice)?;
    Ok(voice
        .lines()
        .filter(|line| line.starts_with("start"))
        .count())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_started_again_once_for_each_order() -> Outcome {
    let mut bed = Bed::start().await?;
    let server = bed.create("one").await?.ready().await?;
    let mutations = bed.latest_mutation();
    for (value, expected) in [("first", 2), ("second", 3)] {
        let one = bed.instance("one");
        one.annotate(RESTART, value).await?;
        bed.wait_until("it was started again", async || {
            Ok(starts(&bed, server)? == expected)
        })
        .await?;
        assert_eq!(one.ready().await?, server);
        assert_eq!(one.status().await?["heard"]["restart"]["value"], value);
        assert_eq!(
            one.status().await?["recovery"],
            Value::Null,
            "no try of ours"
        );
        bed.operator.restart()?;
        bed.instance("one").ready().await?;
        oracle::calm(&bed).await?;
        assert_eq!(starts(&bed, server)?, expected);
    }
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_failed_is_tried_again_when_a_person_says_so() -> Outcome {
    let bed = Bed::start().await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let faults = |unit_fails| MachineFaults {
        guest: GuestFaults {
            unit_fails,
            ..GuestFaults::default()
        },
        ..MachineFaults::default()
    };
    bed.cloud().set_machine_faults(server, faults(true))?;
    bed.apply_secret("one").await?;
    one.condition("Stalled", "True", "UnitFailed").await?;
    bed.cloud().set_machine_faults(server, faults(false))?;
    oracle::calm(&bed).await?;
    one.condition("Stalled", "True", "UnitFailed").await?;
    one.annotate(RETRY, "mended").await?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}
