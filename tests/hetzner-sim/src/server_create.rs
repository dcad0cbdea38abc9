//! `POST /servers`: everything about a new server in one request.
//!
//! The order of refusals is: what is wrong with the request, the quota, the name, the stock.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::actions::Action;
use crate::api::{Call, Reply};
use crate::catalogue::{Location, ServerType};
use crate::error::ApiError;
use crate::ledger::Origin;
use crate::machines::{Boot, Order, What};
use crate::primary_ips::{Family, PrimaryIp};
use crate::server_wish::{self, Address, Wanted, check_name};
use crate::servers::{self, Server, Status};
use crate::{firewalls, networks};

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
    let wanted = server_wish::read(call, &call.request.input()?)?;
    check_quota(call)?;
    check_name(call, &wanted.name, None)?;
    take_stock(call, wanted.server_type, wanted.location)?;
    let id = build(call, &wanted)?;
    let (first, next) = begin_actions(call, id, &wanted);
    schedule(call, id, &first, &next)?;
    let server = servers::find(call, id)?.clone();
    call.state.ledger.born(call.project_number, &server, origin);
    Ok(Placed {
        id,
        has_ssh_keys: !wanted.ssh_keys.is_empty(),
        first,
        next,
    })
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
        protected: false,
        ssh_keys: wanted.ssh_keys.clone(),
        ignores_acpi: false,
        hidden: false,
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
fn schedule(call: &mut Call, id: u64, first: &Action, next: &[Action]) -> Result<(), ApiError> {
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
    order_machine(call, id, boot)
}

/// Makes the machine of a server that was just put into the project.
fn order_machine(call: &mut Call, id: u64, boot: Option<Boot>) -> Result<(), ApiError> {
    let server = servers::find(call, id)?;
    let what = What::Create {
        address: server.address(call.project()),
        hostname: server.name.clone(),
        user_data: server.user_data.clone(),
        ssh_keys: server.ssh_keys.clone(),
        snapshot: server.snapshot(call.project()),
        boot,
    };
    call.state.orders.push(Order { server: id, what });
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
