//! What a project should be: a token, the keys of people, a limit.
//!
//! Pure, and it cannot fail: a broken spec must not block a deletion, and the schema admits none.

use crate::api::{HetznerProject, TokenSecretRef};

/// What is wanted of a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Name of the `HetznerProject`.
    pub name: String,
    /// Whether it is being deleted: nothing of ours shall be left there.
    pub absent: bool,
    /// Where its token is kept.
    pub token: TokenSecretRef,
    /// Names of the keys of people who may log in in an emergency.
    pub ssh_keys: Vec<String>,
    /// How many servers it may have.
    pub max_servers: Option<usize>,
}

impl Desired {
    /// Reads a project.
    pub fn parse(project: &HetznerProject) -> Self {
        Self {
            name: project.metadata.name.clone().unwrap_or_default(),
            absent: project.metadata.deletion_timestamp.is_some(),
            token: project.spec.token_secret_ref.clone(),
            ssh_keys: project.spec.ssh_keys.clone(),
            max_servers: project
                .spec
                .max_servers
                .map(|most| usize::try_from(most).unwrap_or_default()),
        }
    }

    /// The Secret as a person would look for it.
    pub fn secret(&self) -> String {
        format!("{}/{}", self.token.namespace, self.token.name)
    }
}
