//! What a guest is told of its agent, and the content of its secret files.
//!
//! Pure: from the words of the API to those of the guest. The first half stands in user-data, which anybody on the server may read; secrets
//! are in the second half only.

use secrecy::ExposeSecret as _;

use super::desired::{Agent, Identity};
use crate::{
    api::{self, AgentSpec},
    guest::bundle::{Description, PlainFile, SecretFile, Source, UnitFile},
    keys::ServerKeys,
    secret_files::{self, Content, SecretData, SecretFileError},
    systemd_unit::{self, UnitError},
};

/// The agent as the guest installs and updates it.
///
/// # Errors
/// When a value cannot stand in a systemd unit.
pub fn describe(
    agent: &Agent,
    identity: &Identity,
    incarnation: u32,
) -> Result<Description, UnitError> {
    let spec = &agent.spec;
    Ok(Description {
        instance: identity.uid.clone(),
        incarnation,
        user: spec.user.clone(),
        packages: packages(spec),
        source: spec.source.as_ref().map(source),
        install: spec.install.clone(),
        update: spec.update.clone().unwrap_or_else(|| spec.install.clone()),
        files: spec
            .files
            .iter()
            .map(|file| plain_file(file, &spec.user))
            .collect(),
        environment: spec.environment.clone(),
        unit: unit(spec)?,
        secret_paths: spec
            .secret_files
            .iter()
            .map(|file| file.path.clone())
            .collect(),
        config_revision: agent.config_revision.clone(),
    })
}

/// A clone needs git, whether or not somebody thought of listing it.
fn packages(spec: &AgentSpec) -> Vec<String> {
    let git = "git".to_owned();
    let implied = spec.source.is_some() && !spec.packages.contains(&git);
    spec.packages
        .iter()
        .cloned()
        .chain(implied.then_some(git))
        .collect()
}

fn source(source: &api::Source) -> Source {
    Source {
        url: source.url.clone(),
        reference: source.reference.clone(),
        directory: source.directory.clone(),
    }
}

fn plain_file(file: &api::PlainFile, user: &str) -> PlainFile {
    PlainFile {
        path: file.path.clone(),
        mode: file.mode.clone(),
        owner: file.owner.clone().unwrap_or_else(|| user.to_owned()),
        content: file.content.clone(),
    }
}

fn unit(spec: &AgentSpec) -> Result<UnitFile, UnitError> {
    let service = &spec.service;
    let directory = spec.source.as_ref().map(|source| source.directory.as_str());
    let directory = directory.unwrap_or(systemd_unit::HOME);
    let text = match &service.unit {
        Some(raw) => raw.clone(),
        None => systemd_unit::render(service, &spec.user, directory)?,
    };
    let name = format!("{}.service", service.name);
    Ok(UnitFile { name, text })
}

/// A secret file that cannot be made: which, and why; never a value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("agent.secretFiles[{path}]: {source}")]
pub struct UnmadeFile {
    path: String,
    source: SecretFileError,
}

/// The secret files with their content, and the tag over all of them.
///
/// The tags are HMACs under `keys`, which belong to the instance and not to one of its servers: a file that an agent has changed can only be
/// taken along to a new server when both know the declared content by the same tag.
///
/// # Errors
/// When a key is missing or its value does not fit the file.
pub fn secret_files(
    spec: &AgentSpec,
    secret: &SecretData,
    keys: &ServerKeys,
) -> Result<(Vec<SecretFile>, String), UnmadeFile> {
    let made: Result<Vec<_>, _> = spec
        .secret_files
        .iter()
        .map(|file| secret_file(file, &spec.user, secret, keys))
        .collect();
    let files = made?;
    let tags = files
        .iter()
        .map(|file| (file.path.as_str(), file.tag.as_str()));
    let tag = keys.secrets_tag(tags);
    Ok((files, tag))
}

fn secret_file(
    file: &api::SecretFile,
    user: &str,
    secret: &SecretData,
    keys: &ServerKeys,
) -> Result<SecretFile, UnmadeFile> {
    let content = secret_files::render(form(file), secret).map_err(|source| UnmadeFile {
        path: file.path.clone(),
        source,
    })?;
    Ok(SecretFile {
        path: file.path.clone(),
        mode: file.mode.clone(),
        owner: file.owner.clone().unwrap_or_else(|| user.to_owned()),
        tag: keys.tag(&file.path, content.expose_secret()),
        agent_may_change: file.agent_may_change,
        content,
    })
}

fn form(file: &api::SecretFile) -> Content<'_> {
    match (&file.key, &file.template, &file.env) {
        (Some(key), ..) => Content::Key(key),
        (_, Some(template), _) => Content::Template(template),
        (_, _, Some(env)) if !env.keys.is_empty() => Content::Env(&env.keys),
        _ => Content::EnvAll,
    }
}
