//! The API as a function: one request against the state gives one reply.
//!
//! No transport, no clock of its own, no waiting: whoever calls gives the time. That makes "deliver
//! twice" and "commit later" two calls and nothing more, and lets tests run without sleeping.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::actions::{self, Action, Resource};
use crate::error::ApiError;
use crate::faults::ActionFault;
use crate::paging::Page;
use crate::request::Request;
use crate::state::{Project, State};
use crate::{catalogue, firewalls, images, networks, placement_groups, pricing, primary_ips};
use crate::{server_actions, server_create, servers, ssh_keys};

/// An answer: status, JSON body where there is one, page where it is a list.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Option<Value>,
    pub(crate) page: Option<Page>,
}

impl Reply {
    pub(crate) fn ok(body: Value) -> Self {
        Self {
            status: 200,
            body: Some(body),
            page: None,
        }
    }

    pub(crate) fn created(body: Value) -> Self {
        Self {
            status: 201,
            body: Some(body),
            page: None,
        }
    }

    pub(crate) fn no_content() -> Self {
        Self {
            status: 204,
            body: None,
            page: None,
        }
    }
}

impl From<ApiError> for Reply {
    fn from(error: ApiError) -> Self {
        Self {
            status: error.status,
            body: Some(error.body()),
            page: None,
        }
    }
}

/// Times as the API writes them: whole seconds, UTC.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// One request being handled.
pub(crate) struct Call<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) project_number: usize,
    pub(crate) now: Timestamp,
    pub(crate) request: &'a Request,
    /// Actions begun by this request that are to fail or to take their time.
    pub(crate) action_faults: &'a [ActionFault],
}

impl Call<'_> {
    pub(crate) fn project(&self) -> &Project {
        &self.state.projects[self.project_number]
    }

    pub(crate) fn project_mut(&mut self) -> &mut Project {
        &mut self.state.projects[self.project_number]
    }

    /// Begins an action that takes its usual time.
    pub(crate) fn begin(&mut self, command: &str, resources: Vec<Resource>) -> Action {
        let takes = self.state.action_time();
        self.begin_at(command, resources, self.now, takes)
    }

    /// Begins an action that is over at once, unless a fault says otherwise.
    pub(crate) fn begin_instant(&mut self, command: &str, resources: Vec<Resource>) -> Action {
        self.begin_at(command, resources, self.now, Duration::ZERO)
    }

    pub(crate) fn begin_at(
        &mut self,
        command: &str,
        resources: Vec<Resource>,
        from: Timestamp,
        takes: Duration,
    ) -> Action {
        let fault = self
            .action_faults
            .iter()
            .find(|fault| fault.command == command);
        let takes = fault.and_then(ActionFault::takes).unwrap_or(takes);
        let action = Action {
            id: self.state.new_id(),
            project: self.project_number,
            command: command.to_owned(),
            started: self.now,
            ends: from.checked_add(takes).unwrap_or(Timestamp::MAX),
            error: fault.and_then(ActionFault::error),
            resources,
        };
        self.state.actions.insert(action.id, action.clone());
        action
    }
}

/// Answers one request.
pub(crate) fn answer(call: &mut Call) -> Reply {
    let segments = call.request.segments();
    route(call, &segments).unwrap_or_else(Reply::from)
}

fn route(call: &mut Call, path: &[&str]) -> Result<Reply, ApiError> {
    match path {
        ["actions"] => only_get(call, actions::by_ids),
        ["actions", id] => {
            let id = number(id)?;
            only_get(call, |call| actions::get(call, id))
        }
        ["datacenters", ..] => Err(ApiError::removed("2026-06-02-datacenters-deprecated")),
        ["server_types", rest @ ..] => only_get(call, |call| catalogue::server_types(call, rest)),
        ["locations", rest @ ..] => only_get(call, |call| catalogue::locations(call, rest)),
        ["pricing"] => only_get(call, |call| Ok(pricing::get(call))),
        [kind, rest @ ..] => resource(call, kind, rest),
        [] => Err(ApiError::not_found("route")),
    }
}

fn only_get(
    call: &mut Call,
    answer: impl FnOnce(&Call) -> Result<Reply, ApiError>,
) -> Result<Reply, ApiError> {
    if call.request.is_mutation() {
        return Err(ApiError::method_not_allowed());
    }
    answer(call)
}

/// What the path below `/servers`, `/firewalls`, … asks for.
pub(crate) enum Ask<'p> {
    List,
    Create,
    Get(u64),
    Update(u64),
    Delete(u64),
    Act(u64, &'p str),
    Members(u64),
}

fn resource(call: &mut Call, kind: &str, rest: &[&str]) -> Result<Reply, ApiError> {
    let Some(singular) = singular(kind) else {
        return Err(ApiError::not_found("route"));
    };
    let ask = match (call.request.method.as_str(), rest) {
        ("GET", ["actions"]) => return actions::of_kind(call, singular, None),
        ("GET", ["actions", action] | [_, "actions", action]) => {
            return actions::get(call, number(action)?);
        }
        ("GET", [id, "actions"]) => return actions::of_kind(call, singular, Some(number(id)?)),
        ("GET", []) => Ask::List,
        ("POST", []) => Ask::Create,
        ("GET", [id]) => Ask::Get(number(id)?),
        ("PUT", [id]) => Ask::Update(number(id)?),
        ("DELETE", [id]) => Ask::Delete(number(id)?),
        ("POST", [id, "actions", command]) => Ask::Act(number(id)?, command),
        ("GET", [id, "members"]) => Ask::Members(number(id)?),
        (_, [] | [_] | [_, "actions", _]) => return Err(ApiError::method_not_allowed()),
        _ => return Err(ApiError::not_found("route")),
    };
    dispatch(call, kind, &ask)
}

fn dispatch(call: &mut Call, kind: &str, ask: &Ask) -> Result<Reply, ApiError> {
    match (kind, ask) {
        ("servers", Ask::Create) => server_create::create(call),
        ("servers", Ask::Act(id, command)) => server_actions::act(call, *id, command),
        ("servers", _) => servers::answer(call, ask),
        ("ssh_keys", _) => ssh_keys::answer(call, ask),
        ("firewalls", _) => firewalls::answer(call, ask),
        ("images", _) => images::answer(call, ask),
        ("networks", _) => networks::answer(call, ask),
        ("placement_groups", _) => placement_groups::answer(call, ask),
        _ => primary_ips::answer(call, ask),
    }
}

fn singular(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "servers" => "server",
        "ssh_keys" => "ssh_key",
        "firewalls" => "firewall",
        "images" => "image",
        "networks" => "network",
        "placement_groups" => "placement_group",
        "primary_ips" => "primary_ip",
        _ => return None,
    })
}

fn number(text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| ApiError::not_found("resource"))
}

/// The answer to a command that the resource does not know.
pub(crate) fn unknown_ask() -> ApiError {
    ApiError::not_found("route")
}
