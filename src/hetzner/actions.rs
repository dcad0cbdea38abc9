//! Actions: what the API does after it has answered.

use super::error::Error;
use super::transport::{Call, Client};
use super::wire::{id, open_enum, or_default};
use super::{Permit, redact};
use serde::Deserialize;

id! {
    /// Id of an action.
    ActionId
}

open_enum! {
    /// How far an action is.
    ActionStatus {
        /// Under way.
        Running = "running",
        /// Done.
        Success = "success",
        /// Failed; the action says why.
        Error = "error",
    }
}

/// One action.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Action {
    /// Its id.
    pub id: ActionId,
    /// What it does, such as `create_server`.
    #[serde(default, deserialize_with = "or_default")]
    pub command: String,
    /// How far it is.
    pub status: ActionStatus,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<ActionError>,
}

/// Why an action failed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ActionError {
    /// Code, such as `action_failed`.
    #[serde(default, deserialize_with = "short")]
    pub code: String,
    /// Message, redacted, at most 300 characters.
    #[serde(default, deserialize_with = "short")]
    pub message: String,
}

/// Reads a text of the API that may be shown.
fn short<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text: String = or_default(deserializer)?;
    Ok(redact::redact(&text, ""))
}

/// An answer that holds one action.
#[derive(Deserialize)]
pub(super) struct OneAction {
    pub(super) action: Action,
}

/// An answer that holds several actions.
#[derive(Deserialize)]
pub(super) struct Actions {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) actions: Vec<Action>,
}

impl Client {
    /// The actions with these ids, at most 25 in one request; unknown ids are left out.
    ///
    /// # Errors
    /// As every request.
    pub async fn actions(&self, permit: Permit, ids: &[ActionId]) -> Result<Vec<Action>, Error> {
        let call = ids.iter().fold(Call::new("GET /actions"), |call, id| {
            call.query("id", id.to_string())
        });
        let answer: Actions = self.send(permit, call).await?;
        Ok(answer.actions)
    }
}
