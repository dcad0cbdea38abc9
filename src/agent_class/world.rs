//! What is: one picture of all that matters to a class, taken at one moment.

use std::collections::BTreeMap;

use super::desired::Desired;
use crate::{
    api::AgentClassStatus,
    health::breaker::Hold,
    hetzner::{Firewall, Labels},
    hetzner_project::connection::Refusal,
    labels, naming, rollout,
    trouble::Trouble,
};

/// Everything that a plan for one class may depend on.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Whether our finalizer is on the object.
    pub finalizer: bool,
    /// The status as it was last written.
    pub status: AgentClassStatus,
    /// How many instances name the class.
    pub instances: i64,
    /// How many of them are Ready.
    pub ready_instances: i64,
    /// Whether other counts than before may be written again, or else how long not.
    pub counts_wait: Option<std::time::Duration>,
    /// Boot and config revision of an instance without anything of its own.
    pub revisions: Option<(String, String)>,
    /// What the catalogue said of this generation.
    pub checked: Option<Checked>,
    /// The class's projects in its order, and all others that are connected.
    pub projects: Vec<ProjectView>,
    /// Whether recovery of its agents is held.
    pub hold: Hold,
    /// Where the rollout of its newest revision stands.
    pub rollout: rollout::Look,
    /// In what time that changes by itself, if it does.
    pub rollout_wait: Option<std::time::Duration>,
    /// Steps that failed, by key.
    pub troubles: BTreeMap<String, Trouble>,
}

/// What the catalogue said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Which field is wrong, if one is.
    pub outcome: Result<(), String>,
    /// Whether it is time to ask again.
    pub due: bool,
}

/// A project, as a class sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProjectView {
    /// Name of the `HetznerProject`.
    pub name: String,
    /// What became of the object.
    pub object: ObjectView,
    /// Whether the class names it.
    pub named: bool,
    /// Whether nothing is known of it yet, as after a start.
    pub pending: bool,
    /// Why nothing may be changed there.
    pub unusable: Option<Refusal>,
    /// The firewalls of this class, the oldest first; none before the first list.
    pub firewalls: Option<Vec<FirewallView>>,
    /// Whether it is time for another list of firewalls.
    pub stale: bool,
    /// Servers of the class that its firewall is missing from.
    pub unguarded: Vec<i64>,
    /// Firewalls of other classes, each with servers that are this class's now and have its firewall: what an instance had before it changed class.
    pub former: Vec<(i64, Vec<i64>)>,
    /// The class's network there.
    pub network: NetworkView,
}

/// What became of a `HetznerProject`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ObjectView {
    /// There is none of that name.
    #[default]
    Missing,
    /// It is being deleted.
    Deleting,
    /// It is there.
    Living,
}

/// The network that a class names, in one project.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkView {
    /// Not asked for lately.
    #[default]
    Unknown,
    /// There is none of that name.
    Missing,
    /// It is there.
    Found,
}

/// A firewall of this class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallView {
    /// Id at Hetzner.
    pub id: i64,
    /// Whether it carries the labels that it should.
    pub labelled: bool,
    /// Whether it lets through what it should.
    pub ruled: bool,
    /// Whether it protects anything.
    pub applied: bool,
}

/// The labels of a class's firewall.
pub fn firewall_labels(fleet: &str, class: &str) -> Labels {
    [
        (labels::FLEET.to_owned(), fleet.to_owned()),
        (labels::CLASS.to_owned(), class.to_owned()),
    ]
    .into()
}

impl FirewallView {
    /// The firewall as its class sees it; none if it belongs to another. One that carries the fleet, and the name, but whose class label
    /// somebody took off still does.
    pub fn of(firewall: &Firewall, desired: &Desired, fleet: &str) -> Option<Self> {
        let class = firewall.labels.get(labels::CLASS);
        let named = firewall.name == naming::firewall_name(fleet, &desired.name);
        if class != Some(&desired.name) && (!named || class.is_some_and(|class| !class.is_empty()))
        {
            return None;
        }
        Some(Self {
            id: firewall.id.number(),
            labelled: firewall_labels(fleet, &desired.name)
                .iter()
                .all(|(key, value)| firewall.labels.get(key) == Some(value)),
            ruled: firewall.has_rules(&desired.rules),
            applied: !firewall.applied_to.is_empty(),
        })
    }
}
