//! Servers: what they are, how they are shown, and all calls but create and actions.
//!
//! A server's status is planned ahead, as a list of times and states, and read off by the clock.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{Ask, Call, Reply, rfc3339, unknown_ask};
use crate::catalogue::{Location, ServerType};
use crate::error::ApiError;
use crate::labels::Labels;
use crate::machines::{Order, What};
use crate::paging::{self, Listed};
use crate::primary_ips;
use crate::state::{Project, State};
use crate::{firewalls, server_wish};

/// Status of a server, in Hetzner's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Initializing,
    Starting,
    Running,
    Stopping,
    Off,
    Migrating,
    Rebuilding,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Initializing => "initializing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Off => "off",
            Self::Migrating => "migrating",
            Self::Rebuilding => "rebuilding",
        }
    }
}

/// A server's place in a network.
#[derive(Debug, Clone)]
pub(crate) struct PrivateNet {
    pub(crate) network: u64,
    pub(crate) ip: String,
    pub(crate) alias_ips: Vec<String>,
}

/// A server.
#[derive(Debug, Clone)]
#[expect(clippy::struct_field_names, reason = "`server_type` is the API's word")]
pub(crate) struct Server {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    pub(crate) labels: Labels,
    pub(crate) server_type: &'static ServerType,
    pub(crate) location: &'static Location,
    pub(crate) image: Option<u64>,
    pub(crate) disk: u32,
    pub(crate) user_data: Option<String>,
    pub(crate) ipv4: Option<u64>,
    pub(crate) ipv6: Option<u64>,
    pub(crate) private_net: Vec<PrivateNet>,
    pub(crate) placement_group: Option<u64>,
    /// Against deletion and rebuild: the API takes both or neither.
    pub(crate) protected: bool,
    /// Public keys that root was given.
    pub(crate) ssh_keys: Vec<String>,
    /// It does not react to a shutdown request.
    pub(crate) ignores_acpi: bool,
    /// Lists do not show it, as when pages shift at each of them.
    pub(crate) hidden: bool,
    pub(crate) locked_until: Timestamp,
    /// When which status begins, in order; never empty.
    pub(crate) plan: Vec<(Timestamp, Status)>,
}

impl Listed for Server {
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

impl Server {
    pub(crate) fn status(&self, now: Timestamp) -> Status {
        let begun = self.plan.iter().take_while(|(from, _)| *from <= now);
        begun
            .last()
            .or(self.plan.first())
            .map_or(Status::Off, |(_, status)| *status)
    }

    pub(crate) fn is_locked(&self, now: Timestamp) -> bool {
        now < self.locked_until
    }

    /// The address that its machine answers on.
    pub(crate) fn address(&self, project: &Project) -> Option<std::net::Ipv4Addr> {
        project.primary_ips.get(&self.ipv4?)?.ip.parse().ok()
    }

    /// The snapshot it was last made from.
    pub(crate) fn snapshot(&self, project: &Project) -> Option<u64> {
        self.image.filter(|id| project.snapshots.contains_key(id))
    }

    pub(crate) fn show(&self, state: &State, project: &Project, now: Timestamp) -> Value {
        let ip = |id: Option<u64>| Some(project.primary_ips.get(&id?)?.show_in_server());
        let image = self.image.and_then(|id| {
            let known = state.system_images.iter().find(|image| image.id == id);
            known
                .or_else(|| project.snapshots.get(&id))
                .map(crate::images::Image::show)
        });
        let group = self
            .placement_group
            .and_then(|id| project.placement_groups.get(&id));
        let nets = self.private_net.iter().map(|net| net.show(self.id));
        json!({
            "id": self.id,
            "name": self.name,
            "status": self.status(now).name(),
            "created": rfc3339(self.created),
            "public_net": {
                "ipv4": ip(self.ipv4),
                "ipv6": ip(self.ipv6),
                "floating_ips": [],
                "firewalls": firewalls::of_server(project, self),
            },
            "private_net": nets.collect::<Vec<_>>(),
            "server_type": self.server_type.show(state),
            "location": self.location.show(),
            "image": image,
            "iso": null,
            "rescue_enabled": false,
            "locked": self.is_locked(now),
            "backup_window": null,
            "outgoing_traffic": 0,
            "ingoing_traffic": 0,
            "included_traffic": 20_u64 << 40,
            "protection": {"delete": self.protected, "rebuild": self.protected},
            "labels": self.labels,
            "volumes": [],
            "load_balancers": [],
            "primary_disk_size": self.disk,
            "placement_group": group.map(|group| group.show(project)),
        })
    }
}

impl PrivateNet {
    pub(crate) fn show(&self, server: u64) -> Value {
        let [.., a, b, c] = server.to_be_bytes();
        json!({
            "network": self.network,
            "ip": self.ip,
            "alias_ips": self.alias_ips,
            "mac_address": format!("86:00:ff:{a:02x}:{b:02x}:{c:02x}"),
        })
    }
}

pub(crate) fn answer(call: &mut Call, ask: &Ask) -> Result<Reply, ApiError> {
    match ask {
        Ask::List => list(call),
        Ask::Get(id) => Ok(Reply::ok(json!({"server": shown(call, *id)?}))),
        Ask::Update(id) => update(call, *id),
        Ask::Delete(id) => delete(call, *id),
        Ask::Create | Ask::Act(..) | Ask::Members(_) => Err(unknown_ask()),
    }
}

pub(crate) fn find<'a>(call: &'a Call, id: u64) -> Result<&'a Server, ApiError> {
    call.project()
        .servers
        .get(&id)
        .ok_or_else(|| ApiError::not_found("server"))
}

