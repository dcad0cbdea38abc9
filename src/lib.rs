//! agentfleet.
pub mod api;
pub mod crash_point;
