//! One request to Hetzner on behalf of a plan: leadership, budget, crash points and what can go wrong, in one place.

use std::time::Instant;

use super::connection::Connection;
use crate::{
    crash_point,
    error::Setback,
    hetzner::{Class, Client, Error as HetznerError, ErrorCode, Lane, Permit, RetryAt},
    kube_ext::CallError,
    leader::Leadership,
};

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The budget has no request left for it now.
    #[error("no request left now")]
    Budget(RetryAt),
    /// This process does not hold the Lease (I11).
    #[error("this replica does not hold the lease")]
    NotLeading,
    /// Hetzner refused or did not answer.
    #[error("hetzner did not do it")]
    Hetzner(#[from] HetznerError),
    /// Kubernetes refused or did not answer.
    #[error("kubernetes did not do it")]
    Kubernetes(#[from] CallError),
}

/// One request: what for, and whose place in the lane it takes.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The lane.
    pub lane: Lane,
    /// The place in the lane.
    pub who: &'a str,
    /// Verb and route, such as `GET /ssh_keys`.
    pub route: &'static str,
}

impl Connection {
    /// Sends a request that changes nothing.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn read<T>(
        &self,
        asked: Asked<'_>,
        send: impl AsyncFnOnce(&Client, Permit) -> Result<T, HetznerError>,
    ) -> Result<T, Failure> {
        let permit = self
            .budget
            .try_acquire(asked.lane, asked.who, Instant::now())
            .map_err(Failure::Budget)?;
        Ok(crash_point::around("hetzner", asked.route, send(&self.client, permit)).await?)
    }

    /// Sends a request that changes something, if this process may.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn mutate<T>(
        &self,
        leadership: &Leadership,
        asked: Asked<'_>,
        send: impl AsyncFnOnce(&Client, Permit) -> Result<T, HetznerError>,
    ) -> Result<T, Failure> {
        if !leadership.holds() {
            return Err(Failure::NotLeading);
        }
        self.read(asked, send).await
    }
}

impl Failure {
    /// Whether the token is at fault.
    pub fn of_credentials(&self) -> bool {
        matches!(self, Self::Hetzner(error) if error.class() == Class::Credentials)
    }

    /// Whether Hetzner says that there is no such thing.
    pub fn not_found(&self) -> bool {
        matches!(self, Self::Hetzner(error) if error.class() == Class::NotFound)
    }

    /// Whether Hetzner says that a name is taken.
    pub fn name_taken(&self) -> bool {
        matches!(self, Self::Hetzner(error) if error.class() == Class::NameTaken)
    }

    /// Whether Hetzner says that something still uses the thing.
    pub fn in_use(&self) -> bool {
        matches!(self, Self::Hetzner(error) if *error.code() == ErrorCode::ResourceInUse)
    }
}

impl From<Failure> for Setback {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Budget(RetryAt(at)) => {
                let wait = at.saturating_duration_since(Instant::now());
                Self::until(
                    "WaitingForBudget",
                    "Hetzner's request allowance for this project is used up; it refills by itself",
                    wait,
                )
            }
            Failure::NotLeading => Self::not_leading(),
            Failure::Kubernetes(error) => error.into(),
            Failure::Hetzner(error) => match error.code() {
                ErrorCode::Unauthorized => Self::slow(
                    "TokenRejected",
                    format!(
                        "Hetzner does not know the token; make one in the Hetzner Console (Security, API tokens) and put it into the Secret: {error}"
                    ),
                ),
                ErrorCode::TokenReadonly => Self::slow(
                    "TokenReadOnly",
                    format!(
                        "the token may only read; agentfleet needs one with Read & Write: {error}"
                    ),
                ),
                _ if error.class() == Class::Credentials => Self::slow(
                    "TokenForbidden",
                    format!("Hetzner does not allow it with this token: {error}"),
                ),
                _ => error.into(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::{
        hetzner::{
            ServerId,
            stub::{self, Reply},
        },
        inventory::{Config, Inventory, KeyLabels, Periods},
    };

    #[tokio::test]
    async fn i11_without_the_lease_nothing_is_deleted_whatever_was_read_before() {
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        let endpoint = stub::serve(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            Reply::json("200 OK", &serde_json::json!({"server": {"id": 7}}))
        })
        .await;
        let key_labels = KeyLabels {
            namespace: "a".into(),
            name: "b".into(),
        };
        let inventory = Inventory::new(Config {
            selector: "c".into(),
            key_labels,
            periods: Periods::default(),
        });
        let connection = Connection::new("one", stub::client(&endpoint), "abc".into(), inventory);
        let asked = |route| Asked {
            lane: Lane::Zombie,
            who: "sweep",
            route,
        };
        let read = connection.read(asked("GET /servers/{id}"), async |client, permit| {
            client.get_server(permit, ServerId(7)).await
        });
        assert!(read.await.is_ok());
        let leadership = Leadership::over();
        let deleted = connection.mutate(
            &leadership,
            asked("DELETE /servers/{id}"),
            async |client, permit| client.delete_server(permit, ServerId(7)).await,
        );
        assert!(matches!(deleted.await, Err(Failure::NotLeading)));
        assert_eq!(sent.load(Ordering::SeqCst), 1);
    }
}
