//! Servers: read, create, change, delete.
//!
//! `root_password` of an answer is not a field of any type here, so it is dropped while reading.

use super::actions::{Action, OneAction};
use super::catalogue::{Architecture, ImageId};
use super::error::Error;
use super::firewalls::FirewallId;
use super::ssh_keys::SshKeyId;
use super::transport::{Call, Client};
use super::wire::{id, open_enum, or_default, parsed};
use super::{Labels, Permit};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
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

/// What a new server shall be.
#[derive(Clone, Debug, Serialize)]
pub struct CreateServer {
    /// Unique in the project, a host name.
    pub name: String,
    /// Name of the type.
    pub server_type: String,
    /// Name of the location.
    pub location: String,
    /// The image.
    #[serde(serialize_with = "as_text")]
    pub image: ImageId,
    /// At least one, or the server gets a root password.
    pub ssh_keys: Vec<SshKeyId>,
    /// At most 32 KiB as sent; may hold the boot proof key.
    #[serde(serialize_with = "exposed")]
    pub user_data: SecretString,
    /// Labels.
    pub labels: Labels,
    /// Attached before the first boot.
    #[serde(serialize_with = "firewall_refs")]
    pub firewalls: Vec<FirewallId>,
    /// Ids of private networks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<u64>,
    /// Which public addresses it gets.
    pub public_net: PublicNetRequest,
    /// Whether it boots at once.
    pub start_after_create: bool,
}

/// Which public addresses a new server gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PublicNetRequest {
    /// IPv4 (billed apart).
    pub enable_ipv4: bool,
    /// IPv6.
    pub enable_ipv6: bool,
}

/// The API takes an image by name or id in one string.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn as_text<S: Serializer>(image: &ImageId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(image)
}

fn exposed<S: Serializer>(text: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text.expose_secret())
}

fn firewall_refs<S: Serializer>(ids: &[FirewallId], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Ref {
        firewall: FirewallId,
    }
    serializer.collect_seq(ids.iter().map(|id| Ref { firewall: *id }))
}

/// A created server and the actions that are still under way; all of them must succeed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct CreatedServer {
    /// The server, with its addresses.
    pub server: Server,
    /// `create_server`.
    #[serde(default)]
    pub action: Option<Action>,
    /// `start_server`, `attach_to_network`, ….
    #[serde(default, deserialize_with = "or_default")]
    pub next_actions: Vec<Action>,
}

/// One page of a list of servers.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The servers.
    pub servers: Vec<Server>,
    /// Number of the next page, if there is one.
    pub next_page: Option<u32>,
    /// Servers in the whole list at that moment, if told.
    pub total_entries: Option<u64>,
}

/// Servers on one page; the API's maximum.
pub(crate) const PER_PAGE: u32 = 50;

#[derive(Deserialize)]
struct OneServer {
    server: Server,
}

#[derive(Deserialize)]
struct ManyServers {
    #[serde(deserialize_with = "or_default")]
    servers: Vec<Server>,
    #[serde(default, deserialize_with = "or_default")]
    meta: Meta,
}

/// What stands beside a list.
#[derive(Default, Deserialize)]
pub(super) struct Meta {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) pagination: Pagination,
}

/// Where a page stands in its list.
#[derive(Default, Deserialize)]
pub(super) struct Pagination {
    #[serde(default)]
    pub(super) next_page: Option<u32>,
    #[serde(default)]
    pub(super) total_entries: Option<u64>,
}

impl Client {
    /// Creates a server.
    ///
    /// # Errors
    /// After [`Outcome::Unknown`](super::Outcome::Unknown) look it up by name before anything else.
    pub async fn create_server(
        &self,
        permit: Permit,
        request: &CreateServer,
    ) -> Result<CreatedServer, Error> {
        self.send(permit, Call::new("POST /servers").json(request)?)
            .await
    }

    /// One server.
    ///
    /// # Errors
    /// [`Class::NotFound`](super::Class::NotFound) only if the API itself says so.
    pub async fn get_server(&self, permit: Permit, id: ServerId) -> Result<Server, Error> {
        let answer: OneServer = self
            .send(permit, Call::new("GET /servers/{id}").id(id.0))
            .await?;
        Ok(answer.server)
    }

    /// The servers of this name: none or one.
    ///
    /// # Errors
    /// As every request.
    pub async fn servers_by_name(&self, permit: Permit, name: &str) -> Result<Vec<Server>, Error> {
        let answer: ManyServers = self
            .send(permit, Call::new("GET /servers").query("name", name))
            .await?;
        Ok(answer.servers)
    }

    /// One page of the servers that a label selector matches, 50 at a time, by ascending id; `page`
    /// counts from 1.
    ///
    /// # Errors
    /// As every request.
    pub async fn servers_page(
        &self,
        permit: Permit,
        selector: &str,
        page: u32,
    ) -> Result<Page, Error> {
        let call = Call::new("GET /servers").query("label_selector", selector);
        let call = call
            .query("per_page", PER_PAGE)
            .query("sort", "id:asc")
            .query("page", page);
        let answer: ManyServers = self.send(permit, call).await?;
        let Pagination {
            next_page,
            total_entries,
        } = answer.meta.pagination;
        Ok(Page {
            servers: answer.servers,
            next_page,
            total_entries,
        })
    }

