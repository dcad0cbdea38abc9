//! What a guest is told of its agent, and the content of its secret files.
//!
//! Pure: from the words of the API to those of the guest. The first half stands in user-data, which anybody on the server may read; secrets
//! are in the second half only.

use secrecy::ExposeSecret as _;

use super::desired::{Agent, Identity};
use crate::{
    api::{self, AgentSpec, KillMode, ProtectSystem, Restart},
    guest::bundle::{Description, PlainFile, SecretFile, Source, UnitFile},
    keys::ServerKeys,
    secret_files::{self, Content, SecretData, SecretFileError},
    systemd_unit::{self, ExecStart, Service, UnitError},
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
    let text = match (&service.unit, &service.exec_start) {
        (Some(raw), _) => raw.clone(),
        (None, command) => rendered(spec, command.clone().unwrap_or_default()).render()?,
    };
    let name = format!("{}.service", service.name);
    Ok(UnitFile { name, text })
}

fn rendered(spec: &AgentSpec, command: Vec<String>) -> Service {
    let api::Service {
        name,
        unit: _,
        description,
        exec_start: _,
        working_directory,
        environment_files,
        restart,
        restart_sec,
        restart_steps,
        restart_max_delay_sec,
        start_limit_interval_sec,
        start_limit_burst,
        timeout_stop_sec,
        kill_mode,
        kill_signal,
        private_tmp,
        no_new_privileges,
        protect_system,
        read_write_paths,
        syslog_identifier,
    } = spec.service.clone();
    let source = spec.source.as_ref().map(|source| source.directory.clone());
    let count = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok());
    Service {
        working_directory: working_directory
            .or(source)
            .or(Some(systemd_unit::HOME.into())),
        environment_files,
        restart: Some(restart.map_or(systemd_unit::Restart::Always, restarts)),
        restart_sec: restart_sec.map(api::Duration::get),
        restart_steps: count(restart_steps),
        restart_max_delay_sec: restart_max_delay_sec.map(api::Duration::get),
        start_limit_interval_sec: start_limit_interval_sec.map(api::Duration::get),
        start_limit_burst: count(start_limit_burst),
        timeout_stop_sec: timeout_stop_sec.map(api::Duration::get),
        kill_mode: kill_mode.map(kills),
        kill_signal,
        private_tmp,
        no_new_privileges,
        protect_system: protect_system.map(protects),
        read_write_paths,
        syslog_identifier: Some(syslog_identifier.unwrap_or_else(|| name.clone())),
        ..Service::new(
            &description.unwrap_or(name),
            &spec.user,
            ExecStart::Arguments(command),
        )
    }
}

fn restarts(restart: Restart) -> systemd_unit::Restart {
    match restart {
        Restart::Always => systemd_unit::Restart::Always,
        Restart::OnFailure => systemd_unit::Restart::OnFailure,
        Restart::No => systemd_unit::Restart::No,
    }
}

fn kills(mode: KillMode) -> systemd_unit::KillMode {
    match mode {
        KillMode::ControlGroup => systemd_unit::KillMode::ControlGroup,
        KillMode::Mixed => systemd_unit::KillMode::Mixed,
        KillMode::Process => systemd_unit::KillMode::Process,
    }
}

fn protects(system: ProtectSystem) -> systemd_unit::ProtectSystem {
    match system {
        ProtectSystem::Yes => systemd_unit::ProtectSystem::Yes,
        ProtectSystem::Full => systemd_unit::ProtectSystem::Full,
        ProtectSystem::Strict => systemd_unit::ProtectSystem::Strict,
    }
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
