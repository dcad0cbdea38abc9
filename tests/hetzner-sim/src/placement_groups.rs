//! Placement groups: type `spread`, ten servers each.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{Ask, Call, Reply, rfc3339, unknown_ask};
use crate::error::ApiError;
use crate::labels::Labels;
use crate::paging::{self, Listed};
use crate::request::required;
use crate::state::Project;

/// How many servers a group of type `spread` holds.
const MAX_SERVERS: usize = 10;
/// How many groups a project may have.
const MAX_GROUPS: usize = 50;

/// A placement group.
#[derive(Debug, Clone)]
pub(crate) struct PlacementGroup {
    pub(crate) id: u64,
    name: String,
    labels: Labels,
    created: Timestamp,
}

impl Listed for PlacementGroup {
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

impl PlacementGroup {
    pub(crate) fn show(&self, project: &Project) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "labels": self.labels,
            "type": "spread",
            "created": rfc3339(self.created),
            "servers": members(project, self.id),
        })
    }
}

fn members(project: &Project, group: u64) -> Vec<u64> {
    let inside = project
        .servers
        .values()
        .filter(|server| server.placement_group == Some(group));
    inside.map(|server| server.id).collect()
}

/// Refuses a group that does not exist or is full.
pub(crate) fn check_room(project: &Project, group: u64) -> Result<(), ApiError> {
    if !project.placement_groups.contains_key(&group) {
        return Err(ApiError::invalid(
            "placement_group",
            "placement group not found",
        ));
    }
    if members(project, group).len() >= MAX_SERVERS {
        return Err(ApiError::unprocessable(
            "placement_error",
            "placement group is full",
        ));
    }
    Ok(())
}

pub(crate) fn answer(call: &mut Call, ask: &Ask) -> Result<Reply, ApiError> {
    match ask {
        Ask::List => {
            let groups = paging::select(call.request, call.project().placement_groups.values())?;
            let show = |group: &PlacementGroup| group.show(call.project());
            paging::page(call.request, "placement_groups", groups, show)
        }
        Ask::Create => create(call),
        Ask::Get(id) => shown(call, *id).map(Reply::ok),
        Ask::Update(id) => update(call, *id),
        Ask::Delete(id) => delete(call, *id),
        Ask::Act(..) | Ask::Members(_) => Err(unknown_ask()),
    }
}

fn shown(call: &Call, id: u64) -> Result<Value, ApiError> {
    let group = call.project().placement_groups.get(&id);
    let group = group.ok_or_else(|| ApiError::not_found("placement group"))?;
    Ok(json!({"placement_group": group.show(call.project())}))
}

fn check_name(call: &Call, name: &str, but: Option<u64>) -> Result<(), ApiError> {
    let mut others = call
        .project()
        .placement_groups
        .values()
        .filter(|group| Some(group.id) != but);
    if others.any(|group| group.name == name) {
        return Err(ApiError::not_unique(
            "name",
            "placement group name is already used",
        ));
    }
    Ok(())
}

fn create(call: &mut Call) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let name = input.name()?.to_owned();
    if required("type", input.text("type")?)? != "spread" {
        return Err(ApiError::invalid("type", "must be spread"));
    }
    check_name(call, &name, None)?;
    if call.project().placement_groups.len() >= MAX_GROUPS {
        let message = "placement group limit reached";
        return Err(ApiError::resource_limit_exceeded(
            message,
            "placement_group_limit",
        ));
    }
    let labels = input.labels()?.unwrap_or_default();
    let group = PlacementGroup {
        id: call.state.new_id(),
        name,
        labels,
        created: call.now,
    };
    let id = group.id;
    call.project_mut().placement_groups.insert(id, group);
    let mut body = shown(call, id)?;
    body["action"] = Value::Null;
    Ok(Reply::created(body))
}

fn update(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let (name, labels) = (input.text("name")?, input.labels()?);
    if let Some(name) = name {
        check_name(call, name, Some(id))?;
    }
    let group = call.project_mut().placement_groups.get_mut(&id);
    let group = group.ok_or_else(|| ApiError::not_found("placement group"))?;
    group.name = name.map_or_else(|| group.name.clone(), str::to_owned);
    group.labels = labels.unwrap_or_else(|| group.labels.clone());
    shown(call, id).map(Reply::ok)
}

fn delete(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let project = call.project_mut();
    project
        .placement_groups
        .remove(&id)
        .ok_or_else(|| ApiError::not_found("placement group"))?;
    for server in project.servers.values_mut() {
        server.placement_group = server.placement_group.filter(|group| *group != id);
    }
    Ok(Reply::no_content())
}
