//! `AgentInstance`: one agent, one server.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Disk, HealthStatus, OnProvisionFailure};

/// One agent on one server of its own. Creating it buys the server; deleting it deletes the server and its disk, unless `deletionPolicy` says otherwise.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "agentfleet.dev",
    version = "v1alpha1",
    kind = "AgentInstance",
    shortname = "agent",
    shortname = "agents",
    category = "agentfleet",
    namespaced,
    status = "AgentInstanceStatus",
    derive = "PartialEq",
    selectable = ".spec.className",
    validation = Rule::new("self.metadata.name.size() <= 63").message("the name of an AgentInstance must have at most 63 characters"),
    printcolumn(name = "Class", type_ = "string", json_path = ".spec.className"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "IP", type_ = "string", json_path = ".status.server.ipv4"),
    printcolumn(name = "Type", type_ = "string", json_path = ".status.server.type"),
    printcolumn(name = "Location", type_ = "string", json_path = ".status.server.location"),
    printcolumn(name = "Server-ID", type_ = "integer", json_path = ".status.server.id", priority = 1),
    printcolumn(name = "Project", type_ = "string", json_path = ".status.server.project", priority = 1),
    printcolumn(name = "Revision", type_ = "string", json_path = ".status.configRevision", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentInstanceSpec {
    /// Name of the `AgentClass`.
    #[schemars(length(min = 1, max = 63))]
    pub class_name: String,
    /// Name of the Secret, in the same namespace, with the keys that the class asks for. None is needed when the class asks for none.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// Whether the agent shall not run for now: it is silenced and its server switched off, disk and address are kept. An off server is still
    /// billed. Nothing is created for an instance that is suspended from the start.
    #[serde(default, skip_serializing_if = "super::agent_class::is_default")]
    pub suspend: bool,
    /// What deleting the instance does with its server. `Delete`: it goes, and its disk with it. `Retain`: its agent is silenced and the server
    /// stays, labelled `agentfleet.dev/retained=true`; Hetzner bills it until somebody deletes it there, or a new instance of this name takes
    /// it up (annotation `agentfleet.dev/adopt`).
    #[serde(default, skip_serializing_if = "super::agent_class::is_default")]
    pub deletion_policy: DeletionPolicy,
    /// Environment of the service beside that of the class, without secrets; it wins where both name a variable.
    #[schemars(extend("maxProperties" = 128))]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^[A-Za-z_][A-Za-z0-9_]*$'))").message("environment holds variables whose names are letters, digits and _ and begin with no digit, such as LOG_LEVEL"))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Values that replace those of the class, where its `allowedOverrides` permits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overrides: Option<Overrides>,
}

/// What deleting an instance does with its server.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "told at the field, where `kubectl explain` shows it"
)]
pub enum DeletionPolicy {
    #[default]
    Delete,
    Retain,
}

/// Values that replace those of the class.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Overrides {
    /// Server types in order of preference.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 32)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_types: Option<Vec<String>>,
    /// Locations in order of preference.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 32)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locations: Option<Vec<String>>,
    /// Branch, tag or commit of the class's source.
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._/-]*$")
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_ref: Option<String>,
}

/// What the operator last saw of this instance.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentInstanceStatus {
    /// A summary for people; programs read the conditions.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `ServerCreated`, `Bootstrapped`, `Configured`, `Healthy`, `UpToDate`, and `Stalled` when only a person can help.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The highest number that a server of this instance has had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<i64>,
    /// Written before a server is asked for, so that no crash can lose one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioning: Option<ProvisioningRecord>,
    /// Written before a server is told to run the agent, so that never two do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voice: Option<VoiceRecord>,
    /// The server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerStatus>,
    /// What the health probes say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthStatus>,
    /// Boot revision that the server was created with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_revision: Option<String>,
    /// Config revision that the server has applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_revision: Option<String>,
    /// Revision of the class that the server was configured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_revision: Option<String>,
    /// Revision of the class with which the agent was Ready last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub good_revision: Option<String>,
    /// Revision of the class that failed here and that this instance went back from; after a dot, which retry of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_revision: Option<String>,
    /// Tag of the secret files that the server has applied; says nothing about their content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets_tag: Option<String>,
    /// The orders that were given by annotations and heard; written before they are carried out, so that each value acts once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<HeardOrders>,
    /// The creations that failed last, the newest last; written before anything is done about them.
    #[schemars(length(max = 5))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rollbacks: Vec<RollbackRecord>,
    /// What was done for an agent whose probes failed, the newest last; written before it is done, so that no crash can do it twice.
    #[schemars(length(max = 10))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recovery: Vec<RecoveryRecord>,
    /// What the receiver of the webhook took last; only where the operator has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notified: Option<NotifiedStatus>,
    /// When the server of the present incarnation reached which step for the first time; begins anew with each incarnation. A step that nobody
    /// saw, as during a restart of the operator, is left out.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["step".into()]))]
    #[schemars(length(max = 10))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timings: Vec<Timing>,
}

