//! Carries out the steps of a sweep: asks guests for their past, and deletes.
//!
//! A deletion begins with two questions that no cache answers: to the API server, whether anybody of that name exists, and to Hetzner, whether the
//! thing is still what it was. Whatever fails here is left to the next sweep.

use std::{sync::Arc, time::Instant};

use kube::{Api, api::ListParams};

use super::{
    finding::{Finding, Reason},
    past::ask_all,
    plan::{Plan, Step, Target, is_still},
    world::{Claim, ServerView, What, World},
};
use crate::{
    api::{AgentClass, AgentInstance},
    context::Context,
    hetzner::{FirewallId, Lane, ServerId},
    hetzner_project::{
        connection::Connection,
        request::{Asked, Failure},
    },
    inventory::Key,
    kube_ext::{CallError, call, error_chain},
    labels,
};

/// Asks the guests that a plan wants to be asked; what they say goes into the picture.
pub async fn ask(ctx: &Context, world: &mut World, steps: &[Step]) {
    let asked = |project: &str, id: i64| {
        steps.iter().any(|step| {
            matches!(step, Step::Ask(target) if target.id == id && target.project == project)
        })
    };
    let servers = world.servers_mut(asked);
    ask_all(&ctx.keyring, ctx.settings.guest_port, servers).await;
}

/// Deletes what a plan says, one after another; answers what is gone.
pub async fn delete_all(ctx: &Context, world: &World, plan: &Plan) -> Vec<Target> {
    let mut gone = vec![];
    for step in &plan.steps {
        let Step::Delete(target, reason) = step else {
            continue;
        };
        let owner = plan.findings.iter().find(|finding| is_of(finding, target));
        let (owner, reason) = (owner.map_or("", |found| &found.owner), *reason);
        match delete(ctx, world, target, reason).await {
            Ok(true) => {
                tracing::info!(
                    project = target.project,
                    kind = target.kind.word(),
                    id = target.id,
                    owner,
                    reason = reason.as_str(),
                    "zombie deleted"
                );
                ctx.metrics.swept(target.kind, reason);
                gone.push(target.clone());
            }
            Ok(false) => tracing::info!(
                project = target.project,
                kind = target.kind.word(),
                id = target.id,
                owner,
                reason = reason.as_str(),
                "a second look found no zombie"
            ),
            Err(failure) => tracing::warn!(
                project = target.project,
                kind = target.kind.word(),
                id = target.id,
                owner,
                error = error_chain(&failure),
                "zombie not deleted, the next sweep tries again"
            ),
        }
    }
    gone
}

/// Whether a finding is about a thing.
pub fn is_of(finding: &Finding, target: &Target) -> bool {
    finding.id == target.id && finding.kind == target.kind && finding.project == target.project
}

async fn delete(
    ctx: &Context,
    world: &World,
    target: &Target,
    reason: Reason,
) -> Result<bool, Failure> {
    let Some(Ok(connection)) = ctx.connections.get(&target.project) else {
        return Ok(false);
    };
    if connection.standing().refused.is_some() {
        return Ok(false);
    }
    let thing = world
        .projects
        .iter()
        .filter(|project| project.name == target.project)
        .flat_map(|project| &project.things)
        .find(|thing| thing.id == target.id && thing.kind() == target.kind);
    let step = Deletion {
        ctx,
        connection: &connection,
        id: target.id,
    };
    match thing.map(|thing| &thing.what) {
        Some(What::Server(server)) => match &server.owner {
            Some(owner) => step.server(owner, reason).await,
            None => Ok(false),
        },
        Some(What::Firewall {
            class: Some(class), ..
        }) => step.firewall(class).await,
        _ => Ok(false),
    }
}

/// One deletion.
struct Deletion<'a> {
    ctx: &'a Context,
    connection: &'a Arc<Connection>,
    id: i64,
}

impl Deletion<'_> {
    async fn server(&self, owner: &Key, reason: Reason) -> Result<bool, Failure> {
        let id = ServerId::from(self.id);
        let read = self
            .connection
            .read(asked("GET /servers/{id}"), async |client, permit| {
                client.get_server(permit, id).await
            });
        let server = match read.await {
            Ok(server) => server,
            Err(failure) if failure.not_found() => {
                self.connection.inventory.record_gone(id, Instant::now());
                return Ok(true);
            }
            Err(failure) => return Err(failure),
        };
        let fleet = self.ctx.keyring.fleet();
        let ours = labels::text(&server.labels, labels::FLEET) == fleet;
        let view = ServerView::of(&server, fleet, true);
        let claim = self.claim(owner).await?;
        if !ours || !is_still(reason, self.id, &view, owner, claim.as_ref()) {
            return Ok(false);
        }
        let deletion = self.connection.inventory.begin_delete(id);
        let deleted = self.connection.mutate(
            &self.ctx.leadership,
            asked("DELETE /servers/{id}"),
            async |client, permit| client.delete_server(permit, id).await,
        );
        match deleted.await {
            Ok(_) => deletion.accepted(Instant::now()),
            Err(failure) if failure.not_found() => deletion.not_found(Instant::now()),
            Err(failure) => return Err(failure),
        }
        self.connection.inventory.poke();
        Ok(true)
    }

    /// The instance of a name, as the API server itself says. A list, since it fails where a GET would say the same of an unknown kind as of an
    /// unknown name.
    async fn claim(&self, owner: &Key) -> Result<Option<Claim>, CallError> {
        let instances: Api<AgentInstance> =
            Api::namespaced(self.ctx.clients.read.clone(), &owner.namespace);
        let named = ListParams::default().fields(&format!("metadata.name={}", owner.name));
        let found = call("LIST agentinstances", instances.list(&named)).await?;
        Ok(found.items.first().map(Claim::of))
    }

    async fn firewall(&self, class: &str) -> Result<bool, Failure> {
        let id = FirewallId::from(self.id);
        let read = self
            .connection
            .read(asked("GET /firewalls/{id}"), async |client, permit| {
                client.get_firewall(permit, id).await
            });
        let firewall = match read.await {
            Ok(firewall) => firewall,
            Err(failure) if failure.not_found() => return Ok(self.forget_firewall(id)),
            Err(failure) => return Err(failure),
        };
        let ours = labels::text(&firewall.labels, labels::FLEET) == self.ctx.keyring.fleet();
        let same = labels::text(&firewall.labels, labels::CLASS) == class;
        let classes: Api<AgentClass> = Api::all(self.ctx.clients.read.clone());
        let named = ListParams::default().fields(&format!("metadata.name={class}"));
        let found = call("LIST agentclasses", classes.list(&named)).await?;
        if !(ours && same && firewall.applied_to.is_empty() && found.items.is_empty()) {
            return Ok(false);
        }
        let deleted = self.connection.mutate(
            &self.ctx.leadership,
            asked("DELETE /firewalls/{id}"),
            async |client, permit| client.delete_firewall(permit, id).await,
        );
        match deleted.await {
            Err(failure) if failure.in_use() => Ok(false),
            Err(failure) if !failure.not_found() => Err(failure),
            _ => Ok(self.forget_firewall(id)),
        }
    }

    fn forget_firewall(&self, id: FirewallId) -> bool {
        self.connection
            .firewalls
            .change(|all| all.retain(|firewall| firewall.id != id));
        true
    }
}

fn asked(route: &'static str) -> Asked<'static> {
    Asked {
        lane: Lane::Zombie,
        who: "sweep",
        route,
    }
}
