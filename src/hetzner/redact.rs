//! Makes text of the API fit for logs, conditions and events.
//!
//! Messages of the API have been seen to quote the first half of a token (`Limit of '3600' requests
//! per hour for token '6MWq…' reached.`). So every text passes here before it is kept.

use crate::redact::{REDACTED, without_fragments};

/// Longest message kept, in characters.
const MAX_CHARS: usize = 300;
/// Shortest run of characters of the token that counts as part of it.
const MIN_FRAGMENT: usize = 6;
/// Letters and digits in a row from which a word looks like a secret, whoever's it is.
const SECRET_LENGTH: usize = 20;
const QUOTES: [char; 6] = ['\'', '"', '`', '‘', '“', '´'];

/// `text` without control characters, without any part of `token` or of a token quoted in it, and
/// at most 300 characters long.
pub(super) fn redact(text: &str, token: &str) -> String {
    let text = without_controls(text);
    let text = without_fragments(&text, token, MIN_FRAGMENT);
    let text = without_quoted_tokens(&text);
    let text = without_secrets(&text);
    shortened(&text)
}

fn without_controls(text: &str) -> String {
    let visible = text.chars().filter_map(|c| match c {
        '\n' | '\r' | '\t' => Some(' '),
        // Direction marks and zero-width characters make a terminal show another text.
        '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}'
        | '\u{feff}' => None,
        c if c.is_control() => None,
        c => Some(c),
    });
    visible.collect()
}

/// Replaces what stands in quotes after the word `token`.
fn without_quoted_tokens(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = find_word_token(rest) {
        let (before, after) = rest.split_at(start);
        kept.push_str(before);
        let value = after.trim_start_matches([' ', ':', '=']);
        let Some(quoted) = value.strip_prefix(QUOTES) else {
            rest = after;
            continue;
        };
        kept.push(' ');
        kept.push_str(REDACTED);
        let end = quoted.find(['\'', '"', '`', '’', '”', '´']);
        rest = end.map_or("", |end| {
            quoted[end..].trim_start_matches(['\'', '"', '`', '’', '”', '´'])
        });
    }
    kept + rest
}

/// The byte after the first word `token` or `tokens`, in any case.
fn find_word_token(text: &str) -> Option<usize> {
    let start = text.to_ascii_lowercase().find("token")?;
    Some(start + "token".len())
}

/// Replaces words too long and too random for prose.
fn without_secrets(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let run = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        if run.len() >= SECRET_LENGTH {
            kept.push_str(REDACTED);
            kept.push_str(&word[run.len()..]);
        } else {
            kept.push_str(word);
        }
    }
    kept
}

fn shortened(text: &str) -> String {
    let text = text.trim();
    if text.chars().count() <= MAX_CHARS {
        return text.to_owned();
    }
    let cut: String = text.chars().take(MAX_CHARS - 1).collect();
    cut + "…"
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TOKEN: &str = "6MWq3U8cTn2bXr7kLp0vZy4hGd9sFw1jQe5aBm6uCi8oRt3xKz7nHv2yPl4gJd9";

    #[test]
    fn fragment_of_the_own_token_is_removed() {
        let message = format!(
            "Limit of '3600' requests per hour for {} reached.",
            &TOKEN[..32]
        );
        assert_eq!(
            redact(&message, TOKEN),
            "Limit of '3600' requests per hour for [redacted] reached."
        );
    }

    #[test]
    fn quoted_token_of_somebody_else_is_removed() {
        let cleaned = redact("for token 'abcDEF1…' reached", "unrelated");
        assert_eq!(cleaned, "for token [redacted] reached");
        assert_eq!(
            redact("token: \"ab\" x token=`cd", "unrelated"),
            "token [redacted] x token [redacted]"
        );
        assert_eq!(
            redact("the token is invalid", "unrelated"),
            "the token is invalid"
        );
    }

    #[test]
    fn long_random_word_is_removed() {
        assert_eq!(
            redact("bad Abcdefghij0123456789, go", "unrelated"),
            "bad [redacted], go"
        );
    }

    #[test]
    fn controls_are_stripped_and_length_is_bounded() {
        assert_eq!(redact("a\u{1b}[31m\nb\u{202e}c\0", ""), "a[31m bc");
        assert_eq!(redact(&"é ".repeat(400), "").chars().count(), 300);
    }

    proptest! {
        #[test]
        fn no_part_of_the_token_survives(before in ".{0,40}", after in ".{0,40}", from in 0usize..57, length in 6usize..64) {
            let end = (from + length).min(TOKEN.len());
            let cleaned = redact(&format!("{before}{}{after}", &TOKEN[from..end]), TOKEN);
            for start in 0..=TOKEN.len() - 6 {
                prop_assert!(!cleaned.contains(&TOKEN[start..start + 6]));
            }
            prop_assert!(cleaned.chars().count() <= 300);
            prop_assert!(!cleaned.chars().any(char::is_control));
        }
    }
}
