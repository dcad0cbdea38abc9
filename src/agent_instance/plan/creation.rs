//! An instance without a server: when one may be asked for, under which name, and what to do when an answer was lost.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};

use crate::{agent_instance::lost_disk::LostDisk, api::RECREATE_ANNOTATION};

use super::{
    Agent, Attempt, Known, Look, Place, Plan, ProjectView, ProvisioningRecord, SLOW, SecretsView,
    SendOutcome, ServerStatus, Stage, Step, relabelled,
};

impl Look<'_> {
    pub(super) fn no_server(&self) -> Plan {
        match (self.world.known, &self.world.status.server) {
            (Known::Unseen, Some(server)) => return self.unseen(server),
            (Known::Relabelled, Some(server)) => return stalled_relabelled(server),
            _ => {}
        }
        if let Some(lost) = self.world.lost_disk() {
            return self.restore(&lost);
        }
        if self.is_suspended() {
            return Self::suspended_without_server();
        }
        match (self.world.known, &self.world.status.server, self.class()) {
            (Known::Gone, Some(server), Ok(agent))
                if self.spoke(server.incarnation) && !self.is_given_up(server.incarnation) =>
            {
                self.replace(server, agent)
            }
            _ => self.create(),
        }
    }

    /// Of a server that nothing shows yet nothing is said; one that is out of sight because its project is, is reported as it was.
    pub(super) fn unseen(&self, server: &ServerStatus) -> Plan {
        if self
            .world
            .project(&server.project)
            .is_some_and(|project| project.unseen)
        {
            return Plan::wait(Stage::AsBefore);
        }
        match self.usable(&server.project) {
            Err((reason, message)) if self.held_voice(server.incarnation) => {
                Plan::wait(Stage::Serving(Some((reason, message))))
            }
            _ => Plan {
                // Only Hetzner's answer is news.
                stage: Stage::AsBefore,
                ..self.confirm_gone(&server.project, server.id)
            },
        }
    }

    fn held_voice(&self, incarnation: i64) -> bool {
        self.world
            .voice()
            .is_some_and(|voice| voice.incarnation == Some(incarnation))
    }

    pub(super) fn spoke(&self, incarnation: i64) -> bool {
        self.world.spoke(incarnation)
    }

    pub(super) fn create(&self) -> Plan {
        let agent = match self.prerequisites() {
            Ok(agent) => agent,
            Err((reason, message)) => return Plan::wait(Stage::Waiting(reason, message)),
        };
        match self.world.record() {
            None => self.announce_next(agent),
            Some(record) if self.is_over(record) || self.is_for_another_disk(record) => {
                self.after_settling(record, || self.announce_next(agent))
            }
            Some(record) => self.pursue(record, agent),
        }
    }

    /// What must be there before a server is paid for.
    fn prerequisites(&self) -> Result<&Agent, (&'static str, String)> {
        let agent = self.class()?;
        match &self.world.secrets {
            SecretsView::Met { .. } => {}
            SecretsView::Unmet(reason, message) => return Err((*reason, message.clone())),
            SecretsView::Unknown => {
                return Err(("SecretUnread", "the Secret was not read yet".into()));
            }
        }
        match agent
            .projects
            .iter()
            .map(|name| (name, self.world.project(name)))
            .find(|(_, view)| !view.is_some_and(|view| view.synced))
        {
            Some((name, _)) => Err(self
                .usable(name)
                .err()
                .unwrap_or(("ProjectNotListed", name.clone()))),
            None => Ok(agent),
        }
    }

    /// Whether nothing more will come of a record: its server came and went, or was refused where another may be had.
    fn is_over(&self, record: &ProvisioningRecord) -> bool {
        let attempt = &self.world.attempt;
        let refused = matches!(
            attempt.outcome,
            SendOutcome::OutOfStock | SendOutcome::Refused | SendOutcome::Rejected
        ) && attempt.sent == Some(record.at.0);
        let failed = self.failed(record.incarnation).is_some();
        let existed = self
            .world
            .status
            .server
            .as_ref()
            .is_some_and(|server| server.incarnation >= record.incarnation);
        let overtaken = i64::from(self.world.incarnation()) > record.incarnation;
        refused || failed || existed || overtaken || attempt.outcome == SendOutcome::Created
    }

    /// Waits until no request of a record can take effect any more, then looks once more (I1).
    pub(super) fn after_settling(
        &self,
        record: &ProvisioningRecord,
        then: impl FnOnce() -> Plan,
    ) -> Plan {
        let Some(until) = self.world.attempt.unsettled_until else {
            return then();
        };
        if until > self.now {
            return Plan::wait(Stage::Waiting(
                "Settling",
                format!(
                    "the outcome of the request for {} is awaited",
                    record.server_name
                ),
            ))
            .until(until);
        }
        let listed = self
            .world
            .project(&record.project)
            .and_then(|project| project.listed_at);
        let looked = self.world.attempt.looked_up.as_ref().map(|look| look.at);
        if listed.max(looked) > Some(until) {
            then()
        } else {
            self.look_up(record)
        }
    }

    fn look_up(&self, record: &ProvisioningRecord) -> Plan {
        let step = Step::LookUp {
            project: record.project.clone(),
            name: record.server_name.clone(),
        };
        self.at_hetzner(&record.project, step, Stage::Creating)
    }

    /// Goes on with the server that the record names. One written record permits one request; after an answer that was lost, the name is looked
    /// up before the next (I1).
    fn pursue(&self, record: &ProvisioningRecord, agent: &Agent) -> Plan {
        let Attempt {
            announced,
            sent,
            looked_up,
            ..
        } = &self.world.attempt;
        if let Err((reason, message)) = self.usable(&record.project) {
            return Plan::wait(Stage::Waiting(reason, message));
        }
        if !still_listed(record, agent) {
            return self.after_settling(record, || self.announce_next(agent));
        }
        if *announced == Some(record.at.0) && *sent != *announced {
            return self.send(record);
        }
        match looked_up {
            Some(look) if look.foreign.is_some() => self.name_taken(record, look.foreign, look.at),
            Some(_) => announce(ProvisioningRecord {
                at: MicroTime(self.now),
                ..record.clone()
            }),
            None => self.look_up(record),
        }
    }

    fn send(&self, record: &ProvisioningRecord) -> Plan {
        match self
            .world
            .project(&record.project)
            .and_then(|project| project.creates_held.clone())
        {
            Some((reason, message, until)) => {
                Plan::wait(Stage::Waiting(reason, message)).until(until)
            }
            None => Plan::act(Step::CreateServer(record.clone()), Stage::Creating),
        }
    }

    /// A server that is not ours bears the name: it is never touched, and the name is not asked for again before it is free (I3).
    fn name_taken(
        &self,
        record: &ProvisioningRecord,
        foreign: Option<i64>,
        looked: Timestamp,
    ) -> Plan {
        let stage = Stage::Stalled(
            "NameTaken",
            format!(
                "server {} in project {} bears the name {} but not this fleet's labels; rename or delete it there",
                foreign.unwrap_or_default(),
                record.project,
                record.server_name
            ),
        );
        let again = looked + SLOW;
        if again > self.now {
            Plan::wait(stage).until(again)
        } else {
            Plan {
                stage,
                ..self.look_up(record)
            }
        }
    }

    fn announce_next(&self, agent: &Agent) -> Plan {
        match self.next_attempt(agent) {
            Ok(attempt) => self.announce_attempt(agent, attempt),
            Err(plan) => plan,
        }
    }

    /// Writes down the next server, in the first project that can have it.
    fn announce_attempt(&self, agent: &Agent, attempt: i64) -> Plan {
        let incarnation = self.world.incarnation() + 1;
        let restored = self.next_snapshot();
        // Where it is restored, it stands where its snapshot is.
        let may_hold = |name: &&String| restored.as_ref().is_none_or(|(own, _)| own == *name);
        let mut refusals = vec![];
        for name in agent.projects.iter().filter(may_hold) {
            match self.opening(name) {
                Ok((project, place)) => {
                    return announce(ProvisioningRecord {
                        incarnation: i64::from(incarnation),
                        server_name: self.identity.server_name(self.fleet, incarnation),
                        project: project.name.clone(),
                        server_type: place.server_type.clone(),
                        location: place.location.clone(),
                        attempt: Some(attempt),
                        basis: self.basis(agent),
                        snapshot: restored.as_ref().map(|(_, snapshot)| snapshot.clone()),
                        at: MicroTime(self.now),
                    });
                }
                Err(refusal) => refusals.push(refusal),
            }
        }
        if let (Some((project, snapshot)), []) = (&restored, &refusals[..]) {
            refusals.push(Refusal {
                reason: "NoProjectForSnapshot",
                message: format!(
                    "snapshot {} is in project {project}, which AgentClass {} does not list",
                    snapshot.id, agent.class
                ),
                until: None,
            });
        }
        no_opening(refusals)
    }

    fn opening(&self, name: &str) -> Result<(&ProjectView, &Place), Refusal> {
        self.usable(name).map_err(|(reason, message)| Refusal {
            reason,
            message,
            until: None,
        })?;
        let project = self.world.project(name).ok_or_else(|| Refusal {
            reason: "ProjectMissing",
            message: name.into(),
            until: None,
        })?;
        if let Some((reason, message, until)) = &project.creates_held {
            return Err(Refusal {
                reason,
                message: message.clone(),
                until: Some(*until),
            });
        }
        if !project.firewall {
            return Err(Refusal {
                reason: "FirewallNotReady",
                message: format!("the class's firewall in project {name} is not ready"),
                until: None,
            });
        }
        match &project.place {
            Some(Ok(place)) => Ok((project, place)),
            Some(Err(until)) => Err(Refusal {
                reason: "OutOfStock",
                message: format!("no listed server type is in stock in project {name}"),
                until: Some(*until),
            }),
            None => Err(Refusal {
                reason: "NoPlace",
                message: format!("project {name} has none of the listed types and locations"),
                until: None,
            }),
        }
    }
}

