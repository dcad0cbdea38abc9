//! A token that one agent may hold at a time, as a bot's is at the service that it polls.
//!
//! Agents claim it with each beat, over the network that they have, so what is seen here is what such a service would see. It answers all alike
//! and judges afterwards: a service that refuses the second holder would hide him.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::failure::{Failure, Outcome, ensure};

/// How long a claim holds: three beats of the agent of `tests/agent`.
const LEASE: Duration = Duration::from_millis(300);

/// When each claim came, and whose it was.
type Claims = Arc<Mutex<Vec<(Instant, String)>>>;

/// A token, to be had while this lives.
pub struct Token {
    url: String,
    claims: Claims,
    serving: JoinHandle<()>,
}

impl Token {
    /// Serves it on a free port of an address.
    ///
    /// # Errors
    /// Fails when there is none.
    pub async fn serve(address: IpAddr) -> Outcome<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let url = format!("http://{}/claim", listener.local_addr()?);
        let claims = Claims::default();
        let router = Router::new()
            .route("/claim", post(claim))
            .with_state(Arc::clone(&claims));
        let serving = tokio::spawn(async move {
            // It ends with the task.
            let _ended = axum::serve(listener, router).await;
        });
        Ok(Self {
            url,
            claims,
            serving,
        })
    }

    /// Where agents claim it, with their name as the body of a POST.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Who holds it now.
    pub fn holder(&self) -> Option<String> {
        let claims = self.claims();
        let (at, holder) = claims.last()?;
        (at.elapsed() < LEASE).then(|| holder.clone())
    }

    /// How often it was claimed under a name.
    pub fn claims_of(&self, name: &str) -> usize {
        let claims = self.claims();
        claims.iter().filter(|(_, holder)| holder == name).count()
    }

    /// Each time it went from one to another: from whom, to whom, and how long nobody claimed it between the two.
    pub fn moves(&self) -> Vec<(String, String, Duration)> {
        let claims = self.claims();
        let pairs = claims.windows(2).filter(|pair| pair[0].1 != pair[1].1);
        pairs
            .map(|pair| {
                let ((last, from), (first, to)) = (&pair[0], &pair[1]);
                (from.clone(), to.clone(), first.duration_since(*last))
            })
            .collect()
    }

    /// Fails when two ever held it within one lease (I13), or nobody ever did.
    ///
    /// # Errors
    /// As said.
    pub fn one_holder(&self) -> Outcome {
        ensure(!self.claims().is_empty(), || "nobody claimed it".into())?;
        let mut moves = self.moves().into_iter();
        match moves.find(|(_, _, silence)| *silence < LEASE) {
            None => Ok(()),
            Some((from, to, silence)) => Err(Failure::new(format!(
                "two voices: {to} claimed the token {silence:?} after {from} had"
            ))),
        }
    }

    fn claims(&self) -> Vec<(Instant, String)> {
        self.claims
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn claim(State(claims): State<Claims>, name: String) {
    let mut claims = claims.lock().unwrap_or_else(PoisonError::into_inner);
    claims.push((Instant::now(), name));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &[(u64, &str)]) -> Token {
        let began = Instant::now();
        let claims = claims
            .iter()
            .map(|(at, name)| (began + Duration::from_millis(*at), (*name).to_owned()));
        Token {
            url: String::new(),
            claims: Arc::new(Mutex::new(claims.collect())),
            serving: tokio::spawn(async {}),
        }
    }

    #[tokio::test]
    async fn two_claims_within_a_lease_are_two_voices_unless_one_agent_made_them() {
        assert!(token(&[]).one_holder().is_err());
        assert!(
            token(&[(0, "a"), (100, "a"), (500, "b")])
                .one_holder()
                .is_ok()
        );
        assert!(token(&[(0, "a"), (100, "b")]).one_holder().is_err());
        assert!(
            token(&[(0, "a"), (400, "b"), (500, "b"), (600, "a")])
                .one_holder()
                .is_err()
        );
    }
}
