//! Primary IPs: those that come and go with a server, and those a project keeps.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{Ask, Call, Reply, rfc3339, unknown_ask};
use crate::catalogue::{Location, location_named};
use crate::error::ApiError;
use crate::labels::Labels;
use crate::paging::{self, Listed};
use crate::request::required;
use crate::servers::Status;
use crate::state::{Project, State};

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// A public address.
#[derive(Debug, Clone)]
pub(crate) struct PrimaryIp {
    pub(crate) id: u64,
    pub(crate) name: String,
    labels: Labels,
    created: Timestamp,
    pub(crate) family: Family,
    /// The address; for IPv6 the network with its prefix length.
    pub(crate) ip: String,
    pub(crate) blocked: bool,
    dns_ptr: Option<String>,
    pub(crate) location: &'static Location,
    pub(crate) auto_delete: bool,
    delete_protected: bool,
    pub(crate) assignee: Option<u64>,
}

impl Listed for PrimaryIp {
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

impl PrimaryIp {
    /// The address that comes with a server and goes with it.
    pub(crate) fn of_server(
        state: &mut State,
        family: Family,
        location: &'static Location,
        now: Timestamp,
    ) -> Self {
        let id = state.new_id();
        Self {
            id,
            name: format!("primary_ip-{id}"),
            labels: Labels::new(),
            created: now,
            family,
            ip: state.new_address(family),
            blocked: false,
            dns_ptr: None,
            location,
            auto_delete: true,
            delete_protected: false,
            assignee: None,
        }
    }

    fn show(&self) -> Value {
        let pointer = self
            .dns_ptr
            .clone()
            .unwrap_or_else(|| self.default_dns_ptr());
        let pointers = match self.family {
            Family::V4 => vec![json!({"ip": self.ip, "dns_ptr": pointer})],
            Family::V6 => {
                let set = self.dns_ptr.iter();
                set.map(|pointer| json!({"ip": self.ip, "dns_ptr": pointer}))
                    .collect()
            }
        };
        json!({
            "id": self.id,
            "name": self.name,
            "labels": self.labels,
            "created": rfc3339(self.created),
            "blocked": self.blocked,
            "location": self.location.show(),
            "ip": self.ip,
            "dns_ptr": pointers,
            "protection": {"delete": self.delete_protected},
            "type": self.family.name(),
            "auto_delete": self.auto_delete,
            "assignee_type": if self.assignee.is_some() { "server" } else { "unassigned" },
            "assignee_id": self.assignee,
        })
    }

    fn default_dns_ptr(&self) -> String {
        let reversed: Vec<&str> = self.ip.split('.').rev().collect();
        format!("static.{}.clients.your-server.de", reversed.join("."))
    }

    /// As a server shows it below `public_net`.
    pub(crate) fn show_in_server(&self) -> Value {
        let dns_ptr = match self.family {
            Family::V4 => json!(
                self.dns_ptr
                    .clone()
                    .unwrap_or_else(|| self.default_dns_ptr())
            ),
            Family::V6 => self.show()["dns_ptr"].clone(),
        };
        json!({"id": self.id, "ip": self.ip, "blocked": self.blocked, "dns_ptr": dns_ptr})
    }
}

pub(crate) fn answer(call: &mut Call, ask: &Ask) -> Result<Reply, ApiError> {
    match ask {
        Ask::List => list(call),
        Ask::Create => create(call),
        Ask::Get(id) => Ok(Reply::ok(json!({"primary_ip": find(call, *id)?.show()}))),
        Ask::Update(id) => update(call, *id),
        Ask::Delete(id) => delete(call, *id),
        Ask::Act(id, command) => act(call, *id, command),
        Ask::Members(_) => Err(unknown_ask()),
    }
}

fn find<'a>(call: &'a Call, id: u64) -> Result<&'a PrimaryIp, ApiError> {
    call.project()
        .primary_ips
        .get(&id)
        .ok_or_else(|| ApiError::not_found("primary IP"))
}

fn find_mut<'a>(call: &'a mut Call, id: u64) -> Result<&'a mut PrimaryIp, ApiError> {
    let found = call.project_mut().primary_ips.get_mut(&id);
    found.ok_or_else(|| ApiError::not_found("primary IP"))
}

fn list(call: &Call) -> Result<Reply, ApiError> {
    let mut found = paging::select(call.request, call.project().primary_ips.values())?;
    if let Some(ip) = call.request.param("ip") {
        found.retain(|primary| primary.ip == ip);
    }
    paging::page(call.request, "primary_ips", found, PrimaryIp::show)
}

fn check_name(call: &Call, name: &str, but: Option<u64>) -> Result<(), ApiError> {
    let mut others = call
        .project()
        .primary_ips
        .values()
        .filter(|ip| Some(ip.id) != but);
    if others.any(|ip| ip.name == name) {
        return Err(ApiError::not_unique(
            "name",
            "primary IP name is already used",
        ));
    }
    Ok(())
}

