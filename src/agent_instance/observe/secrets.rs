//! The Secret of an instance, measured against what its class asks for.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _, runtime::reflector::ObjectRef};

use super::{
    super::{
        description,
        desired::{Agent, Identity, Want},
        world::SecretsView,
    },
    Look,
};
use crate::{
    context::Context,
    keys::ServerKeys,
    kube_ext::{CallError, call, error_chain},
    labels,
    naming::instance_hash,
    secret_files::SecretData,
};

impl Look<'_> {
    /// Measures the Secret against the class; one that was measured before is not read again.
    pub(super) async fn secrets(
        &self,
        agent: &Agent,
        want: &Want,
    ) -> Result<SecretsView, CallError> {
        if !agent.asks_for_secrets() {
            return Ok(self.measured(agent, "", SecretData::default()));
        }
        let Some(name) = &want.secret else {
            let message = format!(
                "AgentClass {} asks for a Secret: set spec.secretName",
                agent.class
            );
            return Ok(SecretsView::Unmet("SecretNotNamed", message));
        };
        let customer = self.instance.labels().get(labels::CUSTOMER);
        let known = self
            .ctx
            .stores
            .secrets
            .get(&ObjectRef::new(name).within(&self.identity.namespace));
        let version = known.and_then(|secret| secret.resource_version());
        let measure = format!(
            "{name} {version:?} {customer:?} {} {:?}",
            agent.config_revision, agent.spec.secret_keys
        );
        let remembered = self.ctx.memories.with(&self.identity.uid, |memory| {
            let mut measured = memory.secrets.iter();
            let found = measured.find(|(by, _)| *by == measure);
            found.map(|(_, view)| view.clone())
        });
        if let Some(view) = remembered {
            return Ok(view);
        }
        let view = match read_secret(self.ctx, &self.identity.namespace, name).await? {
            None => SecretsView::Unmet(
                "SecretMissing",
                format!(
                    "there is no Secret {name} in namespace {}",
                    self.identity.namespace
                ),
            ),
            Some(found) if !found.is_of(customer) => {
                SecretsView::Unmet(SECRET_OF_ANOTHER, of_another(name, customer))
            }
            Some(found) => self.measured(agent, name, found.data),
        };
        self.ctx.memories.with(&self.identity.uid, |memory| {
            memory.secrets.truncate(1);
            memory.secrets.push_front((measure, view.clone()));
        });
        Ok(view)
    }

    /// What a Secret is worth; one that may be given to the agent is remembered, to be taken out of what that says.
    fn measured(&self, agent: &Agent, name: &str, secret: SecretData) -> SecretsView {
        let keys = instance_keys(self.ctx, self.identity);
        let view = measure_secret(agent, name, &secret, &keys);
        if let SecretsView::Met { tag } = &view {
            self.ctx.memories.with(&self.identity.uid, |memory| {
                memory.known_secrets.learn(tag, secret);
            });
        }
        view
    }
}

/// The keys that tag an instance's secret files, on whichever of its servers.
pub fn instance_keys(ctx: &Context, identity: &Identity) -> ServerKeys {
    let master = ctx.keyring.current();
    master.server_keys(&instance_hash(
        master.fleet(),
        &identity.namespace,
        &identity.name,
    ))
}

/// Reason of a Secret that carries another customer, or none.
pub const SECRET_OF_ANOTHER: &str = "SecretOfAnother";

/// What is wrong with a Secret that is not the customer's whom the instance is labelled with, and what to do.
pub fn of_another(name: &str, customer: Option<&String>) -> String {
    let customer = customer.map_or("", String::as_str);
    format!(
        "Secret {name} does not carry the label {}={customer}, which this instance has: nothing of it is given to the agent",
        labels::CUSTOMER
    )
}

/// A Secret, and whose it is.
#[derive(Debug, Default)]
pub struct FoundSecret {
    /// Its values.
    pub data: SecretData,
    /// The customer that it carries.
    pub customer: Option<String>,
}

impl FoundSecret {
    /// Whether it may be given to an instance of that customer; one that is of no customer takes any.
    pub fn is_of(&self, customer: Option<&String>) -> bool {
        customer.is_none_or(|customer| self.customer.as_ref() == Some(customer))
    }
}

/// Reads a Secret; none if there is none.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn read_secret(
    ctx: &Context,
    namespace: &str,
    name: &str,
) -> Result<Option<FoundSecret>, CallError> {
    let secrets: Api<Secret> = Api::namespaced(ctx.clients.read.clone(), namespace);
    match call("GET secrets", secrets.get(name)).await {
        Ok(secret) => Ok(Some(FoundSecret {
            customer: secret.labels().get(labels::CUSTOMER).cloned(),
            data: secret
                .data
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.0.into()))
                .collect(),
        })),
        Err(CallError::Gone { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn measure_secret(
    agent: &Agent,
    name: &str,
    secret: &SecretData,
    keys: &ServerKeys,
) -> SecretsView {
    let missing: Vec<String> = agent
        .spec
        .secret_keys
        .iter()
        .filter(|key| key.required && !secret.contains_key(&key.name))
        .map(|key| match &key.description {
            Some(description) => format!("{} ({description})", key.name),
            None => key.name.clone(),
        })
        .collect();
    if !missing.is_empty() {
        return SecretsView::Unmet(
            "SecretKeyMissing",
            format!("Secret {name} lacks {}", missing.join(", ")),
        );
    }
    match description::secret_files(&agent.spec, secret, keys) {
        Ok((_, tag)) => SecretsView::Met { tag },
        Err(unmade) => SecretsView::Unmet(
            "SecretUnusable",
            format!("Secret {name}: {}", error_chain(&unmade)),
        ),
    }
}
