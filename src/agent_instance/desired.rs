//! What an instance should be: its own few lines, and with those of its class put together the [`Agent`].
//!
//! Pure. Deletion parses identity only, so that a broken spec or class can never block it.

use std::collections::BTreeMap;

use kube::ResourceExt as _;

use crate::api::{
    ADOPT_ANNOTATION, AgentInstance, DeletionPolicy, MAINTENANCE_ANNOTATION, Overrides,
    RECREATE_ANNOTATION, RESTART_ANNOTATION, RETRY_ANNOTATION,
};

mod agent;

pub use agent::{Agent, Boot, NotAllowed};

/// Who an instance is, whatever its spec says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID: a re-created object of the same name has another.
    pub uid: String,
}

/// What is wanted of an instance.
#[derive(Clone, Debug, PartialEq)]
pub enum Desired {
    /// The object is being deleted: nothing of it shall be left.
    Absent(Identity),
    /// The object is being deleted: its agent shall be silent and its server stay.
    Retained(Identity),
    /// A server that runs the agent.
    Present(Identity, Box<Want>),
}

/// The spec of an instance, before its class is looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Want {
    /// Name of the class.
    pub class: String,
    /// Name of the Secret, if any.
    pub secret: Option<String>,
    /// Environment of the instance itself.
    pub environment: BTreeMap<String, String>,
    /// Values that replace those of the class.
    pub overrides: Overrides,
    /// The server that a person asked to take up.
    pub adopt: Option<i64>,
    /// What a person wrote to have its server replaced.
    pub recreate: Option<String>,
    /// Whether it shall not run for now.
    pub suspend: bool,
    /// The generation of the spec.
    pub generation: Option<i64>,
    /// The last order to go on with what stands still.
    pub retry: Option<String>,
    /// The last order to start the agent's unit again.
    pub restart: Option<String>,
    /// Whether somebody works on the server, so that it is left alone.
    pub maintenance: bool,
}

impl Desired {
    /// Reads an instance.
    pub fn parse(instance: &AgentInstance) -> Self {
        let identity = Identity::of(instance);
        if instance.metadata.deletion_timestamp.is_some() {
            return match instance.spec.deletion_policy {
                DeletionPolicy::Delete => Self::Absent(identity),
                DeletionPolicy::Retain => Self::Retained(identity),
            };
        }
        let spec = instance.spec.clone();
        let want = Want {
            class: spec.class_name,
            secret: spec.secret_name,
            environment: spec.environment,
            overrides: spec.overrides.unwrap_or_default(),
            adopt: adopted(instance),
            recreate: word(instance, RECREATE_ANNOTATION),
            suspend: spec.suspend,
            generation: instance.metadata.generation,
            retry: word(instance, RETRY_ANNOTATION),
            restart: word(instance, RESTART_ANNOTATION),
            maintenance: is_maintained(instance),
        };
        Self::Present(identity, Box::new(want))
    }

    /// What is wanted of it, unless it shall go.
    pub fn want(&self) -> Option<&Want> {
        match self {
            Self::Absent(_) | Self::Retained(_) => None,
            Self::Present(_, want) => Some(want),
        }
    }

    /// Who the instance is.
    pub fn identity(&self) -> &Identity {
        match self {
            Self::Absent(identity) | Self::Retained(identity) | Self::Present(identity, _) => {
                identity
            }
        }
    }
}

impl Identity {
    /// The identity of an object that the API server holds.
    pub fn of(instance: &AgentInstance) -> Self {
        let meta = &instance.metadata;
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }

    /// The name of the server of one incarnation of this instance.
    pub fn server_name(&self, fleet: &str, incarnation: u32) -> String {
        crate::naming::server_name(fleet, &self.namespace, &self.name, incarnation)
    }
}

/// The server id in the adopt annotation; anything else there is as good as none, and the condition that asks for it shows the right one.
fn adopted(instance: &AgentInstance) -> Option<i64> {
    instance.annotations().get(ADOPT_ANNOTATION)?.parse().ok()
}

/// How much of an annotation's value is kept to know it again, in bytes.
const WORD: usize = 128;

/// The value of an annotation that is an order, if it says anything.
fn word(instance: &AgentInstance, annotation: &str) -> Option<String> {
    let word = instance.annotations().get(annotation)?;
    (!word.is_empty()).then(|| word[..word.floor_char_boundary(WORD)].to_owned())
}

fn is_maintained(instance: &AgentInstance) -> bool {
    let word = instance.annotations().get(MAINTENANCE_ANNOTATION);
    word.is_some_and(|word| !word.is_empty())
}
