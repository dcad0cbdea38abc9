//! Two clients for one API server: reads may wait, writes may not and are sent once.
//!
//! The kube crate sends any verb again on 429, 503 and 504, fifteen times and for as long as the server asks. A write that was planned on a view
//! of the world must not be sent when that view is old, so neither client tries again: a watch has its own back-off, all else the requeue.

use std::time::Duration;

use kube::{Client, Config};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A bookmark comes about each minute, so a watch that is silent for longer than two of them is dead.
const WATCH_READ_TIMEOUT: Duration = Duration::from_secs(150);

/// The ways to the API server.
#[derive(Clone)]
pub struct Clients {
    /// For watches, lists and single reads.
    pub read: Client,
    /// For everything that changes something, and for the Lease: one attempt, 15 s.
    pub write: Client,
}

/// Makes both clients from one configuration.
///
/// # Errors
/// Fails on a configuration with unusable certificates or credentials; nothing is sent yet.
pub fn clients(config: &Config) -> kube::Result<Clients> {
    let bounded = |read_timeout| {
        let mut config = config.clone();
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(read_timeout);
        config.write_timeout = Some(super::CALL_DEADLINE);
        // Otherwise the time a connection lay idle in the pool counts against the next answer on it.
        config.reset_reader_on_write = true;
        config.default_retry = false;
        Client::try_from(config)
    };
    Ok(Clients {
        read: bounded(WATCH_READ_TIMEOUT)?,
        write: bounded(super::CALL_DEADLINE)?,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::Router;
    use axum::http::{HeaderName, StatusCode};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::{Api, PostParams};

    use super::*;

    /// An API server that is always too busy, and its count of requests.
    async fn busy_api_server() -> (Config, Arc<AtomicU32>) {
        let count = Arc::new(AtomicU32::new(0));
        let counter = count.clone();
        let busy = Router::new().fallback(async move || {
            counter.fetch_add(1, Ordering::Relaxed);
            (
                StatusCode::TOO_MANY_REQUESTS,
                [(HeaderName::from_static("retry-after"), "0")],
            )
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, busy).await });
        (
            Config::new(format!("http://{address}").parse().unwrap()),
            count,
        )
    }

    #[tokio::test]
    async fn each_request_is_sent_once() {
        let (config, count) = busy_api_server().await;
        let Clients { read, write } = clients(&config).unwrap();

        Api::<ConfigMap>::default_namespaced(write)
            .create(&PostParams::default(), &ConfigMap::default())
            .await
            .unwrap_err();
        Api::<ConfigMap>::default_namespaced(read)
            .get("one")
            .await
            .unwrap_err();

        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
