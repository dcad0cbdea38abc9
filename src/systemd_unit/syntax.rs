//! How values are written in a unit file, so that each stays one value. Source: systemd.syntax(7).

use std::fmt::{Display, Write};

use super::UnitError;
use crate::api::Duration;

/// A unit file as it grows.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn section(&mut self, name: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        // Writing to a String has no way to fail.
        let _ = writeln!(self.0, "{gap}[{name}]");
    }

    pub(super) fn set(&mut self, key: &str, value: impl Display) {
        let _ = writeln!(self.0, "{key}={value}");
    }

    pub(super) fn set_some(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    pub(super) fn done(self) -> String {
        self.0
    }
}

pub(super) fn refuse<T>(field: &'static str, problem: &'static str) -> Result<T, UnitError> {
    Err(UnitError { field, problem })
}

pub(super) fn seconds(span: Duration) -> String {
    format!("{}s", span.get().as_secs())
}

/// Refuses what would end the line, or carry it on into the next one.
fn one_line<'a>(field: &'static str, value: &'a str) -> Result<&'a str, UnitError> {
    if value.chars().any(|c| c.is_control() && c != '\t') {
        return refuse(field, "holds a line break or another control character");
    }
    if value.trim_end().ends_with('\\') {
        return refuse(field, "ends with a backslash");
    }
    Ok(value)
}

/// Free text, which systemd takes as it stands but for specifiers and white space at the ends.
pub(super) fn plain(field: &'static str, value: &str) -> Result<String, UnitError> {
    Ok(one_line(field, value)?.trim().replace('%', "%%"))
}

/// A value without white space.
pub(super) fn word(field: &'static str, value: &str) -> Result<String, UnitError> {
    if value.is_empty() || value.chars().any(char::is_whitespace) {
        return refuse(field, "must be one word");
    }
    plain(field, value)
}

/// An absolute path where systemd splits nothing and takes no quotes.
pub(super) fn path(field: &'static str, value: &str) -> Result<String, UnitError> {
    if !value.starts_with('/') {
        return refuse(field, "must be an absolute path");
    }
    if value.trim_end() != value {
        return refuse(field, "ends with white space");
    }
    plain(field, value)
}

/// One word in double quotes with C escapes, specifiers switched off.
pub(super) fn quote(field: &'static str, value: &str) -> Result<String, UnitError> {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('"');
    for c in value.chars() {
        match c {
            '\0' => return refuse(field, "holds a NUL character"),
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '%' => quoted.push_str("%%"),
            control if control.is_control() => {
                for byte in control.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(quoted, "\\x{byte:02x}");
                }
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    Ok(quoted)
}