    /// Replaces all labels of a server.
    ///
    /// # Errors
    /// As every request.
    pub async fn update_server_labels(
        &self,
        permit: Permit,
        id: ServerId,
        labels: &Labels,
    ) -> Result<Server, Error> {
        let call = Call::new("PUT /servers/{id}").id(id.0);
        let call = call.json(&serde_json::json!({ "labels": labels }))?;
        let answer: OneServer = self.send(permit, call).await?;
        Ok(answer.server)
    }

    /// Deletes a server.
    ///
    /// # Errors
    /// [`Class::NotFound`](super::Class::NotFound) if it is gone already.
    pub async fn delete_server(&self, permit: Permit, id: ServerId) -> Result<Action, Error> {
        self.act(permit, Call::new("DELETE /servers/{id}").id(id.0))
            .await
    }

    /// Switches a server on.
    ///
    /// # Errors
    /// As every request.
    pub async fn power_on(&self, permit: Permit, id: ServerId) -> Result<Action, Error> {
        self.act(
            permit,
            Call::new("POST /servers/{id}/actions/poweron").id(id.0),
        )
        .await
    }

    /// Cuts a server's power.
    ///
    /// # Errors
    /// As every request.
    pub async fn power_off(&self, permit: Permit, id: ServerId) -> Result<Action, Error> {
        self.act(
            permit,
            Call::new("POST /servers/{id}/actions/poweroff").id(id.0),
        )
        .await
    }

    /// Asks a server to shut down; the action's success says only that the signal was sent.
    ///
    /// # Errors
    /// As every request.
    pub async fn shutdown(&self, permit: Permit, id: ServerId) -> Result<Action, Error> {
        self.act(
            permit,
            Call::new("POST /servers/{id}/actions/shutdown").id(id.0),
        )
        .await
    }

    /// Asks a server to reboot.
    ///
    /// # Errors
    /// As every request.
    pub async fn reboot(&self, permit: Permit, id: ServerId) -> Result<Action, Error> {
        self.act(
            permit,
            Call::new("POST /servers/{id}/actions/reboot").id(id.0),
        )
        .await
    }

    /// Cuts a server's power and gives it back.
    ///
    /// # Errors
    /// As every request.
    pub async fn reset(&self, permit: Permit, id: ServerId) -> Result<Action, Error> {
        self.act(
            permit,
            Call::new("POST /servers/{id}/actions/reset").id(id.0),
        )
        .await
    }

    /// Writes a server's disk anew from `image`, with other user-data if given.
    ///
    /// # Errors
    /// As every request.
    pub async fn rebuild(
        &self,
        permit: Permit,
        id: ServerId,
        image: ImageId,
        user_data: Option<&SecretString>,
    ) -> Result<Action, Error> {
        let mut body = serde_json::json!({ "image": image.to_string() });
        if let Some(user_data) = user_data {
            body["user_data"] = user_data.expose_secret().into();
        }
        self.act(
            permit,
            Call::new("POST /servers/{id}/actions/rebuild")
                .id(id.0)
                .json(&body)?,
        )
        .await
    }

    /// Changes the type of a server that is off; it is switched on afterwards. The disk keeps its
    /// size, so that the way back stays open.
    ///
    /// # Errors
    /// As every request.
    pub async fn change_type(
        &self,
        permit: Permit,
        id: ServerId,
        server_type: &str,
    ) -> Result<Action, Error> {
        let body = serde_json::json!({ "server_type": server_type, "upgrade_disk": false });
        self.act(
            permit,
            Call::new("POST /servers/{id}/actions/change_type")
                .id(id.0)
                .json(&body)?,
        )
        .await
    }

    async fn act(&self, permit: Permit, call: Call) -> Result<Action, Error> {
        let answer: OneAction = self.send(permit, call).await?;
        Ok(answer.action)
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

    #[test]
    fn root_password_is_dropped() {
        let text = r#"{"server":{"id":1},"root_password":"hunter2hunter2","next_actions":null}"#;
        let created: CreatedServer = serde_json::from_str(text).unwrap();
        assert!(!format!("{created:?}").contains("hunter2"));
    }

    #[test]
    fn create_request_has_the_shape_the_api_wants_and_does_not_show_its_user_data() {
        let request = CreateServer {
            name: "a-1".into(),
            server_type: "cx23".into(),
            location: "nbg1".into(),
            image: ImageId(9),
            ssh_keys: vec![SshKeyId(3)],
            user_data: "#cloud-config key".into(),
            labels: Labels::from([("k".into(), "v".into())]),
            firewalls: vec![FirewallId(5)],
            networks: vec![],
            public_net: PublicNetRequest {
                enable_ipv4: true,
                enable_ipv6: false,
            },
            start_after_create: true,
        };
        let expected = serde_json::json!({
            "name": "a-1", "server_type": "cx23", "location": "nbg1", "image": "9", "ssh_keys": [3],
            "user_data": "#cloud-config key", "labels": {"k": "v"}, "firewalls": [{"firewall": 5}],
            "public_net": {"enable_ipv4": true, "enable_ipv6": false}, "start_after_create": true,
        });
        assert_eq!(serde_json::to_value(&request).unwrap(), expected);
        assert!(!format!("{request:?}").contains("cloud-config"));
    }
}
