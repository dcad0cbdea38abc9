//! A server for tests that answers each request with the bytes a test chooses.

use super::{Budget, Client, Lane, Permit};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the stub does with a request.
pub(crate) enum Reply {
    /// Writes these bytes and closes.
    Bytes(Vec<u8>),
    /// Resets the connection.
    Reset,
    /// Writes these bytes and then nothing more.
    Hang(Vec<u8>),
}

impl Reply {
    /// A complete answer; `headers` end with a line break each.
    pub(crate) fn http(status: &str, headers: &str, body: &str) -> Self {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n"
        );
        Self::Bytes((head + body).into_bytes())
    }

    /// A complete answer with the usual headers.
    pub(crate) fn json(status: &str, body: &serde_json::Value) -> Self {
        let headers =
            "ratelimit-limit: 3600\r\nratelimit-remaining: 3000\r\nx-correlation-id: abc-1\r\n";
        Self::http(status, headers, &body.to_string())
    }
}

/// Answers requests (head and body as one text) on a port of its own until the test ends.
pub(crate) async fn serve(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1/", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move { handle(stream, &*answer).await });
        }
    });
    endpoint
}

async fn handle(mut stream: TcpStream, answer: &(dyn Fn(&str) -> Reply + Send + Sync)) {
    let request = read_request(&mut stream).await;
    match answer(&request) {
        Reply::Bytes(bytes) => stream.write_all(&bytes).await.unwrap_or_default(),
        Reply::Reset => stream.set_zero_linger().unwrap(),
        Reply::Hang(bytes) => {
            stream.write_all(&bytes).await.unwrap_or_default();
            // Until the client gives up.
            let mut rest = [0; 16];
            while stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return text;
        }
    }
}

/// The token of [`client`].
pub(crate) const TOKEN: &str = "6MWq3U8cTn2bXr7kLp0vZy4hGd9sFw1jQe5aBm6uCi8oRt3xKz7nHv2yPl4gJd9";

/// A client of `endpoint`, patient for two seconds.
pub(crate) fn client(endpoint: &str) -> Client {
    Client::new(endpoint, TOKEN.into(), Duration::from_secs(2)).unwrap()
}

/// A permit of a budget that nobody else uses.
pub(crate) fn permit() -> Permit {
    Budget::new()
        .try_acquire(Lane::Other, "test", Instant::now())
        .ok()
        .unwrap()
}
