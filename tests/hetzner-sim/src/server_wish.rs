//! What a request for a server asks for, read and checked.

use crate::api::Call;
use crate::catalogue::{self, Location, ServerType};
use crate::error::ApiError;
use crate::labels::Labels;
use crate::primary_ips::Family;
use crate::request::{IdOrName, Input, required};
use crate::{firewalls, images, networks, placement_groups};

/// The most that `user_data` may hold, in bytes as sent.
const MAX_USER_DATA: usize = 32 * 1024;

/// A request for a server that was found to be in order.
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) server_type: &'static ServerType,
    pub(crate) location: &'static Location,
    pub(crate) image: u64,
    pub(crate) user_data: Option<String>,
    /// Public keys that root is to have.
    pub(crate) ssh_keys: Vec<String>,
    pub(crate) firewalls: Vec<u64>,
    pub(crate) networks: Vec<u64>,
    pub(crate) placement_group: Option<u64>,
    pub(crate) ipv4: Address,
    pub(crate) ipv6: Address,
    pub(crate) start: bool,
}

/// What public address a server is to have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Address {
    None,
    New,
    Existing(u64),
}

/// Reads and checks all of a request but its name's uniqueness, quota and stock.
pub(crate) fn read(call: &Call, input: &Input) -> Result<Wanted, ApiError> {
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
        ssh_keys: read_ssh_keys(call, input)?,
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

fn read_ssh_keys(call: &Call, input: &Input) -> Result<Vec<String>, ApiError> {
    let wanted = input.ids_or_names("ssh_keys")?;
    let public_key = |key: &IdOrName| {
        let mut known = call.project().ssh_keys.values();
        let known = known.find(|known| key.is(known.id, &known.name));
        let known = known.ok_or_else(|| ApiError::invalid("ssh_keys", "SSH key not found"))?;
        Ok(known.public_key.clone())
    };
    wanted.iter().map(public_key).collect()
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
