//! One HTTP request and its answer.
//!
//! Invariant: one permit, one request. Nothing is retried or redirected, an answer is read up to a
//! bound, its rate-limit headers reach the budget whatever else is wrong with it, and the token
//! leaves this module in no other way than in the `Authorization` header.

use super::budget::{Lane, Permit, RateLimit};
use super::error::{Error, Outcome, Refusal};
use super::error_code::ErrorCode;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest answer that is read, in bytes; a page of 50 servers has about 200 KB.
const MAX_BODY: usize = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections are dropped well before a load balancer does it in the middle of a request.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// A client for one project: an endpoint and a token.
#[derive(Clone)]
pub struct Client(Arc<Inner>, Option<Told>);

/// Whoever is told of each request that is over.
type Told = Arc<dyn Fn(&Exchange<'_>) + Send + Sync>;

/// One request that is over, for whoever counts them.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// Verb and route, such as `GET /servers/{id}`.
    pub route: &'static str,
    /// What it was for.
    pub lane: Lane,
    /// The status of a good answer, or why there is none.
    pub code: Result<u16, &'a ErrorCode>,
    /// How long it took.
    pub took: Duration,
}

struct Inner {
    http: reqwest::Client,
    base: Url,
    token: SecretString,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.0.base.as_str())
            .finish_non_exhaustive()
    }
}

/// One request, before it is sent.
pub(super) struct Call {
    route: &'static str,
    id: Option<u64>,
    query: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
}

impl Call {
    /// A request by its route, such as `GET /servers/{id}`.
    pub(super) fn new(route: &'static str) -> Self {
        Self {
            route,
            id: None,
            query: Vec::new(),
            body: None,
        }
    }

    /// Puts `id` in the place of `{id}`.
    pub(super) fn id(mut self, id: u64) -> Self {
        self.id = Some(id);
        self
    }

    /// Adds a query parameter; lists repeat theirs.
    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// Sets the JSON body.
    ///
    /// # Errors
    /// `NotSent` if `body` has no JSON form.
    pub(super) fn json(mut self, body: &impl serde::Serialize) -> Result<Self, Error> {
        let bytes = serde_json::to_vec(body)
            .map_err(|e| Error::unanswered(self.route, ErrorCode::NotSent, e))?;
        self.body = Some(bytes);
        Ok(self)
    }

    fn method(&self) -> Method {
        let verb = self.route.split(' ').next().unwrap_or_default();
        Method::from_bytes(verb.as_bytes()).unwrap_or(Method::GET)
    }

    fn path(&self) -> String {
        let template = self.route.split(' ').nth(1).unwrap_or_default();
        let id = self.id.map(|id| id.to_string()).unwrap_or_default();
        template.replace("{id}", &id)
    }
}

/// An answer with a body read to its end.
struct Answer {
    status: u16,
    correlation_id: Option<String>,
    body: Vec<u8>,
}

