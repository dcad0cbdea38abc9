//! What belongs to nobody is swept, or told; and no wrong view of the world makes the operator delete what lives (I9).

use std::collections::BTreeMap;
use std::process::Command;

use bed::{
    Bed, Call, FLEET, Moment, Options, Outcome, SYSTEM, TENANT, TOKEN, ensure, manifests, operator,
    oracle, quick_cloud,
};
use hetzner_sim::Config;
use russh::keys::{Algorithm, PrivateKey};
use serde_json::{Value, json};

const PROJECT: (&str, Option<&str>, &str) = ("HetznerProject", None, manifests::PROJECT);
/// An instance of this name is in no cluster.
const GONE: &str = "gone";

/// An operator that sweeps each second, and leaves alone what is younger.
fn sweeping(min_age: &str, more: &[&str]) -> Options {
    let flags = ["--zombie-sweep-period", "1s", "--zombie-min-age", min_age];
    let flags = flags.iter().chain(more).map(|flag| (*flag).to_owned());
    Options {
        flags: flags.collect(),
        ..Options::default()
    }
}

/// A bed in which an instance is Ready, so that the fleet has a server that is claimed; answers that server.
async fn bed_with(options: Options) -> Outcome<(Bed, u64)> {
    let bed = Bed::with(options).await?;
    // So that the lists of servers need not wait for their share of it.
    bed.cloud().set_rate_limit(0, 100_000)?;
    bed.apply_basics().await?;
    let server = bed.create("alive").await?.ready().await?;
    Ok((bed, server))
}

async fn bed() -> Outcome<(Bed, u64)> {
    bed_with(sweeping("0s", &[])).await
}

fn labels(fleet: &str, name: &str, disk: &str) -> BTreeMap<String, String> {
    [
        ("fleet", fleet),
        ("namespace", TENANT),
        ("name", name),
        ("uid", "an-earlier-one"),
        ("incarnation", "1"),
        ("disk", disk),
    ]
    .map(|(key, value)| (format!("agentfleet.dev/{key}"), value.to_owned()))
    .into()
}

/// A server of our fleet as an instance of that name would have it, though nobody asked for it now; it is off.
fn left_over(bed: &Bed, name: &str, disk: &str) -> Outcome<u64> {
    let host = agentfleet::naming::server_name(FLEET, TENANT, name, 1);
    named(bed, &host, &labels(FLEET, name, disk))
}

fn named(bed: &Bed, host: &str, labels: &BTreeMap<String, String>) -> Outcome<u64> {
    let body = json!({
        "name": host, "server_type": "cx23", "image": "debian-13", "location": "nbg1", "start_after_create": false, "labels": labels,
    });
    Ok(bed.cloud().create_server(0, &body)?)
}

fn exists(bed: &Bed, server: u64) -> bool {
    bed.cloud()
        .servers()
        .iter()
        .any(|found| found["id"] == server)
}

async fn swept(bed: &Bed, server: u64) -> Outcome {
    let what = format!("server {server} is swept");
    bed.wait_until(&what, async || Ok(!exists(bed, server)))
        .await
}

/// Waits until there have been more lists and sweeps than are needed to delete something; each sweep lists the snapshots once, and hardly anybody
/// else does.
async fn sweeps(bed: &Bed) -> Outcome {
    for (route, times) in [("/servers", 4), ("/images", 3)] {
        let before = bed.requests_to("GET", route);
        let what = format!("{route} was listed {times} times");
        bed.wait_until(&what, async || {
            Ok(bed.requests_to("GET", route) >= before + times)
        })
        .await?;
    }
    Ok(())
}

async fn told_as_found(bed: &Bed, words: &[&str]) -> Outcome {
    let told = bed
        .condition(PROJECT, "NoZombies", "False", "ZombiesFound")
        .await?;
    ensure(words.iter().all(|word| told.contains(word)), || {
        told.clone()
    })
}

