//! The endpoints that the kubelet asks: is the process alive, is it ready; and the one that Prometheus scrapes.
//!
//! Alive means that something was heard of lately: a watch event, a bookmark or a reconcile. A process that hears nothing for too long is stuck
//! or cut off, and a restart costs nothing (I10). Ready means that the Kubernetes stores are filled; Hetzner's state is a condition, not readiness.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::{self, Metrics};

/// How long requests under way may take once the process is to end.
const DRAIN: Duration = Duration::from_secs(2);

/// When something was last heard of, by the monotonic clock; cheap to clone and to touch.
#[derive(Clone, Debug)]
pub struct Liveness {
    started: Instant,
    last_heard_ms: Arc<AtomicU64>,
    silence_max: Duration,
}

impl Liveness {
    /// Alive from now on, until nothing was heard for longer than `silence_max`.
    ///
    /// Each watch brings a bookmark about once a minute, so that some minutes are a fair bound.
    pub fn new(silence_max: Duration) -> Self {
        Self {
            started: Instant::now(),
            last_heard_ms: Arc::default(),
            silence_max,
        }
    }

    /// Notes that a watch event, a bookmark or a reconcile was seen.
    pub fn touch(&self) {
        self.last_heard_ms
            .fetch_max(self.age_ms(), Ordering::Relaxed);
    }

    /// For how long nothing was heard of.
    pub fn silence(&self) -> Duration {
        Duration::from_millis(
            self.age_ms()
                .saturating_sub(self.last_heard_ms.load(Ordering::Relaxed)),
        )
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn answer(&self) -> (StatusCode, String) {
        let silence = self.silence();
        if silence <= self.silence_max {
            (StatusCode::OK, "ok\n".into())
        } else {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "no watch event, bookmark or reconcile for {} s\n",
                    silence.as_secs()
                ),
            )
        }
    }
}

/// Whether the Kubernetes stores are filled; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    synced: Arc<AtomicBool>,
}

impl Readiness {
    /// Notes that every store has had its first list.
    pub fn set_synced(&self) {
        self.synced.store(true, Ordering::Relaxed);
    }

    fn answer(&self) -> (StatusCode, &'static str) {
        if self.synced.load(Ordering::Relaxed) {
            (StatusCode::OK, "ok\n")
        } else {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "the Kubernetes stores are not synced yet\n",
            )
        }
    }
}

/// Why the endpoints cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The flag is no address.
    #[error(
        "{0:?} is no address to listen on: give an IP address and a port, as in 0.0.0.0:8080 or [::]:8080"
    )]
    InvalidAddress(String),
    /// The address is taken, or not one of this machine's.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The listener failed.
    #[error("the endpoints are not served any more")]
    Serve(#[source] std::io::Error),
}

/// A bound listener: a mistaken address is told before anything else starts.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address`, such as `0.0.0.0:8080`; port 0 takes a free one.
    ///
    /// # Errors
    /// Fails when the text is no address or cannot be bound.
    pub async fn bind(address: &str) -> Result<Self, HttpError> {
        let address: SocketAddr = address
            .parse()
            .map_err(|_| HttpError::InvalidAddress(address.to_owned()))?;
        let listen = |source| HttpError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then lets requests under way end, for a few seconds at most.
    ///
    /// # Errors
    /// Fails when the listener does.
    pub async fn serve(
        self,
        routes: Router,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), HttpError> {
        let (stopping, stopped) = tokio::sync::oneshot::channel();
        let stop = async move {
            stop.await;
            // The other end waits for this until serving ends, so nobody may be left to hear it.
            let _ = stopping.send(());
        };
        let drained = async {
            if stopped.await.is_ok() {
                tokio::time::sleep(DRAIN).await;
            }
        };
        tokio::select! {
            served = axum::serve(self.listener, routes).with_graceful_shutdown(stop) => served.map_err(HttpError::Serve),
            () = drained => Ok(()),
        }
    }
}

/// `/healthz`, `/readyz` and `/metrics`.
pub fn routes(liveness: Liveness, readiness: Readiness, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(async move || liveness.answer()))
        .route("/readyz", get(async move || readiness.answer()))
        .route(
            "/metrics",
            get(async move || ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.scrape())),
        )
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;

    /// The status line and body of one GET.
    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection
            .write_all(
                format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
            )
            .await
            .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        format!("{} {body}", head.lines().next().unwrap())
    }

    async fn serve(
        liveness: Liveness,
        readiness: Readiness,
    ) -> (
        SocketAddr,
        oneshot::Sender<()>,
        tokio::task::JoinHandle<Result<(), HttpError>>,
    ) {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.address();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(listener.serve(
            routes(liveness, readiness, Metrics::new()),
            async {
                drop(stopped.await);
            },
        ));
        (address, stop, task)
    }

    #[tokio::test]
    async fn readyz_turns_green_when_the_stores_are_synced() {
        let readiness = Readiness::default();
        let (address, _stop, _task) =
            serve(Liveness::new(Duration::from_mins(5)), readiness.clone()).await;
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503"));

        readiness.set_synced();

        assert_eq!(ask(address, "/readyz").await, "HTTP/1.1 200 OK ok\n");
    }

    #[tokio::test]
    async fn healthz_turns_red_after_silence_and_green_when_something_is_heard() {
        let started = Instant::now().checked_sub(Duration::from_secs(20)).unwrap();
        let silent = Liveness {
            started,
            ..Liveness::new(Duration::from_secs(10))
        };
        let (address, _stop, _task) = serve(silent.clone(), Readiness::default()).await;
        let red = ask(address, "/healthz").await;
        assert!(
            red.starts_with(
                "HTTP/1.1 503 Service Unavailable no watch event, bookmark or reconcile for 2"
            ),
            "{red}"
        );

        silent.touch();

        assert_eq!(ask(address, "/healthz").await, "HTTP/1.1 200 OK ok\n");
    }

    #[tokio::test]
    async fn serving_ends_when_told_although_a_client_keeps_its_connection() {
        let (address, stop, task) =
            serve(Liveness::new(Duration::from_mins(5)), Readiness::default()).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET /heal").await.unwrap();

        stop.send(()).unwrap();

        tokio::time::timeout(DRAIN * 4, task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn bad_address_is_one_clear_line() {
        let error = Listener::bind("localhost").await.unwrap_err().to_string();
        assert_eq!(
            error,
            "\"localhost\" is no address to listen on: give an IP address and a port, as in 0.0.0.0:8080 or [::]:8080"
        );

        let taken = Listener::bind("127.0.0.1:0").await.unwrap();
        let error = Listener::bind(&taken.address().to_string())
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot listen on {}", taken.address())
        );
    }
}
