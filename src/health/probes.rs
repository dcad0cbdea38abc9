//! The probers of all agents: one task each, spread over their interval, a bounded number of probes at once.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::canary::Canaries;
use super::circuit::{Circuit, Reply, Rules};
use super::probe::{Target, ask};
use crate::agent_instance::talk::GuestKey;
use crate::api::{Health, HealthState};
use crate::metrics::Metrics;

/// The longest pause between two probes of an agent that has not answered well yet.
const STARTING: Duration = Duration::from_secs(1);

/// The keys of agents whose sum of probes is another one now.
pub type Ended = mpsc::UnboundedReceiver<GuestKey>;

/// What is known of an agent's health, and what is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthView {
    /// How it is asked.
    pub health: Health,
    /// The epoch of the configuration that is asked about.
    pub epoch: i64,
    /// The sum of the probes; none before the first good one or enough bad ones.
    pub state: Option<HealthState>,
    /// What the last probe that was not good said.
    pub words: String,
}

/// All probers. Dropping it ends them.
pub struct Probes {
    by_key: Mutex<HashMap<GuestKey, Prober>>,
    permits: Arc<Semaphore>,
    http: reqwest::Client,
    canaries: Arc<Canaries>,
    changed: mpsc::UnboundedSender<GuestKey>,
    metrics: Metrics,
}

struct Prober {
    health: Health,
    epoch: i64,
    circuit: Arc<Mutex<Circuit>>,
    task: JoinHandle<()>,
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probes {
    /// No probers yet; at most `limit` probes will run at once, and the canaries hear of each that SSH answered.
    pub fn new(
        limit: usize,
        http: reqwest::Client,
        canaries: Arc<Canaries>,
        metrics: Metrics,
    ) -> (Self, Ended) {
        let (changed, told) = mpsc::unbounded_channel();
        let probes = Self {
            by_key: Mutex::default(),
            permits: Arc::new(Semaphore::new(limit)),
            http,
            canaries,
            changed,
            metrics,
        };
        (probes, told)
    }

    /// Probes an agent from now on, in place of whatever was asked of it before.
    ///
    /// `presumed` is what is known of it already: then the first probe takes its turn, else it is made as soon as the class says.
    pub fn watch(&self, key: GuestKey, target: Target, presumed: Option<HealthState>) {
        let circuit = Arc::new(Mutex::new(
            presumed.map_or_else(Circuit::default, Circuit::presuming),
        ));
        let (health, epoch) = (target.health.clone(), target.epoch);
        let turn = Turn {
            key: key.clone(),
            target,
            circuit: Arc::clone(&circuit),
            permits: Arc::clone(&self.permits),
            http: self.http.clone(),
            canaries: Arc::clone(&self.canaries),
            changed: self.changed.clone(),
            metrics: self.metrics.clone(),
        };
        let prober = Prober {
            health,
            epoch,
            circuit,
            task: tokio::spawn(turn.go_on()),
        };
        lock(&self.by_key).insert(key, prober);
    }

    /// What is known of an agent, if it is probed.
    pub fn view(&self, key: &GuestKey) -> Option<HealthView> {
        let by_key = lock(&self.by_key);
        let prober = by_key.get(key)?;
        let circuit = lock(&prober.circuit);
        Some(HealthView {
            health: prober.health.clone(),
            epoch: prober.epoch,
            state: circuit.state(),
            words: circuit.words().to_owned(),
        })
    }

    /// How many agents are probed.
    pub fn count(&self) -> usize {
        lock(&self.by_key).len()
    }

    /// Ends the probes of an agent.
    pub fn forget(&self, key: &GuestKey) {
        lock(&self.by_key).remove(key);
    }
}

/// The life of one prober.
struct Turn {
    key: GuestKey,
    target: Target,
    circuit: Arc<Mutex<Circuit>>,
    permits: Arc<Semaphore>,
    http: reqwest::Client,
    canaries: Arc<Canaries>,
    changed: mpsc::UnboundedSender<GuestKey>,
    metrics: Metrics,
}

impl Turn {
    async fn go_on(self) {
        let interval = self.target.health.interval.get();
        let starts = lock(&self.circuit).state().is_none();
        let mut pause = if starts {
            self.target.health.initial_delay.get()
        } else {
            offset(&self.key, interval)
        };
        loop {
            tokio::time::sleep(pause).await;
            let reply = self.probe().await;
            self.metrics.probed(&self.target.health, reply.as_ref());
            if let Some(reply) = reply {
                self.take(reply);
            }
            let starts = lock(&self.circuit).state().is_none();
            pause = if starts {
                interval.min(STARTING)
            } else {
                interval
            };
        }
    }

    async fn probe(&self) -> Option<Reply> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await.ok()?;
        // On the heap, as a task that sleeps would else keep the room of a whole conversation over SSH.
        Box::pin(ask(&self.target, &self.http)).await
    }

    fn take(&self, reply: Reply) {
        let health = &self.target.health;
        let rules = Rules {
            threshold: health.failure_threshold.unsigned_abs(),
            interval: health.interval.get(),
        };
        if health.http.is_none() && !matches!(reply, Reply::Silent(_)) {
            let fresh = 2 * health.interval.get() + health.timeout.get();
            self.canaries.class_answered(&self.target.class, fresh);
        }
        if lock(&self.circuit).take(reply, rules, Instant::now()) {
            // A receiver that is gone means that the operator stops.
            let _ = self.changed.send(self.key.clone());
        }
    }
}

/// When in each interval an agent has its turn.
fn offset(key: &GuestKey, interval: Duration) -> Duration {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&key.uid);
    let part = u32::try_from(hash % 1000).unwrap_or_default();
    interval * part / 1000
}

/// Nothing panics while a lock is held, so a poisoned one still guards a whole value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
