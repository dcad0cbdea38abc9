//! The request for a server, and what becomes of the creation that it begins.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::{
    Resource as _,
    runtime::events::{Event, EventType},
};

use super::{
    super::{
        creation,
        desired::Agent,
        memory::Memory,
        world::{SendOutcome, SnapshotLook},
    },
    Performer,
};
use crate::{
    api::ProvisioningRecord,
    crash_point,
    error::Setback,
    hetzner::{
        self, Action, ActionId, ActionStatus, Class, CreateServer, CreatedServer, ImageId, Lane,
        Permit, Place, Server, Spend,
    },
    hetzner_project::{connection::Connection, snapshots},
    labels,
    metrics::Cause,
    rollout::UsedUp,
};

/// How long a rollout waits for a server to be had.
const QUOTA_PAUSE: Duration = Duration::from_mins(10);

impl Performer<'_> {
    /// Sends the one request that a written record permits.
    pub(super) async fn create_server(&self, record: &ProvisioningRecord) -> Result<(), Setback> {
        let connection = self.connection(&record.project)?;
        let (agent, _) = self.agent()?;
        let request = self.request(&connection, agent, record).await?;
        let max = connection.standing().max_servers;
        let room = connection.room.take(max, || connection.inventory.count());
        let _taken = room.ok_or_else(|| {
            Setback::passing(
                "ServerLimitReached",
                connection.limit_reached(max.unwrap_or(0)),
            )
        })?;
        let spend = self.spend(&connection)?;
        let permit = match self.permit_to_buy(&connection, record) {
            Ok(permit) => permit,
            Err(setback) => {
                spend.refused();
                return Err(setback);
            }
        };
        let before = self.remember(|memory| {
            let before = memory.attempt.unsettled_until;
            memory.sends(record, Timestamp::now(), self.ctx.settings.window());
            before
        });
        let answer = crash_point::around(
            "hetzner",
            "POST /servers",
            connection.client.create_server(permit, &request),
        )
        .await;
        let outcome = answer
            .as_ref()
            .map_or_else(creation::outcome, |_| SendOutcome::Created);
        if let Ok(created) = &answer {
            self.ctx.metrics.created(&agent.class, self.cause(record));
            self.tell_restoration(record, &created.server);
        }
        self.remember(|memory| {
            memory.answered(outcome, before);
            if let Ok(created) = &answer {
                memory.attempt.asked = None;
                hear_of(memory, created.action.iter().chain(&created.next_actions));
            }
        });
        if outcome.is_definite_no() {
            spend.refused();
        }
        let over_quota = answer
            .as_ref()
            .is_err_and(|error| error.class() == Class::Quota);
        if over_quota && self.is_beside() {
            self.stop_rollout(&connection, agent);
        } else if over_quota {
            connection.stock.over_quota(Instant::now());
        }
        take_answer(&connection, record, answer)
    }

    async fn request(
        &self,
        connection: &Connection,
        agent: &Agent,
        record: &ProvisioningRecord,
    ) -> Result<CreateServer, Setback> {
        let mut request =
            creation::request(self.ctx, connection, self.identity(), agent, record).await?;
        let mut label =
            |key: &str, value: &String| request.labels.insert(key.into(), value.clone());
        label(labels::REVISION, &self.world.rollout.revision);
        if let (Some(_), Some(born)) = (&record.snapshot, &self.world.status.boot_revision) {
            // The disk is what it was.
            label(labels::BOOT_REVISION, born);
        }
        Ok(request)
    }

    /// A person may have to do again what the agent did since.
    fn tell_restoration(&self, record: &ProvisioningRecord, server: &Server) {
        let Some(snapshot) = &record.snapshot else {
            return;
        };
        let note = format!(
            "server {} is made of snapshot {} of {}, as server {} is gone: what came after that is lost",
            server.id, snapshot.id, snapshot.created_at.0, snapshot.server
        );
        tracing::warn!(note, "restored from a snapshot");
        let event = Event {
            type_: EventType::Warning,
            reason: "RestoredFromSnapshot".into(),
            note: Some(note),
            action: "Creating".into(),
            secondary: None,
        };
        let object = self.instance.object_ref(&());
        self.ctx.events.publish(&object, event);
    }

    /// Whether the server is asked for beside one that serves.
    fn is_beside(&self) -> bool {
        !self.world.servers.is_empty()
    }

    /// There was no second server to be had: that is the rollout's matter, and new instances may still find place for one.
    fn stop_rollout(&self, connection: &Connection, agent: &Agent) {
        let words = format!(
            "Hetzner's limit for project {} leaves no server beside those that are: ask Hetzner to raise it (Console, Limits)",
            connection.project
        );
        if let Ok(until) = self.moment.wall.checked_add(QUOTA_PAUSE) {
            let quota = UsedUp { until, words };
            self.ctx.rollouts.used_up(&agent.class, quota);
            self.ctx.wake.class(&agent.class);
        }
    }

    fn cause(&self, record: &ProvisioningRecord) -> Cause {
        if record.attempt.is_some_and(|attempt| attempt > 1) {
            Cause::Retry
        } else if self.is_beside() {
            Cause::SwitchOver
        } else if self.world.status.server.is_some() {
            Cause::Replacement
        } else {
            Cause::New
        }
    }

    /// The fuse on spending: more creations than the instances explain are a defect somewhere.
    fn spend<'a>(&self, connection: &'a Connection) -> Result<Spend<'a>, Setback> {
        let (instances, now) = (self.ctx.stores.instances.len(), Instant::now());
        connection.fuse.try_create(instances, now).map_err(|until| {
            let message = format!("project {} has had more creations this hour than its {instances} instances explain", connection.project);
            Setback::until("SpendingHeld", message, until.saturating_duration_since(now))
        })
    }

    fn permit_to_buy(
        &self,
        connection: &Connection,
        record: &ProvisioningRecord,
    ) -> Result<Permit, Setback> {
        let lane = if self.is_beside() {
            Lane::Rollout
        } else if record.incarnation > 1 {
            Lane::ReplaceVanished
        } else {
            Lane::Create
        };
        let permit = self.permit(connection, lane)?;
        // What came before may have taken a while: the catalogue may have been read.
        if self.ctx.leadership.holds() {
            Ok(permit)
        } else {
            Err(Setback::not_leading())
        }
    }

    /// The types are read with it: the next look tells which of them can be made of it.
    pub(super) async fn find_snapshot(
        &self,
        project: &str,
        server: i64,
        made_of: Option<i64>,
    ) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let (at, (agent, _)) = (self.moment.wall, self.agent()?);
        let all = connection.list_snapshots().await?;
        let newest = snapshots::newest_of(&all, server.into(), made_of.map(ImageId::from));
        if newest.is_some() {
            let Connection {
                client,
                budget,
                catalogue,
                ..
            } = connection.as_ref();
            let image = &agent.boot.image;
            let offer = catalogue.offer(client, budget, image, Instant::now());
            offer.await.map_err(creation::unread)?;
        }
        self.remember(|memory| {
            memory.snapshot = Some(SnapshotLook {
                server,
                at,
                newest,
                fits: true,
            });
        });
        Ok(())
    }

    /// What is not answered now is not asked at once again: it only tells earlier, and better, what the silence of the server tells as well.
    pub(super) async fn follow_up(
        &self,
        project: &str,
        actions: &[ActionId],
    ) -> Result<(), Setback> {
        let now = self.moment.wall;
        self.remember(|memory| memory.attempt.asked = Some(now));
        let connection = self.connection(project)?;
        let permit = self.permit(&connection, Lane::Other)?;
        let answer = crash_point::around(
            "hetzner",
            "GET /actions",
            connection.client.actions(permit, actions),
        )
        .await?;
        self.remember(|memory| hear_of(memory, answer.iter()));
        Ok(())
    }
}

