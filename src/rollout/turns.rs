//! Whose turn it is to get a new revision of a class: one pure function.
//!
//! Nothing of it is remembered but who has a turn already; a process that begins anew finds that out again, since those in the middle of it do
//! not serve, and those come first.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::api::{HealthState, OnRolloutFailure};

mod member;
#[cfg(test)]
mod model;
mod progress;
#[cfg(test)]
mod tests;

pub use member::{Fit, Has, Member, Revision};
pub use progress::Progress;
use progress::names;

/// Whether further turns may be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// They may.
    #[default]
    Open,
    /// A person said not to.
    Paused,
    /// It is not the time: reason and words.
    Closed(&'static str, String),
}

/// What the class says of rollouts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How many may be not Ready for it.
    pub max_unavailable: usize,
    /// How many may be getting a new server.
    pub max_surge: usize,
    /// Whether further turns may be given.
    pub gate: Gate,
    /// What follows a failure.
    pub on_failure: OnRolloutFailure,
    /// Why no server is prepared beside another for now, if that is so, reason and words; what has begun goes on.
    pub held: Option<(&'static str, String)>,
    /// Whether the operator may replace a server by its own decision.
    pub disposable: bool,
    /// Whether it does so for each revision.
    pub replaces: bool,
    /// How long an agent must be Ready before it counts as such.
    pub settle: Duration,
}

/// Where the class stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// The revision that the class describes.
    pub target: Revision,
    /// The name of this try of it.
    pub attempt: String,
    /// The last revision that was good.
    pub good: Option<Revision>,
    /// Whether this try is known to have failed.
    pub failed: bool,
}

/// What an instance shall have for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// This revision; and whether its server may change for it.
    Takes {
        /// Name of the revision.
        revision: String,
        /// Whether its server may become another one, or one of another type.
        moves: bool,
    },
    /// What it has.
    Keeps(Why),
    /// The revision that it was last Ready with.
    GoesBack,
}

/// Why an instance keeps what it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Others are first.
    Waits,
    /// It cannot be reached.
    OutOfReach,
    /// The rollout is paused.
    Paused,
    /// It is not the time: reason and words.
    Closed(&'static str, String),
    /// The rollout has failed.
    Stopped,
}

/// What is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turns {
    /// The revision that all are to have.
    pub goal: Revision,
    /// The revision for those that have none.
    pub newcomers: Revision,
    /// For each member, in their order.
    pub of: Vec<Turn>,
    /// Where the rollout stands.
    pub progress: Progress,
    /// When time alone changes something.
    pub look_again: Option<Timestamp>,
}

/// Decides for each member of a class.
pub fn turns(members: &[Member], course: &Course, rules: &Rules, now: Timestamp) -> Turns {
    let fallen = |member: &&Member| member.fell(course);
    let proven = course.good.as_ref() == Some(&course.target);
    let failures = members.iter().filter(fallen).count();
    let speaking = members.iter().filter(|member| member.speaks()).count();
    let enough = failures >= rules.max_unavailable.min(speaking).max(1);
    let failed = !proven && (course.failed || enough);
    let former = course.good.as_ref().filter(|good| **good != course.target);
    let newcomers = former.filter(|_| failed).unwrap_or(&course.target);
    let back = failed && rules.on_failure == OnRolloutFailure::Rollback && former.is_some();
    let goal = if back { newcomers } else { &course.target };
    let look = Look {
        course,
        rules,
        goal,
        newcomers,
        stopped: failed && !back,
        now,
    };
    let of = look.give(members);
    let progress = Progress {
        failed,
        back,
        fallen: names(members.iter().filter(fallen)),
        ..look.progress(members, &of)
    };
    Turns {
        goal: goal.clone(),
        newcomers: newcomers.clone(),
        look_again: look.settles(members),
        of,
        progress,
    }
}

struct Look<'a> {
    course: &'a Course,
    rules: &'a Rules,
    goal: &'a Revision,
    newcomers: &'a Revision,
    /// Whether the goal is what has failed.
    stopped: bool,
    now: Timestamp,
}

