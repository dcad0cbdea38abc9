//! Each line of the plan: what is there, what the state entitles to, and the steps that follow.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ObjectMeta;
use serde_json::{Value, json};
use std::time::Duration;

use super::*;
use crate::{
    api::{
        AgentInstance, AnnouncedEvent, ConditionType, FINALIZER, Subscription, SubscriptionStatus,
        is_true,
    },
    subscription::{
        declaration::{MANAGER, terminate_at, unentitled_since},
        guard::{Census, tests::LIMITS},
        status::status,
    },
};

const FLAGS: SubscriptionFlags = SubscriptionFlags {
    announce_before: Duration::from_hours(24),
    orphan_patience: Duration::from_mins(10),
    guard: LIMITS,
};
const DAY: i64 = 24 * 3600;

mod sequences;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn subscription(state: &str) -> Subscription {
    let object = json!({
        "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription",
        "metadata": {"namespace": "agents", "name": "alice", "uid": "s1", "generation": 1},
        "spec": {"customerId": "cus_1", "plan": "small", "state": state, "secretName": "alice"},
    });
    serde_json::from_value(object).unwrap()
}

/// As the API server tells who manages a value's fields.
fn fields(value: &Value) -> Value {
    let told = value.as_object().into_iter().flatten();
    Value::Object(
        told.map(|(key, value)| (format!("f:{key}"), fields(value)))
            .collect(),
    )
}

/// The instance after a declaration; `others` is merged into its spec by somebody else.
fn instance(declared: &Declaration, others: &Value) -> AgentInstance {
    let mut body = declared.body("agents", "alice", None);
    let managed = json!({"metadata": body["metadata"], "spec": body["spec"]});
    for (key, value) in others.as_object().into_iter().flatten() {
        body["spec"][key] = value.clone();
    }
    body["metadata"]["uid"] = json!("i1");
    body["metadata"]["resourceVersion"] = json!("7");
    body["metadata"]["managedFields"] = json!([{
        "manager": MANAGER, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields(&managed),
    }]);
    serde_json::from_value(body).unwrap()
}

/// A subscription through time: each look writes its status, and its steps are done.
struct Life {
    subscription: Subscription,
    world: World,
    instance: Option<AgentInstance>,
    now: i64,
}

impl Life {
    fn new(state: &str) -> Self {
        Self {
            subscription: subscription(state),
            world: World {
                finalizer: true,
                secret: SecretView::Fits,
                census: Some(Census::default()),
                ..World::default()
            },
            instance: None,
            now: 0,
        }
    }

    /// One that runs.
    fn running() -> Self {
        let mut life = Self::new("Active");
        life.settle();
        assert!(life.instance.is_some());
        life
    }

    fn desired(&self) -> Desired {
        Desired::parse(&self.subscription)
    }

    fn plan(&mut self) -> Plan {
        let desired = self.desired();
        self.world.instance = InstanceView::of(self.instance.as_ref(), &desired);
        plan(&desired, &self.world, &FLAGS, at(self.now))
    }

    /// One look; answers its steps.
    fn look(&mut self) -> Vec<Step> {
        let plan = self.plan();
        if !self.desired().is_absent() {
            self.world.status = status(
                &self.desired(),
                &self.world,
                &plan,
                Some(1),
                (FLAGS.announce_before, at(self.now)),
            );
        }
        for step in &plan.steps {
            match step {
                Step::AddFinalizer => self.world.finalizer = true,
                Step::RemoveFinalizer => self.world.finalizer = false,
                Step::Create(declared) => self.instance = Some(instance(declared, &json!({}))),
                Step::Declare(declared, _) => {
                    self.instance = Some(instance(declared, &json!({})));
                }
                Step::Terminate(_) => self.instance = None,
            }
        }
        plan.steps
    }

    /// Looks until nothing is left to do, and nothing is written any more.
    fn settle(&mut self) {
        for _ in 0..5 {
            let before = self.world.status.clone();
            if self.look().is_empty() && before == self.world.status {
                return;
            }
        }
        panic!("it does not settle: {:#?}", self.world.status);
    }

    fn says(&mut self, state: &str) {
        let spec = subscription(state).spec;
        self.subscription.spec.state = spec.state;
        self.settle();
    }

