//! What is told to the world outside, beside all steps: it delays none of them, and none delays it.

use super::{Look, Plan, Stage};
use crate::notification::event::{self, Event};

impl Look<'_> {
    /// The same plan, with the event that is due. What stands in the status is told, not what this look finds: so it is told after a crash too.
    pub(super) fn with_notice(&self, plan: Plan) -> Plan {
        let notices = &self.world.notices;
        if !notices.on || plan.stage == Stage::AsBefore {
            return plan;
        }
        if self.want.is_none() {
            return self.farewell(plan);
        }
        let told = notices.told.as_ref();
        match event::due(&self.identity.uid, &self.world.status, told) {
            Some(event) => self.tell(plan, event),
            None => plan,
        }
    }

    /// The end is told before the object goes, as nobody could tell it afterwards; a receiver that does not take it holds nothing for long (I7).
    fn farewell(&self, plan: Plan) -> Plan {
        let notices = &self.world.notices;
        let goes = plan.stage == Stage::Gone && !plan.steps.is_empty();
        let waited = notices.farewell.is_some_and(|until| until <= self.now);
        let (true, false, Some(at)) = (goes, waited || notices.told_the_end(), notices.deleted_at)
        else {
            return plan;
        };
        let waits = Plan::wait(Stage::Deleting(
            "Notifying",
            "nothing of it is left; its end is told to the receiver of the webhook".into(),
        ));
        let event = Event::deleted(&self.identity.uid, notices.told.as_ref(), at);
        match notices.farewell {
            Some(until) => self.tell(waits.until(until), event),
            // It overtakes one that may be on its way, for however long.
            None => waits.telling(event),
        }
    }

    /// One at a time; one that was not taken waits, unless another has come in its place.
    fn tell(&self, plan: Plan, event: Event) -> Plan {
        let notices = &self.world.notices;
        let failed = notices.failed.as_ref();
        let again = failed.filter(|(id, again)| *id == event.id && *again > self.now);
        match again {
            _ if notices.busy => plan,
            Some((_, again)) => plan.until(*again),
            None => plan.telling(event),
        }
    }
}

impl Plan {
    fn telling(self, event: Event) -> Self {
        Self {
            notice: Some(Box::new(event)),
            ..self
        }
    }
}
