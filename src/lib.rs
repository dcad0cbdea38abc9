//! agentfleet.
pub mod agent_instance;
pub mod api;
pub mod crash_point;
pub mod guest;
pub mod hetzner;
pub mod inventory;
pub mod keys;
pub mod kube_ext;
pub mod naming;
pub mod secret_files;
pub mod systemd_unit;