/// An event that the receiver of the webhook has taken.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotifiedStatus {
    /// `Ready`: the agent serves. `Failed`: its server was created and never came to serve. `Stalled`: only a person can help. `RolledBack`: what
    /// was tried was undone. `Recovered`: it serves again. `Suspended`, `Resumed`: as `suspend` says. `UpdateFailed`: it serves with what it had.
    /// `Deleted`: it is gone. `SuspendsSoon`, `TerminatesSoon`, `Terminated` are told of its Subscription, and stand in that one's status.
    pub event: Notice,
    /// Reason of the condition that it told.
    #[schemars(length(max = 256))]
    pub reason: String,
    /// When that happened.
    pub at: Time,
    /// Id of the event.
    #[schemars(length(max = 64))]
    pub id: String,
}

/// What a webhook tells of an instance.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "told at the field, where `kubectl explain` shows it"
)]
pub enum Notice {
    Ready,
    Failed,
    Stalled,
    RolledBack,
    Recovered,
    Suspended,
    Resumed,
    UpdateFailed,
    Deleted,
    SuspendsSoon,
    TerminatesSoon,
    Terminated,
}

impl Notice {
    /// The word as it stands in an event's type.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Stalled => "stalled",
            Self::RolledBack => "rolledBack",
            Self::Recovered => "recovered",
            Self::Suspended => "suspended",
            Self::Resumed => "resumed",
            Self::UpdateFailed => "updateFailed",
            Self::Deleted => "deleted",
            Self::SuspendsSoon => "suspendsSoon",
            Self::TerminatesSoon => "terminatesSoon",
            Self::Terminated => "terminated",
        }
    }
}

/// The moment at which a server reached a step.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timing {
    /// `WrittenDown`: the server was announced in `provisioning`. `Requested`: Hetzner was asked for it. `Accepted`: it exists there. `Answered`:
    /// it proved over SSH who it is. `Installed`: the agent's software is there. `Configured`: the agent has its secrets and was started.
    /// `Ready`: it serves.
    pub step: TimingStep,
    /// When the operator saw it, by the operator's clock.
    pub at: MicroTime,
}

/// The steps of a server on its way to an agent that serves, in their order.
#[derive(
    JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize,
)]
#[expect(
    missing_docs,
    reason = "told at the field, where `kubectl explain` shows it"
)]
pub enum TimingStep {
    WrittenDown,
    Requested,
    Accepted,
    Answered,
    Installed,
    Configured,
    Ready,
}

/// The server that is about to be asked for, or was asked for last.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProvisioningRecord {
    /// Number of the server within the instance.
    pub incarnation: i64,
    /// Its name at Hetzner, unique in the project.
    pub server_name: String,
    /// Name of the `HetznerProject`.
    pub project: String,
    /// Server type that was asked for.
    #[serde(rename = "type")]
    pub server_type: String,
    /// Location that was asked for.
    pub location: String,
    /// Which attempt this is to create a server for what class, spec and Secret ask for; a place that is out of stock takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i64>,
    /// Hash of what class, spec and Secret asked for, and of the last `agentfleet.dev/retry`: for another one attempts are counted anew.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basis: Option<String>,
    /// The snapshot that it is made of, where the disk of a lost server is restored; none: it is made of the class's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotRecord>,
    /// When the latest request was announced.
    pub at: MicroTime,
}

/// A snapshot of a server that was lost.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotRecord {
    /// Its id at Hetzner, as an image.
    pub id: i64,
    /// When it was taken: what the agent wrote after that is lost.
    pub created_at: Time,
    /// Id of the server that was lost.
    pub server: i64,
}

