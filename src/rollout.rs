//! How a change of a class reaches its instances: a few at a time, and no further when it is bad.
//!
//! Each revision of a class is kept. Whose turn it is to get the newest is one pure function of the members; everybody else wants the revision
//! that it has, so the rest of the pipeline needs no word of rollouts. Who has a turn is remembered here and may be forgotten at any time.

pub mod members;
pub mod revisions;
pub mod turns;
mod windows;
pub mod words;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use kube::ResourceExt as _;
use sha2::{Digest as _, Sha256};

use crate::{
    agent_instance::desired::Want,
    api::{AgentClass, AgentInstance, Disk, Health, RETRY_ANNOTATION},
    context::Context,
};
use members::Members;
use revisions::Housekeeping;
use turns::{Course, Has, Progress, Revision, Turn, turns};

/// Where the rollouts of all classes stand, by name of the class.
#[derive(Debug, Default)]
pub struct Rollouts(Mutex<HashMap<String, Standing>>);

impl Rollouts {
    /// Hetzner's limit left no server for the rollout of a class: it takes no further turn before then, whatever else goes on in that project.
    pub fn used_up(&self, class: &str, quota: UsedUp) {
        self.lock().entry(class.to_owned()).or_default().quota = Some(quota);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Standing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a class that is gone.
    pub fn forget(&self, class: &str) {
        self.lock().remove(class);
    }
}

/// That there was no server to be had for a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedUp {
    /// When to ask again.
    pub until: Timestamp,
    /// What people are told.
    pub words: String,
}

/// What was decided last for the members of a class.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Of which object and generation.
    basis: (Option<String>, Option<i64>),
    course: Course,
    goal: Revision,
    newcomers: Revision,
    /// Names of the revisions that are kept.
    kept: Vec<String>,
    /// All known revisions, where each gets servers of its own.
    revisions: Vec<Revision>,
    quota: Option<UsedUp>,
    /// By UID.
    turns: HashMap<String, Turn>,
}

impl Standing {
    fn without_turns(&self) -> Self {
        Self {
            basis: self.basis.clone(),
            course: self.course.clone(),
            goal: self.goal.clone(),
            newcomers: self.newcomers.clone(),
            kept: vec![],
            revisions: self.revisions.clone(),
            quota: None,
            turns: HashMap::new(),
        }
    }

    /// The other revisions that servers of this one are as good for: they differ in nothing but how agents are probed.
    fn alike(&self, name: &str) -> Vec<String> {
        let all = || self.revisions.iter();
        let this = all().find(|known| known.name == name);
        let alike = all()
            .filter(|other| other.name != name && this.is_some_and(|this| this.is_like(other)));
        alike.map(|other| other.name.clone()).collect()
    }
}

/// A look at the rollout of a class, for its status and its steps.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Where the class stands.
    pub course: Course,
    /// The revision that all are to have.
    pub goal: Revision,
    /// How far it is.
    pub progress: Progress,
    /// When time alone changes something.
    pub look_again: Option<Timestamp>,
    /// What is to be kept.
    pub housekeeping: Housekeeping,
}

/// The part of one instance in the rollout of its class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// The revision that it shall have for now.
    pub revision: String,
    /// Others that differ from that one in nothing but how agents are probed, where each revision gets servers of its own.
    pub alike: Vec<String>,
    /// The name of this try of the newest revision, if that is the one.
    pub attempt: Option<String>,
    /// The revision that it goes back to when that try fails here.
    pub former: Option<String>,
    /// The try that it went back from, as long as that counts.
    pub refused: Option<String>,
    /// Why that is not the newest: reason and message.
    pub why: Option<(&'static str, String)>,
    /// How the revision that it has is probed, if that is another way than that of the revision that it shall have.
    pub asked: Option<Health>,
}

impl Share {
    /// Whether a server of that revision is as good as a new one.
    pub fn is_met_by(&self, revision: &str) -> bool {
        self.revision == revision || self.alike.iter().any(|alike| alike == revision)
    }
}

/// What an instance is given of its class for now.
#[derive(Clone, Debug)]
pub struct Given {
    /// The class as it was at that revision; none when that is not kept any more.
    pub class: Option<AgentClass>,
    /// The class at the revision that it has, while it may be given a new server for another.
    pub meanwhile: Option<AgentClass>,
    /// Which revision, and why.
    pub share: Share,
    /// Whether the instance may be given a new server for it, or its server another type.
    pub may_move: bool,
}

