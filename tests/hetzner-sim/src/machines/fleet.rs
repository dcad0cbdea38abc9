//! All machines of a simulator, whatever they are, and what a test sees of them.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::{Config, MachineKind};
use crate::machines::Order;
use crate::machines::fake_fleet::FakeFleet;
use crate::machines::nspawn::{KeeperError, NspawnFleet};
use crate::machines::voice::VoiceChange;

/// Why machines could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The guest program or the machine host is not there.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// The directory of the machines cannot be made.
    #[error("cannot make the directory of the machines")]
    Directory(#[source] io::Error),
    /// A unix socket cannot have so long a path.
    #[error("{0} is too long a path for a socket: choose a shorter --state-dir")]
    LongPath(PathBuf),
    /// There is no root for real machines.
    #[error("no root for real machines at {0}: run make machine-root")]
    NoRoot(PathBuf),
    /// Real machines cannot be had here.
    #[error("cannot have real machines: that needs root on Linux with systemd-nspawn, ip and nft")]
    Keeper(#[from] KeeperError),
}

/// Why something could not be done to a machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("there is no such machine")]
    Unknown,
    #[error("{0}")]
    Unsupported(&'static str),
    #[error("the machine cannot be reached")]
    Io(#[from] io::Error),
}

/// How SSH misbehaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SshFault {
    /// It answers.
    #[default]
    None,
    /// Nothing listens: connections are refused.
    Refuse,
    /// Connections are taken and nothing is ever said.
    Hang,
}

/// What goes wrong in the guest program's surroundings; the machine host brings it about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fault that a test switches by itself"
)]
pub struct GuestFaults {
    /// The disk is full.
    pub disk_full: bool,
    /// The agent's unit cannot start.
    pub unit_fails: bool,
    /// The agent's unit starts and dies.
    pub unit_crashes: bool,
    /// The agent's user does not exist.
    pub user_missing: bool,
    /// The source cannot be fetched.
    pub source_fails: bool,
    /// Packages cannot be installed.
    pub packages_fail: bool,
    /// Processes of the unit survive its stop.
    pub stubborn: bool,
}

/// What goes wrong on a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MachineFaults {
    /// How SSH misbehaves.
    pub ssh: SshFault,
    /// Connections and the machine itself stand still; a shutdown request is not heard.
    pub frozen: bool,
    /// The connection is reset once so many bytes of a command's input arrived.
    pub cut_input_after: Option<u64>,
    /// The connection is reset once so many bytes of a command's output were sent.
    pub cut_output_after: Option<u64>,
    /// What goes wrong around the guest program.
    pub guest: GuestFaults,
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Without power.
    #[default]
    Off,
    /// On its way up.
    Booting,
    /// Cloud-init is through.
    Up,
}

/// One machine, as a test sees it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineView {
    /// Id of its server.
    pub server: u64,
    /// Where SSH answers; nothing for a server without IPv4.
    pub address: Option<String>,
    /// Its name when it was made.
    pub hostname: String,
    /// Its scratch directory; of a real machine its root, which goes with its simulator.
    pub root: PathBuf,
    /// Where it is in its life.
    pub stage: Stage,
    /// Public host key that it shows now, in OpenSSH's form.
    pub host_key: String,
    /// When SSH began to answer, in this boot.
    pub ssh_since: Option<Timestamp>,
    /// When cloud-init was through, in its first boot.
    pub cloud_init_done: Option<Timestamp>,
    /// What went wrong in its boot.
    pub boot_error: Option<String>,
    /// What a test made go wrong.
    pub faults: MachineFaults,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All machines of a simulator.
pub(crate) enum Fleet {
    Fake(FakeFleet),
    Nspawn(NspawnFleet),
}

impl Fleet {
    /// Prepares what machines of that kind need; nothing where there are to be none.
    ///
    /// Real ones take the wanted network, 10.N.0.0/16, or the first that is free.
    pub(crate) async fn start(
        config: &Config,
        network: Option<u8>,
    ) -> Result<Option<Self>, FleetError> {
        Ok(match config.machines {
            MachineKind::Fake => Some(Self::Fake(FakeFleet::start(config)?)),
            MachineKind::Nspawn => Some(Self::Nspawn(NspawnFleet::start(config, network).await?)),
            MachineKind::None => None,
        })
    }

    /// The real machines, where these are such.
    pub(crate) fn real(&self) -> Option<&NspawnFleet> {
        match self {
            Self::Fake(_) => None,
            Self::Nspawn(fleet) => Some(fleet),
        }
    }

    /// Passes an order on; the machine carries it out by itself.
    pub(crate) fn give(&self, order: Order) {
        match self {
            Self::Fake(fleet) => fleet.give(order),
            Self::Nspawn(fleet) => fleet.give(order),
        }
    }

    /// Ends all machines.
    pub(crate) fn stop(&self) {
        match self {
            Self::Fake(fleet) => fleet.stop(),
            Self::Nspawn(fleet) => fleet.stop(),
        }
    }

    /// Returns once all machines have ended.
    pub(crate) async fn gone(&self) {
        match self {
            Self::Fake(fleet) => fleet.gone().await,
            Self::Nspawn(fleet) => fleet.gone().await,
        }
    }

    pub(crate) fn set_faults(
        &self,
        server: u64,
        faults: MachineFaults,
    ) -> Result<(), MachineError> {
        match self {
            Self::Fake(fleet) => fleet.set_faults(server, faults),
            Self::Nspawn(fleet) => fleet.set_faults(server, faults),
        }
    }

    pub(crate) fn move_to(
        &self,
        server: u64,
        address: Option<Ipv4Addr>,
    ) -> Result<(), MachineError> {
        match self {
            Self::Fake(fleet) => fleet.move_to(server, address),
            Self::Nspawn(_) => Err(MachineError::Unsupported(
                "a real machine keeps the address that it was made with",
            )),
        }
    }

    pub(crate) fn change_host_key(&self, server: u64, on_disk: bool) -> Result<(), MachineError> {
        match self {
            Self::Fake(fleet) => fleet.change_host_key(server, on_disk),
            Self::Nspawn(_) => Err(MachineError::Unsupported(
                "the host key of a real machine is changed by its shell",
            )),
        }
    }

    pub(crate) fn view(&self, server: u64) -> Option<MachineView> {
        match self {
            Self::Fake(fleet) => fleet.view(server),
            Self::Nspawn(fleet) => fleet.view(server),
        }
    }

    pub(crate) fn views(&self) -> Vec<MachineView> {
        let mut views = match self {
            Self::Fake(fleet) => fleet.views(),
            Self::Nspawn(fleet) => fleet.views(),
        };
        views.sort_by_key(|view| view.server);
        views
    }

    /// When the agents of all machines, also of those that are gone, began and ceased to run.
    pub(crate) fn voices(&self) -> Vec<VoiceChange> {
        match self {
            Self::Fake(fleet) => fleet.voices(),
            Self::Nspawn(fleet) => fleet.voices(),
        }
    }
}
