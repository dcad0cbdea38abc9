//! The operator's side of the guest: the helper program on each server.
//!
//! One SSH connection carries one command and one answer. Nothing secret is ever sent over a
//! connection whose host key is not the pinned one, and the types say so: only a
//! [`Pinned`](transport::Pinned) server can be given a configuration, and an
//! [`Unproven`](proof::Unproven) one can be asked for a proof and nothing else.

pub mod acts;
pub mod bundle;
pub mod host_key;
pub mod proof;
pub mod protocol;
pub mod transport;
