//! The `agent.service` part of a class: the systemd service that is the agent.
//!
//! Fields bear the names of systemd's settings and mean the same; what is not offered here is for a whole `unit`. Words that YAML would read
//! as a boolean (`No`, `Yes`) have another name.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, agent::default_user};

/// The systemd service that is the agent: the fields of a unit, or a whole `unit`.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.unit) != has(self.execStart)").message("agent.service needs either execStart (and the other fields) or a whole unit, not both and not neither"))]
#[x_kube(validation = Rule::new("!has(self.unit) || ![has(self.description), has(self.workingDirectory), has(self.environmentFiles), has(self.restart), has(self.restartSec), has(self.restartSteps), has(self.restartMaxDelaySec), has(self.startLimitIntervalSec), has(self.startLimitBurst), has(self.timeoutStopSec), has(self.killMode), has(self.killSignal), has(self.privateTmp), has(self.privateDevices), has(self.noNewPrivileges), has(self.protectSystem), has(self.protectHome), has(self.protectKernelTunables), has(self.protectControlGroups), has(self.restrictSUIDSGID), has(self.readWritePaths), has(self.memoryMax), has(self.tasksMax), has(self.syslogIdentifier)].exists(set, set)").message("agent.service.unit is a whole unit: leave out all other fields but name"))]
#[x_kube(validation = Rule::new("has(self.restartSteps) == has(self.restartMaxDelaySec)").message("agent.service.restartSteps and restartMaxDelaySec work together only: set both or none"))]
#[x_kube(validation = Rule::new("!has(self.restartMaxDelaySec) || !has(self.restartSec) || duration(self.restartSec) < duration(self.restartMaxDelaySec)").message("agent.service.restartMaxDelaySec must be longer than restartSec, from which the pause grows"))]
#[x_kube(validation = Rule::new("!has(self.protectHome) || self.protectHome != 'Inaccessible' || (has(self.workingDirectory) && !self.workingDirectory.startsWith('/home/'))").message("agent.service.protectHome Inaccessible hides the agent's home, too: set workingDirectory to a directory outside of /home"))]
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
    /// Program and arguments, one each, taken as they stand; the program's path is absolute.
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
    /// Whether the agent sees no devices but pseudo ones such as `/dev/null`; implies `noNewPrivileges`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_devices: Option<bool>,
    /// Whether the agent and its children can never gain privileges; excludes sudo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_new_privileges: Option<bool>,
    /// Which parts of the system the agent cannot write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect_system: Option<ProtectSystem>,
    /// What the agent cannot do with `/home`, `/root` and `/run/user`; its own home is among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect_home: Option<ProtectHome>,
    /// Whether the agent cannot change kernel variables under `/proc` and `/sys`; implies `noNewPrivileges`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect_kernel_tunables: Option<bool>,
    /// Whether the agent cannot write the control groups under `/sys/fs/cgroup`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect_control_groups: Option<bool>,
    /// Whether the agent cannot make files setuid or setgid; implies `noNewPrivileges`.
    #[serde(
        rename = "restrictSUIDSGID",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub restrict_suid_sgid: Option<bool>,
    /// Directories that stay writable under `protectSystem` and `protectHome`.
    #[schemars(
        length(max = 16),
        inner(length(min = 2, max = 256), regex(pattern = r"^/"))
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_write_paths: Vec<String>,
    /// The most memory that the agent and its children may use, such as `2G`; beyond it they are killed.
    #[schemars(length(max = 8), regex(pattern = r"^[1-9][0-9]{0,4}[MG]$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<String>,
    /// The most processes and threads that the agent may have.
    #[schemars(range(min = 1, max = 4_194_304))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks_max: Option<i32>,
    /// Name of the agent in the journal; that of the unit when unset.
    #[schemars(length(min = 1, max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syslog_identifier: Option<String>,
}

/// When systemd starts a service again; systemd.service(5) has the table.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// Whatever ended it.
    Always,
    /// After a clean end.
    OnSuccess,
    /// After an unclean end.
    OnFailure,
    /// After a signal or a timeout, whatever its exit code.
    OnAbnormal,
    /// After a signal that it did not catch.
    OnAbort,
    /// After the watchdog's timeout.
    OnWatchdog,
    /// Not at all: systemd's `no`.
    Never,
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
    /// `/usr` and the boot loader: systemd's `yes`.
    Usr,
    /// Also `/etc`.
    Full,
    /// Everything but `readWritePaths`.
    Strict,
}

/// What the agent cannot do with home directories.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProtectHome {
    /// See them: systemd's `yes`.
    Inaccessible,
    /// Write them.
    ReadOnly,
}
