//! Carries out one step.
//!
//! Each does one thing, is harmless when done twice, never waits for its turn and never tries again: a permit or the Lease that is not to be
//! had is a [`Setback`] like any other. What it learns goes into memory or into the inventory, and the next look sees it.

mod at_hetzner;
mod at_the_guest;
mod creation;
mod power;

use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::{
    desired::{Agent, Desired, Identity, Want},
    memory::Memory,
    observe::Moment,
    rollback,
    step::Step,
    world::{ClassView, World},
};
use crate::{
    api::{
        AgentInstance, AgentInstanceStatus, DELETION_HELD_ANNOTATION, FINALIZER, HeardOrders,
        ProvisioningRecord, RecoveryAction, RecoveryRecord, RollbackRecord, VoiceRecord,
    },
    context::Context,
    error::Setback,
    health::ladder,
    kube_ext,
    subscription::guard::{TOO_MANY, deletions},
};

/// The field manager of the write-ahead records.
const RECORDS: &str = "agentfleet-records";

/// What a step may use.
pub struct Performer<'a> {
    /// Everything that is shared.
    pub ctx: &'a Context,
    /// The object as it was observed.
    pub instance: &'a AgentInstance,
    /// What is wanted.
    pub desired: &'a Desired,
    /// What was seen.
    pub world: &'a World,
    /// When it was seen.
    pub moment: Moment,
    /// The version of the object that the next write replaces.
    pub version: String,
}

