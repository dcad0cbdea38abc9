//! Proof of an unknown host key: no trust on first use.
//!
//! The guest holds a key that only the operator knows besides it. It answers a nonce with an HMAC
//! over fleet, server, nonce and its own host key. Whoever stands in the middle shows another host
//! key, has no key for the HMAC, and cannot relay the operator's login, since SSH signatures are
//! bound to the session. Until the proof is there, nothing but the nonce is sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::PrivateKey;

use super::GuestError;
use super::host_key::HostKey;
use super::protocol::{self, Answered, Command, Greeting, Hello};
use super::transport::{Call, Pinned, exec};
use crate::keys::SecretKey32;

const PURPOSE: &str = "agentfleet hello v1";

/// Which key a proof was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProofKind {
    /// The boot proof key, from user-data.
    Boot,
    /// The resume proof key, from an earlier `configure`.
    Resume,
}

/// The keys whose proof counts now; the caller decides which do.
#[derive(Clone, Debug)]
pub enum Accept {
    /// The boot proof key alone: a fresh server of the current write-ahead record.
    Boot(SecretKey32),
    /// The resume proof key alone: the pin of an older server was lost.
    Resume(SecretKey32),
    /// Either: a server of which it is not known how far it came.
    Either {
        /// The boot proof key.
        boot: SecretKey32,
        /// The resume proof key.
        resume: SecretKey32,
    },
}

/// A server whose host key is not known yet. All it can be asked for is a proof.
#[derive(Clone)]
pub struct Unproven {
    /// Where its SSH answers.
    pub address: SocketAddr,
    /// The login key of this server.
    pub login: Arc<PrivateKey>,
    /// The fleet.
    pub fleet: String,
    /// The server's name at Hetzner.
    pub server: String,
}

/// A server that proved its host key, which is to be pinned.
#[derive(Clone, Debug)]
pub struct Proven {
    /// The host key of the connection that the proof came over.
    pub host_key: HostKey,
    /// The key that proved it.
    pub by: ProofKind,
    /// What the guest told along with the proof.
    pub greeting: Answered<Greeting>,
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// A proof was given and does not fit: somebody else's server, or somebody in the middle.
    #[error("the host key {shown} came with a wrong proof")]
    Wrong {
        /// Fingerprint of the key that was shown.
        shown: String,
    },
    /// No proof of an acceptable kind was given.
    #[error("the host key {shown} came without an acceptable proof")]
    Missing {
        /// Fingerprint of the key that was shown.
        shown: String,
    },
    /// The guest could not be asked, or did not answer as it should.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

impl Accept {
    fn keys(&self) -> (Option<&SecretKey32>, Option<&SecretKey32>) {
        match self {
            Self::Boot(boot) => (Some(boot), None),
            Self::Resume(resume) => (None, Some(resume)),
            Self::Either { boot, resume } => (Some(boot), Some(resume)),
        }
    }
}

impl Unproven {
    /// Asks for a proof of the host key, with a fresh nonce.
    ///
    /// # Errors
    /// When there is no answer, or none that proves the host key of this very connection.
    pub async fn prove(&self, accept: &Accept, deadline: Duration) -> Result<Proven, ProofError> {
        let hello = Hello::new(Duration::ZERO, "");
        let call = Call {
            address: self.address,
            login: &self.login,
            expected: None,
            verb: Hello::VERB,
            stdin: hello.stdin().map_err(GuestError::Request)?,
        };
        let (host_key, answer) = exec(call, deadline).await.map_err(GuestError::from)?;
        let greeting: Answered<Greeting> = protocol::parse(&answer).map_err(GuestError::from)?;
        let by = self.judge(accept, hello.nonce(), &host_key, &greeting.answer)?;
        Ok(Proven {
            host_key,
            by,
            greeting,
        })
    }

    /// The same server with its proven host key.
    pub fn pinned(&self, host_key: HostKey) -> Pinned {
        Pinned {
            address: self.address,
            login: self.login.clone(),
            host_key,
        }
    }

    fn judge(
        &self,
        accept: &Accept,
        nonce: &str,
        host_key: &HostKey,
        greeting: &Greeting,
    ) -> Result<ProofKind, ProofError> {
        let message = proof_message(&self.fleet, &self.server, nonce, host_key);
        let (boot, resume) = accept.keys();
        let offered = [
            (ProofKind::Resume, resume, greeting.macs.resume),
            (ProofKind::Boot, boot, greeting.macs.boot),
        ];
        let shown = host_key.fingerprint().to_owned();
        let mut error = ProofError::Missing {
            shown: shown.clone(),
        };
        for (kind, key, mac) in offered {
            let (Some(key), Some(mac)) = (key, mac) else {
                continue;
            };
            if key.verify(&[message.as_bytes()], &mac) {
                return Ok(kind);
            }
            error = ProofError::Wrong {
                shown: shown.clone(),
            };
        }
        Err(error)
    }
}

/// What the proof covers: a purpose, whose server, the operator's nonce and the host key.
pub fn proof_message(fleet: &str, server: &str, nonce: &str, host_key: &HostKey) -> String {
    let host_key = hex::encode(host_key.blob_sha256());
    format!("{PURPOSE}\n{fleet}\n{server}\n{nonce}\n{host_key}")
}