/// Decides for all members of a class, and wakes those for whom something else was decided than before.
pub fn look(ctx: &Context, class: &AgentClass, now: Timestamp) -> Look {
    let mut all = ctx.rollouts.lock();
    decide(ctx, class, &mut all, now)
}

fn decide(
    ctx: &Context,
    class: &AgentClass,
    all: &mut HashMap<String, Standing>,
    now: Timestamp,
) -> Look {
    let name = class.name_any();
    let former = all.get(&name);
    let members = Members::gather(ctx, class, former.map(|former| &former.turns), now);
    let course = course(ctx, class, &members, former);
    let quota = former.and_then(|former| former.quota.clone());
    let quota = quota.filter(|quota| quota.until > now);
    let held = members::held(ctx, class, now);
    let rules = members.rules(class, (quota.as_ref(), held), now);
    let decided = turns(&members.all, &course, &rules, now);
    let asks_again = quota.as_ref().map(|quota| quota.until);
    let births = births(ctx, class, &members);
    let used = births.map(|births| used(&members, &course, births));
    let kept = revisions::kept(ctx, class);
    let housekeeping = Housekeeping::of(&name, &course.target.name, &kept, used.as_ref());
    let uids = members.all.iter().map(|member| member.uid.clone());
    let next = Standing {
        basis: basis(class),
        course: Course {
            failed: decided.progress.failed,
            ..course.clone()
        },
        goal: decided.goal.clone(),
        newcomers: decided.newcomers,
        kept,
        revisions: if class.spec.lifecycle.replaces() {
            revisions::known(ctx, class)
        } else {
            vec![]
        },
        quota,
        turns: uids.zip(decided.of).collect(),
    };
    wake(ctx, &members, former, &next);
    all.insert(name, next);
    Look {
        course,
        goal: decided.goal,
        progress: decided.progress,
        look_again: decided.look_again.into_iter().chain(asks_again).min(),
        housekeeping,
    }
}

fn basis(class: &AgentClass) -> (Option<String>, Option<i64>) {
    (class.uid(), class.metadata.generation)
}

/// Those for whom something else was decided look again; the first decision of a process comes before they have looked at all.
fn wake(ctx: &Context, members: &Members, former: Option<&Standing>, next: &Standing) {
    let Some(former) = former else { return };
    let others = former.course.attempt != next.course.attempt
        || former.goal != next.goal
        || former.kept != next.kept;
    for (member, object) in members.all.iter().zip(&members.objects) {
        if others || former.turns.get(&member.uid) != next.turns.get(&member.uid) {
            ctx.wake
                .instance(&object.namespace().unwrap_or_default(), &object.name_any());
        }
    }
}

fn course(
    ctx: &Context,
    class: &AgentClass,
    members: &Members,
    former: Option<&Standing>,
) -> Course {
    let target = revisions::described(class);
    let attempt = attempt(class, &target);
    let status = class.status.clone().unwrap_or_default();
    let known = |name: &String| {
        if *name == target.name {
            return Some(target.clone());
        }
        revisions::class_at(ctx, class, name).map(|class| revisions::described(&class))
    };
    let told = status.good_revision.as_ref().and_then(known);
    let failed_before =
        former.is_some_and(|former| former.course.failed && former.course.attempt == attempt);
    Course {
        failed: failed_before || status.failed_revision.as_ref() == Some(&attempt),
        good: told.or_else(|| members.mostly_good(&target.name).as_ref().and_then(known)),
        target,
        attempt,
    }
}

/// A try of a revision is named after both the revision and a person's last word, so that a new word begins a new one.
fn attempt(class: &AgentClass, target: &Revision) -> String {
    match class.annotations().get(RETRY_ANNOTATION) {
        Some(word) if !word.is_empty() => {
            let hash = Sha256::digest(word.as_bytes());
            format!("{}.{:02x}{:02x}", target.name, hash[0], hash[1])
        }
        _ => target.name.clone(),
    }
}

/// The revisions that servers were made of, where each gets servers of its own: one is as good for another revision only while both are known. None as long
/// as a server has not been seen.
fn births(ctx: &Context, class: &AgentClass, members: &Members) -> Option<BTreeSet<String>> {
    if !class.spec.lifecycle.replaces() {
        return Some(BTreeSet::new());
    }
    let told = members.objects.iter().flat_map(|object| &object.status);
    told.filter(|status| status.server.is_some())
        .map(|status| members::born_with(ctx, status))
        .collect()
}

