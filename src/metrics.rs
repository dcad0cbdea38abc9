//! What the operator counts and shows to Prometheus.
//!
//! Counters and histograms are moved where a thing happens, through this handle, which is passed along. Gauges of the fleet are made anew at each
//! scrape from what stores and memory show, so that none can drift, and a process that does not lead shows none. No label grows with the fleet:
//! each is a word of ours or of the API, a project, or a class that exists; never an instance, an id, or what somebody else wrote (I5).

mod declared;
mod fleet;
mod words;

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use jiff::Timestamp;
use prometheus_client::{encoding::text, metrics::gauge::Gauge, registry::Registry};

use self::{
    declared::{Counters, Declaring, Gauges, Histograms, Value},
    fleet::Fleet,
};
use crate::{
    agent_instance::talk::Outcome,
    api::{Health, OnProvisionFailure, RecoveryAction, RollbackReason, Timing},
    context::Context,
    guest::protocol::Verb,
    health::Reply,
    hetzner::{ErrorCode, Exchange},
    leader::Leadership,
    zombies::{
        finding::{Finding, Reason},
        world::Kind,
    },
};

pub use self::declared::Declared;

/// What is scraped is in this form.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Of requests and looks, in seconds.
const BRIEF: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Of acts on servers, in seconds.
const ACTS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0,
];
/// Of the life of a server, in seconds.
const LIFE: &[f64] = &[
    0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 1800.0,
];

/// The handle; clones are one and the same.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    declared: Vec<Declared>,
    requests: Counters<3>,
    request_duration: Histograms<1>,
    reconciles: Counters<2>,
    reconcile_duration: Histograms<1>,
    setbacks: Counters<2>,
    lifecycle: Histograms<1>,
    servers_created: Counters<2>,
    rollbacks: Counters<3>,
    recoveries: Counters<2>,
    probes: Counters<2>,
    ssh_acts: Counters<2>,
    ssh_act_duration: Histograms<1>,
    webhook: Counters<1>,
    zombies: Gauges<2>,
    zombies_deleted: Counters<2>,
    sweep_held: Gauge,
    last_sweep: Gauge,
    leader: Gauge,
    fleet: Fleet,
    leadership: OnceLock<Leadership>,
    context: OnceLock<Weak<Context>>,
    /// Held by whoever fills the gauges.
    filling: Mutex<()>,
}

