//! The life of a subscription: whenever its agent is back, by a new subscription too, it has the same server, and it is not terminated before what was paid, plus the retention,
//! is over.

use std::time::Duration;

use bed::{Outcome, TENANT, ensure, manifests};
use jiff::Timestamp;
use serde_json::json;

use super::{Life, is_ready};

/// How long the agent of a customer who canceled is kept.
const RETENTION: Duration = Duration::from_secs(2);

impl Life {
    pub(super) async fn is_paid_for_suspended_and_ended(&mut self) -> Outcome {
        let value = self.bed.canaries.fresh();
        let mut secret = manifests::secret(TENANT, "one", "API_KEY", &value);
        secret["metadata"]["labels"] = json!({"agentfleet.dev/customer": "cus_one"});
        self.bed.cluster.apply(&secret).await?;
        self.subscribe("Active", Timestamp::UNIX_EPOCH).await?;
        self.until("Ready", is_ready).await?;
        let server = self.bed.instance("one").serves().await?;
        self.subscribe("PastDue", Timestamp::UNIX_EPOCH).await?;
        self.until_off(server).await?;
        // Who comes back has a new subscription, and his old agent.
        self.is_gone("Subscription", Some(TENANT), "one").await?;
        self.subscribe("Active", Timestamp::UNIX_EPOCH).await?;
        self.until("Ready again", is_ready).await?;
        let back = self.bed.instance("one").serves().await?;
        ensure(back == server, || format!("{back} is not {server}"))?;

        let paid_until = Timestamp::from_second(Timestamp::now().as_second() + 3)?;
        self.subscribe("Canceled", paid_until).await?;
        self.until("its time is over", async |bed| {
            Ok(bed.instance("one").object().await?.is_none())
        })
        .await?;
        let lives = self.bed.cloud().lives();
        let deleted = lives.first().and_then(|life| life.deleted);
        let early = || format!("paid until {paid_until}, deleted at {deleted:?}");
        ensure(deleted >= Some(paid_until + RETENTION), early)?;
        self.is_gone("Subscription", Some(TENANT), "one").await
    }

    async fn subscribe(&self, state: &str, paid_until: Timestamp) -> Outcome {
        let spec = json!({
            "customerId": "cus_one", "plan": manifests::CLASS, "state": state, "secretName": "one", "paidUntil": paid_until.to_string(),
            "gracePeriod": "1s", "retention": if state == "Canceled" { format!("{}s", RETENTION.as_secs()) } else { "1h".into() },
        });
        let metadata = json!({"namespace": TENANT, "name": "one"});
        self.bed
            .cluster
            .apply(&json!({
                "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription", "metadata": metadata, "spec": spec,
            }))
            .await?;
        Ok(())
    }
}
