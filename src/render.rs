//! `agentfleet render`: the user-data of an instance, offline.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::Value;

use crate::{
    agent_instance::{
        self, Birth,
        desired::{Agent, Desired, NotAllowed},
    },
    api::{AgentClass, AgentInstance, Bootstrap, HetznerProject, ProvisioningRecord},
    cloud_init::UserData,
    guest::program::{NotAProgram, Program},
    keys::{KeyError, MasterKey},
};

/// Stands in for the fleet's name, which by default is a UID.
const FLEET: &str = "5d3e7a90-41c8-4b6f-a2d7-90be13f8c64a";
/// Stands in for the UID that the API server would give to the instance; it takes its place in the size.
const UID: &str = "c81f06b4-7e29-4d53-8fa6-2b94e0d7351c";

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// A file cannot be read.
    #[error("{0} cannot be read")]
    Unreadable(PathBuf, #[source] io::Error),
    /// A file is not YAML, or an object in it does not have the form of its kind.
    #[error("the files cannot be read as YAML documents of AgentClass and AgentInstance: {0}")]
    Yaml(String),
    /// One of the two objects is not there.
    #[error("the files hold no {0}")]
    Missing(String),
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

/// Reads all objects in YAML files; of a directory all files that end in `.yaml` or `.yml`.
///
/// # Errors
/// When a file is not readable, or not YAML.
pub fn objects(paths: &[PathBuf]) -> Result<Vec<Value>, RenderError> {
    let mut objects = vec![];
    for path in paths {
        for file in files(path).map_err(|error| RenderError::Unreadable(path.clone(), error))? {
            let text = fs::read_to_string(&file)
                .map_err(|error| RenderError::Unreadable(file.clone(), error))?;
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
                .map_err(|error| RenderError::Yaml(format!("{}: {error}", file.display())))?;
            objects.extend(documents);
        }
    }
    Ok(objects)
}

fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries: io::Result<Vec<PathBuf>> =
        fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect();
    let is_yaml = |file: &PathBuf| {
        file.extension()
            .is_some_and(|end| end == "yaml" || end == "yml")
    };
    let mut files: Vec<PathBuf> = entries?.into_iter().filter(is_yaml).collect();
    files.sort();
    Ok(files)
}

/// Renders the user-data of the first server of an instance among the objects: of the one with this name, or else the first.
///
/// # Errors
/// When the instance or its class is not there, or they do not fit one another.
pub fn user_data(objects: &[Value], name: Option<&str>) -> Result<UserData, RenderError> {
    let instance: AgentInstance = object(objects, "AgentInstance", name)?;
    let class: AgentClass = object(objects, "AgentClass", Some(&instance.spec.class_name))?;
    let Desired::Present(mut identity, want) = Desired::parse(&instance) else {
        return Err(RenderError::Missing("AgentInstance".into()));
    };
    UID.clone_into(&mut identity.uid);
    let agent = Agent::of(&class, &want)?;
    let record = ProvisioningRecord {
        incarnation: 1,
        server_name: identity.server_name(FLEET, 1),
        project: String::new(),
        server_type: String::new(),
        location: String::new(),
        attempt: None,
        basis: None,
        snapshot: None,
        at: MicroTime(jiff::Timestamp::UNIX_EPOCH),
    };
    let master = MasterKey::new(FLEET, &[0; 32])?;
    let program = Program::new(include_str!("guest/program.py"))?;
    let phone_home = (agent.boot.bootstrap == Bootstrap::PhoneHome)
        .then(|| "https://operator.example/token".to_owned().into());
    let admin_keys = admin_keys(objects, &class, &master);
    let birth = Birth {
        master: &master,
        program: &program,
        admin_keys: &admin_keys,
        phone_home,
    };
    agent_instance::user_data(&identity, &agent, &record, &birth)
        .map_err(|setback| RenderError::Refused(setback.message))
}

/// A stand-in for each break-glass key of the project that comes first, if that is among the objects.
fn admin_keys(objects: &[Value], class: &AgentClass, master: &MasterKey) -> Vec<String> {
    let project = class.spec.projects.first().map(String::as_str);
    let project: Result<HetznerProject, _> = object(objects, "HetznerProject", project);
    let names = project.map_or_else(|_| vec![], |project| project.spec.ssh_keys);
    names
        .iter()
        .map(|name| master.server_keys(name).login_public())
        .collect()
}

fn object<K: serde::de::DeserializeOwned>(
    objects: &[Value],
    kind: &str,
    name: Option<&str>,
) -> Result<K, RenderError> {
    let wanted = |object: &&Value| {
        object["kind"] == kind && name.is_none_or(|name| object["metadata"]["name"] == name)
    };
    let found = objects.iter().find(wanted).ok_or_else(|| {
        RenderError::Missing(name.map_or_else(|| kind.into(), |name| format!("{kind} {name}")))
    })?;
    serde_json::from_value(found.clone()).map_err(|error| RenderError::Yaml(error.to_string()))
}
