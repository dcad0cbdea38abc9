//! What is wanted of a subscription: whose agent, of which plan, on which terms.
//!
//! Pure. Nothing here can fail: the API server has refused what does not fit.

use std::collections::BTreeMap;

use kube::ResourceExt as _;

use super::entitlement::Terms;
use crate::{
    agent_instance::desired::Identity,
    api::{Subscription, SubscriptionState},
};

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Namespace of the subscription and its instance.
    pub namespace: String,
    /// Name of both.
    pub name: String,
    /// UID of the subscription.
    pub uid: String,
    /// The customer.
    pub customer: String,
    /// Name of the class.
    pub plan: String,
    /// Name of the Secret.
    pub secret: Option<String>,
    /// Environment of the service.
    pub environment: BTreeMap<String, String>,
    /// What the billing system says.
    pub terms: Terms,
}

impl Desired {
    /// Reads a subscription.
    pub fn parse(subscription: &Subscription) -> Self {
        let spec = &subscription.spec;
        let deleted_at = subscription.metadata.deletion_timestamp.as_ref();
        Self {
            namespace: subscription.namespace().unwrap_or_default(),
            name: subscription.name_any(),
            uid: subscription.uid().unwrap_or_default(),
            customer: spec.customer_id.clone(),
            plan: spec.plan.clone(),
            secret: spec.secret_name.clone(),
            environment: spec.environment.clone(),
            terms: Terms {
                state: spec.state,
                paid_until: spec.paid_until.as_ref().map(|time| time.0),
                cancel_at: spec.cancel_at.as_ref().map(|time| time.0),
                grace: spec.grace_period.get(),
                retention: spec.retention.get(),
                paused_retention: spec.paused_retention.get(),
                deleted_at: deleted_at.map(|time| time.0),
            },
        }
    }

    /// Whom events are about: the agent's name, under the subscription's own UID.
    pub fn identity(&self) -> Identity {
        Identity {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
        }
    }

    /// Whether anything said here can take entitlement away.
    pub fn may_lose(&self) -> bool {
        let Terms {
            state, cancel_at, ..
        } = &self.terms;
        let runs = matches!(
            state,
            SubscriptionState::Trialing | SubscriptionState::Active
        );
        !runs || cancel_at.is_some() || self.is_absent()
    }

    /// Whether the subscription is being deleted.
    pub fn is_absent(&self) -> bool {
        self.terms.deleted_at.is_some()
    }
}
