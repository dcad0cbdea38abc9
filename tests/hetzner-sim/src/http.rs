//! The API over HTTP: token, allowance, headers, and the faults of transport.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, Query, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use futures::stream;

use crate::api::Reply;
use crate::cloud::{Admitted, Cloud};
use crate::connection::Reset;
use crate::error::ApiError;
use crate::faults::{ActionFault, Fault, FaultBody, WhichAnswer, seconds};
use crate::rate_limit::Allowance;
use crate::request::Request;

/// Larger bodies are cut off; the API itself takes far less.
const MAX_BODY: usize = 1 << 20;

const GATEWAY_PAGE: &str = "<html>\r\n<head><title>Bad Gateway</title></head>\r\n<body>\r\n\
    <center><h1>Bad Gateway</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n";

/// What the client gets to see.
enum Outcome {
    Reply(Reply),
    Truncated(Reply),
    Page { status: u16, text: &'static str },
    Reset,
}

impl Outcome {
    /// The status that is counted; 0 for none.
    fn status(&self) -> u16 {
        match self {
            Self::Reply(reply) | Self::Truncated(reply) => reply.status,
            Self::Page { status, .. } => *status,
            Self::Reset => 0,
        }
    }
}

/// Answers everything below `/v1`.
pub(crate) async fn v1(
    State(cloud): State<Arc<Cloud>>,
    ConnectInfo(reset): ConnectInfo<Reset>,
    request: axum::extract::Request,
) -> Response {
    let token = token(request.headers());
    let base = base_url(&request);
    let request = match read(request).await {
        Ok(request) => request,
        Err(error) => return respond(&Outcome::Reply(error.into()), None, &base),
    };
    // In a task of its own: a client that gives up does not take back what it asked for.
    let handled = tokio::spawn(async move { handle(&cloud, &token, &request).await });
    let Ok((allowance, outcome)) = handled.await else {
        return page(500, "");
    };
    if matches!(outcome, Outcome::Reset) {
        reset.pull();
    }
    respond(&outcome, Some(allowance), &base)
}

async fn handle(cloud: &Arc<Cloud>, token: &str, request: &Request) -> (Allowance, Outcome) {
    let (project, allowance, outcome) = match cloud.admit(token, request) {
        Ok(admitted) => {
            let (project, allowance) = (admitted.project, admitted.allowance);
            (
                Some(project),
                allowance,
                deliver(cloud, admitted, request).await,
            )
        }
        Err(rejected) => (
            rejected.project,
            rejected.allowance,
            Outcome::Reply(rejected.error.into()),
        ),
    };
    cloud
        .lock()
        .ledger
        .count(project, request, outcome.status());
    (allowance, outcome)
}

fn token(headers: &HeaderMap) -> String {
    let header = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    header
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default()
        .to_owned()
}

fn base_url(request: &axum::extract::Request) -> String {
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    format!(
        "http://{}{}",
        host.unwrap_or_default(),
        request.uri().path()
    )
}

async fn read(request: axum::extract::Request) -> Result<Request, ApiError> {
    let (parts, body) = request.into_parts();
    let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
    let body = to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| ApiError::json_error())?;
    let path = parts.uri.path();
    Ok(Request {
        method: parts.method.to_string(),
        path: path.strip_prefix("/v1").unwrap_or(path).to_owned(),
        query: query.map(|Query(pairs)| pairs).unwrap_or_default(),
        body: body.to_vec(),
    })
}

