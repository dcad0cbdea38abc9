//! What stands behind the servers.
//!
//! The API only gives orders, with the times at which they take effect; a machine carries them out by
//! itself. So the API never waits for a machine, as at Hetzner.

mod cloud_init;
mod fake;
mod fake_fleet;
pub(crate) mod fleet;
mod host;
pub(crate) mod nspawn;
mod phone_home;
mod ssh;
mod state_dir;
mod tasks;
pub(crate) mod voice;

use std::net::Ipv4Addr;
use std::time::Duration;

/// The times of one boot.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Boot {
    /// Until the machine is started.
    pub(crate) after: Duration,
    /// From its start until SSH answers.
    pub(crate) ssh: Duration,
    /// From its start until cloud-init is through, where it has work to do.
    pub(crate) cloud_init: Duration,
}

/// An order to the machine of one server.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) server: u64,
    pub(crate) what: What,
}

/// What the machine is to do.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// Come into being, and boot unless it is to stay off.
    Create {
        address: Option<Ipv4Addr>,
        hostname: String,
        user_data: Option<String>,
        /// Public keys that root is to have.
        ssh_keys: Vec<String>,
        /// Id of the snapshot to start from; without one, it is Debian.
        snapshot: Option<u64>,
        boot: Option<Boot>,
    },
    PowerOn {
        boot: Boot,
    },
    PowerOff {
        after: Duration,
    },
    /// Be asked to go off; a fake machine goes off after that time.
    Shutdown {
        after: Duration,
    },
    /// Boot again; hard is with a loss of power.
    Reboot {
        hard: bool,
        boot: Boot,
    },
    /// Boot from a fresh disk.
    Rebuild {
        user_data: Option<String>,
        snapshot: Option<u64>,
        boot: Boot,
    },
    /// Have the disk copied to a snapshot.
    Snapshot {
        image: u64,
    },
    /// No longer have that snapshot, whichever server it was taken from.
    Forget {
        image: u64,
    },
    Delete,
}
