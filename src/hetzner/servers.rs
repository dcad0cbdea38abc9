//! Servers as the API shows them.
//!
//! `root_password` of an answer is not a field of any type, so it is dropped while reading.

use super::Labels;
use super::firewalls::FirewallId;
use super::offer::{Architecture, ImageId};
use super::wire::{id, open_enum, or_default, parsed};
use serde::Deserialize;
use std::net::{Ipv4Addr, Ipv6Addr};

id! {
    /// Id of a server.
    ServerId
}

open_enum! {
    /// What a server does.
    ServerStatus {
        /// Being created.
        Initializing = "initializing",
        /// Being switched on.
        Starting = "starting",
        /// On.
        Running = "running",
        /// Being switched off.
        Stopping = "stopping",
        /// Off.
        Off = "off",
        /// Being deleted.
        Deleting = "deleting",
        /// Moving to another host.
        Migrating = "migrating",
        /// Its disk is being written anew.
        Rebuilding = "rebuilding",
        /// Hetzner does not know.
        Unknown = "unknown",
    }
}

#[expect(
    clippy::derivable_impls,
    reason = "the enum is declared by a macro without a default"
)]
impl Default for ServerStatus {
    fn default() -> Self {
        Self::Unknown
    }
}

/// One server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Server {
    /// Its id.
    pub id: ServerId,
    /// Its name, unique in the project.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// What it does.
    #[serde(default, deserialize_with = "or_default")]
    pub status: ServerStatus,
    /// When it was created.
    #[serde(default, deserialize_with = "parsed")]
    pub created: Option<jiff::Timestamp>,
    /// Its labels.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: Labels,
    /// Its public addresses and firewalls.
    #[serde(default, deserialize_with = "or_default")]
    pub public_net: PublicNet,
    /// Its private networks.
    #[serde(default, deserialize_with = "or_default")]
    pub private_net: Vec<PrivateNet>,
    /// Its type.
    #[serde(default, deserialize_with = "or_default")]
    pub server_type: TypeRef,
    /// Where it stands.
    #[serde(default, deserialize_with = "or_default")]
    pub location: NameRef,
    /// The image it was made from, if that still exists.
    #[serde(default)]
    pub image: Option<ImageRef>,
    /// Whether an action runs that forbids others.
    #[serde(default, deserialize_with = "or_default")]
    pub locked: bool,
    /// What may not be done to it.
    #[serde(default, deserialize_with = "or_default")]
    pub protection: Protection,
    /// Size of its disk in GB.
    #[serde(default)]
    pub primary_disk_size: Option<f64>,
}

/// Public addresses and firewalls of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PublicNet {
    /// IPv4, if it has one.
    #[serde(default)]
    pub ipv4: Option<Ipv4>,
    /// IPv6, if it has one.
    #[serde(default)]
    pub ipv6: Option<Ipv6>,
    /// The firewalls applied to it.
    #[serde(default, deserialize_with = "or_default")]
    pub firewalls: Vec<AppliedFirewall>,
}

/// A public IPv4 address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ipv4 {
    /// The address, if it reads as one.
    #[serde(default, deserialize_with = "parsed")]
    pub ip: Option<Ipv4Addr>,
    /// Whether Hetzner blocked it.
    #[serde(default, deserialize_with = "or_default")]
    pub blocked: bool,
}

/// A public IPv6 network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ipv6 {
    /// The network, such as `2001:db8::/64`.
    #[serde(default, deserialize_with = "or_default")]
    pub ip: String,
    /// Whether Hetzner blocked it.
    #[serde(default, deserialize_with = "or_default")]
    pub blocked: bool,
}

/// A firewall as a server shows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AppliedFirewall {
    /// The firewall.
    pub id: FirewallId,
    /// `applied` or `pending`.
    #[serde(default, deserialize_with = "or_default")]
    pub status: String,
}

/// A private network of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PrivateNet {
    /// Id of the network.
    #[serde(default, deserialize_with = "or_default")]
    pub network: u64,
    /// The address in it, if it reads as one.
    #[serde(default, deserialize_with = "parsed")]
    pub ip: Option<Ipv4Addr>,
}

/// The part of a server's type that a server shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TypeRef {
    /// Its name, such as `cx23`.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// Its architecture.
    #[serde(default)]
    pub architecture: Option<Architecture>,
}

/// Something by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct NameRef {
    /// The name.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
}

/// The part of an image that a server shows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ImageRef {
    /// Its id.
    pub id: ImageId,
    /// Its name; snapshots have none.
    #[serde(default)]
    pub name: Option<String>,
}

/// What may not be done to a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Protection {
    /// It may not be deleted.
    #[serde(default, deserialize_with = "or_default")]
    pub delete: bool,
    /// It may not be rebuilt.
    #[serde(default, deserialize_with = "or_default")]
    pub rebuild: bool,
}

impl Server {
    /// Its public IPv4 address.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.public_net.ipv4.as_ref()?.ip
    }

    /// Its public IPv6 address: the first of its network, as Hetzner's images set it up.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        let network = &self.public_net.ipv6.as_ref()?.ip;
        let address: Ipv6Addr = network.split('/').next()?.parse().ok()?;
        Some(Ipv6Addr::from_bits(address.to_bits() | 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_with_unknown_missing_and_null_fields_is_read() {
        let server: Server = serde_json::from_str(
            r#"{"id":7,"status":"levitating","labels":null,"public_net":{"ipv4":null,"ipv6":{"ip":"2001:db8::/64","x":1}},
                "created":"2026-01-02T03:04:05+00:00","server_type":{"name":"cx23","architecture":"riscv"},"image":null,"new":[1]}"#,
        )
        .unwrap();
        assert_eq!(server.status, ServerStatus::Other("levitating".into()));
        assert_eq!(server.ipv6(), Some("2001:db8::1".parse().unwrap()));
        assert_eq!(server.ipv4(), None);
        assert_eq!(
            server.server_type.architecture,
            Some(Architecture::Other("riscv".into()))
        );
        assert_eq!(
            server.created,
            Some("2026-01-02T03:04:05Z".parse().unwrap())
        );
    }
}
