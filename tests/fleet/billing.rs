//! From a billing system to servers: the program of `examples/billing`, under its own account, before the real API server and the operator.

use bed::{AtStripe, Bed, Billing, Options, Outcome, Sender, TENANT, ensure, manifests};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// The credentials that a customer has brought, which billing never sees.
async fn credentials(bed: &Bed, name: &str, customer: &str) -> Outcome {
    let mut secret = manifests::secret(TENANT, name, "API_KEY", &bed.canaries.fresh());
    secret["metadata"]["labels"] = json!({"agentfleet.dev/customer": customer});
    bed.cluster.apply(&secret).await?;
    Ok(())
}

async fn subscription(bed: &Bed, name: &str) -> Outcome<Value> {
    let found = bed.cluster.get("Subscription", Some(TENANT), name).await?;
    Ok(found.unwrap_or_default())
}

async fn told(bed: &Bed, name: &str, kind: &str, status: &str, reason: &str) -> Outcome {
    let object = ("Subscription", Some(TENANT), name);
    bed.condition(object, kind, status, reason).await?;
    Ok(())
}

async fn serves(bed: &Bed, name: &str) -> Outcome<u64> {
    told(bed, name, "Ready", "True", "Serving").await?;
    bed.instance(name).ready().await
}

async fn is_suspended(bed: &Bed, name: &str, state: &str) -> Outcome {
    told(bed, name, "Entitled", "False", state).await?;
    let one = bed.instance(name);
    one.condition("Ready", "False", "Suspended").await?;
    Ok(())
}

/// Sets periods that a test can wait for, as an admin would.
async fn periods(bed: &Bed, name: &str, spec: Value) -> Outcome {
    let patch = json!({"spec": spec});
    bed.cluster
        .merge("Subscription", Some(TENANT), name, patch)
        .await
}

/// So many seconds from now, in whole ones, as Stripe tells them.
fn in_seconds(seconds: i64) -> Outcome<Timestamp> {
    let now = Timestamp::now().as_second();
    Ok(Timestamp::from_second(now + seconds)?)
}

