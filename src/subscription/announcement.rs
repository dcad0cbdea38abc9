//! What people are told of a subscription: what takes an agent away, before and when it comes.
//!
//! Pure. What stands announced follows from the plan and the time, so it changes when there is something to tell and at no other time; the status
//! keeps it, so that a restart tells nothing twice.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{entitlement::earlier, plan::Plan, step::Step, world::World};
use crate::{
    api::{AnnouncedEvent, Announcement, Notice},
    notification::event::Event,
};

/// What is announced now.
pub fn standing(
    world: &World,
    plan: &Plan,
    lead: Duration,
    now: Timestamp,
) -> Option<Announcement> {
    let entitlement = &plan.entitlement;
    let told = world.status.announced.as_ref();
    let near = |at: &Timestamp| earlier(*at, lead) <= now;
    let ends = || told.is_some_and(|told| told.event == AnnouncedEvent::Terminated);
    match world.ours() {
        _ if entitlement.creates && world.ours().is_none() => None,
        Some(_)
            if plan
                .steps
                .iter()
                .any(|step| matches!(step, Step::Terminate(_))) =>
        {
            Some(of(AnnouncedEvent::Terminated, entitlement.terminate_at))
        }
        None => told.filter(|_| ends()).cloned(),
        Some(ours) if ours.deleting => told.cloned(),
        Some(_) if entitlement.entitled => entitlement
            .suspend_at
            .filter(near)
            .map(|at| of(AnnouncedEvent::SuspendsSoon, Some(at))),
        Some(_) => Some(match entitlement.terminate_at.filter(near) {
            Some(at) => of(AnnouncedEvent::TerminatesSoon, Some(at)),
            None => of(AnnouncedEvent::Suspended, None),
        }),
    }
}

fn of(event: AnnouncedEvent, at: Option<Timestamp>) -> Announcement {
    Announcement {
        event,
        at: at.map(Time),
    }
}

/// The event for the receiver of the webhook; none for what the instance tells of itself.
pub fn event(uid: &str, announced: &Announcement) -> Option<Event> {
    let notice = match announced.event {
        AnnouncedEvent::SuspendsSoon => Notice::SuspendsSoon,
        AnnouncedEvent::Suspended => return None,
        AnnouncedEvent::TerminatesSoon => Notice::TerminatesSoon,
        AnnouncedEvent::Terminated => Notice::Terminated,
    };
    let at = announced.at.as_ref()?.0;
    Some(Event::announced(uid, notice, &words(announced), at))
}

/// An announcement in words.
pub fn words(announced: &Announcement) -> String {
    let at = announced.at.as_ref().map(|at| at.0.to_string());
    let at = at.unwrap_or_default();
    match announced.event {
        AnnouncedEvent::SuspendsSoon => format!("the agent will be suspended at {at}"),
        AnnouncedEvent::Suspended => {
            "the agent is suspended; its server and its data are kept".to_owned()
        }
        AnnouncedEvent::TerminatesSoon => {
            format!("the agent will be deleted at {at}, with its server and all of its data")
        }
        AnnouncedEvent::Terminated => {
            format!(
                "the agent is deleted with its server and all of its data: its time ended at {at}"
            )
        }
    }
}
