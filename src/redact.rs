//! Takes known secrets out of text that somebody else wrote.

/// What stands where a secret stood.
pub const REDACTED: &str = "[redacted]";

/// `text` with every run of at least `shortest` characters that also stands in `secret` replaced, as a text may hold part of one only.
pub fn without_fragments(text: &str, secret: &str, shortest: usize) -> String {
    let text: Vec<char> = text.chars().collect();
    let secret: Vec<char> = secret.chars().collect();
    let mut kept = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(c) = text.get(at) {
        let length = fragment_length(&text[at..], &secret);
        if length >= shortest {
            kept.push_str(REDACTED);
            at += length;
        } else {
            kept.push(*c);
            at += 1;
        }
    }
    kept
}

/// How many of the first characters of `text` stand in a row somewhere in `secret`.
fn fragment_length(text: &[char], secret: &[char]) -> usize {
    let common = |from: usize| {
        let pairs = text.iter().zip(&secret[from..]);
        pairs.take_while(|(a, b)| a == b).count()
    };
    (0..secret.len()).map(common).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_goes_whole_or_in_part_and_what_only_resembles_it_stays() {
        let clean = |text| without_fragments(text, "sk-live-0123456789", 8);
        assert_eq!(clean("key sk-live-0123456789!"), "key [redacted]!");
        assert_eq!(clean("cut: 23456789"), "cut: [redacted]");
        assert_eq!(clean("sk-live is a prefix"), "sk-live is a prefix");
        assert_eq!(
            clean("sk-live-0123456789sk-live-01"),
            "[redacted][redacted]"
        );
        assert_eq!(without_fragments("any", "", 8), "any");
    }
}
