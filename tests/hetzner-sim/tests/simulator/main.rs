//! The simulator as its users meet it: over HTTP and over SSH.

mod faults;
mod machines;
mod support;
