//! What Hetzner sells and where: locations and server types, with prices and deprecations.
//!
//! Names, sizes and generations are those in use in late 2026; prices are of the right order and
//! differ by location, as the real ones do.

use serde_json::{Value, json};

use crate::api::{Call, Reply};
use crate::error::ApiError;
use crate::paging;
use crate::request::IdOrName;
use crate::state::State;

/// A place where servers stand.
#[derive(Debug)]
pub(crate) struct Location {
    pub(crate) id: u64,
    pub(crate) name: &'static str,
    description: &'static str,
    country: &'static str,
    city: &'static str,
    latitude: f64,
    longitude: f64,
    pub(crate) network_zone: &'static str,
}

const fn location(
    id: u64,
    names: (&'static str, &'static str),
    place: (&'static str, &'static str),
    at: (f64, f64),
    network_zone: &'static str,
) -> Location {
    Location {
        id,
        name: names.0,
        description: names.1,
        country: place.0,
        city: place.1,
        latitude: at.0,
        longitude: at.1,
        network_zone,
    }
}

pub(crate) static LOCATIONS: [Location; 6] = [
    location(
        1,
        ("fsn1", "Falkenstein DC Park 1"),
        ("DE", "Falkenstein"),
        (50.47612, 12.370_071),
        "eu-central",
    ),
    location(
        2,
        ("nbg1", "Nuremberg DC Park 1"),
        ("DE", "Nuremberg"),
        (49.452_102, 11.076_665),
        "eu-central",
    ),
    location(
        3,
        ("hel1", "Helsinki DC Park 1"),
        ("FI", "Helsinki"),
        (60.169_855, 24.938_379),
        "eu-central",
    ),
    location(
        4,
        ("ash", "Ashburn, VA"),
        ("US", "Ashburn, VA"),
        (39.045_821, -77.487_073),
        "us-east",
    ),
    location(
        5,
        ("hil", "Hillsboro, OR"),
        ("US", "Hillsboro, OR"),
        (45.54222, -122.951_924),
        "us-west",
    ),
    location(
        6,
        ("sin", "Singapore"),
        ("SG", "Singapore"),
        (1.283_333, 103.833_333),
        "ap-southeast",
    ),
];

impl Location {
    pub(crate) fn show(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "description": self.description,
            "country": self.country,
            "city": self.city,
            "latitude": self.latitude,
            "longitude": self.longitude,
            "network_zone": self.network_zone,
        })
    }

    /// The data centre that a server's metadata still names.
    pub(crate) fn data_centre(&self) -> &'static str {
        match self.name {
            "nbg1" => "nbg1-dc3",
            "hel1" => "hel1-dc2",
            "ash" => "ash-dc1",
            "hil" => "hil-dc1",
            "sin" => "sin-dc1",
            _ => "fsn1-dc14",
        }
    }

    /// Prices outside Europe are higher; in percent of the European price.
    fn price_level(&self) -> u64 {
        match self.network_zone {
            "eu-central" => 100,
            "ap-southeast" => 140,
            _ => 115,
        }
    }
}

pub(crate) fn location_named(wanted: &IdOrName) -> Option<&'static Location> {
    LOCATIONS
        .iter()
        .find(|location| wanted.is(location.id, location.name))
}

const EUROPE: &[&str] = &["fsn1", "nbg1", "hel1"];
const EVERYWHERE: &[&str] = &["fsn1", "nbg1", "hel1", "ash", "hil", "sin"];

/// A kind of server.
#[derive(Debug)]
pub(crate) struct ServerType {
    pub(crate) id: u64,
    pub(crate) name: &'static str,
    pub(crate) cores: u32,
    memory: u32,
    pub(crate) disk: u32,
    cpu_type: &'static str,
    pub(crate) architecture: &'static str,
    category: &'static str,
    /// Net price of an hour in Europe, in 1/10,000 of a euro.
    hourly: u64,
    pub(crate) locations: &'static [&'static str],
    /// Where it can no longer be ordered.
    gone_from: &'static [&'static str],
}

impl ServerType {
    const fn gone(mut self, gone_from: &'static [&'static str]) -> Self {
        self.gone_from = gone_from;
        self
    }

    pub(crate) fn is_gone_from(&self, location: &str) -> bool {
        self.gone_from.contains(&location)
    }
}

type Size = (u32, u32, u32);

const fn cost_optimized(id: u64, name: &'static str, size: Size, hourly: u64) -> ServerType {
    ServerType {
        id,
        name,
        cores: size.0,
        memory: size.1,
        disk: size.2,
        cpu_type: "shared",
        architecture: "x86",
        category: "cost_optimized",
        hourly,
        locations: EUROPE,
        gone_from: &[],
    }
}

const fn arm(id: u64, name: &'static str, size: Size, hourly: u64) -> ServerType {
    ServerType {
        architecture: "arm",
        ..cost_optimized(id, name, size, hourly)
    }
}

const fn regular(id: u64, name: &'static str, size: Size, hourly: u64) -> ServerType {
    ServerType {
        category: "regular_purpose",
        locations: EVERYWHERE,
        ..cost_optimized(id, name, size, hourly)
    }
}

const fn dedicated(id: u64, name: &'static str, size: Size, hourly: u64) -> ServerType {
    ServerType {
        category: "general_purpose",
        cpu_type: "dedicated",
        locations: EVERYWHERE,
        ..cost_optimized(id, name, size, hourly)
    }
}

