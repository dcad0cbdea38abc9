//! `POST /servers`: everything about a new server in one request.
//!
//! The order of refusals is: what is wrong with the request, the quota, the name, the stock.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::actions::Action;
use crate::api::{Call, Reply};
use crate::catalogue::{self, Location, ServerType};
use crate::error::ApiError;
use crate::labels::Labels;
use crate::ledger::Origin;
use crate::machines::{Boot, Order, What};
use crate::primary_ips::{Family, PrimaryIp};
use crate::request::{IdOrName, Input, required};
use crate::servers::{self, Server, Status};
use crate::{firewalls, images, networks, placement_groups};

/// The most that `user_data` may hold, in bytes as sent.
const MAX_USER_DATA: usize = 32 * 1024;

/// A request for a server that was found to be in order.
struct Wanted {
    name: String,
    labels: Labels,
    server_type: &'static ServerType,
    location: &'static Location,
    image: u64,
    user_data: Option<String>,
    has_ssh_keys: bool,
    firewalls: Vec<u64>,
    networks: Vec<u64>,
    placement_group: Option<u64>,
    ipv4: Address,
    ipv6: Address,
    start: bool,
}

/// What public address a server is to have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Address {
    None,
    New,
    Existing(u64),
}

/// A server that was just put into the project, and what goes on with it.
pub(crate) struct Placed {
    pub(crate) id: u64,
    has_ssh_keys: bool,
    first: Action,
    next: Vec<Action>,
}

pub(crate) fn create(call: &mut Call) -> Result<Reply, ApiError> {
    let placed = place(call, Origin::Api)?;
    let password = root_password(call, placed.has_ssh_keys);
    let next = placed.next.iter().map(|action| action.show(call.now));
    Ok(Reply::created(json!({
        "server": servers::shown(call, placed.id)?,
        "action": placed.first.show(call.now),
        "next_actions": next.collect::<Vec<_>>(),
        "root_password": password,
    })))
}

/// Checks the request and makes the server.
pub(crate) fn place(call: &mut Call, origin: Origin) -> Result<Placed, ApiError> {
    let wanted = read(call, &call.request.input()?)?;
    check_quota(call)?;
    check_name(call, &wanted.name, None)?;
    take_stock(call, wanted.server_type, wanted.location)?;
    let id = build(call, &wanted)?;
    let (first, next) = begin_actions(call, id, &wanted);
    schedule(call, id, &wanted, &first, &next)?;
    let server = servers::find(call, id)?.clone();
    call.state.ledger.born(call.project_number, &server, origin);
    Ok(Placed {
        id,
        has_ssh_keys: wanted.has_ssh_keys,
        first,
        next,
    })
}

fn read(call: &Call, input: &Input) -> Result<Wanted, ApiError> {
    let name = input.name()?.to_owned();
    check_host_name(&name)?;
    let server_type = read_server_type(input)?;
    let location = read_location(call, input, server_type)?;
    let image = required("image", input.id_or_name("image")?)?;
    let image = images::for_server(call, &image, server_type.architecture)?.id;
    let (ipv4, ipv6) = read_public_net(call, input, location)?;
    input.flag("automount")?;
    if !input.ids("volumes")?.is_empty() {
        return Err(ApiError::invalid("volumes", "volume not found"));
    }
    let wanted = Wanted {
        name,
        labels: input.labels()?.unwrap_or_default(),
        server_type,
        location,
        image,
        user_data: read_user_data(input)?,
        has_ssh_keys: read_ssh_keys(call, input)?,
        firewalls: read_firewalls(call, input)?,
        networks: read_networks(call, input)?,
        placement_group: input.id("placement_group")?,
        ipv4,
        ipv6,
        start: input.flag("start_after_create")?.unwrap_or(true),
    };
    if let Some(group) = wanted.placement_group {
        placement_groups::check_room(call.project(), group)?;
    }
    Ok(wanted)
}

pub(crate) fn check_host_name(name: &str) -> Result<(), ApiError> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(ApiError::invalid("name", "is not a valid host name"));
    }
    Ok(())
}

