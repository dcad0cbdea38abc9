//! Talking to guests: acts over SSH that run beside the reconcilers, and what is learnt from them.
//!
//! A reconcile starts an act and goes on; when it is over, the instance is looked at again and [`absorb`] takes the outcome into memory. Only
//! here does anything wait for a server, always within a deadline.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::{
    desired::Identity,
    memory::{GuestMemory, Memory},
    world::{ConfigureFailure, Configured, ContactProblem, Cure, Hello, InstallPhase, ServerView},
};
use crate::{
    context::Context,
    crash_point,
    error::{self, Setback},
    guest::{
        GuestError,
        acts::Acts,
        answers::{Greeting, Phase, Step, StepState},
        bundle::Configure,
        host_key::HostKey,
        program::Program,
        proof::{Accept, ProofError, Unproven},
        protocol::{self, AnswerError, Answered, Refusal, RefusalCode},
        transport::{Pinned, Stage, TransportError},
        untrusted::Text,
    },
    health::Probes,
    kube_ext::error_chain,
};

/// How long a server that does not answer is tried before the reconciler hears of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a guest may take for what it does at once.
const BRIEF: Duration = Duration::from_secs(10);
/// How long a `configure` may take: it runs the update commands of the class.
const CONFIGURE: Duration = Duration::from_mins(20);
/// How many bytes of a failure's last lines go into a message.
const TAIL: usize = 600;

/// Whose guest an act concerns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GuestKey {
    /// Namespace of the instance.
    pub namespace: String,
    /// Name of the instance.
    pub name: String,
    /// UID of the instance.
    pub uid: String,
    /// Id of the server.
    pub server: i64,
}

impl GuestKey {
    /// The key of one server of an instance.
    pub fn new(identity: &Identity, server: i64) -> Self {
        let Identity {
            namespace,
            name,
            uid,
        } = identity.clone();
        Self {
            namespace,
            name,
            uid,
            server,
        }
    }
}

/// What came of an act.
#[derive(Debug)]
pub enum Outcome {
    /// It was reached; with the host key if that was proven just now.
    Greeted(Option<HostKey>, Box<Answered<Greeting>>),
    /// It was not reached, or not believed.
    Unreached(ContactProblem),
    /// A `configure`.
    Configured(Configured, Option<u64>),
    /// A `release` with this epoch; whether it was done.
    Released(i64, bool),
}

/// Acts in two pools, so that long polls never keep a `configure` waiting; and the probes.
pub struct Talks {
    hellos: Acts<GuestKey, Outcome>,
    orders: Acts<GuestKey, Outcome>,
    /// Whoever asks agents for their health.
    pub probes: Probes,
}

/// The keys of acts that are over.
pub type Ended = tokio::sync::mpsc::UnboundedReceiver<GuestKey>;

impl Talks {
    /// Pools for so many long polls and so many orders at once.
    pub fn new(hellos: usize, orders: usize, probes: Probes) -> (Self, [Ended; 2]) {
        let (hellos, greeted) = Acts::new(hellos);
        let (orders, obeyed) = Acts::new(orders);
        let talks = Self {
            hellos,
            orders,
            probes,
        };
        (talks, [greeted, obeyed])
    }

    /// Starts to listen to a guest.
    pub fn listen(&self, key: GuestKey, act: impl Future<Output = Outcome> + Send + 'static) {
        self.hellos.start(key, act);
    }

    /// Starts to give a guest an order, which may be what its agent's health hangs on.
    pub fn order(&self, key: GuestKey, act: impl Future<Output = Outcome> + Send + 'static) {
        self.probes.forget(&key);
        self.orders.start(key, act);
    }

    /// Drops what is under way with a server that is going.
    pub fn forget(&self, key: &GuestKey) {
        self.hellos.forget(key);
        self.orders.forget(key);
        self.probes.forget(key);
    }
}

