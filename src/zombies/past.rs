//! Asks the guests of unclaimed servers for their past.
//!
//! A guest counts only when it proves its host key, as that of any server whose key is not pinned: with the key from its user-data, or the one
//! from its last `configure`. Whatever else comes back is silence.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::{StreamExt as _, stream};

use super::world::{Guest, ServerView};
use crate::{
    crash_point,
    guest::proof::{Accept, Unproven},
    keys::Keyring,
    kube_ext::error_chain,
};

/// How long a guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many guests are asked in one sweep; of the others it is not known that they hold nothing.
const ASKED: usize = 64;
/// How many guests are asked side by side.
const SIDE_BY_SIDE: usize = 8;

/// Asks guests for their past, by the names of their servers.
pub async fn ask_all(keyring: &Keyring, port: u16, servers: Vec<(&str, &mut ServerView)>) {
    let numbered = stream::iter(servers).enumerate();
    numbered
        .for_each_concurrent(SIDE_BY_SIDE, |(number, (name, server))| async move {
            server.guest = match server.address {
                Some(address) if number < ASKED => {
                    past(keyring, name, server, (address, port)).await
                }
                _ => Guest::Silent,
            };
        })
        .await;
}

async fn past(keyring: &Keyring, name: &str, server: &ServerView, at: (IpAddr, u16)) -> Guest {
    let Some(master) = keyring.by_id(&server.key_id) else {
        return Guest::Silent;
    };
    let keys = master.server_keys(name);
    let guest = Unproven {
        address: SocketAddr::from(at),
        login: keys.login.clone(),
        fleet: keyring.fleet().to_owned(),
        server: name.to_owned(),
    };
    let accept = Accept::Either {
        boot: keys.boot_proof.clone(),
        resume: keys.resume_proof.clone(),
    };
    let proven = guest.prove(&accept, PATIENCE);
    match crash_point::around("ssh", "hello zombie", proven).await {
        Ok(proven) if proven.greeting.answer.ever_armed => Guest::Armed,
        Ok(proven) if proven.greeting.answer.armed.is_some() => Guest::Armed,
        Ok(_) => Guest::NeverArmed,
        Err(error) => {
            tracing::debug!(
                server = name,
                error = error_chain(&error),
                "a guest was not heard"
            );
            Guest::Silent
        }
    }
}
