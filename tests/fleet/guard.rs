//! The guard: what takes many agents away at once is held until a person says what was meant, and can be undone.

use std::collections::BTreeMap;

use bed::{
    Bed, Call, GUARD, Moment, OPERATOR, Options, Outcome, Pace, SYSTEM, TENANT, each, ensure,
    manifests, oracle, quick_cloud, wait_until,
};
use hetzner_sim::Config;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// A bed whose guard is on; time to count is as short as it may be.
async fn guarded(flags: &[&str]) -> Outcome<Bed> {
    guarded_for(Pace::default().lease, flags).await
}

/// The same, where the holder of the Lease may be silent for so long.
async fn guarded_for(lease: &'static str, flags: &[&str]) -> Outcome<Bed> {
    let on = ["--guard-least", "5", "--creations-per-day", "1000"];
    let flags = on.iter().chain(flags).map(|flag| (*flag).to_owned());
    let bed = Bed::with(Options {
        flags: flags.collect(),
        pace: Pace {
            lease,
            ..Pace::default()
        },
        cloud: Config {
            rate_limit: 100_000,
            ..quick_cloud()
        },
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    Ok(bed)
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("a{n:03}")).collect()
}

/// Instances of that many names, each Ready; answers their servers.
async fn serving(bed: &Bed, names: &[String]) -> Outcome<BTreeMap<String, u64>> {
    for name in names {
        bed.create(name).await?;
    }
    let mut servers = BTreeMap::new();
    for name in names {
        servers.insert(name.clone(), bed.instance(name).ready().await?);
    }
    Ok(servers)
}

fn subscription(name: &str, state: &str, retention: &str) -> Value {
    json!({
        "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription", "metadata": {"namespace": TENANT, "name": name},
        "spec": {
            "customerId": format!("cus_{name}"), "plan": manifests::CLASS, "state": state, "secretName": name,
            "gracePeriod": "1s", "retention": retention,
        },
    })
}

async fn secret(bed: &Bed, name: &str, customer: &str) -> Outcome<String> {
    let value = bed.canaries.fresh();
    let mut secret = manifests::secret(TENANT, name, "API_KEY", &value);
    secret["metadata"]["labels"] = json!({"agentfleet.dev/customer": customer});
    bed.cluster.apply(&secret).await?;
    Ok(value)
}

/// Subscriptions of that many names, whose agents serve; answers their servers.
async fn subscribed(bed: &Bed, names: &[String]) -> Outcome<BTreeMap<String, u64>> {
    for name in names {
        secret(bed, name, &format!("cus_{name}")).await?;
        bed.cluster
            .apply(&subscription(name, "Active", RETENTION))
            .await?;
    }
    all_serve(bed, names).await
}

async fn all_serve(bed: &Bed, names: &[String]) -> Outcome<BTreeMap<String, u64>> {
    let mut servers = BTreeMap::new();
    for name in names {
        let object = ("Subscription", Some(TENANT), name.as_str());
        bed.condition(object, "Ready", "True", "Serving").await?;
        servers.insert(name.clone(), bed.instance(name).serves().await?);
    }
    Ok(servers)
}

async fn delete(bed: &Bed, names: &[String]) -> Outcome {
    for name in names {
        bed.instance(name).delete().await?;
    }
    Ok(())
}

async fn are_kept(bed: &Bed, names: &[String]) -> Outcome {
    for name in names {
        let one = bed.instance(name);
        let told = one.condition("Ready", "False", "DeletionHeld").await?;
        ensure(told.contains("confirm-termination"), || told.clone())?;
    }
    Ok(())
}

/// Held, and its agent runs.
async fn are_held(bed: &Bed, names: &[String]) -> Outcome {
    are_kept(bed, names).await?;
    for name in names {
        bed.instance(name).serves().await?;
    }
    Ok(())
}

/// What a person reads of the guard.
async fn read(bed: &Bed) -> Outcome<Value> {
    let found = bed.cluster.get("ConfigMap", Some(SYSTEM), GUARD).await?;
    Ok(found.map_or(Value::Null, |found| found["data"].clone()))
}

/// Waits until the guard says that in a key; none: that nothing is held.
async fn says(bed: &Bed, told: Option<(&str, &str)>) -> Outcome {
    bed.wait_until(&format!("the guard says {told:?}"), async || {
        let data = read(bed).await?;
        Ok(match told {
            None => data["summary"] == "Nothing is held.",
            Some((key, words)) => data[key].as_str().unwrap_or_default().contains(words),
        })
    })
    .await
}

/// Events of the guard, by reason.
async fn alerts(bed: &Bed, reason: &str) -> Outcome<usize> {
    let events = bed.cluster.list("Event").await?;
    let told = events.iter().filter(|event| event["reason"] == reason);
    let told: Vec<_> = told.collect();
    for event in &told {
        ensure(event["regarding"]["name"] == GUARD, || event.to_string())?;
    }
    Ok(told.len())
}

async fn metric(bed: &Bed, name: &str) -> Option<String> {
    let name = format!("agentfleet_{name} ");
    let text = bed.operator.scrape().await?;
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(&name).map(str::to_owned))
}