/// Refuses a name that another server of the project has.
pub(crate) fn check_name(call: &Call, name: &str, but: Option<u64>) -> Result<(), ApiError> {
    check_host_name(name)?;
    let mut others = call
        .project()
        .servers
        .values()
        .filter(|server| Some(server.id) != but);
    if others.any(|server| server.name == name) {
        return Err(ApiError::not_unique("name", "server name is already used"));
    }
    Ok(())
}

fn read_server_type(input: &Input) -> Result<&'static ServerType, ApiError> {
    let wanted = required("server_type", input.id_or_name("server_type")?)?;
    let found = catalogue::server_type_named(&wanted);
    found.ok_or_else(|| ApiError::invalid("server_type", "server type not found"))
}

fn read_location(
    call: &Call,
    input: &Input,
    kind: &'static ServerType,
) -> Result<&'static Location, ApiError> {
    let sold = |name: &str| kind.locations.contains(&name) && !kind.is_gone_from(name);
    let Some(wanted) = input.id_or_name("location")? else {
        let names = kind.locations.iter().filter(|name| sold(name));
        let with_stock = names
            .clone()
            .find(|name| call.state.stock.has(kind.name, name));
        let first = with_stock.or_else(|| names.clone().next());
        let place = first.and_then(|name| catalogue::location_named(&IdOrName::from_text(name)));
        return place.ok_or_else(|| ApiError::invalid("server_type", "server type is deprecated"));
    };
    let place = catalogue::location_named(&wanted)
        .ok_or_else(|| ApiError::invalid("location", "location not found"))?;
    if !sold(place.name) {
        return Err(ApiError::invalid(
            "location",
            "unsupported location for server type",
        ));
    }
    Ok(place)
}

fn read_user_data(input: &Input) -> Result<Option<String>, ApiError> {
    let user_data = input.text("user_data")?;
    if user_data.is_some_and(|text| text.len() > MAX_USER_DATA) {
        let complaint = format!("is too long (maximum is {MAX_USER_DATA} bytes)");
        return Err(ApiError::invalid("user_data", complaint));
    }
    Ok(user_data.map(str::to_owned))
}

fn read_ssh_keys(call: &Call, input: &Input) -> Result<bool, ApiError> {
    let wanted = input.ids_or_names("ssh_keys")?;
    for key in &wanted {
        let mut known = call.project().ssh_keys.values();
        if !known.any(|known| key.is(known.id, &known.name)) {
            return Err(ApiError::invalid("ssh_keys", "SSH key not found"));
        }
    }
    Ok(!wanted.is_empty())
}

fn read_firewalls(call: &Call, input: &Input) -> Result<Vec<u64>, ApiError> {
    let entries = input.objects("firewalls")?;
    let ids = entries
        .iter()
        .map(|entry| required("firewalls", entry.id("firewall")?));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    if ids.len() > firewalls::MAX_PER_SERVER {
        return Err(ApiError::invalid(
            "firewalls",
            "at most 5 firewalls per server",
        ));
    }
    if ids
        .iter()
        .any(|id| !call.project().firewalls.contains_key(id))
    {
        return Err(ApiError::invalid("firewalls", "firewall not found"));
    }
    Ok(ids)
}

fn read_networks(call: &Call, input: &Input) -> Result<Vec<u64>, ApiError> {
    let ids = input.ids("networks")?;
    for id in &ids {
        networks::check_room(call.project(), *id)?;
    }
    Ok(ids)
}

fn read_public_net(
    call: &Call,
    input: &Input,
    location: &Location,
) -> Result<(Address, Address), ApiError> {
    let Some(net) = input.object("public_net")? else {
        return Ok((Address::New, Address::New));
    };
    let address = |family, field: &str, enable: &str| {
        let enabled = net.flag(enable)?.unwrap_or(true);
        match net.id(field)? {
            Some(id) => {
                check_primary_ip(call, id, family, location).map(|()| Address::Existing(id))
            }
            None if enabled => Ok(Address::New),
            None => Ok(Address::None),
        }
    };
    let ipv4 = address(Family::V4, "ipv4", "enable_ipv4")?;
    let ipv6 = address(Family::V6, "ipv6", "enable_ipv6")?;
    let nowhere = (ipv4, ipv6) == (Address::None, Address::None);
    if nowhere && input.ids("networks")?.is_empty() {
        let complaint = "a server needs a public address or a network";
        return Err(ApiError::invalid("public_net", complaint));
    }
    Ok((ipv4, ipv6))
}

