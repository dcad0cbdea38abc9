//! What the API answers when it refuses: one constructor per code of Hetzner's error table.
//!
//! Nothing else in this crate spells an error code, so that codes, status and details stay as the
//! API's documentation has them.

use serde_json::{Value, json};

/// A refusal, as the API words it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message} ({code})")]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) details: Value,
}

impl ApiError {
    pub(crate) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
            details: Value::Null,
        }
    }

    fn with(mut self, details: Value) -> Self {
        self.details = details;
        self
    }

    pub(crate) fn json_error() -> Self {
        Self::new(400, "json_error", "invalid JSON input")
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(
            401,
            "unauthorized",
            "the token you provided is invalid or unknown",
        )
    }

    pub(crate) fn token_readonly() -> Self {
        Self::new(
            401,
            "token_readonly",
            "only allowed to perform GET requests",
        )
    }

    /// The account's quota is used up; `limit` is what the details name.
    pub(crate) fn resource_limit_exceeded(message: &str, limit: &str) -> Self {
        Self::new(403, "resource_limit_exceeded", message)
            .with(json!({"limits": [{"name": limit}]}))
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(404, "not_found", format!("{what} not found"))
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(
            405,
            "method_not_allowed",
            "the request method is not allowed",
        )
    }

    pub(crate) fn not_unique(field: &str, message: &str) -> Self {
        Self::new(409, "uniqueness_error", message).with(json!({"fields": [{"name": field}]}))
    }

    pub(crate) fn removed(change: &str) -> Self {
        Self::new(
            410,
            "deprecated_api_endpoint",
            "API functionality was removed",
        )
        .with(json!({"announcement": format!("https://docs.hetzner.cloud/changelog#{change}")}))
    }

    pub(crate) fn out_of_stock() -> Self {
        Self::new(
            412,
            "resource_unavailable",
            "error during placement (resource_unavailable)",
        )
    }

    pub(crate) fn invalid(field: &str, complaint: impl Into<String>) -> Self {
        let complaint = complaint.into();
        let message = format!("invalid input in field '{field}': {complaint}");
        Self::new(422, "invalid_input", message)
            .with(json!({"fields": [{"name": field, "messages": [complaint]}]}))
    }

    /// A 422 with a code of its own, such as `server_not_stopped`.
    pub(crate) fn unprocessable(code: &str, message: impl Into<String>) -> Self {
        Self::new(422, code, message)
    }

    pub(crate) fn locked(what: &str) -> Self {
        Self::new(423, "locked", format!("{what} is locked"))
    }

    pub(crate) fn protected(what: &str) -> Self {
        Self::new(423, "protected", format!("{what} is protected"))
    }

    /// The newer form of the message, which repeats the first half of the caller's token.
    pub(crate) fn rate_limit_exceeded(limit: u32, token: &str) -> Self {
        let fragment: String = token.chars().take(32).collect();
        Self::new(
            429,
            "rate_limit_exceeded",
            format!("Limit of '{limit}' requests per hour for token '{fragment}…' reached."),
        )
    }

    pub(crate) fn body(&self) -> Value {
        json!({"error": {"code": self.code, "message": self.message, "details": self.details}})
    }
}
