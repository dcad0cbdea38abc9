//! Orders to a guest: `configure`, with an upgrade before it where one is due, `restart` and `release`.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{BRIEF, GuestKey, Lines, Outcome, Unreleased};
use crate::{
    agent_instance::world::{ConfigureFailure, Configured, ContactProblem, Cure},
    crash_point, error,
    guest::{
        GuestError,
        bundle::Configure,
        line::Line,
        program::Program,
        protocol::{self, AnswerError, Refusal, RefusalCode},
        transport::{Pinned, TransportError},
        untrusted::end_of,
    },
    kube_ext::error_chain,
    redact::KnownSecrets,
};

/// How long a `configure` may take: it runs the update commands of the class.
const CONFIGURE: Duration = Duration::from_mins(20);
/// How long a `restart` may take: an agent that hangs is stopped first, for which systemd gives it 90 s.
const RESTART: Duration = Duration::from_mins(2);
/// How long a `release` may take when the guest was reached: it gives the agent as long to stop as its unit says, but no more than ten minutes.
const RELEASE: Duration = Duration::from_mins(12);
/// How many bytes of a failure's last lines go into a message.
const TAIL: usize = 600;

/// A `configure` and where it goes.
pub struct Order {
    /// The server, with its pinned host key.
    pub server: Pinned,
    /// What it is given.
    pub configure: Configure,
    /// A line that may lead there.
    pub line: Option<Line>,
    /// What the agent may tell of its Secret.
    pub known: KnownSecrets,
    /// The tag of the secrets that the agent has until then.
    pub given: Option<String>,
    /// The program that the guest there is to become first, if it is another.
    pub upgrade: Option<Program>,
}

impl Order {
    /// Brings the guest up to date where needed, then gives it configuration, secrets and the voice.
    pub async fn run(self) -> Outcome {
        let Self {
            server,
            configure,
            mut line,
            known,
            given,
            upgrade,
        } = self;
        let epoch = i64::try_from(configure.epoch).unwrap_or(i64::MAX);
        let sent = (
            configure.description.config_revision.clone(),
            configure.secrets_tag.clone(),
        );
        let done = async {
            if let Some(program) = upgrade {
                // What is ready on the line is the former program.
                line = None;
                brought(&server, &mut line, &program, configure.epoch).await?;
            }
            let given = server.run_on(&mut line, None, &configure, CONFIGURE);
            crash_point::around("ssh", "configure", given).await
        };
        let (outcome, stored) = match done.await {
            Ok(answered) => (Ok(answered.answer.unit.is_active()), None),
            Err(GuestError::Transport(error @ TransportError::HostKeyChanged { .. })) => {
                return Outcome::Unreached(ContactProblem::HostKeyChanged(error.to_string()));
            }
            Err(error) => {
                let clean = |said: &str| known.clean(said, given.iter().chain([&sent.1]));
                (Err(failure(&error, &clean)), stored_epoch(&error))
            }
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

/// Brings a guest up to date that has nothing else to do for the operator yet.
pub async fn upgrade(
    server: Pinned,
    program: Program,
    epoch: i64,
    (key, lines): (GuestKey, Arc<Lines>),
) -> Outcome {
    let mut line = lines.take(&key);
    let done = brought(&server, &mut line, &program, epoch.unsigned_abs()).await;
    if let Some(line) = line {
        lines.keep(key, line);
    }
    Outcome::Upgraded(done.is_ok())
}

async fn brought(
    server: &Pinned,
    line: &mut Option<Line>,
    program: &Program,
    epoch: u64,
) -> Result<(), GuestError> {
    let upgrade = program.upgrade(epoch);
    let given = server.run_on(line, None, &upgrade, BRIEF * 3);
    crash_point::around("ssh", "upgrade", given).await?;
    Ok(())
}

/// Takes the voice away from a guest, and what its agent has changed with it. One whose server goes `for_good` has nothing to say that is worth
/// waiting for.
pub async fn release(server: Pinned, epoch: i64, for_good: bool) -> Outcome {
    let release = protocol::Release {
        epoch: epoch.unsigned_abs(),
    };
    let patience = if for_good { BRIEF } else { RELEASE };
    let asked = server.run_long(&release, BRIEF, patience);
    let answered = crash_point::around("ssh", "release", asked).await;
    let kept = match answered {
        Ok(answered) if answered.answer.released => Ok(answered.answer.kept.into_iter().collect()),
        Err(GuestError::Answer(AnswerError::Refused(refusal)))
            if refusal.code == RefusalCode::Busy =>
        {
            Err(Unreleased::Busy)
        }
        _ => Err(Unreleased::InVain),
    };
    Outcome::Released(epoch, kept)
}

/// Starts the agent's unit again; whether that helped is for the probes to say.
pub async fn restart(server: Pinned, epoch: i64) -> Outcome {
    let restart = protocol::Restart {
        epoch: epoch.unsigned_abs(),
    };
    match crash_point::around("ssh", "restart", server.run(&restart, RESTART)).await {
        Err(GuestError::Transport(error @ TransportError::HostKeyChanged { .. })) => {
            Outcome::Unreached(ContactProblem::HostKeyChanged(error.to_string()))
        }
        answered => Outcome::Restarted(answered.err().map(|error| error_chain(&error))),
    }
}

fn stored_epoch(error: &GuestError) -> Option<u64> {
    match error {
        GuestError::Answer(AnswerError::Refused(refusal)) => refusal.epoch,
        _ => None,
    }
}

fn failure(error: &GuestError, clean: &Clean<'_>) -> ConfigureFailure {
    match error {
        GuestError::Answer(AnswerError::Refused(refusal)) => refused(refusal, clean),
        GuestError::Answer(error) => told_once("GuestNotUnderstood", error.to_string(), Cure::Time),
        error => told_once("GuestUnreachable", error_chain(error), Cure::Time),
    }
}

fn told_once(reason: &str, message: String, cure: Cure) -> ConfigureFailure {
    ConfigureFailure {
        reason: reason.to_owned(),
        message,
        cure,
        of_content: false,
        as_before: true,
        times: 1,
        again: None,
    }
}

/// A unit's last lines without what the agent was given, now or before, which it may have written there as it died; none where that is not known.
type Clean<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// What is told in place of those.
const UNTOLD: &str =
    "its last lines are not shown, as the Secret that the agent had before is not known any more";

fn refused(refusal: &Refusal, clean: &Clean<'_>) -> ConfigureFailure {
    use RefusalCode::{
        BadRequest, CommandFailed, PackageFailed, SourceFailed, UnitFailed, UnitMasked,
        UserMissing, WrongInstance,
    };
    let then = match refusal.restored {
        None => "",
        Some(true) => "; what it had before runs again",
        Some(false) => "; what it had before is back in its place and does not stay up either",
    };
    let said = refusal.tail.line();
    let tail = match said.as_str() {
        "" => said,
        said => clean(said).unwrap_or_else(|| UNTOLD.into()),
    };
    let message = if tail.is_empty() {
        format!("{}{then}", refusal.message)
    } else {
        format!("{}{then}: {}", refusal.message, end_of(&tail, TAIL))
    };
    let cure = match refusal.code {
        UnitFailed | BadRequest | WrongInstance => Cure::Change,
        UserMissing | UnitMasked => Cure::Person,
        _ => Cure::Time,
    };
    ConfigureFailure {
        of_content: matches!(
            refusal.code,
            UnitFailed | BadRequest | SourceFailed | CommandFailed | PackageFailed
        ),
        as_before: refusal.is_without_effect(),
        ..told_once(refusal.code.as_str(), message, cure)
    }
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
