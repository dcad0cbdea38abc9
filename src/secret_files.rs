//! Content of secret files, from the keys of an instance's Secret.
//!
//! Three forms: one key as it is, an environment file, or a template. The environment file has to
//! mean the same to systemd's `EnvironmentFile=` and to dotenv programs, whose quoting differs;
//! see `quoting` for the rules. Errors name keys and lines, never a value.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretSlice};

/// The data of a Secret.
pub type SecretData = BTreeMap<String, SecretSlice<u8>>;

/// The longest `NAME=value` that Linux takes for a new process, without the final NUL
/// (`MAX_ARG_STRLEN`, execve(2)).
const MAX_ASSIGNMENT: usize = 131_071;

/// What a secret file holds.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// The value of one key, byte for byte.
    Key(&'a str),
    /// All keys as an environment file.
    EnvAll,
    /// The listed keys as an environment file.
    Env(&'a [String]),
    /// A minijinja template; the keys are its variables.
    Template(&'a str),
}

/// Why a secret file cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretFileError {
    /// The Secret lacks a key.
    #[error("the Secret has no key {0:?}")]
    MissingKey(String),
    /// The value is not UTF-8.
    #[error("the value of key {0:?} is not UTF-8 text")]
    NotText(String),
    /// The key cannot be a variable's name.
    #[error(
        "key {0:?} cannot name an environment variable; list the keys that the file is to hold"
    )]
    NotAName(String),
    /// The value has no form that systemd and dotenv programs read alike.
    #[error(
        "the value of key {0:?} has no form that systemd and dotenv read alike; use a file of its own or a template"
    )]
    NotQuotable(String),
    /// The value is longer than a process may be given.
    #[error("the value of key {0:?} is too long for an environment variable")]
    TooLong(String),
    /// The template is wrong in itself, or for these values.
    #[error("the template fails at line {line}: {problem}")]
    Template {
        /// Line, from one.
        line: usize,
        /// The kind of failure; never a value.
        problem: String,
    },
}

/// Makes the content of a secret file.
///
/// # Errors
/// When a key is missing or its value does not fit the form.
pub fn render(
    content: Content<'_>,
    secret: &SecretData,
) -> Result<SecretSlice<u8>, SecretFileError> {
    match content {
        Content::Key(key) => Ok(value(secret, key)?.to_vec().into()),
        Content::EnvAll => env_file(secret.keys(), secret),
        Content::Env(keys) => env_file(keys.iter(), secret),
        Content::Template(template) => render_template(template, secret),
    }
}

fn value<'a>(secret: &'a SecretData, key: &str) -> Result<&'a [u8], SecretFileError> {
    let value = secret.get(key).map(ExposeSecret::expose_secret);
    value.ok_or_else(|| SecretFileError::MissingKey(key.to_owned()))
}

fn text<'a>(secret: &'a SecretData, key: &str) -> Result<&'a str, SecretFileError> {
    let text = std::str::from_utf8(value(secret, key)?);
    text.map_err(|_| SecretFileError::NotText(key.to_owned()))
}

fn env_file<'a>(
    keys: impl Iterator<Item = &'a String> + Clone,
    secret: &SecretData,
) -> Result<SecretSlice<u8>, SecretFileError> {
    let room =
        |key: &String| key.len() + secret.get(key).map_or(0, |v| v.expose_secret().len()) + 4;
    let mut file = Zeroizing::new(String::with_capacity(keys.clone().map(room).sum()));
    for key in keys {
        let value = text(secret, key)?;
        if !is_environment_name(key) {
            return Err(SecretFileError::NotAName(key.clone()));
        }
        if key.len() + 1 + value.len() > MAX_ASSIGNMENT {
            return Err(SecretFileError::TooLong(key.clone()));
        }
        let quote = quoting(value).ok_or_else(|| SecretFileError::NotQuotable(key.clone()))?;
        for part in [key, "=", quote.mark(), value, quote.mark(), "\n"] {
            file.push_str(part);
        }
    }
    Ok(file.as_bytes().to_vec().into())
}

/// Whether a name can be that of an environment variable everywhere (POSIX "Name").
fn is_environment_name(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Quote {
    Bare,
    Single,
    Double,
}

impl Quote {
    fn mark(self) -> &'static str {
        match self {
            Self::Bare => "",
            Self::Single => "'",
            Self::Double => "\"",
        }
    }
}

