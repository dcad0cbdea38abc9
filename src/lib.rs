//! agentfleet gives every AI agent a server of its own.

pub mod guest;
pub mod keys;
pub mod naming;
