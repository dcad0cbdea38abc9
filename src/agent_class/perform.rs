//! Does one step: one effect, and what it taught goes into the shared list or the memory of the class.

use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PostParams},
};

use super::{
    desired::Desired,
    rendered,
    step::{ProjectStep, Step},
    world::firewall_labels,
};
use crate::{
    api::{AgentClass, FINALIZER},
    context::Context,
    crash_point,
    hetzner::{
        CatalogueError, CreateFirewall, ErrorCode, Firewall, FirewallId, FirewallResource, Lane,
        Outcome, ServerId,
    },
    hetzner_project::{
        connection::Connection,
        request::{Asked, Failure},
    },
    kube_ext::{CallError, add_finalizer, call, remove_finalizer},
    labels, naming,
    rollout::revisions::{self, Housekeeping},
};

/// Does a step; what a request has told is remembered.
///
/// # Errors
/// See [`Failure`]; nothing is tried again here.
pub async fn perform(
    ctx: &Context,
    class: &AgentClass,
    desired: &Desired,
    step: &Step,
) -> Result<(), Failure> {
    let api: Api<AgentClass> = Api::all(ctx.clients.write.clone());
    match step {
        Step::AddFinalizer
        | Step::RemoveFinalizer
        | Step::KeepRevision(_)
        | Step::DropRevision(_)
            if !ctx.leadership.holds() =>
        {
            Err(Failure::NotLeading)
        }
        Step::AddFinalizer => {
            add_finalizer(&api, class, FINALIZER).await?;
            Ok(())
        }
        Step::RemoveFinalizer => Ok(remove_finalizer(&api, class, FINALIZER).await?),
        Step::KeepRevision(revision) => keep_revision(ctx, class, revision).await,
        Step::DropRevision(name) => drop_revision(ctx, desired, name).await,
        Step::CheckCatalogue(project) => match ctx.connections.get(project) {
            Some(Ok(connection)) => check_catalogue(ctx, &connection, class, desired).await,
            _ => Ok(()),
        },
        Step::In(project, step) => match ctx.connections.get(project) {
            Some(Ok(connection)) => {
                Hetzner {
                    ctx,
                    connection: &connection,
                    desired,
                    who: format!("class {}", desired.name),
                }
                .perform(step)
                .await
            }
            _ => Ok(()),
        },
    }
}

