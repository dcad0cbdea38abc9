//! `AgentClass`: what to run and on which machine.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AgentSpec, Duration, Health, Rollout, RolloutStrategy};

/// A kind of agent: the software, the machine it runs on, and what instances may ask for. An `AgentInstance` names its class.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "agentfleet.dev",
    version = "v1alpha1",
    kind = "AgentClass",
    plural = "agentclasses",
    shortname = "agc",
    category = "agentfleet",
    status = "AgentClassStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.size() <= 63").message("the name of an AgentClass must have at most 63 characters"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Instances", type_ = "integer", json_path = ".status.instances"),
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.readyInstances"),
    printcolumn(name = "Updated", type_ = "integer", json_path = ".status.updatedInstances"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("(has(self.health) && has(self.health.http)) == (has(self.firewall.healthFrom) && self.firewall.healthFrom.size() > 0)").message("health.http and firewall.healthFrom belong together: the probe comes from the operator, whose network has to be let in"))]
#[x_kube(validation = Rule::new("self.ipv4 || self.ipv6 || has(self.network)").message("a server without ipv4, ipv6 and network cannot be reached: allow at least one"))]
#[x_kube(validation = Rule::new("!has(self.lifecycle) || !has(self.lifecycle.rollout) || !has(self.lifecycle.rollout.strategy) || self.lifecycle.rollout.strategy != 'Replace' || (has(self.lifecycle.disk) && self.lifecycle.disk == 'Disposable')").message("lifecycle.rollout.strategy Replace needs lifecycle.disk Disposable: what is on the disk of the old server does not come along to the new one"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentClassSpec {
    /// Names of the `HetznerProject`s that may hold servers of this class, in order of preference.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 63)))]
    pub projects: Vec<String>,
    /// Server types, such as `cx23`, in order of preference. All locations of a type are tried before the next type.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 32)))]
    pub server_types: Vec<String>,
    /// Locations, such as `nbg1`, in order of preference.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 32)))]
    pub locations: Vec<String>,
    /// Image that a server boots: a name such as `debian-13`, or the id of a snapshot.
    #[schemars(length(min = 1, max = 63))]
    pub image: String,
    /// Who may reach the servers.
    pub firewall: Firewall,
    /// Name of a Hetzner network that servers join; none when unset.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Whether servers get a public IPv4 address.
    #[serde(default = "default_true")]
    pub ipv4: bool,
    /// Whether servers get a public IPv6 address.
    #[serde(default = "default_true")]
    pub ipv6: bool,
    /// Labels that servers carry at Hetzner, beside agentfleet's own.
    #[schemars(extend("maxProperties" = 16))]
    #[x_kube(validation = Rule::new("self.all(k, k.size() <= 63 && !k.startsWith('agentfleet.dev/') && !k.startsWith('hetzner.cloud/'))").message("labels must not begin with agentfleet.dev/ or hetzner.cloud/, and have at most 63 characters"))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How the operator learns which host key to trust.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bootstrap: Bootstrap,
    /// What runs on each server.
    pub agent: AgentSpec,
    /// How it is found out whether an agent serves; its unit being active when unset.
    #[serde(default, skip_serializing_if = "is_default")]
    pub health: Health,
    /// Patience, and what a server's disk is worth.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lifecycle: Lifecycle,
    /// Bounds for this class.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// Namespaces whose instances may use this class, by their labels; all when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Which parts of the class an instance may override; none when empty.
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_overrides: Vec<Override>,
}

pub(super) fn default_true() -> bool {
    true
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How the operator learns which SSH host key a new server has.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bootstrap {
    /// The server proves its key over SSH with a key from its user-data; nothing has to reach the cluster.
    #[default]
    SshProof,
    /// cloud-init posts the key to the operator's endpoint, which servers must be able to reach.
    PhoneHome,
}

/// A part of a class that an instance may override.
#[derive(
    JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum Override {
    /// `overrides.serverTypes`.
    ServerTypes,
    /// `overrides.locations`.
    Locations,
    /// `overrides.sourceRef`.
    SourceRef,
}

/// Who may reach the servers of a class. Whatever is not listed is dropped; outbound traffic is free unless a rule says otherwise.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Firewall {
    /// Networks that may reach SSH, in CIDR form. The operator must be among them. The whole world only if `0.0.0.0/0` and `::/0` are written out.
    #[schemars(length(min = 1, max = 100), inner(length(min = 4, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))").message("firewall.sshFrom holds networks in CIDR form, such as 203.0.113.7/32"))]
    pub ssh_from: Vec<String>,
    /// Networks that may reach the port of the agent's HTTP health check, in CIDR form.
    #[schemars(length(max = 100), inner(length(min = 4, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))").message("firewall.healthFrom holds networks in CIDR form, such as 203.0.113.7/32"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health_from: Vec<String>,
    /// More rules.
    #[schemars(length(max = 40))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<FirewallRule>,
}

/// One rule of a firewall.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("(self.protocol in ['Tcp', 'Udp']) == has(self.port)").message("a firewall rule has a port exactly when its protocol is Tcp or Udp"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FirewallRule {
    /// Direction of the traffic that is let through.
    pub direction: Direction,
    /// Protocol.
    pub protocol: Protocol,
    /// A port such as `443`, or a range such as `8000-8010`.
    #[schemars(
        length(min = 1, max = 11),
        regex(pattern = r"^[0-9]{1,5}(-[0-9]{1,5})?$")
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Networks in CIDR form: sources of inbound, destinations of outbound traffic.
    #[schemars(length(min = 1, max = 100), inner(length(min = 4, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))").message("networks are written in CIDR form, such as 203.0.113.0/24"))]
    pub networks: Vec<String>,
    /// What the rule is for.
    #[schemars(length(max = 255))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Direction of traffic, seen from the server.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// To the server.
    In,
    /// From the server. One such rule closes all other outbound traffic.
    Out,
}

