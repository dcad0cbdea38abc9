//! How it is found out whether an agent serves.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, agent_class::is_default};

/// How it is found out whether an agent serves: one of `systemd`, `http` and `exec`; `systemd` when none is set.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.systemd), has(self.http), has(self.exec)].filter(x, x).size() <= 1").message("health has at most one of systemd, http and exec"))]
#[x_kube(validation = Rule::new("duration(self.timeout) >= duration('1s') && duration(self.timeout) <= duration('1m')").message("health.timeout is between 1s and 1m"))]
#[x_kube(validation = Rule::new("duration(self.interval) >= duration('1s')").message("health.interval is 1s or longer"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Health {
    /// Asks systemd over SSH whether the agent's unit is active. Write `systemd: {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub systemd: Option<SystemdProbe>,
    /// Asks the agent over HTTP, from the operator. `firewall.healthFrom` has to let the operator in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// Runs a command on the server, as the agent's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecProbe>,
    /// Pause between two probes.
    #[serde(default = "interval")]
    pub interval: Duration,
    /// How long an answer may take.
    #[serde(default = "timeout")]
    pub timeout: Duration,
    /// How many probes in a row have to fail before the agent counts as failed.
    #[schemars(range(min = 1, max = 100))]
    #[serde(default = "failure_threshold")]
    pub failure_threshold: i32,
    /// How long after a start of the agent the first probe is made.
    #[serde(default, skip_serializing_if = "is_default")]
    pub initial_delay: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            systemd: None,
            http: None,
            exec: None,
            interval: interval(),
            timeout: timeout(),
            failure_threshold: failure_threshold(),
            initial_delay: Duration::default(),
        }
    }
}

fn interval() -> Duration {
    Duration::from_secs(60)
}

fn timeout() -> Duration {
    Duration::from_secs(5)
}

fn failure_threshold() -> i32 {
    3
}

/// Asks systemd; has no fields.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemdProbe {}

/// Asks the agent over HTTP.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpProbe {
    /// TCP port that the agent listens on.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Path, with its query if there is one. Redirects are not followed.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^/[!-~]*$"))]
    #[serde(default = "root")]
    pub path: String,
    /// The status that means good; anything from 200 to 299 when unset.
    #[schemars(range(min = 100, max = 599))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

fn root() -> String {
    "/".into()
}

/// Runs a command on the server.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecProbe {
    /// Shell command; exit code 0 means good. It runs in the source directory, or else in the home of the agent's user.
    #[schemars(length(min = 1, max = 4096))]
    pub command: String,
}

/// What the probes of an agent say together.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthState {
    /// The last probe was good.
    Healthy,
    /// The agent served, and its last probe was bad, but not yet so many in a row that it counts.
    Degraded,
    /// So many probes in a row were bad.
    Failed,
    /// The way to the agent failed, so nothing is known of the agent itself.
    Unknown,
}

/// Health as it was told last.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthStatus {
    /// What the probes say together.
    pub state: HealthState,
    /// Since when.
    pub since: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
}