impl Client {
    /// A client for `endpoint`, such as `https://api.hetzner.cloud/v1`; `timeout` bounds each
    /// request from its start to the last byte of its answer.
    ///
    /// # Errors
    /// An endpoint that is not an HTTP address (or holds a password), a token that cannot stand
    /// in a header, or no usable TLS roots.
    pub fn new(endpoint: &str, token: SecretString, timeout: Duration) -> Result<Self, Error> {
        // Several TLS providers are compiled in; a choice made earlier by the program stands.
        let _chosen_before = rustls::crypto::ring::default_provider().install_default();
        let base = parse_endpoint(endpoint)?;
        let http = reqwest::Client::builder()
            .default_headers(headers(&token)?)
            .user_agent(concat!("agentfleet/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT.min(timeout))
            .pool_idle_timeout(POOL_IDLE)
            .timeout(timeout)
            .build()
            .map_err(unusable)?;
        Ok(Self(Arc::new(Inner { http, base, token }), None))
    }

    /// Tells `told` of each request from now on, once it is over; it must not take long.
    #[must_use]
    pub fn telling(self, told: impl Fn(&Exchange<'_>) + Send + Sync + 'static) -> Self {
        Self(self.0, Some(Arc::new(told)))
    }

    /// Sends `call` and reads its answer as a `T`.
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        permit: Permit,
        call: Call,
    ) -> Result<T, Error> {
        let (route, id, mutates) = (call.route, call.id, call.method() != Method::GET);
        let (lane, begun) = (permit.lane(), Instant::now());
        let result = self.exchange(permit, call).await.and_then(|answer| {
            // A 204 has no body, and a type for it reads `null`.
            let body: &[u8] = if answer.body.is_empty() {
                b"null"
            } else {
                &answer.body
            };
            match serde_json::from_slice(body) {
                Ok(value) => Ok((value, answer)),
                Err(e) => Err(
                    Error::unanswered(route, ErrorCode::Unreadable, unquoted(&e))
                        .answered_with(answer.status, answer.correlation_id),
                ),
            }
        });
        if let Some(tell) = &self.1 {
            tell(&Exchange {
                route,
                lane,
                code: result
                    .as_ref()
                    .map(|(_, answer)| answer.status)
                    .map_err(Error::code),
                took: begun.elapsed(),
            });
        }
        if mutates {
            log_mutation(route, id, result.as_ref().map(|(_, answer)| answer));
        }
        result.map(|(value, _)| value)
    }

    async fn exchange(&self, permit: Permit, call: Call) -> Result<Answer, Error> {
        let route = call.route;
        let mut response = match self.request(call).send().await {
            Ok(response) => response,
            Err(error) => return Err(unsent_or_unanswered(permit, route, error)),
        };
        let status = response.status().as_u16();
        permit.answered(
            RateLimit::from_headers(response.headers()),
            status == 429,
            Instant::now(),
        );
        let correlation_id = correlation_id(response.headers());
        let body = read_bounded(&mut response, route)
            .await
            .map_err(|e| e.answered_with(status, correlation_id.clone()))?;
        if response.status().is_success() {
            return Ok(Answer {
                status,
                correlation_id,
                body,
            });
        }
        let refusal = Refusal {
            route,
            status,
            body: &body,
            correlation_id,
        };
        Err(Error::from_refusal(refusal, self.0.token.expose_secret()))
    }

    fn request(&self, call: Call) -> reqwest::RequestBuilder {
        let mut url = self.0.base.clone();
        url.set_path(&format!(
            "{}{}",
            url.path().trim_end_matches('/'),
            call.path()
        ));
        let mut request = self.0.http.request(call.method(), url).query(&call.query);
        if let Some(body) = call.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        request
    }
}

fn parse_endpoint(endpoint: &str) -> Result<Url, Error> {
    let refuse = |why: &str| Error::unanswered("endpoint", ErrorCode::NotSent, why.to_owned());
    let url = Url::parse(endpoint).map_err(|e| refuse(&e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("endpoint must begin with https:// or http://"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(refuse(
            "endpoint must not hold a user, a password or a query",
        ));
    }
    Ok(url)
}

fn headers(token: &SecretString) -> Result<HeaderMap, Error> {
    let mut bearer =
        HeaderValue::from_str(&format!("Bearer {}", token.expose_secret())).map_err(|_| {
            Error::unanswered(
                "token",
                ErrorCode::NotSent,
                "token has characters no header may hold",
            )
        })?;
    bearer.set_sensitive(true);
    let json = HeaderValue::from_static("application/json");
    Ok(HeaderMap::from_iter([
        (AUTHORIZATION, bearer),
        (ACCEPT, json),
    ]))
}

fn unusable(error: reqwest::Error) -> Error {
    Error::unanswered("client", ErrorCode::NotSent, error.without_url())
}

/// Tells a request that never left from one whose answer was lost.
fn unsent_or_unanswered(permit: Permit, route: &'static str, error: reqwest::Error) -> Error {
    let error = error.without_url();
    if error.is_connect() || error.is_builder() {
        permit.not_sent(Instant::now());
        return Error::unanswered(route, ErrorCode::NotSent, error);
    }
    Error::unanswered(route, ErrorCode::NoAnswer, error)
}

async fn read_bounded(
    response: &mut reqwest::Response,
    route: &'static str,
) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    loop {
        let chunk = response.chunk().await;
        match chunk.map_err(|e| Error::unanswered(route, ErrorCode::NoAnswer, e.without_url()))? {
            None => return Ok(body),
            Some(bytes) if body.len() + bytes.len() > MAX_BODY => {
                return Err(Error::unanswered(
                    route,
                    ErrorCode::Unreadable,
                    "answer exceeds 16 MiB",
                ));
            }
            Some(bytes) => body.extend_from_slice(&bytes),
        }
    }
}

/// Hetzner's id of the request, if it looks like one.
fn correlation_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("x-correlation-id")?.to_str().ok()?;
    let plain = id
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    (plain && (1..=64).contains(&id.len())).then(|| id.to_owned())
}

/// Where a body stopped being readable, without what stood there.
fn unquoted(error: &serde_json::Error) -> String {
    format!(
        "{:?} error in line {} column {}",
        error.classify(),
        error.line(),
        error.column()
    )
}

/// Logs what became of a mutation; the caller's span says for whom it was. Bodies are never logged.
fn log_mutation(route: &'static str, id: Option<u64>, result: Result<&Answer, &Error>) {
    match result {
        Ok(Answer {
            correlation_id,
            body,
            ..
        }) => {
            let id = id.or_else(|| created_id(body));
            tracing::info!(
                route,
                id,
                outcome = "done",
                correlation_id,
                "hetzner mutation"
            );
        }
        Err(error) => {
            let outcome = match error.outcome() {
                Outcome::Refused => "refused",
                Outcome::Unknown => "unknown",
            };
            let (code, status) = (error.code().as_str(), error.status());
            let (correlation_id, reason) = (error.correlation_id(), error.message());
            tracing::info!(
                route,
                id,
                outcome,
                code,
                status,
                correlation_id,
                reason,
                "hetzner mutation"
            );
        }
    }
}

/// The id of the resource that an answer says was created.
fn created_id(body: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Resource {
        id: u64,
    }
    #[derive(Deserialize)]
    struct Created {
        #[serde(alias = "firewall", alias = "ssh_key")]
        server: Resource,
    }
    serde_json::from_slice(body)
        .ok()
        .map(|created: Created| created.server.id)
}

#[cfg(test)]
mod tests;