pub(crate) fn find_mut<'a>(call: &'a mut Call, id: u64) -> Result<&'a mut Server, ApiError> {
    let found = call.project_mut().servers.get_mut(&id);
    found.ok_or_else(|| ApiError::not_found("server"))
}

pub(crate) fn shown(call: &Call, id: u64) -> Result<Value, ApiError> {
    Ok(find(call, id)?.show(call.state, call.project(), call.now))
}

fn list(call: &Call) -> Result<Reply, ApiError> {
    let request = call.request;
    let (ids, statuses) = (
        request.ids("id")?,
        request.params("status").collect::<Vec<_>>(),
    );
    let mut servers = paging::select(request, call.project().servers.values())?;
    // A name has one page only.
    let shifts = request.param("name").is_none();
    servers.retain(|server| {
        !(shifts && server.hidden)
            && (ids.is_empty() || ids.contains(&server.id))
            && (statuses.is_empty() || statuses.contains(&server.status(call.now).name()))
    });
    let show = |server: &Server| server.show(call.state, call.project(), call.now);
    paging::page(request, "servers", servers, show)
}

fn update(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    find(call, id)?;
    let input = call.request.input()?;
    let (name, labels) = (input.text("name")?, input.labels()?);
    if let Some(name) = name {
        server_wish::check_name(call, name, Some(id))?;
    }
    let server = find_mut(call, id)?;
    server.name = name.map_or_else(|| server.name.clone(), str::to_owned);
    server.labels = labels.unwrap_or_else(|| server.labels.clone());
    Ok(Reply::ok(json!({"server": shown(call, id)?})))
}

fn delete(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let server = find(call, id)?;
    if server.is_locked(call.now) {
        return Err(ApiError::locked("server"));
    }
    if server.protected {
        return Err(ApiError::protected("server"));
    }
    remove(call.state, call.project_number, id, call.now);
    let action = call.begin("delete_server", vec![("server", id)]);
    Ok(Reply::ok(json!({"action": action.show(call.now)})))
}

