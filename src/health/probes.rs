//! The probers of all agents: one task each, spread over their interval, a bounded number of probes at once.
//!
//! Each probe is for one agent at one address in one configuration; when any of them is another one, so is the prober.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::canary::{Canaries, answers};
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
    /// Where it is asked.
    pub address: IpAddr,
    /// The sum of the probes; none before the first good one or enough bad ones.
    pub state: Option<HealthState>,
    /// What the last probe that was not good said.
    pub words: String,
    /// Whether somebody else answered in its server's place.
    pub stranger: bool,
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
    address: IpAddr,
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
        let address = target.server.address.ip();
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
            address,
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
            address: prober.address,
            state: circuit.state(),
            words: circuit.words().to_owned(),
            stranger: circuit.meets_stranger(),
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
        let known = || lock(&self.circuit).state();
        let health = &self.target.health;
        let mut pause = first_pause(health, known(), &self.key);
        loop {
            tokio::time::sleep(pause).await;
            let reply = self.probe().await;
            self.metrics.probed(health, reply.as_ref());
            if let Some(reply) = reply {
                self.take(reply);
            }
            pause = next_pause(health, known());
        }
    }

    async fn probe(&self) -> Option<Reply> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await.ok()?;
        // On the heap, as a task that sleeps would else keep the room of a whole conversation over SSH.
        let reply = Box::pin(ask(&self.target, &self.http)).await;
        if self.answers_ssh(reply.as_ref()).await {
            let health = &self.target.health;
            let fresh = 2 * health.interval.get() + health.timeout.get();
            self.canaries.class_answered(&self.target.class, fresh);
        }
        reply
    }

    /// Whether the server answers over SSH. A probe over HTTP says nothing of that way: where it was good, somebody knocks.
    async fn answers_ssh(&self, reply: Option<&Reply>) -> bool {
        match reply {
            Some(Reply::Good) if self.target.health.http.is_some() => {
                answers(self.target.server.address).await
            }
            Some(Reply::Good | Reply::Bad(_)) => self.target.health.http.is_none(),
            Some(Reply::Silent(_) | Reply::Stranger(_)) | None => false,
        }
    }

    fn take(&self, reply: Reply) {
        let health = &self.target.health;
        let rules = Rules {
            threshold: health.failure_threshold.unsigned_abs(),
            interval: health.interval.get(),
        };
        if lock(&self.circuit).take(reply, rules, Instant::now()) {
            // A receiver that is gone means that the operator stops.
            let _ = self.changed.send(self.key.clone());
        }
    }
}

/// How long the first probe waits: for its turn, or until an agent that starts may be asked.
fn first_pause(health: &Health, known: Option<HealthState>, key: &GuestKey) -> Duration {
    match known {
        Some(_) => offset(key, health.interval.get()),
        None => health.initial_delay.get(),
    }
}

