//! What the customer paid for is what runs: Subscriptions on a real control plane, with agents on machines.

use bed::{Bed, Options, Outcome, Pace, TENANT, ensure, manifests, oracle};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// A subscription to the class of most tests, with periods that a test can wait for.
fn subscription(name: &str, state: &str) -> Value {
    json!({
        "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription", "metadata": {"namespace": TENANT, "name": name},
        "spec": {
            "customerId": format!("cus_{name}"), "plan": manifests::CLASS, "state": state, "secretName": name,
            "gracePeriod": "5s", "retention": "1h",
        },
    })
}

/// The same with other fields in its spec.
fn with(name: &str, state: &str, fields: &Value) -> Value {
    let mut one = subscription(name, state);
    for (key, value) in fields.as_object().into_iter().flatten() {
        one["spec"][key] = value.clone();
    }
    one
}

/// A customer's Secret, with a value that is new; answers that.
async fn secret(bed: &Bed, name: &str, customer: &str) -> Outcome<String> {
    let value = bed.canaries.fresh();
    let mut secret = manifests::secret(TENANT, name, "API_KEY", &value);
    secret["metadata"]["labels"] = json!({"agentfleet.dev/customer": customer});
    bed.cluster.apply(&secret).await?;
    Ok(value)
}

/// Subscribed, and the agent serves; answers its server.
async fn subscribed(bed: &Bed, name: &str) -> Outcome<u64> {
    secret(bed, name, &format!("cus_{name}")).await?;
    bed.cluster.apply(&subscription(name, "Active")).await?;
    serves(bed, name).await
}

async fn serves(bed: &Bed, name: &str) -> Outcome<u64> {
    told(bed, name, "Ready", "True", "Serving").await?;
    bed.instance(name).ready().await
}

async fn told(bed: &Bed, name: &str, kind: &str, status: &str, reason: &str) -> Outcome<String> {
    let object = ("Subscription", Some(TENANT), name);
    bed.condition(object, kind, status, reason).await
}

async fn status(bed: &Bed, name: &str) -> Outcome<Value> {
    let found = bed.cluster.get("Subscription", Some(TENANT), name).await?;
    Ok(found.map_or(Value::Null, |found| found["status"].clone()))
}

async fn is_suspended(bed: &Bed, name: &str) -> Outcome {
    let one = bed.instance(name);
    one.condition("Ready", "False", "Suspended").await?;
    Ok(())
}

