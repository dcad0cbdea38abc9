//! Everything that is derived from the fleet's master key.
//!
//! One Secret is all that must be backed up: each key of each server comes from it by
//! HKDF-SHA-256 (RFC 5869) with `purpose NUL server name` as info, so nothing per instance is
//! ever written down, and no key tells anything about another. Nothing here prints a secret.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::private::Ed25519Keypair;
use secrecy::zeroize::{Zeroize, Zeroizing};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use sha2::Sha256;

/// The fewest bytes a master key may have.
pub const MIN_MASTER_KEY_BYTES: usize = 32;
const SALT: &[u8] = b"agentfleet master key v1";

/// Why key material was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// The master key is too short to be a key.
    #[error("the master key has {0} bytes, it needs at least {MIN_MASTER_KEY_BYTES}")]
    TooShort(usize),
    /// The fleet has no name.
    #[error("the master key Secret names no fleet")]
    NoFleet,
    /// Two versions of the master key have the same id: one of them is a copy.
    #[error("the master key {0} stands in the keyring twice")]
    Twice(String),
}

/// One version of the fleet's master key.
pub struct MasterKey {
    fleet: String,
    id: String,
    root: SecretKey32,
}

impl MasterKey {
    /// Takes the secret and the fleet's name from the master key Secret.
    ///
    /// # Errors
    /// When the secret is shorter than [`MIN_MASTER_KEY_BYTES`] or the fleet has no name.
    pub fn new(fleet: &str, secret: &[u8]) -> Result<Self, KeyError> {
        if fleet.is_empty() {
            return Err(KeyError::NoFleet);
        }
        if secret.len() < MIN_MASTER_KEY_BYTES {
            return Err(KeyError::TooShort(secret.len()));
        }
        let (mut extracted, _) = Hkdf::<Sha256>::extract(Some(SALT), secret);
        let root = SecretKey32::from_slice(&extracted);
        extracted.as_mut_slice().zeroize();
        let id = hex::encode(&root.expand("key id", fleet).bytes()[..8]);
        Ok(Self {
            fleet: fleet.to_owned(),
            id,
            root,
        })
    }

    /// The public id that servers carry as a label: 16 hex digits.
    ///
    /// It is derived like any other key, not a hash of the secret, so it gives no way to test
    /// guesses that the derived keys would not give as well.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The fleet this key belongs to.
    pub fn fleet(&self) -> &str {
        &self.fleet
    }

    /// The keys of one server, by its name at Hetzner.
    pub fn server_keys(&self, server: &str) -> ServerKeys {
        let seed = self.root.expand("ssh login", server);
        let mut login = PrivateKey::from(Ed25519Keypair::from_seed(seed.bytes()));
        login.set_comment("agentfleet");
        ServerKeys {
            login: Arc::new(login),
            boot_proof: self.root.expand("boot proof", server),
            resume_proof: self.root.expand("resume proof", server),
            tag: self.root.expand("tag", server),
        }
    }

    /// The one-time token with which a server posts its host key.
    pub fn phone_home_token(&self, server: &str) -> PhoneHomeToken {
        let secret = self.root.expand("phone home", server).to_hex();
        PhoneHomeToken {
            server: server.to_owned(),
            secret,
        }
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey")
            .field("fleet", &self.fleet)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The master key in all its versions: the current one for new servers, former ones for servers
/// that still carry their id.
#[derive(Debug)]
pub struct Keyring {
    current: MasterKey,
    former: Vec<MasterKey>,
}

impl Keyring {
    /// Puts the versions together.
    ///
    /// # Errors
    /// When two of them are the same key.
    pub fn new(current: MasterKey, former: Vec<MasterKey>) -> Result<Self, KeyError> {
        let mut seen = vec![current.id().to_owned()];
        for key in &former {
            if seen.iter().any(|id| id == key.id()) {
                return Err(KeyError::Twice(key.id().to_owned()));
            }
            seen.push(key.id().to_owned());
        }
        Ok(Self { current, former })
    }

    /// The fleet that all versions belong to.
    pub fn fleet(&self) -> &str {
        self.current.fleet()
    }

    /// The version that new servers get.
    pub fn current(&self) -> &MasterKey {
        &self.current
    }

    /// The version that a server's label names.
    pub fn by_id(&self, id: &str) -> Option<&MasterKey> {
        std::iter::once(&self.current)
            .chain(&self.former)
            .find(|key| key.id() == id)
    }

    /// Says whether any version of the master key made this token.
    pub fn accepts(&self, token: &PhoneHomeToken) -> bool {
        std::iter::once(&self.current)
            .chain(&self.former)
            .any(|key| key.phone_home_token(&token.server).matches(token))
    }
}

/// The keys that belong to one server.
#[derive(Clone)]
pub struct ServerKeys {
    /// The ed25519 key the operator logs in with.
    pub login: Arc<PrivateKey>,
    /// Proves the host key until it is pinned; travels in user-data.
    pub boot_proof: SecretKey32,
    /// Proves the host key when the pin was lost; sent with `configure`.
    pub resume_proof: SecretKey32,
    tag: SecretKey32,
}

impl ServerKeys {
    /// The public half of the login key, as a line for `authorized_keys`.
    pub fn login_public(&self) -> String {
        self.login.public_key().to_string()
    }

    /// What is published of a secret file instead of a hash: an HMAC in hex.
    pub fn tag(&self, path: &str, content: &[u8]) -> String {
        let length = (path.len() as u64).to_be_bytes();
        hex::encode(self.tag.mac(&[&length, path.as_bytes(), content]))
    }

    /// One tag over all secret files, from the path and tag of each; their order does not count.
    pub fn secrets_tag<'a>(&self, files: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
        let sorted: BTreeSet<(&str, &str)> = files.into_iter().collect();
        let list: Vec<String> = sorted
            .iter()
            .map(|(path, tag)| format!("{tag} {path}"))
            .collect();
        // No file's path is empty, so this is no file's tag.
        self.tag("", list.join("\0").as_bytes())
    }
}

impl fmt::Debug for ServerKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerKeys").finish_non_exhaustive()
    }
}

