//! `AgentInstance`: one agent, one server.
pub mod desired;
pub mod plan;
pub mod status;
pub mod step;
pub mod world;