fn check_primary_ip(
    call: &Call,
    id: u64,
    family: Family,
    location: &Location,
) -> Result<(), ApiError> {
    let found = call.project().primary_ips.get(&id);
    let found = found.ok_or_else(|| ApiError::invalid("public_net", "primary IP not found"))?;
    if found.family != family {
        let message = "primary IP has the wrong version";
        return Err(ApiError::new(412, "primary_ip_version_mismatch", message));
    }
    if found.assignee.is_some() {
        return Err(ApiError::unprocessable(
            "primary_ip_assigned",
            "primary IP is assigned",
        ));
    }
    if found.location.id != location.id {
        let message = "primary IP is in another location";
        return Err(ApiError::unprocessable(
            "primary_ip_datacenter_mismatch",
            message,
        ));
    }
    Ok(())
}

fn check_quota(call: &Call) -> Result<(), ApiError> {
    let project = call.project();
    if project
        .max_servers
        .is_some_and(|max| project.servers.len() >= max)
    {
        return Err(ApiError::resource_limit_exceeded(
            "server limit reached",
            "server_limit",
        ));
    }
    Ok(())
}

fn take_stock(call: &mut Call, kind: &ServerType, place: &Location) -> Result<(), ApiError> {
    if !call.state.stock.has(kind.name, place.name) {
        return Err(ApiError::out_of_stock());
    }
    call.state.stock.take(kind.name, place.name);
    Ok(())
}

/// Puts the server into the project, with its addresses, firewalls and networks.
fn build(call: &mut Call, wanted: &Wanted) -> Result<u64, ApiError> {
    let id = call.state.new_id();
    let ipv4 = give_address(call, id, Family::V4, wanted.ipv4, wanted.location);
    let ipv6 = give_address(call, id, Family::V6, wanted.ipv6, wanted.location);
    let server = Server {
        id,
        name: wanted.name.clone(),
        created: call.now,
        labels: wanted.labels.clone(),
        server_type: wanted.server_type,
        location: wanted.location,
        image: Some(wanted.image),
        disk: wanted.server_type.disk,
        user_data: wanted.user_data.clone(),
        ipv4,
        ipv6,
        private_net: Vec::new(),
        placement_group: wanted.placement_group,
        delete_protected: false,
        rebuild_protected: false,
        has_ssh_keys: wanted.has_ssh_keys,
        ignores_acpi: false,
        locked_until: call.now,
        plan: vec![(call.now, Status::Initializing)],
    };
    let project = call.project_mut();
    project.servers.insert(id, server);
    firewalls::attach(project, &wanted.firewalls, id);
    for network in &wanted.networks {
        networks::attach(project, *network, id, None, Vec::new())?;
    }
    Ok(id)
}

fn give_address(
    call: &mut Call,
    server: u64,
    family: Family,
    wanted: Address,
    location: &'static Location,
) -> Option<u64> {
    let id = match wanted {
        Address::None => return None,
        Address::Existing(id) => id,
        Address::New => {
            let primary = PrimaryIp::of_server(call.state, family, location, call.now);
            let id = primary.id;
            call.project_mut().primary_ips.insert(id, primary);
            id
        }
    };
    let primary = call.project_mut().primary_ips.get_mut(&id)?;
    primary.assignee = Some(server);
    Some(id)
}

/// `create_server`, and what follows once it is over.
fn begin_actions(call: &mut Call, id: u64, wanted: &Wanted) -> (Action, Vec<Action>) {
    let first = call.begin("create_server", vec![("server", id)]);
    let mut next = Vec::new();
    if wanted.start {
        let takes = call.state.action_time();
        next.push(call.begin_at("start_server", vec![("server", id)], first.ends, takes));
    }
    for network in &wanted.networks {
        let resources = vec![("server", id), ("network", *network)];
        let takes = call.state.action_time();
        next.push(call.begin_at("attach_to_network", resources, first.ends, takes));
    }
    (first, next)
}

