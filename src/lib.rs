//! agentfleet.
pub mod agent_class;
pub mod agent_instance;
pub mod api;
pub mod context;
pub mod crash_point;
pub mod fleet;
pub mod guest;
pub mod hetzner;
pub mod hetzner_project;
pub mod inventory;
pub mod keys;
pub mod kube_ext;
pub mod leader;
pub mod naming;
pub mod secret_files;
pub mod systemd_unit;
