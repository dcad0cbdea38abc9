//! `agentfleet render`: the user-data of an instance, offline.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::Value;

use crate::{
    agent_instance::{
        self, Birth,
        desired::{Agent, Desired, NotAllowed},
    },
    api::{AgentClass, AgentInstance, Bootstrap, ProvisioningRecord},
    guest::program::{NotAProgram, Program},
    keys::{KeyError, MasterKey},
};

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The file is not YAML, or an object in it does not have the form of its kind.
    #[error("the file cannot be read as YAML documents of AgentClass and AgentInstance: {0}")]
    Yaml(String),
    /// One of the two objects is not there.
    #[error("the file holds no {0}")]
    Missing(&'static str),
    /// The instance overrides what the class does not allow.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// The class cannot be rendered.
    #[error("{0}")]
    Refused(String),
    /// The stand-in for the master key is not one.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The guest program is not one.
    #[error(transparent)]
    Program(#[from] NotAProgram),
}

/// Renders the user-data of the first server of the instance in a text with both objects.
///
/// # Errors
/// When the text does not hold them, or they do not fit one another.
pub fn user_data(text: &str) -> Result<String, RenderError> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| RenderError::Yaml(error.to_string()))?;
    let class: AgentClass = object(&documents, "AgentClass")?;
    let instance: AgentInstance = object(&documents, "AgentInstance")?;
    let Desired::Present(identity, want) = Desired::parse(&instance) else {
        return Err(RenderError::Missing("AgentInstance"));
    };
    let agent = Agent::of(&class, &want)?;
    let record = ProvisioningRecord {
        incarnation: 1,
        server_name: identity.server_name("fleet", 1),
        project: String::new(),
        server_type: String::new(),
        location: String::new(),
        at: MicroTime(jiff::Timestamp::UNIX_EPOCH),
    };
    let master = MasterKey::new("fleet", &[0; 32])?;
    let program = Program::new(include_str!("guest/program.py"))?;
    let phone_home = (agent.boot.bootstrap == Bootstrap::PhoneHome)
        .then(|| "https://operator.example/token".to_owned().into());
    let birth = Birth {
        master: &master,
        program: &program,
        admin_keys: &[],
        phone_home,
    };
    let rendered = agent_instance::user_data(&identity, &agent, &record, &birth);
    Ok(rendered
        .map_err(|setback| RenderError::Refused(setback.message))?
        .shown()
        .to_owned())
}

fn object<K: serde::de::DeserializeOwned>(
    documents: &[Value],
    kind: &'static str,
) -> Result<K, RenderError> {
    let found = documents
        .iter()
        .find(|document| document["kind"] == kind)
        .ok_or(RenderError::Missing(kind))?;
    serde_json::from_value(found.clone()).map_err(|error| RenderError::Yaml(error.to_string()))
}
