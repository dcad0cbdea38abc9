//! What the kube crate leaves to its user: deadlines, one attempt per write, errors in classes, and writes that cannot undo a newer one.
//!
//! Every call to the API server goes through [`call`], so that each has a deadline and a crash point. Nothing here tries again: retries live in
//! one place, the requeue.

mod client;
mod events;
mod status;

pub use client::{Clients, clients};
pub use events::{EventWriter, Events};
pub use status::{
    Applied, COUNTS_PERIOD, add_finalizer, annotate, apply_status, remove_finalizer, status_changed,
};

use std::time::Duration;

use kube::core::Status;

use crate::crash_point;

/// How long one call to the API server may take, its body included; watches are bounded by their own client.
pub const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// Why a call to the API server did not do what it should, as classes that tell what to do next.
///
/// The message names the call; the cause is the source, and [`error_chain`] puts both in one line.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The object has changed since it was read, or exists already: look again.
    #[error("{call}: the object has changed meanwhile")]
    Stale {
        /// Verb and resource.
        call: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// The object, or its namespace or kind, does not exist.
    #[error("{call}: the object does not exist")]
    Gone {
        /// Verb and resource.
        call: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// The API server refused the content: the same again will be refused again, so at most a slow retry makes sense.
    ///
    /// A 500 without a reason is counted here (that is how a server-side apply with an unknown field ends), though etcd in trouble looks the same.
    #[error("{call}: the API server refused the request")]
    Invalid {
        /// Verb and resource.
        call: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// Anything that may pass by itself; whether a write was done is not known.
    #[error("{call}: the API server did not do it")]
    Transient {
        /// Verb and resource.
        call: String,
        /// What went wrong.
        source: kube::Error,
    },
    /// No answer in time; whether a write was done is not known.
    #[error("{call}: no answer within {}s", .deadline.as_secs_f32())]
    TimedOut {
        /// Verb and resource.
        call: String,
        /// The deadline that passed.
        deadline: Duration,
    },
}

impl CallError {
    fn of(call: &str, source: kube::Error) -> Self {
        let call = call.to_owned();
        let kube::Error::Api(status) = &source else {
            return Self::Transient { call, source };
        };
        match (status.code, status.reason.as_str()) {
            (409, _) => Self::Stale { call, source },
            (404, _) => Self::Gone { call, source },
            (400 | 413 | 415 | 422, _) | (500, "") => Self::Invalid { call, source },
            _ => Self::Transient { call, source },
        }
    }
}

/// Makes one call to the API server, within [`CALL_DEADLINE`] and between crash points.
///
/// `label` is verb and resource, without names: `GET secrets`.
///
/// # Errors
/// See [`CallError`].
pub async fn call<T>(
    label: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    call_within(CALL_DEADLINE, label, request).await
}

/// Like [`call`], with a deadline of its own.
///
/// # Errors
/// See [`CallError`].
pub async fn call_within<T>(
    deadline: Duration,
    label: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    match crash_point::around("kubernetes", label, tokio::time::timeout(deadline, request)).await {
        Ok(outcome) => outcome.map_err(|source| CallError::of(label, source)),
        Err(_) => Err(CallError::TimedOut {
            call: label.to_owned(),
            deadline,
        }),
    }
}

/// An error and its causes in one line, for logs: `kube::Error` says nothing of a timeout in its own text.
///
/// A cause that its predecessor has quoted already is left out. A parse error tells its place only, because it would quote what it found there.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = in_one_line(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = in_one_line(error);
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

/// Longer texts are cut: what stands between us and the API server may answer with a whole page.
const CAUSE_MAX_BYTES: usize = 1000;

fn in_one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let (mut answer, mut unparsed) = (
        error.downcast_ref::<Box<Status>>(),
        error.downcast_ref::<serde_json::Error>(),
    );
    match error.downcast_ref() {
        Some(kube::Error::Api(status)) => answer = Some(status),
        Some(kube::Error::SerdeError(error)) => unparsed = Some(error),
        _ => {}
    }
    let mut text = match (answer, unparsed) {
        (Some(status), _) => format!(
            "{} ({})",
            status.message,
            format!("{} {}", status.code, status.reason).trim_end()
        ),
        (_, Some(error)) => format!(
            "unexpected JSON ({:?}) at line {} column {}",
            error.classify(),
            error.line(),
            error.column()
        ),
        _ => error.to_string(),
    };
    text.truncate(text.floor_char_boundary(CAUSE_MAX_BYTES));
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u16, reason: &str) -> kube::Error {
        kube::Error::Api(Status::failure("no", reason).with_code(code).boxed())
    }

    #[test]
    fn answers_fall_into_the_class_that_tells_what_to_do() {
        let class = |code, reason| match CallError::of("PATCH x/status", answer(code, reason)) {
            CallError::Stale { .. } => "stale",
            CallError::Gone { .. } => "gone",
            CallError::Invalid { .. } => "invalid",
            CallError::Transient { .. } => "transient",
            CallError::TimedOut { .. } => "timed out",
        };
        let table = [
            (409, "Conflict", "stale"),
            (409, "AlreadyExists", "stale"),
            (404, "NotFound", "gone"),
            (500, "", "invalid"),
            (500, "InternalError", "transient"),
            (422, "Invalid", "invalid"),
            (403, "Forbidden", "transient"),
            (401, "Unauthorized", "transient"),
            (429, "TooManyRequests", "transient"),
            (503, "ServiceUnavailable", "transient"),
        ];
        for (code, reason, expected) in table {
            assert_eq!(class(code, reason), expected, "{code} {reason}");
        }
    }

    #[tokio::test]
    async fn call_without_an_answer_ends_at_the_deadline() {
        let outcome = call_within::<()>(
            Duration::from_millis(10),
            "GET secrets",
            std::future::pending(),
        )
        .await;

        assert_eq!(
            outcome.unwrap_err().to_string(),
            "GET secrets: no answer within 0.01s"
        );
    }

    #[test]
    fn error_chain_names_the_cause_that_kube_leaves_out() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let timeout =
            kube::Error::Service(Box::new(Outer(std::io::Error::other("read timed\nout"))));

        let line = error_chain(&CallError::of("PUT leases", timeout));

        assert_eq!(
            line,
            "PUT leases: the API server did not do it: ServiceError: outer: read timed out"
        );
    }

    #[test]
    fn error_chain_tells_an_answer_once() {
        let line = error_chain(&CallError::of("PUT leases", answer(409, "Conflict")));

        assert_eq!(
            line,
            "PUT leases: the object has changed meanwhile: no (409 Conflict)"
        );
    }

    #[test]
    fn error_chain_does_not_quote_what_could_not_be_parsed() {
        let parse = serde_json::from_str::<u8>(r#""canary""#).unwrap_err();

        let line = error_chain(&CallError::of(
            "GET secrets",
            kube::Error::SerdeError(parse),
        ));

        assert!(!line.contains("canary"), "{line}");
        assert!(line.contains("unexpected JSON (Data) at line 1"), "{line}");
    }
}
