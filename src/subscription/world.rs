//! What is: one picture of all that matters to a subscription, taken at one moment.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    declaration::{Declaration, Target, terminate_at, unentitled_since},
    desired::Desired,
    entitlement::Past,
    guard::{Census, is_confirmed},
};
use crate::{
    api::{AgentInstance, ConditionType, SubscriptionStatus},
    labels,
};

/// Everything that a plan for one subscription may depend on.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Whether our finalizer is on the object.
    pub finalizer: bool,
    /// The status as it was last written.
    pub status: SubscriptionStatus,
    /// The instance of its name.
    pub instance: InstanceView,
    /// The Secret that it names.
    pub secret: SecretView,
    /// The older subscription with the same external reference, as `namespace/name`.
    pub elder: Option<String>,
    /// All agents that came from subscriptions, where they matter; none where they do not, or while it is not known which were ended lately.
    pub census: Option<Census>,
    /// An admin's word that it may end although it is one of many.
    pub confirmation: Option<String>,
    /// Id of the event that the receiver of the webhook took last, if there is one and he did.
    pub taken: Option<String>,
    /// What could not be done the last time: reason and message.
    pub trouble: Option<(&'static str, String)>,
}

/// The instance of a subscription's name.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum InstanceView {
    /// There is none.
    #[default]
    Absent,
    /// It is another's: of whom, in words.
    NotOurs(&'static str),
    /// It is this subscription's.
    Ours(Box<Ours>),
}

/// The instance of a subscription.
#[derive(Clone, Debug, PartialEq)]
pub struct Ours {
    /// Which object.
    pub target: Target,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// What was declared of it.
    pub declared: Declaration,
    /// Its class, Secret and suspension, whoever said so.
    pub class: String,
    /// See there.
    pub suspended: bool,
    /// When it says that it is terminated, whoever wrote that.
    pub terminate_at: Option<Timestamp>,
    /// Since when it says that it is not entitled, whoever wrote that.
    pub unentitled_since: Option<Timestamp>,
    /// Whether its status speaks of its spec as it is.
    pub observed: bool,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// The Secret that a subscription names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SecretView {
    /// It names none.
    #[default]
    NotNamed,
    /// There is none of that name.
    Missing,
    /// It does not carry the customer.
    NotTheCustomers,
    /// It is the customer's.
    Fits,
}

impl InstanceView {
    /// The instance of that name, as this subscription sees it.
    pub fn of(instance: Option<&AgentInstance>, desired: &Desired) -> Self {
        let Some(instance) = instance else {
            return Self::Absent;
        };
        let labels = instance.metadata.labels.as_ref();
        let label = |key: &str| {
            labels
                .and_then(|labels| labels.get(key))
                .map(String::as_str)
        };
        if label(labels::SUBSCRIPTION) != Some(desired.name.as_str()) {
            return Self::NotOurs("was not made by a Subscription");
        }
        if label(labels::CUSTOMER) != Some(desired.customer.as_str()) {
            return Self::NotOurs("belongs to another customer");
        }
        Self::Ours(Box::new(Ours::of(instance)))
    }
}

impl Ours {
    fn of(instance: &AgentInstance) -> Self {
        let status = instance.status.clone().unwrap_or_default();
        Self {
            target: Target::of(instance),
            deleting: instance.metadata.deletion_timestamp.is_some(),
            declared: Declaration::found(instance),
            class: instance.spec.class_name.clone(),
            suspended: instance.spec.suspend,
            terminate_at: terminate_at(instance),
            unentitled_since: unentitled_since(instance),
            observed: status.observed_generation == instance.metadata.generation,
            conditions: status.conditions,
        }
    }

    /// Whether it is held, whoever was lost with it: it says so, and no admin's word covers its loss.
    pub fn stays_held(&self, word: Option<&str>) -> bool {
        let lost = self.unentitled_since;
        self.declared.held && lost.is_some_and(|lost| !is_confirmed(word, lost))
    }

    /// One of its conditions.
    pub fn condition(&self, kind: ConditionType) -> Option<&Condition> {
        let mut conditions = self.conditions.iter();
        conditions.find(|condition| condition.type_ == kind.as_str())
    }
}

impl World {
    /// The instance, if it is this subscription's.
    pub fn ours(&self) -> Option<&Ours> {
        match &self.instance {
            InstanceView::Ours(ours) => Some(ours),
            _ => None,
        }
    }

    /// What is remembered. A status that was lost is made up for by the instance, as far as it can tell.
    pub fn past(&self) -> Past {
        let told = self.status.conditions.iter();
        let entitled = told
            .filter(|told| told.type_ == ConditionType::Entitled.as_str())
            .map(|told| told.status == "True")
            .next_back();
        let ours = self.ours();
        let seen = self.status.first_seen.iter();
        let planned = self.status.terminate_at.as_ref().map(|time| time.0);
        let kept = self.status.kept_until.as_ref();
        Past {
            first_seen: seen.map(|seen| (seen.state, seen.at.0)).collect(),
            suspended: entitled.map_or_else(|| ours.is_some_and(|ours| ours.suspended), |is| !is),
            terminate_at: planned.max(ours.and_then(|ours| ours.terminate_at)),
            kept_until: kept.map(|time| time.0),
            unentitled_since: ours.and_then(|ours| ours.unentitled_since),
        }
    }
}
