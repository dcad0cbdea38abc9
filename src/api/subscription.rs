//! `Subscription`: what a customer has paid for, as his billing system tells it.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;

/// What a customer has paid for. While it entitles him, an AgentInstance of the same name is kept with what it says. Deleting it suspends the
/// instance and keeps it until its `agentfleet.dev/terminate-at`; a new Subscription of this name and customer takes it back with its server.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "agentfleet.dev",
    version = "v1alpha1",
    kind = "Subscription",
    shortname = "agsub",
    category = "agentfleet",
    namespaced,
    status = "SubscriptionStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.size() <= 63").message("the name of a Subscription must have at most 63 characters"),
    printcolumn(name = "Plan", type_ = "string", json_path = ".spec.plan"),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state"),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.instanceRef.name"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Suspends", type_ = "string", json_path = ".status.suspendAt"),
    printcolumn(name = "Ends", type_ = "string", json_path = ".status.terminateAt"),
    printcolumn(name = "Customer", type_ = "string", json_path = ".spec.customerId", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("self.customerId == oldSelf.customerId").message("customerId cannot change: an agent stays with its customer; make a Subscription of another name"))]
#[x_kube(validation = Rule::new("duration(self.gracePeriod) <= duration('8784h')").message("gracePeriod is at most 8784h, which is 366 days"))]
#[x_kube(validation = Rule::new("duration(self.retention) <= duration('8784h')").message("retention is at most 8784h, which is 366 days"))]
#[x_kube(validation = Rule::new("duration(self.pausedRetention) <= duration('8784h')").message("pausedRetention is at most 8784h, which is 366 days"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SubscriptionSpec {
    /// The customer in the billing system. It never changes, and the Secret has to carry it as the label `agentfleet.dev/customer`.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    )]
    pub customer_id: String,
    /// Name of the `AgentClass` that the customer pays for.
    #[schemars(length(min = 1, max = 63))]
    pub plan: String,
    /// What the billing system says of it. `Trialing`, `Active`: the agent runs. `PastDue`: it runs for `gracePeriod`, then it is suspended.
    /// `Unpaid`: it is suspended, and terminated after `retention`; `Incomplete` and `IncompleteExpired` likewise, and nothing is created.
    /// `Paused`: it is suspended, and terminated after `pausedRetention`. `Canceled`: it runs until `paidUntil` if it was running, and is
    /// terminated after `retention`. From each of them `Active` brings the agent back with its server until it is terminated.
    pub state: SubscriptionState,
    /// Since when the billing system says so, for people: what counts is when the operator saw it first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_since: Option<Time>,
    /// The end of what was paid. A time in the past shortens nothing, and one in the future buys nothing while `PastDue` or `Unpaid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paid_until: Option<Time>,
    /// From when on it counts as `Canceled`, if the billing system does not say so before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_at: Option<Time>,
    /// How long the agent runs on while `PastDue`.
    #[serde(default = "grace_period")]
    pub grace_period: Duration,
    /// How long a suspended agent is kept, with its server and its data, before it is terminated.
    #[serde(default = "retention")]
    pub retention: Duration,
    /// The same while `Paused`.
    #[serde(default = "paused_retention")]
    pub paused_retention: Duration,
    /// Name of the Secret, in the same namespace, with the keys that the class asks for. It has to carry the label `agentfleet.dev/customer`
    /// with the value of `customerId`.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// Environment of the agent's service beside that of the class, without secrets.
    #[schemars(extend("maxProperties" = 128))]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^[A-Za-z_][A-Za-z0-9_]*$'))").message("environment holds variables whose names are letters, digits and _ and begin with no digit, such as LOG_LEVEL"))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// What this is in the billing system. It may change: a customer who comes back gets a new one there and his old agent here. Of two
    /// Subscriptions with the same one, only the older is heeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_ref: Option<ExternalRef>,
}

fn grace_period() -> Duration {
    Duration::from_secs(72 * 3600)
}

fn retention() -> Duration {
    Duration::from_secs(168 * 3600)
}

fn paused_retention() -> Duration {
    Duration::from_secs(720 * 3600)
}

/// What a billing system says of a subscription.
#[derive(
    JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize,
)]
#[expect(
    missing_docs,
    reason = "told at the field, where `kubectl explain` shows it"
)]
pub enum SubscriptionState {
    Incomplete,
    IncompleteExpired,
    Trialing,
    Active,
    PastDue,
    Unpaid,
    Paused,
    Canceled,
}

impl SubscriptionState {
    /// The word as it stands in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Incomplete => "Incomplete",
            Self::IncompleteExpired => "IncompleteExpired",
            Self::Trialing => "Trialing",
            Self::Active => "Active",
            Self::PastDue => "PastDue",
            Self::Unpaid => "Unpaid",
            Self::Paused => "Paused",
            Self::Canceled => "Canceled",
        }
    }
}

impl fmt::Display for SubscriptionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a subscription is in the billing system.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalRef {
    /// The billing system, such as `stripe`.
    #[schemars(length(min = 1, max = 63))]
    pub system: String,
    /// The subscription's id there.
    #[schemars(length(min = 1, max = 253))]
    pub id: String,
}

/// What the operator makes of a subscription.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the agent serves. `Entitled`: it may run. `PlanPending`: what runs is not yet what is paid for, and why. `TerminationHeld`: it
    /// would be terminated, and is not until an admin says so.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_ref: Option<InstanceRef>,
    /// When the operator first saw which state, by its own clock; `Trialing` and `Active` clear all of them.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["state".into()]))]
    #[schemars(length(max = 8))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_seen: Vec<FirstSeen>,
    /// When the agent will be suspended, if nothing changes; none while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend_at: Option<Time>,
    /// When the agent will be terminated with its server and its data, if nothing changes. It never moves to an earlier time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminate_at: Option<Time>,
    /// Until when the agent is kept at least: the latest `terminateAt` since it was `Trialing` or `Active`. While it is `PastDue` there is no
    /// `terminateAt`, and none that follows is earlier than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_until: Option<Time>,
    /// What was announced last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<Announcement>,
    /// What the receiver of the webhook took last; only where the operator has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notified: Option<Announcement>,
}

/// The agent of a subscription.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceRef {
    /// Name of the `AgentInstance`, in the same namespace.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Its UID.
    #[schemars(length(max = 64))]
    pub uid: String,
}

/// When a state was first seen.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FirstSeen {
    /// The state.
    pub state: SubscriptionState,
    /// When the operator saw it.
    pub at: Time,
}

/// Something that people were told before it comes, or when it came.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    /// `SuspendsSoon`, `TerminatesSoon`: it comes at `at`. `Suspended`: the agent was suspended. `Terminated`: the agent, its server and its data
    /// were deleted.
    pub event: AnnouncedEvent,
    /// The time that was told: of what comes, or of what was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// What people are told of a subscription.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "told at the field, where `kubectl explain` shows it"
)]
pub enum AnnouncedEvent {
    SuspendsSoon,
    Suspended,
    TerminatesSoon,
    Terminated,
}

impl AnnouncedEvent {
    /// The word as it stands in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SuspendsSoon => "SuspendsSoon",
            Self::Suspended => "Suspended",
            Self::TerminatesSoon => "TerminatesSoon",
            Self::Terminated => "Terminated",
        }
    }
}