/// The notes of the events of a reason.
async fn events(bed: &Bed, reason: &str) -> Outcome<Vec<String>> {
    let all = bed.cluster.list("Event").await?;
    let of = all.iter().filter(|event| event["reason"] == reason);
    let note = |event: &Value| {
        let note = event["note"].as_str().or(event["message"].as_str());
        note.unwrap_or_default().to_owned()
    };
    Ok(of.map(note).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disposable_server_without_an_instance_is_gone_within_two_sweeps_and_nothing_else_is()
-> Outcome {
    let mut options = sweeping("0s", &[]);
    // Longer than from one list of servers to the next.
    options.flags[1] = "6s".into();
    let (bed, alive) = bed_with(options).await?;
    bed.condition(PROJECT, "NoZombies", "True", "NoneFound")
        .await?;
    let mutations = bed.latest_mutation();
    let (zombie, before) = (
        left_over(&bed, GONE, "Disposable")?,
        bed.requests_to("GET", "/images"),
    );
    swept(&bed, zombie).await?;
    // One more before a list shows it, and one that may be under way.
    let took = bed.requests_to("GET", "/images") - before;
    ensure(took <= 3, || format!("it took {took} sweeps"))?;
    bed.wait_until("its deletion is told", async || {
        Ok(events(&bed, "ZombieDeleted").await?.len() == 1)
    })
    .await?;
    oracle::calm(&bed).await?;
    assert_eq!(bed.mutations_after(mutations), ["DELETE /servers/{id}"]);
    assert!(events(&bed, "ZombieDeleted").await?[0].contains("tenant/gone"));
    assert_eq!(bed.instance("alive").ready().await?, alive);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i3_i9_what_is_foreign_young_relabelled_retained_or_of_another_fleet_stays() -> Outcome {
    let (bed, alive) = bed().await?;
    let host = |name| agentfleet::naming::server_name(FLEET, TENANT, name, 1);
    let foreign = named(&bed, &host("foreign"), &BTreeMap::new())?;
    let other_fleet = named(&bed, "theirs", &labels("another", "theirs", "Disposable"))?;
    let retained = left_over(&bed, "retained", "Disposable")?;
    let mut keep = labels(FLEET, "retained", "Disposable");
    keep.insert("agentfleet.dev/retained".into(), "true".into());
    bed.cloud().set_labels(retained, &keep)?;
    // Somebody gives the server of a living agent the name of an instance that is not there.
    bed.cloud()
        .set_labels(alive, &labels(FLEET, GONE, "Disposable"))?;
    let renamed = named(&bed, &host("once"), &labels(FLEET, "twice", "Disposable"))?;
    told_as_found(&bed, &[&format!("hcloud server delete {renamed}")]).await?;
    sweeps(&bed).await?;
    for (what, server) in [
        ("foreign", foreign),
        ("of another fleet", other_fleet),
        ("retained", retained),
        ("alive", alive),
        ("renamed", renamed),
    ] {
        assert!(exists(&bed, server), "{what}");
    }
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_a_young_server_is_left_alone() -> Outcome {
    let (bed, _) = bed_with(sweeping("1h", &[])).await?;
    let young = left_over(&bed, GONE, "Disposable")?;
    sweeps(&bed).await?;
    assert!(exists(&bed, young));
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i14_a_disk_that_an_agent_wrote_on_is_told_with_the_command_and_stays() -> Outcome {
    let (mut bed, _) = bed().await?;
    let server = bed.create(GONE).await?.ready().await?;
    bed.operator.kill()?;
    let object = bed.instance(GONE).object().await?.unwrap_or_default();
    bed.cluster.remove(&object, "AgentInstance").await?;
    let mutations = bed.latest_mutation();
    bed.operator.start()?;
    let command = format!("hcloud server delete {server}");
    told_as_found(&bed, &["an agent has run on it", &command]).await?;
    oracle::calm(&bed).await?;
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    let told = events(&bed, "ZombieFound").await?;
    assert_eq!(told.len(), 1, "told once: {told:?}");
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_guest_proves_that_no_agent_ever_ran_there_goes_whatever_its_disk() -> Outcome
{
    let (mut bed, alive) = bed().await?;
    bed.operator.kill()?;
    bed.create(GONE).await?;
    let configure = Call {
        site: "ssh".into(),
        call: "configure".into(),
        occurrence: 1,
    };
    bed.operator.start_to_crash_at(&configure, Moment::Before)?;
    bed::wait_until("it dies before it gives the agent its voice", async || {
        bed.operator.has_crashed()
    })
    .await?;
    let object = bed.instance(GONE).object().await?.unwrap_or_default();
    let server = object["status"]["server"]["id"]
        .as_u64()
        .unwrap_or_default();
    assert!(server != alive && exists(&bed, server));
    bed.cluster.remove(&object, "AgentInstance").await?;
    let mutations = bed.latest_mutation();
    bed.operator.start()?;
    swept(&bed, server).await?;
    assert_eq!(bed.mutations_after(mutations), ["DELETE /servers/{id}"]);
    bed.delete_all().await?;
    bed.finish().await
}

/// What a backup of the master key holds.
async fn master_key(bed: &Bed) -> Outcome<Value> {
    let name = agentfleet::fleet::MASTER_KEY_SECRET;
    let found = bed.cluster.get("Secret", Some(SYSTEM), name).await?;
    let mut secret = found.unwrap_or_default();
    secret["metadata"] = json!({"namespace": SYSTEM, "name": name});
    Ok(secret)
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_a_new_cluster_whose_instances_are_not_applied_yet_loses_nothing() -> Outcome {
    let anew = |simulator| Options {
        simulator: Some(simulator),
        operator: false,
        ..sweeping("0s", &[])
    };
    let (mut old, mut new) = Bed::pair(Options::default(), |old| anew(old.simulator())).await?;
    old.apply_basics().await?;
    let mut class = old.class();
    class["spec"]["lifecycle"] = json!({"disk": "Disposable"});
    old.change(&class).await?;
    for name in ["one", "two"] {
        old.create(name).await?.ready().await?;
    }
    old.operator.kill()?;
    new.cluster.apply(&master_key(&old).await?).await?;
    let mutations = new.latest_mutation();
    new.operator.start()?;
    new.apply_basics().await?;
    let told = new
        .condition(PROJECT, "NoZombies", "False", "SweepHeld")
        .await?;
    ensure(told.contains("Apply the AgentInstances"), || told.clone())?;
    oracle::calm(&new).await?;
    assert_eq!(new.mutations_after(mutations), [""; 0]);
    old.finish().await?;
    new.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_many_unclaimed_servers_are_a_wrong_view_and_stay() -> Outcome {
    let (bed, _) = bed().await?;
    let mutations = bed.latest_mutation();
    for name in ["a", "b", "c", "d"] {
        left_over(&bed, name, "Disposable")?;
    }
    let told = bed
        .condition(PROJECT, "NoZombies", "False", "SweepHeld")
        .await?;
    ensure(told.contains("4 of 5 servers"), || told.clone())?;
    sweeps(&bed).await?;
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_an_instance_that_the_watch_has_not_shown_is_found_by_the_uncached_look() -> Outcome {
    let (bed, _) = bed_with(Options {
        late: true,
        ..sweeping("0s", &[])
    })
    .await?;
    bed.late()?.hold();
    bed.create("late").await?;
    let server = left_over(&bed, "late", "Disposable")?;
    bed.wait_until("the second look says so", async || {
        Ok(bed.operator.log().contains("a second look found no zombie"))
    })
    .await?;
    sweeps(&bed).await?;
    assert!(exists(&bed, server));
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_with_a_token_of_another_project_nothing_there_is_swept() -> Outcome {
    let other = "token-of-another-project";
    let (bed, _) = bed_with(Options {
        cloud: Config {
            tokens: vec![TOKEN.into(), other.into()],
            ..quick_cloud()
        },
        ..sweeping("0s", &[])
    })
    .await?;
    bed.apply_token(manifests::PROJECT, other).await?;
    bed.condition(PROJECT, "CredentialsValid", "False", "WrongProject")
        .await?;
    let host = agentfleet::naming::server_name(FLEET, TENANT, GONE, 1);
    let body = json!({
        "name": host, "server_type": "cx23", "image": "debian-13", "location": "nbg1", "start_after_create": false,
        "labels": labels(FLEET, GONE, "Disposable"),
    });
    let theirs = bed.cloud().create_server(1, &body)?;
    let mutations = bed.latest_mutation();
    oracle::calm(&bed).await?;
    assert!(exists(&bed, theirs));
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firewall_whose_class_is_gone_is_swept_and_one_that_protects_something_is_not() -> Outcome
{
    let (mut bed, _) = bed().await?;
    let mut lost = bed.class();
    lost["metadata"]["name"] = json!("lost");
    bed.change(&lost).await?;
    let class = ("AgentClass", None, "lost");
    bed.condition(class, "FirewallReady", "True", "AsDeclared")
        .await?;
    bed.operator.kill()?;
    let object = bed.cluster.get("AgentClass", None, "lost").await?;
    bed.cluster
        .remove(&object.unwrap_or_default(), "AgentClass")
        .await?;
    let mutations = bed.latest_mutation();
    bed.operator.start()?;
    bed.wait_until("its firewall is swept", async || {
        Ok(bed.cloud().projects()[0].firewalls == 1)
    })
    .await?;
    sweeps(&bed).await?;
    assert_eq!(bed.mutations_after(mutations), ["DELETE /firewalls/{id}"]);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_and_a_snapshot_with_the_fleets_label_are_told_with_the_command_and_stay() -> Outcome
{
    let (bed, _) = bed().await?;
    let ours = json!({"agentfleet.dev/fleet": FLEET});
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519)?;
    let body =
        json!({"name": "by hand", "public_key": key.public_key().to_openssh()?, "labels": ours});
    let key = bed.at_hetzner("POST", "/ssh_keys", &body).await?;
    let image = bed
        .instance("alive")
        .act("create_image", json!({"labels": ours}))
        .await?;
    let (key, image) = (&key["ssh_key"]["id"], &image["image"]["id"]);
    let mutations = bed.latest_mutation();
    let commands = [
        format!("hcloud ssh-key delete {key}"),
        format!("hcloud image delete {image}"),
    ];
    bed.told(PROJECT, &commands.each_ref().map(String::as_str))
        .await?;
    sweeps(&bed).await?;
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    for path in [format!("/ssh_keys/{key}"), format!("/images/{image}")] {
        bed.at_hetzner("GET", &path, &Value::Null).await?;
    }
    let told = events(&bed, "ZombieFound").await?;
    for command in &commands {
        let of_it = told.iter().filter(|note| note.contains(command));
        assert_eq!(of_it.count(), 1, "{told:?}");
    }
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_what_would_go_and_deletes_nothing() -> Outcome {
    let (bed, _) = bed_with(sweeping("0s", &["--zombie-dry-run"])).await?;
    let mutations = bed.latest_mutation();
    left_over(&bed, GONE, "Disposable")?;
    told_as_found(&bed, &["without --zombie-dry-run it would be deleted"]).await?;
    sweeps(&bed).await?;
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.finish().await
}

/// What the command answers: whether it ended well, and what it printed.
fn by_hand(bed: &Bed, flags: &[&str]) -> Outcome<(bool, String)> {
    let simulator = bed.simulator();
    let output = Command::new(operator()?)
        .args(["sweep", "--namespace", SYSTEM, "--zombie-min-age", "0s"])
        .args(["--guest-port", &simulator.ssh_port().to_string()])
        .args(flags)
        .env("KUBECONFIG", bed.dir().join("operator.kubeconfig"))
        .env("HCLOUD_ENDPOINT", simulator.endpoint())
        .output()?;
    let printed = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&printed).into_owned(),
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_by_hand_shows_what_the_operator_would_do_and_changes_nothing() -> Outcome {
    let mut bed = Bed::start().await?;
    bed.create("alive").await?.ready().await?;
    let armed = bed.create(GONE).await?.ready().await?;
    bed.operator.kill()?;
    let object = bed.instance(GONE).object().await?.unwrap_or_default();
    bed.cluster.remove(&object, "AgentInstance").await?;
    let disposable = left_over(&bed, "elsewhere", "Disposable")?;
    let mutations = bed.latest_mutation();
    let (well, table) = tokio::task::block_in_place(|| by_hand(&bed, &["--dry-run"]))?;
    assert!(well, "{table}");
    let line = |id: u64| {
        let command = format!("hcloud server delete {id}");
        table
            .lines()
            .find(|line| line.ends_with(&command))
            .unwrap_or_default()
    };
    ensure(
        line(armed).contains("report") && line(armed).contains("an agent has run on it"),
        || table.clone(),
    )?;
    ensure(line(disposable).contains("sweep"), || table.clone())?;
    assert_eq!(table.lines().count(), 3, "{table}");
    let (well, said) = tokio::task::block_in_place(|| by_hand(&bed, &[]))?;
    assert!(!well && said.contains("--dry-run"), "{said}");
    assert_eq!(bed.mutations_after(mutations), [""; 0]);
    bed.finish().await
}
