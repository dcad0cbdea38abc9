//! Gauges of the fleet, made anew at each scrape from what stores and memory show.
//!
//! Nothing is asked of anybody for them. Until the stores have had their first lists nothing is shown: few instances would look like lost ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use prometheus_client::metrics::gauge::Gauge;

use super::{
    declared::{Declaring, Gauges, Value},
    words,
};
use crate::{
    api::{AgentInstance, ConditionType, is_true},
    context::Context,
    subscription::guard::{
        keeper,
        report::{Cause, Remembered},
    },
};

/// Where an instance stands that was not looked at yet.
const PENDING: &str = "Pending";

/// All of them.
#[derive(Debug)]
pub struct Fleet {
    instances: Gauges<2>,
    stalled: Gauges<2>,
    rollouts: Gauges<2>,
    updated: Gauges<1>,
    held: Gauges<2>,
    projects: Gauges<1>,
    budget_limit: Gauges<1>,
    budget_left: Gauges<1>,
    waiting: Gauges<2>,
    probers: Gauge,
    subscriptions: Gauges<1>,
    terminations_held: Gauges<1>,
    creations_held: Gauge,
}

impl Fleet {
    /// Declares them.
    pub fn declare(all: &mut Declaring) -> Self {
        Self {
            instances: all.gauges(
                "agentfleet_instances",
                &["class", "phase"],
                "AgentInstances by status.phase; no class where the one they name does not exist",
            ),
            stalled: all.gauges(
                "agentfleet_instances_stalled",
                &["class", "reason"],
                "AgentInstances that only a person can help, by the reason of their condition Stalled; ProvisionFailed is a creation that was given up",
            ),
            rollouts: all.gauges(
                "agentfleet_class_rollout",
                &["class", "state"],
                "Always 1; the state is the reason of the class's condition UpToDate, such as Updated, RollingOut, RolloutPaused or RolloutFailed",
            ),
            updated: all.gauges(
                "agentfleet_class_instances_updated",
                &["class"],
                "Instances of the class that have its newest revision, of those that have a server and are not suspended",
            ),
            held: all.gauges(
                "agentfleet_recovery_held",
                &["scope", "name"],
                "Whether so many agents or servers fell at once that none of this class or project (scope) is rebooted or replaced",
            ),
            projects: all.gauges(
                "agentfleet_project_ready",
                &["project"],
                "Whether the HetznerProject is Ready: its token works and belongs to the project that was first seen",
            ),
            budget_limit: all.gauges(
                "agentfleet_hetzner_budget_limit",
                &["project"],
                "Requests an hour that Hetzner allows in the project",
            ),
            budget_left: all.gauges(
                "agentfleet_hetzner_budget_left",
                &["project"],
                "Requests that are left in the project now; they refill steadily",
            ),
            waiting: all.gauges(
                "agentfleet_hetzner_waiting",
                &["project", "lane"],
                "Who waits for leave to send a request, by what it is for",
            ),
            subscriptions: all.gauges(
                "agentfleet_subscriptions",
                &["state"],
                "Subscriptions by the state that the billing system gave them",
            ),
            terminations_held: all.gauges(
                "agentfleet_terminations_held",
                &["cause"],
                "Agents that are kept because so many lost their entitlement (Unentitled), or were deleted (Deleted), at once; an admin confirms or undoes it (see subscriptions.md)",
            ),
            creations_held: all.gauge(
                "agentfleet_creations_held",
                "Subscriptions whose agent is not made because so many were made within a day (see subscriptions.md)",
            ),
            probers: all.gauge(
                "agentfleet_probers",
                "Agents whose health is probed by this process",
            ),
        }
    }

    /// Makes them anew.
    pub fn fill(&self, ctx: &Context) {
        if !ctx.stores.synced.is_cancelled() {
            return;
        }
        self.count_instances(ctx);
        self.show_classes(ctx);
        self.show_projects(ctx);
        self.show_budgets(ctx);
        set(&self.probers, ctx.talks.probes.count());
        self.count_subscriptions(ctx);
    }