/// The form in which systemd and dotenv programs read a value alike, if there is one.
///
/// Read from systemd's `src/basic/env-file.c`; `tests/quoting.rs` reads thousands of values back with
/// systemd, dotenv for JavaScript and for Python, Node and Bun:
///
/// - *bare*: all end at the line and trim white space. systemd takes `\` as an escape, dotenv
///   takes `#` as a comment, and a quotation mark at the start begins a quoted value.
/// - *single quotes*: all take what is between them as it stands, line breaks included. None has a
///   way to write a single quotation mark, a `\` before the closing one hides it from dotenv, and of
///   two `\` in a row Python's dotenv makes one.
/// - *double quotes*: without `"` and `\` all take what is between them as it stands. With them
///   they differ: dotenv keeps `\"` and turns `\n` into a line break, systemd does the opposite.
///
/// So a value with a single quotation mark *and* a `\`, or with both marks and a line break or
/// `#`, or with a `\` at its end or two in a row has no common form. Nor has `${NAME}`, which
/// Python's dotenv expands in every form, or a control character: they agree on none but tab and
/// line feed.
///
/// Bun alone, where it reads the file by itself, also expands `$NAME` in every form. Not so when
/// systemd loads the file: what is in the environment already wins.
fn quoting(value: &str) -> Option<Quote> {
    let has = |c: char| value.contains(c);
    let harmless = |c: char| c.is_ascii_alphanumeric() || "_-+=:,./@%".contains(c);
    if !value.is_empty() && value.chars().all(harmless) {
        Some(Quote::Bare)
    } else if value.chars().any(unspeakable) || expands(value) {
        None
    } else if !has('\'') && !value.ends_with('\\') && !value.contains(r"\\") {
        Some(Quote::Single)
    } else if !has('"') && !has('\\') {
        Some(Quote::Double)
    } else if !has('\\') && !has('\n') && !has('#') && has_plain_ends(value) {
        Some(Quote::Bare)
    } else {
        None
    }
}

/// Whether Python's dotenv would put a variable in.
fn expands(value: &str) -> bool {
    value
        .split_once("${")
        .is_some_and(|(_, rest)| rest.contains('}'))
}

/// Characters that systemd refuses (not a Unicode scalar value that it accepts) or that programs
/// treat differently.
fn unspeakable(c: char) -> bool {
    let noncharacter = u32::from(c) & 0xfffe == 0xfffe || ('\u{fdd0}'..='\u{fdef}').contains(&c);
    noncharacter || (c.is_control() && c != '\t' && c != '\n')
}

/// Says whether neither end of a bare value could be taken for quoting or white space.
fn has_plain_ends(value: &str) -> bool {
    let plain_start = |c: char| c.is_ascii_graphic() && !"'\"`".contains(c);
    value.starts_with(plain_start) && value.ends_with(|c: char| c.is_ascii_graphic())
}

fn render_template(source: &str, secret: &SecretData) -> Result<SecretSlice<u8>, SecretFileError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_syntax(syntax()?);
    environment.add_filter("json", json_filter);
    environment.add_filter("dotenv", dotenv_filter);
    environment.add_filter("int", int_filter);
    environment.add_filter("b64encode", b64encode_filter);
    let template = environment
        .template_from_str(source)
        .map_err(|e| fault(&e))?;
    let named: BTreeSet<String> = template.undeclared_variables(false).into_iter().collect();
    let mut variables = BTreeMap::new();
    for key in named.iter().filter(|key| secret.contains_key(*key)) {
        variables.insert(key.as_str(), Value::from(text(secret, key)?));
    }
    let rendered = template.render(variables).map_err(|error| {
        let missing = named.into_iter().find(|key| !secret.contains_key(key));
        match (error.kind(), missing) {
            (ErrorKind::UndefinedError, Some(key)) => SecretFileError::MissingKey(key),
            _ => fault(&error),
        }
    })?;
    Ok(Zeroizing::new(rendered).as_bytes().to_vec().into())
}

/// A file ends as its template ends: without this the last line break would be cut off.
fn syntax() -> Result<SyntaxConfig, SecretFileError> {
    let config = SyntaxConfig::builder().keep_trailing_newline(true).build();
    config.map_err(|error| fault(&error))
}

/// Kind and line only: minijinja's own text may hold a value.
fn fault(error: &minijinja::Error) -> SecretFileError {
    SecretFileError::Template {
        line: error.line().unwrap_or(1),
        problem: error.kind().to_string(),
    }
}