impl Look<'_> {
    fn give(&self, members: &[Member]) -> Vec<Turn> {
        // One on which it failed keeps its place for good: a bad revision reaches no more than that.
        let holds = |member: &&Member| {
            let retypes = self.is_moving(member) && self.is_to_retype(member);
            retypes || self.is_pending(member) || self.went_back(member)
        };
        let held = members.iter().filter(holds).count();
        let mut slots = self.rules.max_unavailable.saturating_sub(held);
        let beside = |member: &&Member| self.is_moving(member) && !self.is_to_retype(member);
        let moving = members.iter().filter(beside);
        let mut surge = self.rules.max_surge.saturating_sub(moving.count());
        let mut of: Vec<Turn> = members.iter().map(|member| self.settled(member)).collect();
        let mut queue: Vec<usize> = (0..members.len()).collect();
        queue.sort_by_key(|at| {
            let member = &members[*at];
            (
                member.ready.is_some(),
                member.health != Some(HealthState::Failed),
                &member.name,
            )
        });
        for at in queue {
            let member = &members[at];
            let Turn::Keeps(Why::Waits) = of[at] else {
                continue;
            };
            let moves = self.must_move(member);
            let retypes = self.is_to_retype(member);
            let slot = usize::from(!member.has(self.goal) || retypes);
            let another = usize::from(moves && !retypes);
            if slot <= slots && another <= surge {
                (slots, surge) = (slots - slot, surge - another);
                of[at] = self.takes(moves);
            } else if member.has(self.goal) {
                of[at] = self.takes(false);
            }
        }
        of
    }

    fn takes(&self, moves: bool) -> Turn {
        Turn::Takes {
            revision: self.goal.name.clone(),
            moves,
        }
    }

    /// What is decided without a new turn; one for whom it is not waits.
    fn settled(&self, member: &Member) -> Turn {
        if !member.speaks() {
            return Turn::Takes {
                revision: self.newcomers.name.clone(),
                moves: false,
            };
        }
        if self.went_back(member) {
            return Turn::GoesBack;
        }
        let must_move = self.must_move(member);
        if member.has(self.goal) && !must_move {
            return self.takes(false);
        }
        if self.goes_on(member) {
            return self.takes(must_move);
        }
        let may_not = match &self.rules.gate {
            _ if self.stopped => Some(Why::Stopped),
            _ if member.out_of_reach => Some(Why::OutOfReach),
            Gate::Open => self.held(member),
            Gate::Paused => Some(Why::Paused),
            Gate::Closed(reason, words) => Some(Why::Closed(reason, words.clone())),
        };
        match may_not {
            Some(_) if member.has(self.goal) => self.takes(false),
            Some(why) => Turn::Keeps(why),
            None => Turn::Keeps(Why::Waits),
        }
    }

    /// Why no server is prepared beside its own now, if it needs one.
    fn held(&self, member: &Member) -> Option<Why> {
        let (reason, words) = self.rules.held.clone()?;
        let beside = self.must_move(member) && !self.is_to_retype(member);
        beside.then_some(Why::Closed(reason, words))
    }

    /// Whether it has a turn that it keeps: one that has begun is never taken away, since that would be one more change.
    fn goes_on(&self, member: &Member) -> bool {
        if member.ready.is_some() && !member.prepared && self.held(member).is_some() {
            return false;
        }
        let may_begin = self.rules.gate == Gate::Open && !self.stopped;
        let begun = member.ready.is_none() || self.is_moving(member);
        let granted = member.granted.as_ref() == Some(&self.goal.name);
        if member.has(self.goal) || member.prepared {
            self.is_moving(member)
        } else {
            granted && (begun || may_begin)
        }
    }

    fn must_move(&self, member: &Member) -> bool {
        let beside = self.rules.disposable && !member.keeps_disk && member.misfits(self.goal);
        beside || self.needs_anyhow(member) || self.is_to_retype(member)
    }

    /// Whether a new server is due to it whatever has changed.
    fn needs_anyhow(&self, member: &Member) -> bool {
        self.rules.replaces && !member.keeps_disk && !member.has(self.goal)
    }

    fn is_to_retype(&self, member: &Member) -> bool {
        member.is_to_retype(self.goal) && !self.needs_anyhow(member)
    }

    fn is_moving(&self, member: &Member) -> bool {
        member.speaks() && member.moving && self.must_move(member) && !self.went_back(member)
    }

    fn went_back(&self, member: &Member) -> bool {
        *self.goal == self.course.target && member.refuses(self.course)
    }

    /// Whether it is, or is about to be, not Ready for this rollout.
    fn is_pending(&self, member: &Member) -> bool {
        if !member.speaks() {
            return false;
        }
        let changed = (member.has(self.goal) && member.good.is_some()) || self.went_back(member);
        let begins = !member.has(self.goal) && !self.went_back(member) && self.goes_on(member);
        begins || (changed && self.settles_at(member).is_none_or(|at| at > self.now))
    }

    /// When an agent that is Ready counts as such.
    fn settles_at(&self, member: &Member) -> Option<Timestamp> {
        member.ready.map(|ready| {
            let settled = ready.checked_add(self.rules.settle);
            settled.unwrap_or(Timestamp::MAX)
        })
    }

    fn settles(&self, members: &[Member]) -> Option<Timestamp> {
        let held = members.iter().filter(|member| self.is_pending(member));
        held.filter_map(|member| self.settles_at(member))
            .filter(|at| *at > self.now)
            .min()
    }

    /// What keeps turns from being given.
    fn gate(&self, members: &[Member]) -> Gate {
        let held = || members.iter().find_map(|member| self.held(member));
        match &self.rules.gate {
            Gate::Open => match held() {
                Some(Why::Closed(reason, words)) => Gate::Closed(reason, words),
                _ => Gate::Open,
            },
            gate => gate.clone(),
        }
    }
}
