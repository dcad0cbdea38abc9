//! agentfleet gives every AI agent a Hetzner Cloud server of its own.

pub mod hetzner;
pub mod inventory;