/// Plans the server's status and tells its machine. A failed action leaves the server off.
fn schedule(
    call: &mut Call,
    id: u64,
    wanted: &Wanted,
    first: &Action,
    next: &[Action],
) -> Result<(), ApiError> {
    let start = next.iter().find(|action| action.command == "start_server");
    let starts = start.filter(|start| first.succeeds() && start.succeeds());
    let plan = match starts {
        Some(start) => vec![
            (call.now, Status::Initializing),
            (first.ends, Status::Starting),
            (start.ends, Status::Running),
        ],
        None => vec![(call.now, Status::Initializing), (first.ends, Status::Off)],
    };
    let ends = next
        .iter()
        .map(|action| action.ends)
        .fold(first.ends, Timestamp::max);
    let server = servers::find_mut(call, id)?;
    server.plan = plan;
    server.locked_until = ends;
    let after = until(call.now, first.ends);
    let boot = starts.map(|_| call.state.boot(after));
    order_machine(call, id, wanted.user_data.clone(), boot)
}

/// Makes the machine of a server that was just put into the project.
pub(crate) fn order_machine(
    call: &mut Call,
    id: u64,
    user_data: Option<String>,
    boot: Option<Boot>,
) -> Result<(), ApiError> {
    let server = servers::find(call, id)?;
    let address = server.address(call.project());
    let hostname = server.name.clone();
    call.state.orders.push(Order {
        server: id,
        what: What::Create {
            address,
            hostname,
            user_data,
            boot,
        },
    });
    Ok(())
}

/// How long it is from `now` until `then`.
pub(crate) fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