/// Carries the request out in the way its fault wants.
async fn deliver(cloud: &Arc<Cloud>, admitted: Admitted, request: &Request) -> Outcome {
    let Admitted {
        project, faults, ..
    } = admitted;
    let execute = || cloud.execute(project, request, &faults.actions);
    match faults.transport {
        None | Some(Fault::Action(_)) => Outcome::Reply(execute()),
        Some(Fault::Status {
            status,
            code,
            message,
            commit,
            body,
        }) => {
            commit.then(execute);
            faulty_status(status, code, message, body)
        }
        Some(Fault::Delay {
            seconds: length,
            after_commit,
        }) => {
            let early = after_commit.then(execute);
            pause(cloud, length).await;
            Outcome::Reply(early.unwrap_or_else(execute))
        }
        Some(Fault::ResetBeforeCommit) => Outcome::Reset,
        Some(Fault::ResetAfterCommit) => {
            execute();
            Outcome::Reset
        }
        Some(Fault::ResetThenCommit { seconds }) => {
            commit_later(cloud, project, request, faults.actions, seconds);
            Outcome::Reset
        }
        Some(Fault::DeliverTwice { answer }) => {
            let (first, second) = (execute(), execute());
            let first_wanted = answer == WhichAnswer::First;
            Outcome::Reply(if first_wanted { first } else { second })
        }
        Some(Fault::TruncatedBody) => Outcome::Truncated(execute()),
    }
}

fn commit_later(
    cloud: &Arc<Cloud>,
    project: usize,
    request: &Request,
    actions: Vec<ActionFault>,
    seconds: f64,
) {
    let (cloud, request) = (Arc::clone(cloud), request.clone());
    tokio::spawn(async move {
        if pause(&cloud, seconds).await {
            cloud.execute(project, &request, &actions);
        }
    });
}

/// Waits; false when the cloud ended meanwhile.
async fn pause(cloud: &Cloud, length: f64) -> bool {
    tokio::select! {
        () = tokio::time::sleep(seconds(length)) => true,
        () = cloud.stopped() => false,
    }
}

fn faulty_status(
    status: u16,
    code: Option<String>,
    message: Option<String>,
    body: FaultBody,
) -> Outcome {
    match body {
        FaultBody::Html => Outcome::Page {
            status,
            text: GATEWAY_PAGE,
        },
        FaultBody::Empty => Outcome::Page { status, text: "" },
        FaultBody::Json => {
            let code = code.unwrap_or_else(|| usual_code(status).to_owned());
            let message = message.unwrap_or_else(|| "simulated fault".to_owned());
            Outcome::Reply(ApiError::new(status, &code, message).into())
        }
    }
}

fn usual_code(status: u16) -> &'static str {
    match status {
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not_found",
        409 => "conflict",
        412 => "resource_unavailable",
        422 => "service_error",
        423 => "locked",
        429 => "rate_limit_exceeded",
        502 => "bad_gateway",
        503 => "unavailable",
        504 => "timeout",
        _ => "server_error",
    }
}

fn respond(outcome: &Outcome, allowance: Option<Allowance>, base: &str) -> Response {
    let mut response = match outcome {
        Outcome::Reply(reply) => json_response(reply, base),
        Outcome::Truncated(reply) => truncate(reply, base),
        Outcome::Page { status, text } => page(*status, text),
        Outcome::Reset => page(500, ""),
    };
    let headers = response.headers_mut();
    let correlation = format!("{:016x}", rand::random::<u64>());
    set(headers, "x-correlation-id", &correlation);
    if let Some(allowance) = allowance {
        set(headers, "ratelimit-limit", &allowance.limit.to_string());
        set(
            headers,
            "ratelimit-remaining",
            &allowance.remaining.to_string(),
        );
        set(headers, "ratelimit-reset", &allowance.reset.to_string());
    }
    response
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn with_status(status: u16, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn json_response(reply: &Reply, base: &str) -> Response {
    let Some(body) = &reply.body else {
        return with_status(reply.status, Body::empty());
    };
    let mut response = with_status(reply.status, Body::from(body.to_string()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(page) = reply.page {
        set(headers, "link", &page.link(base));
    }
    response
}

/// Announces the whole body, sends half of it, and breaks off.
fn truncate(reply: &Reply, base: &str) -> Response {
    let mut response = json_response(reply, base);
    let whole = reply
        .body
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    let half = Bytes::copy_from_slice(&whole.as_bytes()[..whole.len() / 2]);
    let broken = io::Error::from(io::ErrorKind::ConnectionReset);
    *response.body_mut() = Body::from_stream(stream::iter([Ok(half), Err(broken)]));
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from(whole.len()));
    response
}

fn page(status: u16, text: &'static str) -> Response {
    let mut response = with_status(status, Body::from(text));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
    response
}