/// Fails unless billing wrote Subscriptions, and nothing else.
fn wrote_subscriptions_only(bed: &Bed, billing: &Billing) -> Outcome {
    let writes = bed.audit.writes_of(billing.user())?;
    ensure(!writes.is_empty(), || "billing wrote nothing".into())?;
    let mut whats = writes.iter().map(|write| write.what.as_str());
    let others = whats.find(|what| !what.starts_with("patch subscriptions tenant/"));
    ensure(others.is_none(), || format!("billing wrote {others:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_pay_at_stripe_is_suspended_who_pays_has_his_server_back_and_who_cancels_is_ended()
-> Outcome {
    let bed = Bed::start().await?;
    let billing = Billing::start(&bed, TENANT).await?;
    let tell = async |message: Value| billing.tell(Sender::Stripe, &message).await;
    let mut one = AtStripe::new("one", manifests::CLASS);
    tell(one.event("created", "incomplete")).await?;
    told(&bed, "one", "Entitled", "False", "Incomplete").await?;
    credentials(&bed, "one", "cus_one").await?;
    tell(one.event("updated", "active")).await?;
    let server = serves(&bed, "one").await?;

    periods(&bed, "one", json!({"gracePeriod": "10s"})).await?;
    tell(one.invoice("payment_failed")).await?;
    told(&bed, "one", "Entitled", "True", "PastDue").await?;
    assert_eq!(bed.instance("one").serves().await?, server, "in grace");
    is_suspended(&bed, "one", "PastDue").await?;
    tell(one.invoice("paid")).await?;
    assert_eq!(serves(&bed, "one").await?, server);
    for (away, back, status, state) in [
        ("updated", "updated", "unpaid", "Unpaid"),
        ("paused", "resumed", "paused", "Paused"),
    ] {
        tell(one.event(away, status)).await?;
        is_suspended(&bed, "one", state).await?;
        tell(one.event(back, "active")).await?;
        assert_eq!(serves(&bed, "one").await?, server, "back from {state}");
    }

    periods(&bed, "one", json!({"retention": "4s"})).await?;
    let paid = in_seconds(15)?;
    one.paid_until(paid);
    tell(one.event("deleted", "canceled")).await?;
    told(&bed, "one", "Entitled", "True", "Canceled").await?;
    assert_eq!(bed.instance("one").serves().await?, server, "was paid for");
    bed.instance("one").gone().await?;
    assert!(Timestamp::now() >= paid + SignedDuration::from_secs(4));
    assert_eq!(bed.cloud().servers().len(), 0);
    let spec = subscription(&bed, "one").await?["spec"].clone();
    assert_eq!(spec["gracePeriod"], "10s", "an admin's words stay");
    wrote_subscriptions_only(&bed, &billing)?;
    billing.keeps_its_secret()?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_of_whmcs_does_what_it_says() -> Outcome {
    let bed = Bed::start().await?;
    let mut large = bed.class();
    large["metadata"]["name"] = json!("large");
    large["spec"]["agent"]["files"] = json!([{"path": "/home/agent/motto", "content": "large"}]);
    bed.change(&large).await?;
    let billing = Billing::start(&bed, TENANT).await?;
    let mut at = Timestamp::now().as_second() - 3600;
    let mut call = async |call: &str, plan: &str, reason: &str| {
        at += 1;
        let message = json!({
            "call": call, "id": format!("{call}-{at}"), "at": at, "serviceid": 42, "userid": 7, "agent": "one", "plan": plan,
            "nextduedate": "2020-01-31", "suspendreason": reason,
        });
        billing.tell(Sender::Whmcs, &message).await
    };
    credentials(&bed, "one", "7").await?;
    let small = manifests::CLASS;
    call("CreateAccount", small, "").await?;
    let server = serves(&bed, "one").await?;
    call("SuspendAccount", small, "Overdue on Payment").await?;
    is_suspended(&bed, "one", "Unpaid").await?;
    call("Renew", small, "").await?;
    assert_eq!(serves(&bed, "one").await?, server);
    call("SuspendAccount", small, "sends spam").await?;
    is_suspended(&bed, "one", "Paused").await?;
    let paid = call("Renew", small, "").await?;
    assert_eq!(paid, "written: Paused", "a payment lifts no pause");
    call("UnsuspendAccount", small, "").await?;
    assert_eq!(serves(&bed, "one").await?, server);
    call("ChangePackage", "large", "").await?;
    let one = bed.instance("one");
    one.has_in_file("/home/agent/motto", "large").await?;
    periods(&bed, "one", json!({"retention": "2s"})).await?;
    call("TerminateAccount", "large", "").await?;
    one.gone().await?;
    assert_eq!(bed.requests_to("POST", "/servers"), 1);
    wrote_subscriptions_only(&bed, &billing)?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forged_repeated_late_or_formless_changes_nothing() -> Outcome {
    let bed = Bed::with(Options {
        operator: false,
        ..Options::default()
    })
    .await?;
    let billing = Billing::start(&bed, TENANT).await?;
    let mut one = AtStripe::new("one", "small");
    let (first, late, last) = (
        one.event("created", "active"),
        one.event("updated", "unpaid"),
        one.event("updated", "active"),
    );
    billing.tell(Sender::Stripe, &first).await?;
    billing.tell(Sender::Stripe, &last).await?;
    let before = subscription(&bed, "one").await?;
    for again in [&last, &first, &late] {
        let answer = billing.tell(Sender::Stripe, again).await?;
        ensure(answer.starts_with("dropped"), || {
            format!("{again}: {answer}")
        })?;
    }
    let body = one.event("updated", "canceled").to_string();
    let now = Timestamp::now().as_second();
    let forged = [
        String::new(),
        billing.sign(now, "another body"),
        billing.sign(now - 301, &body),
        billing.sign(now, &body).replace("v1=", "v0="),
        format!("t={now},v1={}", "0".repeat(64)),
    ];
    for signature in &forged {
        let answer = billing
            .send_signed(Sender::Stripe, signature, &body)
            .await?;
        assert_eq!(answer.0, 401, "{signature}: {}", answer.1);
    }
    for formless in ["", "[]", "{\"type\": \"customer.subscription.updated\"}"] {
        let signature = billing.sign(now, formless);
        let answer = billing
            .send_signed(Sender::Stripe, &signature, formless)
            .await?;
        assert_eq!(answer.0, 422, "{formless}: {}", answer.1);
    }
    // Of another customer: Kubernetes itself refuses it.
    let stolen = AtStripe::new("one", "small")
        .set("id", json!("sub_two"))
        .set("customer", json!("cus_two"))
        .set("created", json!(now))
        .event("created", "active");
    let answer = billing.send(Sender::Stripe, &stolen).await?;
    assert_eq!(answer.0, 422, "{}", answer.1);
    assert!(
        answer.1.contains("customerId cannot change"),
        "{}",
        answer.1
    );
    assert_eq!(subscription(&bed, "one").await?, before);
    billing.keeps_its_secret()?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_events_at_once_the_latest_stands_whichever_replica_they_come_to() -> Outcome {
    let bed = Bed::with(Options {
        operator: false,
        ..Options::default()
    })
    .await?;
    let replicas = [
        Billing::start(&bed, TENANT).await?,
        Billing::start(&bed, TENANT).await?,
    ];
    for round in 0..5 {
        let agent = format!("agent-{round}");
        let mut one = AtStripe::new(&agent, "small");
        let mut events: Vec<Value> = (0..12)
            .map(|plan| one.plan(&format!("plan-{plan}")).event("updated", "active"))
            .collect();
        // The latest comes first to whom nobody makes wait.
        events.reverse();
        let sent = events
            .iter()
            .zip(replicas.iter().cycle())
            .map(|(event, replica)| replica.tell(Sender::Stripe, event));
        for taken in futures::future::join_all(sent).await {
            taken?;
        }
        let stands = subscription(&bed, &agent).await?["spec"]["plan"].clone();
        assert_eq!(stands, "plan-11");
    }
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn its_account_reads_no_secret_touches_no_instance_and_writes_no_status() -> Outcome {
    let bed = Bed::with(Options {
        operator: false,
        ..Options::default()
    })
    .await?;
    let billing = Billing::start(&bed, TENANT).await?;
    let mut one = AtStripe::new("one", "small");
    billing
        .tell(Sender::Stripe, &one.event("created", "active"))
        .await?;
    bed.apply_secret("one").await?;
    bed.cluster
        .apply(&manifests::instance(TENANT, "one"))
        .await?;
    let it = bed.cluster.as_user(billing.user())?;
    let here = Some(TENANT);
    let two = json!({
        "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription", "metadata": {"namespace": TENANT, "name": "two"},
        "spec": {"customerId": "cus_2", "plan": "small", "state": "Active"},
    });
    bed.guards_words_of_admins(&it, two).await?;
    let spec = json!({"spec": {"suspend": false}});
    let status = json!({"instanceRef": {"name": "one", "uid": "1"}});
    let tried = [
        it.get("Secret", here, "one").await.map(|_| ()),
        it.list("Secret").await.map(|_| ()),
        it.get("AgentInstance", here, "one").await.map(|_| ()),
        it.merge("AgentInstance", here, "one", spec).await,
        it.delete("AgentInstance", here, "one").await,
        it.merge_status("Subscription", here, "one", status).await,
        it.get("Subscription", Some("default"), "one")
            .await
            .map(|_| ()),
    ];
    for (number, answer) in tried.into_iter().enumerate() {
        let said = answer.map_or_else(|failure| failure.to_string(), |()| "done".into());
        ensure(said.contains("forbidden"), || format!("{number}: {said}"))?;
    }
    let word = json!({"metadata": {"annotations": {"agentfleet.dev/confirm-termination": "2026-01-01T00:00:00Z"}}});
    let said = it.merge("Subscription", here, "one", word).await;
    ensure(said.is_err(), || "billing confirmed a termination".into())?;
    assert!(it.get("Subscription", here, "one").await?.is_some());
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_takes_its_manifests() -> Outcome {
    let bed = Bed::with(Options {
        operator: false,
        ..Options::default()
    })
    .await?;
    bed.cluster.apply(&manifests::namespace("agents")).await?;
    let manifest = "examples/billing/deployment.yaml";
    let apply = ["apply", "--dry-run=server", "--filename", manifest];
    let taken = bed.cluster.kubectl(&apply)?;
    for kind in [
        "serviceaccount/",
        "rolebinding.",
        "deployment.apps/",
        "service/",
    ] {
        assert!(taken.contains(kind), "{taken}");
    }
    bed.finish().await
}
