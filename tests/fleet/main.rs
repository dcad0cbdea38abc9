//! The operator as a process of its own, on a real control plane, before a simulated Hetzner Cloud whose machines are quick: one life, many
//! lives, and all that may go wrong with them.
//!
//! One program, so that all its tests share the few control planes that a host can run at once.

mod api_rules;
mod bad_input;
mod billing;
mod deletion;
mod guard;
mod health;
mod identity;
mod life;
mod metrics;
mod neighbour;
mod notification;
mod recovery;
mod replacement;
mod rollback;
mod rollout;
mod somebody_in_the_middle;
mod stale_view;
mod subscription;
mod suspend;
mod timings;
mod unknown_outcomes;
mod zombies;
