//! The operator's side of the guest: the helper program on each server.
//!
//! One command, one answer. Nothing secret is ever sent over a
//! connection whose host key is not the pinned one, and the types say so: only a
//! [`Pinned`](transport::Pinned) server can be given a configuration, and an
//! [`Unproven`](proof::Unproven) one can be asked for a proof and nothing else.

pub mod acts;
pub mod answers;
pub mod bundle;
pub mod host_key;
mod leash;
pub mod line;
pub mod program;
pub mod proof;
pub mod protocol;
#[cfg(test)]
mod stand_in;
pub mod transport;
pub mod untrusted;

/// Why an act of the guest did not happen, or is not known to have happened.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The request could not be put together.
    #[error("the request cannot be written")]
    Request(#[source] std::io::Error),
    /// The way to the guest failed.
    #[error(transparent)]
    Transport(#[from] transport::TransportError),
    /// The guest answered, but not with what was asked for.
    #[error(transparent)]
    Answer(#[from] protocol::AnswerError),
}
