//! Requests about servers: list, create, change, delete.

use super::actions::{Action, OneAction};
use super::error::Error;
use super::firewalls::FirewallId;
use super::offer::ImageId;
use super::servers::{Server, ServerId};
use super::ssh_keys::SshKeyId;
use super::transport::{Call, Client};
use super::wire::{Meta, PER_PAGE, Pagination, or_default};
use super::{Labels, Permit};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

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
            .query("per_page", PER_PAGE.to_string())
            .query("sort", "id:asc")
            .query("page", page.to_string());
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
