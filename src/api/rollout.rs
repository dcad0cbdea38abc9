//! How a change of a class reaches its instances.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, agent_class::is_default};

/// How a change of a class reaches its instances: a few at a time, those that do not serve first. Suspended instances, and those without a
/// server, take it up at once. A change of an instance, or of its Secret, is no rollout.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollout {
    /// How an instance gets a new revision. `InPlace`: on the server that it has, as far as that can take it up. `Replace`: by a new server,
    /// booted and installed beside the old one, whatever has changed; only where `lifecycle.disk` is `Disposable`. What is an instance's own
    /// (its Secret, its environment) is applied in place either way.
    #[serde(default, skip_serializing_if = "is_default")]
    pub strategy: RolloutStrategy,
    /// How many instances that have got the new revision, or are getting it, may be not Ready at once: a number, or a part of all such as
    /// `10%`, rounded down; one at the least. When so many have failed on a revision, its rollout stops.
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 1 : self.matches('^([1-9]|[1-9][0-9]|100)%$')").message("lifecycle.rollout.maxUnavailable is 1 or more, or a part such as 10%"))]
    #[serde(default = "max_unavailable")]
    pub max_unavailable: IntOrString,
    /// How many instances may be getting a new server at once, each beside its old one: a number, or a part of all such as `10%`, rounded
    /// down; one at the least.
    #[x_kube(validation = Rule::new("type(self) == int ? self >= 1 : self.matches('^([1-9]|[1-9][0-9]|100)%$')").message("lifecycle.rollout.maxSurge is 1 or more, or a part such as 10%"))]
    #[serde(default = "max_surge")]
    pub max_surge: IntOrString,
    /// Whether no further instance gets the new revision for now.
    #[serde(default, skip_serializing_if = "is_default")]
    pub paused: bool,
    /// What happens when the rollout of a revision has failed. `Pause`: no further instance gets it. `Rollback`: all go back to the last
    /// revision that was good. Either way those that failed on it go back by themselves.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_failure: OnRolloutFailure,
    /// When further instances may get a new revision; at any time when empty.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<RolloutWindow>,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            strategy: RolloutStrategy::default(),
            max_unavailable: max_unavailable(),
            max_surge: max_surge(),
            paused: false,
            on_failure: OnRolloutFailure::default(),
            windows: vec![],
        }
    }
}

fn max_unavailable() -> IntOrString {
    IntOrString::String("10%".into())
}

fn max_surge() -> IntOrString {
    IntOrString::Int(1)
}

/// How an instance gets a new revision.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RolloutStrategy {
    /// On the server that it has, as far as that can take it up.
    #[default]
    InPlace,
    /// By a new server.
    Replace,
}

/// What happens when the rollout of a revision has failed.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnRolloutFailure {
    /// No further instance gets it.
    #[default]
    Pause,
    /// All go back to the last good one.
    Rollback,
}

/// A time in the week.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("duration(self.duration) >= duration('1m') && duration(self.duration) <= duration('168h')").message("lifecycle.rollout.windows: duration is between 1m and 168h"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RolloutWindow {
    /// Days on which it begins; each day when empty.
    #[schemars(length(max = 7))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
    /// When it begins, such as `02:30`.
    #[schemars(regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub start: String,
    /// How long it lasts.
    pub duration: Duration,
    /// Name of the time zone, such as `Europe/Berlin`.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default = "utc")]
    pub time_zone: String,
}

fn utc() -> String {
    "UTC".into()
}

/// A day of the week.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "days need no explanation")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}
