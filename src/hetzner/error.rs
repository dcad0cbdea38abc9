//! What can go wrong with a request, in the two ways a caller must know: what became of it
//! ([`Outcome`]) and what helps ([`Class`]).
//!
//! Texts of the API are redacted before they enter an [`Error`], so it may stand in logs, events
//! and conditions.

use super::error_code::ErrorCode;
use super::redact::redact;
use super::wire::or_default;
use serde::Deserialize;
use std::fmt;

/// What became of a failed mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It surely did nothing.
    Refused,
    /// It may have done its work: look before anything else.
    Unknown,
}

/// What helps against an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Try again, pauses growing.
    Transient,
    /// The API is being maintained: try again slowly.
    Maintenance,
    /// The allowance is used up; the budget says when.
    Throttled,
    /// The token is wrong, read-only or too weak: stop all writes.
    Credentials,
    /// The resource is not there, in the API's own words.
    NotFound,
    /// This server type is out of stock in this location: try the next place.
    OutOfStock,
    /// A quota of the account is used up: pause creates of the project.
    Quota,
    /// Another action runs: try again in seconds.
    Locked,
    /// The world is not as the request took it to be: look again.
    Conflict,
    /// A name or fingerprint is taken: look who holds it, never resend blindly.
    NameTaken,
    /// Nothing changes until a person does something.
    BlockedUntilPerson,
}

/// A refused field of a request, redacted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The field, as the API names it.
    pub name: String,
    /// What is wrong with it.
    pub messages: Vec<String>,
}

/// A request that failed.
pub struct Error(Box<Parts>);

struct Parts {
    route: &'static str,
    status: Option<u16>,
    code: ErrorCode,
    message: String,
    fields: Vec<FieldError>,
    correlation_id: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// An answer that reports an error, before it is read.
pub(super) struct Refusal<'a> {
    pub(super) route: &'static str,
    pub(super) status: u16,
    pub(super) body: &'a [u8],
    pub(super) correlation_id: Option<String>,
}

#[derive(Deserialize)]
struct Envelope {
    error: EnvelopeError,
}

#[derive(Deserialize)]
struct EnvelopeError {
    code: ErrorCode,
    #[serde(default, deserialize_with = "or_default")]
    message: String,
    #[serde(default)]
    details: serde_json::Value,
}

impl Error {
    /// An error without an answer of the API: `code` is one of our own.
    pub(super) fn unanswered(
        route: &'static str,
        code: ErrorCode,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let message = match code {
            ErrorCode::NotSent => "request not sent",
            ErrorCode::NoAnswer => "no complete answer",
            _ => "unreadable answer",
        };
        Self(Box::new(Parts {
            route,
            status: None,
            code,
            message: message.to_owned(),
            fields: Vec::new(),
            correlation_id: None,
            source: Some(source.into()),
        }))
    }

    /// Adds what is known of an answer whose body could not be used.
    pub(super) fn answered_with(mut self, status: u16, correlation_id: Option<String>) -> Self {
        self.0.status = Some(status);
        self.0.correlation_id = correlation_id;
        self
    }

    /// Reads the API's error envelope; anything else counts by its status.
    pub(super) fn from_refusal(refusal: Refusal<'_>, token: &str) -> Self {
        let envelope: Option<Envelope> = serde_json::from_slice(refusal.body).ok();
        let (code, message, fields) = match envelope {
            Some(Envelope { error }) => (
                error.code.answered(),
                redact(&error.message, token),
                field_errors(&error.details, token),
            ),
            None => (
                ErrorCode::Unreadable,
                "answer is not the API's".to_owned(),
                Vec::new(),
            ),
        };
        Self(Box::new(Parts {
            route: refusal.route,
            status: Some(refusal.status),
            code,
            message,
            fields,
            correlation_id: refusal.correlation_id,
            source: None,
        }))
    }

