//! A configured agent: whether it serves is what its probes say (I6).

use super::{
    Agent, Disk, HealthState, Look, Plan, ServerView, Stage, Step,
    recovery::Cause,
    serving::{HOST_KEY_CHANGED, host_key_changed},
};
use crate::{
    agent_instance::line_up::Misfit,
    api::{ConditionType, HealthStatus, RECREATE_ANNOTATION},
    health::ladder::Ailment,
    labels,
};

/// Why less is served than is declared.
type Note = Option<(&'static str, String)>;

impl Look<'_> {
    /// Configured as declared.
    pub(super) fn serving(&self, server: &ServerView, agent: &Agent) -> Plan {
        let note = self.world.misfit(server).map(|misfit| {
            let cure = match misfit {
                Misfit::Type => "it becomes one of another when it is its turn".to_owned(),
                _ if self.world.is_disposable(server) => {
                    "it is replaced when it is its turn".into()
                }
                _ => kept(agent),
            };
            (misfit.reason(), format!("{}; {cure}", misfit.words()))
        });
        self.probed(server, agent, note)
    }

    /// Whether it serves is what the probes say.
    pub(super) fn probed(&self, server: &ServerView, agent: &Agent, note: Note) -> Plan {
        let epoch = self.world.voice().map_or(0, |voice| voice.epoch);
        if self.is_to_restart() {
            let server = server.id;
            return Plan::act(
                Step::Restart { server, epoch },
                Stage::Starting(String::new()),
            );
        }
        let Some(address) = server.address() else {
            return without_address(server);
        };
        let asked = (self.world.probes(server, agent), epoch, address);
        match &server.guest.health {
            Some(view) if (&view.health, view.epoch, view.address) == asked => {
                self.by_probes(server, agent, (view.state, &view.words), note)
            }
            _ => {
                let presumed = self.presumed(server, agent, epoch);
                let step = Step::Probe {
                    server: server.id,
                    epoch,
                    presumed,
                };
                Plan {
                    steps: vec![step],
                    look_again: None,
                    ..self.by_probes(server, agent, (presumed, ""), note)
                }
            }
        }
    }

    fn by_probes(
        &self,
        server: &ServerView,
        agent: &Agent,
        (state, words): (Option<HealthState>, &str),
        note: Note,
    ) -> Plan {
        if let Some(stage) = self.met_stranger(server, (state, words)) {
            return Plan::wait(stage);
        }
        let (ailment, reason) = match state {
            // Neither its unit nor its server is at fault: it is given back what it served with.
            Some(HealthState::Failed) if self.world.refuses(server) => {
                return Plan::wait(by_health(state, words, note));
            }
            Some(HealthState::Failed) => (Ailment::Failed, "ProbeFailed"),
            Some(HealthState::Unknown) => {
                let since = self.told_since(HealthState::Unknown);
                (Ailment::Unknown(since), "Unreachable")
            }
            _ => return Plan::wait(by_health(state, words, note)),
        };
        let cause = Cause {
            ailment,
            reason,
            words,
        };
        self.recover(server, agent, &cause)
    }

    /// Where it stands if its probes met somebody else, or if the status told so and none has answered this process yet.
    fn met_stranger(
        &self,
        server: &ServerView,
        (state, words): (Option<HealthState>, &str),
    ) -> Option<Stage> {
        if let Some(why) = server.stranger() {
            return Some(host_key_changed(server, why));
        }
        let unheard = state == Some(HealthState::Unknown) && words.is_empty();
        let told = self.world.status.conditions.iter().find(|told| {
            told.type_ == ConditionType::Stalled.as_str() && told.reason == HOST_KEY_CHANGED
        });
        let told = told.filter(|told| unheard && told.status == "True")?;
        Some(Stage::Stalled(HOST_KEY_CHANGED, told.message.clone()))
    }

    /// What is known of an agent's health before its first probe: nothing at another address, nor from other probes, as a
    /// revision is to prove itself by its own; else what systemd said in the answer to `configure`, or, where that changed nothing or the operator was
    /// started again, what the status says, unless it was said of another configuration or something was tried since.
    fn presumed(&self, server: &ServerView, agent: &Agent, epoch: i64) -> Option<HealthState> {
        let probed = server.guest.health.as_ref();
        let configured = server.guest.configured.as_ref();
        match (probed, configured) {
            (Some(view), _) if view.epoch == epoch || Some(view.address) != server.address() => {
                None
            }
            (_, Some(configured)) if configured.epoch == epoch && !configured.left_as_before() => {
                let health = self.world.probes(server, agent);
                let by_systemd = health.http.is_none() && health.exec.is_none();
                let up = configured.outcome == Ok(true) && by_systemd;
                up.then_some(HealthState::Healthy)
            }
            _ if self.world.is_asked_anew(server, agent) => None,
            _ => {
                let told = self.told_health(server);
                let told = told.filter(|told| !self.was_tried_since(told.since.0));
                let told = told.filter(|told| server.guest.powered <= Some(told.since.0));
                told.map(|told| told.state)
            }
        }
    }

    /// What the status tells of the configuration that it has.
    fn told_health(&self, server: &ServerView) -> Option<&HealthStatus> {
        let told = self.world.status.health.as_ref();
        told.filter(|_| self.world.is_told_of(server))
    }

    /// Where it stands by its probes, or by what the status told of them last.
    pub(super) fn health(&self, server: &ServerView, note: Note) -> Stage {
        match &server.guest.health {
            Some(view) => by_health(view.state, &view.words, note),
            None => by_health(self.told_health(server).map(|told| told.state), "", note),
        }
    }
}

/// Why a server is not replaced.
fn kept(agent: &Agent) -> String {
    let cure = format!("an admin replaces it by the annotation {RECREATE_ANNOTATION}");
    if agent.disk() == Disk::Preserve {
        return format!("this one is kept as its disk is: {cure}");
    }
    format!(
        "this one was made to keep its disk, and does, though lifecycle.disk of AgentClass {} is Disposable now: {cure}, or sets its label {} at \
         Hetzner to Disposable",
        agent.class,
        labels::DISK
    )
}

/// Nobody can ask such a server for anything, and no reboot gives it an address.
pub(super) fn without_address(server: &ServerView) -> Plan {
    let stage = Stage::Stalled(
        "NoAddress",
        format!(
            "server {} has no public address any more: nobody knows how its agent is, and no reboot would help; give it one at Hetzner",
            server.id
        ),
    );
    match server.guest.health {
        Some(_) => Plan::act(Step::EndProbes { server: server.id }, stage),
        None => Plan::wait(stage),
    }
}

fn by_health(state: Option<HealthState>, words: &str, note: Note) -> Stage {
    match state {
        Some(HealthState::Healthy | HealthState::Degraded) => Stage::Serving(note),
        Some(HealthState::Failed) => Stage::Unhealthy("ProbeFailed", words.to_owned()),
        Some(HealthState::Unknown) => Stage::Unhealthy("Unreachable", words.to_owned()),
        None => Stage::Starting(words.to_owned()),
    }
}
