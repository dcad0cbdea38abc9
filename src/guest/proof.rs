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
use super::answers::Greeting;
use super::host_key::HostKey;
use super::line::Line;
use super::protocol::{self, Answered, Command, Hello};
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
#[derive(Debug)]
pub struct Proven {
    /// The host key of the connection that the proof came over.
    pub host_key: HostKey,
    /// That connection.
    pub line: Line,
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
        let asked = exec(call, None, None, deadline).await;
        let (line, answer) = asked.map_err(GuestError::from)?;
        let host_key = line.host_key().clone();
        let greeting: Answered<Greeting> = protocol::parse(&answer).map_err(GuestError::from)?;
        let by = self.judge(accept, hello.nonce(), &host_key, &greeting.answer)?;
        Ok(Proven {
            host_key,
            line,
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

#[cfg(test)]
mod tests {
    use super::super::stand_in::*;
    use super::*;
    use crate::keys::ServerKeys;
    use std::sync::Mutex;

    fn unproven(at: SocketAddr) -> Unproven {
        Unproven {
            address: at,
            login: keys().login,
            fleet: FLEET.into(),
            server: SERVER.into(),
        }
    }

    fn boot() -> Accept {
        Accept::Boot(keys().boot_proof)
    }

    fn either() -> Accept {
        let ServerKeys {
            boot_proof: boot,
            resume_proof: resume,
            ..
        } = keys();
        Accept::Either { boot, resume }
    }

    /// A genuine guest that can make the named proofs.
    async fn genuine(kinds: &'static [&'static str]) -> StandIn {
        let private = host_key();
        let public = HostKey::from_public(private.public_key()).unwrap();
        let host_keys = vec![private];
        Options {
            host_keys,
            ..Options::new()
        }
        .start(move |act| answer(&greeting(&nonce(act), &public, kinds)))
        .await
    }

    fn answer(value: &serde_json::Value) -> Reply {
        Reply::Answer(value.to_string().into_bytes())
    }

    fn only_hellos(at: &StandIn) -> bool {
        at.acts().iter().all(|(verb, _)| verb == "hello")
    }

    #[tokio::test]
    async fn a_genuine_guest_proves_the_key_of_its_connection() {
        let guest = genuine(&["boot"]).await;
        let proven = unproven(guest.address)
            .prove(&boot(), DEADLINE)
            .await
            .unwrap();
        assert_eq!(proven.host_key, guest.host_key);
        assert_eq!(proven.by, ProofKind::Boot);
        assert_eq!(proven.greeting.answer.server, SERVER);
    }

    #[tokio::test]
    async fn only_the_accepted_kinds_of_proof_count() {
        let resume = || Accept::Resume(keys().resume_proof);
        let table: [(&[&str], Accept, Option<ProofKind>); 6] = [
            (&["boot"], resume(), None),
            (&["resume"], boot(), None),
            (&[], either(), None),
            (&["boot", "resume"], resume(), Some(ProofKind::Resume)),
            (&["boot", "resume"], either(), Some(ProofKind::Resume)),
            (&["boot"], either(), Some(ProofKind::Boot)),
        ];
        for (kinds, accept, expected) in table {
            let guest = genuine(kinds).await;
            let outcome = unproven(guest.address).prove(&accept, DEADLINE).await;
            match (outcome, expected) {
                (Ok(proven), Some(by)) => assert_eq!(proven.by, by),
                (Err(ProofError::Missing { shown }), None) => {
                    assert_eq!(shown, guest.host_key.fingerprint());
                }
                (outcome, expected) => panic!("{kinds:?}: {outcome:?}, not {expected:?}"),
            }
        }
    }

    #[tokio::test]
    async fn somebody_in_the_middle_who_relays_the_hello_proves_nothing() {
        // He passes the operator's nonce on to the real guest, as if he could log in there, and
        // gives its true answer back: it covers the real host key, not his.
        let real = HostKey::from_public(host_key().public_key()).unwrap();
        let middle = Options {
            accepts: None,
            ..Options::new()
        }
        .start(move |act| answer(&greeting(&nonce(act), &real, &["boot", "resume"])))
        .await;
        let error = unproven(middle.address)
            .prove(&either(), DEADLINE)
            .await
            .unwrap_err();
        let ProofError::Wrong { shown } = error else {
            panic!("{error:?}");
        };
        assert_eq!(shown, middle.host_key.fingerprint());
        assert!(only_hellos(&middle) && middle.acts().len() == 1);
    }

    #[tokio::test]
    async fn an_old_answer_replayed_proves_nothing() {
        let first = Mutex::new(None);
        let private = host_key();
        let public = HostKey::from_public(private.public_key()).unwrap();
        let host_keys = vec![private];
        let guest = Options {
            host_keys,
            ..Options::new()
        }
        .start(move |act| {
            let mut first = first.lock().unwrap();
            let made = || greeting(&nonce(act), &public, &["boot"]);
            answer(first.get_or_insert_with(made))
        })
        .await;
        let target = unproven(guest.address);
        target.prove(&boot(), DEADLINE).await.unwrap();
        let error = target.prove(&boot(), DEADLINE).await.unwrap_err();
        assert!(matches!(error, ProofError::Wrong { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn another_server_of_the_fleet_does_not_pass_for_this_one() {
        let guest = genuine(&["boot"]).await;
        let mut target = unproven(guest.address);
        target.server = "a-2".into();
        let error = target.prove(&boot(), DEADLINE).await.unwrap_err();
        assert!(matches!(error, ProofError::Wrong { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_babbling_or_absent_server_is_no_wrong_proof() {
        let babbling = StandIn::new(|_| Reply::Answer(b"{}".to_vec())).await;
        for address in [babbling.address, dead_address().await] {
            let error = unproven(address)
                .prove(&boot(), DEADLINE)
                .await
                .unwrap_err();
            assert!(matches!(error, ProofError::Guest(_)), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_proven_server_is_pinned_to_the_key_that_it_proved() {
        let guest = genuine(&["boot"]).await;
        let target = unproven(guest.address);
        let proven = target.prove(&boot(), DEADLINE).await.unwrap();
        let hello = Hello::new(Duration::ZERO, "1");
        let pinned = target.pinned(proven.host_key);
        assert!(pinned.run(&hello, DEADLINE).await.is_ok());
    }
}