/// Why a server was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The first one of an instance.
    New,
    /// The creation of the one before it had failed.
    Retry,
    /// The one before it is gone.
    Replacement,
    /// The one before it is to be relieved.
    SwitchOver,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics of a process that has done nothing yet.
    pub fn new() -> Self {
        let mut all = Declaring::default();
        all.gauges(
            "agentfleet_build_info",
            &["version"],
            "Always 1; the label tells the version of the operator",
        )
        .set([env!("CARGO_PKG_VERSION").into()], 1);
        let leader = all.gauge(
            "agentfleet_leader",
            "Whether this process holds the Lease and acts (1) or waits (0)",
        );
        Self(Arc::new(Inner {
            leader,
            fleet: Fleet::declare(&mut all),
            lifecycle: all.histograms("agentfleet_lifecycle_step_seconds", &["step"], LIFE, "Time from the decision to create a server until it reached a step of status.timings; the step Ready is the whole creation"),
            servers_created: all.counters("agentfleet_servers_created_total", &["class", "cause"], "Servers that Hetzner has created: New for an instance without one, Retry after a creation that failed, Replacement of one that is gone, SwitchOver beside one that is to be relieved"),
            rollbacks: all.counters("agentfleet_creation_rollbacks_total", &["class", "reason", "level"], "Creations that failed, by what failed and by what became of the server: Keep, Retry or Remove (see rollback.md)"),
            recoveries: all.counters("agentfleet_recoveries_total", &["class", "rung"], "Tries to bring an agent back that were decided, by rung of the ladder (see recovery.md)"),
            probes: all.counters("agentfleet_probes_total", &["kind", "outcome"], "Health probes by systemd, http or exec: good, bad (the agent said so), silent (the way to it failed), host_key_changed (what answers is not its server), outdated (it was configured anew meanwhile)"),
            ssh_acts: all.counters("agentfleet_ssh_acts_total", &["command", "outcome"], "Commands to servers over SSH that are over, without probes; a hello is tried for up to 30 s before it counts as silent"),
            ssh_act_duration: all.histograms("agentfleet_ssh_act_duration_seconds", &["command"], ACTS, "How long commands to servers over SSH took; a hello waits for progress, for up to 25 s"),
            requests: all.counters("agentfleet_hetzner_requests_total", &["route", "code", "lane"], "Requests to Hetzner by route, HTTP status or Hetzner's error code (not_sent, no_answer and unreadable are the operator's own), and what for"),
            request_duration: all.histograms("agentfleet_hetzner_request_duration_seconds", &["route"], BRIEF, "How long requests to Hetzner took, with or without an answer"),
            reconciles: all.counters("agentfleet_reconciles_total", &["kind", "outcome"], "Looks at objects: done, or failed because Kubernetes did not answer as it should"),
            reconcile_duration: all.histograms("agentfleet_reconcile_duration_seconds", &["kind"], BRIEF, "How long looks at objects took"),
            setbacks: all.counters("agentfleet_setbacks_total", &["kind", "reason"], "Steps that were not done and are tried again, by the reason that a condition shows; RateLimited, StaleView and NotLeading are ordinary"),
            zombies: all.gauges("agentfleet_zombies", &["kind", "fate"], "What the last sweep found that belongs to nobody and left: seen_once, held and waits (by the fuse), would_go (dry run), goes (tried again), stays (for a person)"),
            zombies_deleted: all.counters("agentfleet_zombies_deleted_total", &["kind", "reason"], "What sweeps have deleted because it belonged to nobody"),
            sweep_held: all.gauge("agentfleet_zombie_sweep_held", "Whether the last sweep deleted nothing because so much belonged to nobody that the picture may be wrong"),
            last_sweep: all.gauge("agentfleet_zombie_last_sweep_timestamp_seconds", "When the last sweep ended; 0 before the first of this process"),
            webhook: all.counters("agentfleet_webhook_deliveries_total", &["outcome"], "Events that were sent to the webhook's receiver: done, or failed, which is tried again"),
            registry: all.registry,
            declared: all.declared,
            leadership: OnceLock::new(),
            context: OnceLock::new(),
            filling: Mutex::default(),
        }))
    }

    /// What was declared.
    pub fn declared(&self) -> &[Declared] {
        &self.0.declared
    }

    /// From now on it is known whether this process leads.
    pub fn follow(&self, leadership: Leadership) {
        let _once = self.0.leadership.set(leadership);
    }

    /// From now on each scrape shows the fleet as this process knows it.
    pub fn show(&self, context: &Arc<Context>) {
        let _once = self.0.context.set(Arc::downgrade(context));
    }

    /// All of it, for Prometheus.
    pub fn scrape(&self) -> String {
        let inner = &self.0;
        let _one_at_a_time = inner.filling.lock().unwrap_or_else(PoisonError::into_inner);
        let leads = inner.leadership.get().is_some_and(Leadership::holds);
        inner.leader.set(i64::from(leads));
        if let Some(context) = inner.context.get().and_then(Weak::upgrade) {
            inner.fleet.fill(&context);
        }
        let mut text = String::new();
        // A String takes whatever is written to it.
        let _written = text::encode(&mut text, &inner.registry);
        text
    }

    /// A request to Hetzner is over.
    pub fn exchanged(&self, exchange: &Exchange<'_>) {
        let code: Value = match exchange.code {
            Ok(status) => status.to_string().into(),
            // A word that only Hetzner knows is no word of ours.
            Err(ErrorCode::Other(_)) => "other".into(),
            Err(code) => code.as_str().to_owned().into(),
        };
        let (route, lane) = (exchange.route, words::lane(exchange.lane));
        self.0.requests.add([route.into(), code, lane.into()]);
        let took = exchange.took.as_secs_f64();
        self.0.request_duration.observe([route.into()], took);
    }

    /// A look at an object is over.
    pub fn reconciled(&self, kind: &'static str, done: bool, took: Duration) {
        let outcome = words::done(done);
        self.0.reconciles.add([kind.into(), outcome.into()]);
        let took = took.as_secs_f64();
        self.0.reconcile_duration.observe([kind.into()], took);
    }

    /// A step was not done.
    pub fn set_back(&self, kind: &'static str, reason: &'static str) {
        self.0.setbacks.add([kind.into(), reason.into()]);
    }

    /// A server came further, so long after it was written down.
    pub fn reached(&self, timing: &Timing, begun: Timestamp) {
        let after = timing.at.0.duration_since(begun).as_secs_f64();
        let step = words::step(timing.step);
        self.0.lifecycle.observe([step.into()], after.max(0.0));
    }

    /// Hetzner has created a server.
    pub fn created(&self, class: &str, cause: Cause) {
        let class = class.to_owned().into();
        self.0
            .servers_created
            .add([class, words::cause(cause).into()]);
    }

    /// A creation has failed.
    pub fn rolled_back(&self, class: &str, reason: RollbackReason, level: OnProvisionFailure) {
        let (reason, level) = (reason.as_str().into(), words::level(level).into());
        self.0
            .rollbacks
            .add([class.to_owned().into(), reason, level]);
    }

    /// A try to bring an agent back was decided.
    pub fn recovers(&self, class: &str, action: RecoveryAction) {
        let rung = words::rung(action).into();
        self.0.recoveries.add([class.to_owned().into(), rung]);
    }

    /// A probe is over.
    pub fn probed(&self, health: &Health, reply: Option<&Reply>) {
        let kind = words::probe(health).into();
        self.0.probes.add([kind, words::reply(reply).into()]);
    }

    /// An act over SSH is over.
    pub fn acted(&self, verb: Verb, outcome: &Outcome, took: Duration) {
        let command: Value = verb.as_str().into();
        let word = words::outcome(outcome).into();
        self.0.ssh_acts.add([command.clone(), word]);
        let took = took.as_secs_f64();
        self.0.ssh_act_duration.observe([command], took);
    }

    /// An event was taken by the receiver of the webhook, or not.
    pub fn delivered(&self, taken: bool) {
        self.0.webhook.add([words::done(taken).into()]);
    }

    /// A zombie was deleted.
    pub fn swept(&self, kind: Kind, reason: Reason) {
        let (kind, reason) = (words::kind(kind).into(), reason.as_str().into());
        self.0.zombies_deleted.add([kind, reason]);
    }

    /// A sweep is over; `left` is what it found and did not delete.
    pub fn sweep_ended(&self, left: &[&Finding], held: bool) {
        let inner = &self.0;
        let _one_at_a_time = inner.filling.lock().unwrap_or_else(PoisonError::into_inner);
        inner.zombies.clear();
        for finding in left {
            let (kind, fate) = (words::kind(finding.kind), words::fate(finding.fate));
            inner.zombies.add([kind.into(), fate.into()]);
        }
        inner.sweep_held.set(i64::from(held));
        inner.last_sweep.set(Timestamp::now().as_second());
    }
}

#[cfg(test)]
mod tests;
