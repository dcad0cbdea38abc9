//! agentfleet.
pub mod api;
