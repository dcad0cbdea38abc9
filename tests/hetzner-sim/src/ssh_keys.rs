//! SSH keys of a project: name and fingerprint are unique.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{Ask, Call, Reply, rfc3339, unknown_ask};
use crate::error::ApiError;
use crate::labels::Labels;
use crate::paging::{self, Listed};
use crate::request::required;

/// A public key known to a project.
#[derive(Debug, Clone)]
pub(crate) struct SshKey {
    pub(crate) id: u64,
    pub(crate) name: String,
    fingerprint: String,
    pub(crate) public_key: String,
    labels: Labels,
    created: Timestamp,
}

impl Listed for SshKey {
    fn id(&self) -> u64 {
        self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn created(&self) -> Timestamp {
        self.created
    }
    fn labels(&self) -> Option<&Labels> {
        Some(&self.labels)
    }
}

impl SshKey {
    fn show(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "public_key": self.public_key,
            "labels": self.labels,
            "created": rfc3339(self.created),
        })
    }
}

/// The MD5 of the key blob in colon form.
fn fingerprint(public_key: &str) -> Option<String> {
    let blob = public_key.split_whitespace().nth(1)?;
    let blob = STANDARD.decode(blob).ok()?;
    let octets = md5::compute(blob).0.map(|octet| format!("{octet:02x}"));
    Some(octets.join(":"))
}

pub(crate) fn answer(call: &mut Call, ask: &Ask) -> Result<Reply, ApiError> {
    match ask {
        Ask::List => list(call),
        Ask::Create => create(call),
        Ask::Get(id) => Ok(Reply::ok(json!({"ssh_key": find(call, *id)?.show()}))),
        Ask::Update(id) => update(call, *id),
        Ask::Delete(id) => {
            find(call, *id)?;
            call.project_mut().ssh_keys.remove(id);
            Ok(Reply::no_content())
        }
        Ask::Act(..) | Ask::Members(_) => Err(unknown_ask()),
    }
}

fn find<'a>(call: &'a Call, id: u64) -> Result<&'a SshKey, ApiError> {
    call.project()
        .ssh_keys
        .get(&id)
        .ok_or_else(|| ApiError::not_found("SSH key"))
}

fn list(call: &Call) -> Result<Reply, ApiError> {
    let mut keys = paging::select(call.request, call.project().ssh_keys.values())?;
    if let Some(wanted) = call.request.param("fingerprint") {
        keys.retain(|key| key.fingerprint == wanted);
    }
    paging::page(call.request, "ssh_keys", keys, SshKey::show)
}

fn create(call: &mut Call) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let name = input.name()?;
    let public_key = required("public_key", input.text("public_key")?)?.trim();
    let labels = input.labels()?.unwrap_or_default();
    let fingerprint = fingerprint(public_key)
        .ok_or_else(|| ApiError::invalid("public_key", "is not a valid SSH public key"))?;
    let mut known = call.project().ssh_keys.values();
    if known.any(|key| key.fingerprint == fingerprint) {
        let message = "SSH key with the same fingerprint already exists";
        return Err(ApiError::not_unique("public_key", message));
    }
    check_name(call, name, None)?;
    let key = SshKey {
        id: call.state.new_id(),
        name: name.to_owned(),
        fingerprint,
        public_key: public_key.to_owned(),
        labels,
        created: call.now,
    };
    let shown = key.show();
    call.project_mut().ssh_keys.insert(key.id, key);
    Ok(Reply::created(json!({"ssh_key": shown})))
}

fn check_name(call: &Call, name: &str, but: Option<u64>) -> Result<(), ApiError> {
    let mut others = call
        .project()
        .ssh_keys
        .values()
        .filter(|key| Some(key.id) != but);
    if others.any(|key| key.name == name) {
        return Err(ApiError::not_unique("name", "SSH key name is already used"));
    }
    Ok(())
}

fn update(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    find(call, id)?;
    let input = call.request.input()?;
    if let Some(name) = input.text("name")? {
        check_name(call, name, Some(id))?;
    }
    let labels = input.labels()?;
    let name = input.text("name")?;
    let key = call.project_mut().ssh_keys.get_mut(&id);
    let key = key.ok_or_else(|| ApiError::not_found("SSH key"))?;
    key.name = name.map_or_else(|| key.name.clone(), str::to_owned);
    key.labels = labels.unwrap_or_else(|| key.labels.clone());
    Ok(Reply::ok(json!({"ssh_key": key.show()})))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{KEY, World};

    #[test]
    fn fingerprints_are_md5_in_colon_form() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGQ= someone";
        let shown = fingerprint(key).unwrap();
        assert_eq!(shown.len(), 47);
        assert!(shown.split(':').all(|octet| octet.len() == 2));
        assert_eq!(fingerprint("ssh-ed25519"), None);
    }

    #[test]
    fn name_and_fingerprint_are_unique() {
        let mut world = World::new();
        let key = world.ok(
            "POST",
            "/ssh_keys",
            &json!({"name": "k", "public_key": KEY}),
        );
        let same_key = json!({"name": "other", "public_key": KEY});
        let reply = world.reply("POST", "/ssh_keys", &same_key);
        assert_eq!(reply.status, 409);
        let body = reply.body.unwrap();
        assert_eq!(
            body["error"]["message"],
            "SSH key with the same fingerprint already exists"
        );
        let fingerprint = key["ssh_key"]["fingerprint"]
            .as_str()
            .unwrap()
            .replace(':', "%3A");
        let found = world.get(&format!("/ssh_keys?fingerprint={fingerprint}"));
        assert_eq!(found["ssh_keys"][0]["name"], "k");
        let other = json!({"name": "k", "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGQ="});
        assert_eq!(world.refusal("POST", "/ssh_keys", &other).0, 409);
    }
}
