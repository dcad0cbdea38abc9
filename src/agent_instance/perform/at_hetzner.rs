//! Steps that make one request to Hetzner.

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;
use kube::{
    Resource as _,
    runtime::events::{Event, EventType},
};

use super::{
    super::{desired::Desired, observe::Moment, talk::GuestKey},
    Performer,
};
use crate::{
    api::ADOPT_ANNOTATION,
    crash_point,
    error::Setback,
    hetzner::{Class, Labels, Lane, Permit, Server},
    hetzner_project::connection::Connection,
    labels,
};

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