fn deleted(bed: &Bed) -> u64 {
    bed.requests_to("DELETE", "/servers/{id}")
}

#[tokio::test(flavor = "multi_thread")]
async fn i9_too_many_deleted_agents_run_on_until_an_admin_says_what_was_meant() -> Outcome {
    let mut bed = guarded(&["--guard-patience", "10s"]).await?;
    let names = names(10);
    let servers = serving(&bed, &names).await?;
    let (meant, wrong) = (&names[..1], &names[1..9]);
    delete(&bed, meant).await?;
    bed.instance(&meant[0]).gone().await?;
    assert_eq!(
        (deleted(&bed), read(&bed).await?["deletions"].clone()),
        (1, Value::Null)
    );

    let mut command = vec!["delete", "agents", "--wait=false", "--namespace", TENANT];
    command.extend(wrong.iter().map(String::as_str));
    bed.cluster.kubectl(&command)?;
    are_held(&bed, wrong).await?;
    says(&bed, Some(("deletions", "8 of 10 agents are held"))).await?;
    assert_eq!(
        metric(&bed, "terminations_held{cause=\"Deleted\"}")
            .await
            .as_deref(),
        Some("8")
    );
    let listed = bed
        .cluster
        .kubectl(&["get", "agents", "--namespace", TENANT])?;
    assert_eq!(listed.matches("DeletionHeld").count(), 8, "{listed}");
    says(&bed, Some(("told", "deletions"))).await?;
    bed.operator.restart()?;
    oracle::calm(&bed).await?;
    are_held(&bed, wrong).await?;
    assert_eq!(
        (
            alerts(&bed, "DeletionsHeld").await?,
            alerts(&bed, "DeletionHeld").await?
        ),
        (1, 0)
    );
    assert_eq!(deleted(&bed), 1);

    // One was meant; one is undone, and back on its server.
    let (confirmed, undone) = (&wrong[0], &wrong[1]);
    bed.confirm("AgentInstance", Some(TENANT), confirmed)
        .await?;
    bed.instance(confirmed).gone().await?;
    retain(&bed, undone).await?;
    bed.instance(undone).gone().await?;
    let mut again = manifests::instance(TENANT, undone);
    again["metadata"]["annotations"] = json!({"agentfleet.dev/adopt": servers[undone].to_string()});
    bed.cluster.apply(&again).await?;
    assert_eq!(bed.instance(undone).ready().await?, servers[undone]);
    assert_eq!(deleted(&bed), 2);
    are_held(&bed, &wrong[2..]).await?;
    bed.delete_all().await?;
    says(&bed, None).await?;
    assert_eq!(alerts(&bed, "DeletionsHeld").await?, 1);
    bed.finish().await
}

/// Says of an agent that is to go that its server is to stay.
async fn retain(bed: &Bed, name: &str) -> Outcome {
    let retain = json!({"spec": {"deletionPolicy": "Retain"}});
    bed.cluster
        .merge("AgentInstance", Some(TENANT), name, retain)
        .await
}

