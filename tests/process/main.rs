//! What the operator's process does with Kubernetes, shown on a real control plane.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in its helper functions too"
)]

mod control_plane;
mod fleet;
mod kube_ext;
mod leader;
mod partition;
