//! The `agent` part of a class: what the guest installs and runs on a server.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;

/// What runs on each server of a class, and how it gets there.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.cloudInit) || self.cloudInit.startsWith('#cloud-config')").message("agent.cloudInit must be a cloud-config document: let its first line be #cloud-config"))]
#[x_kube(validation = Rule::new("!has(self.update) || self.update.size() == 0 || has(self.source)").message("agent.update runs after a new ref of agent.source: set agent.source, or leave out agent.update"))]
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

fn default_user() -> String {
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

/// The systemd service that is the agent: the fields of a unit, or a whole `unit`.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.unit) != has(self.execStart)").message("agent.service needs either execStart (and the other fields) or a whole unit, not both and not neither"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    /// Name of the unit without `.service`.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    )]
    #[x_kube(validation = Rule::new("!self.startsWith('agentfleet')").message("agent.service.name must not begin with agentfleet: those units are the operator's"))]
    #[serde(default = "default_user")]
    pub name: String,
    /// A whole systemd unit, instead of the fields below. It must set User= itself. agentfleet adds a drop-in that keeps it from starting on a
    /// server that does not hold the agent's voice.
    #[schemars(length(min = 1, max = 16384))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Description= of the unit.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Program and arguments, one each; the program's path is absolute.
    #[schemars(length(min = 1, max = 64), inner(length(max = 1024)))]
    #[x_kube(validation = Rule::new("self[0].startsWith('/')").message("agent.service.execStart must begin with the absolute path of a program"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_start: Option<Vec<String>>,
    /// Directory that the agent starts in; the source directory, or else its home, when unset.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^/"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// Paths of EnvironmentFiles; usually secret files of form `env`.
    #[schemars(
        length(max = 16),
        inner(length(min = 2, max = 256), regex(pattern = r"^/"))
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment_files: Vec<String>,
    /// When systemd starts the agent again; `Always` when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// Pause before such a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_sec: Option<Duration>,
    /// In how many steps that pause grows to `restartMaxDelaySec` (systemd 254 and newer).
    #[schemars(range(min = 1, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_steps: Option<i32>,
    /// The longest pause before a restart (systemd 254 and newer).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_max_delay_sec: Option<Duration>,
    /// The window in which starts are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_limit_interval_sec: Option<Duration>,
    /// How many starts are allowed in that window.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_limit_burst: Option<i32>,
    /// How long a stop may take before the agent is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_stop_sec: Option<Duration>,
    /// What a stop ends beside the agent's main process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_mode: Option<KillMode>,
    /// KillSignal= of the unit, such as `SIGTERM`.
    #[schemars(length(max = 16), regex(pattern = r"^SIG[A-Z0-9+]+$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_signal: Option<String>,
    /// Whether the agent gets a `/tmp` of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_tmp: Option<bool>,
    /// Whether the agent and its children can never gain privileges; excludes sudo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_new_privileges: Option<bool>,
    /// Which parts of the system the agent cannot write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect_system: Option<ProtectSystem>,
    /// Directories that stay writable under `protectSystem: strict`.
    #[schemars(
        length(max = 16),
        inner(length(min = 2, max = 256), regex(pattern = r"^/"))
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_write_paths: Vec<String>,
    /// Name of the agent in the journal.
    #[schemars(length(min = 1, max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syslog_identifier: Option<String>,
}

/// When systemd starts a service again.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// Whatever ended it.
    Always,
    /// After an unclean end.
    OnFailure,
    /// Never.
    No,
}

/// What a stop ends beside the agent's main process.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KillMode {
    /// Everything that the agent has started.
    ControlGroup,
    /// The main process first, and what is left of the rest afterwards.
    Mixed,
    /// The main process alone.
    Process,
}

/// Which parts of the system the agent cannot write.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProtectSystem {
    /// `/usr` and the boot loader.
    Yes,
    /// Also `/etc`.
    Full,
    /// Everything but `readWritePaths`.
    Strict,
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