/// An admin gives an agent that its Subscription has made anew the server that it had, and it serves there.
async fn is_taken_up(bed: &Bed, name: &str, server: u64) -> Outcome {
    let one = bed.instance(name);
    one.condition("Stalled", "True", "AdoptOrDelete").await?;
    one.annotate("agentfleet.dev/adopt", &server.to_string())
        .await?;
    let name = name.to_owned();
    let servers = all_serve(bed, std::slice::from_ref(&name)).await?;
    ensure(servers[&name] == server, || {
        format!("{servers:?}, not {server}")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_that_were_held_are_undone_where_subscriptions_make_the_agents_anew() -> Outcome {
    let bed = guarded(&["--guard-patience", "10s"]).await?;
    let names = names(6);
    let servers = subscribed(&bed, &names).await?;
    delete(&bed, &names).await?;
    are_held(&bed, &names).await?;
    for name in &names {
        retain(&bed, name).await?;
    }
    for name in &names {
        is_taken_up(&bed, name, servers[name]).await?;
    }
    says(&bed, None).await?;
    assert_eq!((bed.requests_to("POST", "/servers"), deleted(&bed)), (6, 0));
    assert_eq!(alerts(&bed, "DeletionsHeld").await?, 1);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_namespace_takes_no_agent_along_before_an_admin_says_so() -> Outcome {
    let mut bed = guarded(&["--guard-patience", "10s"]).await?;
    let names = names(8);
    let (own, paid) = names.split_at(4);
    serving(&bed, own).await?;
    for name in paid {
        secret(&bed, name, &format!("cus_{name}")).await?;
        let active = subscription(name, "Active", "1h");
        bed.cluster.apply(&active).await?;
    }
    let servers = all_serve(&bed, paid).await?;
    bed.operator.stop().await?;
    // It ends when it has written that they are held, and nobody was told yet.
    let writes = Call {
        site: "kubernetes".into(),
        call: "PATCH configmaps guard".into(),
        occurrence: 1,
    };
    bed.operator.start_to_crash_at(&writes, Moment::After)?;
    bed.cluster.delete("Namespace", None, TENANT).await?;
    wait_until("the operator crashes", async || bed.operator.has_crashed()).await?;
    bed.operator.start()?;
    are_held(&bed, own).await?;
    // These may be silent by now: their Subscriptions are deleted too.
    are_kept(&bed, paid).await?;
    bed.wait_until("their Secrets and Subscriptions are gone", async || {
        let secrets = bed.cluster.list("Secret").await?;
        let left = secrets
            .iter()
            .any(|one| one["metadata"]["namespace"] == TENANT);
        Ok(!left && bed.cluster.list("Subscription").await?.is_empty())
    })
    .await?;
    oracle::calm(&bed).await?;
    are_held(&bed, own).await?;
    are_kept(&bed, paid).await?;
    assert_eq!(deleted(&bed), 0);
    assert_eq!(alerts(&bed, "DeletionsHeld").await?, 1);
    // One was not meant, and is taken up again when all is made anew.
    let undone = &paid[0];
    retain(&bed, undone).await?;
    for name in names.iter().filter(|name| *name != undone) {
        bed.confirm("AgentInstance", Some(TENANT), name).await?;
    }
    bed.wait_until("the namespace is gone", async || {
        Ok(bed.cluster.get("Namespace", None, TENANT).await?.is_none())
    })
    .await?;
    assert_eq!(deleted(&bed), 7);
    says(&bed, None).await?;
    bed.cluster.apply(&manifests::namespace(TENANT)).await?;
    bed.wait_until("the API server knows the new one", async || {
        Ok(secret(&bed, undone, &format!("cus_{undone}")).await.is_ok())
    })
    .await?;
    bed.cluster
        .apply(&subscription(undone, "Active", "1h"))
        .await?;
    is_taken_up(&bed, undone, servers[undone]).await?;
    assert_eq!((bed.requests_to("POST", "/servers"), deleted(&bed)), (8, 7));
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_drip_of_deletions_is_counted_over_a_restart() -> Outcome {
    let flags = [
        "--guard-patience",
        "0s",
        "--guard-window",
        "1s",
        "--guard-long-window",
        "10m",
    ];
    let mut bed = guarded(&flags).await?;
    let names = names(16);
    serving(&bed, &names).await?;
    // Four of sixteen are not 30 %, and five are.
    for name in &names[..4] {
        delete(&bed, std::slice::from_ref(name)).await?;
        bed.instance(name).gone().await?;
    }
    says(&bed, Some(("deleted", "/a003"))).await?;
    bed.operator.restart()?;
    delete(&bed, &names[4..5]).await?;
    are_held(&bed, &names[4..5]).await?;
    says(&bed, Some(("deletions", "1 of 16 agents are held"))).await?;
    assert_eq!(deleted(&bed), 4);
    bed.delete_all().await?;
    bed.finish().await
}

/// Those of these objects that have one of these names.
fn those<'a>(all: &'a [Value], names: &'a [String]) -> impl Iterator<Item = &'a Value> {
    let is_one = |one: &&Value| names.iter().any(|name| one["metadata"]["name"] == *name);
    all.iter().filter(is_one)
}

async fn are_gone(bed: &Bed, kind: &str, names: &[String]) -> Outcome {
    bed.wait_until(&format!("{kind}s are gone: {names:?}"), async || {
        let left = bed.cluster.list(kind).await?;
        Ok(those(&left, names).next().is_none())
    })
    .await
}

/// Waits until agents are silent because nobody pays for them, each for longer than the guard's short window; answers how many are held.
async fn are_lost(bed: &Bed, names: &[String]) -> Outcome<usize> {
    let mut held = 0;
    bed.wait_until(&format!("{names:?} are suspended"), async || {
        let all = bed.cluster.list("AgentInstance").await?;
        let before = Timestamp::now() - SignedDuration::from_secs(2);
        let (mut lost, mut told) = (0, 0);
        for one in those(&all, names) {
            let since = time(one, "unentitled-since");
            let is_lost = one["spec"]["suspend"] == true && since.is_some_and(|at| at < before);
            let held = &one["metadata"]["annotations"]["agentfleet.dev/termination-held"];
            lost += usize::from(is_lost);
            told += usize::from(held.is_string());
        }
        held = told;
        Ok(lost == names.len())
    })
    .await?;
    Ok(held)
}

async fn become_held(bed: &Bed, names: &[String]) -> Outcome {
    bed.wait_until(&format!("{names:?} are held"), async || {
        Ok(are_lost(bed, names).await? == names.len())
    })
    .await
}

/// So many are lost at a time in a slow drip.
const DROPS: usize = 20;
/// As many as may be lost in the guard's long window.
const FEW: usize = BULK * 30 / 100;

/// Does something wrong to some, and again and again to the next until they are too many; answers to which.
async fn drips(bed: &Bed, wrong: &str, names: &[String]) -> Outcome<Vec<String>> {
    let mut fallen = vec![];
    for drops in names.chunks(DROPS) {
        let drops = wrongly(bed, wrong, drops, "1h").await?;
        fallen.extend_from_slice(drops);
        if fallen.len() > FEW {
            become_held(bed, drops).await?;
            break;
        }
        let held = are_lost(bed, drops).await?;
        ensure(held == 0, || format!("{wrong}: {held} of {drops:?}"))?;
    }
    Ok(fallen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_drip_of_lost_entitlement_is_held_too_whether_or_not_agents_are_kept() -> Outcome {
    let flags = [
        ["--guard-window", "1s"],
        ["--guard-long-window", "1h"],
        ["--guard-patience", "1s"],
    ];
    let mut bed = guarded_for("60s", flags.as_flattened()).await?;
    let mut names = names(BULK);
    let servers = bulk_subscribed(&bed, &names, "1h").await?;
    // Those first that have a server, so that they are among the first to fall.
    names.sort_by_key(|name| !servers.contains_key(name));
    for (before, wrong) in ["Unpaid", "Canceled", "delete", "prune"].iter().enumerate() {
        let fallen = drips(&bed, wrong, &names).await?;
        let told = format!("of {BULK} agents are held");
        says(&bed, Some(("terminations", &told))).await?;
        bed.cluster.apply_all(paid(&fallen, "1h")).await?;
        says(&bed, None).await?;
        assert_eq!(some_serve(&bed).await?, servers, "{wrong}");
        let told = alerts(&bed, "TerminationsHeld").await?;
        assert_eq!((told, deleted(&bed)), (before + 1, 0), "{wrong}");
    }

    // Who is gone counts as well, also after a restart.
    let (rest, few) = names.split_at(BULK - FEW);
    for drops in few.chunks(DROPS) {
        wrongly(&bed, "Unpaid", drops, "0s").await?;
        are_gone(&bed, "AgentInstance", drops).await?;
    }
    bed.operator.stop().await?;
    bed.operator.start()?;
    let many = &rest[..DROPS];
    wrongly(&bed, "Unpaid", many, "0s").await?;
    become_held(&bed, many).await?;
    let told = |held: usize, of: usize| format!("{held} of {of} agents are held");
    says(&bed, Some(("terminations", &told(DROPS, BULK)))).await?;
    // One of them was meant: it has a server, and the others have one still.
    let (meant, others) = (&many[0], &many[1..]);
    bed.confirm("Subscription", Some(TENANT), meant).await?;
    bed.instance(meant).gone().await?;
    says(&bed, Some(("terminations", &told(DROPS - 1, BULK - 1)))).await?;
    their_time_is_over(&bed, others).await?;
    assert_eq!(deleted(&bed), 1);
    bed.delete_all().await?;
    bed.finish().await
}

/// So short that a test can wait for it, and longer than a wrong update takes.
const RETENTION: &str = "10s";
/// How many Subscriptions a wrong update takes at once.
const BULK: usize = 200;
/// How many of them have a server: the others wait for one, and are agents all the same.
const SERVERS: usize = 10;
/// For how many seconds an end waits for others in bulk.
const PATIENCE: i64 = 10;

/// Waits until as many as may have a server serve; answers their servers.
async fn some_serve(bed: &Bed) -> Outcome<BTreeMap<String, u64>> {
    let mut servers = BTreeMap::new();
    bed.wait_until("those with a server serve", async || {
        servers = BTreeMap::new();
        for one in bed.cluster.list("AgentInstance").await? {
            let ready = oracle::condition(&one["status"], "Ready");
            let name = one["metadata"]["name"].as_str().unwrap_or_default();
            if ready.is_some_and(|ready| ready["status"] == "True") {
                servers.insert(name.to_owned(), bed.instance(name).serves().await?);
            }
        }
        let there = bed.cloud().servers().len();
        ensure(there <= SERVERS, || {
            format!("{there} servers, where {SERVERS} are allowed")
        })?;
        Ok(there == SERVERS && servers.len() == there)
    })
    .await?;
    Ok(servers)
}

/// Subscriptions of these names, all of them paid for.
fn paid(names: &[String], retention: &str) -> impl Iterator<Item = Value> {
    let paid = |name: &String| subscription(name, "Active", retention);
    names.iter().map(paid)
}

/// So many agents of Subscriptions, a few of them with a server; answers their servers.
async fn bulk_subscribed(
    bed: &Bed,
    names: &[String],
    retention: &str,
) -> Outcome<BTreeMap<String, u64>> {
    let mut project = manifests::project(manifests::PROJECT);
    project["spec"]["maxServers"] = json!(SERVERS);
    bed.change(&project).await?;
    let secrets = names.iter().map(|name| {
        // No canary: to seek so many in all that was ever written takes longer than the test.
        let mut own = manifests::secret(TENANT, name, "API_KEY", "not sought");
        own["metadata"]["labels"] = json!({"agentfleet.dev/customer": format!("cus_{name}")});
        own
    });
    bed.cluster.apply_all(secrets).await?;
    bed.cluster.apply_all(paid(names, retention)).await?;
    bed.wait_until("each has its agent", async || {
        Ok(bed.cluster.list("AgentInstance").await?.len() == names.len())
    })
    .await?;
    some_serve(bed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_wrong_bulk_update_ends_an_agent_and_each_is_undone() -> Outcome {
    // Nothing at all is kept of whom the last takes, so they end as soon as they may.
    let updates = [
        ("PastDue", RETENTION),
        ("Canceled", RETENTION),
        ("delete", RETENTION),
        ("prune", RETENTION),
        ("Unpaid", "0s"),
    ];
    let patience = format!("{PATIENCE}s");
    let mut bed = guarded_for("60s", &["--guard-patience", &patience]).await?;
    let names = names(BULK);
    let servers = bulk_subscribed(&bed, &names, RETENTION).await?;
    for (before, (wrong, retention)) in updates.into_iter().enumerate() {
        let fallen = wrongly(&bed, wrong, &names, retention).await?;
        let told = format!("{} of {BULK} agents are held", fallen.len());
        says(&bed, Some(("terminations", &told))).await?;
        says(&bed, Some(("told", "terminations"))).await?;
        let told = alerts(&bed, "TerminationsHeld").await?;
        assert_eq!(told, before + 1, "one event, {wrong}");
        let shown = metric(&bed, "terminations_held{cause=\"Unentitled\"}").await;
        assert_eq!(shown, Some(fallen.len().to_string()));
        if wrong == "Unpaid" {
            // It gives the Lease up, for which the next one would else wait.
            bed.operator.stop().await?;
            bed.operator.start()?;
        }
        if wrong == "PastDue" {
            assert_eq!(some_serve(&bed).await?, servers, "they are entitled still");
        } else {
            their_time_is_over(&bed, fallen).await?;
        }
        let left = bed.cluster.list("AgentInstance").await?.len();
        assert_eq!((deleted(&bed), left), (0, BULK), "{wrong}");
        if wrong != "Unpaid" {
            bed.cluster.apply_all(paid(fallen, RETENTION)).await?;
            says(&bed, None).await?;
            assert_eq!(some_serve(&bed).await?, servers, "{wrong}");
        }
    }
    // The last was meant for every other of them.
    let is_meant = |name: &String| name.ends_with(['1', '3', '5', '7', '9']);
    let (meant, undone): (Vec<_>, Vec<_>) = names.iter().cloned().partition(is_meant);
    each(&meant, async |name| {
        bed.confirm("Subscription", Some(TENANT), name).await
    })
    .await?;
    bed.wait_until("those are gone that an admin has confirmed", async || {
        let left = bed.cluster.list("AgentInstance").await?;
        Ok(left.len() == undone.len())
    })
    .await?;
    let told = format!("{} of {} agents are held", undone.len(), undone.len());
    says(&bed, Some(("terminations", &told))).await?;
    bed.cluster.apply_all(paid(&undone, RETENTION)).await?;
    says(&bed, None).await?;
    let mut kept = servers.clone();
    kept.retain(|name, _| undone.contains(name));
    let mut serving = some_serve(&bed).await?;
    serving.retain(|name, _| servers.contains_key(name));
    assert_eq!(serving, kept);
    assert_eq!(deleted(&bed), u64::try_from(servers.len() - kept.len())?);
    assert_eq!(alerts(&bed, "TerminationsHeld").await?, updates.len());
    assert_eq!(alerts(&bed, "TooManyAtOnce").await?, 0);
    bed.delete_all().await?;
    bed.finish().await
}

/// How many Subscriptions change at once where it is counted what that costs.
const MANY: usize = 1_000;
/// For how many of them the operator makes an agent within a day of itself.
const TODAY: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn when_a_thousand_change_each_status_is_written_once_and_in_calm_none_is() -> Outcome {
    let bed = Bed::with(Options {
        flags: ["--guard-least", "5"].map(str::to_owned).into(),
        pace: Pace {
            project: "10s",
            lease: "60s",
            ..Pace::default()
        },
        ..Options::default()
    })
    .await?;
    let many = names(MANY);
    let all = |state: &str| {
        let of = |name: &String| {
            let mut one = subscription(name, state, "1h");
            // No class that is there, so that what is counted is theirs and not their servers'.
            one["spec"]["plan"] = json!("none");
            one["spec"]["secretName"] = json!(null);
            one["spec"]["gracePeriod"] = json!("100h");
            one
        };
        many.iter().map(of).collect::<Vec<_>>()
    };
    bed.cluster.apply_all(all("Active")).await?;
    // As many as may be have an agent today.
    bed.wait_until("each has its agent, or waits for it", async || {
        let told = bed.cluster.list("Subscription").await?;
        let waits = |one: &&Value| {
            let ready = oracle::condition(&one["status"], "Ready");
            ready.is_some_and(|ready| ready["reason"] == "CreationsHeld")
        };
        let agents = bed.cluster.list("AgentInstance").await?.len();
        Ok((agents, told.iter().filter(waits).count()) == (TODAY, MANY - TODAY))
    })
    .await?;
    oracle::calm(&bed).await?;
    for state in ["PastDue", "Active"] {
        let audit = bed.audit.later()?;
        bed.cluster.apply_all(all(state)).await?;
        bed.wait_until("each says so", async || {
            let told = bed.cluster.list("Subscription").await?;
            let says = |one: &&Value| {
                let told = oracle::condition(&one["status"], "Entitled");
                told.is_some_and(|told| told["reason"] == state)
            };
            Ok(told.iter().filter(says).count() == MANY)
        })
        .await?;
        oracle::calm(&bed).await?;
        let mut times: BTreeMap<String, usize> = BTreeMap::new();
        for write in audit.writes_of(OPERATOR)? {
            if let Some(name) = write.what.strip_prefix("patch subscriptions/status ") {
                *times.entry(name.to_owned()).or_default() += 1;
            }
        }
        let once = many.iter().map(|name| (format!("{TENANT}/{name}"), 1));
        assert_eq!(times, once.collect(), "{state}");
    }
    bed.delete_all().await?;
    bed.finish().await
}

/// Does something wrong to many Subscriptions at once; answers to which.
async fn wrongly<'a>(
    bed: &Bed,
    wrong: &str,
    names: &'a [String],
    retention: &str,
) -> Outcome<&'a [String]> {
    let kept = if wrong == "prune" { names.len() / 4 } else { 0 };
    let fallen = &names[kept..];
    let cluster = &bed.cluster;
    match wrong {
        "delete" => {
            let mut command = vec!["delete", "agsub", "--namespace", TENANT];
            if fallen.len() == BULK {
                command.push("--all");
            } else {
                command.extend(fallen.iter().map(String::as_str));
            }
            cluster.kubectl(&command)?;
        }
        // What is in the set no more goes, as the controllers that apply whole sets do it.
        "prune" => {
            each(fallen, async |name| {
                cluster.prune("Subscription", Some(TENANT), name).await
            })
            .await?;
            are_gone(bed, "Subscription", fallen).await?;
        }
        state => {
            let lost = fallen.iter().map(|name| {
                let mut lost = subscription(name, state, retention);
                // In bulk nobody is past that before all are.
                lost["spec"]["gracePeriod"] = json!("1h");
                lost
            });
            cluster.apply_all(lost).await?;
        }
    }
    Ok(fallen)
}

/// Waits until each agent is silent, and would have ended some periods of the operator ago if nothing held it.
async fn their_time_is_over(bed: &Bed, names: &[String]) -> Outcome {
    bed.wait_until("their time is over", async || {
        let all = bed.cluster.list("AgentInstance").await?;
        let all: BTreeMap<_, _> = all
            .iter()
            .map(|one| (one["metadata"]["name"].as_str(), one))
            .collect();
        let over = Timestamp::now() - SignedDuration::from_secs(3);
        for name in names {
            let one = all.get(&Some(name.as_str()));
            ensure(
                one.is_some_and(|one| one["metadata"]["deletionTimestamp"].is_null()),
                || format!("{name} was ended"),
            )?;
        }
        Ok(names
            .iter()
            .filter_map(|name| all.get(&Some(name.as_str())))
            .all(|one| {
                let ready = oracle::condition(&one["status"], "Ready");
                let silent = ready.is_some_and(|ready| ready["reason"] == "Suspended");
                silent && ends(one).is_some_and(|end| end < over)
            }))
    })
    .await
}

/// When an agent ends that is not held: at its end, and not before others were seen that were lost with it.
fn ends(instance: &Value) -> Option<Timestamp> {
    let known = time(instance, "unentitled-since")? + SignedDuration::from_secs(PATIENCE);
    Some(known.max(time(instance, "terminate-at")?))
}

/// A time in an annotation of the operator.
fn time(instance: &Value, what: &str) -> Option<Timestamp> {
    let told = &instance["metadata"]["annotations"][format!("agentfleet.dev/{what}")];
    told.as_str()?.parse().ok()
}

/// Ends one agent: that it is gone makes no room for another today.
async fn ends_one(bed: &Bed) -> Outcome {
    let all = bed.cluster.list("AgentInstance").await?;
    let name = all[0]["metadata"]["name"].as_str().unwrap_or_default();
    let over = subscription(name, "Unpaid", "0s");
    bed.cluster.apply(&over).await?;
    bed.instance(name).gone().await?;
    says(bed, Some(("made", &format!("/{name}")))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_agents_are_bought_in_a_day_than_may_be_also_after_a_restart() -> Outcome {
    let limit = "--creations-per-day=5";
    let flags = vec![limit.to_owned()];
    let mut bed = Bed::with(Options {
        flags,
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    let names = names(12);
    for name in &names {
        secret(&bed, name, &format!("cus_{name}")).await?;
    }
    for name in &names {
        bed.cluster
            .apply(&subscription(name, "Active", "1h"))
            .await?;
    }
    for (restarted, ended) in [(false, None), (true, Some("NoAgent"))] {
        let mut made = vec![];
        bed.wait_until("each has its agent, or says why not", async || {
            made = vec![];
            let all = bed.cluster.list("Subscription").await?;
            let reasons = all.iter().filter_map(|one| {
                let ready = oracle::condition(&one["status"], "Ready")?;
                ready["reason"].as_str().map(str::to_owned)
            });
            made.extend(reasons);
            let settled = |reason: &&String| {
                ["Serving", "CreationsHeld"].contains(&reason.as_str())
                    || ended == Some(reason.as_str())
            };
            Ok(made.iter().filter(settled).count() == 12)
        })
        .await?;
        let held = made.iter().filter(|reason| *reason == "CreationsHeld");
        assert_eq!(
            (held.count(), bed.cloud().lives().len()),
            (7, 5),
            "{restarted}"
        );
        says(
            &bed,
            Some(("creations", "7 of 12 Subscriptions have no agent")),
        )
        .await?;
        assert_eq!(metric(&bed, "creations_held").await.as_deref(), Some("7"));
        says(&bed, Some(("told", "creations"))).await?;
        assert_eq!(alerts(&bed, "CreationsHeld").await?, 1, "{restarted}");
        if !restarted {
            ends_one(&bed).await?;
        }
        bed.operator.restart()?;
        oracle::calm(&bed).await?;
    }
    // Whoever was not meant is taken back before he costs anything; the others come with a higher limit.
    let all = bed.cluster.list("Subscription").await?;
    let waiting = all.iter().filter(|one| {
        let ready = oracle::condition(&one["status"], "Ready");
        ready.is_some_and(|ready| ready["reason"] == "CreationsHeld")
    });
    let waiting: Vec<_> = waiting
        .filter_map(|one| one["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    let (undone, meant) = waiting.split_at(3);
    for name in undone {
        bed.cluster
            .delete("Subscription", Some(TENANT), name)
            .await?;
    }
    let told = "4 of 9 Subscriptions have no agent";
    says(&bed, Some(("creations", told))).await?;
    assert_eq!(bed.cloud().lives().len(), 5);
    bed.operator.stop().await?;
    bed.operator.start_without(limit)?;
    all_serve(&bed, meant).await?;
    says(&bed, None).await?;
    assert_eq!(bed.cloud().lives().len(), 9);
    assert_eq!(alerts(&bed, "CreationsHeld").await?, 1);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_secret_that_becomes_anothers_reaches_the_agent() -> Outcome {
    let mut bed = Bed::start().await?;
    let name = "one".to_owned();
    let first = secret(&bed, &name, "cus_one").await?;
    bed.cluster
        .apply(&subscription(&name, "Active", "1h"))
        .await?;
    let servers = all_serve(&bed, std::slice::from_ref(&name)).await?;
    let one = bed.instance(&name);
    one.has_in_file(manifests::SECRET_FILE, &first).await?;

    secret(&bed, &name, "cus_two").await?;
    let another = async |bed: &Bed| -> Outcome {
        let object = ("Subscription", Some(TENANT), "one");
        bed.condition(object, "Ready", "False", "SecretOfAnother")
            .await?;
        let one = bed.instance("one");
        let told = one
            .condition("UpToDate", "False", "SecretOfAnother")
            .await?;
        ensure(told.contains("agentfleet.dev/customer=cus_one"), || {
            told.clone()
        })?;
        one.has_in_file(manifests::SECRET_FILE, &first).await
    };
    another(&bed).await?;
    bed.operator.restart()?;
    oracle::calm(&bed).await?;
    another(&bed).await?;
    // Made again by somebody who does not label it.
    bed.cluster.delete("Secret", Some(TENANT), &name).await?;
    let value = bed.canaries.fresh();
    bed.cluster
        .apply(&manifests::secret(TENANT, &name, "API_KEY", &value))
        .await?;
    another(&bed).await?;
    // An instance whose agent has spoken elsewhere gets nothing of it either: the agent is started anew.
    bed.instance(&name)
        .annotate("agentfleet.dev/restart", "1")
        .await?;
    oracle::calm(&bed).await?;
    another(&bed).await?;

    let own = secret(&bed, &name, "cus_one").await?;
    bed.instance(&name)
        .has_in_file(manifests::SECRET_FILE, &own)
        .await?;
    assert_eq!(all_serve(&bed, std::slice::from_ref(&name)).await?, servers);
    bed.delete_all().await?;
    bed.finish().await
}
