//! What to do next for a class: one pure function.
//!
//! Each project is looked at by itself, so that trouble in one does not hold up another; the steps of one plan are at most one for each.

use std::{collections::BTreeMap, time::Duration};

use super::{
    desired::Desired,
    step::{ProjectStep, Step},
    world::{Checked, FirewallView, NetworkView, ObjectView, ProjectView, World},
};

#[cfg(test)]
mod tests;

/// One lost request is no news.
const TOLD_FROM: u32 = 2;
/// Servers in one request.
const GUARDED_AT_ONCE: usize = 25;

/// What to do next, and what it means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Effects, in order; the first that fails ends the round.
    pub steps: Vec<Step>,
    /// Whether types, locations, image and network exist.
    pub rendered: Finding,
    /// Whether the firewall stands in each project as declared.
    pub firewall: Finding,
    /// Why it is not gone yet, when it is being deleted.
    pub deleting: Option<(&'static str, String)>,
    /// The firewall that instances shall use in each project, or that they shall use none.
    pub firewalls: BTreeMap<String, Option<i64>>,
    /// When to look again at the latest; none: as usual.
    pub look_again: Option<Duration>,
}

/// What is known of one condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Finding {
    /// It holds.
    #[default]
    Good,
    /// Nothing new is known: what is being done.
    Open(&'static str),
    /// It does not hold: reason and message.
    Bad(&'static str, String),
}

impl Finding {
    /// The worse of two; the first of two that are equally bad.
    fn and(self, other: Self) -> Self {
        match (&self, &other) {
            (Self::Bad(..), _)
            | (Self::Open(_), Self::Good | Self::Open(_))
            | (Self::Good, Self::Good) => self,
            _ => other,
        }
    }
}

/// Decides what to do next for one class.
pub fn plan(desired: &Desired, world: &World) -> Plan {
    let mut look = Look {
        desired,
        world,
        plan: Plan::default(),
    };
    match (desired.absent, world.finalizer) {
        (false, false) => look.plan.steps.push(Step::AddFinalizer),
        (true, false) => {}
        (false, true) => look.present(),
        (true, true) => look.absent(),
    }
    look.plan
}

/// One look at one class.
struct Look<'a> {
    desired: &'a Desired,
    world: &'a World,
    plan: Plan,
}