impl Performer<'_> {
    /// Carries out a step.
    ///
    /// # Errors
    /// Why it was not, or not surely, done.
    pub async fn perform(&mut self, step: &Step) -> Result<(), Setback> {
        if !self.ctx.leadership.holds() {
            return Err(Setback::not_leading());
        }
        match step {
            Step::AddFinalizer => {
                let version =
                    kube_ext::add_finalizer(&self.api(), self.instance, FINALIZER).await?;
                self.goes_on_from(version);
                Ok(())
            }
            Step::RemoveFinalizer => {
                kube_ext::remove_finalizer(&self.api(), self.instance, FINALIZER).await?;
                deletions::let_go(self.ctx, self.instance);
                Ok(())
            }
            Step::HoldDeletion => self.hold_deletion().await,
            Step::Hear(orders) => self.hear(orders).await,
            Step::Announce(record) => self.announce(record).await,
            Step::WriteVoice(voice) => self.write_voice(voice).await,
            Step::WriteRecovery(record) => self.write_recovery(record).await,
            Step::WriteRollback(record) => self.write_rollback(record).await,
            Step::CreateServer(record) => self.create_server(record).await,
            Step::LookUp { project, name } => self.look_up(project, name).await,
            Step::ConfirmGone { project, id } => self.confirm_gone(project, *id).await,
            Step::FindSnapshot {
                project,
                server,
                made_of,
            } => self.find_snapshot(project, *server, *made_of).await,
            Step::FollowUp { project, actions } => self.follow_up(project, actions).await,
            Step::DeleteServer { project, id } => self.delete_server(project, *id).await,
            Step::Retain { project, id } => self.retain(project, *id).await,
            Step::PowerOn { project, id } => self.power_on(project, *id).await,
            Step::Shutdown { project, id } => self.shutdown(project, *id).await,
            Step::PowerOff { project, id } => self.power_off(project, *id).await,
            Step::ChangeType {
                project,
                id,
                server_type,
            } => self.change_type(project, *id, server_type).await,
            Step::Reboot { project, id, hard } => self.reboot(project, *id, *hard).await,
            Step::TakeUp { project, id, uid } => self.take_up(project, *id, uid).await,
            Step::Hello { server, .. } => self.hello(*server),
            Step::Upgrade { server, epoch } => self.upgrade(*server, *epoch),
            Step::Configure {
                server,
                incarnation,
                epoch,
            } => self.configure(*server, *incarnation, *epoch).await,
            Step::Probe {
                server,
                epoch,
                presumed,
            } => self.probe(*server, *epoch, *presumed),
            Step::EndProbes { server } => {
                self.end_probes(*server);
                Ok(())
            }
            Step::Restart { server, epoch } => self.restart(*server, *epoch),
            Step::Release { server, epoch, .. } => self.release(*server, *epoch),
        }
    }

    fn identity(&self) -> &Identity {
        self.desired.identity()
    }

    fn api(&self) -> Api<AgentInstance> {
        Api::namespaced(self.ctx.clients.write.clone(), &self.identity().namespace)
    }

    fn remember<T>(&self, what: impl FnOnce(&mut Memory) -> T) -> T {
        self.ctx.memories.with(&self.identity().uid, what)
    }

    async fn hold_deletion(&mut self) -> Result<(), Setback> {
        let word = (DELETION_HELD_ANNOTATION, TOO_MANY);
        let version = kube_ext::annotate(&self.api(), self.instance, &self.version, word).await?;
        self.goes_on_from(version);
        self.ctx.guard.has_news();
        Ok(())
    }

    async fn hear(&mut self, orders: &HeardOrders) -> Result<(), Setback> {
        let former = self.world.status.heard.clone().unwrap_or_default();
        let records = AgentInstanceStatus {
            heard: Some(orders.clone()),
            ..self.records()
        };
        self.write_records(&records).await?;
        let now = self.moment.wall;
        self.remember(|memory| {
            if orders.restart != former.restart {
                memory.fresh_restart = orders.restart.as_ref().map(|order| order.at.0);
            }
            if orders.retry != former.retry {
                memory.goes_on(now);
            }
        });
        Ok(())
    }

    async fn announce(&mut self, record: &ProvisioningRecord) -> Result<(), Setback> {
        let records = AgentInstanceStatus {
            provisioning: Some(record.clone()),
            ..self.records()
        };
        self.write_records(&records).await?;
        self.remember(|memory| memory.announced(record));
        Ok(())
    }

    async fn write_voice(&mut self, voice: &VoiceRecord) -> Result<(), Setback> {
        let records = AgentInstanceStatus {
            voice: Some(voice.clone()),
            ..self.records()
        };
        self.write_records(&records).await?;
        self.remember(|memory| memory.fresh_epoch = Some(voice.epoch));
        Ok(())
    }

    async fn write_recovery(&mut self, record: &RecoveryRecord) -> Result<(), Setback> {
        if record.action != RecoveryAction::Restart {
            self.ctx.pace.take(self.moment.steady).map_err(|next| {
                let pause = next.saturating_duration_since(self.moment.steady);
                Setback::until(
                    "RecoveryPaced",
                    "other agents are brought back first",
                    pause,
                )
            })?;
        }
        let records = AgentInstanceStatus {
            recovery: ladder::with(&self.world.status.recovery, record),
            ..self.records()
        };
        self.write_records(&records).await?;
        self.remember(|memory| memory.fresh_recovery = Some(record.at.0));
        self.ctx.metrics.recovers(self.class(), record.action);
        Ok(())
    }

    async fn write_rollback(&mut self, record: &RollbackRecord) -> Result<(), Setback> {
        let records = AgentInstanceStatus {
            rollbacks: rollback::with(&self.world.status.rollbacks, record),
            ..self.records()
        };
        self.write_records(&records).await?;
        let (reason, action) = (record.reason.as_str(), record.action);
        let attempt = record.attempt;
        let metrics = &self.ctx.metrics;
        metrics.rolled_back(self.class(), record.reason, action);
        tracing::warn!(
            reason,
            ?action,
            attempt,
            message = record.message,
            "creation failed"
        );
        Ok(())
    }

    /// The records as they were seen.
    fn records(&self) -> AgentInstanceStatus {
        let status = &self.world.status;
        AgentInstanceStatus {
            provisioning: status.provisioning.clone(),
            voice: status.voice.clone(),
            heard: status.heard.clone(),
            rollbacks: status.rollbacks.clone(),
            recovery: status.recovery.clone(),
            ..AgentInstanceStatus::default()
        }
    }

    /// All records in one apply: what one manager leaves out is removed.
    async fn write_records(&mut self, records: &AgentInstanceStatus) -> Result<(), Setback> {
        self.apply_status(RECORDS, json!(records)).await
    }

    /// Applies status fields on exactly the version that this look has seen.
    ///
    /// # Errors
    /// When the object has changed since, or the API server does not do it.
    pub async fn apply_status(
        &mut self,
        manager: &str,
        fields: serde_json::Value,
    ) -> Result<(), Setback> {
        let name = self.instance.name_any();
        let applied =
            kube_ext::apply_status(&self.api(), manager, &name, &self.version, fields).await?;
        self.goes_on_from(applied.object.resource_version().unwrap_or_default());
        Ok(())
    }

    /// The next write replaces what this one made; a view from before it is out of date.
    fn goes_on_from(&mut self, version: String) {
        if version != self.version {
            let replaced = std::mem::replace(&mut self.version, version);
            self.remember(|memory| memory.replaced.push(replaced));
        }
    }

    /// Name of the class, if that exists.
    fn class(&self) -> &str {
        self.agent().map_or("", |(agent, _)| agent.class.as_str())
    }

    fn agent(&self) -> Result<(&Agent, &Want), Setback> {
        match (&self.world.class, self.desired) {
            (ClassView::Usable(agent), Desired::Present(_, want)) => Ok((agent, want)),
            _ => Err(Setback::passing(
                "ClassMissing",
                "the class is not usable any more",
            )),
        }
    }
}