/// Whether an act with this guest is under way.
pub fn is_busy(ctx: &Context, key: &GuestKey) -> bool {
    ctx.talks.hellos.is_running(key) || ctx.talks.orders.is_running(key)
}

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
            return Ok(Outcome::Greeted(
                Some(proven.host_key),
                Box::new(proven.greeting),
            ));
        };
        let hello = protocol::Hello::new(protocol::MAX_WAIT, &self.seen);
        let greeting = self
            .guest
            .pinned(host_key.clone())
            .run(&hello, protocol::MAX_WAIT + BRIEF)
            .await
            .map_err(|error| unreached(&error))?;
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
    fn after(self, former: Option<&Configured>, now: Timestamp) -> Self {
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

/// Takes the outcomes of acts that are over into memory.
pub fn absorb(ctx: &Context, identity: &Identity, memory: &mut Memory, now: Timestamp) {
    let servers: Vec<i64> = memory.guests.keys().copied().collect();
    for server in servers {
        let key = GuestKey::new(identity, server);
        for pool in [&ctx.talks.hellos, &ctx.talks.orders] {
            match pool.take_result(&key) {
                Some(Ok(outcome)) => learn(ctx, memory, server, outcome, now),
                Some(Err(panicked)) => {
                    memory.failed(Setback::lasting("Defect", panicked.to_string()), now);
                }
                None => {}
            }
        }
    }
}

fn learn(ctx: &Context, memory: &mut Memory, server: i64, outcome: Outcome, now: Timestamp) {
    match outcome {
        Outcome::Greeted(proven, greeting) => {
            let guest = memory.guest(server);
            guest.outdated = ctx.program.is_wanted_by(&greeting.guest);
            greeted(guest, proven, &greeting);
        }
        Outcome::Unreached(problem) => memory.guest(server).view.contact = Some((problem, now)),
        Outcome::Released(epoch, done) => memory.guest(server).view.released = Some((epoch, done)),
        Outcome::Configured(configured, stored) => {
            if configured.outcome.is_ok() {
                memory.succeeded();
            }
            let guest = memory.guest(server);
            if let (Some(epoch), Some(hello)) = (stored, &mut guest.view.hello) {
                hello.epoch = i64::try_from(epoch).unwrap_or(i64::MAX);
            }
            guest.outdated &= configured.outcome.is_err();
            let former = guest.view.configured.take();
            guest.view.configured = Some(Configured {
                outcome: configured
                    .outcome
                    .map_err(|failure| failure.after(former.as_ref(), now)),
                ..configured
            });
        }
    }
}

fn greeted(guest: &mut GuestMemory, proven: Option<HostKey>, greeting: &Answered<Greeting>) {
    let said = &greeting.answer;
    guest.progress = said.progress.to_string();
    guest.view.contact = None;
    guest.view.proven = proven
        .map(|key| key.to_string())
        .or_else(|| guest.view.proven.take());
    guest.view.hello = Some(Hello {
        phase: phase(said),
        armed: said.armed.as_ref().map(|armed| armed.incarnation),
        epoch: i64::try_from(said.epoch).unwrap_or(i64::MAX),
        applied: said.applied.as_ref().map(|applied| {
            (
                applied.config_revision.to_string(),
                applied.secrets_tag.to_string(),
            )
        }),
        armed_for: said.armed.as_ref().map(|armed| armed.instance.to_string()),
    });
}

fn phase(said: &Greeting) -> InstallPhase {
    match said.phase {
        Phase::Pending | Phase::Installing => InstallPhase::Running,
        Phase::Installed => InstallPhase::Done,
        Phase::Failed => {
            let failed = said
                .steps
                .iter()
                .find(|step| step.state == StepState::Failed);
            let words = |step: &Step| {
                let tail: Vec<&str> = step.tail.iter().map(Text::as_str).collect();
                format!("step {} failed: {}", step.name, tail.join(" | "))
            };
            InstallPhase::Failed(failed.map_or_else(|| "a step failed".into(), words))
        }
    }
}

/// Where SSH of a server answers, if it has an address.
pub fn address(server: &ServerView, port: u16) -> Option<SocketAddr> {
    let ip: Option<IpAddr> = [&server.ipv4, &server.ipv6]
        .into_iter()
        .flatten()
        .find_map(|text| text.parse().ok());
    ip.map(|ip| SocketAddr::new(ip, port))
}
