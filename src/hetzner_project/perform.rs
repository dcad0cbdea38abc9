//! Does one step: one effect, and what it taught goes into the memory of the project.

use std::{sync::Arc, time::Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::ListParams};
use russh::keys::{PrivateKey, ssh_key::private::Ed25519Keypair};

use super::{
    connection::Connection,
    dependents,
    desired::Desired,
    observe::{Observed, shares},
    request::{Asked, Failure},
    step::Step,
    world::{KeyName, KeyView},
};
use crate::{
    api::{FINALIZER, HetznerProject},
    context::Context,
    hetzner::{Client, FirewallId, Labels, Lane, Outcome, SshKey},
    inventory::{Config, Inventory, KeyLabels, Periods},
    kube_ext::{CallError, add_finalizer, call, remove_finalizer},
    labels, naming,
};

/// Does a step; what a request has told is remembered.
///
/// # Errors
/// See [`Failure`]; nothing is tried again here.
pub async fn perform(
    ctx: &Arc<Context>,
    project: &HetznerProject,
    desired: &Desired,
    observed: &Observed,
    step: &Step,
) -> Result<(), Failure> {
    let kubernetes = Kubernetes {
        ctx,
        project,
        desired,
        observed,
    };
    let done = match step {
        Step::AddFinalizer | Step::HoldSecret | Step::ReleaseSecret | Step::LetGo
            if !ctx.leadership.holds() =>
        {
            Err(Failure::NotLeading)
        }
        Step::AddFinalizer => kubernetes.add_finalizer().await,
        Step::HoldSecret => kubernetes.hold_secret().await,
        Step::ReleaseSecret => kubernetes.release_secret().await,
        Step::LetGo => kubernetes.let_go().await,
        Step::Connect => connect(ctx, desired, observed),
        _ => match &observed.connection {
            Some(connection) => Hetzner { ctx, connection }.perform(step).await,
            None => Ok(()),
        },
    };
    if let (Ok(()), Some(connection)) = (&done, &observed.connection) {
        connection.memory().troubles.succeeded(step.kind());
    }
    done
}

/// A new token opens a new connection; the former one ends with its tasks.
fn connect(ctx: &Context, desired: &Desired, observed: &Observed) -> Result<(), Failure> {
    let Some(token) = &observed.token else {
        return Ok(());
    };
    let client = Client::new(
        &ctx.settings.endpoint,
        token.clone(),
        ctx.settings.request_timeout,
    )?;
    let inventory = Inventory::new(Config {
        selector: format!("{}={}", labels::FLEET, ctx.keyring.current().fleet()),
        key_labels: KeyLabels {
            namespace: labels::NAMESPACE.into(),
            name: labels::NAME.into(),
        },
        periods: Periods {
            fast: ctx.settings.inventory_fast,
            slow: ctx.settings.inventory_slow,
            ..Periods::default()
        },
    });
    let connection = Connection::new(&desired.name, client, token.clone(), inventory.clone());
    connection.spawn(dependents::follow(
        ctx.stores.clone(),
        ctx.wake.clone(),
        desired.name.clone(),
        inventory.clone(),
    ));
    let (client, budget) = (connection.client.clone(), connection.budget.clone());
    connection.spawn(async move { match inventory.run(&client, &budget).await {} });
    ctx.connections.put(&desired.name, Ok(Arc::new(connection)));
    Ok(())
}

/// Steps at the API server.
struct Kubernetes<'a> {
    ctx: &'a Context,
    project: &'a HetznerProject,
    desired: &'a Desired,
    observed: &'a Observed,
}

impl Kubernetes<'_> {
    fn projects(&self) -> Api<HetznerProject> {
        Api::all(self.ctx.clients.write.clone())
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(
            self.ctx.clients.write.clone(),
            &self.desired.token.namespace,
        )
    }

    async fn add_finalizer(&self) -> Result<(), Failure> {
        add_finalizer(&self.projects(), self.project, FINALIZER).await?;
        Ok(())
    }

    async fn hold_secret(&self) -> Result<(), Failure> {
        if let Some(secret) = &self.observed.secret {
            add_finalizer(&self.secrets(), secret, FINALIZER).await?;
        }
        Ok(())
    }

    async fn release_secret(&self) -> Result<(), Failure> {
        match &self.observed.secret {
            Some(secret) => unless_gone(remove_finalizer(&self.secrets(), secret, FINALIZER).await),
            None => Ok(()),
        }
    }

    /// The last of those who use the Secret releases it. Asked of the API server itself and one at a time, so that the last one knows.
    async fn let_go(&self) -> Result<(), Failure> {
        let _alone = self.ctx.connections.leaving().await;
        let read: Api<HetznerProject> = Api::all(self.ctx.clients.read.clone());
        let all = call("LIST hetznerprojects", read.list(&ListParams::default())).await?;
        if !all
            .iter()
            .any(|other| shares(other, &self.desired.name, &self.desired.token))
        {
            self.release_secret().await?;
        }
        unless_gone(remove_finalizer(&self.projects(), self.project, FINALIZER).await)?;
        self.ctx.connections.remove(&self.desired.name);
        Ok(())
    }
}

fn unless_gone(outcome: Result<(), CallError>) -> Result<(), Failure> {
    match outcome {
        Err(CallError::Gone { .. }) => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// Steps at Hetzner.
struct Hetzner<'a> {
    ctx: &'a Context,
    connection: &'a Connection,
}

impl Hetzner<'_> {
    async fn perform(&self, step: &Step) -> Result<(), Failure> {
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
        let asked = Asked {
            lane: Lane::Inventory,
            who: "project",
            route: "GET /ssh_keys",
        };
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
        let asked = Asked {
            lane: Lane::Other,
            who: "project",
            route: "GET /ssh_keys/{id}",
        };
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
        let asked = Asked {
            lane: Lane::Other,
            who: "project",
            route: "GET /ssh_keys name",
        };
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
        let asked = Asked {
            lane: Lane::Other,
            who: "project",
            route: "GET /servers/{id}",
        };
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
        let asked = Asked {
            lane: Lane::Other,
            who: "project",
            route: "GET /ssh_keys name",
        };
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
        let asked = Asked {
            lane: Lane::Other,
            who: "project",
            route: "POST /ssh_keys",
        };
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
        let asked = Asked {
            lane: Lane::Other,
            who: "project",
            route: "PUT /ssh_keys/{id}",
        };
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
        let asked = Asked {
            lane: Lane::Delete,
            who: "project",
            route: "DELETE /firewalls/{id}",
        };
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
        let asked = Asked {
            lane: Lane::Delete,
            who: "project",
            route: "DELETE /ssh_keys/{id}",
        };
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
