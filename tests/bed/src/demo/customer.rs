//! The demo's customer: she subscribes, does not pay, pays and cancels, and what Stripe says of it reaches the operator through the program of
//! `examples/billing`.

use bed::{
    AtStripe, Bed, Billing, Outcome, Sender, ensure, manifests, oracle, wait_for, wait_until,
};
use hetzner_sim::Stage;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{NAMESPACE, says, step};

const NAME: &str = "dora";
const CLASS: &str = "greeter";

pub(super) async fn live(bed: &Bed) -> Outcome {
    step(
        "A customer, dora: examples/billing takes Stripe's webhooks, under an account that may write Subscriptions and nothing else.",
    );
    let billing = Billing::start(bed, NAMESPACE).await?;
    let mut dora = AtStripe::new(NAME, CLASS);
    let mut secret = manifests::secret(NAMESPACE, NAME, "GREETING", "hello from dora");
    secret["metadata"]["labels"] = json!({"agentfleet.dev/customer": "cus_dora"});
    bed.cluster.apply(&secret).await?;
    tell(bed, &billing, &dora.event("created", "active")).await?;
    let server = ready(bed).await?;

    step(
        "Her payment fails. She has a grace period (5 s here, 72 h by default); then her agent is suspended.",
    );
    // As an admin may: what billing does not say is not billing's.
    let periods = json!({"spec": {"gracePeriod": "5s", "retention": "5s"}});
    bed.cluster
        .merge("Subscription", Some(NAMESPACE), NAME, periods)
        .await?;
    tell(bed, &billing, &dora.invoice("payment_failed")).await?;
    wait_until("dora's server is off", async || {
        Ok(reason(bed).await? == "Suspended" && bed.cloud().machine(server)?.stage == Stage::Off)
    })
    .await?;
    show(bed)?;
    println!("server {server} is off, and keeps its disk");

    step("She pays: the same server is back.");
    tell(bed, &billing, &dora.invoice("paid")).await?;
    let back = ready(bed).await?;
    ensure(back == server, || format!("server {back} is another"))?;

    step(
        "She cancels: her agent runs until the end of what was paid, is kept for the retention, and goes.",
    );
    dora.paid_until(Timestamp::now() + SignedDuration::from_secs(5));
    tell(bed, &billing, &dora.event("deleted", "canceled")).await?;
    ended(bed, server).await?;
    billing.keeps_its_secret()?;
    bed.cluster
        .delete("Subscription", Some(NAMESPACE), NAME)
        .await
}

/// Sends what Stripe says, and shows what became of it once the operator has seen it.
async fn tell(bed: &Bed, billing: &Billing, message: &Value) -> Outcome {
    let done = billing.tell(Sender::Stripe, message).await?;
    let kind = message["type"].as_str().unwrap_or_default();
    println!("{kind}: {done}");
    wait_until("the Subscription is seen as it is", async || {
        let found = bed
            .cluster
            .get("Subscription", Some(NAMESPACE), NAME)
            .await?;
        let found = found.unwrap_or_default();
        Ok(found["status"]["observedGeneration"] == found["metadata"]["generation"])
    })
    .await?;
    show(bed)
}

fn show(bed: &Bed) -> Outcome {
    let table = ["get", "agsub", NAME, "--namespace", NAMESPACE];
    print!("{}", bed.cluster.kubectl(&table)?);
    Ok(())
}

async fn agent(bed: &Bed) -> Outcome<Option<Value>> {
    bed.cluster
        .get("AgentInstance", Some(NAMESPACE), NAME)
        .await
}

/// Why her agent is Ready or not.
async fn reason(bed: &Bed) -> Outcome<String> {
    let agent = agent(bed).await?.unwrap_or_default();
    let ready = oracle::condition(&agent["status"], "Ready");
    let reason = ready.and_then(|ready| ready["reason"].as_str());
    Ok(reason.unwrap_or_default().to_owned())
}

/// Waits until her agent serves; answers its server.
async fn ready(bed: &Bed) -> Outcome<u64> {
    let server = wait_for("dora's agent is Ready", async || {
        let agent = agent(bed).await?.unwrap_or_default();
        let ready = oracle::condition(&agent["status"], "Ready");
        let is_ready = ready.is_some_and(|ready| ready["status"] == "True");
        let server = agent["status"]["server"]["id"].as_u64();
        Ok(server.filter(|_| is_ready))
    })
    .await?;
    println!("dora's agent is Ready on server {server}");
    says(bed, NAME, "hello from dora").await?;
    Ok(server)
}

/// Waits until her agent is gone with its server, which the operator does of itself.
async fn ended(bed: &Bed, server: u64) -> Outcome {
    wait_until("dora's agent is gone", async || {
        Ok(agent(bed).await?.is_none())
    })
    .await?;
    let left = bed.cloud().servers();
    ensure(left.is_empty(), || format!("left: {left:?}"))?;
    println!("server {server} deleted");
    Ok(())
}
