//! The error codes of the API, and three of our own for requests without a readable answer.

use super::wire::open_enum;

open_enum! {
    /// An error code of the API, or one of three of our own for requests without a readable answer.
    ErrorCode {
        /// Our own: the request never left.
        NotSent = "not_sent",
        /// Our own: sent, but no complete answer came.
        NoAnswer = "no_answer",
        /// Our own: an answer that is not the API's, such as a gateway's HTML page.
        Unreadable = "unreadable",
        /// The request body was not JSON.
        JsonError = "json_error",
        /// The token is unknown.
        Unauthorized = "unauthorized",
        /// The token may only read.
        TokenReadonly = "token_readonly",
        /// The token may not do this.
        Forbidden = "forbidden",
        /// The API is being maintained.
        Maintenance = "maintenance",
        /// A quota of the account is used up.
        ResourceLimitExceeded = "resource_limit_exceeded",
        /// No such resource.
        NotFound = "not_found",
        /// A name or fingerprint is taken.
        UniquenessError = "uniqueness_error",
        /// The resource changed meanwhile.
        Conflict = "conflict",
        /// The server type is out of stock in this location.
        ResourceUnavailable = "resource_unavailable",
        /// No host to place the server on.
        PlacementError = "placement_error",
        /// A field was refused.
        InvalidInput = "invalid_input",
        /// A service behind the API failed.
        ServiceError = "service_error",
        /// Another action runs on the resource.
        Locked = "locked",
        /// The resource is locked by Hetzner; only support helps.
        ResourceLocked = "resource_locked",
        /// The resource is protected against deletion or rebuild.
        Protected = "protected",
        /// The request allowance is used up.
        RateLimitExceeded = "rate_limit_exceeded",
        /// Old name of `rate_limit_exceeded`.
        LimitReached = "limit_reached",
        /// A server must be off for this.
        ServerNotStopped = "server_not_stopped",
        /// The firewall is still applied to something.
        ResourceInUse = "resource_in_use",
        /// The firewall is already applied to the resource.
        FirewallAlreadyApplied = "firewall_already_applied",
        /// The resource a firewall shall be applied to, or removed from, is not there.
        FirewallResourceNotFound = "firewall_resource_not_found",
        /// The backend failed.
        ServerError = "server_error",
        /// A gateway failed.
        BadGateway = "bad_gateway",
        /// The service is not available.
        Unavailable = "unavailable",
        /// The backend did not answer in time.
        Timeout = "timeout",
    }
}

impl ErrorCode {
    /// A code as an answer may hold it: it goes into metrics and conditions, so an unknown one is
    /// kept only if it looks like one, and none poses as one of our own.
    pub(super) fn answered(self) -> Self {
        match self {
            Self::Other(text) => Self::Other(if is_plain(&text) {
                text
            } else {
                "unknown_error".to_owned()
            }),
            Self::NotSent | Self::NoAnswer => Self::Unreadable,
            known => known,
        }
    }
}

fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (1..=64).contains(&text.len()) && text.chars().all(plain)
}
