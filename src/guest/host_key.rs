//! The host key of a server: the one thing that tells it from an impostor.
//!
//! Only ed25519 is known here. A second algorithm would give a server two identities, of which
//! only one is pinned.

use std::fmt;
use std::str::FromStr;

use russh::keys::{Algorithm, HashAlg, PublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// An ed25519 host key; as text `ssh-ed25519 <base64>`, without a comment.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostKey {
    line: String,
    blob: Vec<u8>,
    fingerprint: String,
}

/// The text is no ed25519 public key in OpenSSH form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an ssh-ed25519 public key")]
pub struct NotAHostKey;

impl HostKey {
    /// Takes a key that a server showed.
    ///
    /// # Errors
    /// When it is not ed25519.
    pub fn from_public(key: &PublicKey) -> Result<Self, NotAHostKey> {
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(NotAHostKey);
        }
        let bare = PublicKey::from(key.key_data().clone());
        Ok(Self {
            line: bare.to_openssh().map_err(|_| NotAHostKey)?,
            blob: bare.to_bytes().map_err(|_| NotAHostKey)?,
            fingerprint: bare.fingerprint(HashAlg::Sha256).to_string(),
        })
    }

    /// The fingerprint as `ssh-keygen -l` prints it: `SHA256:…`.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// SHA-256 of the key blob (RFC 4253, section 6.6), which the guest's proof covers.
    pub fn blob_sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.blob).into()
    }
}

impl FromStr for HostKey {
    type Err = NotAHostKey;

    fn from_str(line: &str) -> Result<Self, NotAHostKey> {
        let key = PublicKey::from_openssh(line.trim()).map_err(|_| NotAHostKey)?;
        Self::from_public(&key)
    }
}

impl TryFrom<String> for HostKey {
    type Error = NotAHostKey;

    fn try_from(line: String) -> Result<Self, NotAHostKey> {
        line.parse()
    }
}

impl From<HostKey> for String {
    fn from(key: HostKey) -> Self {
        key.line
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey({})", self.fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio";
    const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDI";

    #[test]
    fn a_host_key_is_its_line_without_comment() {
        let key: HostKey = format!("{LINE} root@agent-1\n").parse().unwrap();
        assert_eq!(key.to_string(), LINE);
        assert_eq!(key, LINE.parse().unwrap());
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<HostKey>(&json).unwrap(), key);
        assert!(key.fingerprint().starts_with("SHA256:"));
    }

    #[test]
    fn nothing_but_an_ed25519_key_is_a_host_key() {
        for line in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            RSA,
            "garbage \u{1b}[0m",
        ] {
            assert_eq!(line.parse::<HostKey>(), Err(NotAHostKey), "{line}");
        }
    }
}
