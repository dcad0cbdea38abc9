//! agentfleet gives every AI agent a server of its own.
//!
//! Four kinds of objects are reconciled, each by the same pipeline: a [`HetznerProject`](api::HetznerProject) (a token and what
//! it opens), an [`AgentClass`](api::AgentClass) (what runs on which machine), an [`AgentInstance`](api::AgentInstance) (one
//! agent, one server) and a [`Subscription`](api::Subscription) (what a customer has paid for, and so which instance there is).
//!
//! ```text
//!   Kubernetes stores ─┐                                       ┌─► Kubernetes: records, status, finalizers, events
//!   inventory ─────────┼─► observe ─► World ─┐                 │
//!   memory ────────────┘                     ├─► plan ─► Steps ┼─► Hetzner: one request each, by a permit of the budget
//!                          Desired ──────────┘      │          │
//!                             ▲                     ▼          └─► guests: acts over SSH that come back as events
//!   object ─► parse ──────────┘                  requeue
//! ```
//!
//! `Desired`, `plan` and `status` are pure: no client, no clock, no await. Every effect is a step, every step is harmless when done
//! twice, and nothing waits in a reconcile: each wait is a requeue or an event. What must survive a crash is written ahead, into
//! `status.provisioning`, `status.voice`, `status.rollbacks`, `status.heard` and `status.recovery`; all else this process may
//! forget at any time.
//!
//! | words | module |
//! |---|---|
//! | the objects and their rules | [`api`] |
//! | instance, incarnation, voice, write-ahead records, rollback of a creation, replacement of a server, restoration of a lost disk, change of its type, retained servers | [`agent_instance`] |
//! | subscription, entitlement, what is kept how long, orphans, the guard: what takes many agents away at once, also by their deletion, is held | [`subscription`] |
//! | class, firewall | [`agent_class`] |
//! | project, identity, connection | [`hetzner_project`] |
//! | requests, errors, budget and lanes, stock, catalogue | [`hetzner`] |
//! | inventory: the servers of a project as shared lists tell them | [`inventory`] |
//! | labels and names at Hetzner | [`labels`], [`naming`] |
//! | guest: SSH, proof of host keys, protocol, the program | [`guest`] |
//! | health: probes of agents, the circuit that sums them up, the ladder of what is tried, the breaker and canary that hold it | [`health`] |
//! | rollout: revisions of a class, whose turn it is, going back | [`rollout`] |
//! | what a server is born with, and what it is given later | [`cloud_init`], [`systemd_unit`], [`secret_files`], [`bootstrap`] |
//! | master key and all that is derived from it | [`fleet`], [`keys`] |
//! | notification: events about instances, for one receiver outside | [`notification`] |
//! | errors as pauses and words | [`error`], [`trouble`], [`transitions`] |
//! | the process: Lease, clients, endpoints, logs, crash points | [`operator`], [`leader`], [`kube_ext`], [`http`], [`telemetry`], [`metrics`], [`crash_point`] |
//! | what all reconcilers share | [`context`] |
//! | zombie: what carries our labels and belongs to nobody; the sweep | [`zombies`] |
//! | known secrets taken out of what others wrote | [`redact`] |
//! | `agentfleet render` | [`render`] |

pub mod agent_class;
pub mod agent_instance;
pub mod api;
pub mod bootstrap;
pub mod cloud_init;
pub mod context;
pub mod crash_point;
pub mod error;
pub mod fleet;
pub mod guest;
pub mod health;
pub mod hetzner;
pub mod hetzner_project;
pub mod http;
pub mod inventory;
pub mod keys;
pub mod kube_ext;
pub mod labels;
pub mod leader;
pub mod metrics;
pub mod naming;
pub mod notification;
pub mod operator;
pub mod redact;
pub mod render;
pub mod rollout;
pub mod secret_files;
pub mod subscription;
pub mod systemd_unit;
pub mod telemetry;
pub mod transitions;
pub mod trouble;
pub mod zombies;