/// What became of a creation that was answered well. A server that was only not started is powered on like any other that is off.
fn hear_of<'a>(memory: &mut Memory, actions: impl Iterator<Item = &'a Action> + Clone) {
    let running = |action: &&Action| action.status == ActionStatus::Running;
    memory.attempt.running = actions.clone().filter(running).map(|of| of.id).collect();
    let failed =
        |action: &&Action| action.status == ActionStatus::Error && action.command != "start_server";
    let words = |action: &Action| {
        let why = action.error.as_ref().map(|error| error.message.as_str());
        format!(
            "{} failed at Hetzner: {}",
            action.command,
            why.unwrap_or_default()
        )
    };
    memory.attempt.half_failed = actions.filter(failed).map(words).next();
}

/// What everybody in the project learns from the answer to a create.
fn take_answer(
    connection: &Connection,
    record: &ProvisioningRecord,
    answer: Result<CreatedServer, hetzner::Error>,
) -> Result<(), Setback> {
    let place = Place {
        server_type: record.server_type.clone(),
        location: record.location.clone(),
    };
    let now = Instant::now();
    match &answer {
        Ok(created) => {
            connection.stock.created(&place);
            connection
                .inventory
                .record_created(created.server.clone(), now);
        }
        Err(error) if error.class() == Class::OutOfStock => {
            connection.stock.out_of_stock(&place, now);
        }
        Err(_) => {}
    }
    answer.map(drop).map_err(Setback::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_of_a_creation_is_told_and_what_is_under_way_is_remembered() {
        let hear = |actions: serde_json::Value| {
            let actions: Vec<Action> = serde_json::from_value(actions).unwrap();
            let mut memory = Memory::default();
            hear_of(&mut memory, actions.iter());
            (memory.attempt.half_failed, memory.attempt.running)
        };
        let under_way = serde_json::json!([
            {"id": 7, "command": "create_server", "status": "running"}, {"id": 8, "command": "start_server", "status": "running"},
        ]);
        assert_eq!(hear(under_way), (None, vec![ActionId(7), ActionId(8)]));
        let failed = serde_json::json!([
            {"id": 7, "command": "start_server", "status": "error", "error": {"code": "x", "message": "no host"}},
            {"id": 8, "command": "attach_to_network", "status": "error", "error": {"code": "x", "message": "no room"}},
            {"id": 9, "command": "create_server", "status": "success"},
        ]);
        let told = "attach_to_network failed at Hetzner: no room".to_owned();
        assert_eq!(hear(failed), (Some(told), vec![]));
    }
}