/// A secret of 32 bytes for HMAC-SHA-256, wiped when dropped.
pub struct SecretKey32(SecretBox<[u8; 32]>);

impl SecretKey32 {
    /// Takes bytes that are 32 by construction; a shorter slice is filled up with zeroes.
    fn from_slice(bytes: &[u8]) -> Self {
        Self(SecretBox::init_with_mut(|key: &mut [u8; 32]| {
            for (to, from) in key.iter_mut().zip(bytes) {
                *to = *from;
            }
        }))
    }

    /// The key for one purpose and server, by HKDF-Expand.
    fn expand(&self, purpose: &str, server: &str) -> Self {
        let info = [purpose.as_bytes(), b"\0", server.as_bytes()];
        Self(SecretBox::init_with_mut(|key: &mut [u8; 32]| {
            // Both lengths are SHA-256's own, for which neither step has an error.
            let made = Hkdf::<Sha256>::from_prk(self.bytes())
                .map(|hkdf| hkdf.expand_multi_info(&info, key));
            debug_assert!(matches!(made, Ok(Ok(()))));
        }))
    }

    fn bytes(&self) -> &[u8; 32] {
        self.0.expose_secret()
    }

    fn hmac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        // RFC 2104 fills a short key up with zeroes; a whole block has no error to handle.
        let mut block = Zeroizing::new([0; 64]);
        block[..32].copy_from_slice(self.bytes());
        let mut hmac = Hmac::<Sha256>::new((&*block).into());
        for part in parts {
            hmac.update(part);
        }
        hmac
    }

    /// HMAC-SHA-256 over the parts one after the other.
    pub fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.hmac(parts).finalize().into_bytes().into()
    }

    /// Compares in constant time.
    pub fn verify(&self, parts: &[&[u8]], mac: &[u8; 32]) -> bool {
        self.hmac(parts).verify_slice(mac).is_ok()
    }

    /// The key as 64 hex digits, for the one place it is sent to.
    pub fn to_hex(&self) -> SecretString {
        hex::encode(self.bytes()).into()
    }
}

impl Clone for SecretKey32 {
    fn clone(&self) -> Self {
        Self::from_slice(self.bytes())
    }
}

impl fmt::Debug for SecretKey32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey32([REDACTED])")
    }
}

/// What a server shows once to post its host key: its name and a secret.
///
/// The name makes finding the server cheap; the secret alone is what counts.
pub struct PhoneHomeToken {
    server: String,
    secret: SecretString,
}

impl PhoneHomeToken {
    /// Reads `<server name>.<64 hex digits>`; anything else is no token.
    pub fn parse(text: &str) -> Option<Self> {
        let (server, secret) = text.split_once('.')?;
        let hex_digits = secret.len() == 64 && secret.bytes().all(|b| b.is_ascii_hexdigit());
        let host_name = server
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !hex_digits || !host_name || !(1..=63).contains(&server.len()) {
            return None;
        }
        Some(Self {
            server: server.to_owned(),
            secret: secret.into(),
        })
    }

    /// The name of the server that the token speaks for, if it is genuine.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The text that stands in the URL.
    pub fn expose(&self) -> SecretString {
        format!("{}.{}", self.server, self.secret.expose_secret()).into()
    }

    /// Compares the secrets in constant time.
    fn matches(&self, shown: &Self) -> bool {
        let key = SecretKey32::from_slice(b"phone home token comparison key!");
        let mac = key.mac(&[shown.secret.expose_secret().as_bytes()]);
        self.server == shown.server && key.verify(&[self.secret.expose_secret().as_bytes()], &mac)
    }
}

