//! The fleet's identity: its name and its master key, in one Secret, the only thing that must be backed up.
//!
//! Every login and every proof of every server is derived from this key, so making a new one while servers exist would lock the operator out of
//! all of them. It is made only when no `AgentInstance` in the cluster has ever caused anything; otherwise the operator ends and says what to
//! restore. It is made by a create, never by an update, so two operators that start together end up with the same key.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{Api, DynamicObject, ListParams, ObjectMeta, PostParams};
use kube::core::ApiResource;
use kube::{Client, ResourceExt as _};
use secrecy::SecretSlice;

use crate::api::AgentInstance;
use crate::kube_ext::{CallError, Clients, call};

/// Name of the master key Secret, in the operator's namespace.
pub const MASTER_KEY_SECRET: &str = "agentfleet-master-key";

const KEY: &str = "key";
const FLEET: &str = "fleet";
const KEY_BYTES: usize = 32;
/// Fields of an instance's status that tell of a server, or of one that was about to be.
const TRACES: [&str; 4] = ["incarnation", "server", "provisioning", "voice"];
const PAGE: u32 = 500;

/// What the master key Secret holds.
#[derive(Debug)]
pub struct Fleet {
    /// The fleet's name, as it stands on every server: a valid label value.
    pub name: String,
    /// The master key, at least 32 bytes.
    pub master_key: SecretSlice<u8>,
}

/// Why the operator does not know its fleet; all but [`FleetError::Kubernetes`] need a person.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// There are servers, or were, but the key they were made with is not there.
    #[error(
        "the master key is lost: Secret {namespace}/{MASTER_KEY_SECRET} does not exist, but AgentInstance {instance} has had a server made with \
         it; restore this Secret from its backup, a new key could not open any existing server"
    )]
    MasterKeyLost {
        /// The operator's namespace.
        namespace: String,
        /// One of the instances, as namespace/name.
        instance: String,
    },
    /// The flag names another fleet than the Secret.
    #[error(
        "the fleet is named {given:?} by flag but {stored:?} in Secret {MASTER_KEY_SECRET}; a fleet cannot be renamed, so leave the flag out"
    )]
    OtherFleet {
        /// By flag.
        given: String,
        /// In the Secret.
        stored: String,
    },
    /// The flag's value cannot stand in a label.
    #[error(
        "{0:?} cannot name a fleet: at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"
    )]
    InvalidName(String),
    /// The Secret exists but does not hold what it must.
    #[error(
        "Secret {namespace}/{MASTER_KEY_SECRET} is damaged, restore it from its backup: {mistake}"
    )]
    Malformed {
        /// The operator's namespace.
        namespace: String,
        /// What is wrong, without the value.
        mistake: &'static str,
    },
    /// The API server could not be asked or did not let us.
    #[error("the master key cannot be read or made")]
    Kubernetes(#[from] CallError),
}

/// Loads the master key Secret, or makes it at the very first start.
///
/// `given` is the fleet's name by flag; without it a new fleet is named by the UID of the namespace `kube-system`.
///
/// # Errors
/// See [`FleetError`]; nothing was made then.
pub async fn load_or_create(
    clients: &Clients,
    namespace: &str,
    given: Option<&str>,
) -> Result<Fleet, FleetError> {
    if let Some(name) = given.filter(|name| !is_label_value(name)) {
        return Err(FleetError::InvalidName(name.to_owned()));
    }
    let secret = match load(&clients.read, namespace).await? {
        Some(secret) => secret,
        None => create(clients, namespace, given).await?,
    };
    let fleet = parse(namespace, secret)?;
    match given {
        Some(given) if given != fleet.name => Err(FleetError::OtherFleet {
            given: given.to_owned(),
            stored: fleet.name,
        }),
        _ => Ok(fleet),
    }
}

/// Loads the master key Secret, if there is one.
///
/// # Errors
/// See [`FleetError`].
pub async fn existing(client: &Client, namespace: &str) -> Result<Option<Fleet>, FleetError> {
    let secret = load(client, namespace).await?;
    secret.map(|secret| parse(namespace, secret)).transpose()
}

async fn load(client: &Client, namespace: &str) -> Result<Option<Secret>, CallError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    call("GET secrets", secrets.get_opt(MASTER_KEY_SECRET)).await
}

async fn create(
    clients: &Clients,
    namespace: &str,
    given: Option<&str>,
) -> Result<Secret, FleetError> {
    if let Some(instance) = instance_with_traces(&clients.read).await? {
        return Err(FleetError::MasterKeyLost {
            namespace: namespace.to_owned(),
            instance,
        });
    }
    let name = match given {
        Some(name) => name.to_owned(),
        None => cluster_uid(&clients.read).await?,
    };
    let secrets: Api<Secret> = Api::namespaced(clients.write.clone(), namespace);
    match call(
        "POST secrets",
        secrets.create(&PostParams::default(), &fresh_secret(name)),
    )
    .await
    {
        Ok(secret) => {
            tracing::info!(
                secret = MASTER_KEY_SECRET,
                namespace,
                "master key made: back this Secret up, nothing else can open the servers"
            );
            Ok(secret)
        }
        // Another operator was faster, or our own request before a crash: that key counts.
        Err(stale @ CallError::Stale { .. }) => {
            Ok(load(&clients.write, namespace).await?.ok_or(stale)?)
        }
        Err(error) => Err(error.into()),
    }
}