    fn after(&mut self, seconds: i64) {
        self.now += seconds;
        self.settle();
    }

    fn suspended(&self) -> bool {
        self.instance.as_ref().is_some_and(|one| one.spec.suspend)
    }

    fn announced(&self) -> Option<AnnouncedEvent> {
        self.world.status.announced.as_ref().map(|told| told.event)
    }

    fn ready(&self) -> &str {
        let mut told = self.world.status.conditions.iter();
        told.find(|told| told.type_ == "Ready")
            .map_or("", |told| told.reason.as_str())
    }
}

#[test]
fn a_new_subscription_is_taken_in_and_its_agent_made_of_what_it_says() {
    let mut life = Life::new("Active");
    life.world.finalizer = false;
    let steps = life.look();
    let [Step::AddFinalizer, Step::Create(declared)] = steps.as_slice() else {
        panic!("{steps:?}");
    };
    assert_eq!(
        (declared.class.as_str(), declared.suspend),
        ("small", false)
    );
    assert_eq!(declared.secret.as_deref(), Some("alice"));
    life.settle();
    assert_eq!(life.world.status.instance_ref.as_ref().unwrap().uid, "i1");
}

#[test]
fn nothing_is_made_while_it_is_not_paid_or_refused() {
    for state in [
        "Incomplete",
        "IncompleteExpired",
        "PastDue",
        "Unpaid",
        "Paused",
        "Canceled",
    ] {
        let mut life = Life::new(state);
        assert_eq!(life.look(), [], "{state}");
        life.after(400 * DAY);
        assert_eq!(
            life.world.status.terminate_at, None,
            "there is nothing to end"
        );
    }
    for (secret, reason) in [
        (SecretView::Missing, "SecretMissing"),
        (SecretView::NotTheCustomers, "SecretOfAnother"),
    ] {
        let mut life = Life::new("Active");
        life.world.secret = secret;
        assert_eq!(life.look(), []);
        assert_eq!(life.ready(), reason);
    }
    let mut life = Life::new("Active");
    life.world.elder = Some("agents/bob".into());
    assert_eq!(life.look(), []);
    assert_eq!(life.ready(), "Duplicate");
}

#[test]
fn one_that_does_not_pay_is_suspended_announced_and_ended_and_one_that_pays_is_back() {
    let mut life = Life::running();
    life.says("PastDue");
    assert!(!life.suspended());
    assert_eq!(life.announced(), None);
    life.after(2 * DAY);
    assert_eq!(life.announced(), Some(AnnouncedEvent::SuspendsSoon));
    life.after(DAY);
    assert!(life.suspended());
    assert_eq!(life.announced(), Some(AnnouncedEvent::Suspended));
    assert_eq!(life.ready(), "Suspended");
    life.says("Active");
    assert!(!life.suspended() && life.announced().is_none());
    life.says("Unpaid");
    assert!(life.suspended());
    let ends = life.world.status.terminate_at.clone().unwrap();
    assert_eq!(ends.0, at(life.now + 7 * DAY));
    let told = terminate_at(life.instance.as_ref().unwrap());
    assert_eq!(told, Some(ends.0), "on the instance too");
    life.after(6 * DAY);
    assert_eq!(life.announced(), Some(AnnouncedEvent::TerminatesSoon));
    life.after(DAY - 1);
    assert!(life.instance.is_some());
    life.after(1);
    assert!(life.instance.is_none());
    assert_eq!(life.announced(), Some(AnnouncedEvent::Terminated));
    life.says("Active");
    assert!(life.instance.is_some() && life.announced().is_none());
}

