//! What a server is given of its class, and what it refuses; pure.
//!
//! A server that another one is prepared for keeps what it has: neither is it given what is wanted, nor is it blamed for that.

use super::{
    desired::Agent,
    line_up::Misfit,
    world::{ClassView, ConfigureFailure, SecretsView, ServerView, World},
};
use crate::api::{AgentInstanceStatus, Health, HealthState, OnProvisionFailure, RollbackRecord};

impl World {
    /// Whether the newest revision of the class has failed here, before the agent ever served with it, and there is one to go back to.
    pub fn refuses(&self, server: &ServerView) -> bool {
        let (ClassView::Usable(agent), Some(_), Some(_)) =
            (&self.class, &self.rollout.attempt, &self.rollout.former)
        else {
            return false;
        };
        if self.awaits_next(server) {
            return self.next_is_given_up(agent);
        }
        let guest = &server.guest;
        let of_this = |sent: &(String, String)| sent.0 == agent.config_revision;
        let refused = guest.configured.as_ref().is_some_and(|configured| {
            let blamed = configured
                .outcome
                .as_ref()
                .is_err_and(ConfigureFailure::blames_content);
            of_this(&configured.sent) && blamed
        });
        let health = guest.health.as_ref();
        let health = health.filter(|view| view.health == agent.health);
        let health = health.and_then(|view| view.state);
        let applied = self.spoken(server);
        refused || (health == Some(HealthState::Failed) && applied.as_ref().is_some_and(of_this))
    }

    /// Whether a new server is to have what is wanted, and this one will not be given it.
    pub fn awaits_next(&self, server: &ServerView) -> bool {
        let is_replaced = self.misfit(server).is_some_and(Misfit::is_replaced);
        is_replaced && self.is_disposable(server)
    }

    /// How the agent on a server is asked for its health: as the revision says that it has, until it has what is wanted.
    pub fn probes<'a>(&'a self, server: &ServerView, agent: &'a Agent) -> &'a Health {
        let applied = self.applied(server);
        let has_it = applied.is_none_or(|(config, _)| config == agent.config_revision);
        match &self.rollout.asked {
            Some(former) if !has_it || self.awaits_next(server) => former,
            _ => &agent.health,
        }
    }

    /// Whether what the status tells of its health was said by other probes than those that are asked now.
    pub fn is_asked_anew(&self, server: &ServerView, agent: &Agent) -> bool {
        let former = self.rollout.asked.as_ref();
        former.is_some_and(|former| former != self.probes(server, agent))
    }

    /// Whether what the status tells of its health was said of what it has now, and not of what it had before it was changed: a process that was not there
    /// when it was knows that from here alone.
    pub fn is_told_of(&self, server: &ServerView) -> bool {
        let AgentInstanceStatus {
            server: told,
            config_revision,
            secrets_tag,
            ..
        } = &self.status;
        let is_this = told.as_ref().is_some_and(|told| told.id == server.id);
        let applied = self.applied(server).unzip();
        is_this && (&applied.0, &applied.1) == (config_revision, secrets_tag)
    }

    /// What a server is to be given, with the tag of its secret files: what is wanted, or, while another one is to have that, what it has.
    pub fn due(&self, server: &ServerView) -> Option<(&Agent, &str)> {
        match (&self.meanwhile, &self.class, &self.secrets) {
            (Some(has), ..) if self.awaits_next(server) && self.spoken(server).is_some() => {
                Some((&has.agent, &has.tag))
            }
            (_, ClassView::Usable(agent), SecretsView::Met { tag }) => Some((agent, tag)),
            _ => None,
        }
    }

    /// Whether all attempts to prepare a server of that revision have failed.
    fn next_is_given_up(&self, agent: &Agent) -> bool {
        let Some(record) = self.record() else {
            return false;
        };
        let mut failed = self.status.rollbacks.iter();
        let failed = failed.rfind(|failed| failed.incarnation == record.incarnation);
        let last = |failed: &RollbackRecord| match failed.action {
            OnProvisionFailure::Retry => failed.attempt >= i64::from(agent.lifecycle.max_attempts),
            OnProvisionFailure::Remove => true,
            // It is kept for a look, and so is the place that it was to take.
            OnProvisionFailure::Keep => false,
        };
        record.basis.is_some() && record.basis == self.basis(agent) && failed.is_some_and(last)
    }

    /// What attempts to create a server are counted for.
    pub fn basis(&self, agent: &Agent) -> Option<String> {
        let heard = self.status.heard.as_ref();
        let retried = heard.and_then(|heard| heard.retry.as_ref());
        let words = [
            retried.map(|order| order.value.as_str()),
            self.rollout.attempt.as_deref(),
        ];
        match &self.secrets {
            SecretsView::Met { tag } => Some(agent.basis(tag, &words)),
            _ => None,
        }
    }
}