/// Why a project cannot have a server now.
struct Refusal {
    reason: &'static str,
    message: String,
    until: Option<Timestamp>,
}

fn no_opening(refusals: Vec<Refusal>) -> Plan {
    let reason = refusals
        .first()
        .map_or("NoProject", |refusal| refusal.reason);
    let until = refusals.iter().filter_map(|refusal| refusal.until).min();
    let message: Vec<_> = refusals
        .into_iter()
        .map(|refusal| refusal.message)
        .collect();
    let plan = Plan::wait(Stage::Waiting(reason, message.join("; ")));
    match until {
        Some(until) => plan.until(until),
        None => plan,
    }
}

fn stalled_relabelled(server: &ServerStatus) -> Plan {
    Plan::wait(Stage::Stalled("LabelsChanged", relabelled(server)))
}

/// What only a person can say more about; `more` is what is known beside that.
pub(super) fn server_lost(lost: &LostDisk, more: &str) -> Stage {
    Stage::Stalled(
        "ServerLost",
        format!(
            "server {} in project {} is gone, and its disk with it{more}; to start again with an empty one, an admin sets the annotation {RECREATE_ANNOTATION}",
            lost.server, lost.project
        ),
    )
}

fn still_listed(record: &ProvisioningRecord, agent: &Agent) -> bool {
    agent.projects.contains(&record.project)
        && agent.places.iter().any(|place| {
            place.server_type == record.server_type && place.location == record.location
        })
}

fn announce(record: ProvisioningRecord) -> Plan {
    Plan::act(Step::Announce(record), Stage::Creating)
}
