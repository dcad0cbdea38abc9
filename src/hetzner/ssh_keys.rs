//! SSH keys: the fleet's identity in a project, and the break-glass keys of people.

use super::error::Error;
use super::transport::{Call, Client};
use super::wire::{PER_PAGE, id, or_default};
use super::{Labels, Permit};
use serde::Deserialize;

id! {
    /// Id of an SSH key.
    SshKeyId
}

/// One public SSH key of the project.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct SshKey {
    /// Its id.
    pub id: SshKeyId,
    /// Its name, unique in the project.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// MD5 with colons, unique in the project.
    #[serde(default, deserialize_with = "or_default")]
    pub fingerprint: String,
    /// The key as in an `authorized_keys` file.
    #[serde(default, deserialize_with = "or_default")]
    pub public_key: String,
    /// Its labels.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: Labels,
}

#[derive(Deserialize)]
struct One {
    ssh_key: SshKey,
}

#[derive(Deserialize)]
struct Many {
    #[serde(deserialize_with = "or_default")]
    ssh_keys: Vec<SshKey>,
}

impl Client {
    /// One key.
    ///
    /// # Errors
    /// [`Class::NotFound`](super::Class::NotFound) only if the API itself says so.
    pub async fn get_ssh_key(&self, permit: Permit, id: SshKeyId) -> Result<SshKey, Error> {
        let answer: One = self
            .send(permit, Call::new("GET /ssh_keys/{id}").id(id.0))
            .await?;
        Ok(answer.ssh_key)
    }

    /// The keys of this name: none or one.
    ///
    /// # Errors
    /// As every request.
    pub async fn ssh_keys_by_name(&self, permit: Permit, name: &str) -> Result<Vec<SshKey>, Error> {
        self.ssh_keys(permit, "name", name).await
    }

    /// The keys of this fingerprint (MD5 with colons): none or one.
    ///
    /// # Errors
    /// As every request.
    pub async fn ssh_keys_by_fingerprint(
        &self,
        permit: Permit,
        fingerprint: &str,
    ) -> Result<Vec<SshKey>, Error> {
        self.ssh_keys(permit, "fingerprint", fingerprint).await
    }

    /// The first 50 keys that a label selector matches.
    ///
    /// # Errors
    /// As every request.
    pub async fn ssh_keys_by_label(
        &self,
        permit: Permit,
        selector: &str,
    ) -> Result<Vec<SshKey>, Error> {
        self.ssh_keys(permit, "label_selector", selector).await
    }

    async fn ssh_keys(
        &self,
        permit: Permit,
        filter: &'static str,
        value: &str,
    ) -> Result<Vec<SshKey>, Error> {
        let call = Call::new("GET /ssh_keys")
            .query(filter, value)
            .query("per_page", PER_PAGE.to_string());
        let answer: Many = self.send(permit, call).await?;
        Ok(answer.ssh_keys)
    }

    /// Adds a key.
    ///
    /// # Errors
    /// [`Class::NameTaken`](super::Class::NameTaken) for a taken name or fingerprint.
    pub async fn create_ssh_key(
        &self,
        permit: Permit,
        name: &str,
        public_key: &str,
        labels: &Labels,
    ) -> Result<SshKey, Error> {
        let body = serde_json::json!({ "name": name, "public_key": public_key, "labels": labels });
        let answer: One = self
            .send(permit, Call::new("POST /ssh_keys").json(&body)?)
            .await?;
        Ok(answer.ssh_key)
    }

    /// Replaces all labels of a key.
    ///
    /// # Errors
    /// As every request.
    pub async fn update_ssh_key_labels(
        &self,
        permit: Permit,
        id: SshKeyId,
        labels: &Labels,
    ) -> Result<SshKey, Error> {
        let body = serde_json::json!({ "labels": labels });
        let call = Call::new("PUT /ssh_keys/{id}").id(id.0).json(&body)?;
        let answer: One = self.send(permit, call).await?;
        Ok(answer.ssh_key)
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// [`Class::NotFound`](super::Class::NotFound) if it is gone already.
    pub async fn delete_ssh_key(&self, permit: Permit, id: SshKeyId) -> Result<(), Error> {
        self.send(permit, Call::new("DELETE /ssh_keys/{id}").id(id.0))
            .await
    }
}
