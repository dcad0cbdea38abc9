//! What agentfleet's tests and its demo stand on: a real Kubernetes control plane, a simulated Hetzner Cloud with machines that answer SSH, and
//! the operator as a process under its own ServiceAccount.
//!
//! ```text
//!   test ── Bed ─┬─ Cluster ─────► kube-apiserver ◄── operator ──► hetzner-sim ──► fake machines
//!                ├─ Audit ◄────────── audit.log        │ log          │ ledger        │ voice.log, disks
//!                └─ oracle ◄───────────────────────────┴──────────────┴───────────────┘
//! ```
//!
//! Nothing here uses a type of the operator: what it is told and what it did are read where others read them.

mod agent_repository;
mod attacker;
mod audit;
mod bed;
mod billing;
mod cluster;
mod control_plane;
mod death;
mod each;
mod elsewhere;
mod env_files;
mod failure;
mod impostor;
mod instance;
mod late_watch;
pub mod manifests;
mod operator;
pub mod oracle;
mod place;
mod served;
mod shell;
mod skip;
mod token;
mod voices;
mod wait;

pub use agent_repository::{AGENT_REFS, AgentRepository, commit_all, publish};
pub use attacker::Attacker;
pub use audit::{Audit, Write};
pub use bed::{Bed, Options, TENANT, TOKEN, quick_cloud, real_cloud};
pub use billing::{AtStripe, Billing, Sender};
pub use cluster::{Cluster, GUARD, from_yaml};
pub use control_plane::{AT_ONCE, ControlPlane, OPERATOR, SYSTEM, Turns, end_idle};
pub use death::die;
pub use each::each;
pub use elsewhere::Elsewhere;
pub use env_files::{HARD_VALUES, service_environment};
pub use failure::{Failure, Outcome, ensure};
pub use impostor::{Heard, Impostor};
pub use instance::Instance;
pub use late_watch::LateWatch;
pub use operator::{
    Call, FLEET, Moment, Operator, Pace, Setup, answer_of, status_of, write_private,
};
pub use place::{built, free_port, machine_root, operator, project, scratch};
pub use served::Served;
pub use shell::run_in;
pub use skip::skip;
pub use token::Token;
pub use wait::{PATIENCE, wait_for, wait_until, wait_within};
