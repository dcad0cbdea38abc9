//! The simulator as its users meet it: over HTTP and over SSH.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod faults;
mod machines;
mod real_machines;
mod support;