fn in_seconds(seconds: i64) -> Value {
    let at = Timestamp::now() + SignedDuration::from_secs(seconds);
    json!(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_pay_in_time_is_suspended_and_who_pays_has_the_same_server_back() -> Outcome {
    let bed = Bed::start().await?;
    let server = subscribed(&bed, "one").await?;
    let object = bed.instance("one").object().await?.unwrap_or_default();
    assert_eq!(
        object["metadata"]["labels"]["agentfleet.dev/subscription"],
        "one"
    );
    assert_eq!(object["metadata"]["ownerReferences"], Value::Null);
    assert_eq!(
        status(&bed, "one").await?["instanceRef"]["uid"],
        object["metadata"]["uid"]
    );

    let grace = json!({"gracePeriod": "15s"});
    bed.cluster.apply(&with("one", "PastDue", &grace)).await?;
    told(&bed, "one", "Entitled", "True", "PastDue").await?;
    assert_eq!(bed.instance("one").serves().await?, server, "in grace");
    assert_eq!(
        status(&bed, "one").await?["announced"]["event"],
        "SuspendsSoon"
    );
    told(&bed, "one", "Entitled", "False", "PastDue").await?;
    is_suspended(&bed, "one").await?;
    let suspended = status(&bed, "one").await?;
    assert_eq!(suspended["terminateAt"], Value::Null);
    assert_eq!(suspended["announced"], json!({"event": "Suspended"}));
    bed.wait_until("it was told as an event", async || {
        let events = bed.cluster.list("Event").await?;
        Ok(events.iter().any(|event| {
            event["reason"] == "Suspended" && event["regarding"]["kind"] == "Subscription"
        }))
    })
    .await?;

    bed.cluster.apply(&subscription("one", "Active")).await?;
    assert_eq!(serves(&bed, "one").await?, server);
    assert_eq!(status(&bed, "one").await?["firstSeen"], Value::Null);
    for state in ["Unpaid", "Paused", "Incomplete"] {
        bed.cluster.apply(&subscription("one", state)).await?;
        told(&bed, "one", "Entitled", "False", state).await?;
        is_suspended(&bed, "one").await?;
        assert!(status(&bed, "one").await?["terminateAt"].is_string());
        bed.cluster.apply(&subscription("one", "Active")).await?;
        assert_eq!(serves(&bed, "one").await?, server, "back from {state}");
    }
    oracle::calm(&bed).await?;
    assert_eq!(bed.requests_to("POST", "/servers"), 1);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cancels_has_what_was_paid_and_then_the_retention_and_then_nothing() -> Outcome {
    let bed = Bed::start().await?;
    let server = subscribed(&bed, "one").await?;
    let paid_until = in_seconds(15);
    let fields = json!({"paidUntil": paid_until, "retention": "15s"});
    bed.cluster.apply(&with("one", "Canceled", &fields)).await?;
    told(&bed, "one", "Entitled", "True", "Canceled").await?;
    assert_eq!(status(&bed, "one").await?["suspendAt"], paid_until);
    assert_eq!(bed.instance("one").serves().await?, server);
    is_suspended(&bed, "one").await?;
    let ends = status(&bed, "one").await?["terminateAt"].clone();
    assert!(ends.as_str() > paid_until.as_str(), "{ends}");
    bed.instance("one").gone().await?;
    let now = Timestamp::now();
    let ends: Timestamp = ends.as_str().unwrap_or_default().parse()?;
    assert!(now >= ends, "{now} is before {ends}");
    bed.wait_until("it says so", async || {
        let status = status(&bed, "one").await?;
        Ok(status["announced"]["event"] == "Terminated" && status["instanceRef"].is_null())
    })
    .await?;
    assert_eq!(bed.cloud().servers().len(), 0);
    let mut reasons = vec![];
    bed.wait_until("each was told as an event", async || {
        reasons = bed.cluster.list("Event").await?;
        let told = |reason| reasons.iter().any(|event| event["reason"] == reason);
        Ok(["SuspendsSoon", "TerminatesSoon", "Terminated"]
            .into_iter()
            .all(told))
    })
    .await?;
    // He comes back, and gets a new one.
    let fields = json!({"externalRef": {"system": "stripe", "id": "sub_2"}});
    bed.cluster.apply(&with("one", "Active", &fields)).await?;
    assert_ne!(serves(&bed, "one").await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

/// What kubectl prints of a Subscription, by the heads of its columns.
fn shown(table: &str, name: &str) -> Vec<(String, String)> {
    let mut lines = table.lines();
    let heads = lines.next().unwrap_or_default();
    let row = lines.find(|line| line.split_whitespace().next() == Some(name));
    let mut cells = vec![];
    let mut from = 0;
    for head in heads.split_whitespace() {
        let start = from + heads[from..].find(head).unwrap_or_default();
        let rest = &heads[start..];
        let width = rest.len() - rest[head.len()..].trim_start().len();
        let until = if start + width == heads.len() {
            usize::MAX
        } else {
            start + width
        };
        let cell = row.and_then(|row| row.get(start..until.min(row.len())));
        cells.push((head.to_owned(), cell.unwrap_or_default().trim().to_owned()));
        from = start + head.len();
    }
    cells
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_shows_the_plan_the_state_the_agent_and_what_becomes_of_it() -> Outcome {
    let bed = Bed::start().await?;
    let paid_until = in_seconds(7_200);
    let rows = [
        ("late", "PastDue", json!({"gracePeriod": "100h"})),
        ("gone", "Canceled", json!({"paidUntil": paid_until})),
        ("over", "Unpaid", json!({"retention": "50h"})),
    ];
    for (name, state, fields) in &rows {
        subscribed(&bed, name).await?;
        bed.cluster.apply(&with(name, state, fields)).await?;
    }
    subscribed(&bed, "paid").await?;
    told(&bed, "late", "Entitled", "True", "PastDue").await?;
    told(&bed, "gone", "Entitled", "True", "Canceled").await?;
    told(&bed, "over", "Entitled", "False", "Unpaid").await?;
    let seen = async |name: &str| -> Outcome<Timestamp> {
        let seen = status(&bed, name).await?["firstSeen"][0]["at"].clone();
        Ok(seen.as_str().unwrap_or_default().parse()?)
    };
    let grace_ends = (seen("late").await? + SignedDuration::from_hours(100)).to_string();
    let retention_ends = (seen("over").await? + SignedDuration::from_hours(50)).to_string();
    let paid_until = paid_until.as_str().unwrap_or_default();
    let kept_until = paid_until.parse::<Timestamp>()? + SignedDuration::from_hours(1);
    let kept_until = kept_until.to_string();

    let table = bed
        .cluster
        .kubectl(&["get", "agsub", "--namespace", TENANT])?;
    for (name, state, ready, suspends, ends) in [
        ("paid", "Active", "True", "", ""),
        ("late", "PastDue", "True", &*grace_ends, ""),
        ("gone", "Canceled", "True", paid_until, &*kept_until),
        ("over", "Unpaid", "False", "", &*retention_ends),
    ] {
        let mut cells = shown(&table, name);
        let (age, how_old) = cells.pop().unwrap_or_default();
        ensure(age == "AGE" && how_old.ends_with(['s', 'm']), || {
            table.clone()
        })?;
        let expected = [
            ("NAME", name),
            ("PLAN", manifests::CLASS),
            ("STATE", state),
            ("AGENT", name),
            ("READY", ready),
            ("SUSPENDS", suspends),
            ("ENDS", ends),
        ];
        let expected = expected.map(|(head, cell)| (head.to_owned(), cell.to_owned()));
        assert_eq!(cells, expected, "{table}");
    }
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pays_right_before_the_end_is_not_ended_by_what_was_planned_before() -> Outcome {
    let mut bed = Bed::with(Options {
        operator: false,
        pace: Pace {
            lease: "60s",
            ..Pace::default()
        },
        ..Options::default()
    })
    .await?;
    // It has planned the end, and is held up before it looks whether that still holds.
    let held_up = "kubernetes GET subscriptions before=1*sleep(10000)";
    bed.operator.start_with(&[("FAILPOINTS", held_up)])?;
    bed.apply_basics().await?;
    let server = subscribed(&bed, "one").await?;
    let short = json!({"retention": "2s"});
    bed.cluster.apply(&with("one", "Unpaid", &short)).await?;
    bed.wait_until("it is about to end", async || {
        let mut calls = bed.operator.calls()?.into_iter();
        Ok(calls.any(|call| call.call == "GET subscriptions"))
    })
    .await?;
    bed.cluster.apply(&with("one", "Active", &short)).await?;
    assert_eq!(serves(&bed, "one").await?, server);
    assert_eq!(bed.requests_to("POST", "/servers"), 1);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_another_customer_buys_nothing_and_changes_nothing() -> Outcome {
    let bed = Bed::start().await?;
    secret(&bed, "two", "cus_two").await?;
    let stolen = with("one", "Active", &json!({"secretName": "two"}));
    bed.cluster.apply(&stolen).await?;
    let message = told(&bed, "one", "Ready", "False", "SecretOfAnother").await?;
    assert!(
        message.contains("agentfleet.dev/customer=cus_one"),
        "{message}"
    );
    bed.cluster.apply(&subscription("one", "Active")).await?;
    told(&bed, "one", "Ready", "False", "SecretMissing").await?;
    assert!(bed.instance("one").object().await?.is_none());
    assert_eq!(bed.requests_to("POST", "/servers"), 0);

    let server = subscribed(&bed, "one").await?;
    bed.cluster.apply(&stolen).await?;
    told(&bed, "one", "Ready", "False", "SecretOfAnother").await?;
    let spec = bed.instance("one").object().await?.unwrap_or_default()["spec"].clone();
    assert_eq!(spec["secretName"], "one");
    let unpaid = with("one", "Unpaid", &json!({"secretName": "two"}));
    bed.cluster.apply(&unpaid).await?;
    is_suspended(&bed, "one").await?;
    bed.cluster.apply(&subscription("one", "Active")).await?;
    assert_eq!(serves(&bed, "one").await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_with_one_external_reference_the_younger_gets_nothing() -> Outcome {
    let bed = Bed::start().await?;
    let external = json!({"externalRef": {"system": "stripe", "id": "sub_1"}});
    for name in ["one", "two"] {
        secret(&bed, name, &format!("cus_{name}")).await?;
    }
    bed.cluster.apply(&with("one", "Active", &external)).await?;
    serves(&bed, "one").await?;
    bed.cluster.apply(&with("two", "Active", &external)).await?;
    let message = told(&bed, "two", "Ready", "False", "Duplicate").await?;
    assert!(message.contains(&format!("{TENANT}/one")), "{message}");
    assert!(bed.instance("two").object().await?.is_none());
    serves(&bed, "one").await?;
    bed.cluster.apply(&subscription("two", "Active")).await?;
    serves(&bed, "two").await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_subscription_leaves_its_agent_and_only_its_customer_takes_it_back() -> Outcome {
    let bed = Bed::start().await?;
    let server = subscribed(&bed, "one").await?;
    for cascade in ["background", "foreground", "orphan"] {
        let cascade = format!("--cascade={cascade}");
        let delete = ["delete", "agsub", "one", "--namespace", TENANT, &cascade];
        bed.cluster.kubectl(&delete)?;
        is_suspended(&bed, "one").await?;
        let left = bed.instance("one").object().await?.unwrap_or_default();
        let ends = &left["metadata"]["annotations"]["agentfleet.dev/terminate-at"];
        assert!(ends.is_string(), "{left}");
        assert_eq!(left["metadata"]["deletionTimestamp"], Value::Null);

        let other = with("one", "Active", &json!({"customerId": "cus_two"}));
        bed.cluster.apply(&other).await?;
        told(&bed, "one", "Ready", "False", "NameTaken").await?;
        bed.cluster
            .delete("Subscription", Some(TENANT), "one")
            .await?;
        is_suspended(&bed, "one").await?;

        bed.wait_until("it is gone", async || {
            Ok(status(&bed, "one").await?.is_null())
        })
        .await?;
        bed.cluster.apply(&subscription("one", "Active")).await?;
        assert_eq!(serves(&bed, "one").await?, server, "after {cascade}");
        let back = bed.instance("one").object().await?.unwrap_or_default();
        assert_eq!(back["metadata"]["annotations"], Value::Null);
    }
    assert_eq!(bed.requests_to("POST", "/servers"), 1);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_left_ends_when_it_says_and_an_instance_of_nobody_does_not() -> Outcome {
    let flags = ["--orphan-patience", "2s"].map(str::to_owned).into();
    let mut bed = Bed::with(Options {
        flags,
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    let own = bed.create("own").await?;
    own.ready().await?;
    // By hand, and without the label: it means nothing.
    own.annotate("agentfleet.dev/terminate-at", "2020-01-01T00:00:00Z")
        .await?;
    subscribed(&bed, "one").await?;
    let short = with("one", "Active", &json!({"retention": "15s"}));
    bed.cluster.apply(&short).await?;
    bed.cluster
        .delete("Subscription", Some(TENANT), "one")
        .await?;
    is_suspended(&bed, "one").await?;
    bed.instance("one").gone().await?;

    // One whose Subscription was torn away is suspended, and kept for a week.
    subscribed(&bed, "two").await?;
    bed.operator.stop().await?;
    let torn = bed.cluster.get("Subscription", Some(TENANT), "two").await?;
    bed.cluster
        .remove(&torn.unwrap_or_default(), "Subscription")
        .await?;
    bed.operator.start()?;
    is_suspended(&bed, "two").await?;
    let left = bed.instance("two").object().await?.unwrap_or_default();
    let ends = left["metadata"]["annotations"]["agentfleet.dev/terminate-at"].clone();
    let ends: Timestamp = ends.as_str().unwrap_or_default().parse()?;
    assert!(
        ends > Timestamp::now() + SignedDuration::from_hours(160),
        "{ends}"
    );
    bed.instance("own").serves().await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admins_own_words_stand_whatever_a_subscription_says() -> Outcome {
    let bed = Bed::start().await?;
    let server = subscribed(&bed, "one").await?;
    let suspend =
        |suspend: Value| json!({"spec": {"suspend": suspend, "environment": {"BY_HAND": "1"}}});
    let say = async |words: Value| {
        bed.cluster
            .merge("AgentInstance", Some(TENANT), "one", words)
            .await
    };
    say(suspend(json!(true))).await?;
    told(&bed, "one", "Ready", "False", "Suspended").await?;
    for state in ["Unpaid", "Active"] {
        bed.cluster.apply(&subscription("one", state)).await?;
        let entitled = if state == "Active" { "True" } else { "False" };
        told(&bed, "one", "Entitled", entitled, state).await?;
        is_suspended(&bed, "one").await?;
    }
    oracle::calm(&bed).await?;
    is_suspended(&bed, "one").await?;
    let spec = bed.instance("one").object().await?.unwrap_or_default()["spec"].clone();
    assert_eq!(spec["environment"]["BY_HAND"], "1");
    say(suspend(json!(null))).await?;
    assert_eq!(serves(&bed, "one").await?, server);

    // One that no Subscription made is not touched, whatever is said under its name.
    let own = bed.create("own").await?;
    own.ready().await?;
    let version =
        |object: Option<Value>| object.unwrap_or_default()["metadata"]["generation"].clone();
    let before = version(own.object().await?);
    secret(&bed, "own", "cus_own").await?;
    bed.cluster.apply(&subscription("own", "Unpaid")).await?;
    told(&bed, "own", "Ready", "False", "NameTaken").await?;
    bed.cluster
        .delete("Subscription", Some(TENANT), "own")
        .await?;
    bed.wait_until("it is gone", async || {
        Ok(status(&bed, "own").await?.is_null())
    })
    .await?;
    own.ready().await?;
    assert_eq!(version(own.object().await?), before);
    bed.delete_all().await?;
    bed.finish().await
}

/// A plan with agents like those of the others.
fn plan(bed: &Bed, name: &str) -> Value {
    let mut plan = bed.class();
    plan["metadata"]["name"] = json!(name);
    // An agent that is Ready for so long counts as such.
    plan["spec"]["health"] = json!({"interval": "1s"});
    plan
}

/// Waits until a server is behind the firewall of this class and of no other.
async fn is_behind_the_firewall_of(bed: &Bed, server: u64, class: &str) -> Outcome {
    let what = format!("server {server} is behind the firewall of {class} alone");
    let none = Value::Null;
    bed.wait_until(&what, async || {
        let all = bed.at_hetzner("GET", "/firewalls", &none).await?;
        let all = all["firewalls"].as_array().cloned().unwrap_or_default();
        let applied = all.iter().filter(|firewall| {
            let mut to = firewall["applied_to"].as_array().into_iter().flatten();
            to.any(|to| to["server"]["id"] == json!(server))
        });
        let classes: Vec<_> = applied
            .map(|firewall| firewall["labels"]["agentfleet.dev/class"].clone())
            .collect();
        Ok(classes == [json!(class)])
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn i14_another_plan_keeps_the_server_even_where_that_plan_calls_its_disks_disposable()
-> Outcome {
    let bed = Bed::start().await?;
    bed.change(&plan(&bed, manifests::CLASS)).await?;
    let mut other = plan(&bed, "other");
    other["spec"]["image"] = json!("ubuntu-24.04");
    other["spec"]["lifecycle"] = json!({"disk": "Disposable"});
    bed.change(&other).await?;
    let mut large = plan(&bed, "large");
    large["spec"]["serverTypes"] = json!(["cx33"]);
    bed.change(&large).await?;
    let server = subscribed(&bed, "one").await?;
    told(&bed, "one", "PlanPending", "False", "AsPaid").await?;
    let takes = async |plan: &str| {
        let plan = with("one", "Active", &json!({"plan": plan}));
        bed.cluster.apply(&plan).await
    };

    takes("other").await?;
    let message = told(&bed, "one", "PlanPending", "True", "NeedsNewServer").await?;
    ensure(message.contains("made to keep its disk"), || message)?;
    is_behind_the_firewall_of(&bed, server, "other").await?;
    assert_eq!(serves(&bed, "one").await?, server);
    takes(manifests::CLASS).await?;
    told(&bed, "one", "PlanPending", "False", "AsPaid").await?;

    takes("large").await?;
    bed.wait_until("its server has the type that is paid for", async || {
        let status = bed.instance("one").status().await?;
        Ok(status["server"]["type"] == "cx33")
    })
    .await?;
    told(&bed, "one", "PlanPending", "False", "AsPaid").await?;
    assert_eq!(serves(&bed, "one").await?, server);
    assert_eq!(bed.requests_to("POST", "/servers"), 1);

    // Nothing keeps a class from going that nobody has any more.
    is_behind_the_firewall_of(&bed, server, "large").await?;
    bed.cluster.delete("AgentClass", None, "other").await?;
    bed.wait_until("the class is gone", async || {
        let left = bed.cluster.get("AgentClass", None, "other").await?;
        Ok(left.is_none())
    })
    .await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_plan_whose_disks_are_disposable_too_brings_another_server_and_says_until_when_not()
-> Outcome {
    let bed = Bed::start().await?;
    let disposable = |name: &str, image: &str, paused: bool| {
        let mut plan = plan(&bed, name);
        plan["spec"]["image"] = json!(image);
        plan["spec"]["lifecycle"] = json!({"disk": "Disposable", "rollout": {"paused": paused}});
        plan
    };
    bed.change(&disposable(manifests::CLASS, "debian-13", false))
        .await?;
    bed.change(&disposable("other", "ubuntu-24.04", true))
        .await?;
    let server = subscribed(&bed, "one").await?;
    told(&bed, "one", "PlanPending", "False", "AsPaid").await?;

    let other = with("one", "Active", &json!({"plan": "other"}));
    bed.cluster.apply(&other).await?;
    told(&bed, "one", "PlanPending", "True", "RolloutPaused").await?;
    // Until then it is looked after as an agent of the plan that it has.
    let value = secret(&bed, "one", "cus_one").await?;
    bed.instance("one")
        .has_in_file(manifests::SECRET_FILE, &value)
        .await?;
    oracle::calm(&bed).await?;
    assert_eq!(serves(&bed, "one").await?, server);
    bed.change(&disposable("other", "ubuntu-24.04", false))
        .await?;
    told(&bed, "one", "PlanPending", "False", "AsPaid").await?;
    assert_ne!(serves(&bed, "one").await?, server);
    assert_eq!(bed.requests_to("POST", "/servers"), 2);
    bed.wait_until("the former server is gone", async || {
        Ok(bed.cloud().servers().len() == 1)
    })
    .await?;
    bed.delete_all().await?;
    bed.finish_after_replacements().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_bulk_update_or_deletion_ends_no_agent_and_is_undone() -> Outcome {
    let flags = ["--guard-least", "5"].map(str::to_owned).into();
    let mut bed = Bed::with(Options {
        flags,
        ..Options::default()
    })
    .await?;
    bed.apply_basics().await?;
    let names = ["a", "b", "c", "d", "e", "f"];
    for name in names {
        subscribed(&bed, name).await?;
    }
    let mut servers = vec![];
    for name in names {
        servers.push(serves(&bed, name).await?);
    }
    let short = json!({"retention": "3s"});
    for name in names {
        bed.cluster.apply(&with(name, "Unpaid", &short)).await?;
    }
    for name in names {
        is_suspended(&bed, name).await?;
        told(&bed, name, "TerminationHeld", "True", "TooManyAtOnce").await?;
    }
    bed.operator.restart()?;
    their_time_is_over(&bed).await?;
    for name in names {
        let kept = bed.instance(name).object().await?.unwrap_or_default();
        assert_eq!(kept["metadata"]["deletionTimestamp"], Value::Null, "{kept}");
    }
    assert_eq!(bed.cloud().servers().len(), names.len());
    // Meant for one, and a mistake for the others.
    let now = Timestamp::now().to_string();
    let word = json!({"metadata": {"annotations": {"agentfleet.dev/confirm-termination": now}}});
    bed.cluster
        .merge("Subscription", Some(TENANT), "a", word)
        .await?;
    bed.instance("a").gone().await?;
    for (name, server) in names.into_iter().zip(&servers).skip(1) {
        bed.cluster.apply(&with(name, "Active", &short)).await?;
        assert_eq!(serves(&bed, name).await?, *server);
        told(&bed, name, "TerminationHeld", "False", "NotHeld").await?;
    }
    bed.cluster
        .kubectl(&["delete", "agsub", "--all", "--namespace", TENANT])?;
    for name in &names[1..] {
        is_suspended(&bed, name).await?;
    }
    their_time_is_over(&bed).await?;
    // One is meant again, whose Subscription is no more.
    bed.wait_until("it is held", async || {
        let held = bed.instance(names[1]).object().await?.unwrap_or_default();
        let told = &held["metadata"]["annotations"]["agentfleet.dev/termination-held"];
        Ok(told.is_string())
    })
    .await?;
    bed.confirm("AgentInstance", Some(TENANT), names[1]).await?;
    bed.instance(names[1]).gone().await?;
    oracle::calm(&bed).await?;
    for (name, server) in names.into_iter().zip(&servers).skip(2) {
        bed.cluster.apply(&subscription(name, "Active")).await?;
        assert_eq!(serves(&bed, name).await?, *server);
    }
    assert_eq!(bed.requests_to("DELETE", "/servers/{id}"), 2);
    bed.delete_all().await?;
    bed.finish().await
}

/// Waits until each agent has been past its end for some periods of the operator.
async fn their_time_is_over(bed: &Bed) -> Outcome {
    bed.wait_until("their time is over", async || {
        let all = bed.cluster.list("AgentInstance").await?;
        let ends = all.iter().map(|one| {
            let told = &one["metadata"]["annotations"]["agentfleet.dev/terminate-at"];
            told.as_str()
                .and_then(|told| told.parse::<Timestamp>().ok())
        });
        let over = Timestamp::now() - SignedDuration::from_secs(4);
        Ok(ends
            .into_iter()
            .all(|end| end.is_some_and(|end| end < over)))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_one_write_of_the_status_and_one_word_to_the_instance() -> Outcome {
    let bed = Bed::start().await?;
    subscribed(&bed, "one").await?;
    oracle::calm(&bed).await?;
    let before = bed.writes()?.len();
    let patient = json!({"gracePeriod": "100h"});
    bed.cluster.apply(&with("one", "PastDue", &patient)).await?;
    told(&bed, "one", "Entitled", "True", "PastDue").await?;
    oracle::calm(&bed).await?;
    let since = bed.writes()?.split_off(before);
    let of_one = format!(" {TENANT}/one");
    let mut since: Vec<_> = since.iter().map(|write| write.what.as_str()).collect();
    // What is written of classes and projects meanwhile is another matter.
    since.retain(|what| what.ends_with(&of_one));
    since.sort_unstable();
    let expected = ["patch agentinstances", "patch subscriptions/status"];
    assert_eq!(since, expected.map(|what| format!("{what}{of_one}")));
    bed.delete_all().await?;
    bed.finish().await
}

/// What a user may do in the namespace of the agents, asked of the API server itself.
async fn may(bed: &Bed, user: &str, verb: &str, resource: &str) -> Outcome<bool> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let group = if ["secrets", "configmaps"].contains(&resource) {
        ""
    } else {
        "agentfleet.dev"
    };
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
        "spec": {"user": user, "resourceAttributes": {
            "namespace": TENANT, "verb": verb, "group": group, "resource": resource, "subresource": subresource,
        }},
    });
    let answer = bed.cluster.create(&review).await?;
    Ok(answer["status"]["allowed"] == true)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_what_it_is_for_and_nothing_else() -> Outcome {
    let bed = Bed::with(Options {
        operator: false,
        ..Options::default()
    })
    .await?;
    let reads = ["get", "list", "watch"];
    let writes = [
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
        "administer",
    ];
    let resources = [
        "subscriptions",
        "subscriptions/status",
        "agentinstances",
        "agentinstances/status",
        "agentclasses",
        "hetznerprojects",
        "secrets",
    ];
    let allowed = |role: &str, verb: &str, resource: &str| match role {
        "agentfleet-billing" => {
            resource == "subscriptions" && !["deletecollection", "administer"].contains(&verb)
        }
        "agentfleet-onboarding" => resource == "secrets" && verb == "create",
        "agentfleet-viewer" | "agentfleet-admin" if resource.ends_with("/status") => verb == "get",
        "agentfleet-viewer" => resource != "secrets" && reads.contains(&verb),
        "agentfleet-admin" => resource != "secrets",
        // The cluster's own roles give nothing of agentfleet, and the least of them no Secrets.
        "view" => false,
        _ => resource == "secrets" && verb != "administer",
    };
    for role in [
        "agentfleet-billing",
        "agentfleet-onboarding",
        "agentfleet-viewer",
        "agentfleet-admin",
        "view",
        "edit",
        "admin",
    ] {
        let group = "rbac.authorization.k8s.io";
        bed.cluster
            .apply(&json!({
                "apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": {"namespace": TENANT, "name": role},
                "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": group, "kind": "User", "name": role}],
            }))
            .await?;
        bed.wait_until("the binding is known", async || {
            let (verb, resource) = match role {
                "agentfleet-billing" => ("create", "subscriptions"),
                "agentfleet-onboarding" | "edit" | "admin" => ("create", "secrets"),
                "view" => ("get", "configmaps"),
                _ => ("get", "subscriptions"),
            };
            may(&bed, role, verb, resource).await
        })
        .await?;
        for resource in resources {
            for verb in reads.into_iter().chain(writes) {
                let found = may(&bed, role, verb, resource).await?;
                ensure(found == allowed(role, verb, resource), || {
                    format!("{role} {verb} {resource}: {found}")
                })?;
            }
        }
    }
    bed.finish().await
}
