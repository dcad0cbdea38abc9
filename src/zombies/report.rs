//! Tells people what a sweep found: a condition on each project, an event and a line of the log for each zombie, once.
//!
//! Nothing is told of what was seen only once. In calm the words are the same each time, so nothing is written (I4).

use kube::{
    Resource as _,
    runtime::{
        events::{Event, EventType},
        reflector::ObjectRef,
    },
};

use super::{
    finding::{Fate, Finding},
    memory::Memory,
    perform::is_of,
    plan::{Plan, Target},
    world::World,
};
use crate::{context::Context, hetzner_project::world::Zombies};

/// So many are named in one condition.
const NAMED: usize = 10;

/// Tells what was found and what became of it.
pub fn tell(ctx: &Context, memory: &mut Memory, world: &World, plan: &Plan, gone: &[Target]) {
    for finding in &plan.findings {
        let deleted = gone.iter().any(|target| is_of(finding, target));
        // What was about to go and did not was no zombie at the second look, or is tried again.
        if deleted
            || !matches!(finding.fate, Fate::SeenOnce | Fate::Goes) && memory.is_news(finding)
        {
            publish(ctx, finding, deleted);
        }
    }
    let left = |found: &&Finding| !gone.iter().any(|target| is_of(found, target));
    let left: Vec<&Finding> = plan.findings.iter().filter(left).collect();
    ctx.metrics.sweep_ended(&left, plan.hold.is_some());
    for project in &world.projects {
        let Some(Ok(connection)) = ctx.connections.get(&project.name) else {
            continue;
        };
        let found = left.iter().filter(|found| found.project == project.name);
        let found: Vec<&Finding> = found.copied().collect();
        if let Some(tally) = tally(plan, &found)
            && connection.tell_zombies(tally)
        {
            ctx.wake.project(&project.name);
        }
    }
}

fn publish(ctx: &Context, finding: &Finding, deleted: bool) {
    let (type_, reason, note) = if deleted {
        (EventType::Normal, "ZombieDeleted", finding.sentence())
    } else {
        tracing::warn!(
            project = finding.project, kind = finding.kind.word(), id = finding.id, owner = finding.owner,
            reason = finding.reason.as_str(), fate = ?finding.fate, "zombie found"
        );
        (EventType::Warning, "ZombieFound", advice(finding))
    };
    let Some(object) = ctx.stores.projects.get(&ObjectRef::new(&finding.project)) else {
        return;
    };
    let event = Event {
        type_,
        reason: reason.into(),
        note: Some(note),
        action: "Sweep".into(),
        secondary: None,
    };
    ctx.events.publish(&object.object_ref(&()), event);
}

/// A finding, and what becomes of it or what a person can do.
fn advice(finding: &Finding) -> String {
    let sentence = finding.sentence();
    let command = finding.kind.command(finding.id);
    match finding.fate {
        Fate::WouldGo => format!("{sentence}; without --zombie-dry-run it would be deleted"),
        Fate::Waits | Fate::SeenOnce | Fate::Goes => {
            format!("{sentence}; it is deleted in one of the next sweeps")
        }
        Fate::Held | Fate::Stays => format!("{sentence}; if you are sure: {command}"),
    }
}

/// What the condition of a project shall say; none: what it said before, until all was seen twice.
fn tally(plan: &Plan, found: &[&Finding]) -> Option<Zombies> {
    let told: Vec<&&Finding> = found
        .iter()
        .filter(|finding| !matches!(finding.fate, Fate::SeenOnce | Fate::Goes))
        .collect();
    if told.is_empty() {
        return found.is_empty().then_some(Zombies::None);
    }
    let mut message: Vec<String> = told.iter().take(NAMED).map(|found| advice(found)).collect();
    if told.len() > NAMED {
        message.push(format!("and {} more", told.len() - NAMED));
    }
    let message = message.join(". ");
    Some(
        match plan
            .hold
            .filter(|_| told.iter().any(|found| found.fate == Fate::Held))
        {
            Some(hold) => Zombies::Some("SweepHeld", format!("{hold}. {message}")),
            None => Zombies::Some("ZombiesFound", message),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zombies::{
        finding::{Hold, Reason},
        world::Kind,
    };

    fn finding(id: i64, fate: Fate) -> Finding {
        Finding {
            project: "main".into(),
            kind: Kind::Server,
            id,
            name: String::new(),
            owner: "ns/a".into(),
            reason: Reason::WasArmed,
            fate,
        }
    }

    #[test]
    fn a_condition_says_nothing_new_before_all_was_seen_twice() {
        let plan = Plan::default();
        let once = finding(1, Fate::SeenOnce);
        assert_eq!(tally(&plan, &[]), Some(Zombies::None));
        assert_eq!(tally(&plan, &[&once]), None);
        let stays = finding(2, Fate::Stays);
        let told = "server 2: there is no AgentInstance ns/a, and an agent has run on it; if you are sure: hcloud server delete 2";
        assert_eq!(
            tally(&plan, &[&once, &stays]),
            Some(Zombies::Some("ZombiesFound", told.into()))
        );
    }

    #[test]
    fn a_hold_is_told_before_what_it_holds_and_many_are_counted() {
        let plan = Plan {
            hold: Some(Hold::TooMany(13, 20)),
            ..Plan::default()
        };
        let many: Vec<Finding> = (0..13).map(|id| finding(id, Fate::Held)).collect();
        let many: Vec<&Finding> = many.iter().collect();
        let Some(Zombies::Some("SweepHeld", told)) = tally(&plan, &many) else {
            panic!("not told");
        };
        assert!(
            told.starts_with("13 of 20 servers belong to no AgentInstance")
                && told.ends_with("and 3 more"),
            "{told}"
        );
    }
}
