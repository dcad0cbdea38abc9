//! Steps that start an act over SSH.

use super::{
    super::{
        description,
        desired::{Agent, Desired, Want},
        observe::{SECRET_OF_ANOTHER, instance_keys, of_another, read_secret},
        talk::{self, GuestKey, Listening, Order},
        world::{InstallPhase, ServerView, Upgrade},
    },
    Performer,
};
use kube::ResourceExt as _;

use crate::{
    api::HealthState,
    error::Setback,
    guest::{
        bundle::Configure,
        host_key::HostKey,
        proof::{Accept, Unproven},
        protocol::Verb,
        transport::Pinned,
    },
    health::Target,
    keys::ServerKeys,
    kube_ext, labels,
    secret_files::SecretData,
};

impl Performer<'_> {
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

    pub(super) fn hello(&self, id: i64) -> Result<(), Setback> {
        let server = self.server(id)?;
        let (guest, keys) = self.guest(server)?;
        let pinned = self.pinned(server)?;
        let now = self.moment.wall;
        let seen = self.remember(|memory| {
            let guest = memory.guest(id);
            guest.view.tried_since.get_or_insert(now);
            guest.progress.clone()
        });
        let accept = self.accept(server, &keys);
        let key = GuestKey::new(self.identity(), id);
        let listening = Listening {
            guest,
            pinned,
            accept,
            seen,
            key: key.clone(),
            lines: self.ctx.talks.lines.clone(),
            next: is_about_to_be_configured(server).then_some(Verb::Configure),
        };
        self.ctx.talks.listen(key, listening.run());
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

    pub(super) fn upgrade(&self, id: i64, epoch: i64) -> Result<(), Setback> {
        let (pinned, program) = (self.known_guest(id)?, self.ctx.program.clone());
        let key = GuestKey::new(self.identity(), id);
        let way = (key.clone(), self.ctx.talks.lines.clone());
        let upgrade = talk::upgrade(pinned, program, epoch, way);
        self.ctx.talks.order(key, Verb::Upgrade, upgrade);
        Ok(())
    }

    pub(super) async fn configure(
        &self,
        id: i64,
        incarnation: u32,
        epoch: i64,
    ) -> Result<(), Setback> {
        let server = self.server(id)?;
        let (agent, want) = self.agent()?;
        let agent = self.world.due(server).map_or(agent, |(due, _)| due);
        let (guest, keys) = self.guest(server)?;
        let Some(host_key) = self.pinned(server)? else {
            return Err(Setback::passing(
                "HostKeyUnproven",
                "its host key is not pinned",
            ));
        };
        let secret = self.secret(agent, want).await?;
        let unusable = |error: &(dyn std::error::Error + 'static)| {
            Setback::lasting("SecretUnusable", kube_ext::error_chain(error))
        };
        let tags = instance_keys(self.ctx, self.identity());
        let (secret_files, secrets_tag) = description::secret_files(&agent.spec, &secret, &tags)
            .map_err(|error| unusable(&error))?;
        let description = description::describe(agent, self.identity(), incarnation)
            .map_err(|error| unusable(&error))?;
        let mut configure = Configure {
            epoch: epoch.unsigned_abs(),
            resume_key: keys.resume_proof.clone(),
            description,
            secrets_tag,
            secret_files,
            kept: vec![],
        };
        let (kept, known) = self.remember(|memory| {
            // What is given anew is started anew.
            (memory.fresh_epoch, memory.fresh_restart) = (None, None);
            memory.guest(id).is_given_voice();
            memory.known_secrets.learn(&configure.secrets_tag, secret);
            (memory.kept_elsewhere(id), memory.known_secrets.clone())
        });
        configure.bring_along(kept);
        // Who has not greeted this process may have the program of another operator.
        let outdated = server.guest.hello.is_none()
            || matches!(server.guest.upgrade, Upgrade::Due | Upgrade::Tried);
        let upgrade = outdated.then(|| self.ctx.program.clone());
        let key = GuestKey::new(self.identity(), id);
        let order = Order {
            server: guest.pinned(host_key),
            configure,
            line: self.ctx.talks.lines.take(&key),
            known,
            given: self.given(server),
            upgrade,
        };
        self.ctx.talks.order(key, Verb::Configure, order.run());
        Ok(())
    }

    /// The tag of the secrets that the agent on a server has.
    fn given(&self, server: &ServerView) -> Option<String> {
        self.world.spoken(server).map(|(_, tag)| tag)
    }

    /// The Secret as it is now, which may be another one than was measured.
    async fn secret(&self, agent: &Agent, want: &Want) -> Result<SecretData, Setback> {
        let Some(name) = want.secret.as_ref().filter(|_| agent.asks_for_secrets()) else {
            return Ok(SecretData::default());
        };
        let found = read_secret(self.ctx, &self.identity().namespace, name).await?;
        let customer = self.instance.labels().get(labels::CUSTOMER);
        match found {
            Some(found) if !found.is_of(customer) => {
                let message = of_another(name, customer);
                Err(Setback::passing(SECRET_OF_ANOTHER, message))
            }
            found => Ok(found.unwrap_or_default().data),
        }
    }

    pub(super) fn probe(
        &self,
        id: i64,
        epoch: i64,
        presumed: Option<HealthState>,
    ) -> Result<(), Setback> {
        let agent = self.agent()?.0;
        let target = Target {
            class: agent.class.clone(),
            health: self.world.probes(self.server(id)?, agent).clone(),
            server: self.known_guest(id)?,
            epoch,
            known: self.remember(|memory| memory.known_secrets.clone()),
            given: self.given(self.server(id)?),
        };
        let key = GuestKey::new(self.identity(), id);
        self.ctx.talks.probes.watch(key, target, presumed);
        Ok(())
    }

    pub(super) fn end_probes(&self, id: i64) {
        self.remember(|memory| memory.guest(id).starts_again());
        let key = GuestKey::new(self.identity(), id);
        self.ctx.talks.probes.forget(&key);
    }

    /// A guest whose host key is pinned.
    fn known_guest(&self, id: i64) -> Result<Pinned, Setback> {
        let server = self.server(id)?;
        let (guest, _) = self.guest(server)?;
        let unproven = || Setback::passing("HostKeyUnproven", "its host key is not pinned");
        Ok(guest.pinned(self.pinned(server)?.ok_or_else(unproven)?))
    }

    pub(super) fn restart(&self, id: i64, epoch: i64) -> Result<(), Setback> {
        let pinned = self.known_guest(id)?;
        self.remember(|memory| {
            (memory.fresh_recovery, memory.fresh_restart) = (None, None);
            let guest = memory.guest(id);
            guest.starts_again();
            guest.view.restarts = true;
        });
        self.ctx.talks.order(
            GuestKey::new(self.identity(), id),
            Verb::Restart,
            talk::restart(pinned, epoch),
        );
        Ok(())
    }

    pub(super) fn release(&self, id: i64, epoch: i64) -> Result<(), Setback> {
        let pinned = self.known_guest(id)?;
        self.remember(|memory| memory.fresh_epoch = None);
        let for_good = matches!(self.desired, Desired::Absent(_));
        self.ctx.talks.order(
            GuestKey::new(self.identity(), id),
            Verb::Release,
            talk::release(pinned, epoch, for_good),
        );
        Ok(())
    }
}

/// Whether what comes after the installation is a `configure` by the program that is there now.
fn is_about_to_be_configured(server: &ServerView) -> bool {
    let phase = server.guest.hello.as_ref().map(|hello| &hello.phase);
    phase == Some(&InstallPhase::Running)
        && matches!(server.guest.upgrade, Upgrade::NotNeeded | Upgrade::Done)
}