    fn count_subscriptions(&self, ctx: &Context) {
        let mut states: BTreeMap<[String; 1], i64> = BTreeMap::new();
        for subscription in ctx.stores.subscriptions.state() {
            let state = subscription.spec.state.as_str().to_owned();
            *states.entry([state]).or_insert(0) += 1;
        }
        refill(&self.subscriptions, states);
        let mut held = keeper::holds(ctx, &Remembered::new()).0;
        let creations = held.remove(&Cause::Made).unwrap_or_default();
        set(&self.creations_held, creations.agents.len());
        let held = held.into_iter().map(|(cause, held)| {
            let number = i64::try_from(held.agents.len()).unwrap_or(i64::MAX);
            ([cause.as_str().to_owned()], number)
        });
        refill(&self.terminations_held, held);
    }

    fn count_instances(&self, ctx: &Context) {
        let classes = ctx.stores.classes.state();
        let classes: BTreeSet<String> = classes.iter().map(|class| class.name_any()).collect();
        let tally = Tally::of(&ctx.stores.instances.state(), &classes);
        refill(&self.instances, tally.phases);
        refill(&self.stalled, tally.stalled);
    }

    fn show_classes(&self, ctx: &Context) {
        let (mut rollouts, mut updated, mut held) = (vec![], vec![], vec![]);
        for class in ctx.stores.classes.state() {
            let Some(status) = &class.status else {
                continue;
            };
            let name = class.name_any();
            if let Some(told) = told(&status.conditions, ConditionType::UpToDate) {
                rollouts.push(([name.clone(), told.reason.clone()], 1));
            }
            if let Some(number) = status.updated_instances {
                updated.push(([name.clone()], number));
            }
            held.push((["class".into(), name], is_held(&status.conditions)));
        }
        for project in ctx.stores.projects.state() {
            if let Some(status) = &project.status {
                let name = project.name_any();
                held.push((["project".into(), name], is_held(&status.conditions)));
            }
        }
        refill(&self.rollouts, rollouts);
        refill(&self.updated, updated);
        refill(&self.held, held);
    }

    fn show_projects(&self, ctx: &Context) {
        let projects = ctx.stores.projects.state();
        let ready = projects.iter().map(|project| {
            let status = project.status.as_ref();
            let ready =
                status.is_some_and(|status| is_true(&status.conditions, ConditionType::Ready));
            ([project.name_any()], i64::from(ready))
        });
        refill(&self.projects, ready);
    }

    fn show_budgets(&self, ctx: &Context) {
        let now = Instant::now();
        let (mut limits, mut left, mut waiting) = (vec![], vec![], vec![]);
        for connection in ctx.connections.all() {
            let (name, view) = (connection.project.clone(), connection.budget.view(now));
            limits.extend(view.limit.map(|limit| ([name.clone()], limit.into())));
            left.extend(view.left.map(|left| ([name.clone()], left.into())));
            for (lane, callers) in view.waiting {
                let callers = i64::try_from(callers).unwrap_or(i64::MAX);
                waiting.push(([name.clone(), words::lane(lane).into()], callers));
            }
        }
        refill(&self.budget_limit, limits);
        refill(&self.budget_left, left);
        refill(&self.waiting, waiting);
    }
}

/// How many instances of which class are where.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    phases: BTreeMap<[String; 2], i64>,
    stalled: BTreeMap<[String; 2], i64>,
}

impl Tally {
    /// Anybody may name a class, so only one that exists is told.
    fn of(instances: &[Arc<AgentInstance>], classes: &BTreeSet<String>) -> Self {
        let mut tally = Self::default();
        for instance in instances {
            let class = classes.get(&instance.spec.class_name);
            let class = class.cloned().unwrap_or_default();
            if let Some(reason) = stalled_for(instance) {
                *tally.stalled.entry([class.clone(), reason]).or_insert(0) += 1;
            }
            *tally.phases.entry([class, phase(instance)]).or_insert(0) += 1;
        }
        tally
    }
}

