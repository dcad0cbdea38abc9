//! The words that labels are made of: those of the API where it has one, else our own.

use super::Cause;
use crate::{
    agent_instance::{talk::Outcome, world::ContactProblem},
    api::{Health, OnProvisionFailure, RecoveryAction, TimingStep},
    health::Reply,
    hetzner::Lane,
    zombies::{finding::Fate, world::Kind},
};

/// Of what a request is for.
pub const fn lane(lane: Lane) -> &'static str {
    match lane {
        Lane::Delete => "delete",
        Lane::Zombie => "zombie",
        Lane::Create => "create",
        Lane::ReplaceVanished => "replace_vanished",
        Lane::Rollout => "rollout",
        Lane::Inventory => "inventory",
        Lane::Other => "other",
    }
}

/// Of a rung of the ladder.
pub const fn rung(action: RecoveryAction) -> &'static str {
    match action {
        RecoveryAction::Restart => "Restart",
        RecoveryAction::Reboot => "Reboot",
        RecoveryAction::Recreate => "Recreate",
    }
}

/// Of what becomes of a creation that failed.
pub const fn level(action: OnProvisionFailure) -> &'static str {
    match action {
        OnProvisionFailure::Keep => "Keep",
        OnProvisionFailure::Retry => "Retry",
        OnProvisionFailure::Remove => "Remove",
    }
}

/// Of why a server was made.
pub const fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::New => "New",
        Cause::Retry => "Retry",
        Cause::Replacement => "Replacement",
        Cause::SwitchOver => "SwitchOver",
    }
}

/// Of how far a server came.
pub const fn step(step: TimingStep) -> &'static str {
    match step {
        TimingStep::WrittenDown => "WrittenDown",
        TimingStep::Requested => "Requested",
        TimingStep::Accepted => "Accepted",
        TimingStep::Answered => "Answered",
        TimingStep::Installed => "Installed",
        TimingStep::Configured => "Configured",
        TimingStep::Ready => "Ready",
    }
}

/// Of how an agent is probed.
pub const fn probe(health: &Health) -> &'static str {
    match health {
        Health { http: Some(_), .. } => "http",
        Health { exec: Some(_), .. } => "exec",
        Health { .. } => "systemd",
    }
}

/// Of what a probe came to.
pub const fn reply(reply: Option<&Reply>) -> &'static str {
    match reply {
        Some(Reply::Good) => "good",
        Some(Reply::Bad(_)) => "bad",
        Some(Reply::Silent(_)) => "silent",
        Some(Reply::Stranger(_)) => "host_key_changed",
        None => "outdated",
    }
}

/// Of what an act over SSH came to.
pub fn outcome(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Greeted(..) => "done",
        Outcome::Unreached(ContactProblem::Silent(_)) => "silent",
        Outcome::Unreached(ContactProblem::WrongProof(_)) => "wrong_proof",
        Outcome::Unreached(ContactProblem::HostKeyChanged(_)) => "host_key_changed",
        Outcome::Unreached(ContactProblem::LoginRefused(_)) => "login_refused",
        Outcome::Unreached(ContactProblem::Garbage(_)) => "garbage",
        Outcome::Configured(configured, _) => done(configured.outcome.is_ok()),
        Outcome::Upgraded(upgraded) => done(*upgraded),
        Outcome::Released(_, kept) => done(kept.is_ok()),
        Outcome::Restarted(failed) => done(failed.is_none()),
    }
}

/// Of whether something was done.
pub const fn done(done: bool) -> &'static str {
    if done { "done" } else { "failed" }
}

/// Of a thing at Hetzner.
pub const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Server => "server",
        Kind::Firewall => "firewall",
        Kind::SshKey => "ssh_key",
        Kind::Snapshot => "snapshot",
    }
}

/// Of what becomes of a zombie.
pub const fn fate(fate: Fate) -> &'static str {
    match fate {
        Fate::SeenOnce => "seen_once",
        Fate::Goes => "goes",
        Fate::Held => "held",
        Fate::Waits => "waits",
        Fate::WouldGo => "would_go",
        Fate::Stays => "stays",
    }
}