/// A password where no key was given: Hetzner also mails it, so the count must stay zero.
pub(crate) fn root_password(call: &mut Call, has_ssh_keys: bool) -> Value {
    if has_ssh_keys {
        return Value::Null;
    }
    call.project_mut().root_passwords += 1;
    json!(call.state.new_root_password())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::ActionFault;
    use crate::testing::{KEY, World, wish};

    #[test]
    fn a_new_server_goes_from_initializing_over_starting_to_running() {
        let mut world = World::new();
        let created = world.ok("POST", "/servers", &wish(&json!({})));
        let id = &created["server"]["id"];
        assert!(
            created["server"]["public_net"]["ipv4"]["ip"]
                .as_str()
                .unwrap()
                .starts_with("127.99.")
        );
        assert_eq!(created["action"]["command"], "create_server");
        assert_eq!(created["next_actions"][0]["command"], "start_server");
        let url = format!("/servers/{id}");
        let mut seen = Vec::new();
        for _ in 0..3 {
            let server = world.get(&url)["server"].clone();
            seen.push((
                server["status"].as_str().unwrap().to_owned(),
                server["locked"].clone(),
            ));
            world.pass(2);
        }
        let expected = [
            ("initializing", true),
            ("starting", true),
            ("running", false),
        ];
        assert_eq!(
            seen,
            expected.map(|(status, locked)| (status.to_owned(), json!(locked)))
        );
    }

    #[test]
    fn a_failed_start_leaves_the_server_off_and_the_action_in_error() {
        let mut world = World::new();
        world.action_faults = vec![ActionFault::fails("start_server", "unknown_error")];
        let created = world.ok("POST", "/servers", &wish(&json!({})));
        world.pass(4);
        let action = world.get(&format!("/actions/{}", created["next_actions"][0]["id"]));
        assert_eq!(action["action"]["status"], "error");
        assert_eq!(action["action"]["error"]["code"], "unknown_error");
        let server = world.get(&format!("/servers/{}", created["server"]["id"]));
        assert_eq!(server["server"]["status"], "off");
    }

    #[test]
    fn whatever_is_wrong_with_a_request_is_named() {
        let mut world = World::new();
        let long = "x".repeat(32 * 1024 + 1);
        for (field, value) in [
            ("name", json!("under_score")),
            ("name", json!(null)),
            ("server_type", json!("cx99")),
            ("server_type", json!(true)),
            ("image", json!("debian-1")),
            ("image", json!(114_690_389)),
            ("location", json!("mars1")),
            ("location", json!("ash")),
            ("ssh_keys", json!(["nobody"])),
            ("firewalls", json!([{"firewall": 7}])),
            ("networks", json!([7])),
            ("placement_group", json!(7)),
            ("user_data", json!(long)),
            ("labels", json!({"k": "a/b"})),
            ("volumes", json!([7])),
            ("start_after_create", json!("yes")),
            (
                "public_net",
                json!({"enable_ipv4": false, "enable_ipv6": false}),
            ),
        ] {
            let reply = world.reply("POST", "/servers", &wish(&json!({field: value})));
            let body = reply.body.unwrap();
            assert_eq!(
                (reply.status, &body["error"]["code"]),
                (422, &json!("invalid_input")),
                "{field}"
            );
            assert_eq!(body["error"]["details"]["fields"][0]["name"], field);
        }
        assert!(world.state.projects[0].servers.is_empty());
    }

    #[test]
    fn user_data_of_exactly_the_limit_is_taken() {
        let mut world = World::new();
        let id = world.server_with(&json!({"user_data": "x".repeat(32 * 1024)}));
        assert_eq!(
            world.state.projects[0].servers[&id]
                .user_data
                .as_ref()
                .unwrap()
                .len(),
            32 * 1024
        );
    }

    #[test]
    fn a_deprecated_type_cannot_be_ordered_where_it_is_gone() {
        let mut world = World::new();
        let gone = wish(&json!({"server_type": "cx22"}));
        assert_eq!(
            world.refusal("POST", "/servers", &gone),
            (422, "invalid_input".to_owned())
        );
        world.server_with(&json!({"server_type": "cpx11", "location": "ash"}));
    }

    #[test]
    fn a_name_is_unique_in_its_project() {
        let mut world = World::new();
        world.server("a");
        let again = world.refusal("POST", "/servers", &wish(&json!({})));
        assert_eq!(again, (409, "uniqueness_error".to_owned()));
        assert_eq!(world.state.projects[0].servers.len(), 1);
    }

    #[test]
    fn quota_and_stock_are_refused_as_hetzner_refuses_them() {
        let mut world = World::new();
        world.state.projects[0].max_servers = Some(1);
        world.state.stock.set("cx23", "nbg1", Some(0));
        let refused = world.refusal("POST", "/servers", &wish(&json!({})));
        assert_eq!(refused, (412, "resource_unavailable".to_owned()));
        let types = world.get("/server_types?name=cx23");
        let nbg1 = types["server_types"][0]["locations"]
            .as_array()
            .unwrap()
            .iter();
        let nbg1 = nbg1
            .clone()
            .find(|location| location["name"] == "nbg1")
            .unwrap();
        assert_eq!(nbg1["available"], false);
        world.server_with(&json!({"location": "hel1"}));
        let refused = world.refusal("POST", "/servers", &wish(&json!({"name": "b"})));
        assert_eq!(refused, (403, "resource_limit_exceeded".to_owned()));
    }

    #[test]
    fn limited_stock_is_used_up() {
        let mut world = World::new();
        world.state.stock.set("cx23", "nbg1", Some(1));
        world.server("a");
        let refused = world.refusal("POST", "/servers", &wish(&json!({"name": "b"})));
        assert_eq!(refused.0, 412);
    }

    #[test]
    fn a_root_password_is_given_and_counted_only_without_a_key() {
        let mut world = World::new();
        world.ok(
            "POST",
            "/ssh_keys",
            &json!({"name": "k", "public_key": KEY}),
        );
        let with_key = world.ok("POST", "/servers", &wish(&json!({"ssh_keys": ["k"]})));
        assert_eq!(with_key["root_password"], Value::Null);
        let without = world.ok("POST", "/servers", &wish(&json!({"name": "b"})));
        assert!(without["root_password"].is_string());
        assert_eq!(world.state.projects[0].root_passwords, 1);
    }

    #[test]
    fn networks_are_attached_by_an_action_of_their_own() {
        let mut world = World::new();
        let subnet =
            json!({"type": "cloud", "network_zone": "eu-central", "ip_range": "10.0.0.0/24"});
        let network = json!({"name": "n", "ip_range": "10.0.0.0/16", "subnets": [subnet]});
        let network = world.ok("POST", "/networks", &network)["network"]["id"].clone();
        let created = world.ok("POST", "/servers", &wish(&json!({"networks": [network]})));
        assert_eq!(created["next_actions"][1]["command"], "attach_to_network");
        assert_eq!(created["server"]["private_net"][0]["ip"], "10.0.0.2");
        let members = world.get(&format!("/networks/{network}/members"));
        assert_eq!(members["members"][0]["id"], created["server"]["id"]);
    }
}
