//! agentfleet.
pub mod api;
pub mod crash_point;
pub mod fleet;
pub mod kube_ext;
pub mod leader;
