//! Networks: ranges, subnets, routes, and the servers in them.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{Ask, Call, Reply, rfc3339, unknown_ask};
use crate::error::ApiError;
use crate::labels::Labels;
use crate::network_ranges::Range;
use crate::paging::{self, Listed};
use crate::request::{Input, required};
use crate::servers::PrivateNet;
use crate::state::Project;

/// About how many resources a network takes.
const MAX_ATTACHED: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Subnet {
    kind: String,
    range: Range,
    network_zone: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Route {
    destination: String,
    gateway: String,
}

/// A private network.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    id: u64,
    pub(crate) name: String,
    labels: Labels,
    created: Timestamp,
    range: Range,
    subnets: Vec<Subnet>,
    routes: Vec<Route>,
    delete_protected: bool,
    expose_routes_to_vswitch: bool,
}

impl Listed for Network {
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

impl Subnet {
    fn read(input: &Input, outer: Range, taken: &[Self]) -> Result<Self, ApiError> {
        let kind = required("type", input.text("type")?)?;
        if !["cloud", "server", "vswitch"].contains(&kind) {
            return Err(ApiError::invalid(
                "type",
                "must be cloud, server or vswitch",
            ));
        }
        let network_zone = required("network_zone", input.text("network_zone")?)?;
        let range = match input.text("ip_range")? {
            Some(text) => Range::parse(text).filter(|range| range.within(outer)),
            None => Some(outer.first_subnet()),
        };
        let range =
            range.ok_or_else(|| ApiError::invalid("ip_range", "is not within the network"))?;
        let overlaps = |other: &Self| other.range.within(range) || range.within(other.range);
        if taken.iter().any(overlaps) {
            return Err(ApiError::invalid(
                "ip_range",
                "overlaps with another subnet",
            ));
        }
        Ok(Self {
            kind: kind.to_owned(),
            range,
            network_zone: network_zone.to_owned(),
        })
    }

    fn show(&self) -> Value {
        json!({
            "type": self.kind,
            "ip_range": self.range.text(),
            "network_zone": self.network_zone,
            "gateway": self.range.gateway(),
            "vswitch_id": null,
        })
    }
}

impl Network {
    fn show(&self, project: &Project) -> Value {
        let routes = self.routes.iter();
        let routes = routes.map(|r| json!({"destination": r.destination, "gateway": r.gateway}));
        json!({
            "id": self.id,
            "name": self.name,
            "ip_range": self.range.text(),
            "subnets": self.subnets.iter().map(Subnet::show).collect::<Vec<_>>(),
            "routes": routes.collect::<Vec<_>>(),
            "servers": members(project, self.id).map(|(server, _)| server).collect::<Vec<_>>(),
            "load_balancers": [],
            "protection": {"delete": self.delete_protected},
            "labels": self.labels,
            "created": rfc3339(self.created),
            "expose_routes_to_vswitch": self.expose_routes_to_vswitch,
        })
    }
}

fn members(project: &Project, network: u64) -> impl Iterator<Item = (u64, &PrivateNet)> {
    project.servers.values().filter_map(move |server| {
        let mut nets = server.private_net.iter();
        Some((server.id, nets.find(|net| net.network == network)?))
    })
}

/// Refuses a network that cannot take another server.
pub(crate) fn check_room(project: &Project, network: u64) -> Result<(), ApiError> {
    let found = project.networks.get(&network);
    let found = found.ok_or_else(|| ApiError::invalid("networks", "network not found"))?;
    if found.subnets.is_empty() {
        let message = "network has no subnet";
        return Err(ApiError::unprocessable("no_subnet_available", message));
    }
    if members(project, network).count() >= MAX_ATTACHED {
        let message = "network is full";
        return Err(ApiError::resource_limit_exceeded(
            message,
            "network_attachment_limit",
        ));
    }
    Ok(())
}

/// Attaches a server, to the address asked for or the first free one.
pub(crate) fn attach(
    project: &mut Project,
    network: u64,
    server: u64,
    ip: Option<String>,
    alias_ips: Vec<String>,
) -> Result<(), ApiError> {
    check_room(project, network)?;
    let taken: Vec<&str> = members(project, network)
        .map(|(_, net)| net.ip.as_str())
        .collect();
    if members(project, network).any(|(member, _)| member == server) {
        let message = "server is already attached to this network";
        return Err(ApiError::unprocessable("server_already_attached", message));
    }
    let free = |ip: &String| !taken.contains(&ip.as_str());
    let subnets = project
        .networks
        .get(&network)
        .map(|network| network.subnets.as_slice());
    let mut hosts = subnets
        .unwrap_or_default()
        .iter()
        .flat_map(|subnet| subnet.range.hosts());
    let ip = match ip {
        Some(wanted) => hosts.find(|host| *host == wanted).filter(free),
        None => hosts.find(free),
    };
    let ip =
        ip.ok_or_else(|| ApiError::unprocessable("ip_not_available", "IP is not available"))?;
    if let Some(server) = project.servers.get_mut(&server) {
        server.private_net.push(PrivateNet {
            network,
            ip,
            alias_ips,
        });
    }
    Ok(())
}

pub(crate) fn answer(call: &mut Call, ask: &Ask) -> Result<Reply, ApiError> {
    match ask {
        Ask::List => {
            let networks = paging::select(call.request, call.project().networks.values())?;
            let show = |network: &Network| network.show(call.project());
            paging::page(call.request, "networks", networks, show)
        }
        Ask::Create => create(call),
        Ask::Get(id) => shown(call, *id).map(Reply::ok),
        Ask::Update(id) => update(call, *id),
        Ask::Delete(id) => delete(call, *id),
        Ask::Members(id) => show_members(call, *id),
        Ask::Act(id, command) => act(call, *id, command),
    }
}

fn find<'a>(call: &'a Call, id: u64) -> Result<&'a Network, ApiError> {
    call.project()
        .networks
        .get(&id)
        .ok_or_else(|| ApiError::not_found("network"))
}