#[test]
fn one_of_too_many_is_kept_beyond_its_end_until_an_admin_confirms() {
    let mut life = Life::running();
    life.says("Unpaid");
    let lost = unentitled_since(life.instance.as_ref().unwrap()).unwrap();
    let many = |agents| Census::of((0..agents).map(|_| Some(lost)));
    life.world.census = Some(many(9));
    life.after(100 * DAY);
    assert!(life.instance.is_some());
    let held = |life: &Life| {
        is_true(
            &life.world.status.conditions,
            ConditionType::TerminationHeld,
        )
    };
    assert!(held(&life));
    let mut undone = Life {
        subscription: life.subscription.clone(),
        world: life.world.clone(),
        instance: life.instance.clone(),
        now: life.now,
    };
    undone.says("Active");
    assert!(!held(&undone) && !undone.suspended());
    assert_eq!(unentitled_since(undone.instance.as_ref().unwrap()), None);
    life.world.census = Some(many(1));
    life.after(DAY);
    assert!(life.instance.is_some(), "when the others were put back");
    life.world.confirmation = Some(at(-1).to_string());
    life.settle();
    assert!(life.instance.is_some(), "a word from before");
    life.world.confirmation = Some(at(life.now).to_string());
    life.settle();
    assert!(life.instance.is_none());
    let mut alone = Life::running();
    alone.says("Unpaid");
    alone.world.census = Some(many(4));
    alone.after(100 * DAY);
    assert!(alone.instance.is_none());
}

#[test]
fn one_that_says_that_it_is_held_stays_so_whoever_else_was_lost_until_an_admin_confirms() {
    let mut life = Life::running();
    life.says("Unpaid");
    let lost = unentitled_since(life.instance.as_ref().unwrap()).unwrap();
    let many = |agents| Some(Census::of((0..agents).map(|_| Some(lost))));
    let stays = |life: &mut Life, word: Option<&str>| {
        life.plan();
        life.world.ours().unwrap().stays_held(word)
    };
    assert!(!stays(&mut life, None), "it is alone");
    life.world.census = many(9);
    life.settle();
    life.now += 100 * DAY;
    for word in [None, Some(at(-1).to_string())] {
        life.world.confirmation.clone_from(&word);
        assert!(stays(&mut life, word.as_deref()));
        let counted = life.plan();
        assert!(counted.held && counted.steps.is_empty());
        for census in [None, many(1), many(100)] {
            life.world.census = census;
            assert_eq!(life.plan(), counted);
        }
    }
    let word = lost.to_string();
    assert!(!stays(&mut life, Some(&word)), "confirmed");
}

#[test]
fn none_ends_before_others_would_be_known_that_were_lost_with_it() {
    let mut life = Life::running();
    life.subscription.spec.retention = serde_json::from_value(json!("0s")).unwrap();
    life.world.census = Some(Census::of((0..5).map(|_| None)));
    life.says("Unpaid");
    assert!(life.suspended() && life.instance.is_some());
    let settled = FLAGS.guard.patience.as_secs().cast_signed();
    assert_eq!(life.plan().look_again, Some(at(settled)));
    life.world.census = None;
    life.now = settled;
    assert_eq!(life.look(), [], "it is not known yet who went");
    assert_eq!(life.plan().look_again, Some(at(settled + 1)));
    life.world.census = Some(Census::of((0..5).map(|_| None)));
    life.now = settled - 1;
    assert_eq!(life.look(), []);
    life.after(1);
    assert!(life.instance.is_none());
    let mut few = Life::running();
    few.subscription.spec.retention = life.subscription.spec.retention;
    few.says("Unpaid");
    assert!(few.instance.is_none(), "a fleet too small to tell");
}

#[test]
fn no_more_agents_are_made_in_a_day_than_may() {
    let mut life = Life::new("Active");
    life.world.census = Some(Census::of_today(100));
    assert_eq!(life.look(), []);
    assert_eq!(life.ready(), "CreationsHeld");
    life.world.census = Some(Census::of_today(99));
    life.settle();
    assert!(life.instance.is_some());
}

#[test]
fn a_lost_status_gives_time_and_lifts_no_suspension() {
    let mut life = Life::running();
    life.says("Unpaid");
    let ends = life.world.status.terminate_at.clone().unwrap().0;
    life.now += 5 * DAY;
    life.world.status = SubscriptionStatus::default();
    life.subscription.spec.paid_until = Some(Time(at(30 * DAY)));
    life.says("Canceled");
    assert!(life.suspended(), "the instance remembers");
    assert!(life.world.status.terminate_at.clone().unwrap().0 > ends);
}

