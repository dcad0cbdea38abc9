//! The labels by which servers and firewalls at Hetzner are known as ours.
//!
//! Nothing without our fleet and instance labels is ever changed or deleted, even if it bears our name (I3).

use crate::{agent_instance::desired::Identity, api::Disk, hetzner::Labels};

/// The fleet that a thing belongs to.
pub const FLEET: &str = "agentfleet.dev/fleet";
/// Namespace of a server's instance.
pub const NAMESPACE: &str = "agentfleet.dev/namespace";
/// Name of a server's instance.
pub const NAME: &str = "agentfleet.dev/name";
/// UID of a server's instance.
pub const UID: &str = "agentfleet.dev/uid";
/// Number of a server within its instance.
pub const INCARNATION: &str = "agentfleet.dev/incarnation";
/// The boot revision that a server was made of.
pub const BOOT_REVISION: &str = "agentfleet.dev/boot-revision";
/// The revision of its class that a server was made of.
pub const REVISION: &str = "agentfleet.dev/revision";
/// What a server's disk is worth.
pub const DISK: &str = "agentfleet.dev/disk";
/// The version of the master key that a server's keys come from.
pub const KEY_ID: &str = "agentfleet.dev/key-id";
/// On a server that outlived its instance by a person's word: it is nobody's, and to be kept.
pub const RETAINED: &str = "agentfleet.dev/retained";
/// The class that a firewall belongs to.
pub const CLASS: &str = "agentfleet.dev/class";
/// The operator that acts in a project, on its SSH key.
pub const HOLDER: &str = "agentfleet.dev/holder";

/// On an `AgentInstance`: the Subscription of the same name that keeps it, or kept it last.
pub const SUBSCRIPTION: &str = "agentfleet.dev/subscription";
/// On a Secret and on an `AgentInstance`: the customer that it belongs to.
pub const CUSTOMER: &str = "agentfleet.dev/customer";

/// Whether a thing carries the fleet, namespace and name of an instance, whatever its UID.
pub fn are_ours(labels: &Labels, identity: &Identity, fleet: &str) -> bool {
    let has = |key: &str, value: &str| labels.get(key).is_some_and(|found| found == value);
    has(FLEET, fleet) && has(NAMESPACE, &identity.namespace) && has(NAME, &identity.name)
}

/// What the disk of a server is worth; what does not say `Disposable` is kept.
pub fn disk(labels: &Labels) -> Disk {
    if text(labels, DISK) == Disk::Disposable.as_str() {
        Disk::Disposable
    } else {
        Disk::Preserve
    }
}

/// The value of a label; empty if there is none.
pub fn text(labels: &Labels, key: &str) -> String {
    labels.get(key).cloned().unwrap_or_default()
}

/// The number in a label; zero if there is none.
pub fn number(labels: &Labels, key: &str) -> u32 {
    labels
        .get(key)
        .and_then(|value| value.parse().ok())
        .unwrap_or_default()
}
