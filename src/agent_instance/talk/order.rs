//! Orders to a guest: `configure`, with an upgrade before it where one is due, `restart` and `release`.

use std::time::Duration;

use jiff::Timestamp;

use super::{BRIEF, Outcome};
use crate::{
    agent_instance::world::{ConfigureFailure, Configured, ContactProblem, Cure},
    crash_point, error,
    guest::{
        GuestError,
        bundle::Configure,
        program::Program,
        protocol::{self, AnswerError, Refusal, RefusalCode},
        transport::{Pinned, TransportError},
        untrusted::Text,
    },
    kube_ext::error_chain,
};

/// How long a `configure` may take: it runs the update commands of the class.
const CONFIGURE: Duration = Duration::from_mins(20);
/// How long a `restart` may take: an agent that hangs is stopped first, for which systemd gives it 90 s.
const RESTART: Duration = Duration::from_mins(2);
/// How many bytes of a failure's last lines go into a message.
const TAIL: usize = 600;

/// A `configure` and where it goes.
pub struct Order {
    /// The server, with its pinned host key.
    pub server: Pinned,
    /// What it is given.
    pub configure: Configure,
    /// The program that the guest there is to become first, if it is another.
    pub upgrade: Option<Program>,
}

impl Order {
    /// Brings the guest up to date where needed, then gives it configuration, secrets and the voice.
    pub async fn run(self) -> Outcome {
        let Self {
            server,
            configure,
            upgrade,
        } = self;
        let epoch = i64::try_from(configure.epoch).unwrap_or(i64::MAX);
        let sent = (
            configure.description.config_revision.clone(),
            configure.secrets_tag.clone(),
        );
        let done = async {
            if let Some(program) = upgrade {
                let upgrade = program.upgrade(configure.epoch);
                crash_point::around("ssh", "upgrade", server.run(&upgrade, BRIEF * 3)).await?;
            }
            crash_point::around("ssh", "configure", server.run(&configure, CONFIGURE)).await
        };
        let (outcome, stored) = match done.await {
            Ok(answered) => (Ok(answered.answer.unit.is_active()), None),
            Err(GuestError::Transport(error @ TransportError::HostKeyChanged { .. })) => {
                return Outcome::Unreached(ContactProblem::HostKeyChanged(error.to_string()));
            }
            Err(error) => (Err(failure(&error)), stored_epoch(&error)),
        };
        Outcome::Configured(
            Configured {
                epoch,
                sent,
                outcome,
            },
            stored,
        )
    }
}

/// Takes the voice away from a guest, briefly: its server is about to go, whatever it says.
pub async fn release(server: Pinned, epoch: i64) -> Outcome {
    let release = protocol::Release {
        epoch: epoch.unsigned_abs(),
    };
    let answered = crash_point::around("ssh", "release", server.run(&release, BRIEF)).await;
    Outcome::Released(
        epoch,
        answered.is_ok_and(|answered| answered.answer.released),
    )
}

/// Starts the agent's unit again; whether that helped is for the probes to say.
pub async fn restart(server: Pinned, epoch: i64) -> Outcome {
    let restart = protocol::Restart {
        epoch: epoch.unsigned_abs(),
    };
    let answered = crash_point::around("ssh", "restart", server.run(&restart, RESTART)).await;
    Outcome::Restarted(answered.err().map(|error| error_chain(&error)))
}

fn stored_epoch(error: &GuestError) -> Option<u64> {
    match error {
        GuestError::Answer(AnswerError::Refused(refusal)) => refusal.epoch,
        _ => None,
    }
}

fn failure(error: &GuestError) -> ConfigureFailure {
    match error {
        GuestError::Answer(AnswerError::Refused(refusal)) => refused(refusal),
        GuestError::Answer(error) => told_once("GuestNotUnderstood", error.to_string(), Cure::Time),
        error => told_once("GuestUnreachable", error_chain(error), Cure::Time),
    }
}

fn told_once(reason: &str, message: String, cure: Cure) -> ConfigureFailure {
    ConfigureFailure {
        reason: reason.to_owned(),
        message,
        cure,
        times: 1,
        again: None,
    }
}

fn refused(refusal: &Refusal) -> ConfigureFailure {
    use RefusalCode::{BadRequest, UnitFailed, UnitMasked, UserMissing, WrongInstance};
    let lines: Vec<&str> = refusal.tail.iter().map(Text::as_str).collect();
    let tail = lines.join(" | ");
    let kept = tail.ceil_char_boundary(tail.len().saturating_sub(TAIL));
    let message = if tail.is_empty() {
        refusal.message.to_string()
    } else {
        format!("{}: {}", refusal.message, &tail[kept..])
    };
    let cure = match refusal.code {
        UnitFailed | BadRequest | WrongInstance => Cure::Change,
        UserMissing | UnitMasked => Cure::Person,
        _ => Cure::Time,
    };
    told_once(refusal.code.as_str(), message, cure)
}

impl ConfigureFailure {
    /// The same after a former one: it is tried again after a pause that grows, unless that cannot help.
    pub(super) fn after(self, former: Option<&Configured>, now: Timestamp) -> Self {
        let before = former.and_then(|configured| configured.outcome.as_ref().err());
        let times = before.map_or(0, |failure| failure.times) + 1;
        let again = now.checked_add(error::SLOW.pause(times)).ok();
        Self {
            times,
            again: again.filter(|_| self.cure != Cure::Change),
            ..self
        }
    }
}
