//! The custom resources: what an admin, a billing system and the operator say to one another.
//!
//! Types, schemas and CEL rules only; no I/O and no decisions. Doc comments on fields are user documentation: `kubectl explain` prints them.
//! A field that is added later must be optional and left out of its JSON form when unset, because revisions are hashes over that form: an
//! operator upgrade must change no server.

mod agent;
mod agent_class;
mod agent_instance;
mod conditions;
mod duration;
mod health;
mod hetzner_project;
mod rollout;
mod service;
mod subscription;

pub use agent::{AgentSpec, EnvFile, PlainFile, SecretFile, SecretKey, Source};
pub use agent_class::{
    AgentClass, AgentClassSpec, AgentClassStatus, Bootstrap, Direction, Disk, Firewall,
    FirewallRule, Lifecycle, Limits, OnProvisionFailure, Override, Protocol, Recovery,
};
pub use agent_instance::{
    AgentInstance, AgentInstanceSpec, AgentInstanceStatus, DeletionPolicy, HeardOrder, HeardOrders,
    Notice, NotifiedStatus, Overrides, ProvisioningRecord, RecoveryAction, RecoveryRecord,
    RollbackReason, RollbackRecord, ServerStatus, SnapshotRecord, Timing, TimingStep, VoiceRecord,
};
pub use conditions::{ConditionType, condition, is_true, set_condition};
pub use duration::{Duration, InvalidDuration};
pub use health::{ExecProbe, Health, HealthState, HealthStatus, HttpProbe, SystemdProbe};
pub use hetzner_project::{
    HetznerProject, HetznerProjectSpec, HetznerProjectStatus, TokenSecretRef,
};
pub use rollout::{Day, OnRolloutFailure, Rollout, RolloutStrategy, RolloutWindow};
pub use service::{KillMode, ProtectHome, ProtectSystem, Restart, Service};
pub use subscription::{
    AnnouncedEvent, Announcement, ExternalRef, FirstSeen, InstanceRef, Subscription,
    SubscriptionSpec, SubscriptionState, SubscriptionStatus,
};

use kube::CustomResourceExt as _;

/// The API group of every resource of agentfleet.
pub const GROUP: &str = "agentfleet.dev";

/// The finalizer that the operator puts on each object whose removal has to wait for something outside the cluster.
pub const FINALIZER: &str = "agentfleet.dev/finalizer";

/// Asks the operator to take up a server of this fleet, namespace and name that it did not create for this object; the value is the server's id.
pub const ADOPT_ANNOTATION: &str = "agentfleet.dev/adopt";

/// Replaces the server of an instance by a new one, whatever is on its disk; each new value does so once.
pub const RECREATE_ANNOTATION: &str = "agentfleet.dev/recreate";

/// Pauses the recovery of an instance, as while somebody works on its server; any value that is not empty does.
pub const MAINTENANCE_ANNOTATION: &str = "agentfleet.dev/maintenance";

/// Starts the agent's unit again; each new value does so once.
pub const RESTART_ANNOTATION: &str = "agentfleet.dev/restart";

/// On an instance: goes on now with what stands still, with all budgets and attempts anew. On a class: lets a revision whose rollout failed be tried
/// once more. Each new value does so once.
pub const RETRY_ANNOTATION: &str = "agentfleet.dev/retry";

/// Ends a hold of recovery on a class or project; each new value does so once.
pub const RELEASE_HOLD_ANNOTATION: &str = "agentfleet.dev/release-hold";

/// On an instance that came from a Subscription: when it is deleted with its server and its data, whether or not that Subscription still exists.
pub const TERMINATE_AT_ANNOTATION: &str = "agentfleet.dev/terminate-at";

/// On an instance that came from a Subscription: since when that does not, or will not, entitle it to run.
pub const UNENTITLED_SINCE_ANNOTATION: &str = "agentfleet.dev/unentitled-since";

/// On an instance that came from a Subscription: it is one of so many that lost their entitlement at once that it does not end before an admin
/// confirms it.
pub const TERMINATION_HELD_ANNOTATION: &str = "agentfleet.dev/termination-held";

/// On an instance that its Subscription has left: who was told that it ends soon; `Told` is people, by an Event, and `Taken` the webhook's
/// receiver too.
pub const TERMINATION_ANNOUNCED_ANNOTATION: &str = "agentfleet.dev/termination-announced";

/// On an instance that is being deleted: it is one of so many that were deleted at once that its server does not go before an admin confirms it.
pub const DELETION_HELD_ANNOTATION: &str = "agentfleet.dev/deletion-held";

/// On a Subscription, or on an instance that one has left, or that is being deleted: lets the agent end although it is one of many. Its value is a
/// time; what lost its entitlement, or was deleted, before that is meant.
pub const CONFIRM_TERMINATION_ANNOTATION: &str = "agentfleet.dev/confirm-termination";

/// All custom resource definitions as file name and YAML text, ready to be written to `crds/`.
///
/// # Errors
/// Fails only when a schema cannot be written as YAML, which would be a defect of this module.
pub fn crds() -> Result<Vec<(String, String)>, serde_saphyr::ser::Error> {
    [
        HetznerProject::crd(),
        AgentClass::crd(),
        AgentInstance::crd(),
        Subscription::crd(),
    ]
    .into_iter()
    .map(|crd| {
        let file = format!("{}.yaml", crd.spec.names.plural);
        Ok((file, serde_saphyr::to_string(&crd)?))
    })
    .collect()
}
