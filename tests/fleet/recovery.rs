//! An agent that fails is brought back, within its budgets; what cannot be brought back is told to a person, once.
use bed::{
    Bed, Call, Instance, Moment, Options, Outcome, Pace, manifests, oracle, wait_for, wait_until,
};
use hetzner_sim::{Fault, FaultRule, GuestFaults, MachineFaults, SshFault};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// A bed whose agents are asked each second, with this said of their lifecycle.
async fn bed(lifecycle: Value) -> Outcome<Bed> {
    bed_that_waits("5m", lifecycle).await
}

/// The same, where a server may be out of reach for so long.
async fn bed_that_waits(unreachable: &'static str, lifecycle: Value) -> Outcome<Bed> {
    bed_with(unreachable, &[], lifecycle).await
}

/// The same, with further flags of the operator.
async fn bed_with(unreachable: &'static str, flags: &[&str], lifecycle: Value) -> Outcome<Bed> {
    let pace = Pace {
        unreachable,
        ..Pace::default()
    };
    let bed = Bed::with(Options {
        pace,
        flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    bed.change(&class(2, lifecycle)).await?;
    Ok(bed)
}

/// A class whose agents are asked each second, and have failed after so many times. A busy host answers late: that is no silence.
fn class(failures: i32, lifecycle: Value) -> Value {
    let mut class = manifests::class();
    class["spec"]["health"] =
        json!({"interval": "1s", "timeout": "3s", "failureThreshold": failures});
    class["spec"]["lifecycle"] = lifecycle;
    class
}

/// The agent of a fake machine dies, and systemd gives it up.
fn die(bed: &Bed, server: u64) -> Outcome {
    bed::die(&bed.cloud(), server)
}

/// From now on no start of the agent on this server succeeds.
fn spoil(bed: &Bed, server: u64, unit_fails: bool) -> Outcome {
    let guest = GuestFaults {
        unit_fails,
        ..GuestFaults::default()
    };
    let faults = MachineFaults {
        guest,
        ..MachineFaults::default()
    };
    Ok(bed.cloud().set_machine_faults(server, faults)?)
}

async fn tries(one: &Instance<'_>) -> Outcome<Vec<String>> {
    let status = one.status().await?;
    let tries = status["recovery"].as_array().cloned().unwrap_or_default();
    let action = |done: &Value| done["action"].as_str().unwrap_or_default().to_owned();
    Ok(tries.iter().map(action).collect())
}

/// Waits until it was told, for however short a time, that an instance is not Ready for this reason.
async fn was_told(bed: &Bed, one: &Instance<'_>, reason: &str) -> Outcome {
    let what = format!("{} was told to be not Ready: {reason}", one.name);
    bed.wait_until(&what, async || {
        let said = |object: &Value| {
            let ready = oracle::condition(&object["status"], "Ready").cloned();
            object["metadata"]["name"] == one.name.as_str()
                && ready.is_some_and(|ready| ready["reason"] == reason)
        };
        let writes = bed.writes()?;
        Ok(writes
            .iter()
            .any(|write| said(&write.event["responseObject"])))
    })
    .await
}

/// Waits until there is an event of an instance with this reason, of which there must be no more than one; answers its note.
async fn told_once(bed: &Bed, one: &Instance<'_>, reason: &str) -> Outcome<String> {
    let what = format!("there is an event {reason} of {}", one.name);
    let mut found = bed
        .wait_for(&what, async || {
            let mut events = bed.cluster.list("Event").await?;
            events.retain(|event| {
                let about = [
                    &event["regarding"]["name"],
                    &event["involvedObject"]["name"],
                ];
                event["reason"] == reason && about.contains(&&json!(one.name))
            });
            Ok((!events.is_empty()).then_some(events))
        })
        .await?;
    assert_eq!(found.len(), 1, "{found:#?}");
    let event = found.remove(0);
    let note = event["note"].as_str().or(event["message"].as_str());
    Ok(note.unwrap_or_default().to_owned())
}

/// Waits until just this was tried.
async fn tried(bed: &Bed, one: &Instance<'_>, expected: &[&str]) -> Outcome {
    let what = format!("{expected:?} was tried");
    bed.wait_until(&what, async || Ok(tries(one).await? == expected))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_agent_is_started_again_and_its_server_left_as_it_is() -> Outcome {
    let bed = bed(json!({})).await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let mutations = bed.latest_mutation();
    die(&bed, server)?;
    was_told(&bed, &one, "Restarting").await?;
    assert_eq!(one.ready().await?, server);
    let status = one.status().await?;
    assert_eq!(tries(&one).await?, ["Restart"]);
    assert_eq!(
        status["recovery"][0]["reason"],
        "the unit is failed (failed, exit-code)"
    );
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    let told = told_once(&bed, &one, "Restarting").await?;
    assert!(told.contains("try 1 of 5 in 24 hours"), "{told}");
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restart_cannot_mend_is_rebooted_and_then_told_and_no_restart_of_the_operator_adds_a_try()
-> Outcome {
    let mut bed = bed_that_waits("2s", json!({"recovery": {"restarts": 1}})).await?;
    let server = bed.create("one").await?.ready().await?;
    spoil(&bed, server, true)?;
    let mutations = bed.latest_mutation();
    die(&bed, server)?;
    tried(&bed, &bed.instance("one"), &["Restart"]).await?;
    bed.operator.kill()?;
    bed.operator.start()?;
    let one = bed.instance("one");
    let told = one
        .condition("Stalled", "True", "RecoveryExhausted")
        .await?;
    assert!(told.contains("its disk is kept"), "{told}");
    assert_eq!(tries(&one).await?, ["Restart", "Reboot", "Reboot"]);
    assert_eq!(
        bed.mutations_after(mutations),
        [
            "POST /servers/{id}/actions/reboot",
            "POST /servers/{id}/actions/reset"
        ]
    );
    oracle::calm(&bed).await?;
    for reason in ["Rebooting", "RecoveryExhausted"] {
        told_once(&bed, &one, reason).await?;
    }

    spoil(&bed, server, false)?;
    one.act("reset", json!(null)).await?;
    assert_eq!(one.ready().await?, server, "a good probe ends it");
    one.condition("Stalled", "False", "NotStalled").await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_machine_does_not_hear_a_reboot_and_is_reset() -> Outcome {
    let bed = bed_that_waits("2s", json!({})).await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let mutations = bed.latest_mutation();
    freeze(&bed, server)?;
    one.condition("Healthy", "Unknown", "Unreachable").await?;
    tried(&bed, &one, &["Reboot"]).await?;
    tried(&bed, &one, &["Reboot", "Reboot"]).await?;
    assert_eq!(one.ready().await?, server);
    assert_eq!(
        bed.mutations_after(mutations),
        [
            "POST /servers/{id}/actions/reboot",
            "POST /servers/{id}/actions/reset"
        ]
    );
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_a_disposable_server_that_cannot_be_mended_is_replaced_when_it_is_gone() -> Outcome {
    let recovery = json!({"restarts": 0, "reboots": 0, "recreations": 1});
    let bed = bed(json!({"disk": "Disposable", "recovery": recovery})).await?;
    let one = bed.create("one").await?;
    let first = one.ready().await?;
    spoil(&bed, first, true)?;
    die(&bed, first)?;
    was_told(&bed, &one, "Recreating").await?;
    let second = one.ready().await?;
    assert_ne!(first, second);
    assert_eq!(tries(&one).await?, ["Recreate"]);

    spoil(&bed, second, true)?;
    die(&bed, second)?;
    one.condition("Stalled", "True", "RecoveryExhausted")
        .await?;
    assert_eq!(bed.cloud().lives().len(), 2);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i14_a_server_that_vanished_is_replaced_only_where_its_disk_is_disposable() -> Outcome {
    let bed = bed(json!({"disk": "Disposable"})).await?;
    let mut keeps = manifests::class();
    keeps["metadata"]["name"] = json!("keeps");
    bed.change(&keeps).await?;
    let one = bed.create("one").await?;
    bed.apply_secret("two").await?;
    let mut instance = manifests::instance(bed::TENANT, "two");
    instance["spec"]["className"] = json!("keeps");
    bed.cluster.apply(&instance).await?;
    let two = bed.instance("two");
    let (first, kept) = (one.ready().await?, two.ready().await?);
    bed.cloud().vanish(first)?;
    bed.cloud().vanish(kept)?;
    two.condition("Stalled", "True", "ServerLost").await?;
    was_told(&bed, &one, "Recreating").await?;
    assert_ne!(one.ready().await?, first);
    assert_eq!(tries(&one).await?, ["Recreate"]);
    two.condition("Stalled", "True", "ServerLost").await?;
    assert_eq!(
        (tries(&two).await?.len(), bed.cloud().lives().len()),
        (0, 3)
    );
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_a_lost_disk_comes_back_from_its_newest_snapshot_and_that_is_nobodys_zombie() -> Outcome
{
    let flags = ["--zombie-sweep-period", "1s", "--zombie-min-age", "0s"];
    let bed = bed_with("5m", &flags, json!({})).await?;
    let one = bed.create("one").await?;
    let first = one.ready().await?;
    let mut newest = json!(null);
    for description in ["older", "newer"] {
        let made = one.act("create_image", json!({"description": description}));
        newest = made.await?["image"]["id"].clone();
    }
    bed.cloud().vanish(first)?;
    one.condition("Ready", "False", "Recreating").await?;
    let told = format!("restored from snapshot {newest} of ");
    one.told(&[&told, "what came after that is lost"]).await?;
    let second = one.ready().await?;
    assert_ne!(second, first);
    let path = format!("/servers/{second}");
    let server = bed.at_hetzner("GET", &path, &Value::Null).await?;
    assert_eq!(server["server"]["image"]["id"], newest);
    let status = one.status().await?;
    let record = &status["provisioning"]["snapshot"];
    assert_eq!(
        (&record["id"], &record["server"]),
        (&newest, &json!(first)),
        "{status:#}"
    );
    assert_eq!(tries(&one).await?, ["Recreate"]);
    let (snapshot, now) = (format!("snapshot {newest}"), format!("server {second}"));
    bed.wait_until("an Event tells what was lost", async || {
        let events = bed.cluster.list("Event").await?;
        Ok(events.iter().any(|event| {
            let note = event["note"].as_str().unwrap_or_default();
            event["reason"] == "RestoredFromSnapshot"
                && [&snapshot, &now].iter().all(|said| note.contains(*said))
        }))
    })
    .await?;
    let project = ("HetznerProject", None, manifests::PROJECT);
    bed.condition(project, "NoZombies", "True", "NoneFound")
        .await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_in_maintenance_is_left_alone_until_that_is_over() -> Outcome {
    const MAINTENANCE: &str = "agentfleet.dev/maintenance";
    let bed = bed(json!({})).await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    one.annotate(MAINTENANCE, "a disk is exchanged").await?;
    let mutations = bed.latest_mutation();
    die(&bed, server)?;
    let told = one.condition("Ready", "False", "ProbeFailed").await?;
    assert!(told.contains(MAINTENANCE), "{told}");
    bed.cloud().power(server, false)?;
    one.condition("Ready", "False", "PoweredOff").await?;
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    assert_eq!(tries(&one).await?, [""; 0]);
    one.annotate(MAINTENANCE, "").await?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loses_a_try_and_never_doubles_it() -> Outcome {
    let restart = Call {
        site: "ssh".into(),
        call: "restart".into(),
        occurrence: 1,
    };
    for (moment, expected) in [
        (Moment::Before, ["Restart", "Restart"].as_slice()),
        (Moment::After, &["Restart"]),
    ] {
        let mut bed = bed(json!({})).await?;
        let server = bed.create("one").await?.ready().await?;
        bed.operator.stop().await?;
        bed.operator.start_to_crash_at(&restart, moment)?;
        die(&bed, server)?;
        wait_until("the operator crashes", async || bed.operator.has_crashed()).await?;
        assert_eq!(tries(&bed.instance("one")).await?, ["Restart"]);
        bed.operator.start()?;
        let one = bed.instance("one");
        tried(&bed, &one, expected).await?;
        assert_eq!(one.ready().await?, server);
        assert_eq!(tries(&one).await?, expected);
        bed.delete_all().await?;
        bed.finish().await?;
    }
    Ok(())
}

const RELEASE: &str = "agentfleet.dev/release-hold";
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Instances of one class that are Ready, and their servers.
async fn six(bed: &Bed) -> Outcome<Vec<(Instance<'_>, u64)>> {
    let mut all = vec![];
    for name in NAMES {
        all.push(bed.create(name).await?);
    }
    let mut ready = vec![];
    for one in all {
        let server = one.ready().await?;
        ready.push((one, server));
    }
    Ok(ready)
}

/// Waits until an object without a namespace tells this of its `RecoveryHeld`; answers the message.
async fn held(bed: &Bed, kind: &str, name: &str, reason: &str) -> Outcome<String> {
    let what = format!("RecoveryHeld of {kind} {name} has the reason {reason}");
    wait_for(&what, async || {
        let object = bed.cluster.get(kind, None, name).await?.unwrap_or_default();
        let conditions = object["status"]["conditions"].as_array().cloned();
        let found = conditions
            .unwrap_or_default()
            .into_iter()
            .find(|condition| condition["type"] == "RecoveryHeld" && condition["reason"] == reason);
        Ok(found.map(|found| found["message"].as_str().unwrap_or_default().to_owned()))
    })
    .await
}

async fn release(bed: &Bed, kind: &str, name: &str, word: &str) -> Outcome {
    let annotation = json!({"metadata": {"annotations": {RELEASE: word}}});
    bed.cluster.merge(kind, None, name, annotation).await
}

fn freeze(bed: &Bed, server: u64) -> Outcome {
    let frozen = MachineFaults {
        frozen: true,
        ..MachineFaults::default()
    };
    Ok(bed.cloud().set_machine_faults(server, frozen)?)
}

/// Waits until an instance says that this object holds its recovery.
async fn is_held_by(one: &Instance<'_>, object: &str) -> Outcome {
    let words = format!("RecoveryHeld of {object} is True");
    one.told(&[&words]).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_agents_that_fall_at_once_are_left_as_they_are_until_a_person_says_so() -> Outcome {
    let recovery = json!({"restarts": 0, "reboots": 2, "recreations": 0});
    let flags = ["--recoveries-per-minute", "600", "--breaker-window", "10m"];
    let mut bed = bed_with("10s", &flags, json!({"recovery": recovery})).await?;
    let class = bed.class()["metadata"]["name"].to_string().replace('"', "");
    let servers: Vec<u64> = six(&bed).await?.iter().map(|(_, server)| *server).collect();
    let mutations = bed.latest_mutation();
    for server in &servers[..4] {
        freeze(&bed, *server)?;
    }
    let told = held(&bed, "AgentClass", &class, "ClassFalls").await?;
    assert!(told.contains(RELEASE), "{told}");
    bed.operator.stop().await?;
    bed.operator.start()?;
    bed.wait_until(
        "the next operator marks the project as its own",
        async || Ok(bed.requests_to("PUT", "/ssh_keys/{id}") > 0),
    )
    .await?;
    for name in &NAMES[..4] {
        is_held_by(&bed.instance(name), &format!("AgentClass {class}")).await?;
    }
    assert_eq!(bed.mutations_after(mutations), [""; 0]);

    release(&bed, "AgentClass", &class, "the network was cut").await?;
    held(&bed, "AgentClass", &class, "Released").await?;
    for (name, server) in NAMES.iter().zip(&servers) {
        assert_eq!(bed.instance(name).ready().await?, *server);
    }
    let mut done = bed.mutations_after(mutations);
    done.sort();
    done.dedup();
    assert_eq!(
        done,
        [
            "POST /servers/{id}/actions/reboot",
            "POST /servers/{id}/actions/reset"
        ]
    );
    assert_eq!(tries(&bed.instance("f")).await?, [""; 0]);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_fall_together_are_rebooted_one_after_the_other() -> Outcome {
    let flags = ["--recoveries-per-minute", "6"];
    let recovery = json!({"restarts": 0, "reboots": 2});
    let bed = bed_with("2s", &flags, json!({"recovery": recovery})).await?;
    let all = ready_of(&bed, manifests::CLASS, &numbered("one", 3)).await?;
    for (_, server) in &all[..2] {
        freeze(&bed, *server)?;
    }
    let mut times = vec![];
    for (one, server) in &all[..2] {
        tried(&bed, one, &["Reboot", "Reboot"]).await?;
        assert_eq!(one.ready().await?, *server);
        for done in one.status().await?["recovery"].as_array().unwrap() {
            times.push(serde_json::from_value::<Timestamp>(done["at"].clone())?);
        }
    }
    times.sort();
    for pair in times.windows(2) {
        let apart = pair[1].duration_since(pair[0]);
        assert!(apart >= SignedDuration::from_secs(9), "{times:?}");
    }
    assert_eq!(times.len(), 4);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_what_vanished_at_once_is_replaced_by_a_persons_word_only() -> Outcome {
    let flags = ["--recoveries-per-minute", "600", "--breaker-window", "6s"];
    let bed = bed_with("2s", &flags, json!({"disk": "Disposable"})).await?;
    // What vanishes is seen by lists; no slow answer of the others is to count here.
    bed.change(&self::class(10, json!({"disk": "Disposable"})))
        .await?;
    let class = bed.class()["metadata"]["name"].to_string().replace('"', "");
    let servers: Vec<u64> = six(&bed).await?.iter().map(|(_, server)| *server).collect();
    let mutations = bed.latest_mutation();
    // The operator sees none of them go before the last one has gone, however long that takes.
    bed.operator.hold(true)?;
    for server in &servers[..3] {
        bed.cloud().vanish(*server)?;
    }
    bed.operator.hold(false)?;
    let told = held(
        &bed,
        "HetznerProject",
        manifests::PROJECT,
        "ServersVanished",
    )
    .await?;
    assert!(told.contains("3 of 6 servers of this project"), "{told}");
    // An instance names the hold of its class, as long as that lasts: until little has fallen for a window, which is twice `unreachable` at the least.
    held(&bed, "AgentClass", &class, "FewFall").await?;
    for name in &NAMES[..3] {
        let project = format!("HetznerProject {}", manifests::PROJECT);
        is_held_by(&bed.instance(name), &project).await?;
    }
    assert_eq!(bed.mutations_after(mutations), [""; 0]);

    release(
        &bed,
        "HetznerProject",
        manifests::PROJECT,
        "deleted by hand",
    )
    .await?;
    for (name, server) in NAMES[..3].iter().zip(&servers) {
        assert_ne!(bed.instance(name).ready().await?, *server);
    }
    held(&bed, "HetznerProject", manifests::PROJECT, "Released").await?;
    assert_eq!(bed.cloud().lives().len(), 9);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_canary_is_silent_no_server_is_touched() -> Outcome {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], bed::free_port()?));
    let flags = ["--canary", &address.to_string(), "--breaker-window", "1s"];
    let bed = bed_with("15s", &flags, json!({"recovery": {"restarts": 0}})).await?;
    let class = bed.class()["metadata"]["name"].to_string().replace('"', "");
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let mutations = bed.latest_mutation();
    freeze(&bed, server)?;
    held(&bed, "AgentClass", &class, "CanarySilent").await?;
    is_held_by(&one, &format!("AgentClass {class}")).await?;
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    let _canary = std::net::TcpListener::bind(address)?;
    held(&bed, "AgentClass", &class, "CanaryAnswers").await?;
    tried(&bed, &one, &["Reboot"]).await?;
    bed.delete_all().await?;
    bed.finish().await
}

/// Instances of a class, all with one Secret, that are Ready, and their servers.
async fn ready_of<'a>(
    bed: &'a Bed,
    class: &str,
    names: &[String],
) -> Outcome<Vec<(Instance<'a>, u64)>> {
    bed.apply_secret("shared").await?;
    for name in names {
        let mut instance = manifests::instance(bed::TENANT, name);
        instance["spec"]["className"] = json!(class);
        instance["spec"]["secretName"] = json!("shared");
        bed.cluster.apply(&instance).await?;
    }
    let mut ready = vec![];
    for name in names {
        let one = bed.instance(name);
        let server = one.ready().await?;
        ready.push((one, server));
    }
    Ok(ready)
}

/// Names and servers alone, for a test that has its operator changed.
fn named(all: Vec<(Instance<'_>, u64)>) -> Vec<(String, u64)> {
    let named = all.into_iter().map(|(one, server)| (one.name, server));
    named.collect()
}

fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{prefix}-{number}"))
        .collect()
}

/// Agents that fail one after the other while the operator is told to recover nothing have all fallen when it is let go, however busy the host is.
const PAUSE: &str = "--pause-recovery";

/// Lets agents die for good, and then an operator without that flag at them, once these classes say that so many are down at once.
async fn all_fall(bed: &mut Bed, failing: &[(String, u64)], held_for: &[(&str, &str)]) -> Outcome {
    for (_, server) in failing {
        spoil(bed, *server, true)?;
        die(bed, *server)?;
    }
    for (name, _) in failing {
        bed.instance(name)
            .told(&["the unit is failed", PAUSE])
            .await?;
        assert_eq!(tries(&bed.instance(name)).await?, [""; 0]);
    }
    for (class, reason) in held_for {
        held(bed, "AgentClass", class, reason).await?;
    }
    bed.operator.stop().await?;
    bed.operator.start_without(PAUSE)
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_percent_of_a_class_that_fail_at_once_are_started_again_and_never_replaced()
-> Outcome {
    let recovery = json!({"restarts": 1, "reboots": 1, "recreations": 1});
    let flags = ["--recoveries-per-minute", "600", PAUSE];
    let lifecycle = json!({"disk": "Disposable", "recovery": recovery});
    let mut bed = bed_with("5m", &flags, lifecycle).await?;
    let all = named(ready_of(&bed, manifests::CLASS, &numbered("one", 10)).await?);
    let (failing, others) = all.split_at(3);
    let mutations = bed.latest_mutation();
    all_fall(&mut bed, failing, &[(manifests::CLASS, "ClassFalls")]).await?;
    let told = held(&bed, "AgentClass", manifests::CLASS, "ClassFalls").await?;
    assert!(told.contains("of 10 agents of this class"), "{told}");
    for (name, _) in failing {
        let one = bed.instance(name);
        is_held_by(&one, &format!("AgentClass {}", manifests::CLASS)).await?;
        assert_eq!(tries(&one).await?, ["Restart"]);
    }
    oracle::calm(&bed).await?;
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    for (name, server) in others {
        assert_eq!(bed.instance(name).ready().await?, *server);
    }
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_classes_of_two_that_fail_at_once_are_many_together() -> Outcome {
    let recovery = json!({"restarts": 1, "reboots": 1, "recreations": 1});
    let lifecycle = json!({"disk": "Disposable", "recovery": recovery});
    let flags = ["--recoveries-per-minute", "600", PAUSE];
    let mut bed = bed_with("5m", &flags, lifecycle.clone()).await?;
    let classes = numbered("class", 10);
    let mut all = vec![];
    for name in &classes {
        let mut class = class(2, lifecycle.clone());
        class["metadata"]["name"] = json!(name);
        bed.change(&class).await?;
        let pair = ready_of(&bed, name, &numbered(&format!("of-{name}"), 2)).await?;
        all.extend(named(pair));
    }
    let mutations = bed.latest_mutation();
    let held_for: Vec<_> = classes
        .iter()
        .map(|name| (name.as_str(), "FleetFalls"))
        .collect();
    all_fall(&mut bed, &all, &held_for).await?;
    for (pair, class) in all.chunks(2).zip(&classes) {
        let told = held(&bed, "AgentClass", class, "FleetFalls").await?;
        assert!(told.contains("agents of the fleet"), "{told}");
        for (name, _) in pair {
            is_held_by(&bed.instance(name), &format!("AgentClass {class}")).await?;
        }
    }
    oracle::calm(&bed).await?;
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    assert_eq!(bed.cloud().lives().len(), all.len());
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_operators_own_way_to_all_servers_and_to_hetzner_is_cut_none_is_touched_and_all_serve_afterwards()
-> Outcome {
    let flags = ["--recoveries-per-minute", "600", "--breaker-window", "12s"];
    let recovery = json!({"restarts": 0, "reboots": 1, "recreations": 1});
    let bed = bed_with(
        "10s",
        &flags,
        json!({"disk": "Disposable", "recovery": recovery}),
    )
    .await?;
    let all = ready_of(&bed, manifests::CLASS, &numbered("one", 5)).await?;
    let mutations = bed.latest_mutation();
    let cut = MachineFaults {
        ssh: SshFault::Hang,
        ..MachineFaults::default()
    };
    for (_, server) in &all {
        bed.cloud().set_machine_faults(*server, cut)?;
    }
    let no_way = bed.cloud().add_fault(FaultRule {
        times: None,
        ..FaultRule::next("*", "*", Fault::ResetBeforeCommit)
    });
    held(&bed, "AgentClass", manifests::CLASS, "ClassFalls").await?;
    for (one, _) in &all {
        one.condition("Healthy", "Unknown", "Unreachable").await?;
        is_held_by(one, &format!("AgentClass {}", manifests::CLASS)).await?;
    }
    bed.cloud().remove_fault(no_way)?;
    for (_, server) in &all {
        bed.cloud()
            .set_machine_faults(*server, MachineFaults::default())?;
    }
    for (one, server) in &all {
        assert_eq!(one.ready().await?, *server);
    }
    held(&bed, "AgentClass", manifests::CLASS, "FewFall").await?;
    oracle::calm(&bed).await?;
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_servers_that_shifted_pages_hide_are_asked_for_and_stay_and_one_that_shall_go_goes()
-> Outcome {
    let flags = ["--recoveries-per-minute", "600"];
    let lifecycle = json!({"disk": "Disposable"});
    let mut bed = bed_with("5m", &flags, lifecycle.clone()).await?;
    // No busy machine may be taken for an agent that failed.
    bed.change(&class(10, lifecycle)).await?;
    let names = numbered("one", 6);
    let all = ready_of(&bed, manifests::CLASS, &names).await?;
    let servers: Vec<u64> = all.iter().map(|(_, server)| *server).collect();
    let (mutations, written) = (bed.latest_mutation(), bed.writes()?.len());
    for server in &servers[..3] {
        bed.cloud().hide(*server, true)?;
    }
    for restarted in [false, true] {
        if restarted {
            bed.operator.restart()?;
        }
        let lists = bed.requests_to("GET", "/servers");
        bed.wait_until("lists have not shown them", async || {
            Ok(bed.requests_to("GET", "/servers") >= lists + 3)
        })
        .await?;
        for (name, server) in names.iter().zip(&servers) {
            assert_eq!(bed.instance(name).ready().await?, *server);
        }
    }
    oracle::calm(&bed).await?;
    assert_eq!(bed.mutations_after(mutations), [""; 0]);

    let writes = bed.writes()?;
    let unready = writes[written..].iter().find(|write| {
        let ready = oracle::condition(&write.event["responseObject"]["status"], "Ready");
        write.event["responseObject"]["kind"] == "AgentInstance"
            && ready.is_some_and(|ready| ready["status"] != "True")
    });
    assert!(unready.is_none(), "{:#}", unready.unwrap().event);

    let hidden = bed.instance(&names[0]);
    hidden.delete().await?;
    hidden.gone().await?;
    assert!(bed.cloud().machine(servers[0]).is_err());
    assert_eq!(bed.mutations_after(mutations), ["DELETE /servers/{id}"]);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_servers_whose_labels_were_edited_away_are_told_and_neither_replaced_nor_deleted()
-> Outcome {
    let flags = ["--recoveries-per-minute", "600"];
    let bed = bed_with("5m", &flags, json!({"disk": "Disposable"})).await?;
    let all = ready_of(&bed, manifests::CLASS, &numbered("one", 6)).await?;
    let mut labels = vec![];
    for (_, server) in &all[..2] {
        let path = format!("/servers/{server}");
        let found = bed.at_hetzner("GET", &path, &Value::Null).await?;
        labels.push(found["server"]["labels"].clone());
        bed.at_hetzner("PUT", &path, &json!({"labels": {}})).await?;
    }
    let mutations = bed.latest_mutation();
    for (one, server) in &all[..2] {
        let told = one.condition("Stalled", "True", "LabelsChanged").await?;
        assert!(told.contains(&format!("server {server}")), "{told}");
    }
    oracle::calm(&bed).await?;
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    for ((_, server), labels) in all.iter().zip(&labels) {
        let body = json!({"labels": labels});
        bed.at_hetzner("PUT", &format!("/servers/{server}"), &body)
            .await?;
    }
    for (one, server) in &all {
        assert_eq!(one.ready().await?, *server);
    }
    bed.delete_all().await?;
    bed.finish().await
}