fn find_mut<'a>(call: &'a mut Call, id: u64) -> Result<&'a mut Network, ApiError> {
    let found = call.project_mut().networks.get_mut(&id);
    found.ok_or_else(|| ApiError::not_found("network"))
}

fn shown(call: &Call, id: u64) -> Result<Value, ApiError> {
    Ok(json!({"network": find(call, id)?.show(call.project())}))
}

fn show_members(call: &Call, id: u64) -> Result<Reply, ApiError> {
    let network = find(call, id)?;
    let subnet_of = |ip: &str| {
        let address = ip.parse::<Ipv4Addr>().ok()?.to_bits();
        let subnet = network
            .subnets
            .iter()
            .find(|subnet| subnet.range.holds(address));
        subnet.map(|subnet| subnet.range.text())
    };
    let found = members(call.project(), id).collect();
    paging::page(call.request, "members", found, |(server, net)| {
        json!({
            "id": server,
            "type": "server",
            "ip": net.ip,
            "alias_ips": net.alias_ips,
            "subnet": subnet_of(&net.ip),
            "status": "ok",
        })
    })
}

fn read_range(input: &Input) -> Result<Range, ApiError> {
    let range = Range::parse(required("ip_range", input.text("ip_range")?)?);
    let range = range.filter(|range| range.is_private());
    range.ok_or_else(|| ApiError::invalid("ip_range", "must be a private network of RFC 1918"))
}

fn read_route(input: &Input) -> Result<Route, ApiError> {
    let text = |field: &str| required(field, input.text(field)?).map(str::to_owned);
    Ok(Route {
        destination: text("destination")?,
        gateway: text("gateway")?,
    })
}

fn check_name(call: &Call, name: &str, but: Option<u64>) -> Result<(), ApiError> {
    let mut others = call
        .project()
        .networks
        .values()
        .filter(|other| Some(other.id) != but);
    if others.any(|other| other.name == name) {
        return Err(ApiError::not_unique("name", "network name is already used"));
    }
    Ok(())
}

fn create(call: &mut Call) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let name = input.name()?.to_owned();
    let range = read_range(&input)?;
    let mut subnets = Vec::new();
    for subnet in input.objects("subnets")? {
        subnets.push(Subnet::read(&subnet, range, &subnets)?);
    }
    let routes = input
        .objects("routes")?
        .iter()
        .map(read_route)
        .collect::<Result<_, _>>()?;
    check_name(call, &name, None)?;
    let network = Network {
        id: call.state.new_id(),
        name,
        labels: input.labels()?.unwrap_or_default(),
        created: call.now,
        range,
        subnets,
        routes,
        delete_protected: false,
        expose_routes_to_vswitch: input.flag("expose_routes_to_vswitch")?.unwrap_or(false),
    };
    let id = network.id;
    call.project_mut().networks.insert(id, network);
    shown(call, id).map(Reply::created)
}

fn update(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let (name, labels) = (input.text("name")?, input.labels()?);
    let expose = input.flag("expose_routes_to_vswitch")?;
    if let Some(name) = name {
        check_name(call, name, Some(id))?;
    }
    let network = find_mut(call, id)?;
    network.name = name.map_or_else(|| network.name.clone(), str::to_owned);
    network.labels = labels.unwrap_or_else(|| network.labels.clone());
    network.expose_routes_to_vswitch = expose.unwrap_or(network.expose_routes_to_vswitch);
    shown(call, id).map(Reply::ok)
}

fn delete(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    if find(call, id)?.delete_protected {
        return Err(ApiError::protected("network"));
    }
    let project = call.project_mut();
    project.networks.remove(&id);
    for server in project.servers.values_mut() {
        server.private_net.retain(|net| net.network != id);
    }
    Ok(Reply::no_content())
}

fn act(call: &mut Call, id: u64, command: &str) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let network = find_mut(call, id)?;
    match command {
        "add_subnet" => {
            let subnet = Subnet::read(&input, network.range, &network.subnets)?;
            network.subnets.push(subnet);
        }
        "delete_subnet" => {
            let range = required("ip_range", input.text("ip_range")?)?;
            network
                .subnets
                .retain(|subnet| subnet.range.text() != range);
        }
        "add_route" => network.routes.push(read_route(&input)?),
        "delete_route" => {
            let route = read_route(&input)?;
            network.routes.retain(|known| *known != route);
        }
        "change_ip_range" => {
            let range = read_range(&input)?;
            if !network
                .subnets
                .iter()
                .all(|subnet| subnet.range.within(range))
            {
                return Err(ApiError::invalid("ip_range", "does not hold all subnets"));
            }
            network.range = range;
        }
        "change_protection" => {
            network.delete_protected = input.flag("delete")?.unwrap_or(network.delete_protected);
        }
        _ => return Err(unknown_ask()),
    }
    let action = call.begin(command, vec![("network", id)]);
    Ok(Reply::created(json!({"action": action.show(call.now)})))
}
