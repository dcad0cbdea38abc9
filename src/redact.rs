//! Takes known secrets out of text that somebody else wrote.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use secrecy::ExposeSecret as _;
use secrecy::zeroize::Zeroizing;

use crate::secret_files::SecretData;

/// What stands where a secret stood.
pub const REDACTED: &str = "[redacted]";
/// Shortest run of characters of a secret that is taken out.
const MIN_FRAGMENT: usize = 8;
/// Shortest secret that is taken out, where it stands as a word of its own.
const MIN_WORD: usize = 4;
/// How many Secrets of one instance are remembered.
const REMEMBERED: usize = 4;

/// `text` with every run of at least `shortest` characters that also stands in `secret` replaced, as a text may hold part of one only.
pub fn without_fragments(text: &str, secret: &str, shortest: usize) -> String {
    let mut marked = Marked::of(text);
    marked.fragments(secret, shortest);
    marked.finish()
}

/// The Secrets that an instance was seen with, each by the tag of the files that are made of it, the newest first.
///
/// An agent that was not given the newest yet, or went back, may still tell a former one.
#[derive(Clone, Debug, Default)]
pub struct KnownSecrets(Arc<Mutex<VecDeque<(String, SecretData)>>>);

impl KnownSecrets {
    /// Remembers a Secret.
    pub fn learn(&self, tag: &str, secret: SecretData) {
        let mut known = self.lock();
        known.retain(|(former, _)| former != tag);
        known.truncate(REMEMBERED - 1);
        known.push_front((tag.to_owned(), secret));
    }

    /// Whether one with this tag is remembered.
    pub fn knows(&self, tag: &str) -> bool {
        self.lock().iter().any(|(known, _)| known == tag)
    }

    /// What an agent that was given the Secrets of these tags has said, without any that is known; none if one of them is not.
    pub fn clean<'a>(
        &self,
        text: &str,
        given: impl IntoIterator<Item = &'a String>,
    ) -> Option<String> {
        if !given.into_iter().all(|tag| self.knows(tag)) {
            return None;
        }
        let mut marked = Marked::of(text);
        for (_, secret) in self.lock().iter() {
            for value in secret.values() {
                marked.value(value.expose_secret());
            }
        }
        Some(marked.finish())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(String, SecretData)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A text of which some is to be hidden.
struct Marked {
    text: Vec<char>,
    hidden: Vec<bool>,
}

impl Marked {
    fn of(text: &str) -> Self {
        let text: Vec<char> = text.chars().collect();
        let hidden = vec![false; text.len()];
        Self { text, hidden }
    }

    /// Hides a value, as it is and as programs write it into JSON and base64.
    fn value(&mut self, value: &[u8]) {
        let plain = Zeroizing::new(String::from_utf8_lossy(value).into_owned());
        self.word(plain.trim());
        self.fragments(&plain, MIN_FRAGMENT);
        // A text can always be written as JSON.
        let json = Zeroizing::new(serde_json::to_string(&*plain).unwrap_or_default());
        self.fragments(json.trim_matches('"'), MIN_FRAGMENT);
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            for form in in_base64(&engine, value) {
                self.fragments(&form, MIN_FRAGMENT);
            }
        }
    }

    fn fragments(&mut self, secret: &str, shortest: usize) {
        let Self { text, hidden } = self;
        let mut places: HashMap<&[char], Vec<usize>> = HashMap::new();
        for (at, part) in text.windows(shortest).enumerate() {
            places.entry(part).or_default().push(at);
        }
        let secret: Zeroizing<Vec<char>> = Zeroizing::new(secret.chars().collect());
        for part in secret.windows(shortest) {
            for at in places.remove(part).into_iter().flatten() {
                hidden[at..at + shortest].fill(true);
            }
        }
    }

    /// Hides a value too short for a fragment where nothing stands right beside it that words are made of.
    fn word(&mut self, secret: &str) {
        let Self { text, hidden } = self;
        let secret: Zeroizing<Vec<char>> = Zeroizing::new(secret.chars().collect());
        let length = secret.len();
        if !(MIN_WORD..MIN_FRAGMENT).contains(&length) {
            return;
        }
        let in_word = |at: Option<usize>| {
            let beside = at.and_then(|at| text.get(at));
            beside.is_some_and(|c| c.is_alphanumeric() || *c == '_')
        };
        for (at, part) in text.windows(length).enumerate() {
            if *part == **secret && !in_word(at.checked_sub(1)) && !in_word(Some(at + length)) {
                hidden[at..at + length].fill(true);
            }
        }
    }

    fn finish(self) -> String {
        let mut kept = String::with_capacity(self.text.len());
        let mut before = false;
        for (c, hidden) in self.text.into_iter().zip(self.hidden) {
            match (hidden, before) {
                (false, _) => kept.push(c),
                (true, false) => kept.push_str(REDACTED),
                (true, true) => {}
            }
            before = hidden;
        }
        kept
    }
}

