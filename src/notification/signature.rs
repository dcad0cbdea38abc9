//! Signatures of events, as Standard Webhooks has them: HMAC-SHA-256 over id, time and body.
//!
//! Source: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>. Several keys make several signatures, of
//! which a receiver needs one: so that a key can be exchanged.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{
    ExposeSecret as _, ExposeSecretMut as _, SecretBox, SecretString, zeroize::Zeroizing,
};
use sha2::Sha256;

/// How a key begins in its usual written form.
const PREFIX: &str = "whsec_";
/// Bytes of a key, least and most.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;
/// While a key is exchanged there are two.
const MOST_KEYS: usize = 4;

/// The keys that events are signed with.
#[derive(Debug)]
pub struct SigningKeys(Vec<SecretBox<[u8; 64]>>);

/// Why a text holds no keys; says nothing of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// None, or too many.
    #[error(
        "it must hold one key, or up to {MOST_KEYS} in lines of their own while keys are exchanged"
    )]
    Count,
    /// One is not base64.
    #[error("a key must be base64, with or without {PREFIX} before it")]
    NotBase64,
    /// One has too few or too many bytes.
    #[error("a key must have 24 to 64 bytes, as `openssl rand -base64 32` makes them")]
    Length,
}

impl SigningKeys {
    /// Reads keys, one in each line, as base64 with or without `whsec_` before it.
    ///
    /// # Errors
    /// When there is none, or one is unfit.
    pub fn parse(text: &SecretString) -> Result<Self, InvalidKeys> {
        let keys: Vec<_> = text
            .expose_secret()
            .split_whitespace()
            .map(parse_key)
            .collect::<Result<_, _>>()?;
        if (1..=MOST_KEYS).contains(&keys.len()) {
            Ok(Self(keys))
        } else {
            Err(InvalidKeys::Count)
        }
    }

    /// The value of `webhook-signature` for a body that is sent under an id at a time, in seconds since 1970.
    pub fn sign(&self, id: &str, time: i64, body: &[u8]) -> String {
        let sign = |key: &SecretBox<[u8; 64]>| {
            let mut hmac = Hmac::<Sha256>::new(key.expose_secret().into());
            hmac.update(format!("{id}.{time}.").as_bytes());
            hmac.update(body);
            format!(
                "v1,{}",
                BASE64_STANDARD.encode(hmac.finalize().into_bytes())
            )
        };
        self.0.iter().map(sign).collect::<Vec<_>>().join(" ")
    }
}

/// A key of at most one block; RFC 2104 fills it up with zeroes.
fn parse_key(word: &str) -> Result<SecretBox<[u8; 64]>, InvalidKeys> {
    let word = word.strip_prefix(PREFIX).unwrap_or(word);
    let decoded = BASE64_STANDARD.decode(word);
    let bytes = Zeroizing::new(decoded.map_err(|_| InvalidKeys::NotBase64)?);
    if !LENGTHS.contains(&bytes.len()) {
        return Err(InvalidKeys::Length);
    }
    let mut block = SecretBox::new(Box::new([0; 64]));
    block.expose_secret_mut()[..bytes.len()].copy_from_slice(&bytes);
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn keys(text: &str) -> Result<SigningKeys, InvalidKeys> {
        SigningKeys::parse(&text.into())
    }

    #[test]
    fn a_signature_is_the_one_that_standard_webhooks_libraries_are_tested_with() {
        let sign = |key| {
            keys(key).unwrap().sign(
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                br#"{"test": 2432232314}"#,
            )
        };
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(sign(KEY), expected);
        assert_eq!(sign(KEY.trim_start_matches(PREFIX)), expected);
    }

    #[test]
    fn two_keys_make_two_signatures() {
        let (old, new) = (KEY, "C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
        let both = keys(&format!("{new}\n{old}\n"))
            .unwrap()
            .sign("a", 1, b"{}");
        let one = |key| keys(key).unwrap().sign("a", 1, b"{}");
        assert_eq!(both, format!("{} {}", one(new), one(old)));
    }

    #[test]
    fn an_unfit_key_is_refused_without_a_word_of_it() {
        for (text, expected) in [
            ("", InvalidKeys::Count),
            ("whsec_not base64!", InvalidKeys::NotBase64),
            ("c2hvcnQ=", InvalidKeys::Length),
        ] {
            assert_eq!(keys(text).map(|_| ()), Err(expected));
        }
        assert!(!format!("{:?}", keys(KEY)).contains("MfKQ"));
    }
}
