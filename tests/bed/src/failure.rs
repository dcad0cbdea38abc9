//! Why a test or the demo failed: one text, made of any error and its causes.

use std::error::Error;
use std::fmt;

/// What a step of a test answers.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Why something was not as told.
pub struct Failure(String);

impl Failure {
    /// A failure in plain words.
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }

    /// The same failure, with what was being done in front.
    #[must_use]
    pub fn during(self, what: &str) -> Self {
        Self(format!("{what}: {}", self.0))
    }
}

/// Goes on only where something holds.
///
/// # Errors
/// Fails with the words of `why` where it does not.
pub fn ensure(holds: bool, why: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(Failure(why())) }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The same as `Display`: this is what the test harness prints.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<E: Error> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let said = inner.to_string();
            if !text.contains(&said) {
                text = format!("{text}: {said}");
            }
            cause = inner.source();
        }
        let at = std::panic::Location::caller();
        Self(format!("{text} (at {}:{})", at.file(), at.line()))
    }
}
