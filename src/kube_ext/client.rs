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
    Ok(Clients { read: bounded(WATCH_READ_TIMEOUT)?, write: bounded(super::CALL_DEADLINE)? })
}
