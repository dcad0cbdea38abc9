//! agentfleet gives every AI agent a server of its own.

pub mod bootstrap;
pub mod cloud_init;
pub mod guest;
pub mod keys;
pub mod naming;
pub mod secret_files;
pub mod systemd_unit;
