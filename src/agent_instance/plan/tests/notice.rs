//! What is told outside, and what waits for it.

use super::*;
use crate::{
    agent_instance::notices::NoticesView,
    api::{ConditionType, Notice, NotifiedStatus, condition},
};

/// An instance that serves, whose status says so, and somebody who listens.
fn heard() -> World {
    let mut world = serving();
    for (kind, holds, reason) in [
        (ConditionType::Stalled, false, "NotStalled"),
        (ConditionType::Ready, true, "Serving"),
    ] {
        let condition = condition(kind, Some(holds), reason, "");
        world.status.conditions.push(condition);
    }
    changed!(world, notices.on = true)
}

/// The last look at an instance of which nothing is left.
fn last_look() -> World {
    let notices = NoticesView {
        on: true,
        deleted_at: Some(at(-20)),
        ..NoticesView::default()
    };
    changed!(ready_to_create(), notices = notices)
}

fn notice(plan: &Plan) -> Option<Notice> {
    plan.notice.as_ref().map(|event| event.notice)
}

fn taken(plan: &Plan) -> Option<NotifiedStatus> {
    plan.notice.as_deref().map(Event::taken)
}

#[test]
fn what_the_status_says_is_told_once_and_beside_all_steps() {
    let steps = present(&serving()).steps;
    let plan = present(&heard());
    assert_eq!((notice(&plan), &plan.steps), (Some(Notice::Ready), &steps));
    let told = changed!(heard(), notices.told = taken(&plan));
    assert_eq!(notice(&present(&told)), None);
    let nobody = changed!(heard(), notices.on = false);
    assert_eq!(notice(&present(&nobody)), None);
}

#[test]
fn an_event_that_was_not_taken_waits_unless_another_is_due() {
    let id = present(&heard()).notice.unwrap().id;
    let failed = |id: &str, second| Some((id.to_owned(), at(second)));
    let busy = changed!(heard(), notices.busy = true);
    assert_eq!(notice(&present(&busy)), None);
    let waits = present(&changed!(heard(), notices.failed = failed(&id, 2)));
    assert_eq!((notice(&waits), waits.look_again), (None, Some(at(2))));
    let again = present(&changed!(heard(), notices.failed = failed(&id, 0)));
    assert_eq!(again.notice.unwrap().id, id);
    let other = present(&changed!(heard(), notices.failed = failed("other", 2)));
    assert_eq!(notice(&other), Some(Notice::Ready));
}

#[test]
fn a_step_that_has_to_wait_keeps_no_event_back() {
    let trouble = Trouble {
        reason: "RateLimited",
        message: String::new(),
        until: at(60),
        stalled: false,
        times: 1,
    };
    let mut steps_wait = heard();
    steps_wait.servers[0].power = Power::Off;
    let plan = present(&changed!(steps_wait, trouble = Some(trouble)));
    assert_eq!((plan.steps.len(), notice(&plan)), (0, Some(Notice::Ready)));
}

#[test]
fn i7_the_end_is_told_before_the_object_goes_and_no_receiver_holds_it_for_long() {
    let plan = absent(&last_look());
    assert_eq!(
        (plan.steps.len(), notice(&plan)),
        (0, Some(Notice::Deleted))
    );
    assert_eq!(reason(&plan), "Notifying");
    let busy = absent(&changed!(last_look(), notices.busy = true));
    assert_eq!(notice(&busy), Some(Notice::Deleted), "with another event");
    let waits = changed!(last_look(), notices.farewell = Some(at(30)));
    let waits = absent(&changed!(waits, notices.busy = true));
    assert_eq!((waits.steps.len(), waits.look_again), (0, Some(at(30))));
    for over in [
        changed!(last_look(), notices.told = taken(&plan)),
        changed!(last_look(), notices.farewell = Some(at(0))),
        changed!(last_look(), notices.on = false),
    ] {
        let plan = absent(&over);
        assert_eq!(
            (notice(&plan), plan.steps),
            (None, vec![Step::RemoveFinalizer])
        );
    }
}

#[test]
fn nothing_is_told_of_an_instance_that_is_going() {
    assert_eq!(notice(&absent(&heard())), None);
}
