//! An agent, and its revisions: hashes by which it is known whether a server is as its class and its instance describe it.

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::Want;
use crate::{
    api::{
        AgentClass, AgentClassSpec, AgentSpec, Bootstrap, Disk, Health, Lifecycle, Override,
        Overrides,
    },
    hetzner::Place,
};

/// An agent as its class and its instance together describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// Name of the class.
    pub class: String,
    /// Projects in order of preference.
    pub projects: Vec<String>,
    /// Server types in locations, in order of preference.
    pub places: Vec<Place>,
    /// What only a new server can take up.
    pub boot: Boot,
    /// What runs on the server.
    pub spec: AgentSpec,
    /// Labels of the admin's own.
    pub labels: BTreeMap<String, String>,
    /// How it is found out whether the agent serves.
    pub health: Health,
    /// Patience, and what the disk is worth.
    pub lifecycle: Lifecycle,
    /// Hash of [`Boot`].
    pub boot_revision: String,
    /// Hash of what the guest applies in place.
    pub config_revision: String,
    /// Hash of which class and which instance this is made of, by their generations.
    pub declared: String,
}

/// What only a new server can take up; its hash is the boot revision.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Boot {
    /// Image name or snapshot id.
    pub image: String,
    /// The agent's user.
    pub user: String,
    /// Whether it may become root.
    pub sudo: bool,
    /// Size of the swap file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<String>,
    /// Time zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Raw cloud-config.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<String>,
    /// Name of a Hetzner network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Public IPv4.
    pub ipv4: bool,
    /// Public IPv6.
    pub ipv6: bool,
    /// How the host key is learnt.
    pub bootstrap: Bootstrap,
}

/// The class does not permit an override.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "AgentClass {class} does not allow overrides.{field}; its admin can add {allowed} to spec.allowedOverrides, or leave the override out"
)]
pub struct NotAllowed {
    class: String,
    field: &'static str,
    allowed: &'static str,
}

impl Agent {
    /// Puts a class and an instance together.
    ///
    /// # Errors
    /// When the instance overrides what the class does not allow.
    pub fn of(class: &AgentClass, want: &Want) -> Result<Self, NotAllowed> {
        refuse_overrides(class, &want.overrides)?;
        let spec = effective_spec(&class.spec, want);
        let boot = Boot::of(&class.spec, &spec);
        let (boot_revision, config_revision) = (revision(&boot), config_revision(&spec));
        let of = &class.metadata;
        let declared = revision(&(&of.name, &of.uid, of.generation, want.generation));
        Ok(Self {
            class: class.metadata.name.clone().unwrap_or_default(),
            projects: class.spec.projects.clone(),
            places: places(&class.spec, &want.overrides),
            boot,
            spec,
            labels: class.spec.labels.clone(),
            health: class.spec.health.clone(),
            lifecycle: class.spec.lifecycle.clone(),
            boot_revision,
            config_revision,
            declared,
        })
    }

    /// The server types that are listed for a location of a project, in their order; none: the one or the other is not listed itself.
    pub fn types_at(&self, project: &str, location: &str) -> Vec<&str> {
        let here = self.places.iter().filter(|place| {
            place.location == location && self.projects.iter().any(|listed| listed == project)
        });
        here.map(|place| place.server_type.as_str()).collect()
    }

    /// What attempts to create a server are counted for: what is declared, its secrets by their tag, and the last words to try again, on the
    /// instance and on its class.
    pub fn basis(&self, secrets_tag: &str, retried: &[Option<&str>; 2]) -> String {
        revision(&(&self.declared, secrets_tag, retried))
    }

    /// Hash of both revisions and of how it is probed; of an agent that asks for nothing of its own, the revision of its class.
    pub fn class_revision(&self) -> String {
        let (boot, config) = (&self.boot_revision, &self.config_revision);
        if self.health == Health::default() {
            revision(&(boot, config))
        } else {
            revision(&(boot, config, &self.health))
        }
    }

    /// Whether anything of a Secret is given to it.
    pub fn asks_for_secrets(&self) -> bool {
        !self.spec.secret_keys.is_empty() || !self.spec.secret_files.is_empty()
    }

    /// What the server's disk is worth.
    pub fn disk(&self) -> Disk {
        self.lifecycle.disk
    }
}

impl Boot {
    fn of(class: &AgentClassSpec, spec: &AgentSpec) -> Self {
        Self {
            image: class.image.clone(),
            user: spec.user.clone(),
            sudo: spec.sudo,
            swap: spec.swap.clone(),
            time_zone: spec.time_zone.clone(),
            cloud_init: spec.cloud_init.clone(),
            network: class.network.clone(),
            ipv4: class.ipv4,
            ipv6: class.ipv6,
            bootstrap: class.bootstrap,
        }
    }
}