    /// The route, such as `POST /servers`.
    pub fn route(&self) -> &'static str {
        self.0.route
    }

    /// The HTTP status, if an answer came.
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// The error code.
    pub fn code(&self) -> &ErrorCode {
        &self.0.code
    }

    /// The API's message, redacted, at most 300 characters.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The refused fields, where the API names them.
    pub fn fields(&self) -> &[FieldError] {
        &self.0.fields
    }

    /// The id that Hetzner's support asks for.
    pub fn correlation_id(&self) -> Option<&str> {
        self.0.correlation_id.as_deref()
    }

    /// What became of the mutation that failed so.
    pub fn outcome(&self) -> Outcome {
        match (&self.0.code, self.0.status) {
            (ErrorCode::NotSent, _) => Outcome::Refused,
            // A gateway's 408 does not say whether the backend got the request.
            (_, Some(status)) if (400..500).contains(&status) && status != 408 => Outcome::Refused,
            _ => Outcome::Unknown,
        }
    }

    /// What helps against it.
    pub fn class(&self) -> Class {
        match &self.0.code {
            ErrorCode::NotSent | ErrorCode::NoAnswer | ErrorCode::ServiceError => Class::Transient,
            ErrorCode::Maintenance => Class::Maintenance,
            ErrorCode::RateLimitExceeded | ErrorCode::LimitReached => Class::Throttled,
            ErrorCode::Unauthorized | ErrorCode::TokenReadonly | ErrorCode::Forbidden => {
                Class::Credentials
            }
            ErrorCode::NotFound => Class::NotFound,
            ErrorCode::ResourceUnavailable | ErrorCode::PlacementError => Class::OutOfStock,
            ErrorCode::ResourceLimitExceeded => Class::Quota,
            ErrorCode::Locked => Class::Locked,
            ErrorCode::UniquenessError => Class::NameTaken,
            ErrorCode::Conflict
            | ErrorCode::ServerNotStopped
            | ErrorCode::ResourceInUse
            | ErrorCode::FirewallAlreadyApplied
            | ErrorCode::FirewallResourceNotFound => Class::Conflict,
            ErrorCode::JsonError
            | ErrorCode::InvalidInput
            | ErrorCode::Protected
            | ErrorCode::ResourceLocked => Class::BlockedUntilPerson,
            _ => class_of_status(&self.0.code, self.0.status),
        }
    }
}

/// The class of an answer whose code says nothing. A page of some gateway is never proof that a
/// resource is gone, so its 404 is only a failed look.
fn class_of_status(code: &ErrorCode, status: Option<u16>) -> Class {
    let foreign = *code == ErrorCode::Unreadable;
    match status {
        Some(401 | 403) => Class::Credentials,
        Some(409) => Class::Conflict,
        Some(423) => Class::Locked,
        Some(429) => Class::Throttled,
        Some(400..=499) if !foreign => Class::BlockedUntilPerson,
        _ => Class::Transient,
    }
}

/// Most refused fields kept, and most messages of each.
const MAX_FIELDS: usize = 10;

