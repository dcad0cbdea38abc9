//! A typed client for the part of the Hetzner Cloud API that a fleet needs, and what stands in
//! front of it. It knows nothing of Kubernetes.
//!
//! ```text
//! caller ── budget::try_acquire(lane) ──▶ Permit ──▶ Client::create_server(permit, …) ──▶ api.hetzner.cloud
//!              ▲                                          │
//!              └──── RateLimit-* headers of the answer ◀──┘
//! ```
//!
//! Invariants: no request leaves without a [`Permit`]; nothing here waits, retries or follows a
//! redirect; every failed mutation says whether it surely did nothing ([`Outcome::Refused`]) or may
//! have done its work ([`Outcome::Unknown`]); no token, request body or root password is ever
//! logged or kept. Facts are from Hetzner's `OpenAPI` description and its official clients.

mod actions;
mod budget;
mod catalogue;
mod error;
mod error_code;
mod firewalls;
mod networks;
mod offer;
mod redact;
mod server_calls;
mod servers;
mod snapshots;
mod ssh_keys;
mod stock;
#[cfg(test)]
pub(crate) mod stub;
mod transport;
mod wire;

pub use actions::{Action, ActionError, ActionId, ActionStatus};
pub use budget::{Budget, BudgetView, CreateFuse, Lane, Permit, RateLimit, RetryAt, Spend};
pub use catalogue::{Catalogue, CatalogueError};
pub use error::{Class, Error, FieldError, Outcome};
pub use error_code::ErrorCode;
pub use firewalls::{
    CreateFirewall, Direction, Firewall, FirewallId, FirewallResource, FirewallRule, Protocol,
};
pub use offer::{
    Architecture, Deprecation, Image, ImageId, Location, Offer, Problem, ResolvedPlace, ServerType,
    TypeLocation,
};
pub use server_calls::{CreateServer, CreatedServer, Page, PublicNetRequest};
pub use servers::{
    AppliedFirewall, ImageRef, Ipv4, Ipv6, NameRef, PrivateNet, Protection, PublicNet, Server,
    ServerId, ServerStatus, TypeRef,
};
pub use snapshots::{Snapshot, TakenFrom};
pub use ssh_keys::{SshKey, SshKeyId};
pub use stock::{Next, Place, Stock};
pub use transport::{Client, Exchange};

use std::collections::BTreeMap;

/// Labels of a resource; `PUT` replaces the whole map.
pub type Labels = BTreeMap<String, String>;
