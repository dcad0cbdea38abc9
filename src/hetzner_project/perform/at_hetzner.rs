//! Steps that are a request to Hetzner; what it taught goes into the memory of the project.

use std::time::Instant;

use russh::keys::{PrivateKey, ssh_key::private::Ed25519Keypair};

use crate::{
    context::Context,
    hetzner::{FirewallId, Labels, Lane, Outcome, SshKey},
    hetzner_project::{
        connection::Connection,
        request::{Asked, Failure},
        step::Step,
        world::{KeyName, KeyView},
    },
    labels, naming,
};

/// Steps at Hetzner.
pub(super) struct Hetzner<'a> {
    pub(super) ctx: &'a Context,
    pub(super) connection: &'a Connection,
}

impl Hetzner<'_> {
    pub(super) async fn perform(&self, step: &Step) -> Result<(), Failure> {
        match step {
            Step::ReadKeys => self.read_keys().await,
            Step::LookUpIdentity(id) => self.look_up_identity(*id).await,
            Step::LookUpKeyName => self.look_up_key_name().await,
            Step::LookUpServer(id) => self.look_up_server(*id).await,
            Step::ReadAdminKeys(names) => self.read_admin_keys(names).await,
            Step::ReadFirewalls => {
                self.connection
                    .list_firewalls(self.fleet(), self.ctx.settings.project_period)
                    .await
            }
            Step::CreateKey => self.create_key().await,
            Step::WriteHolder { key, holder } => self.write_holder(*key, holder).await,
            Step::DeleteFirewall(id) => self.delete_firewall(*id).await,
            Step::DeleteKey(id) => self.delete_key(*id).await,
            Step::AddFinalizer
            | Step::HoldSecret
            | Step::ReleaseSecret
            | Step::Connect
            | Step::LetGo => Ok(()),
        }
    }

    fn fleet(&self) -> &str {
        self.ctx.keyring.current().fleet()
    }

    fn own(&self) -> &str {
        self.ctx.connections.holder()
    }

    fn labels(&self, holder: &str) -> Labels {
        [
            (labels::FLEET.to_owned(), self.fleet().to_owned()),
            (labels::HOLDER.to_owned(), holder.to_owned()),
        ]
        .into()
    }

    async fn read_keys(&self) -> Result<(), Failure> {
        let (begun, selector) = (
            Instant::now(),
            format!("{}={}", labels::FLEET, self.fleet()),
        );
        let asked = asked(Lane::Other, "GET /ssh_keys");
        let keys = self
            .connection
            .read(asked, async |client, permit| {
                client.ssh_keys_by_label(permit, &selector).await
            })
            .await?;
        let keys = keys.iter().map(|key| view(key, self.fleet())).collect();
        self.connection.memory().listed(keys, self.own(), begun);
        Ok(())
    }

    async fn look_up_identity(&self, id: i64) -> Result<(), Failure> {
        let asked = asked(Lane::Other, "GET /ssh_keys/{id}");
        let found = found(
            self.connection
                .read(asked, async |client, permit| {
                    client.get_ssh_key(permit, id.into()).await
                })
                .await,
        )?;
        let key = found.map(|key| view(&key, self.fleet()));
        self.connection.memory().looked_up(id, key, self.own());
        Ok(())
    }

    async fn look_up_key_name(&self) -> Result<(), Failure> {
        let name = naming::key_name(self.fleet());
        let asked = asked(Lane::Other, "GET /ssh_keys name");
        let keys = self
            .connection
            .read(asked, async |client, permit| {
                client.ssh_keys_by_name(permit, &name).await
            })
            .await?;
        let mut memory = self.connection.memory();
        match keys.first().map(|key| view(key, self.fleet())) {
            None => memory.key_name = KeyName::Free,
            Some(key) if key.ours => memory.gained(key, self.own()),
            Some(key) => memory.key_name = KeyName::Foreign(key.id),
        }
        Ok(())
    }

    async fn look_up_server(&self, id: i64) -> Result<(), Failure> {
        let asked = asked(Lane::Other, "GET /servers/{id}");
        let found = found(
            self.connection
                .read(asked, async |client, permit| {
                    client.get_server(permit, id.into()).await
                })
                .await,
        )?;
        let ours =
            found.is_some_and(|server| labels::text(&server.labels, labels::FLEET) == self.fleet());
        self.connection.memory().answered.insert(id, ours);
        Ok(())
    }

    async fn read_admin_keys(&self, names: &[String]) -> Result<(), Failure> {
        let asked = asked(Lane::Other, "GET /ssh_keys name");
        for name in names {
            let keys = self
                .connection
                .read(asked, async |client, permit| {
                    client.ssh_keys_by_name(permit, name).await
                })
                .await?;
            let public = keys.into_iter().next().map(|key| key.public_key);
            self.connection
                .memory()
                .admin_keys
                .insert(name.clone(), public);
        }
        Ok(())
    }

    /// The private half is never kept: nobody can log in with this key. It only stops Hetzner from mailing root passwords.
    async fn create_key(&self) -> Result<(), Failure> {
        let private = PrivateKey::from(Ed25519Keypair::from_seed(&rand::random()));
        let Ok(public) = private.public_key().to_openssh() else {
            return Ok(());
        };
        drop(private);
        let (name, labels) = (naming::key_name(self.fleet()), self.labels(self.own()));
        let asked = asked(Lane::Other, "POST /ssh_keys");
        let made = self
            .connection
            .mutate(&self.ctx.leadership, asked, async |client, permit| {
                client.create_ssh_key(permit, &name, &public, &labels).await
            })
            .await;
        let mut memory = self.connection.memory();
        match made {
            Ok(key) => memory.gained(view(&key, self.fleet()), self.own()),
            Err(failure) if failure.name_taken() => memory.key_name = KeyName::Taken,
            Err(failure) => {
                if matches!(&failure, Failure::Hetzner(error) if error.outcome() == Outcome::Unknown)
                {
                    memory.doubt_keys();
                }
                return Err(failure);
            }
        }
        Ok(())
    }

    async fn write_holder(&self, key: i64, holder: &str) -> Result<(), Failure> {
        let labels = self.labels(holder);
        let asked = asked(Lane::Other, "PUT /ssh_keys/{id}");
        self.connection
            .mutate(&self.ctx.leadership, asked, async |client, permit| {
                client
                    .update_ssh_key_labels(permit, key.into(), &labels)
                    .await
            })
            .await?;
        self.connection.memory().marked(key, holder, self.own());
        Ok(())
    }

    async fn delete_firewall(&self, id: i64) -> Result<(), Failure> {
        let id = FirewallId::from(id);
        let asked = asked(Lane::Delete, "DELETE /firewalls/{id}");
        found(
            self.connection
                .mutate(&self.ctx.leadership, asked, async |client, permit| {
                    client.delete_firewall(permit, id).await
                })
                .await,
        )?;
        self.connection
            .firewalls
            .change(|all| all.retain(|firewall| firewall.id != id));
        Ok(())
    }

    async fn delete_key(&self, id: i64) -> Result<(), Failure> {
        let asked = asked(Lane::Delete, "DELETE /ssh_keys/{id}");
        found(
            self.connection
                .mutate(&self.ctx.leadership, asked, async |client, permit| {
                    client.delete_ssh_key(permit, id.into()).await
                })
                .await,
        )?;
        self.connection.memory().lost_key(id);
        Ok(())
    }
}

/// Who asks, in which lane, for the budget and the log.
fn asked(lane: Lane, route: &'static str) -> Asked<'static> {
    Asked {
        lane,
        who: "project",
        route,
    }
}

fn view(key: &SshKey, fleet: &str) -> KeyView {
    KeyView {
        id: key.id.number(),
        ours: labels::text(&key.labels, labels::FLEET) == fleet,
        holder: key.labels.get(labels::HOLDER).cloned(),
    }
}

/// What Hetzner says is not there is an answer, too.
fn found<T>(outcome: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.not_found() => Ok(None),
        Err(failure) => Err(failure),
    }
}
