//! Steps that make one request to Hetzner.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{
    Resource as _,
    runtime::events::{Event, EventType},
};

use super::{
    super::{
        creation,
        desired::{Agent, Desired},
        observe::Moment,
        talk::GuestKey,
        world::SendOutcome,
    },
    Performer,
};
use crate::{
    api::{ADOPT_ANNOTATION, ProvisioningRecord},
    crash_point,
    error::Setback,
    hetzner::{
        self, Action, ActionStatus, Class, CreatedServer, Labels, Lane, Permit, Place, Server,
        Spend,
    },
    hetzner_project::connection::Connection,
    labels,
    metrics::Cause,
    rollout::UsedUp,
};

/// How long a rollout waits for a server to be had.
const QUOTA_PAUSE: Duration = Duration::from_mins(10);

impl Performer<'_> {
    pub(super) fn connection(&self, project: &str) -> Result<Arc<Connection>, Setback> {
        match self.ctx.connections.get(project) {
            Some(Ok(connection)) => Ok(connection),
            Some(Err((reason, message))) => Err(Setback::slow(reason, message)),
            None => Err(Setback::slow(
                "ProjectMissing",
                format!("HetznerProject {project} does not exist"),
            )),
        }
    }

    /// A request of the project's allowance, or when to ask again with the place in the queue kept.
    pub(super) fn permit(&self, connection: &Connection, lane: Lane) -> Result<Permit, Setback> {
        let now = Instant::now();
        connection
            .budget
            .try_acquire(lane, &self.identity().uid, now)
            .map_err(|retry| {
                let message = format!(
                    "waits for its turn among the requests that project {} is allowed",
                    connection.project
                );
                Setback::until(
                    "RateLimited",
                    message,
                    retry.0.saturating_duration_since(now),
                )
            })
    }

    /// The lane of a question: a deletion ends with it, and must not wait behind creates (I8).
    fn lane(&self, otherwise: Lane) -> Lane {
        match self.desired {
            Desired::Absent(_) | Desired::Retained(_) => Lane::Delete,
            Desired::Present(..) => otherwise,
        }
    }

    /// Sends the one request that a written record permits.
    pub(super) async fn create_server(&self, record: &ProvisioningRecord) -> Result<(), Setback> {
        let connection = self.connection(&record.project)?;
        let (agent, _) = self.agent()?;
        let mut request =
            creation::request(self.ctx, &connection, self.identity(), agent, record).await?;
        let revision = self.world.rollout.revision.clone();
        request.labels.insert(labels::REVISION.into(), revision);
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
        if answer.is_ok() {
            self.ctx.metrics.created(&agent.class, self.cause(record));
        }
        let half_failed = answer.as_ref().ok().and_then(half_failed);
        self.remember(|memory| {
            memory.answered(outcome, before);
            memory.attempt.half_failed = half_failed;
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
        let (instances, now) = (self.ctx.stores.instances.state().len(), Instant::now());
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

    pub(super) async fn look_up(&self, project: &str, name: &str) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let permit = self.permit(&connection, self.lane(Lane::Create))?;
        let at = Timestamp::now();
        let found = crash_point::around(
            "hetzner",
            "GET /servers by name",
            connection.client.servers_by_name(permit, name),
        )
        .await?;
        let foreign = found
            .into_iter()
            .find_map(|server| self.take_if_ours(&connection, server));
        self.remember(|memory| memory.looked_up(at, foreign));
        Ok(())
    }

    /// Enters a server of ours; of any other only the id is told.
    fn take_if_ours(&self, connection: &Connection, server: Server) -> Option<i64> {
        let id = server.id.number();
        if labels::are_ours(&server.labels, self.identity(), self.ctx.keyring.fleet()) {
            connection.inventory.record_updated(server, Instant::now());
            return None;
        }
        Some(id)
    }

    pub(super) async fn confirm_gone(&self, project: &str, id: i64) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let permit = self.permit(&connection, self.lane(Lane::ReplaceVanished))?;
        match crash_point::around(
            "hetzner",
            "GET /servers/{id}",
            connection.client.get_server(permit, id.into()),
        )
        .await
        {
            Ok(server) => {
                connection.inventory.record_updated(server, Instant::now());
                self.expect_gone(id);
            }
            Err(error) if error.class() == Class::NotFound => {
                connection.inventory.record_gone(id.into(), Instant::now());
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// From now on a list has so long to show that a server is gone.
    fn expect_gone(&self, id: i64) {
        let due = Moment::now()
            .wall
            .checked_add(self.ctx.settings.window())
            .ok();
        self.remember(|memory| memory.guest(id).view.gone_by = due);
    }

    pub(super) async fn delete_server(&self, project: &str, id: i64) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let permit = self.permit(&connection, Lane::Delete)?;
        self.ctx.talks.forget(&GuestKey::new(self.identity(), id));
        let deletion = connection.inventory.begin_delete(id.into());
        match crash_point::around(
            "hetzner",
            "DELETE /servers/{id}",
            connection.client.delete_server(permit, id.into()),
        )
        .await
        {
            Ok(_) => {
                deletion.accepted(Instant::now());
                self.expect_gone(id);
            }
            Err(error) if error.class() == Class::NotFound => deletion.not_found(Instant::now()),
            Err(error) => return Err(error.into()),
        }
        connection.inventory.poke();
        Ok(())
    }

    pub(super) async fn take_up(&self, project: &str, id: i64, uid: &str) -> Result<(), Setback> {
        self.relabel(project, id, |labels| {
            labels.insert(labels::UID.into(), uid.into());
            labels.remove(labels::RETAINED);
        })
        .await
    }

    /// The object goes with its Event; what lasts is the label at Hetzner.
    pub(super) async fn retain(&self, project: &str, id: i64) -> Result<(), Setback> {
        self.relabel(project, id, |labels| {
            labels.insert(labels::RETAINED.into(), "true".into());
        })
        .await?;
        let note = format!(
            "server {id} in project {project} is kept, its agent is silent, and Hetzner bills it on. A new instance of this name takes it up with the annotation {ADOPT_ANNOTATION}: \"{id}\"; or delete it there"
        );
        tracing::info!(note, "server retained");
        let event = Event {
            type_: EventType::Normal,
            reason: "ServerRetained".into(),
            note: Some(note),
            action: "Deleting".into(),
            secondary: None,
        };
        let object = self.instance.object_ref(&());
        self.ctx.events.publish(&object, event);
        Ok(())
    }

    async fn relabel(
        &self,
        project: &str,
        id: i64,
        change: impl FnOnce(&mut Labels),
    ) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let snapshot = connection.inventory.snapshot();
        let entry = snapshot.get(id.into()).ok_or_else(|| {
            Setback::passing("ServerNotListed", format!("server {id} is not listed"))
        })?;
        let mut changed = entry.server.labels.clone();
        change(&mut changed);
        let permit = self.permit(&connection, Lane::Other)?;
        let server = crash_point::around(
            "hetzner",
            "PUT /servers/{id}",
            connection
                .client
                .update_server_labels(permit, id.into(), &changed),
        )
        .await?;
        connection.inventory.record_updated(server, Instant::now());
        Ok(())
    }
}

/// What failed of a creation that was answered well. A server that was only not started is powered on like any other that is off.
fn half_failed(created: &CreatedServer) -> Option<String> {
    let actions = created.action.iter().chain(&created.next_actions);
    let failed = actions.filter(|action| action.status == ActionStatus::Error);
    let failed = failed.filter(|action| action.command != "start_server");
    let words = |action: &Action| {
        let why = action.error.as_ref().map(|error| error.message.as_str());
        format!(
            "{} failed at Hetzner: {}",
            action.command,
            why.unwrap_or_default()
        )
    };
    failed.map(words).next()
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
