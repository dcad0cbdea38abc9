//! What is a zombie, and what becomes of it: pure functions.
//!
//! Read [`verdict`] top to bottom, the first line that applies decides. Whatever it is not sure of is for a person.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    SweepFlags,
    finding::{Fate, Finding, Hold, Reason},
    world::{Claim, Guest, Kind, ServerView, Thing, What, World},
};
use crate::inventory::Key;

/// So many unclaimed servers are never too many at once.
const FEW: usize = 3;
/// Beyond them, more than this part of all is too many, in percent.
const SHARE: usize = 20;

/// What a thing with our label is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to speak of.
    Fine(Fine),
    /// Nobody claims it, and only its guest can tell whether it holds anything.
    Ask,
    /// It may go without a person.
    Sweep(Reason),
    /// Only a person may delete it.
    Person(Reason),
}

/// Why there is nothing to say of a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fine {
    /// It belongs to something that exists.
    Claimed,
    /// A person wants it kept.
    Retained,
    /// Something is being done to it.
    Busy,
    /// It is so young that what it belongs to may still appear.
    Young,
}

/// One effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask the guest of a server for its past.
    Ask(Target),
    /// Delete a thing, after looking once more whether it is one.
    Delete(Target, Reason),
}

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The project it is in.
    pub project: String,
    /// Its kind.
    pub kind: Kind,
    /// Its id at Hetzner.
    pub id: i64,
}

/// What to do, and what it means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// All zombies.
    pub findings: Vec<Finding>,
    /// Why nothing is deleted anywhere.
    pub hold: Option<Hold>,
    /// Effects. When guests are to be asked, the rest waits for another plan with their answers.
    pub steps: Vec<Step>,
}

/// Decides what to do.
pub fn plan(world: &World, flags: &SweepFlags) -> Plan {
    let mut plan = Plan {
        hold: hold(world, flags.min_age),
        ..Plan::default()
    };
    let mut left = flags.fuse;
    for project in &world.projects {
        let held = plan.hold.is_some() || project.held;
        for thing in &project.things {
            let target = Target {
                project: project.name.clone(),
                kind: thing.kind(),
                id: thing.id,
            };
            let (reason, may_go) = match verdict(thing, world, flags.min_age) {
                Verdict::Fine(_) => continue,
                Verdict::Ask if !held => {
                    plan.steps.push(Step::Ask(target));
                    continue;
                }
                Verdict::Ask => (Reason::DiskKept, false),
                Verdict::Sweep(reason) => (reason, true),
                Verdict::Person(reason) => (reason, false),
            };
            let fate = match may_go {
                _ if !seen_twice(thing, reason) => Fate::SeenOnce,
                false => Fate::Stays,
                true if held => Fate::Held,
                true if flags.dry_run => Fate::WouldGo,
                true if left == 0 => Fate::Waits,
                true => Fate::Goes,
            };
            if fate == Fate::Goes {
                left -= 1;
                plan.steps.push(Step::Delete(target, reason));
            }
            let finding = Finding::of(&project.name, thing, reason, fate);
            plan.findings.push(finding);
        }
    }
    plan
}

fn seen_twice(thing: &Thing, reason: Reason) -> bool {
    thing
        .sighting
        .is_some_and(|sighting| sighting.settled && sighting.reason == reason)
}

/// What a thing with our label is.
pub fn verdict(thing: &Thing, world: &World, min_age: Duration) -> Verdict {
    let found = match &thing.what {
        What::Server(server) => server_verdict(thing.id, server, world),
        What::Firewall { applied: true, .. } => Verdict::Fine(Fine::Claimed),
        What::Firewall { class: None, .. } => Verdict::Person(Reason::LabelsChanged),
        What::Firewall {
            class: Some(class), ..
        } if world.classes.contains(class) => Verdict::Fine(Fine::Claimed),
        What::Firewall { .. } => Verdict::Sweep(Reason::ClassGone),
        What::SshKey | What::Snapshot => return Verdict::Person(Reason::NotOurs),
    };
    match (found, thing.created) {
        (Verdict::Fine(_), _) => found,
        (_, None) => Verdict::Person(Reason::AgeUnknown),
        (_, Some(created)) if !is_old(created, world.now, min_age) => Verdict::Fine(Fine::Young),
        _ => found,
    }
}

