//! Any course of events: never too many are down for a rollout, a bad revision reaches few, and a good one reaches all.

use proptest::prelude::*;

use super::{
    tests::{at, course, old, revision, rules},
    *,
};

/// What happens between two looks.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// Nothing but time.
    Pass,
    /// The n-th member does its next thing.
    Act(usize),
    /// The process begins anew.
    Restart,
    /// A person pauses, or resumes.
    Pause(bool),
    /// The n-th member falls, for no reason of the rollout.
    Fall(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::Pass),
        8 => (0..12_usize).prop_map(Event::Act),
        1 => Just(Event::Restart),
        1 => any::<bool>().prop_map(Event::Pause),
        1 => (0..12_usize).prop_map(Event::Fall),
    ]
}

struct Model {
    members: Vec<Member>,
    rules: Rules,
    course: Course,
    bad: bool,
    now: i64,
    /// Those that ever had the target.
    had: std::collections::BTreeSet<usize>,
}

impl Model {
    fn new(
        (members, max, bad): (usize, usize, bool),
        surge: Option<usize>,
        on_failure: OnRolloutFailure,
    ) -> Self {
        Self {
            members: (0..members).map(|nth| old(&format!("m{nth:02}"))).collect(),
            rules: Rules {
                on_failure,
                disposable: surge.is_some(),
                replaces: surge.is_some(),
                max_surge: surge.unwrap_or(1),
                ..rules(max)
            },
            course: course(),
            bad,
            now: 0,
            had: std::collections::BTreeSet::new(),
        }
    }

    fn look(&mut self) -> Turns {
        let turns = turns(&self.members, &self.course, &self.rules, at(self.now));
        self.course.failed |= turns.progress.failed;
        for (member, turn) in self.members.iter_mut().zip(&turns.of) {
            (member.granted, member.moving) = match turn {
                Turn::Takes { revision, moves } => {
                    (Some(revision.clone()), *moves || member.prepared)
                }
                _ => (None, member.prepared),
            };
        }
        turns
    }

    /// One member goes one step further: it is given what it shall have, or serves with it, or not.
    fn act(&mut self, nth: usize) {
        let turns = self.look();
        let now = at(self.now);
        let (Some(member), Some(turn)) = (self.members.get_mut(nth), turns.of.get(nth)) else {
            return;
        };
        let wanted = match turn {
            Turn::Takes { revision, .. } => Has::Revision(revision.clone()),
            Turn::GoesBack => Has::Revision("r1".into()),
            Turn::Keeps(_) => member.has.clone(),
        };
        let target = wanted == Has::Revision("r2".into());
        let beside = matches!(turn, Turn::Takes { moves: true, .. }) && !member.prepared;
        if member.has != wanted && beside {
            member.prepared = true;
        } else if member.has != wanted && member.ready.is_some() {
            member.ready = None;
        } else if member.has != wanted {
            (member.has, member.prepared) = (wanted, false);
            member.health = None;
            if target {
                self.had.insert(nth);
            }
        } else if target && self.bad {
            (member.ready, member.health) = (None, Some(HealthState::Failed));
            member.refused = Some("r2".into());
        } else if member.ready.is_none() {
            (member.ready, member.health) = (Some(now), Some(HealthState::Healthy));
            if let Has::Revision(name) = &member.has {
                member.good = Some(name.clone());
            }
        }
    }

    fn happens(&mut self, event: Event) {
        self.now += 20;
        match event {
            Event::Pass => {}
            Event::Act(nth) => self.act(nth),
            Event::Restart => {
                for member in &mut self.members {
                    (member.granted, member.moving) = (None, member.prepared);
                }
            }
            Event::Pause(paused) => {
                self.rules.gate = if paused { Gate::Paused } else { Gate::Open };
            }
            Event::Fall(nth) => {
                if let Some(member) = self.members.get_mut(nth) {
                    (member.ready, member.health) = (None, Some(HealthState::Failed));
                }
            }
        }
    }

    /// How many are not Ready.
    fn down(&self) -> usize {
        self.members
            .iter()
            .filter(|member| member.ready.is_none())
            .count()
    }

    /// How many new servers stand beside old ones.
    fn beside(&self) -> usize {
        let members = self.members.iter();
        members.filter(|member| member.prepared).count()
    }

    /// Everybody acts, often enough.
    fn calm(&mut self) {
        self.rules.gate = Gate::Open;
        for _ in 0..8 * self.members.len() {
            for nth in 0..self.members.len() {
                self.happens(Event::Act(nth));
            }
        }
    }

    fn with(&self, name: &str) -> usize {
        let has =
            |member: &&Member| member.has == Has::Revision(name.into()) && member.ready.is_some();
        self.members.iter().filter(has).count()
    }
}

fn on_failure() -> impl Strategy<Value = OnRolloutFailure> {
    prop_oneof![
        Just(OnRolloutFailure::Pause),
        Just(OnRolloutFailure::Rollback)
    ]
}

/// How many new servers may stand beside old ones, where each revision has servers of its own.
fn surge() -> impl Strategy<Value = Option<usize>> {
    prop::option::of(1..4_usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn never_more_than_may_be_are_down_for_a_rollout(
        of in (1..12_usize, 1..4_usize, any::<bool>()), surge in surge(),
        on_failure in on_failure(),
        events in prop::collection::vec(event(), 0..120),
    ) {
        let mut model = Model::new(of, surge, on_failure);
        let max = of.1;
        let mut fell = std::collections::BTreeSet::new();
        for event in events {
            if let Event::Fall(nth) = event {
                fell.insert(nth);
            }
            model.happens(event);
            prop_assert!(model.down() <= max + fell.len(), "{:?}", model.members);
            prop_assert!(model.beside() <= surge.unwrap_or_default(), "{:?}", model.members);
        }
    }

    #[test]
    fn a_good_revision_reaches_all_when_all_heal(
        (members, max) in (1..12_usize, 1..4_usize), surge in surge(),
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut model = Model::new((members, max, false), surge, OnRolloutFailure::Pause);
        for event in events {
            model.happens(event);
        }
        // What fell on the target before it was ever Ready with it counts against it, until a person's word starts it anew.
        model.calm();
        model.course.failed = false;
        model.calm();
        prop_assert_eq!(model.with("r2"), members);
        prop_assert!(model.look().progress.proven);
    }

    #[test]
    fn a_bad_revision_reaches_few_and_all_serve_again_without_it(
        (members, max) in (1..12_usize, 1..4_usize), surge in surge(),
        on_failure in on_failure(),
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut model = Model::new((members, max, true), surge, on_failure);
        for event in events {
            model.happens(event);
        }
        model.calm();
        prop_assert!(model.had.len() <= max, "{:?}", model.had);
        prop_assert_eq!(model.with("r1"), members);
        prop_assert!(model.look().progress.failed);
        prop_assert_eq!(&model.look().newcomers, &revision("r1"));
    }
}
