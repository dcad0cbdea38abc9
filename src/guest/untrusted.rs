//! Text, lists and numbers that come from a server, made harmless before anything else sees them.
//!
//! What a guest says ends in conditions, events and logs. It may have been written by whoever
//! took the server over: so no string here holds a control character or is longer than its
//! bound, and no list grows without one.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

/// The longest string taken from a guest, in characters; the rest is cut off.
pub const MAX_TEXT: usize = 1024;
/// The most entries of a map taken from a guest.
pub const MAX_ENTRIES: usize = 256;

/// A string without control characters, of at most [`MAX_TEXT`] characters.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(String);

impl Text {
    /// Cleans and cuts a string.
    pub fn new(raw: &str) -> Self {
        Self(raw.chars().filter(|c| !hides(*c)).take(MAX_TEXT).collect())
    }

    /// The cleaned string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Says whether a character could change how the text around it is shown: C0 and C1 controls,
/// line and paragraph separators, marks that turn the direction of writing, and zero-width ones.
fn hides(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{61c}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(&String::deserialize(deserializer)?))
    }
}

/// The last `MAX` entries of a list: of a log, the end is what matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> Default for Last<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MAX: usize> std::ops::Deref for Last<T, MAX> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<const MAX: usize> Last<Text, MAX> {
    /// All lines as one, for a message.
    pub fn line(&self) -> String {
        let lines: Vec<&str> = self.0.iter().map(Text::as_str).collect();
        lines.join(" | ")
    }
}

/// The end of a text, of at most so many bytes.
pub fn end_of(text: &str, bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..]
}

impl<T, const MAX: usize> IntoIterator for Last<T, MAX> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Last<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(LastVisitor(PhantomData))
    }
}

struct LastVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for LastVisitor<T, MAX> {
    type Value = Last<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut kept = std::collections::VecDeque::new();
        while let Some(entry) = list.next_element()? {
            if kept.len() == MAX {
                kept.pop_front();
            }
            kept.push_back(entry);
        }
        Ok(Last(kept.into()))
    }
}

/// Reads a map of texts, of which entries beyond [`MAX_ENTRIES`] are ignored.
///
/// # Errors
/// When it is no map of strings.
pub fn text_map<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<Text, Text>, D::Error> {
    struct Texts;

    impl<'de> Visitor<'de> for Texts {
        type Value = BTreeMap<Text, Text>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of strings")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut kept = BTreeMap::new();
            while kept.len() < MAX_ENTRIES {
                let Some((key, value)) = map.next_entry()? else {
                    return Ok(kept);
                };
                kept.insert(key, value);
            }
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(kept)
        }
    }

    from.deserialize_map(Texts)
}

/// Reads 32 bytes from 64 hex digits.
///
/// # Errors
/// When it is anything else.
pub fn hex32<'de, D: Deserializer<'de>>(from: D) -> Result<Option<[u8; 32]>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else {
        return Ok(None);
    };
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes)
        .map_err(|_| serde::de::Error::custom("not 64 hex digits"))?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_end_of_a_long_list_is_kept() {
        let list: Last<u32, 3> = serde_json::from_str("[1,2,3,4,5]").unwrap();
        assert_eq!(&*list, [3, 4, 5]);
    }

    #[test]
    fn a_text_cannot_colour_a_terminal_or_turn_its_line_around() {
        let text = Text::new("ok\u{1b}[31m\r\nREADY \u{202e}desrever\u{9b}2J\u{200b}\u{0}");
        assert_eq!(text, "ok[31mREADY desrever2J");
    }

    #[test]
    fn a_map_with_too_many_entries_keeps_its_bound() {
        let many: BTreeMap<String, String> =
            (0..1000).map(|n| (n.to_string(), n.to_string())).collect();
        let json = serde_json::to_string(&many).unwrap();
        let kept = text_map(&mut serde_json::Deserializer::from_str(&json)).unwrap();
        assert_eq!(kept.len(), MAX_ENTRIES);
    }

    proptest! {
        #[test]
        fn no_text_holds_a_control_character_or_grows_beyond_its_bound(raw in any::<String>()) {
            let text = Text::new(&raw.repeat(50));
            prop_assert!(text.as_str().chars().count() <= MAX_TEXT);
            prop_assert!(!text.as_str().chars().any(char::is_control));
        }
    }
}