fn is_old(created: Timestamp, now: Timestamp, min_age: Duration) -> bool {
    Duration::try_from(now.duration_since(created)).is_ok_and(|age| age >= min_age)
}

fn server_verdict(id: i64, server: &ServerView, world: &World) -> Verdict {
    if world.claims.names_server(id) {
        return Verdict::Fine(Fine::Claimed);
    }
    if server.retained {
        return Verdict::Fine(Fine::Retained);
    }
    if server.busy {
        return Verdict::Fine(Fine::Busy);
    }
    let Some(owner) = server.owner.as_ref().filter(|_| server.named_so) else {
        return Verdict::Person(Reason::LabelsChanged);
    };
    let claim = world.claims.by_name(owner);
    match (claim, server.guest) {
        (Some(claim), _) if !claim.left_behind(id, server) => Verdict::Fine(Fine::Claimed),
        _ if server.protected => Verdict::Person(Reason::Protected),
        (Some(_), _) => Verdict::Sweep(Reason::LeftBehind),
        (None, _) if server.disposable => Verdict::Sweep(Reason::Disposable),
        (None, Guest::Unasked) if server.address.is_some() => Verdict::Ask,
        (None, Guest::NeverArmed) => Verdict::Sweep(Reason::NeverArmed),
        (None, Guest::Armed) => Verdict::Person(Reason::WasArmed),
        (None, Guest::Unasked | Guest::Silent) => Verdict::Person(Reason::DiskKept),
    }
}

/// Whether the server is still what it was found for, by an answer that no cache gave; `claim` is the instance of its name.
pub fn is_still(
    reason: Reason,
    id: i64,
    server: &ServerView,
    owner: &Key,
    claim: Option<&Claim>,
) -> bool {
    let same = server.named_so
        && server.owner.as_ref() == Some(owner)
        && !(server.retained || server.busy || server.protected);
    let fits = match (reason, claim) {
        (Reason::LeftBehind, Some(claim)) => claim.left_behind(id, server),
        (Reason::Disposable, None) => server.disposable,
        (Reason::NeverArmed, None) => true,
        _ => false,
    };
    same && fits
}

/// Many things that nobody claims are likelier a picture that lacks their owners (I9).
pub fn hold(world: &World, min_age: Duration) -> Option<Hold> {
    let counts: Vec<(usize, usize)> = world
        .projects
        .iter()
        .map(|project| {
            let servers = project
                .things
                .iter()
                .filter(|thing| thing.kind() == Kind::Server);
            let unclaimed = servers.clone().filter(|thing| {
                !matches!(
                    verdict(thing, world, min_age),
                    Verdict::Fine(Fine::Claimed | Fine::Retained | Fine::Busy)
                        | Verdict::Sweep(Reason::LeftBehind)
                )
            });
            (unclaimed.count(), servers.count())
        })
        .collect();
    let (unclaimed, of) = counts
        .iter()
        .fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    let claimed = world.projects.iter().flat_map(|project| &project.things);
    let claimed = claimed.filter(|thing| thing.kind() == Kind::Server);
    let mut claimed = claimed.map(|thing| verdict(thing, world, min_age));
    if unclaimed > 0 && !claimed.any(|found| found == Verdict::Fine(Fine::Claimed)) {
        return Some(Hold::NothingClaimed);
    }
    let many = |(unclaimed, of): (usize, usize)| unclaimed > FEW && unclaimed * 100 > of * SHARE;
    counts
        .into_iter()
        .chain([(unclaimed, of)])
        .find(|count| many(*count))
        .map(|(unclaimed, of)| Hold::TooMany(unclaimed, of))
}

#[cfg(test)]
mod tests;