impl fmt::Debug for PhoneHomeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PhoneHomeToken")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"a master key of thirty-two bytes";

    fn key() -> MasterKey {
        MasterKey::new("fleet-1", SECRET).unwrap()
    }

    #[test]
    fn a_short_master_key_or_an_unnamed_fleet_is_refused() {
        let error = MasterKey::new("fleet-1", &SECRET[..31]).unwrap_err();
        assert_eq!(error, KeyError::TooShort(31));
        assert_eq!(MasterKey::new("", SECRET).unwrap_err(), KeyError::NoFleet);
    }

    #[test]
    fn derived_keys_never_change_between_releases() {
        // Computed by another implementation of RFC 5869 and RFC 8032. Another value would lock
        // the operator out of every living server.
        let keys = key().server_keys("web-abc-1");
        assert_eq!(key().id(), "30d21eaf77ffe1df");
        assert_eq!(
            keys.login_public(),
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGA1xe85xAWJ+RpwWZQvUWqX4sWYLVmqRLv488l0cZ+/ agentfleet"
        );
        assert_eq!(
            keys.boot_proof.to_hex().expose_secret(),
            "c03511b51a0901bcb8637ba8fb9ef8e35cc0aa7864c76cd3d82f8ebde1bb1e8f"
        );
        assert_eq!(
            keys.resume_proof.to_hex().expose_secret(),
            "459ab92e50548a2ea511856f0aebebd081e4f5280a0ba466b599dbb51a5bca79"
        );
        assert_eq!(
            keys.tag("/a", b"x"),
            "4d62ea9e39aea65e67eb13b15e86ea0191ea2f3d046f65ca57c9b7e100fba990"
        );
    }

    #[test]
    fn every_server_purpose_and_master_key_has_keys_of_its_own() {
        let other = MasterKey::new("fleet-1", b"another master key, also 32 bytes").unwrap();
        let all = [
            key().server_keys("a-1"),
            key().server_keys("a-2"),
            other.server_keys("a-1"),
        ];
        let mut seen: Vec<String> = Vec::new();
        for keys in &all {
            seen.push(keys.login_public());
            seen.push(keys.boot_proof.to_hex().expose_secret().to_owned());
            seen.push(keys.resume_proof.to_hex().expose_secret().to_owned());
            seen.push(keys.tag("/a", b"x"));
        }
        let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len());
    }

    #[test]
    fn a_tag_binds_content_to_its_path() {
        let keys = key().server_keys("a-1");
        assert_eq!(keys.tag("/a", b"bc"), keys.tag("/a", b"bc"));
        assert_ne!(keys.tag("/a", b"bc"), keys.tag("/ab", b"c"));
        assert_ne!(keys.tag("/a", b"bc"), keys.tag("/a", b"bd"));
    }

    #[test]
    fn the_tag_over_all_files_changes_with_any_of_them_and_not_with_their_order() {
        let keys = key().server_keys("a-1");
        let both = keys.secrets_tag([("/a", "01"), ("/b", "02")]);
        assert_eq!(both, keys.secrets_tag([("/b", "02"), ("/a", "01")]));
        assert_ne!(both, keys.secrets_tag([("/a", "02"), ("/b", "01")]));
        assert_ne!(both, keys.secrets_tag([("/a", "01")]));
        assert_ne!(keys.secrets_tag([]), keys.tag("/a", b""));
    }

    #[test]
    fn a_phone_home_token_is_accepted_from_its_url_form_only_when_unchanged() {
        let ring = Keyring::new(key(), vec![]).unwrap();
        let text = key().phone_home_token("web-abc-1").expose();
        let text = text.expose_secret();
        let token = PhoneHomeToken::parse(text).unwrap();
        assert_eq!(token.server(), "web-abc-1");
        assert!(ring.accepts(&token));
        let stolen = text.replace("web-abc-1", "web-abc-2");
        assert!(!ring.accepts(&PhoneHomeToken::parse(&stolen).unwrap()));
        for broken in [
            "",
            ".",
            "web-abc-1",
            &text[1 + 9..],
            &text[..text.len() - 1],
            "a/b.00",
        ] {
            assert!(PhoneHomeToken::parse(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn a_former_master_key_still_serves_the_servers_that_carry_its_id() {
        let next = MasterKey::new("fleet-1", b"another master key, also 32 bytes").unwrap();
        let old_id = key().id().to_owned();
        let old_token = key().phone_home_token("a-1");
        let ring = Keyring::new(next, vec![key()]).unwrap();
        assert_eq!(ring.by_id(&old_id).unwrap().id(), old_id);
        assert_ne!(ring.current().id(), old_id);
        assert!(ring.accepts(&old_token));
        assert!(ring.by_id("0000000000000000").is_none());
        assert_eq!(
            Keyring::new(key(), vec![key()]).unwrap_err(),
            KeyError::Twice(old_id)
        );
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let keys = key().server_keys("a-1");
        let token = key().phone_home_token("a-1");
        let shown = format!("{:?} {keys:?} {:?} {token:?}", key(), keys.boot_proof);
        let canaries = [
            keys.boot_proof.to_hex(),
            keys.resume_proof.to_hex(),
            token.secret.clone(),
            hex::encode(SECRET).into(),
        ];
        for canary in canaries {
            assert!(!shown.contains(canary.expose_secret()));
        }
        assert!(!shown.contains("a master key"));
    }
}