/// One of that name that is there already has the same content: it is named after it.
async fn keep_revision(ctx: &Context, class: &AgentClass, revision: &str) -> Result<(), Failure> {
    let namespace = &ctx.settings.namespace;
    let api: Api<ControllerRevision> = Api::namespaced(ctx.clients.write.clone(), namespace);
    let object = revisions::object(class, revision, namespace, revisions::newest(ctx, class));
    let params = PostParams::default();
    let made = call("POST controllerrevisions", api.create(&params, &object)).await;
    match made {
        Err(CallError::Stale { .. }) | Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let done = Housekeeping {
        write: Some(revision.to_owned()),
        drop: vec![],
    };
    ctx.classes.with(&class.name_any(), |memory| {
        memory.did(done, Instant::now());
    });
    Ok(())
}

async fn drop_revision(ctx: &Context, desired: &Desired, name: &str) -> Result<(), Failure> {
    let namespace = &ctx.settings.namespace;
    let api: Api<ControllerRevision> = Api::namespaced(ctx.clients.write.clone(), namespace);
    let params = DeleteParams::default();
    let gone = call("DELETE controllerrevisions", api.delete(name, &params)).await;
    match gone {
        Err(CallError::Gone { .. }) | Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let done = Housekeeping {
        write: None,
        drop: vec![name.to_owned()],
    };
    ctx.classes.with(&desired.name, |memory| {
        memory.did(done, Instant::now());
    });
    Ok(())
}

async fn check_catalogue(
    ctx: &Context,
    connection: &Connection,
    class: &AgentClass,
    desired: &Desired,
) -> Result<(), Failure> {
    let (client, budget) = (&connection.client, &connection.budget);
    let asked = connection
        .catalogue
        .offer(client, budget, &desired.image, Instant::now());
    let offer = crash_point::around("hetzner", "GET catalogue", asked)
        .await
        .map_err(|error| match error {
            CatalogueError::Budget(at) => Failure::Budget(at),
            CatalogueError::Api(error) => Failure::Hetzner(error),
        })?;
    let outcome = rendered::check(desired, &offer, Timestamp::now());
    ctx.classes.with(&desired.name, |memory| {
        memory.checked = Some((class.metadata.generation, Instant::now(), outcome));
    });
    Ok(())
}

/// Steps at Hetzner, in one project.
struct Hetzner<'a> {
    ctx: &'a Context,
    connection: &'a Connection,
    desired: &'a Desired,
    /// Its place in the lanes of the budget.
    who: String,
}

impl Hetzner<'_> {
    async fn perform(&self, step: &ProjectStep) -> Result<(), Failure> {
        let outcome = match step {
            ProjectStep::ReadFirewalls => {
                return self
                    .connection
                    .list_firewalls(self.fleet(), self.ctx.settings.project_period)
                    .await;
            }
            ProjectStep::FindNetwork => return self.find_network().await,
            ProjectStep::CreateFirewall => self.create().await,
            ProjectStep::LabelFirewall(id) => self.label((*id).into()).await,
            ProjectStep::SetRules(id) => self.set_rules((*id).into()).await,
            ProjectStep::DeleteFirewall(id) => self.delete((*id).into()).await,
            ProjectStep::Guard { firewall, servers } => {
                self.guard((*firewall).into(), servers).await
            }
            ProjectStep::Unguard { firewall, servers } => {
                self.unguard((*firewall).into(), servers).await
            }
        };
        if let Err(failure) = &outcome
            && doubts_list(failure)
        {
            self.connection.firewalls.forget();
        }
        outcome
    }

    fn fleet(&self) -> &str {
        self.ctx.keyring.current().fleet()
    }

    fn asked(&self, lane: Lane, route: &'static str) -> Asked<'_> {
        Asked {
            lane,
            who: &self.who,
            route,
        }
    }

    fn change(&self, id: FirewallId, change: impl FnOnce(&mut Firewall)) {
        self.connection.firewalls.change(|all| {
            if let Some(firewall) = all.iter_mut().find(|firewall| firewall.id == id) {
                change(firewall);
            }
        });
    }

    async fn create(&self) -> Result<(), Failure> {
        let request = CreateFirewall {
            name: naming::firewall_name(self.fleet(), &self.desired.name),
            labels: firewall_labels(self.fleet(), &self.desired.name),
            rules: self.desired.rules.clone(),
        };
        let asked = self.asked(Lane::Other, "POST /firewalls");
        let made = self
            .connection
            .mutate(&self.ctx.leadership, asked, async |client, permit| {
                client.create_firewall(permit, &request).await
            })
            .await?;
        self.connection.firewalls.change(|all| all.push(made));
        Ok(())
    }

    async fn label(&self, id: FirewallId) -> Result<(), Failure> {
        let labels = firewall_labels(self.fleet(), &self.desired.name);
        let asked = self.asked(Lane::Other, "PUT /firewalls/{id}");
        self.connection
            .mutate(&self.ctx.leadership, asked, async |client, permit| {
                client.update_firewall_labels(permit, id, &labels).await
            })
            .await?;
        self.change(id, |firewall| firewall.labels = labels);
        Ok(())
    }

    async fn set_rules(&self, id: FirewallId) -> Result<(), Failure> {
        let rules = &self.desired.rules;
        let asked = self.asked(Lane::Other, "POST /firewalls/{id}/actions/set_rules");
        self.connection
            .mutate(&self.ctx.leadership, asked, async |client, permit| {
                client.set_firewall_rules(permit, id, rules).await
            })
            .await?;
        self.change(id, |firewall| firewall.rules.clone_from(rules));
        Ok(())
    }

    async fn delete(&self, id: FirewallId) -> Result<(), Failure> {
        let asked = self.asked(Lane::Delete, "DELETE /firewalls/{id}");
        match self
            .connection
            .mutate(&self.ctx.leadership, asked, async |client, permit| {
                client.delete_firewall(permit, id).await
            })
            .await
        {
            Err(failure) if !failure.not_found() => return Err(failure),
            _ => self
                .connection
                .firewalls
                .change(|all| all.retain(|firewall| firewall.id != id)),
        }
        Ok(())
    }

    async fn guard(&self, id: FirewallId, servers: &[i64]) -> Result<(), Failure> {
        let resources = resources(servers);
        let asked = self.asked(
            Lane::Rollout,
            "POST /firewalls/{id}/actions/apply_to_resources",
        );
        match self
            .connection
            .mutate(&self.ctx.leadership, asked, async |client, permit| {
                client.apply_firewall(permit, id, &resources).await
            })
            .await
        {
            Err(Failure::Hetzner(error)) if *error.code() == ErrorCode::FirewallAlreadyApplied => {}
            outcome => {
                outcome?;
            }
        }
        self.ctx.classes.with(&self.desired.name, |memory| {
            memory
                .guarded
                .extend(servers.iter().map(|server| (*server, Instant::now())));
        });
        Ok(())
    }

    async fn unguard(&self, id: FirewallId, servers: &[i64]) -> Result<(), Failure> {
        let resources = resources(servers);
        let asked = self.asked(
            Lane::Rollout,
            "POST /firewalls/{id}/actions/remove_from_resources",
        );
        self.connection
            .mutate(&self.ctx.leadership, asked, async |client, permit| {
                client.remove_firewall(permit, id, &resources).await
            })
            .await?;
        self.change(id, |firewall| {
            firewall
                .applied_to
                .retain(|applied| !resources.contains(applied));
            self.ctx
                .wake
                .class(&labels::text(&firewall.labels, labels::CLASS));
        });
        Ok(())
    }

    async fn find_network(&self) -> Result<(), Failure> {
        let Some(name) = &self.desired.network else {
            return Ok(());
        };
        let asked = self.asked(Lane::Other, "GET /networks");
        let found = self
            .connection
            .read(asked, async |client, permit| {
                client.network_by_name(permit, name).await
            })
            .await?;
        if let Some(id) = found {
            self.connection.update(|standing| {
                standing.networks.insert(name.clone(), id);
            });
        }
        let key = (self.connection.project.clone(), name.clone());
        self.ctx.classes.with(&self.desired.name, |memory| {
            memory.networks.insert(key, (Instant::now(), found))
        });
        Ok(())
    }
}

fn resources(servers: &[i64]) -> Vec<FirewallResource> {
    let of = |server: &i64| FirewallResource::of_server(ServerId::from(*server));
    servers.iter().map(of).collect()
}

/// Whether a new list is needed before the next step: it may be done in spite of the failure, or the world is not as the list says.
fn doubts_list(failure: &Failure) -> bool {
    let unknown = matches!(failure, Failure::Hetzner(error) if error.outcome() == Outcome::Unknown);
    unknown || failure.name_taken() || failure.not_found() || failure.in_use()
}
