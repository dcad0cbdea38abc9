//! A small HTTP client for the tests: one connection a request, so that a reset is seen as one.

use std::time::{Duration, Instant};

use hetzner_sim::Simulator;
use hyper::Request;
use hyper::body::{Body, Bytes};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// How long a test waits for what must happen.
pub(crate) const DEADLINE: Duration = Duration::from_mins(3);

/// A connection that broke.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// An answer as it came over the wire.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

/// Asks with a token of one's own; an error is a connection that broke.
pub(crate) async fn ask_as(
    simulator: &Simulator,
    token: &str,
    method: &str,
    path: &str,
    body: &Value,
) -> Result<Answer, Failure> {
    request(
        &format!("{}{path}", simulator.endpoint()),
        token,
        method,
        body,
    )
    .await
}

/// Asks a control endpoint, which must answer well.
pub(crate) async fn control(
    simulator: &Simulator,
    method: &str,
    path: &str,
    body: &Value,
) -> Value {
    let url = format!("{}{path}", simulator.control_endpoint());
    let answer = request(&url, "", method, body).await.unwrap();
    assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text);
    answer.json()
}

pub(crate) async fn request(
    url: &str,
    token: &str,
    method: &str,
    body: &Value,
) -> Result<Answer, Failure> {
    let (authority, path) = url.trim_start_matches("http://").split_once('/').unwrap();
    let stream = TcpStream::connect(authority).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let request = Request::builder()
        .method(method)
        .uri(format!("/{path}"))
        .header(HOST, authority)
        .header(AUTHORIZATION, format!("Bearer {token}"))
        .header(CONTENT_TYPE, "application/json")
        .body(body)?;
    let response = sender.send_request(request).await?;
    let (parts, body) = response.into_parts();
    let text = String::from_utf8(collect(body).await?)?;
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        text,
    })
}

async fn collect<B>(mut body: B) -> Result<Vec<u8>, B::Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut bytes = Vec::new();
    while let Some(frame) =
        std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await
    {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

/// Asks with the token of the first project.
pub(crate) async fn ask(
    simulator: &Simulator,
    method: &str,
    path: &str,
    body: &Value,
) -> Result<Answer, Failure> {
    ask_as(simulator, "test-token", method, path, body).await
}

/// A request for a server.
pub(crate) fn wish(name: &str) -> Value {
    json!({"name": name, "server_type": "cx23", "image": "debian-13", "location": "nbg1"})
}

/// Waits until `found` finds something.
pub(crate) async fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(it) = found() {
            return it;
        }
        assert!(began.elapsed() < DEADLINE, "{what} did not happen in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