fn fresh_secret(fleet: String) -> Secret {
    let key: [u8; KEY_BYTES] = rand::random();
    Secret {
        metadata: ObjectMeta {
            name: Some(MASTER_KEY_SECRET.to_owned()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/managed-by".to_owned(),
                "agentfleet".to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(BTreeMap::from([
            (KEY.to_owned(), ByteString(key.to_vec())),
            (FLEET.to_owned(), ByteString(fleet.into_bytes())),
        ])),
        ..Secret::default()
    }
}

/// The first instance, in any namespace, whose status tells of a server; read untyped, so that no odd object hides behind a parse error.
async fn instance_with_traces(client: &Client) -> Result<Option<String>, CallError> {
    let instances: Api<DynamicObject> =
        Api::all_with(client.clone(), &ApiResource::erase::<AgentInstance>(&()));
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = call("GET agentinstances", instances.list(&page)).await?;
        let traced = list.items.iter().find(|instance| {
            TRACES
                .iter()
                .any(|field| !instance.data["status"][field].is_null())
        });
        if let Some(instance) = traced {
            return Ok(Some(format!(
                "{}/{}",
                instance.namespace().unwrap_or_default(),
                instance.name_any()
            )));
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(None),
        }
    }
}

async fn cluster_uid(client: &Client) -> Result<String, CallError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = call("GET namespaces", namespaces.get("kube-system")).await?;
    Ok(namespace.metadata.uid.unwrap_or_default())
}

fn parse(namespace: &str, secret: Secret) -> Result<Fleet, FleetError> {
    let malformed = |mistake| FleetError::Malformed {
        namespace: namespace.to_owned(),
        mistake,
    };
    let mut data = secret.data.unwrap_or_default();
    let key = data
        .remove(KEY)
        .ok_or_else(|| malformed("it has no entry \"key\""))?;
    let name = data
        .remove(FLEET)
        .ok_or_else(|| malformed("it has no entry \"fleet\""))?;
    if key.0.len() < KEY_BYTES {
        return Err(malformed("its entry \"key\" has less than 32 bytes"));
    }
    match String::from_utf8(name.0) {
        Ok(name) if is_label_value(&name) => Ok(Fleet {
            name,
            master_key: key.0.into(),
        }),
        _ => Err(malformed("its entry \"fleet\" is no valid label value")),
    }
}

/// Whether the text can be the value of a label, in Kubernetes as at Hetzner.
fn is_label_value(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63
        && text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
        && text
            .chars()
            .all(|c| alphanumeric(c) || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn mistake(change: impl FnOnce(&mut BTreeMap<String, ByteString>)) -> String {
        let mut secret = fresh_secret("fleet-1".into());
        change(secret.data.as_mut().unwrap());
        parse("agentfleet-system", secret).unwrap_err().to_string()
    }

    #[test]
    fn fresh_secret_is_read_back_as_it_was_made() {
        let secret = fresh_secret("fleet-1".into());
        let key = secret.data.as_ref().unwrap()[KEY].0.clone();

        let fleet = parse("agentfleet-system", secret).unwrap();

        assert_eq!(fleet.name, "fleet-1");
        assert_eq!(fleet.master_key.expose_secret(), key);
        assert_eq!(key.len(), KEY_BYTES);
    }

    #[test]
    fn damaged_secret_is_named_without_its_value() {
        let canary = || ByteString(b"canary".to_vec());
        let missing = mistake(|data| drop(data.remove(KEY)));
        let short = mistake(|data| drop(data.insert(KEY.into(), canary())));
        let nameless = mistake(|data| drop(data.remove(FLEET)));
        let not_utf8 = mistake(|data| drop(data.insert(FLEET.into(), ByteString(vec![0xff]))));

        assert_eq!(
            missing,
            "Secret agentfleet-system/agentfleet-master-key is damaged, restore it from its backup: it has no entry \"key\""
        );
        assert!(
            short.ends_with("its entry \"key\" has less than 32 bytes")
                && !short.contains("canary"),
            "{short}"
        );
        assert!(
            nameless.ends_with("it has no entry \"fleet\""),
            "{nameless}"
        );
        assert!(not_utf8.ends_with("is no valid label value"), "{not_utf8}");
    }

    #[test]
    fn key_is_not_printed_by_debug() {
        let fleet = Fleet {
            name: "fleet-1".into(),
            master_key: b"canary".to_vec().into(),
        };

        assert!(
            !format!("{fleet:?}").contains("canary")
                && !format!("{fleet:?}").contains("99, 97, 110")
        );
    }

    #[test]
    fn fleet_names_are_label_values() {
        for good in [
            "a",
            "fleet-1",
            "0b8b5f9e-6a63-4a6e-8f3c-0a4c0f0e9d11",
            "a.b_c",
        ] {
            assert!(is_label_value(good), "{good}");
        }
        for bad in ["", "-a", "a-", "a b", "a;b", "é", &"a".repeat(64)] {
            assert!(!is_label_value(bad), "{bad}");
        }
    }
}
