//! Gauges of the fleet, made anew at each scrape from what stores and memory show.
//!
//! Nothing is asked of anybody for them. Until the stores have had their first lists nothing is shown: few instances would look like lost ones.

use std::{
    collections::{BTreeMap, BTreeSet},
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
        set(&self.probers, ctx.talks.probes.len());
    }

    fn count_instances(&self, ctx: &Context) {
        let classes: BTreeSet<String> = names(ctx.stores.classes.state());
        let (mut phases, mut stalled) = (BTreeMap::new(), BTreeMap::new());
        for instance in ctx.stores.instances.state() {
            let class = match &instance.spec.class_name {
                class if classes.contains(class) => class.clone(),
                _ => String::new(),
            };
            if let Some(reason) = stalled_for(&instance) {
                *stalled.entry([class.clone(), reason]).or_insert(0) += 1;
            }
            *phases.entry([class, phase(&instance)]).or_insert(0) += 1;
        }
        refill(&self.instances, phases);
        refill(&self.stalled, stalled);
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

fn names<K: kube::Resource>(objects: Vec<std::sync::Arc<K>>) -> BTreeSet<String> {
    objects.iter().map(|object| object.name_any()).collect()
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