/// The orders that were given by annotations and heard.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeardOrders {
    /// The last `agentfleet.dev/restart`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<HeardOrder>,
    /// The last `agentfleet.dev/retry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<HeardOrder>,
    /// The last `agentfleet.dev/recreate`: servers up to its number are to be replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recreate: Option<HeardOrder>,
}

impl AgentInstanceStatus {
    /// The number up to which a person gave the servers up, with all that is on them.
    pub fn given_up(&self) -> Option<i64> {
        let recreate = self.heard.as_ref()?.recreate.as_ref()?;
        Some(recreate.incarnation)
    }
}

/// An order that was heard.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeardOrder {
    /// The value of the annotation.
    #[schemars(length(max = 128))]
    pub value: String,
    /// When it was heard.
    pub at: MicroTime,
    /// Number of the newest server at that time.
    pub incarnation: i64,
}

/// A creation that failed.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RollbackRecord {
    /// Number of the server within the instance.
    pub incarnation: i64,
    /// Which attempt it was.
    pub attempt: i64,
    /// Name of the `HetznerProject`.
    pub project: String,
    /// Server type.
    #[serde(rename = "type")]
    pub server_type: String,
    /// Location.
    pub location: String,
    /// What failed. `CreationRefused`: Hetzner would not have it. `CreationHalfFailed`: Hetzner made a server and said that this failed.
    /// `FirstContactOverdue`: it did not prove itself over SSH in time. `ProvisionOverdue`: the agent was not installed in time.
    /// `InstallFailed`: a step of the installation failed.
    pub reason: RollbackReason,
    /// What was seen.
    #[schemars(length(max = 600))]
    pub message: String,
    /// What was decided, as `lifecycle.onProvisionFailure` of the class said then.
    pub action: OnProvisionFailure,
    /// Hash of what was asked for, as in `provisioning`.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basis: Option<String>,
    /// When it was decided.
    pub at: MicroTime,
}

/// What can fail about a creation.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "told at the field, where `kubectl explain` shows it"
)]
pub enum RollbackReason {
    CreationRefused,
    CreationHalfFailed,
    FirstContactOverdue,
    ProvisionOverdue,
    InstallFailed,
}

impl RollbackReason {
    /// The word as it stands in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CreationRefused => "CreationRefused",
            Self::CreationHalfFailed => "CreationHalfFailed",
            Self::FirstContactOverdue => "FirstContactOverdue",
            Self::ProvisionOverdue => "ProvisionOverdue",
            Self::InstallFailed => "InstallFailed",
        }
    }
}

/// Which server may run the agent.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VoiceRecord {
    /// Number of the server that holds the voice; none while it is handed over or was taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<i64>,
    /// Grows with every command that changes a server; a server refuses lower ones.
    pub epoch: i64,
}

/// One try to bring an agent back.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryRecord {
    /// `Restart`: of the agent's unit. `Reboot`: of its server. `Recreate`: a new server takes the place of the old one.
    pub action: RecoveryAction,
    /// When it was decided.
    pub at: MicroTime,
    /// What the probes said.
    #[schemars(length(max = 512))]
    pub reason: String,
}

/// The ways to bring an agent back, in the order in which they are tried.
#[derive(
    JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize,
)]
#[expect(
    missing_docs,
    reason = "told at the field, where `kubectl explain` shows it"
)]
pub enum RecoveryAction {
    Restart,
    Reboot,
    Recreate,
}

/// The server of an instance.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// Name of the `HetznerProject`.
    pub project: String,
    /// Id at Hetzner.
    pub id: i64,
    /// Name at Hetzner.
    pub name: String,
    /// Number of the server within the instance.
    pub incarnation: i64,
    /// Public IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// Public IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
    /// Server type.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub server_type: Option<String>,
    /// Location.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// What its disk is worth: what `lifecycle.disk` of the class was when it was made. It stays that when the class says `Disposable` later, until
    /// its label `agentfleet.dev/disk` at Hetzner is changed; a class that says `Preserve` keeps the disk whatever stands here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// When Hetzner created it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Time>,
    /// Its SSH host key, once proven; the operator talks to no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// The epoch of the voice with which it last proved that its agent is silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_since_epoch: Option<i64>,
}
