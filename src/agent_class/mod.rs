//! `AgentClass`: what to run and on which machine.