/// How long the next probe waits.
fn next_pause(health: &Health, known: Option<HealthState>) -> Duration {
    let interval = health.interval.get();
    match known {
        Some(_) => interval,
        None => interval.min(STARTING),
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use russh::keys::PrivateKey;
    use russh::keys::ssh_key::private::Ed25519Keypair;
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::super::canary::Canary;
    use super::super::probe::http_client;
    use super::*;
    use crate::guest::transport::Pinned;
    use crate::redact::KnownSecrets;

    fn key(number: usize) -> GuestKey {
        GuestKey {
            namespace: "tenant".into(),
            name: format!("agent-{number}"),
            uid: format!("0f4e8b1c-6a55-4c0e-9a40-{number:012x}"),
            server: 1,
        }
    }

    fn health(said: serde_json::Value) -> Health {
        serde_json::from_value(said).unwrap()
    }

    #[test]
    fn agents_that_are_known_have_their_turns_spread_over_the_interval_whatever_process_asks() {
        let health = health(json!({"interval": "60s", "initialDelay": "7s"}));
        let known = Some(HealthState::Healthy);
        let mut in_quarter = [0; 4];
        for number in 0..1000 {
            let turn = first_pause(&health, known, &key(number));
            assert_eq!(turn, first_pause(&health, known, &key(number)));
            in_quarter[usize::try_from(turn.as_secs() / 15).unwrap()] += 1;
        }
        assert!(
            in_quarter.iter().all(|turns| (200..300).contains(turns)),
            "{in_quarter:?}"
        );
        assert_eq!(next_pause(&health, known), Duration::from_mins(1));
    }

    #[test]
    fn an_agent_that_starts_is_asked_after_its_delay_and_then_often_until_it_answers() {
        let slow = health(json!({"interval": "60s", "initialDelay": "7s"}));
        assert_eq!(first_pause(&slow, None, &key(1)), Duration::from_secs(7));
        assert_eq!(next_pause(&slow, None), STARTING);
        let prompt = health(json!({}));
        assert_eq!(first_pause(&prompt, None, &key(1)), Duration::ZERO);
    }

    /// Probers of agents of a class at an address of their own, asked over HTTP.
    struct Asked {
        probes: Probes,
        canaries: Arc<Canaries>,
        listener: TcpListener,
    }

    async fn asked(limit: usize) -> Asked {
        // Whoever came first has chosen the same.
        let _chosen_before = rustls::crypto::ring::default_provider().install_default();
        let canaries = Arc::<Canaries>::default();
        let http = http_client().unwrap();
        let (probes, _) = Probes::new(limit, http, canaries.clone(), Metrics::default());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Asked {
            probes,
            canaries,
            listener,
        }
    }

    impl Asked {
        fn watch(&self, number: usize, ssh: SocketAddr) {
            let port = self.listener.local_addr().unwrap().port();
            let http = json!({"http": {"port": port}, "interval": "1s", "timeout": "60s"});
            let login = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
            let host_key =
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
            let target = Target {
                class: "small".into(),
                health: health(http),
                server: Pinned {
                    address: ssh,
                    login: Arc::new(login),
                    host_key: host_key.parse().unwrap(),
                },
                epoch: 1,
                known: KnownSecrets::default(),
                given: None,
            };
            self.probes.watch(key(number), target, None);
        }
    }

    /// An address where nobody listens.
    async fn nowhere() -> SocketAddr {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        taken.local_addr().unwrap()
    }

    #[tokio::test]
    async fn no_more_probes_run_at_once_than_is_allowed() {
        let asked = asked(2).await;
        let nowhere = nowhere().await;
        (0..6).for_each(|number| asked.watch(number, nowhere));
        let mut open = vec![];
        for _ in 0..6 {
            if open.len() == 2 {
                let more = tokio::time::timeout(STARTING / 4, asked.listener.accept());
                assert!(more.await.is_err(), "a third one runs beside two");
                open.remove(0);
            }
            // One that is over lets the next begin.
            open.push(asked.listener.accept().await.unwrap());
        }
    }

    /// Answers well for ever, and counts how often.
    async fn serve(listener: TcpListener, asked: Arc<AtomicUsize>) {
        while let Ok((stream, _)) = listener.accept().await {
            stream.readable().await.unwrap();
            let answer = b"HTTP/1.1 200 x\r\ncontent-length: 0\r\n\r\n";
            stream.try_write(answer).unwrap();
            // What is not read would have it reset.
            let _ = stream.try_read(&mut [0; 1024]);
            asked.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What the canary says after so many probes over HTTP that were good, of agents whose SSH is at this address.
    async fn canary_after(probes: usize, ssh: SocketAddr) -> Canary {
        let asked = asked(2).await;
        asked.watch(1, ssh);
        let times = Arc::<AtomicUsize>::default();
        let serving = tokio::spawn(serve(asked.listener, times.clone()));
        while times.load(Ordering::Relaxed) < probes {
            tokio::time::sleep(STARTING / 20).await;
        }
        serving.abort();
        let serving: BTreeSet<String> = ["small".into()].into();
        asked.canaries.beside("other", &serving, Instant::now())
    }

    #[tokio::test]
    async fn agents_that_are_asked_over_http_are_canaries_by_their_ssh() {
        // The second probe comes when the first is over.
        assert_eq!(canary_after(2, nowhere().await).await, Canary::Nobody);
        let ssh = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let answered = canary_after(2, ssh.local_addr().unwrap()).await;
        assert!(matches!(answered, Canary::Answers(_)), "{answered:?}");
    }
}
