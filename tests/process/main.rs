//! What the operator's process does with Kubernetes, shown on a real control plane.

mod control_plane;
mod leader;
mod partition;