fn phase(instance: &AgentInstance) -> String {
    let phase = instance
        .status
        .as_ref()
        .and_then(|status| status.phase.as_ref());
    phase.map_or_else(|| PENDING.into(), Clone::clone)
}

fn stalled_for(instance: &AgentInstance) -> Option<String> {
    let told = told(
        &instance.status.as_ref()?.conditions,
        ConditionType::Stalled,
    )?;
    (told.status == "True").then(|| told.reason.clone())
}

fn is_held(conditions: &[Condition]) -> i64 {
    i64::from(is_true(conditions, ConditionType::RecoveryHeld))
}

fn told(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|told| told.type_ == kind.as_str())
}

fn set(gauge: &Gauge, to: usize) {
    gauge.set(i64::try_from(to).unwrap_or(i64::MAX));
}

/// What is not among the new is gone: nobody counts what does not exist any more.
fn refill<const N: usize>(gauges: &Gauges<N>, all: impl IntoIterator<Item = ([String; N], i64)>) {
    gauges.clear();
    for (values, number) in all {
        gauges.set(values.map(Value::from), number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{AgentInstanceStatus, condition, set_condition};

    fn instance(name: &str, class: &str, phase: Option<&str>) -> AgentInstance {
        let spec = serde_json::from_value(serde_json::json!({"className": class})).unwrap();
        let mut instance = AgentInstance::new(name, spec);
        instance.status = phase.map(|phase| AgentInstanceStatus {
            phase: Some(phase.into()),
            ..AgentInstanceStatus::default()
        });
        instance
    }

    fn tally(instances: Vec<AgentInstance>) -> Tally {
        let instances: Vec<_> = instances.into_iter().map(Arc::new).collect();
        Tally::of(&instances, &BTreeSet::from(["small".to_owned()]))
    }

    #[test]
    fn instances_are_counted_by_class_and_phase_and_for_what_only_a_person_can_help_with() {
        let mut stalled = instance("c", "small", Some("Stalled"));
        let conditions = &mut stalled.status.as_mut().unwrap().conditions;
        let why = condition(ConditionType::Stalled, Some(true), "ProvisionFailed", "");
        set_condition(conditions, why, None, jiff::Timestamp::UNIX_EPOCH);
        let found = tally(vec![
            instance("a", "small", Some("Ready")),
            instance("b", "small", Some("Ready")),
            stalled,
            instance("d", "small", None),
        ]);
        let of_small = |word: &str| ["small".to_owned(), word.to_owned()];
        let phases = [("Ready", 2), ("Stalled", 1), ("Pending", 1)];
        assert_eq!(
            found.phases,
            phases.map(|(word, number)| (of_small(word), number)).into()
        );
        let stalled = [(of_small("ProvisionFailed"), 1)];
        assert_eq!(found.stalled, stalled.into());
    }

    #[test]
    fn a_thousand_instances_of_classes_that_do_not_exist_are_one_series() {
        let many = (0..1000).map(|n| instance(&format!("i{n}"), &format!("c{n}"), Some("Pending")));
        let found = tally(many.collect());
        let nobodys = [String::new(), "Pending".to_owned()];
        assert_eq!(found.phases, [(nobodys, 1000)].into());
    }

    #[test]
    fn what_is_gone_is_not_shown_any_more() {
        let mut all = Declaring::default();
        let gauges = all.gauges("agentfleet_test", &["class"], "A test");
        let shown = |all: &Declaring| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &all.registry).unwrap();
            text
        };
        refill(&gauges, [(["old".to_owned()], 1), (["new".to_owned()], 2)]);
        assert!(shown(&all).contains("{class=\"old\"} 1"));
        refill(&gauges, [(["new".to_owned()], 3)]);
        let text = shown(&all);
        assert!(
            !text.contains("old") && text.contains("{class=\"new\"} 3"),
            "{text}"
        );
    }
}