pub(crate) static SERVER_TYPES: [ServerType; 24] = [
    regular(22, "cpx11", (2, 2, 40), 69).gone(EUROPE),
    regular(23, "cpx21", (3, 4, 80), 114).gone(EUROPE),
    arm(45, "cax11", (2, 4, 40), 60),
    arm(93, "cax21", (4, 8, 80), 104),
    arm(94, "cax31", (8, 16, 160), 200),
    arm(95, "cax41", (16, 32, 320), 392),
    dedicated(96, "ccx13", (2, 8, 80), 200),
    dedicated(97, "ccx23", (4, 16, 160), 392),
    dedicated(98, "ccx33", (8, 32, 240), 777),
    dedicated(99, "ccx43", (16, 64, 360), 1546),
    dedicated(100, "ccx53", (32, 128, 600), 3083),
    dedicated(101, "ccx63", (48, 192, 960), 4620),
    cost_optimized(104, "cx22", (2, 4, 40), 61).gone(EUROPE),
    cost_optimized(105, "cx32", (4, 8, 80), 109).gone(EUROPE),
    regular(108, "cpx12", (1, 2, 40), 104),
    regular(109, "cpx22", (2, 4, 80), 128),
    regular(110, "cpx32", (4, 8, 160), 224),
    regular(111, "cpx42", (8, 16, 320), 408),
    regular(112, "cpx52", (12, 24, 480), 584),
    regular(113, "cpx62", (16, 32, 640), 776),
    cost_optimized(114, "cx23", (2, 4, 40), 56),
    cost_optimized(115, "cx33", (4, 8, 80), 88),
    cost_optimized(116, "cx43", (8, 16, 160), 152),
    cost_optimized(117, "cx53", (16, 32, 320), 280),
];

pub(crate) fn server_type_named(wanted: &IdOrName) -> Option<&'static ServerType> {
    SERVER_TYPES
        .iter()
        .find(|kind| wanted.is(kind.id, kind.name))
}

/// Net and gross price, from 1/10,000 of a euro.
pub(crate) fn price(net: u64) -> Value {
    let text = |value: u64| format!("{}.{:04}000000", value / 10_000, value % 10_000);
    json!({"net": text(net), "gross": text(net * 119 / 100)})
}

impl ServerType {
    pub(crate) fn prices(&self) -> Vec<Value> {
        let sold = LOCATIONS
            .iter()
            .filter(|location| self.locations.contains(&location.name));
        sold.map(|location| self.price_in(location)).collect()
    }

    fn price_in(&self, location: &Location) -> Value {
        let hourly = self.hourly * location.price_level() / 100;
        let terabytes: u64 = if location.network_zone == "eu-central" {
            20
        } else {
            1
        };
        json!({
            "location": location.name,
            "price_hourly": price(hourly),
            "price_monthly": price(hourly * 624),
            "included_traffic": terabytes << 40,
            "price_per_tb_traffic": price(10_000),
        })
    }

    fn show_location(&self, location: &Location, state: &State) -> Value {
        let gone = self.is_gone_from(location.name);
        json!({
            "id": location.id,
            "name": location.name,
            "deprecation": gone.then(deprecation),
            "recommended": !gone && self.category != "general_purpose",
            "available": !gone && state.stock.has(self.name, location.name),
        })
    }

    pub(crate) fn show(&self, state: &State) -> Value {
        let gone = self
            .locations
            .iter()
            .all(|location| self.is_gone_from(location));
        let sold = LOCATIONS
            .iter()
            .filter(|location| self.locations.contains(&location.name));
        json!({
            "id": self.id,
            "name": self.name,
            "description": self.name.to_uppercase(),
            "cores": self.cores,
            "memory": self.memory,
            "disk": self.disk,
            "deprecated": gone,
            "deprecation": gone.then(deprecation),
            "prices": self.prices(),
            "storage_type": "local",
            "cpu_type": self.cpu_type,
            "category": self.category,
            "architecture": self.architecture,
            "locations": sold.map(|place| self.show_location(place, state)).collect::<Vec<_>>(),
        })
    }
}

fn deprecation() -> Value {
    json!({"announced": "2025-10-16T06:00:00Z", "unavailable_after": "2026-01-01T00:00:00Z"})
}

pub(crate) fn server_types(call: &Call, rest: &[&str]) -> Result<Reply, ApiError> {
    let show = |kind: &ServerType| kind.show(call.state);
    match rest {
        [] => {
            let name = call.request.param("name");
            let named = |kind: &&ServerType| name.is_none_or(|name| kind.name == name);
            paging::page(
                call.request,
                "server_types",
                SERVER_TYPES.iter().filter(named).collect(),
                show,
            )
        }
        [id] => server_type_named(&IdOrName::from_text(id))
            .map(|kind| Reply::ok(json!({"server_type": show(kind)})))
            .ok_or_else(|| ApiError::not_found("server type")),
        _ => Err(ApiError::not_found("route")),
    }
}

pub(crate) fn locations(call: &Call, rest: &[&str]) -> Result<Reply, ApiError> {
    match rest {
        [] => {
            let name = call.request.param("name");
            let named = |place: &&Location| name.is_none_or(|name| place.name == name);
            let found = LOCATIONS.iter().filter(named).collect();
            paging::page(call.request, "locations", found, Location::show)
        }
        [id] => location_named(&IdOrName::from_text(id))
            .map(|place| Reply::ok(json!({"location": place.show()})))
            .ok_or_else(|| ApiError::not_found("location")),
        _ => Err(ApiError::not_found("route")),
    }
}