#[test]
fn what_others_have_said_of_an_instance_is_left_alone() {
    let mut life = Life::running();
    let declared = Declaration::found(life.instance.as_ref().unwrap());
    let others =
        json!({"suspend": true, "environment": {"BY_HAND": "1"}, "deletionPolicy": "Retain"});
    life.instance = Some(instance(&declared, &others));
    assert_eq!(life.look(), [], "a person's own suspension stands");
    life.world.instance = InstanceView::Absent;
    let mut foreign = instance(&declared, &json!({}));
    for (labels, whose) in [
        (json!({}), "was not made by a Subscription"),
        (
            json!({"agentfleet.dev/subscription": "alice", "agentfleet.dev/customer": "cus_2"}),
            "belongs to another customer",
        ),
    ] {
        foreign.metadata = ObjectMeta {
            labels: serde_json::from_value(labels).unwrap(),
            ..foreign.metadata
        };
        life.instance = Some(foreign.clone());
        for state in ["Active", "Unpaid"] {
            life.says(state);
            life.after(100 * DAY);
            assert_eq!(life.ready(), "NameTaken");
            assert_eq!(life.instance.as_ref(), Some(&foreign), "{whose}");
        }
    }
}

#[test]
fn a_change_of_the_plan_is_declared_and_a_refused_one_is_not() {
    let mut life = Life::running();
    life.subscription.spec.plan = "large".into();
    life.subscription.spec.secret_name = Some("bob".into());
    life.world.secret = SecretView::NotTheCustomers;
    life.settle();
    let spec = |life: &Life| life.instance.as_ref().unwrap().spec.clone();
    assert_eq!(spec(&life).class_name, "small");
    assert_eq!(spec(&life).secret_name.as_deref(), Some("alice"));
    assert!(is_true(
        &life.world.status.conditions,
        ConditionType::PlanPending
    ));
    life.says("Unpaid");
    assert!(life.suspended(), "what takes away is not refused");
    assert_eq!(spec(&life).secret_name.as_deref(), Some("alice"));
    life.world.secret = SecretView::Fits;
    life.says("Active");
    assert_eq!(spec(&life).class_name, "large");
    assert_eq!(spec(&life).secret_name.as_deref(), Some("bob"));
}

#[test]
fn one_that_is_deleted_leaves_its_agent_suspended_with_its_end_and_never_deletes_it() {
    for state in ["Active", "PastDue", "Unpaid", "Paused", "Canceled"] {
        let mut life = Life::running();
        life.says(state);
        life.subscription.metadata.deletion_timestamp = Some(Time(at(50)));
        life.now = 400 * DAY;
        while life.world.finalizer {
            let steps = life.look();
            assert!(!steps.iter().any(|step| matches!(step, Step::Terminate(_))));
            life.now += 7;
        }
        assert!(life.suspended(), "{state}");
        assert!(
            life.instance
                .as_ref()
                .is_some_and(|one| { terminate_at(one).is_some() })
        );
        assert_eq!(life.look(), []);
    }
    let mut without = Life::new("Unpaid");
    without.subscription.metadata.deletion_timestamp = Some(Time(at(50)));
    assert_eq!(without.look(), [Step::RemoveFinalizer]);
}

#[test]
fn a_new_subscription_of_that_name_and_customer_takes_the_agent_back() {
    let mut life = Life::running();
    life.says("Unpaid");
    let left = life.instance.clone();
    let mut new = Life::new("Active");
    new.instance = left.clone();
    new.settle();
    assert!(!new.suspended());
    assert!(terminate_at(new.instance.as_ref().unwrap()).is_none());
    let mut other = Life::new("Active");
    other.subscription.spec.customer_id = "cus_2".into();
    other.instance = left.clone();
    other.settle();
    assert_eq!(other.instance, left);
    assert_eq!(other.ready(), "NameTaken");
}

#[test]
fn an_agent_that_is_being_deleted_is_waited_for() {
    let mut life = Life::running();
    if let Some(instance) = &mut life.instance {
        instance.metadata.deletion_timestamp = Some(Time(at(0)));
        instance.metadata.finalizers = Some(vec![FINALIZER.into()]);
    }
    for state in ["Active", "Unpaid"] {
        life.says(state);
        assert_eq!(life.ready(), "Terminating");
    }
}
