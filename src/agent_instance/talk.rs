//! Talking to guests: acts over SSH that run beside the reconcilers, and what is learnt from them.
//!
//! A reconcile starts an act and goes on; when it is over, the instance is looked at again and [`absorb`] takes the outcome into memory. Only
//! here does anything wait for a server, always within a deadline.

mod lines;
mod listening;
mod order;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;

pub use self::{
    lines::Lines,
    listening::Listening,
    order::{Order, release, restart, upgrade},
};
use super::{
    desired::Identity,
    memory::{GuestMemory, Memory},
    world::{Configured, ContactProblem, Hello, InstallPhase, ServerView, Upgrade},
};
use crate::{
    context::Context,
    error::Setback,
    guest::{
        acts::Acts,
        answers::{Greeting, KeptFile, Phase, Step, StepState},
        host_key::HostKey,
        protocol::{Answered, Verb},
    },
    health::Probes,
    metrics::Metrics,
};

/// How long a guest may take for what it does at once.
const BRIEF: Duration = Duration::from_secs(10);

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

/// Why a `release` was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreleased {
    /// The guest is at work for somebody else, and can do it afterwards.
    Busy,
    /// It did not answer, or cannot.
    InVain,
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
    /// An `upgrade`; whether it was done.
    Upgraded(bool),
    /// A `release` with this epoch; what the agent had changed, if it was done.
    Released(i64, Result<Vec<KeptFile>, Unreleased>),
    /// A `restart`; why it was not done, if it was not.
    Restarted(Option<String>),
}

/// Acts in two pools, so that long polls never keep a `configure` waiting; and the probes.
pub struct Talks {
    hellos: Acts<GuestKey, Outcome>,
    orders: Acts<GuestKey, Outcome>,
    /// Lines that the next act may use.
    pub lines: Arc<Lines>,
    /// Whoever asks agents for their health.
    pub probes: Probes,
    metrics: Metrics,
}

/// The keys of acts that are over.
pub type Ended = tokio::sync::mpsc::UnboundedReceiver<GuestKey>;

impl Talks {
    /// Pools for so many long polls and so many orders at once.
    pub fn new(
        (hellos, orders): (usize, usize),
        probes: Probes,
        metrics: Metrics,
    ) -> (Self, [Ended; 2]) {
        let (hellos, greeted) = Acts::new(hellos);
        let (orders, obeyed) = Acts::new(orders);
        let talks = Self {
            hellos,
            orders,
            lines: Arc::default(),
            probes,
            metrics,
        };
        (talks, [greeted, obeyed])
    }

    /// Starts to listen to a guest.
    pub fn listen(&self, key: GuestKey, act: impl Future<Output = Outcome> + Send + 'static) {
        self.hellos.start(key, self.measured(Verb::Hello, act));
    }

    /// Starts to give a guest an order, which may be what its agent's health hangs on.
    pub fn order(
        &self,
        key: GuestKey,
        verb: Verb,
        act: impl Future<Output = Outcome> + Send + 'static,
    ) {
        self.probes.forget(&key);
        self.orders.start(key, self.measured(verb, act));
    }

    /// An act that is counted when it is over; the wait for its turn is no part of it.
    fn measured(
        &self,
        verb: Verb,
        act: impl Future<Output = Outcome> + Send + 'static,
    ) -> impl Future<Output = Outcome> + Send + 'static {
        let metrics = self.metrics.clone();
        async move {
            let begun = Instant::now();
            let outcome = act.await;
            metrics.acted(verb, &outcome, begun.elapsed());
            outcome
        }
    }

    /// Drops what is under way with a server that is going.
    pub fn forget(&self, key: &GuestKey) {
        self.hellos.forget(key);
        self.orders.forget(key);
        self.lines.take(key);
        self.probes.forget(key);
    }
}

/// Whether an act with this guest is under way.
pub fn is_busy(ctx: &Context, key: &GuestKey) -> bool {
    ctx.talks.hellos.is_running(key) || ctx.talks.orders.is_running(key)
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
            let wanted = ctx.program.is_wanted_by(&greeting.guest);
            guest.view.upgrade = match guest.view.upgrade {
                _ if !wanted => Upgrade::NotNeeded,
                Upgrade::Done => Upgrade::NotNeeded,
                Upgrade::NotNeeded => Upgrade::Due,
                as_before @ (Upgrade::Due | Upgrade::Tried) => as_before,
            };
            greeted(guest, proven, &greeting);
        }
        Outcome::Unreached(problem) => {
            let guest = &mut memory.guest(server).view;
            guest.was_asked_in_vain(now);
            (guest.contact, guest.restarts) = (Some((problem, now)), false);
        }
        Outcome::Upgraded(true) => memory.guest(server).view.upgrade = Upgrade::Done,
        Outcome::Upgraded(false) => memory.guest(server).view.upgrade = Upgrade::Tried,
        Outcome::Released(epoch, kept) => {
            let guest = &mut memory.guest(server).view;
            guest.released = Some((epoch, kept.is_ok()));
            match kept {
                Ok(kept) => {
                    (guest.configured, guest.hello, guest.in_vain) = (None, None, None);
                    if memory.guests.len() > 1 {
                        memory.guest(server).kept = kept;
                    }
                }
                Err(Unreleased::InVain) => guest.was_asked_in_vain(now),
                Err(Unreleased::Busy) => guest.in_vain = Some((0, now)),
            }
        }
        Outcome::Restarted(failed) => {
            memory.guest(server).view.restarts = false;
            if let Some(why) = failed {
                tracing::warn!(server, why, "the agent's unit was not started again");
            }
        }
        Outcome::Configured(configured, stored) => {
            if configured.outcome.is_ok() {
                memory.succeeded();
                memory.drop_kept();
            }
            let guest = memory.guest(server);
            if let (Some(epoch), Some(hello)) = (stored, &mut guest.view.hello) {
                hello.epoch = i64::try_from(epoch).unwrap_or(i64::MAX);
            }
            if configured.outcome.is_ok() {
                guest.view.upgrade = Upgrade::NotNeeded;
                if let Some(hello) = &mut guest.view.hello {
                    hello.applied = Some(configured.sent.clone());
                }
            }
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
    // What it did not do before it may do now; that it did not is forgotten only when it does.
    let refuses = guest.view.released.take_if(|(_, done)| !*done).is_some();
    guest.view.in_vain = guest.view.in_vain.filter(|_| refuses);
    guest.view.proven = proven
        .map(|key| key.to_string())
        .or_else(|| guest.view.proven.take());
    guest.view.hello = Some(Hello {
        phase: phase(said),
        armed: said.armed.as_ref().map(|armed| armed.incarnation),
        ever_armed: said.ever_armed,
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
            let words = |step: &Step| format!("step {} failed: {}", step.name, step.tail.line());
            InstallPhase::Failed(failed.map_or_else(|| "a step failed".into(), words))
        }
    }
}

/// Where SSH of a server answers, if it has an address.
pub fn address(server: &ServerView, port: u16) -> Option<SocketAddr> {
    server.address().map(|ip| SocketAddr::new(ip, port))
}