fn create(call: &mut Call) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let name = input.name()?.to_owned();
    let family = match required("type", input.text("type")?)? {
        "ipv4" => Family::V4,
        "ipv6" => Family::V6,
        _ => return Err(ApiError::invalid("type", "must be ipv4 or ipv6")),
    };
    check_name(call, &name, None)?;
    let assignee = input.id("assignee_id")?;
    let location = match (input.id_or_name("location")?, assignee) {
        (Some(wanted), _) => location_named(&wanted),
        (None, Some(server)) => call
            .project()
            .servers
            .get(&server)
            .map(|server| server.location),
        (None, None) => None,
    };
    let location = location.ok_or_else(|| ApiError::invalid("location", "location not found"))?;
    let mut primary = PrimaryIp::of_server(call.state, family, location, call.now);
    primary.name = name;
    primary.labels = input.labels()?.unwrap_or_default();
    primary.auto_delete = input.flag("auto_delete")?.unwrap_or(false);
    let id = primary.id;
    call.project_mut().primary_ips.insert(id, primary);
    let mut body = json!({});
    if let Some(server) = assignee {
        assign_to(call, id, server).inspect_err(|_| {
            call.state.projects[call.project_number]
                .primary_ips
                .remove(&id);
        })?;
        let resources = vec![("primary_ip", id), ("server", server)];
        body["action"] = call.begin("create_primary_ip", resources).show(call.now);
    }
    body["primary_ip"] = find(call, id)?.show();
    Ok(Reply::created(body))
}

fn update(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let (name, labels, auto) = (
        input.text("name")?,
        input.labels()?,
        input.flag("auto_delete")?,
    );
    if let Some(name) = name {
        check_name(call, name, Some(id))?;
    }
    let primary = find_mut(call, id)?;
    primary.name = name.map_or_else(|| primary.name.clone(), str::to_owned);
    primary.labels = labels.unwrap_or_else(|| primary.labels.clone());
    primary.auto_delete = auto.unwrap_or(primary.auto_delete);
    Ok(Reply::ok(json!({"primary_ip": primary.show()})))
}

fn delete(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let primary = find(call, id)?;
    if primary.delete_protected {
        return Err(ApiError::protected("primary IP"));
    }
    if primary.assignee.is_some() {
        let message = "primary IP must be unassigned";
        return Err(ApiError::unprocessable("must_be_unassigned", message));
    }
    call.project_mut().primary_ips.remove(&id);
    Ok(Reply::no_content())
}

fn act(call: &mut Call, id: u64, command: &str) -> Result<Reply, ApiError> {
    find(call, id)?;
    let input = call.request.input()?;
    match command {
        "assign" => {
            let server = required("assignee_id", input.id("assignee_id")?)?;
            assign_to(call, id, server)?;
        }
        "unassign" => unassign(call, id)?,
        "change_dns_ptr" => {
            let pointer = input.text("dns_ptr")?.map(str::to_owned);
            find_mut(call, id)?.dns_ptr = pointer;
        }
        "change_protection" => {
            let delete = required("delete", input.flag("delete")?)?;
            find_mut(call, id)?.delete_protected = delete;
        }
        _ => return Err(unknown_ask()),
    }
    let name = match command {
        "assign" => "assign_primary_ip",
        "unassign" => "unassign_primary_ip",
        other => other,
    };
    let action = call.begin(name, vec![("primary_ip", id)]);
    Ok(Reply::created(json!({"action": action.show(call.now)})))
}

fn assign_to(call: &mut Call, id: u64, server: u64) -> Result<(), ApiError> {
    let now = call.now;
    let (family, location) = {
        let primary = find(call, id)?;
        if primary.assignee.is_some() {
            let message = "primary IP is already assigned";
            return Err(ApiError::unprocessable(
                "primary_ip_already_assigned",
                message,
            ));
        }
        (primary.family, primary.location)
    };
    let target = call.project_mut().servers.get_mut(&server);
    let target = target.ok_or_else(|| ApiError::not_found("server"))?;
    if target.status(now) != Status::Off {
        return Err(ApiError::unprocessable(
            "server_not_stopped",
            "server is not stopped",
        ));
    }
    if target.location.id != location.id {
        return Err(ApiError::invalid(
            "assignee_id",
            "server is in another location",
        ));
    }
    let (slot, code) = match family {
        Family::V4 => (&mut target.ipv4, "server_has_ipv4"),
        Family::V6 => (&mut target.ipv6, "server_has_ipv6"),
    };
    if slot.is_some() {
        return Err(ApiError::unprocessable(
            code,
            "server has such an IP already",
        ));
    }
    *slot = Some(id);
    find_mut(call, id)?.assignee = Some(server);
    Ok(())
}

fn unassign(call: &mut Call, id: u64) -> Result<(), ApiError> {
    let now = call.now;
    let Some(server) = find(call, id)?.assignee else {
        return Err(ApiError::invalid("id", "primary IP is not assigned"));
    };
    let project = call.project_mut();
    if let Some(server) = project.servers.get_mut(&server) {
        if server.status(now) != Status::Off {
            return Err(ApiError::unprocessable(
                "server_not_stopped",
                "server is not stopped",
            ));
        }
        server.ipv4 = server.ipv4.filter(|held| *held != id);
        server.ipv6 = server.ipv6.filter(|held| *held != id);
    }
    find_mut(call, id)?.assignee = None;
    Ok(())
}

/// When a server goes, so do its automatic addresses; the others stay and are billed.
pub(crate) fn release_of(project: &mut Project, server: u64) {
    project
        .primary_ips
        .retain(|_, ip| ip.assignee != Some(server) || !ip.auto_delete);
    for ip in project.primary_ips.values_mut() {
        ip.assignee = ip.assignee.filter(|held| *held != server);
    }
}