/// Takes a server out of the world: firewalls are detached, automatic addresses go with it.
pub(crate) fn remove(state: &mut State, project: usize, id: u64, now: Timestamp) {
    let home = &mut state.projects[project];
    home.servers.remove(&id);
    firewalls::detach_everywhere(home, id);
    primary_ips::release_of(home, id);
    state.forget_unused_addresses();
    state.ledger.died(id, now);
    state.orders.push(Order {
        server: id,
        what: What::Delete,
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{World, wish};

    fn names(list: &Value) -> Vec<&str> {
        let servers = list["servers"].as_array().unwrap().iter();
        servers
            .map(|server| server["name"].as_str().unwrap())
            .collect()
    }

    #[test]
    fn lists_are_filtered_by_name_labels_and_status() {
        let mut world = World::new();
        world.server_with(&json!({"name": "a", "labels": {"fleet": "one"}}));
        world.pass(4);
        world.server_with(&json!({"name": "b", "labels": {"fleet": "two"}}));
        assert_eq!(names(&world.get("/servers?name=b")), ["b"]);
        assert_eq!(
            names(&world.get("/servers?label_selector=fleet%3Done")),
            ["a"]
        );
        assert_eq!(
            names(&world.get("/servers?label_selector=fleet")),
            ["a", "b"]
        );
        assert_eq!(names(&world.get("/servers?status=running")), ["a"]);
        assert_eq!(
            names(&world.get("/servers?status=running&status=initializing")),
            ["a", "b"]
        );
        assert_eq!(names(&world.get("/servers?sort=created:desc")), ["b", "a"]);
    }

    #[test]
    fn a_server_that_a_shift_hides_is_found_by_its_id_and_its_name() {
        let mut world = World::new();
        let id = world.server("a");
        world.server("b");
        world.pass(4);
        world.state.find_server_mut(id).unwrap().hidden = true;
        assert_eq!(names(&world.get("/servers")), ["b"]);
        assert_eq!(names(&world.get("/servers?name=a")), ["a"]);
        assert_eq!(world.get(&format!("/servers/{id}"))["server"]["name"], "a");
    }

    #[test]
    fn a_deletion_between_two_pages_hides_a_server() {
        let mut world = World::new();
        let ids: Vec<u64> = (0..4).map(|n| world.server(&format!("s{n}"))).collect();
        world.pass(4);
        let first = world.get("/servers?sort=id:asc&per_page=2");
        assert_eq!(names(&first), ["s0", "s1"]);
        world.ok("DELETE", &format!("/servers/{}", ids[0]), &Value::Null);
        let second = world.get("/servers?sort=id:asc&per_page=2&page=2");
        assert_eq!(names(&second), ["s3"]);
        assert_eq!(second["meta"]["pagination"]["total_entries"], 3);
    }

    #[test]
    fn a_deleted_server_is_gone_at_once_with_its_addresses_and_off_its_firewalls() {
        let mut world = World::new();
        let firewall =
            world.ok("POST", "/firewalls", &json!({"name": "f"}))["firewall"]["id"].clone();
        let id = world.server_with(&json!({"firewalls": [{"firewall": firewall}]}));
        world.pass(4);
        let in_use = world.refusal("DELETE", &format!("/firewalls/{firewall}"), &Value::Null);
        assert_eq!(in_use, (422, "resource_in_use".to_owned()));
        let action = world.ok("DELETE", &format!("/servers/{id}"), &Value::Null);
        assert_eq!(action["action"]["command"], "delete_server");
        assert_eq!(
            world
                .refusal("GET", &format!("/servers/{id}"), &Value::Null)
                .0,
            404
        );
        assert!(world.state.projects[0].primary_ips.is_empty());
        world.ok("DELETE", &format!("/firewalls/{firewall}"), &Value::Null);
    }

    #[test]
    fn a_primary_ip_of_ones_own_stays_when_its_server_goes() {
        let mut world = World::new();
        let wanted = json!({"name": "mine", "type": "ipv4", "location": "nbg1"});
        let ip = world.ok("POST", "/primary_ips", &wanted)["primary_ip"]["id"].clone();
        let id = world.server_with(&json!({"public_net": {"ipv4": ip}}));
        world.pass(4);
        let refused = world.refusal("DELETE", &format!("/primary_ips/{ip}"), &Value::Null);
        assert_eq!(refused, (422, "must_be_unassigned".to_owned()));
        world.ok("DELETE", &format!("/servers/{id}"), &Value::Null);
        let left = world.get("/primary_ips");
        assert_eq!(left["primary_ips"][0]["assignee_type"], "unassigned");
        assert_eq!(left["meta"]["pagination"]["total_entries"], 1);
    }

    #[test]
    fn a_locked_server_is_not_deleted() {
        let mut world = World::new();
        let id = world.server("a");
        let refused = world.refusal("DELETE", &format!("/servers/{id}"), &Value::Null);
        assert_eq!(refused, (423, "locked".to_owned()));
        world.pass(4);
        world.ok("DELETE", &format!("/servers/{id}"), &Value::Null);
    }

    #[test]
    fn put_replaces_the_whole_label_map() {
        let mut world = World::new();
        let id = world.server_with(&json!({"labels": {"a": "1", "b": "2"}}));
        let changed = json!({"labels": {"c": "3"}});
        let server = world.ok("PUT", &format!("/servers/{id}"), &changed);
        assert_eq!(server["server"]["labels"], json!({"c": "3"}));
        assert_eq!(server["server"]["name"], "a");
    }

    #[test]
    fn a_server_shows_no_datacenter_and_the_route_is_gone() {
        let mut world = World::new();
        let created = world.ok("POST", "/servers", &wish(&json!({})));
        assert!(created["server"].get("datacenter").is_none());
        let gone = world.refusal("GET", "/datacenters", &Value::Null);
        assert_eq!(gone, (410, "deprecated_api_endpoint".to_owned()));
    }
}
