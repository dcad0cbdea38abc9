//! Actions: what Hetzner does after it has answered.
//!
//! An action is decided when it begins: it ends at a known time, well or not. Its status is then a
//! function of the clock, so nothing has to run in between.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{Call, Reply, rfc3339};
use crate::error::ApiError;
use crate::paging;
use crate::request::Request;

/// What an action acts on: `server` and its id.
pub(crate) type Resource = (&'static str, u64);

/// One action.
#[derive(Debug, Clone)]
pub(crate) struct Action {
    pub(crate) id: u64,
    pub(crate) project: usize,
    pub(crate) command: String,
    pub(crate) started: Timestamp,
    pub(crate) ends: Timestamp,
    /// Code and message, where it is going to fail.
    pub(crate) error: Option<(String, String)>,
    pub(crate) resources: Vec<Resource>,
}

impl Action {
    pub(crate) fn succeeds(&self) -> bool {
        self.error.is_none()
    }

    pub(crate) fn is_running(&self, now: Timestamp) -> bool {
        now < self.ends
    }

    fn status(&self, now: Timestamp) -> &'static str {
        match (self.is_running(now), &self.error) {
            (true, _) => "running",
            (false, None) => "success",
            (false, Some(_)) => "error",
        }
    }

    /// How much of its time has passed, in percent.
    fn progress(&self, now: Timestamp) -> i64 {
        if !self.is_running(now) {
            return 100;
        }
        let whole = self.ends.duration_since(self.started).as_millis().max(1);
        let passed = now.duration_since(self.started).as_millis().max(0);
        i64::try_from(passed * 100 / whole).unwrap_or(0).min(99)
    }

    pub(crate) fn show(&self, now: Timestamp) -> Value {
        let over = !self.is_running(now);
        let error = self.error.as_ref().filter(|_| over);
        let resources = self
            .resources
            .iter()
            .map(|(kind, id)| json!({"id": id, "type": kind}));
        json!({
            "id": self.id,
            "command": self.command,
            "status": self.status(now),
            "progress": self.progress(now),
            "started": rfc3339(self.started),
            "finished": over.then(|| rfc3339(self.ends)),
            "resources": resources.collect::<Vec<_>>(),
            "error": error.map(|(code, message)| json!({"code": code, "message": message})),
        })
    }
}

/// `GET /actions`: only by id since 2025, and without pages.
pub(crate) fn by_ids(call: &Call) -> Result<Reply, ApiError> {
    let ids = call.request.ids("id")?;
    if ids.is_empty() {
        return Err(ApiError::removed(
            "2025-01-30-listing-all-actions-is-removed",
        ));
    }
    let known = |id: &u64| call.state.actions.get(id);
    let own = |action: &&Action| action.project == call.project_number;
    let found = ids
        .iter()
        .filter_map(known)
        .filter(own)
        .map(|action| action.show(call.now));
    Ok(Reply::ok(json!({"actions": found.collect::<Vec<_>>()})))
}

/// Actions on resources of one kind, or on one of them.
pub(crate) fn of_kind(call: &Call, kind: &str, id: Option<u64>) -> Result<Reply, ApiError> {
    list(call, |action| {
        let fits = |(k, i): &Resource| *k == kind && id.is_none_or(|id| id == *i);
        action.resources.iter().any(fits)
    })
}

fn list(call: &Call, wanted: impl Fn(&Action) -> bool) -> Result<Reply, ApiError> {
    let (request, now) = (call.request, call.now);
    let ids = request.ids("id")?;
    let statuses: Vec<&str> = request.params("status").collect();
    let chosen = |action: &&Action| {
        action.project == call.project_number
            && wanted(action)
            && (ids.is_empty() || ids.contains(&action.id))
            && (statuses.is_empty() || statuses.contains(&action.status(now)))
    };
    let mut found: Vec<&Action> = call.state.actions.values().filter(chosen).collect();
    sort(request, now, &mut found)?;
    paging::page(request, "actions", found, |action| action.show(now))
}

fn sort(request: &Request, now: Timestamp, found: &mut [&Action]) -> Result<(), ApiError> {
    let orders: Vec<&str> = request.params("sort").collect();
    for order in orders.iter().rev() {
        let (field, direction) = order.split_once(':').unwrap_or((order, "asc"));
        match field {
            "id" => found.sort_by_key(|action| action.id),
            "command" => found.sort_by(|a, b| a.command.cmp(&b.command)),
            "status" => found.sort_by_key(|action| action.status(now)),
            "progress" => found.sort_by_key(|action| action.progress(now)),
            "started" => found.sort_by_key(|action| action.started),
            "finished" => found.sort_by_key(|action| action.ends),
            _ => {
                return Err(ApiError::invalid(
                    "sort",
                    format!("cannot sort by '{field}'"),
                ));
            }
        }
        if direction == "desc" {
            found.reverse();
        }
    }
    Ok(())
}

/// One action, whatever it acts on.
pub(crate) fn get(call: &Call, id: u64) -> Result<Reply, ApiError> {
    let action = call
        .state
        .actions
        .get(&id)
        .filter(|a| a.project == call.project_number);
    let action = action.ok_or_else(|| ApiError::not_found("action"))?;
    Ok(Reply::ok(json!({"action": action.show(call.now)})))
}
