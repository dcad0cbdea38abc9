//! What is remembered of the events of an instance, between what the plan asks for and what the status says.
//!
//! All of it may be lost: an event that was sent and is not in the status goes out again, under its old id.

use std::time::Duration;

use jiff::Timestamp;

use super::{desired::Identity, memory::Memory, perform::Performer};
use crate::{
    api::{AgentInstanceStatus, Notice, NotifiedStatus},
    context::Context,
    error::Retry,
    notification::{
        delivery::Delivery,
        event::{Event, Subject},
    },
};

/// Between two tries of one event.
const PAUSE: Retry = Retry::Growing(Duration::from_secs(1), Duration::from_mins(10));

/// What a plan may know of events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoticesView {
    /// Whether there is somebody to tell.
    pub on: bool,
    /// What was told last.
    pub told: Option<NotifiedStatus>,
    /// Whether an event is on its way.
    pub busy: bool,
    /// The event that was not taken when it was sent last, by its id, and when to try it again.
    pub failed: Option<(String, Timestamp)>,
    /// Until when the object waits for its last event to be taken; none before that was sent.
    pub farewell: Option<Timestamp>,
    /// When the deletion of the object was asked for.
    pub deleted_at: Option<Timestamp>,
}

/// What is remembered of events.
#[derive(Debug, Default)]
pub struct NoticesMemory {
    told: Option<NotifiedStatus>,
    failed: Option<Failed>,
    farewell: Option<Timestamp>,
}

#[derive(Debug)]
struct Failed {
    id: String,
    times: u32,
    again: Timestamp,
}

impl NoticesView {
    /// Whether the end of the instance was told.
    pub fn told_the_end(&self) -> bool {
        let told = self.told.as_ref();
        told.is_some_and(|told| told.event == Notice::Deleted)
    }
}

impl NoticesMemory {
    fn learn(&mut self, delivery: Delivery, now: Timestamp) {
        match delivery {
            Delivery::Taken(event) => {
                self.told = Some(event.taken());
                self.failed = None;
            }
            Delivery::Failed(event) => {
                let before = self.failed.take().filter(|failed| failed.id == event.id);
                let times = before.map_or(0, |failed| failed.times) + 1;
                let again = now.checked_add(PAUSE.pause(times)).unwrap_or(now);
                self.failed = Some(Failed {
                    id: event.id,
                    times,
                    again,
                });
            }
        }
    }
}

/// Takes what became of the last event into memory, and tells the plan.
pub fn observe(
    ctx: &Context,
    identity: &Identity,
    (status, deleted_at): (&AgentInstanceStatus, Option<Timestamp>),
    memory: &mut Memory,
    now: Timestamp,
) -> NoticesView {
    let memory = &mut memory.notices;
    if let Some(delivery) = ctx.notifications.take(identity) {
        memory.learn(delivery, now);
    }
    let told = memory.told.clone().or_else(|| status.notified.clone());
    let failed = memory.failed.as_ref();
    NoticesView {
        on: ctx.notifications.are_on(),
        told,
        busy: ctx.notifications.is_busy(identity),
        failed: failed.map(|failed| (failed.id.clone(), failed.again)),
        farewell: memory.farewell,
        deleted_at,
    }
}

impl Performer<'_> {
    /// Sends an event on its way, which waits for nobody.
    pub fn notify(&self, event: &Event) {
        if !self.ctx.leadership.holds() {
            return;
        }
        let identity = self.desired.identity();
        if event.notice == Notice::Deleted {
            self.ctx.notifications.forget(identity);
            let patience = self.ctx.settings.webhook_patience;
            let until = self.moment.wall.checked_add(patience);
            self.ctx.memories.with(&identity.uid, |memory| {
                let farewell = &mut memory.notices.farewell;
                *farewell = farewell.or(until.ok());
            });
        }
        let subject = Subject {
            fleet: self.ctx.keyring.fleet().to_owned(),
            namespace: identity.namespace.clone(),
            name: identity.name.clone(),
            uid: identity.uid.clone(),
            class: self.instance.spec.class_name.clone(),
            incarnation: self.world.incarnation(),
        };
        self.ctx
            .notifications
            .start(identity, event.clone(), subject);
    }
}

/// Forgets an instance that is gone, and says so where nobody was told.
pub fn let_go(ctx: &Context, identity: &Identity, view: &NoticesView) {
    ctx.notifications.forget(identity);
    if view.on && view.farewell.is_some() && !view.told_the_end() {
        tracing::warn!(
            instance = %format_args!("{}/{}", identity.namespace, identity.name),
            "the receiver of the webhook was not told that this instance was deleted: it did not take the event in time"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_each_try_of_an_event_and_begin_anew_with_the_next() {
        let now = Timestamp::UNIX_EPOCH;
        let event = |second| {
            let at = Timestamp::from_second(second).unwrap();
            Event::deleted("uid-1", None, at)
        };
        let mut memory = NoticesMemory::default();
        let pauses = [1, 1, 1, 2].map(|second| {
            memory.learn(Delivery::Failed(event(second)), now);
            memory.failed.as_ref().unwrap().again.as_second()
        });
        assert_eq!(pauses, [1, 2, 4, 1]);
        memory.learn(Delivery::Taken(event(2)), now);
        assert_eq!(memory.told, Some(event(2).taken()));
        assert!(memory.failed.is_none());
    }
}
