//! Whether agents serve: probes that run beside the reconcilers, the circuit that sums them up, and the ladder of what to do when they do not.
//!
//! A probe changes nothing anywhere, and only a change of the sum wakes the reconciler of an instance, so a healthy fleet writes nothing. This
//! process may forget all of it: after a restart the status says what to presume until the next probe.

mod circuit;
pub mod ladder;
mod probe;
mod probes;

pub use circuit::{Circuit, Reply, Rules};
pub use probe::{Target, ask, http_client};
pub use probes::{Ended, HealthView, Probes};