fn refuse_overrides(class: &AgentClass, overrides: &Overrides) -> Result<(), NotAllowed> {
    let Overrides {
        server_types,
        locations,
        source_ref,
    } = overrides;
    let asked = [
        (
            server_types.is_some(),
            Override::ServerTypes,
            "serverTypes",
            "ServerTypes",
        ),
        (
            locations.is_some(),
            Override::Locations,
            "locations",
            "Locations",
        ),
        (
            source_ref.is_some(),
            Override::SourceRef,
            "sourceRef",
            "SourceRef",
        ),
    ];
    let refused = asked
        .into_iter()
        .find(|(asked, kind, ..)| *asked && !class.spec.allowed_overrides.contains(kind));
    match refused {
        None => Ok(()),
        Some((_, _, field, allowed)) => Err(NotAllowed {
            class: class.metadata.name.clone().unwrap_or_default(),
            field,
            allowed,
        }),
    }
}

fn effective_spec(class: &AgentClassSpec, want: &Want) -> AgentSpec {
    let mut spec = class.agent.clone();
    spec.environment.extend(want.environment.clone());
    if let (Some(source), Some(reference)) = (&mut spec.source, &want.overrides.source_ref) {
        source.reference.clone_from(reference);
    }
    spec
}

/// All locations of a type before the next type.
fn places(class: &AgentClassSpec, overrides: &Overrides) -> Vec<Place> {
    let types = overrides
        .server_types
        .as_ref()
        .unwrap_or(&class.server_types);
    let locations = overrides.locations.as_ref().unwrap_or(&class.locations);
    types
        .iter()
        .flat_map(|server_type| {
            locations.iter().map(|location| Place {
                server_type: server_type.clone(),
                location: location.clone(),
            })
        })
        .collect()
}

/// Hash of what the guest applies in place. What belongs to the boot revision, and what only the operator checks, stays out of it: for other
/// probes nothing is given to a guest.
fn config_revision(spec: &AgentSpec) -> String {
    let AgentSpec {
        packages,
        source,
        install,
        update,
        files,
        environment,
        service,
        secret_files,
        user: _,
        sudo: _,
        swap: _,
        time_zone: _,
        cloud_init: _,
        secret_keys: _,
    } = spec;
    revision(&(
        packages,
        source,
        install,
        update,
        files,
        environment,
        service,
        secret_files,
    ))
}

/// 16 hex digits of SHA-256 over the JSON form; unset fields leave no trace in it, so a newer operator finds the same revision.
fn revision(of: &impl Serialize) -> String {
    let json = serde_json::to_vec(of).unwrap_or_default();
    Sha256::digest(&json)
        .iter()
        .take(8)
        .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{agent_instance::desired::Desired, api::AgentInstance};

    /// An upgrade of the operator must change no server: a field that is added later leaves no trace while it is unset.
    #[test]
    fn a_class_of_an_earlier_release_keeps_its_revisions() {
        let class: AgentClass = serde_json::from_value(serde_json::json!({
            "apiVersion": "agentfleet.dev/v1alpha1", "kind": "AgentClass", "metadata": {"name": "small"},
            "spec": {
                "projects": ["one"], "serverTypes": ["cx23"], "locations": ["nbg1"], "image": "debian-13",
                "firewall": {"sshFrom": ["10.0.0.0/8"]},
                "agent": {
                    "packages": ["git"],
                    "service": {"execStart": ["/bin/agent"], "restartSec": "5s", "privateTmp": true},
                    "secretFiles": [{"path": "/home/agent/.env", "env": {}}],
                }
            }
        }))
        .unwrap();
        let instance = AgentInstance::new(
            "a",
            serde_json::from_value(serde_json::json!({"className": "small"})).unwrap(),
        );
        let Desired::Present(_, want) = Desired::parse(&instance) else {
            unreachable!("no deletion timestamp")
        };
        let agent = Agent::of(&class, &want).unwrap();
        let revisions = (agent.boot_revision.as_str(), agent.config_revision.as_str());
        assert_eq!(revisions, ("2a23c6d6b24e2ed8", "bab14e07c345ab61"));
        assert_eq!(agent.class_revision(), "dcbb3108968228a2");

        // Another probe is another revision of the class, of which no guest hears.
        let health = serde_json::json!({"exec": {"command": "true"}, "interval": "90s"});
        let mut probed = class.clone();
        probed.spec.health = serde_json::from_value(health).unwrap();
        let probed = Agent::of(&probed, &want).unwrap();
        assert_eq!(probed.config_revision, agent.config_revision);
        assert_eq!(probed.class_revision(), "0141586ed236debf");
    }
}
