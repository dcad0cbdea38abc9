//! Conditions as Kubernetes and kstatus mean them: a transition time moves only when the status does.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// The condition types of all kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionType {
    /// The object does what its spec asks for.
    Ready,
    /// Only a person can help; the message says with what.
    Stalled,
    /// A project's token works and belongs to the project that was first seen.
    CredentialsValid,
    /// Hetzner lets the project have more servers.
    QuotaAvailable,
    /// Nothing in a project carries this fleet's labels without belonging to anything.
    NoZombies,
    /// A class names valid types, locations and an image, and renders.
    Rendered,
    /// A class's firewall stands in each of its projects as declared.
    FirewallReady,
    /// So much fell at once that no server is rebooted, deleted or replaced for it.
    RecoveryHeld,
    /// An instance's server exists.
    ServerCreated,
    /// Its host key is proven and the agent is installed.
    Bootstrapped,
    /// The declared configuration and secrets are on the server.
    Configured,
    /// The agent serves.
    Healthy,
    /// The server has what the class and the instance ask for now; of a class: all of its servers have.
    UpToDate,
    /// A subscription's state lets its agent run.
    Entitled,
    /// What runs is not yet what a subscription pays for.
    PlanPending,
    /// A subscription's agent would be terminated, and is not until an admin says so.
    TerminationHeld,
}

impl ConditionType {
    /// The word as it stands in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Stalled => "Stalled",
            Self::CredentialsValid => "CredentialsValid",
            Self::QuotaAvailable => "QuotaAvailable",
            Self::NoZombies => "NoZombies",
            Self::Rendered => "Rendered",
            Self::FirewallReady => "FirewallReady",
            Self::RecoveryHeld => "RecoveryHeld",
            Self::ServerCreated => "ServerCreated",
            Self::Bootstrapped => "Bootstrapped",
            Self::Configured => "Configured",
            Self::Healthy => "Healthy",
            Self::UpToDate => "UpToDate",
            Self::Entitled => "Entitled",
            Self::PlanPending => "PlanPending",
            Self::TerminationHeld => "TerminationHeld",
        }
    }
}

/// A condition that was just found; `None` is `Unknown`. [`set_condition`] gives it its transition time.
pub fn condition(
    kind: ConditionType,
    status: Option<bool>,
    reason: &str,
    message: impl Into<String>,
) -> Condition {
    Condition {
        type_: kind.as_str().into(),
        status: status
            .map_or("Unknown", |yes| if yes { "True" } else { "False" })
            .into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: None,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

/// Puts a condition into a list; its transition time is kept unless the status changed.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    mut new: Condition,
    generation: Option<i64>,
    now: Timestamp,
) {
    new.observed_generation = generation;
    let old = conditions.iter_mut().find(|old| old.type_ == new.type_);
    new.last_transition_time = match &old {
        Some(old) if old.status == new.status => old.last_transition_time.clone(),
        _ => Time(whole_seconds(now)),
    };
    match old {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}

/// Whether a condition of this type stands at `True`.
pub fn is_true(conditions: &[Condition], kind: ConditionType) -> bool {
    conditions
        .iter()
        .any(|condition| condition.type_ == kind.as_str() && condition.status == "True")
}

/// Kubernetes keeps whole seconds; anything finer would never compare equal to what was read back.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let mut conditions = vec![];
        set_condition(
            &mut conditions,
            condition(ConditionType::Ready, Some(false), "Booting", "boots"),
            Some(1),
            at(10),
        );
        set_condition(
            &mut conditions,
            condition(ConditionType::Ready, Some(false), "Installing", "installs"),
            Some(1),
            at(20),
        );
        assert_eq!(
            (
                conditions[0].last_transition_time.0,
                conditions[0].reason.as_str()
            ),
            (at(10), "Installing")
        );
        set_condition(
            &mut conditions,
            condition(ConditionType::Ready, Some(true), "Ready", ""),
            Some(2),
            at(30),
        );
        assert_eq!(
            (conditions.len(), conditions[0].last_transition_time.0),
            (1, at(30))
        );
        assert!(is_true(&conditions, ConditionType::Ready));
    }
}