fn field_errors(details: &serde_json::Value, token: &str) -> Vec<FieldError> {
    let Some(fields) = details.get("fields").and_then(serde_json::Value::as_array) else {
        return Vec::new();
    };
    let read = |field: &serde_json::Value| {
        let name = field.get("name")?.as_str()?;
        let messages = field.get("messages").and_then(serde_json::Value::as_array);
        let messages = messages
            .into_iter()
            .flatten()
            .filter_map(serde_json::Value::as_str);
        Some(FieldError {
            name: redact(name, token),
            messages: messages
                .take(MAX_FIELDS)
                .map(|text| redact(text, token))
                .collect(),
        })
    };
    fields.iter().filter_map(read).take(MAX_FIELDS).collect()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts {
            route,
            status,
            code,
            message,
            fields,
            correlation_id,
            source: _,
        } = &*self.0;
        write!(f, "{route}: {message} ({code}")?;
        if let Some(status) = status {
            write!(f, ", status {status}")?;
        }
        for field in fields {
            write!(f, ", {}: {}", field.name, field.messages.join(", "))?;
        }
        if let Some(id) = correlation_id {
            write!(f, ", correlation id {id}")?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Error");
        shown
            .field("shown", &self.to_string())
            .field("outcome", &self.outcome());
        shown
            .field("class", &self.class())
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.0.source.as_deref()?;
        Some(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &str) -> Error {
        let refusal = Refusal {
            route: "POST /servers",
            status,
            body: body.as_bytes(),
            correlation_id: None,
        };
        Error::from_refusal(refusal, "6MWq3U8cTn2bXr7kLp0v")
    }

    fn coded(status: u16, code: &str) -> Error {
        refused(
            status,
            &format!(r#"{{"error":{{"code":"{code}","message":"m","details":null}}}}"#),
        )
    }

    #[test]
    fn codes_have_the_outcome_and_class_that_the_reference_gives() {
        use {Class as C, Outcome as O};
        let table = [
            (400, "json_error", O::Refused, C::BlockedUntilPerson),
            (401, "unauthorized", O::Refused, C::Credentials),
            (401, "token_readonly", O::Refused, C::Credentials),
            (403, "forbidden", O::Refused, C::Credentials),
            (403, "maintenance", O::Refused, C::Maintenance),
            (403, "resource_limit_exceeded", O::Refused, C::Quota),
            (404, "not_found", O::Refused, C::NotFound),
            (405, "method_not_allowed", O::Refused, C::BlockedUntilPerson),
            (409, "uniqueness_error", O::Refused, C::NameTaken),
            (409, "conflict", O::Refused, C::Conflict),
            (
                410,
                "deprecated_api_endpoint",
                O::Refused,
                C::BlockedUntilPerson,
            ),
            (412, "resource_unavailable", O::Refused, C::OutOfStock),
            (422, "invalid_input", O::Refused, C::BlockedUntilPerson),
            (422, "placement_error", O::Refused, C::OutOfStock),
            (422, "resource_in_use", O::Refused, C::Conflict),
            (423, "locked", O::Refused, C::Locked),
            (423, "protected", O::Refused, C::BlockedUntilPerson),
            (429, "rate_limit_exceeded", O::Refused, C::Throttled),
            (500, "server_error", O::Unknown, C::Transient),
            (502, "bad_gateway", O::Unknown, C::Transient),
            (503, "unavailable", O::Unknown, C::Transient),
            (504, "timeout", O::Unknown, C::Transient),
            (422, "brand_new", O::Refused, C::BlockedUntilPerson),
            (409, "brand_new", O::Refused, C::Conflict),
        ];
        for (status, code, outcome, class) in table {
            let error = coded(status, code);
            assert_eq!(
                (error.outcome(), error.class()),
                (outcome, class),
                "{status} {code}"
            );
            assert_eq!(error.code().as_str(), code);
        }
    }

    #[test]
    fn answers_of_a_gateway_count_by_their_status() {
        let table = [
            (401, Outcome::Refused, Class::Credentials),
            (404, Outcome::Refused, Class::Transient),
            (408, Outcome::Unknown, Class::Transient),
            (429, Outcome::Refused, Class::Throttled),
            (302, Outcome::Unknown, Class::Transient),
            (502, Outcome::Unknown, Class::Transient),
        ];
        for (status, outcome, class) in table {
            let error = refused(status, "<html>gateway</html>");
            assert_eq!(
                (error.outcome(), error.class()),
                (outcome, class),
                "{status}"
            );
            assert_eq!(*error.code(), ErrorCode::Unreadable);
            assert!(!error.to_string().contains("html"));
        }
    }

    #[test]
    fn fields_are_kept_and_redacted() {
        let error = refused(
            422,
            r#"{"error":{"code":"invalid_input","message":"x","details":{"fields":[{"name":"image","messages":["no 6MWq3U8c\u0000"]},{"name":7}]}}}"#,
        );
        let expected = FieldError {
            name: "image".into(),
            messages: vec!["no [redacted]".into()],
        };
        assert_eq!(error.fields(), [expected]);
    }

    #[test]
    fn answer_cannot_pose_as_a_request_never_sent() {
        assert_eq!(*coded(502, "not_sent").code(), ErrorCode::Unreadable);
        assert_eq!(coded(502, "not_sent").outcome(), Outcome::Unknown);
        assert_eq!(coded(422, "Bad Code\\n").code().as_str(), "unknown_error");
    }
}
