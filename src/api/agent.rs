//! The `agent` part of a class: what the guest installs and runs on a server.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Service;

/// What runs on each server of a class, and how it gets there.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.cloudInit) || self.cloudInit.startsWith('#cloud-config')").message("agent.cloudInit must be a cloud-config document: let its first line be #cloud-config"))]
#[x_kube(validation = Rule::new("!has(self.update) || self.update.size() == 0 || has(self.source)").message("agent.update runs after a new ref of agent.source: set agent.source, or leave out agent.update"))]
#[x_kube(validation = Rule::new("!(has(self.sudo) && self.sudo) || ![has(self.service.noNewPrivileges) && self.service.noNewPrivileges, has(self.service.privateDevices) && self.service.privateDevices, has(self.service.protectKernelTunables) && self.service.protectKernelTunables, has(self.service.restrictSUIDSGID) && self.service.restrictSUIDSGID].exists(x, x)").message("agent.sudo does not work in a service with noNewPrivileges, nor with privateDevices, protectKernelTunables or restrictSUIDSGID, which imply it: leave out the one or the other"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentSpec {
    /// The Unix user that the agent runs as; made on the server with a home directory.
    #[schemars(length(min = 1, max = 31), regex(pattern = r"^[a-z_][a-z0-9_-]*$"))]
    #[x_kube(validation = Rule::new("!(self in ['root', 'agentfleet', 'agentfleet-admin'])").message("agent.user must be a user of its own: root, agentfleet and agentfleet-admin are taken"))]
    #[serde(default = "default_user")]
    pub user: String,
    /// Whether that user may become root without a password. An agent with sudo can read everything on its server.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sudo: bool,
    /// Distribution packages to install.
    #[schemars(
        length(max = 128),
        inner(
            length(min = 1, max = 128),
            regex(pattern = r"^[a-z0-9][a-z0-9+.:=~-]*$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// A git repository that is cloned as the agent's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Shell commands run once as the agent's user, in the source directory or else in its home.
    #[schemars(length(max = 64), inner(length(min = 1, max = 4096)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub install: Vec<String>,
    /// Shell commands run as the agent's user after a new ref was checked out; the install commands when unset.
    #[schemars(length(max = 64), inner(length(min = 1, max = 4096)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Vec<String>>,
    /// Files without secrets.
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PlainFile>,
    /// Environment of the service, without secrets. An instance can add to it.
    #[schemars(extend("maxProperties" = 128))]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^[A-Za-z_][A-Za-z0-9_]*$'))").message("agent.environment holds variables whose names are letters, digits and _ and begin with no digit, such as LOG_LEVEL"))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// The systemd service that is the agent.
    pub service: Service,
    /// Size of a swap file, such as `2G`. No swap when unset.
    #[schemars(length(max = 8), regex(pattern = r"^[1-9][0-9]{0,4}[MG]$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<String>,
    /// Time zone such as `Europe/Berlin`; UTC when unset.
    #[schemars(
        length(max = 64),
        regex(pattern = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$")
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// A cloud-config document merged on top of what agentfleet sends. Hetzner lets anybody on the server read it: no secrets.
    #[schemars(length(max = 16384))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<String>,
    /// What the Secret of each instance has to hold.
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_keys: Vec<SecretKey>,
    /// Files made of the instance's Secret; they are written over SSH and never stand in user-data.
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_files: Vec<SecretFile>,
}

pub(super) fn default_user() -> String {
    "agent".into()
}

/// A git repository with the agent's code.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// URL that `git clone` takes. Credentials do not belong here: everybody who can read the class sees them.
    #[schemars(
        length(min = 1, max = 512),
        regex(pattern = r"^(https?|git|ssh|file)://[^\s@]+$")
    )]
    pub url: String,
    /// Branch, tag or commit.
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._/-]*$")
    )]
    #[serde(rename = "ref")]
    pub reference: String,
    /// Directory of the clone; absolute.
    #[schemars(
        length(min = 2, max = 256),
        regex(pattern = r"^(/[A-Za-z0-9_][A-Za-z0-9._-]*)+$")
    )]
    pub directory: String,
}

/// A file without secrets.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlainFile {
    /// Absolute path.
    #[schemars(
        length(min = 2, max = 256),
        regex(pattern = r"^(/[A-Za-z0-9._@+-]*[A-Za-z0-9_@+-])+$")
    )]
    pub path: String,
    /// Octal mode, such as `0644`.
    #[schemars(length(max = 4), regex(pattern = r"^0?[0-7]{3}$"))]
    #[serde(default = "plain_mode")]
    pub mode: String,
    /// Owner; the agent's user when unset.
    #[schemars(length(min = 1, max = 31), regex(pattern = r"^[a-z_][a-z0-9_-]*$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The text of the file.
    #[schemars(length(max = 16384))]
    pub content: String,
}

fn plain_mode() -> String {
    "0644".into()
}

/// A key that the Secret of an instance holds.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKey {
    /// Name of the key.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub name: String,
    /// Whether an instance waits until the key is there; true when unset.
    #[serde(default = "default_true")]
    pub required: bool,
    /// What the key is for and where its value comes from; shown to whoever forgot it.
    #[schemars(length(max = 512))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A file made of the instance's Secret, in one of the forms `key`, `env` and `template`.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.key), has(self.env), has(self.template)].filter(x, x).size() == 1").message("a secret file has exactly one of key (the raw value), env (an EnvironmentFile) and template"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretFile {
    /// Absolute path.
    #[schemars(
        length(min = 2, max = 256),
        regex(pattern = r"^(/[A-Za-z0-9._@+-]*[A-Za-z0-9_@+-])+$")
    )]
    pub path: String,
    /// Octal mode; `0600` when unset.
    #[schemars(length(max = 4), regex(pattern = r"^0?[0-7]{3}$"))]
    #[serde(default = "secret_mode")]
    pub mode: String,
    /// Owner; the agent's user when unset.
    #[schemars(length(min = 1, max = 31), regex(pattern = r"^[a-z_][a-z0-9_-]*$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Name of a key; the file is its value, byte by byte.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// An EnvironmentFile of keys that systemd and dotenv read alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvFile>,
    /// A template over the keys, as in `{{ KEY | json }}`; filters: `json`, `dotenv`, `int`, `b64encode`.
    #[schemars(length(min = 1, max = 16384))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Whether the agent itself changes the file, as a tool does that refreshes its token. True (the default): the file is written again only
    /// when what is declared changes. False: it is put back when it differs.
    #[serde(default = "default_true")]
    pub agent_may_change: bool,
}

/// The keys of an EnvironmentFile.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvFile {
    /// Which keys; all of the Secret when empty.
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
}

fn secret_mode() -> String {
    "0600".into()
}

fn default_true() -> bool {
    true
}
