//! `AgentClass`.
