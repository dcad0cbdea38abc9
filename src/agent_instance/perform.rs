//! Carries out one step.
//!
//! Each does one thing, is harmless when done twice, never waits for its turn and never tries again: a permit or the Lease that is not to be
//! had is a [`Setback`] like any other. What it learns goes into memory or into the inventory, and the next look sees it.

use std::{sync::Arc, time::Instant};

use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::{
    creation, description,
    desired::{Agent, Desired, Identity, Want},
    observe::{Moment, instance_keys, read_secret},
    step::Step,
    talk::{self, GuestKey, Listening, Order},
    world::{ClassView, SendOutcome, ServerView, World},
};
use crate::{
    api::{AgentInstance, FINALIZER, ProvisioningRecord, VoiceRecord},
    context::Context,
    crash_point,
    error::Setback,
    guest::{
        bundle::Configure,
        host_key::HostKey,
        proof::{Accept, Unproven},
        transport::Pinned,
    },
    hetzner::{Class, Lane, Permit, Place, Server},
    hetzner_project::connection::Connection,
    keys::ServerKeys,
    kube_ext, labels,
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
                Ok(kube_ext::add_finalizer(&self.api(), self.instance, FINALIZER).await?)
            }
            Step::RemoveFinalizer => {
                Ok(kube_ext::remove_finalizer(&self.api(), self.instance, FINALIZER).await?)
            }
            Step::Announce(record) => self.announce(record).await,
            Step::WriteVoice(voice) => self.write_voice(voice).await,
            Step::CreateServer(record) => self.create_server(record).await,
            Step::LookUp { project, name } => self.look_up(project, name).await,
            Step::ConfirmGone { project, id } => self.confirm_gone(project, *id).await,
            Step::DeleteServer { project, id } => self.delete_server(project, *id).await,
            Step::PowerOn { project, id } => self.power_on(project, *id).await,
            Step::TakeUp { project, id, uid } => self.take_up(project, *id, uid).await,
            Step::Hello { server, .. } => self.hello(*server),
            Step::Configure {
                server,
                incarnation,
                epoch,
            } => self.configure(*server, *incarnation, *epoch).await,
            Step::Release { server, epoch, .. } => self.release(*server, *epoch),
        }
    }

    fn identity(&self) -> &Identity {
        self.desired.identity()
    }

    fn api(&self) -> Api<AgentInstance> {
        Api::namespaced(self.ctx.clients.write.clone(), &self.identity().namespace)
    }

    fn remember<T>(&self, what: impl FnOnce(&mut super::memory::Memory) -> T) -> T {
        self.ctx.memories.with(&self.identity().uid, what)
    }

    async fn announce(&mut self, record: &ProvisioningRecord) -> Result<(), Setback> {
        let voice = self.world.voice().cloned();
        self.write_records(Some(record.clone()), voice).await?;
        self.remember(|memory| memory.announced(record));
        Ok(())
    }

    async fn write_voice(&mut self, voice: &VoiceRecord) -> Result<(), Setback> {
        self.write_records(self.world.record().cloned(), Some(voice.clone()))
            .await?;
        self.remember(|memory| memory.fresh_epoch = Some(voice.epoch));
        Ok(())
    }

    /// Both records in one apply: what one manager leaves out is removed.
    async fn write_records(
        &mut self,
        record: Option<ProvisioningRecord>,
        voice: Option<VoiceRecord>,
    ) -> Result<(), Setback> {
        self.apply_status(RECORDS, json!({"provisioning": record, "voice": voice}))
            .await
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
        let version = applied.object.resource_version().unwrap_or_default();
        if version != self.version {
            let replaced = std::mem::replace(&mut self.version, version);
            self.remember(|memory| memory.replaced.push(replaced));
        }
        Ok(())
    }

    fn connection(&self, project: &str) -> Result<Arc<Connection>, Setback> {
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
    fn permit(&self, connection: &Connection, lane: Lane) -> Result<Permit, Setback> {
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

    fn agent(&self) -> Result<(&Agent, &Want), Setback> {
        match (&self.world.class, self.desired) {
            (ClassView::Usable(agent), Desired::Present(_, want)) => Ok((agent, want)),
            _ => Err(Setback::passing(
                "ClassMissing",
                "the class is not usable any more",
            )),
        }
    }

    async fn create_server(&self, record: &ProvisioningRecord) -> Result<(), Setback> {
        let connection = self.connection(&record.project)?;
        let (agent, _) = self.agent()?;
        let request =
            creation::request(self.ctx, &connection, self.identity(), agent, record).await?;
        let instances = self.ctx.stores.instances.state().len();
        let spend = connection.fuse.try_create(instances, Instant::now()).map_err(|until| {
            let message = format!("project {} has had more creations this hour than its {instances} instances explain", connection.project);
            Setback::until("SpendingHeld", message, until.saturating_duration_since(Instant::now()))
        })?;
        let lane = if record.incarnation > 1 {
            Lane::ReplaceVanished
        } else {
            Lane::Create
        };
        let permit = match self.permit(&connection, lane) {
            Ok(permit) if self.ctx.leadership.holds() => permit,
            refused => {
                spend.refused();
                return Err(refused.err().unwrap_or_else(Setback::not_leading));
            }
        };
        let before = self.remember(|memory| {
            let before = memory.attempt.unsettled_until;
            memory.sends(record, Timestamp::now(), self.ctx.settings.window());
            before
        });
        let place = Place {
            server_type: record.server_type.clone(),
            location: record.location.clone(),
        };
        let answer = crash_point::around(
            "hetzner",
            "POST /servers",
            connection.client.create_server(permit, &request),
        )
        .await;
        match answer {
            Ok(created) => {
                connection.stock.created(&place);
                connection
                    .inventory
                    .record_created(created.server, Instant::now());
                self.remember(|memory| memory.answered(SendOutcome::Created, before));
                Ok(())
            }
            Err(error) => {
                let outcome = creation::outcome(&error);
                self.remember(|memory| memory.answered(outcome, before));
                match error.class() {
                    Class::OutOfStock => connection.stock.out_of_stock(&place, Instant::now()),
                    Class::Quota => connection.stock.over_quota(Instant::now()),
                    _ => {}
                }
                if outcome != SendOutcome::Unknown {
                    spend.refused();
                }
                Err(error.into())
            }
        }
    }

    async fn look_up(&self, project: &str, name: &str) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let permit = self.permit(&connection, Lane::Create)?;
        let at = Timestamp::now();
        let found = crash_point::around(
            "hetzner",
            "GET /servers?name=",
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

    async fn confirm_gone(&self, project: &str, id: i64) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let permit = self.permit(&connection, Lane::ReplaceVanished)?;
        match crash_point::around(
            "hetzner",
            "GET /servers/{id}",
            connection.client.get_server(permit, id.into()),
        )
        .await
        {
            Ok(server) => connection.inventory.record_updated(server, Instant::now()),
            Err(error) if error.class() == Class::NotFound => {
                connection.inventory.record_gone(id.into(), Instant::now())
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn delete_server(&self, project: &str, id: i64) -> Result<(), Setback> {
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
            Ok(_) => deletion.accepted(Instant::now()),
            Err(error) if error.class() == Class::NotFound => deletion.not_found(Instant::now()),
            Err(error) => return Err(error.into()),
        }
        connection.inventory.poke();
        Ok(())
    }

    async fn power_on(&self, project: &str, id: i64) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let permit = self.permit(&connection, Lane::Other)?;
        let route = "POST /servers/{id}/actions/poweron";
        crash_point::around(
            "hetzner",
            route,
            connection.client.power_on(permit, id.into()),
        )
        .await?;
        connection.inventory.poke();
        Err(Setback::slow(
            "PoweringOn",
            format!("server {id} was off and was powered on"),
        ))
    }

    async fn take_up(&self, project: &str, id: i64, uid: &str) -> Result<(), Setback> {
        let connection = self.connection(project)?;
        let snapshot = connection.inventory.snapshot();
        let entry = snapshot.get(id.into()).ok_or_else(|| {
            Setback::passing("ServerNotListed", format!("server {id} is not listed"))
        })?;
        let mut changed = entry.server.labels.clone();
        changed.insert(labels::UID.into(), uid.into());
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

    fn server(&self, id: i64) -> Result<&ServerView, Setback> {
        let found = self.world.servers.iter().find(|server| server.id == id);
        found.ok_or_else(|| {
            Setback::passing("ServerNotListed", format!("server {id} is not listed"))
        })
    }

    fn keys(&self, server: &ServerView) -> Result<ServerKeys, Setback> {
        let connection = self.connection(&server.project)?;
        let snapshot = connection.inventory.snapshot();
        let id = snapshot
            .get(server.id.into())
            .map(|entry| labels::text(&entry.server.labels, labels::KEY_ID))
            .unwrap_or_default();
        let master = self.ctx.keyring.by_id(&id);
        let unknown = || {
            format!(
                "server {} was made with master key {id:?}, which this operator does not have",
                server.id
            )
        };
        Ok(master
            .ok_or_else(|| Setback::lasting("MasterKeyUnknown", unknown()))?
            .server_keys(&server.name))
    }

    fn guest(&self, server: &ServerView) -> Result<(Unproven, ServerKeys), Setback> {
        let keys = self.keys(server)?;
        let address = talk::address(server, self.ctx.settings.guest_port).ok_or_else(|| {
            Setback::slow(
                "NoAddress",
                format!("server {} has no address yet", server.id),
            )
        })?;
        let login = keys.login.clone();
        let guest = Unproven {
            address,
            login,
            fleet: self.ctx.keyring.fleet().to_owned(),
            server: server.name.clone(),
        };
        Ok((guest, keys))
    }

    fn pinned(&self, server: &ServerView) -> Result<Option<HostKey>, Setback> {
        let pin = self.world.pinned(server).map(str::parse).transpose();
        pin.map_err(|_| {
            Setback::lasting(
                "HostKeyInvalid",
                "status.server.hostKey is not an SSH host key",
            )
        })
    }

    fn hello(&self, id: i64) -> Result<(), Setback> {
        let server = self.server(id)?;
        let (guest, keys) = self.guest(server)?;
        let pinned = self.pinned(server)?;
        let seen = self.remember(|memory| memory.guest(id).progress.clone());
        let accept = self.accept(server, &keys);
        self.ctx.talks.listen(
            GuestKey::new(self.identity(), id),
            Listening {
                guest,
                pinned,
                accept,
                seen,
            }
            .run(),
        );
        Ok(())
    }

    /// The boot proof counts for the server of the current record, and while a server is young; afterwards only what came with `configure`.
    fn accept(&self, server: &ServerView, keys: &ServerKeys) -> Accept {
        let (boot, resume) = (keys.boot_proof.clone(), keys.resume_proof.clone());
        let recorded = self
            .world
            .record()
            .is_some_and(|record| record.server_name == server.name);
        let patience = self
            .agent()
            .map(|(agent, _)| agent.lifecycle.provision_timeout.get())
            .unwrap_or_default();
        let young = server
            .created_at
            .is_some_and(|created| created + patience > self.moment.wall);
        let spoken = self.world.voice_holder() == Some(server.incarnation);
        if (recorded || young) && !spoken {
            Accept::Either { boot, resume }
        } else {
            Accept::Resume(resume)
        }
    }

    async fn configure(&self, id: i64, incarnation: u32, epoch: i64) -> Result<(), Setback> {
        let server = self.server(id)?;
        let (agent, want) = self.agent()?;
        let (guest, keys) = self.guest(server)?;
        let Some(host_key) = self.pinned(server)? else {
            return Err(Setback::passing(
                "HostKeyUnproven",
                "its host key is not pinned",
            ));
        };
        let secret = match &want.secret {
            Some(name) => read_secret(self.ctx, &self.identity().namespace, name)
                .await?
                .unwrap_or_default(),
            None => Default::default(),
        };
        let unusable = |error: &(dyn std::error::Error + 'static)| {
            Setback::lasting("SecretUnusable", kube_ext::error_chain(error))
        };
        let tags = instance_keys(self.ctx, self.identity());
        let (secret_files, secrets_tag) = description::secret_files(&agent.spec, &secret, &tags)
            .map_err(|error| unusable(&error))?;
        let description = description::describe(agent, self.identity(), incarnation)
            .map_err(|error| unusable(&error))?;
        let configure = Configure {
            epoch: epoch.unsigned_abs(),
            resume_key: keys.resume_proof.clone(),
            description,
            secrets_tag,
            secret_files,
            kept: vec![],
        };
        let outdated = self.remember(|memory| {
            memory.fresh_epoch = None;
            memory.guest(id).outdated
        });
        let upgrade = outdated.then(|| self.ctx.program.clone());
        let order = Order {
            server: guest.pinned(host_key),
            configure,
            upgrade,
        };
        self.ctx
            .talks
            .order(GuestKey::new(self.identity(), id), order.run());
        Ok(())
    }

    fn release(&self, id: i64, epoch: i64) -> Result<(), Setback> {
        let server = self.server(id)?;
        let (guest, _) = self.guest(server)?;
        let Some(host_key) = self.pinned(server)? else {
            return Err(Setback::passing(
                "HostKeyUnproven",
                "its host key is not pinned",
            ));
        };
        self.remember(|memory| memory.fresh_epoch = None);
        let pinned: Pinned = guest.pinned(host_key);
        self.ctx.talks.order(
            GuestKey::new(self.identity(), id),
            talk::release(pinned, epoch),
        );
        Ok(())
    }
}
