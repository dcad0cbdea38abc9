//! agentfleet.
pub mod api;
pub mod crash_point;
pub mod fleet;
pub mod http;
pub mod kube_ext;
pub mod leader;
pub mod telemetry;