impl Look<'_> {
    fn present(&mut self) {
        let housekeeping = &self.world.rollout.housekeeping;
        let kept = housekeeping.write.iter().cloned().map(Step::KeepRevision);
        let dropped = housekeeping.drop.iter().cloned().map(Step::DropRevision);
        self.plan.steps.extend(kept.chain(dropped));
        if let Some(wait) = self.world.rollout_wait {
            self.again(wait);
        }
        for project in &self.world.projects {
            let wanted = project.named && project.object != ObjectView::Deleting;
            let found = if wanted {
                self.wanted(project)
            } else {
                self.unwanted(project)
            };
            self.plan.firewall = std::mem::take(&mut self.plan.firewall).and(found);
        }
        self.render();
        if let Some(wait) = self.world.counts_wait {
            self.again(wait);
        }
    }

    /// A project that servers of the class may be in.
    fn wanted(&mut self, project: &ProjectView) -> Finding {
        if project.pending {
            return Finding::Open("waits for a project to be connected");
        }
        if let Some((reason, message)) = &project.unusable {
            return Finding::Bad(reason, format!("project {}: {message}", project.name));
        }
        let Some(firewalls) = &project.firewalls else {
            return self.act(
                project,
                ProjectStep::ReadFirewalls,
                Finding::Open("lists the firewalls"),
            );
        };
        let Some((firewall, others)) = firewalls.split_first() else {
            return self.act(
                project,
                ProjectStep::CreateFirewall,
                Finding::Open("makes the firewall"),
            );
        };
        self.plan
            .firewalls
            .insert(project.name.clone(), Some(firewall.id));
        let found = match Self::repair(project, firewall, others) {
            Some((step, found)) => self.act(project, step, found),
            None => Finding::Good,
        };
        self.network(project);
        found
    }

    fn repair(
        project: &ProjectView,
        firewall: &FirewallView,
        others: &[FirewallView],
    ) -> Option<(ProjectStep, Finding)> {
        if !firewall.labelled {
            return Some((
                ProjectStep::LabelFirewall(firewall.id),
                Finding::Open("puts the firewall's labels back"),
            ));
        }
        if !firewall.ruled {
            return Some((
                ProjectStep::SetRules(firewall.id),
                Finding::Open("sets the firewall's rules"),
            ));
        }
        if !project.unguarded.is_empty() {
            let servers = project
                .unguarded
                .iter()
                .take(GUARDED_AT_ONCE)
                .copied()
                .collect();
            return Some((
                ProjectStep::Guard {
                    firewall: firewall.id,
                    servers,
                },
                Finding::Open("puts servers behind their firewall again"),
            ));
        }
        // Two firewalls let through what either does, and one that is in use cannot go with its class.
        if let Some((former, servers)) = project.former.first() {
            let servers = servers.iter().take(GUARDED_AT_ONCE).copied().collect();
            return Some((
                ProjectStep::Unguard {
                    firewall: *former,
                    servers,
                },
                Finding::Good,
            ));
        }
        // A request that was late has made it twice.
        if let Some(twin) = others.iter().find(|twin| !twin.applied) {
            return Some((ProjectStep::DeleteFirewall(twin.id), Finding::Good));
        }
        project
            .stale
            .then_some((ProjectStep::ReadFirewalls, Finding::Good))
    }

    /// A project that the class does not name, or that is going: its firewall goes as soon as no server uses it.
    fn unwanted(&mut self, project: &ProjectView) -> Finding {
        if project.unusable.is_some() {
            return Finding::Good;
        }
        self.plan.firewalls.insert(project.name.clone(), None);
        self.clear(project);
        Finding::Good
    }

    /// Whether nothing is left in a project; takes the next step towards that.
    fn clear(&mut self, project: &ProjectView) -> bool {
        match project.firewalls.as_deref() {
            Some([]) if !project.stale || !self.desired.absent => return true,
            Some([first, ..]) if !first.applied => self.act(
                project,
                ProjectStep::DeleteFirewall(first.id),
                Finding::Good,
            ),
            Some(_) if !project.stale => Finding::Good,
            _ => self.act(project, ProjectStep::ReadFirewalls, Finding::Good),
        };
        false
    }

    fn network(&mut self, project: &ProjectView) {
        let Some(name) = &self.desired.network else {
            return;
        };
        let found = match project.network {
            NetworkView::Found => return,
            NetworkView::Missing => {
                let message = format!(
                    "spec.network: project {} has no network {name} at Hetzner; make it there or name another",
                    project.name
                );
                Finding::Bad("NetworkMissing", message)
            }
            NetworkView::Unknown => self.act(
                project,
                ProjectStep::FindNetwork,
                Finding::Open("looks for the network"),
            ),
        };
        self.plan.rendered = std::mem::take(&mut self.plan.rendered).and(found);
    }

    fn render(&mut self) {
        let due = self
            .world
            .checked
            .as_ref()
            .is_none_or(|checked| checked.due);
        let mut found = match &self.world.checked {
            Some(Checked {
                outcome: Ok(()), ..
            }) => Finding::Good,
            Some(Checked {
                outcome: Err(message),
                ..
            }) => Finding::Bad("NotOffered", message.clone()),
            None => Finding::Open("waits for a project that can be asked what Hetzner offers"),
        };
        let usable = self.world.projects.iter().find(|project| {
            project.named && project.object == ObjectView::Living && project.unusable.is_none()
        });
        if let Some(project) = usable.filter(|_| due) {
            found = self.attempt(Step::CheckCatalogue(project.name.clone()), found);
        }
        self.plan.rendered = std::mem::take(&mut self.plan.rendered).and(found);
    }

    fn absent(&mut self) {
        if self.world.instances > 0 {
            let message = format!(
                "{} AgentInstances name this class; delete them, or give them another class, first",
                self.world.instances
            );
            self.plan.deleting = Some(("InUse", message));
            return;
        }
        let mut left = vec![];
        for project in self
            .world
            .projects
            .iter()
            .filter(|project| project.object != ObjectView::Missing)
        {
            match &project.unusable {
                Some((reason, message)) if project.named => {
                    self.plan.deleting = Some((
                        reason,
                        format!(
                            "its firewall in project {} cannot be deleted: {message}",
                            project.name
                        ),
                    ));
                    left.push(project);
                }
                Some(_) => {}
                None => {
                    self.plan.firewalls.insert(project.name.clone(), None);
                    if !self.clear(project) {
                        left.push(project);
                    }
                }
            }
        }
        if left.is_empty() {
            self.plan.steps = vec![Step::RemoveFinalizer];
            return;
        }
        let names: Vec<_> = left.iter().map(|project| project.name.as_str()).collect();
        let waits = || {
            (
                "FirewallInUse",
                format!(
                    "its firewall goes as soon as no server uses it, in: {}",
                    names.join(", ")
                ),
            )
        };
        self.plan.deleting.get_or_insert_with(waits);
    }

    fn act(&mut self, project: &ProjectView, step: ProjectStep, found: Finding) -> Finding {
        self.attempt(Step::In(project.name.clone(), step), found)
    }

    /// Plans a step, unless its last failure is too fresh; what has failed more than once, or cannot succeed, is told.
    fn attempt(&mut self, step: Step, found: Finding) -> Finding {
        let Some(trouble) = self.world.troubles.get(&step.key()) else {
            self.plan.steps.push(step);
            return found;
        };
        if trouble.wait.is_zero() {
            self.plan.steps.push(step);
        } else {
            self.again(trouble.wait);
        }
        if trouble.times < TOLD_FROM && matches!(found, Finding::Good) {
            return found;
        }
        Finding::Bad(trouble.reason, trouble.message.clone())
    }

    fn again(&mut self, wait: Duration) {
        self.plan.look_again = Some(self.plan.look_again.map_or(wait, |sooner| sooner.min(wait)));
    }
}
