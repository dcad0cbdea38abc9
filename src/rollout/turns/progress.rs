//! How far a rollout is, for people and for the revision that it may prove good.

use super::{Gate, Look, Member, Turn, Why};

/// Where a rollout stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many speak.
    pub of: usize,
    /// How many of them have the goal, with a server that fits.
    pub updated: usize,
    /// Whether this try of the target has failed.
    pub failed: bool,
    /// Whether the goal is another than the target.
    pub back: bool,
    /// Whether the goal has proven itself.
    pub proven: bool,
    /// Whether further turns may be given.
    pub gate: Gate,
    /// Those that it waits for.
    pub under_way: Vec<String>,
    /// Those on which it failed.
    pub fallen: Vec<String>,
    /// Those that cannot be reached.
    pub out_of_reach: Vec<String>,
    /// Those whose server only a person may replace.
    pub kept: Vec<String>,
    /// How many have no turn yet.
    pub waiting: usize,
}

/// Names of some members.
pub(super) fn names<'a>(members: impl Iterator<Item = &'a Member>) -> Vec<String> {
    members.map(|member| member.name.clone()).collect()
}

impl Look<'_> {
    pub(super) fn progress(&self, members: &[Member], of: &[Turn]) -> Progress {
        let speaking = || members.iter().filter(|member| member.speaks());
        let has_goal = |member: &&Member| member.has(self.goal);
        let kept = speaking().filter(|member| {
            has_goal(member) && member.misfits(self.goal) && !self.must_move(member)
        });
        let pairs = || members.iter().zip(of);
        let under_way = pairs().filter(|(member, turn)| {
            let begins =
                matches!(turn, Turn::Takes { moves, .. } if *moves || !member.has(self.goal));
            member.speaks() && (begins || self.is_pending(member))
        });
        let unreachable = pairs().filter(|(_, turn)| **turn == Turn::Keeps(Why::OutOfReach));
        let waits = |member: &Member, turn: &Turn| match turn {
            Turn::Keeps(why) => *why != Why::OutOfReach,
            Turn::Takes { moves, .. } => member.speaks() && !moves && self.must_move(member),
            Turn::GoesBack => false,
        };
        let waiting = pairs().filter(|(member, turn)| waits(member, turn));
        let served = speaking()
            .filter(has_goal)
            .filter(|member| !self.is_pending(member) && member.ready.is_some());
        let (all, served) = (speaking().count(), served.count());
        let (under_way, waiting) = (names(under_way.map(|(member, _)| member)), waiting.count());
        Progress {
            of: all,
            updated: speaking()
                .filter(has_goal)
                .filter(|member| !member.misfits(self.goal))
                .count(),
            proven: !self.stopped && waiting == 0 && under_way.is_empty() && served * 2 > all,
            gate: self.gate(members),
            under_way,
            out_of_reach: names(unreachable.map(|(member, _)| member)),
            kept: names(kept),
            waiting,
            ..Progress::default()
        }
    }
}