/// Protocol of a firewall rule.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP.
    Icmp,
    /// The encapsulation of virtual private networks.
    Esp,
    /// GRE.
    Gre,
}

/// Patience with a new server, and what its disk is worth.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Lifecycle {
    /// How long after its creation a server may take to answer over SSH before its creation has failed.
    pub first_contact_timeout: Duration,
    /// How long after its creation a server may take to be installed before its creation has failed.
    pub provision_timeout: Duration,
    /// What becomes of a server whose creation failed, as long as its agent was never started there. `Retry`: it is deleted, and the next one
    /// bought in the next place, after a pause that grows. `Keep`: it stays for a look, and no other is bought. `Remove`: it is deleted, and
    /// no other is bought. Where nothing more is bought the instance is `Stalled` until class, spec or Secret is changed, or the annotation
    /// `agentfleet.dev/retry` is given a new value.
    pub on_provision_failure: OnProvisionFailure,
    /// How many servers `Retry` buys at most before the instance is `Stalled`.
    #[schemars(range(min = 1, max = 10))]
    pub max_attempts: i32,
    /// `Preserve`: the disk holds what cannot be had again, so the operator never deletes or replaces the server by its own decision.
    /// `Disposable`: a new server is as good as the old one. That is meant for servers which are made from then on: one that was made while it
    /// said `Preserve`, also by another class, keeps its disk until an admin sets the annotation `agentfleet.dev/recreate` on its instance, or
    /// its label `agentfleet.dev/disk` at Hetzner to `Disposable`.
    pub disk: Disk,
    /// What is tried, and how often, for an agent whose probes fail.
    pub recovery: Recovery,
    /// How a change of the class reaches its instances.
    #[serde(skip_serializing_if = "is_default")]
    pub rollout: Rollout,
}

impl Lifecycle {
    /// Whether each revision of the class gets servers of its own.
    pub fn replaces(&self) -> bool {
        self.rollout.strategy == RolloutStrategy::Replace && self.disk == Disk::Disposable
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            first_contact_timeout: Duration::from_secs(300),
            provision_timeout: Duration::from_secs(900),
            on_provision_failure: OnProvisionFailure::default(),
            max_attempts: 3,
            disk: Disk::default(),
            recovery: Recovery::default(),
            rollout: Rollout::default(),
        }
    }
}

/// What is tried for an agent whose probes fail, in this order, and how often within 24 hours; 0 leaves a step out. Between two tries the agent
/// gets the time that its probes need to tell, twice as long after each. When all of it was used up, the instance is `Stalled` until 24 hours
/// after one of the tries.
#[derive(KubeSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.restarts + self.reboots + self.recreations <= 10").message("lifecycle.recovery: restarts, reboots and recreations are at most 10 together"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recovery {
    /// How often the agent's unit is started again.
    #[schemars(range(min = 0, max = 10))]
    #[serde(default = "restarts")]
    pub restarts: i32,
    /// How often the server is rebooted: politely at first, then by a reset. For a server that cannot be reached at all this is the first step.
    #[schemars(range(min = 0, max = 10))]
    #[serde(default = "reboots")]
    pub reboots: i32,
    /// How often the server is deleted and replaced by a new one, or replaced after it vanished; only where `disk` is `Disposable`.
    #[schemars(range(min = 0, max = 10))]
    #[serde(default = "recreations")]
    pub recreations: i32,
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            restarts: restarts(),
            reboots: reboots(),
            recreations: recreations(),
        }
    }
}

fn restarts() -> i32 {
    5
}

fn reboots() -> i32 {
    2
}

fn recreations() -> i32 {
    1
}

/// What becomes of a server whose creation failed.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "told at the field, where `kubectl explain` shows it"
)]
pub enum OnProvisionFailure {
    #[default]
    Retry,
    Keep,
    Remove,
}

/// What a server's disk is worth.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disk {
    /// It is never deleted or replaced by the operator's own decision.
    #[default]
    Preserve,
    /// It may be replaced by a new one at any time.
    Disposable,
}

impl Disk {
    /// The word as it stands in the API and in labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Preserve => "Preserve",
            Self::Disposable => "Disposable",
        }
    }
}

/// Bounds for a class.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// How many instances may have a server at most; no limit when unset.
    #[schemars(range(min = 0, max = 100_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<i64>,
}

/// What the operator last saw of this class.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentClassStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Revision of what only a new server can take up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_revision: Option<String>,
    /// Revision of what is applied in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_revision: Option<String>,
    /// The revision that instances are to have: both of these together, and `health`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The last revision that reached all instances and served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub good_revision: Option<String>,
    /// The revision whose rollout failed; after a dot, which retry of it. Empty while none has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_revision: Option<String>,
    /// How many instances that have a server and are not suspended have `revision`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_instances: Option<i64>,
    /// How many instances name this class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<i64>,
    /// How many of them are Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_instances: Option<i64>,
    /// The value of the annotation `agentfleet.dev/release-hold` that was heard last.
    #[schemars(length(max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_hold: Option<String>,
    /// `Ready`, `Rendered`, `FirewallReady`, `UpToDate` when all instances have the newest revision, and `RecoveryHeld` while so many agents
    /// fall that no server is touched for them.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
