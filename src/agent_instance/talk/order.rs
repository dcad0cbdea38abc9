//! Orders to a guest: `configure`, with an upgrade before it where one is due, and `release`.

use std::time::Duration;

use super::{BRIEF, Outcome};
use crate::{
    agent_instance::world::{ConfigureFailure, Configured, ContactProblem},
    crash_point,
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

fn stored_epoch(error: &GuestError) -> Option<u64> {
    match error {
        GuestError::Answer(AnswerError::Refused(refusal)) => refusal.epoch,
        _ => None,
    }
}

fn failure(error: &GuestError) -> ConfigureFailure {
    match error {
        GuestError::Answer(AnswerError::Refused(refusal)) => refused(refusal),
        GuestError::Answer(error) => ConfigureFailure {
            reason: "GuestNotUnderstood".into(),
            message: error.to_string(),
            lasting: false,
        },
        error => ConfigureFailure {
            reason: "GuestUnreachable".into(),
            message: error_chain(error),
            lasting: false,
        },
    }
}

fn refused(refusal: &Refusal) -> ConfigureFailure {
    use RefusalCode::{BadRequest, UnitFailed, UserMissing, WrongInstance};
    let lines: Vec<&str> = refusal.tail.iter().map(Text::as_str).collect();
    let tail = lines.join(" | ");
    let kept = tail.ceil_char_boundary(tail.len().saturating_sub(TAIL));
    let message = if tail.is_empty() {
        refusal.message.to_string()
    } else {
        format!("{}: {}", refusal.message, &tail[kept..])
    };
    let lasting = matches!(
        refusal.code,
        UnitFailed | UserMissing | BadRequest | WrongInstance
    );
    ConfigureFailure {
        reason: refusal.code.as_str().to_owned(),
        message,
        lasting,
    }
}
