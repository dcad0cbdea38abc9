//! Takes the picture: the Secret by GET, everything else from stores and from what is remembered.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _, runtime::reflector::ObjectRef};
use secrecy::SecretString;

use super::{
    connection::Connection,
    dependents,
    desired::Desired,
    memory::Memory,
    request::Failure,
    world::{Claim, FirewallView, Seen, Token, World, Zombies},
};
use crate::{
    api::{AgentClass, AgentInstance, FINALIZER, HetznerProject, TokenSecretRef},
    context::Context,
    health::holds,
    hetzner::{Firewall, ServerId},
    inventory::Presence,
    kube_ext::{COUNTS_PERIOD, call, error_chain},
    labels,
};

/// The picture, and what the steps need beside it.
pub struct Observed {
    /// The picture.
    pub world: World,
    /// The connection with the present token.
    pub connection: Option<Arc<Connection>>,
    /// The token, if there is one.
    pub token: Option<SecretString>,
    /// The Secret that holds it.
    pub secret: Option<Secret>,
}

/// Looks at a project.
///
/// # Errors
/// None so far: a Secret that cannot be read is part of the picture.
pub async fn observe(
    ctx: &Context,
    project: &HetznerProject,
    desired: &Desired,
) -> Result<Observed, Failure> {
    let secrets: Api<Secret> = Api::namespaced(ctx.clients.read.clone(), &desired.token.namespace);
    let (secret, unreadable) = match call("GET secrets", secrets.get_opt(&desired.token.name)).await
    {
        Ok(secret) => (secret, None),
        Err(error) => (None, Some(Token::Unreadable(error_chain(&error)))),
    };
    let token = secret
        .as_ref()
        .and_then(|secret| token_in(secret, &desired.token.key));
    let known = ctx.connections.get(&desired.name).and_then(Result::ok);
    let connection =
        known.filter(|known| token.as_ref().is_some_and(|token| known.has_token(token)));
    let instances: Vec<_> = ctx
        .stores
        .instances
        .state()
        .into_iter()
        .filter(|instance| dependents::lives_in(instance, &desired.name))
        .collect();
    let mut world = World {
        finalizer: project
            .finalizers()
            .iter()
            .any(|finalizer| finalizer == FINALIZER),
        status: project.status.clone().unwrap_or_default(),
        token: unreadable
            .unwrap_or_else(|| token_view(ctx, desired, secret.as_ref(), token.as_ref())),
        seen: None,
        instances: instances.len(),
        claims: vec![],
        hold: holds::of_project(ctx, project, Timestamp::now()),
        others: others(ctx, &desired.name),
        holder: ctx.connections.holder().to_owned(),
    };
    if let Some(connection) = &connection {
        let memory = connection.memory();
        world.claims = instances
            .iter()
            .filter_map(|instance| claim(instance, &desired.name, connection, &memory))
            .collect();
        world.seen = Some(seen(ctx, connection, &memory, world.status.servers));
    }
    Ok(Observed {
        world,
        connection,
        token,
        secret,
    })
}

/// What stands under the key, without the line break that editors leave behind.
fn token_in(secret: &Secret, key: &str) -> Option<SecretString> {
    let bytes = &secret.data.as_ref()?.get(key)?.0;
    let text = std::str::from_utf8(bytes).unwrap_or("\u{fffd}").trim();
    (!text.is_empty()).then(|| text.into())
}

fn token_view(
    ctx: &Context,
    desired: &Desired,
    secret: Option<&Secret>,
    token: Option<&SecretString>,
) -> Token {
    use secrecy::ExposeSecret as _;
    let Some(secret) = secret else {
        return Token::SecretMissing;
    };
    let Some(token) = token else {
        return Token::KeyMissing;
    };
    if !token
        .expose_secret()
        .bytes()
        .all(|byte| byte.is_ascii_graphic())
    {
        return Token::Malformed;
    }
    Token::Present {
        held: secret
            .finalizers()
            .iter()
            .any(|finalizer| finalizer == FINALIZER),
        deleting: secret.metadata.deletion_timestamp.is_some(),
        shared_with: ctx
            .stores
            .projects
            .state()
            .iter()
            .find(|other| shares(other, &desired.name, &desired.token))
            .map(|other| other.name_any()),
    }
}

/// Whether a project is another one that keeps the same Secret.
pub fn shares(other: &HetznerProject, name: &str, token: &TokenSecretRef) -> bool {
    let used = &other.spec.token_secret_ref;
    let held = other
        .finalizers()
        .iter()
        .any(|finalizer| finalizer == FINALIZER);
    held && other.name_any() != name
        && (&used.namespace, &used.name) == (&token.namespace, &token.name)
}

fn others(ctx: &Context, name: &str) -> BTreeMap<i64, String> {
    let projects = ctx.stores.projects.state();
    let identified = projects.iter().filter(|other| other.name_any() != name);
    identified
        .filter_map(|other| Some((other.status.as_ref()?.identity?, other.name_any())))
        .collect()
}

fn claim(
    instance: &AgentInstance,
    project: &str,
    connection: &Connection,
    memory: &Memory,
) -> Option<Claim> {
    let server = instance
        .status
        .as_ref()?
        .server
        .as_ref()
        .filter(|server| server.project == project)?;
    let id = ServerId::from(server.id);
    let listed = matches!(
        connection.inventory.presence(id),
        Presence::Listed | Presence::Deleting
    );
    Some(Claim {
        id: server.id,
        listed,
        answered: memory.answered.get(&server.id).copied(),
    })
}

fn seen(ctx: &Context, connection: &Connection, memory: &Memory, told: Option<i64>) -> Seen {
    let (now, period) = (Instant::now(), ctx.settings.project_period);
    let (servers, budget) = (connection.inventory.snapshot(), connection.budget.view(now));
    let fresh = connection.firewalls.get(period).filter(|(_, old)| !old);
    let count = servers.servers().count();
    let counted = memory
        .counted_at
        .filter(|_| told != i64::try_from(count).ok());
    Seen {
        keys: memory.keys.as_ref().map(|(_, keys)| keys.clone()),
        stale: memory
            .keys
            .as_ref()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= period),
        by_id: memory.by_id.clone(),
        key_name: memory.key_name.clone(),
        admin_keys: memory.admin_keys.clone(),
        listed: servers.first_list_done(),
        servers: count,
        counts_wait: counted
            .and_then(|at| COUNTS_PERIOD.checked_sub(now.saturating_duration_since(at))),
        firewalls: fresh.map(|(firewalls, _)| {
            firewalls
                .iter()
                .map(|firewall| firewall_view(ctx, firewall))
                .collect()
        }),
        holds: memory.holds,
        budget: budget.left.zip(budget.limit),
        over_quota: connection
            .stock
            .over_quota_until(now)
            .and_then(|until| Timestamp::now().checked_add(until - now).ok()),
        troubles: memory.troubles.view(now),
        zombies: if ctx.settings.sweep.period.is_zero() {
            Zombies::Off
        } else {
            connection.zombies()
        },
    }
}

fn firewall_view(ctx: &Context, firewall: &Firewall) -> FirewallView {
    let class = labels::text(&firewall.labels, labels::CLASS);
    FirewallView {
        id: firewall.id.number(),
        class_exists: ctx
            .stores
            .classes
            .get(&ObjectRef::<AgentClass>::new(&class))
            .is_some(),
        applied: !firewall.applied_to.is_empty(),
    }
}
