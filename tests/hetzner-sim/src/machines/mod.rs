//! What stands behind the servers.
//!
//! The API only gives orders, with the times at which they take effect; a machine carries them out by
//! itself. So the API never waits for a machine, as at Hetzner.

mod cloud_init;
mod fake;
pub(crate) mod fleet;
mod host;
mod phone_home;
mod ssh;
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
        boot: Option<Boot>,
    },
    PowerOn {
        boot: Boot,
    },
    PowerOff {
        after: Duration,
    },
    /// Lose the power and boot again.
    Reboot {
        boot: Boot,
    },
    /// Boot from a fresh disk.
    Rebuild {
        user_data: Option<String>,
        boot: Boot,
    },
    Delete,
}
