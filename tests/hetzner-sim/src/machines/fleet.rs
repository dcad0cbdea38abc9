//! All machines of a simulator.

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::machines::Order;

/// Why machines could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// No guest program.
    #[error("machines need --guest and --machine-host")]
    NoGuest,
}

/// How SSH misbehaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SshFault {
    /// Not at all.
    #[default]
    None,
}

/// What goes wrong on a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MachineFaults {
    /// frozen
    pub frozen: bool,
}

/// A machine.
#[derive(Debug, Clone, Serialize)]
pub struct MachineView {}

pub(crate) struct Fleet;

impl Fleet {
    pub(crate) fn start(_config: &Config, _network: u8) -> Result<Self, FleetError> {
        Err(FleetError::NoGuest)
    }
    pub(crate) fn give(&self, _order: Order) {}
    pub(crate) fn stop(&self) {}
    pub(crate) async fn gone(&self) {}
    pub(crate) fn set_faults(&self, _server: u64, _faults: MachineFaults) -> bool {
        false
    }
    pub(crate) fn change_host_key(&self, _server: u64, _on_disk: bool) -> bool {
        false
    }
    pub(crate) fn view(&self, _server: u64) -> Option<MachineView> {
        None
    }
    pub(crate) fn views(&self) -> Vec<MachineView> {
        Vec::new()
    }
}
