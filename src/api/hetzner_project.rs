//! `HetznerProject`: one Hetzner Cloud project, its token, its limits.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// A project at Hetzner Cloud in which agentfleet may create servers. Use a project that nothing else lives in: Hetzner counts requests and
/// servers per project, and a token can delete everything in it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "agentfleet.dev",
    version = "v1alpha1",
    kind = "HetznerProject",
    shortname = "hproject",
    category = "agentfleet",
    status = "HetznerProjectStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.size() <= 63").message("the name of a HetznerProject must have at most 63 characters"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Servers", type_ = "integer", json_path = ".status.servers"),
    printcolumn(name = "Budget", type_ = "integer", json_path = ".status.budgetLeft"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HetznerProjectSpec {
    /// The key of a Secret that holds this project's API token (Hetzner Console, Security, API tokens; it needs Read & Write).
    pub token_secret_ref: TokenSecretRef,
    /// How many servers agentfleet may have in this project at most. Hetzner has a limit of its own; this one can be lower. No limit when unset.
    #[schemars(range(min = 0, max = 100_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_servers: Option<i64>,
    /// Names of SSH keys in this Hetzner project that people may log in with as `agentfleet-admin` in an emergency. They reach servers that are
    /// created afterwards.
    #[schemars(length(max = 16), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
}

/// Where the API token of a project is kept.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenSecretRef {
    /// Namespace of the Secret.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("tokenSecretRef names one Secret for good: put another token into that Secret, or make another HetznerProject"))]
    pub namespace: String,
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("tokenSecretRef names one Secret for good: put another token into that Secret, or make another HetznerProject"))]
    pub name: String,
    /// Key in the Secret; `token` when unset.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default = "default_key")]
    pub key: String,
}

fn default_key() -> String {
    "token".into()
}

/// What the operator last saw of this project.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HetznerProjectStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Id of the SSH key that marks this project as the one that was first seen. A token that does not show this key is a token of another
    /// project and is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<i64>,
    /// How many servers of this fleet exist in the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub servers: Option<i64>,
    /// How many requests are left of this hour's allowance, rounded down to tenths of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_left: Option<i64>,
    /// Until when creations in this project pause, for the reason that the conditions tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_until: Option<Time>,
    /// The value of the annotation `agentfleet.dev/release-hold` that was heard last.
    #[schemars(length(max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_hold: Option<String>,
    /// `Ready`, `CredentialsValid`, `QuotaAvailable`, `NoZombies`, and `RecoveryHeld` while so many servers vanished that none is replaced.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
