//! `GET /pricing`.

use serde_json::{Value, json};

use crate::api::{Call, Reply};
use crate::catalogue::{LOCATIONS, SERVER_TYPES, price};

pub(crate) fn get(_call: &Call) -> Reply {
    let everywhere = |price_of: &dyn Fn() -> Value| -> Vec<Value> {
        let priced = LOCATIONS.iter().map(|location| {
            let mut entry = price_of();
            entry["location"] = json!(location.name);
            entry
        });
        priced.collect()
    };
    let ip =
        |hourly: u64| json!({"price_hourly": price(hourly), "price_monthly": price(hourly * 624)});
    let types = SERVER_TYPES
        .iter()
        .map(|kind| json!({"id": kind.id, "name": kind.name, "prices": kind.prices()}));
    Reply::ok(json!({"pricing": {
        "currency": "EUR",
        "vat_rate": "19.00",
        "primary_ips": [
            {"type": "ipv4", "prices": everywhere(&|| ip(8))},
            {"type": "ipv6", "prices": everywhere(&|| ip(0))},
        ],
        "floating_ips": [
            {"type": "ipv4", "prices": everywhere(&|| json!({"price_monthly": price(30_000)}))},
            {"type": "ipv6", "prices": everywhere(&|| json!({"price_monthly": price(10_000)}))},
        ],
        "floating_ip": {"price_monthly": price(30_000)},
        "image": {"price_per_gb_month": price(110)},
        "volume": {"price_per_gb_month": price(440)},
        "server_backup": {"percentage": "20.00"},
        "server_types": types.collect::<Vec<_>>(),
        "load_balancer_types": [],
    }}))
}