fn failed(filter: &'static str) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, filter)
}

fn json_filter(value: &Value) -> Result<String, minijinja::Error> {
    serde_json::to_string(value).map_err(|_| failed("json"))
}

fn dotenv_filter(value: &str) -> Result<String, minijinja::Error> {
    let quote = quoting(value).ok_or_else(|| failed("dotenv"))?.mark();
    Ok(format!("{quote}{value}{quote}"))
}

/// Stricter than Jinja's own, which cuts off fractions and makes 0 of `NaN`.
fn int_filter(value: &str) -> Result<i64, minijinja::Error> {
    value.trim().parse().map_err(|_| failed("int"))
}

fn b64encode_filter(value: &str) -> String {
    STANDARD.encode(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret(pairs: &[(&str, &str)]) -> SecretData {
        let data = |(key, value): &(&str, &str)| {
            (
                (*key).to_owned(),
                SecretSlice::from(value.as_bytes().to_vec()),
            )
        };
        pairs.iter().map(data).collect()
    }

    fn rendered(content: Content<'_>, secret: &SecretData) -> String {
        let bytes = render(content, secret).unwrap();
        String::from_utf8(bytes.expose_secret().to_vec()).unwrap()
    }

    fn template(source: &str, pairs: &[(&str, &str)]) -> Result<String, SecretFileError> {
        let made = render(Content::Template(source), &secret(pairs))?;
        Ok(String::from_utf8(made.expose_secret().to_vec()).unwrap())
    }

    /// systemd's reading of an assignment's right side, from its documented rules.
    fn read_by_systemd(written: &str) -> String {
        let mut value = String::new();
        let mut rest = written.chars();
        match rest.next() {
            Some('\'') => value.extend(rest.take_while(|c| *c != '\'')),
            Some('"') => {
                assert!(!rest.clone().take_while(|c| *c != '"').any(|c| c == '\\'));
                value.extend(rest.take_while(|c| *c != '"'));
            }
            _ => {
                assert!(!written.contains(['\\', '\n', '\r']));
                value.push_str(written.trim_matches([' ', '\t']));
            }
        }
        value
    }

    /// dotenv's reading of an assignment's right side: the first form of its grammar that matches.
    fn read_by_dotenv(written: &str) -> String {
        let quote = written.chars().next().filter(|c| "'\"`".contains(*c));
        if let Some(quote) = quote
            && let Some(inner) = written[1..].strip_suffix(quote)
            && !inner.contains(quote)
            && !inner.ends_with('\\')
        {
            return match quote {
                '"' => inner.replace("\\n", "\n").replace("\\r", "\r"),
                _ => inner.to_owned(),
            };
        }
        let line = written.split(['#', '\n', '\r']).next().unwrap();
        line.trim().to_owned()
    }

    #[test]
    fn a_key_is_written_byte_for_byte() {
        let mut data = secret(&[]);
        data.insert("bin".into(), vec![0, 0xff, b'\n'].into());
        let made = render(Content::Key("bin"), &data).unwrap();
        assert_eq!(made.expose_secret(), [0, 0xff, b'\n']);
        let missing = render(Content::Key("other"), &data).unwrap_err();
        assert_eq!(missing, SecretFileError::MissingKey("other".into()));
    }

    #[test]
    fn an_environment_file_holds_all_or_the_listed_keys() {
        let data = secret(&[("B", "x y"), ("A", "plain"), ("C", "")]);
        assert_eq!(rendered(Content::EnvAll, &data), "A=plain\nB='x y'\nC=''\n");
        let listed = ["B".to_owned(), "A".to_owned()];
        assert_eq!(rendered(Content::Env(&listed), &data), "B='x y'\nA=plain\n");
    }

    #[test]
    fn each_value_gets_the_form_that_both_readers_share() {
        let table = [
            ("sk-ant_01/x+y=", Some(Quote::Bare)),
            ("", Some(Quote::Single)),
            ("a b", Some(Quote::Single)),
            ("pa$$word #1", Some(Quote::Single)),
            ("-----BEGIN-----\nabc\n-----END-----\n", Some(Quote::Single)),
            ("{\"k\": \"a\\nb\"}", Some(Quote::Single)),
            ("C:\\dir", Some(Quote::Single)),
            ("grüße 日本", Some(Quote::Single)),
            ("it's", Some(Quote::Double)),
            ("it's\n$5 `x` #1", Some(Quote::Double)),
            ("{\"k\": \"it's\"}", Some(Quote::Bare)),
            ("\"it's\"", None),
            ("{\"k\": \"it's\"} # x", None),
            ("{\"k\":\n\"it's\"}", None),
            ("it's \\ it", None),
            ("\\\\host", None),
            ("a ${HOME}", None),
            ("a ${", Some(Quote::Single)),
            ("ends with \\", None),
            ("a\rb", None),
            ("bell\u{7}", None),
            ("\u{fffe}", None),
        ];
        for (value, expected) in table {
            assert_eq!(quoting(value), expected, "{value:?}");
        }
    }

    #[test]
    fn a_key_that_does_not_fit_is_named_and_its_value_is_not() {
        let long = "x".repeat(MAX_ASSIGNMENT);
        let cases = [
            (
                secret(&[("A", "canary' \\")]),
                SecretFileError::NotQuotable("A".into()),
            ),
            (
                secret(&[("a.json", "canary")]),
                SecretFileError::NotAName("a.json".into()),
            ),
            (
                secret(&[("L", &long)]),
                SecretFileError::TooLong("L".into()),
            ),
        ];
        for (data, expected) in cases {
            let error = render(Content::EnvAll, &data).unwrap_err();
            assert_eq!(error, expected);
            assert!(!format!("{error} {error:?}").contains("canary"));
        }
        let mut binary = secret(&[]);
        binary.insert("B".into(), vec![0xff].into());
        let error = render(Content::EnvAll, &binary).unwrap_err();
        assert_eq!(error, SecretFileError::NotText("B".into()));
    }

    #[test]
    fn a_template_makes_json_with_numbers_and_strings() {
        let source = "{\"token\": {{ TOKEN | json }}, \"expiresAt\": {{ EXPIRES | int }}}\n";
        let made = template(
            source,
            &[("TOKEN", "a\"b\\c\n<é>"), ("EXPIRES", " 1764000000000\n")],
        );
        let made = made.unwrap();
        let value: serde_json::Value = serde_json::from_str(&made).unwrap();
        assert_eq!(value["token"], "a\"b\\c\n<é>");
        assert_eq!(value["expiresAt"], 1_764_000_000_000_i64);
        assert!(made.ends_with("}\n"));
    }

    #[test]
    fn a_template_quotes_for_dotenv_and_encodes_base64() {
        let made = template("A={{ A | dotenv }}\nB={{ A | b64encode }}", &[("A", "x y")]);
        assert_eq!(made.unwrap(), "A='x y'\nB=eCB5");
        let raw = template("{{ A }}{% if B is defined %}b{% endif %}", &[("A", "<&'")]);
        assert_eq!(raw.unwrap(), "<&'");
    }

    #[test]
    fn a_failing_template_names_key_or_line_and_never_a_value() {
        let missing = template("{{ A }}\n{{ B }}", &[("A", "canary")]).unwrap_err();
        assert_eq!(missing, SecretFileError::MissingKey("B".into()));
        let broken = [
            "x\n{{ A | int }}",
            "x\n{{ A | dotenv }}",
            "x\n{{ A | nosuch }}",
            "x\n{{ A.b.c }}",
            "x\n{{ A + 1 }}",
            "x\n{{ A( }}",
            "x\n{% include A %}",
        ];
        for source in broken {
            let error = template(source, &[("A", "canary' \\")]).unwrap_err();
            let SecretFileError::Template { line, .. } = &error else {
                panic!("{source}: {error:?}");
            };
            assert_eq!(*line, 2, "{source}");
            assert!(
                !format!("{error} {error:?}").contains("canary"),
                "{source}: {error}"
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_reads_back_in_both(value in "[a-z '\"`\\\\$#\n\t=;{}é]{0,12}") {
            if let Some(quote) = quoting(&value) {
                let written = format!("{0}{value}{0}", quote.mark());
                prop_assert_eq!(read_by_systemd(&written), value.clone());
                prop_assert_eq!(read_by_dotenv(&written), value);
            }
        }

        #[test]
        fn every_value_without_control_characters_and_one_kind_of_mark_is_written(
            value in "[^'{\\\\\\p{C}]{0,40}",
        ) {
            prop_assert!(quoting(&value).is_some(), "{:?}", value);
        }
    }
}
