//! Which type a server could become where it is, with the disk that it has.

use std::time::Instant;

use jiff::Timestamp;

use super::connection::Connection;
use crate::hetzner::{Place, Server};

/// What can become of a server whose type is not listed any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Retype {
    /// That cannot be said yet.
    #[default]
    Unknown,
    /// Only another server has a listed type.
    Impossible,
    /// It can become one of this type.
    To(String),
}

impl Connection {
    /// The first of the listed types that this server can become.
    pub fn retype(&self, server: &Server, listed: &[&str], now: Timestamp) -> Retype {
        let Some(types) = self.catalogue.server_types() else {
            return Retype::Unknown;
        };
        let in_stock = |name: &str| {
            let place = Place {
                server_type: name.to_owned(),
                location: server.location.name.clone(),
            };
            !self.stock.is_marked(&place, Instant::now())
        };
        let can = |name: &&&str| {
            let offered = types.iter().find(|offered| offered.name == **name);
            offered.is_some_and(|offered| offered.can_be_had_by(server, now)) && in_stock(name)
        };
        let found = listed.iter().find(can);
        found.map_or(Retype::Impossible, |name| Retype::To((*name).to_owned()))
    }
}
