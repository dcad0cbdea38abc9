//! The class's own cloud-config on top of the operator's.
//!
//! It may add to a server whatever an admin likes, but not speak for the guest: the operator's
//! files, accounts and the settings that guard the login are refused, by name.

use serde_json::{Map, Value};

use super::{ADMIN, CloudInitError, LOGIN_HOME};
use crate::guest::bundle::Description;
use crate::guest::transport::LOGIN;

/// What no class may write to: a file there could speak for the guest.
const OWN_PATHS: [&str; 6] = [
    "/etc/agentfleet",
    "/usr/local/lib/agentfleet",
    "/var/lib/agentfleet",
    LOGIN_HOME,
    "/etc/systemd/system/agentfleet-install.service",
    "/etc/ssh/ssh_host_ed25519_key",
];
/// What stands against break-in or carries the proof of the host key.
const OWN_KEYS: [&str; 9] = [
    "disable_root",
    "merge_how",
    "merge_type",
    "phone_home",
    "ssh_deletekeys",
    "ssh_genkeytypes",
    "ssh_keys",
    "ssh_pwauth",
    "user",
];

/// Merges the class's part into the operator's.
pub(super) fn lay(
    config: &mut Map<String, Value>,
    raw: &Map<String, Value>,
    agent: &Description,
) -> Result<(), CloudInitError> {
    refuse_reserved(raw, agent)?;
    for (key, value) in raw {
        merge(key, config.entry(key).or_insert(Value::Null), value)?;
    }
    Ok(())
}

fn refuse_reserved(raw: &Map<String, Value>, agent: &Description) -> Result<(), CloudInitError> {
    let reserved = |what: String| Err(CloudInitError::Reserved(what));
    if let Some(key) = OWN_KEYS.into_iter().find(|key| raw.contains_key(*key)) {
        return reserved(key.to_owned());
    }
    let own_users = [agent.user.as_str(), LOGIN, ADMIN, "root"];
    for user in entries(raw, "users") {
        let name = user.get("name").or(Some(user)).and_then(Value::as_str);
        if let Some(name) = name.filter(|name| own_users.contains(name)) {
            return reserved(format!("users[{name}]"));
        }
    }
    for file in entries(raw, "write_files") {
        let path = file.get("path").and_then(Value::as_str).unwrap_or_default();
        if is_own_path(path, &agent.unit.name) {
            return reserved(format!("write_files[{path}]"));
        }
    }
    Ok(())
}

fn entries<'a>(raw: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Value> {
    raw.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// Says whether a path, however it is spelled, is one of the operator's or below one.
fn is_own_path(path: &str, unit: &str) -> bool {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let path = format!("/{}", parts.join("/"));
    let unit = format!("/etc/systemd/system/{unit}");
    let drop_ins = format!("{unit}.d");
    let is_at_or_below = |own: &str| {
        let rest = path.strip_prefix(own);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '.']))
    };
    OWN_PATHS.into_iter().any(is_at_or_below) || is_at_or_below(&unit) || is_at_or_below(&drop_ins)
}

/// Merges the class's part on top: maps key by key at every depth, lists appended, the rest
/// replaced. A value does not change its type.
fn merge(at: &str, base: &mut Value, top: &Value) -> Result<(), CloudInitError> {
    match (base, top) {
        (Value::Object(base), Value::Object(top)) => {
            for (key, value) in top {
                let slot = base.entry(key).or_insert(Value::Null);
                merge(&format!("{at}.{key}"), slot, value)?;
            }
        }
        (Value::Array(base), Value::Array(top)) => base.extend(top.iter().cloned()),
        (Value::Object(_), _) => return Err(CloudInitError::WrongType(at.to_owned(), "a map")),
        (Value::Array(_), _) => return Err(CloudInitError::WrongType(at.to_owned(), "a list")),
        (base, top) => *base = top.clone(),
    }
    Ok(())
}