/// The three forms that bytes can have in base64, by where they stand in something longer.
fn in_base64(engine: &GeneralPurpose, bytes: &[u8]) -> [Zeroizing<String>; 3] {
    [0, 1, 2].map(|skip| {
        let rest = bytes.get(skip..).unwrap_or_default();
        Zeroizing::new(engine.encode(&rest[..rest.len() / 3 * 3]))
    })
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn a_secret_goes_whole_or_in_part_and_what_only_resembles_it_stays() {
        let clean = |text| without_fragments(text, "sk-live-0123456789", 8);
        assert_eq!(clean("key sk-live-0123456789!"), "key [redacted]!");
        assert_eq!(clean("cut: 23456789"), "cut: [redacted]");
        assert_eq!(clean("sk-live is a prefix"), "sk-live is a prefix");
        assert_eq!(clean("sk-live-0123456789sk-live-01"), "[redacted]");
        assert_eq!(without_fragments("any", "", 8), "any");
    }

    fn secret(values: &[&str]) -> SecretData {
        let named = values.iter().enumerate();
        let data =
            named.map(|(nth, value)| (format!("KEY_{nth}"), value.as_bytes().to_vec().into()));
        data.collect()
    }

    fn tag(name: &str) -> [String; 1] {
        [name.to_owned()]
    }

    #[test]
    fn a_value_goes_in_each_form_that_programs_write_it_in() {
        let known = KnownSecrets::default();
        let value = "päss\"word\\0123";
        known.learn("now", secret(&[value, "hunter2\n", "yes"]));
        let clean = |text: &str| known.clean(text, &tag("now")).unwrap();
        assert_eq!(clean(&format!("is {value}!")), "is [redacted]!");
        let json = serde_json::json!({"password": value}).to_string();
        assert_eq!(clean(&json), r#"{"password":"[redacted]"}"#);
        for before in ["", "u:", "us:", "use:"] {
            let encoded = STANDARD.encode(format!("{before}{value}"));
            let cleaned = clean(&format!("Basic {encoded}"));
            assert!(cleaned.contains(REDACTED), "{cleaned}");
            assert!(
                cleaned.len() <= "Basic ".len() + REDACTED.len() + 12,
                "{cleaned}"
            );
        }
        assert_eq!(clean("login hunter2, no"), "login [redacted], no");
        assert_eq!(clean("hunter22 ahunter2"), "hunter22 ahunter2");
        assert_eq!(
            clean("yes"),
            "yes",
            "as a word it is too short to be told from others"
        );
    }

    #[test]
    fn former_values_go_too_and_nothing_is_told_of_an_agent_that_was_given_unknown_ones() {
        let known = KnownSecrets::default();
        assert_eq!(known.clean("any", &tag("first")), None);
        known.learn("first", secret(&["first-value"]));
        known.learn("second", secret(&["second-value"]));
        let said = "first-value second-value third-value";
        let cleaned = known.clean(said, &tag("first")).unwrap();
        assert_eq!(cleaned, "[redacted] [redacted] third-value");
        for number in 3..=6 {
            known.learn(&number.to_string(), secret(&["any-other-value"]));
        }
        assert_eq!(known.clean(said, &tag("first")), None, "it is forgotten");
        assert!(!format!("{known:?}").contains("any-other-value"));
    }
}