/// The revisions that somebody has, or may go back to, and those that servers were made of.
fn used(members: &Members, course: &Course, births: BTreeSet<String>) -> BTreeSet<String> {
    let mut used = births;
    used.insert(course.target.name.clone());
    used.extend(course.good.iter().map(|good| good.name.clone()));
    for member in &members.all {
        used.extend(member.good.clone());
        if let Has::Revision(name) = &member.has {
            used.insert(name.clone());
        }
    }
    used
}

/// What an instance shall have of its class for now.
pub fn share(
    ctx: &Context,
    class: &AgentClass,
    instance: &AgentInstance,
    want: &Want,
    now: Timestamp,
) -> Given {
    let name = class.name_any();
    let (standing, turn) = {
        let mut all = ctx.rollouts.lock();
        if all
            .get(&name)
            .is_none_or(|known| known.basis != basis(class))
        {
            decide(ctx, class, &mut all, now);
        }
        let known = all.get(&name);
        let turn = known.and_then(|known| known.turns.get(&instance.uid()?).cloned());
        let own = known.map(Standing::without_turns);
        (own.unwrap_or_default(), turn)
    };
    let has = members::has(ctx, class, instance, want);
    let status = instance.status.clone().unwrap_or_default();
    let own = Own {
        class,
        has,
        good: status.good_revision,
        refused: status.refused_revision,
    };
    own.share(&standing, turn, |revision| {
        revisions::class_at(ctx, class, revision)
    })
}

/// What an instance tells of itself now, which may be newer than what was decided by.
struct Own<'a> {
    class: &'a AgentClass,
    has: Has,
    good: Option<String>,
    refused: Option<String>,
}

impl Own<'_> {
    fn share(
        &self,
        standing: &Standing,
        turn: Option<Turn>,
        kept: impl Fn(&str) -> Option<AgentClass>,
    ) -> Given {
        let Standing { course, goal, .. } = standing;
        let target = &course.target.name;
        let at = |revision: &str| {
            if revision == target {
                return Some(self.class.clone());
            }
            kept(revision)
        };
        let refused = self
            .refused
            .as_ref()
            .filter(|try_| **try_ == course.attempt);
        let disposable = self.class.spec.lifecycle.disk == Disk::Disposable;
        let goes_back = refused.is_some() && goal.name == *target && self.has != Has::Nothing;
        let back = self.good.as_ref().filter(|good| *good != target);
        let back = back.and_then(|good| Some((good.clone(), kept(good)?)));
        let (class, revision, why, may_move) = match (turn, &self.has, back.clone()) {
            (_, _, Some((good, class))) if goes_back => {
                let why = words::went_back(target, &good, "");
                (Some(class), good, Some((words::WENT_BACK, why)), disposable)
            }
            (_, Has::Nothing, _) | (None, ..) => {
                let revision = &standing.newcomers.name;
                let why = words::behind(&self.class.name_any(), target, revision);
                (at(revision), revision.clone(), why, false)
            }
            (Some(Turn::Keeps(why)), has, _) if *has != Has::Revision(goal.name.clone()) => {
                let why = words::keeps(&self.class.name_any(), target, &why);
                match has {
                    Has::Revision(has) => (at(has), has.clone(), Some(why), false),
                    _ => (None, String::new(), Some(why), false),
                }
            }
            // Not always the goal: who was a newcomer when this was decided keeps what newcomers get.
            (Some(Turn::Takes { revision, moves }), ..) => {
                let why = words::behind(&self.class.name_any(), target, &revision);
                (at(&revision), revision, why, moves)
            }
            (Some(Turn::Keeps(_) | Turn::GoesBack), ..) => {
                let why = words::behind(&self.class.name_any(), target, &goal.name);
                (at(&goal.name), goal.name.clone(), why, false)
            }
        };
        let had = match &self.has {
            Has::Revision(has) if *has != revision => at(has),
            _ => None,
        };
        let newest = revision == *target;
        let share = Share {
            asked: asked_before(had.as_ref(), class.as_ref()),
            alike: standing.alike(&revision),
            attempt: newest.then(|| course.attempt.clone()),
            former: back.map(|(good, _)| good),
            refused: refused.cloned(),
            revision,
            why,
        };
        Given {
            class,
            meanwhile: had.filter(|_| may_move),
            share,
            may_move,
        }
    }
}

/// How a revision is probed, if another one is probed in another way.
fn asked_before(had: Option<&AgentClass>, given: Option<&AgentClass>) -> Option<Health> {
    let (had, given) = (&had?.spec.health, &given?.spec.health);
    (had != given).then(|| had.clone())
}

#[cfg(test)]
mod tests;
