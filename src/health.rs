//! Whether agents serve: probes that run beside the reconcilers, the circuit that sums them up, the ladder of what to do when they do not,
//! and the breaker that holds it when too many fall at once.
//!
//! A probe changes nothing anywhere, and only a change of the sum wakes the reconciler of an instance, so a healthy fleet writes nothing. This
//! process may forget all of it: after a restart the status says what to presume until the next probe.

pub mod breaker;
pub mod canary;
mod circuit;
pub mod holds;
pub mod ladder;
pub mod pace;
mod probe;
mod probes;

pub use circuit::{Circuit, Reply, Rules};
pub use probe::{Target, ask, http_client};
pub use probes::{Ended, HealthView, Probes};
