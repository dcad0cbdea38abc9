//! Labels: their syntax, and the selectors that choose by them.
//!
//! Every form of Hetzner's selector language is understood: `k=v`, `k==v`, `k!=v`, `k`, `!k`,
//! `k in (a,b)`, `k notin (a,b)`, joined by commas.

use std::collections::BTreeMap;

use crate::error::ApiError;

/// The labels of one resource.
pub(crate) type Labels = BTreeMap<String, String>;

/// A parsed selector: all of its requirements must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    Present(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

impl Selector {
    /// Parses a selector; an error names the field `label_selector`.
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        split_outside_parentheses(text)
            .into_iter()
            .map(|part| Requirement::parse(part.trim()))
            .collect::<Option<Vec<_>>>()
            .map(Self)
            .ok_or_else(|| ApiError::invalid("label_selector", "label selector is invalid"))
    }

    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn parse(text: &str) -> Option<Self> {
        if let Some((key, list)) = text.split_once(" notin ") {
            return Some(Self::NotIn(key_of(key)?, values_of(list)?));
        }
        if let Some((key, list)) = text.split_once(" in ") {
            return Some(Self::In(key_of(key)?, values_of(list)?));
        }
        if let Some((key, value)) = text.split_once("!=") {
            return Some(Self::NotIn(key_of(key)?, vec![value_of(value)?]));
        }
        if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            return Some(Self::In(key_of(key)?, vec![value_of(value)?]));
        }
        match text.strip_prefix('!') {
            Some(key) => Some(Self::Absent(key_of(key)?)),
            None => Some(Self::Present(key_of(text)?)),
        }
    }

    fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::Present(key) => labels.contains_key(key),
            Self::Absent(key) => !labels.contains_key(key),
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
        }
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut from, mut depth) = (Vec::new(), 0, 0_i32);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

fn key_of(text: &str) -> Option<String> {
    let key = text.trim();
    is_key(key).then(|| key.to_owned())
}

fn value_of(text: &str) -> Option<String> {
    let value = text.trim();
    is_value(value).then(|| value.to_owned())
}

fn values_of(list: &str) -> Option<Vec<String>> {
    let inner = list.trim().strip_prefix('(')?.strip_suffix(')')?;
    inner.split(',').map(value_of).collect()
}

/// Whether `key` is a label key: `[prefix/]name`.
pub(crate) fn is_key(key: &str) -> bool {
    match key.rsplit_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_name(name),
        None => is_name(key),
    }
}

/// Whether `value` is a label value: empty, or a name.
pub(crate) fn is_value(value: &str) -> bool {
    value.is_empty() || is_name(value)
}

fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63
        && text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|c| plain(c) || "-_.".contains(c))
}

fn is_dns_subdomain(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// Refuses labels that the API would refuse.
pub(crate) fn check(labels: &Labels) -> Result<(), ApiError> {
    for (key, value) in labels {
        if !is_key(key) {
            return Err(ApiError::invalid(
                "labels",
                format!("label key '{key}' is invalid"),
            ));
        }
        if key.starts_with("hetzner.cloud/") {
            return Err(ApiError::invalid(
                "labels",
                "prefix hetzner.cloud/ is reserved",
            ));
        }
        if !is_value(value) {
            let complaint = format!("label value '{value}' of '{key}' is invalid");
            return Err(ApiError::invalid("labels", complaint));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn every_form_of_selector_chooses_as_documented() {
        let server = labels(&[("env", "prod"), ("example.com/my", "label"), ("bare", "")]);
        for (selector, chosen) in [
            ("env=prod", true),
            ("env==prod", true),
            ("env=test", false),
            ("env!=prod", false),
            ("env!=test", true),
            ("other!=x", true),
            ("env", true),
            ("other", false),
            ("!other", true),
            ("!env", false),
            ("bare=", true),
            ("env in (test,prod)", true),
            ("env in (test, staging)", false),
            ("env notin (test,staging)", true),
            ("env notin (prod)", false),
            ("other notin (prod)", true),
            ("env=prod,!other", true),
            ("env in (prod,test),example.com/my=label", true),
            ("env=prod,example.com/my!=label", false),
        ] {
            let parsed = Selector::parse(selector).unwrap();
            assert_eq!(parsed.matches(&server), chosen, "{selector}");
        }
    }

    #[test]
    fn a_malformed_selector_is_refused() {
        for selector in [
            "",
            "env=a b",
            "=x",
            "env in prod",
            "a/b/c=x",
            "-x",
            "env=a/b",
            "k in (a",
        ] {
            let error = Selector::parse(selector).unwrap_err();
            assert_eq!(error.code, "invalid_input", "{selector}");
        }
    }

    #[test]
    fn labels_follow_the_documented_syntax() {
        let long = "a".repeat(64);
        assert!(
            check(&labels(&[
                ("example.com/a_b.c-d", "x-y_z.0"),
                ("empty", "")
            ]))
            .is_ok()
        );
        for (key, value) in [
            ("hetzner.cloud/x", "y"),
            ("k", "a/b"),
            ("k", "a:b"),
            ("k", "-a"),
            ("Example.com/k", "v"),
            ("k", long.as_str()),
            (long.as_str(), "v"),
            ("", "v"),
        ] {
            assert!(check(&labels(&[(key, value)])).is_err(), "{key}={value}");
        }
    }
}
