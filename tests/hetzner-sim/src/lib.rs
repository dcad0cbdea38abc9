//! A simulated Hetzner Cloud: the API over loopback HTTP, machines that answer SSH, and control
//! over everything that can go wrong.
//!
//! ```text
//!   client ── HTTP ── http ──► api ──► servers, firewalls, actions, …  (state; no clock, no waiting)
//!                      │ faults          │ orders
//!   test ── /_sim ── control             ▼
//!                      │              machines ── SSH ── guest program in a scratch directory
//!                      ▼
//!                   ledger (mutations, lives, requests, bill)
//! ```
//!
//! It shares no code with the operator's client: both follow Hetzner's documentation, and only that.

mod actions;
mod api;
mod catalogue;
mod cloud;
mod config;
mod connection;
mod control;
mod control_http;
mod control_servers;
mod error;
mod faults;
mod firewall_rules;
mod firewalls;
mod http;
mod images;
mod labels;
mod ledger;
mod machines;
mod network_ranges;
mod networks;
mod paging;
mod placement_groups;
mod pricing;
mod primary_ips;
mod rate_limit;
mod request;
mod server_actions;
mod server_create;
mod server_wish;
mod servers;
mod simulator;
mod ssh_keys;
mod state;
#[cfg(test)]
mod testing;

pub use config::{Config, MachineKind, Spread};
pub use control::{Control, ControlError, ProjectView};
pub use faults::{ActionFault, Fault, FaultBody, FaultRule, FaultState, WhichAnswer};
pub use ledger::{Bill, Life, Mutation, Origin, RequestCount};
pub use machines::fleet::{FleetError, GuestFaults, MachineFaults, MachineView, SshFault, Stage};
pub use machines::nspawn::{KeeperError, Shell, ShellAnswer};
pub use machines::voice::VoiceChange;
pub use simulator::{Simulator, StartError};
