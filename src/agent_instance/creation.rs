//! The request for a server: everything about it in one POST, and what its answer means.

use std::time::Instant;

use jiff::Timestamp;

use super::{
    description,
    desired::{Agent, Identity},
    world::SendOutcome,
};
use crate::{
    api::{Bootstrap, ProvisioningRecord},
    bootstrap::phone_home_path,
    cloud_init::{CloudInit, CloudInitError, UserData},
    context::Context,
    error::Setback,
    guest::program::Program,
    hetzner::{
        self, CatalogueError, CreateServer, Labels, Outcome, PublicNetRequest, ResolvedPlace,
    },
    hetzner_project::connection::Connection,
    keys::MasterKey,
    labels,
};
use secrecy::{ExposeSecret as _, SecretString};

/// Puts the request for the server of a record together.
///
/// # Errors
/// When something that it needs is not there, or is not offered by Hetzner; nothing was sent then.
pub async fn request(
    ctx: &Context,
    connection: &Connection,
    identity: &Identity,
    agent: &Agent,
    record: &ProvisioningRecord,
) -> Result<CreateServer, Setback> {
    let place = offered(connection, agent, record).await?;
    let standing = connection.standing();
    let missing = |what: &str| {
        Setback::passing(
            "ProjectNotReady",
            format!("project {} has no {what} yet", connection.project),
        )
    };
    let key = standing.key.ok_or_else(|| missing("SSH key"))?;
    let firewall = *standing
        .firewalls
        .get(&agent.class)
        .ok_or_else(|| missing("firewall for this class"))?;
    let networks = match &agent.boot.network {
        Some(name) => vec![
            *standing
                .networks
                .get(name)
                .ok_or_else(|| missing("such network"))?,
        ],
        None => vec![],
    };
    let master = ctx.keyring.current();
    let phone_home = phone_home_url(ctx, agent, master, &record.server_name)?;
    let birth = Birth {
        master,
        program: &ctx.program,
        admin_keys: &standing.admin_keys,
        phone_home,
    };
    let user_data = user_data(identity, agent, record, &birth)?;
    Ok(CreateServer {
        name: record.server_name.clone(),
        server_type: place.server_type,
        location: place.location,
        image: place.image,
        ssh_keys: vec![key],
        user_data: user_data.sent().clone(),
        labels: server_labels(identity, agent, record, master),
        firewalls: vec![firewall],
        networks,
        public_net: PublicNetRequest {
            enable_ipv4: agent.boot.ipv4,
            enable_ipv6: agent.boot.ipv6,
        },
        start_after_create: true,
    })
}

/// The place of a record, if Hetzner offers it.
async fn offered(
    connection: &Connection,
    agent: &Agent,
    record: &ProvisioningRecord,
) -> Result<ResolvedPlace, Setback> {
    let Connection {
        client,
        budget,
        catalogue,
        ..
    } = connection;
    let restored = record.snapshot.as_ref();
    let image = restored.map_or_else(
        || agent.boot.image.clone(),
        |snapshot| snapshot.id.to_string(),
    );
    let offer = catalogue
        .offer(client, budget, &image, Instant::now())
        .await
        .map_err(unread)?;
    let place = offer.validate(&record.server_type, &record.location, Timestamp::now());
    place.map_err(|problem| {
        Setback::lasting(
            "NotOffered",
            format!("AgentClass {}: {problem}", agent.class),
        )
    })
}

/// What a server is given at its birth, beside its agent.
pub struct Birth<'a> {
    /// The key that all of the server's keys come from.
    pub master: &'a MasterKey,
    /// The guest program.
    pub program: &'a Program,
    /// Public keys of people who may log in in an emergency.
    pub admin_keys: &'a [String],
    /// Where it posts its host key, if it does.
    pub phone_home: Option<SecretString>,
}

