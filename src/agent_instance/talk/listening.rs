//! Listening to a guest: its proof, and then its progress, until it tells something new.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{BRIEF, GuestKey, Lines, Outcome};
use crate::{
    agent_instance::world::ContactProblem,
    crash_point,
    guest::{
        GuestError,
        host_key::HostKey,
        proof::{Accept, ProofError, Unproven},
        protocol::{self, Verb},
        transport::{Stage, TransportError},
    },
    kube_ext::error_chain,
};

/// How long a server that does not answer is tried before the reconciler hears of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// Where a guest is, and what is known of it.
pub struct Listening {
    /// Server, login and fleet.
    pub guest: Unproven,
    /// The pinned host key; none yet.
    pub pinned: Option<HostKey>,
    /// The proofs that count while none is pinned.
    pub accept: Accept,
    /// The progress that was told last.
    pub seen: String,
    /// Whose guest it is.
    pub key: GuestKey,
    /// Where its line is kept meanwhile.
    pub lines: Arc<Lines>,
    /// The command that is to be ready when the guest has told all.
    pub next: Option<Verb>,
}

impl Listening {
    /// Tries until the guest tells something new, or patience is over.
    pub async fn run(self) -> Outcome {
        let end = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(100);
        loop {
            match crash_point::around("ssh", "hello", self.once()).await {
                Err(ContactProblem::Silent(_)) if Instant::now() + pause < end => {}
                Err(problem) => return Outcome::Unreached(problem),
                Ok(outcome) => return outcome,
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE);
        }
    }

    async fn once(&self) -> Result<Outcome, ContactProblem> {
        let Some(host_key) = &self.pinned else {
            let proven = self
                .guest
                .prove(&self.accept, BRIEF)
                .await
                .map_err(unproven)?;
            self.lines.keep(self.key.clone(), proven.line);
            return Ok(Outcome::Greeted(
                Some(proven.host_key),
                Box::new(proven.greeting),
            ));
        };
        let hello = protocol::Hello::new(protocol::MAX_WAIT, &self.seen);
        let pinned = self.guest.pinned(host_key.clone());
        let mut line = self.lines.take(&self.key);
        let greeting = pinned
            .run_on(&mut line, self.next, &hello, protocol::MAX_WAIT + BRIEF)
            .await
            .map_err(|error| unreached(&error))?;
        if let Some(line) = line {
            self.lines.keep(self.key.clone(), line);
        }
        Ok(Outcome::Greeted(None, Box::new(greeting)))
    }
}

fn unproven(error: ProofError) -> ContactProblem {
    match error {
        ProofError::Guest(error) => unreached(&error),
        error @ (ProofError::Wrong { .. } | ProofError::Missing { .. }) => {
            ContactProblem::WrongProof(error.to_string())
        }
    }
}

/// A server that boots refuses connections, cuts them, and does not know the login yet: all that is silence.
fn unreached(error: &GuestError) -> ContactProblem {
    let words = error_chain(error);
    match error {
        GuestError::Transport(TransportError::HostKeyChanged { .. }) => {
            ContactProblem::HostKeyChanged(words)
        }
        GuestError::Transport(
            TransportError::AnswerTooLarge
            | TransportError::Garbage {
                stage: Stage::Command,
                ..
            },
        )
        | GuestError::Answer(_) => ContactProblem::Garbage(words),
        GuestError::Transport(_) | GuestError::Request(_) => ContactProblem::Silent(words),
    }
}