/// Renders the user-data of the server of a record.
///
/// # Errors
/// When a value of the class cannot be put into it, or it is too large.
pub fn user_data(
    identity: &Identity,
    agent: &Agent,
    record: &ProvisioningRecord,
    birth: &Birth<'_>,
) -> Result<UserData, Setback> {
    let incarnation = u32::try_from(record.incarnation).unwrap_or_default();
    let description = description::describe(agent, identity, incarnation)
        .map_err(|error| Setback::lasting("ClassInvalid", format!("agent.service: {error}")))?;
    let keys = birth.master.server_keys(&record.server_name);
    let raw = agent
        .boot
        .cloud_init
        .as_deref()
        .map(serde_saphyr::from_str)
        .transpose();
    let raw =
        raw.map_err(|_| Setback::lasting("ClassInvalid", "agent.cloudInit is not a YAML mapping"))?;
    let input = CloudInit {
        fleet: birth.master.fleet(),
        server: &record.server_name,
        boot_proof: &keys.boot_proof,
        login_public_key: &keys.login_public(),
        admin_keys: birth.admin_keys,
        sudo: agent.boot.sudo,
        swap_bytes: agent.boot.swap.as_deref().and_then(bytes),
        time_zone: agent.boot.time_zone.as_deref(),
        description: &description,
        guest_program: birth.program.boot(),
        phone_home: birth.phone_home.as_ref(),
        raw: raw.as_ref(),
    };
    UserData::render(&input).map_err(|error| match error {
        CloudInitError::TooLarge { .. } => Setback::lasting(
            "UserDataTooLarge",
            format!(
                "AgentClass {}: {error}; make its files smaller",
                agent.class
            ),
        ),
        error => Setback::lasting(
            "ClassInvalid",
            format!("AgentClass {}: {error}", agent.class),
        ),
    })
}

/// `2G` and the like in bytes.
fn bytes(size: &str) -> Option<u64> {
    let (number, unit) = size.split_at_checked(size.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    let scale = if unit == "G" { 1 << 30 } else { 1 << 20 };
    number.checked_mul(scale)
}

fn phone_home_url(
    ctx: &Context,
    agent: &Agent,
    master: &MasterKey,
    server: &str,
) -> Result<Option<SecretString>, Setback> {
    match (agent.boot.bootstrap, &ctx.settings.phone_home_url) {
        (Bootstrap::SshProof, _) => Ok(None),
        (Bootstrap::PhoneHome, Some(base)) => {
            let token = master.phone_home_token(server).expose();
            Ok(Some(
                format!(
                    "{}{}",
                    base.trim_end_matches('/'),
                    phone_home_path(token.expose_secret())
                )
                .into(),
            ))
        }
        (Bootstrap::PhoneHome, None) => {
            let message = format!(
                "AgentClass {} has bootstrap PhoneHome, but the operator runs without --phone-home-url",
                agent.class
            );
            Err(Setback::lasting("PhoneHomeNotServed", message))
        }
    }
}

fn server_labels(
    identity: &Identity,
    agent: &Agent,
    record: &ProvisioningRecord,
    master: &MasterKey,
) -> Labels {
    let ours = [
        (labels::FLEET, master.fleet().to_owned()),
        (labels::NAMESPACE, identity.namespace.clone()),
        (labels::NAME, identity.name.clone()),
        (labels::UID, identity.uid.clone()),
        (labels::INCARNATION, record.incarnation.to_string()),
        (labels::BOOT_REVISION, agent.boot_revision.clone()),
        (labels::DISK, agent.disk().as_str().to_owned()),
        (labels::KEY_ID, master.id().to_owned()),
    ];
    let ours = ours.into_iter().map(|(key, value)| (key.to_owned(), value));
    agent.labels.clone().into_iter().chain(ours).collect()
}

/// What it means that the catalogue could not be read.
pub fn unread(error: CatalogueError) -> Setback {
    match error {
        CatalogueError::Budget(retry) => {
            let pause = retry.0.saturating_duration_since(Instant::now());
            Setback::until(
                "RateLimited",
                "waits for its turn to read what Hetzner offers",
                pause,
            )
        }
        CatalogueError::Api(error) => error.into(),
    }
}

/// What a failed POST means for the record that permitted it. A taken name is as good as unknown: a look-up tells by whom.
pub fn outcome(error: &hetzner::Error) -> SendOutcome {
    match (error.outcome(), error.class()) {
        (Outcome::Unknown, _) | (_, hetzner::Class::NameTaken) => SendOutcome::Unknown,
        (_, hetzner::Class::OutOfStock) => SendOutcome::OutOfStock,
        (_, hetzner::Class::BlockedUntilPerson) => SendOutcome::Rejected,
        _ => SendOutcome::Refused,
    }
}
