//! Firewalls: one for each class, made before the first server that needs it.

use super::actions::{Action, Actions};
use super::error::Error;
use super::servers::ServerId;
use super::transport::{Call, Client};
use super::wire::{Meta, PER_PAGE, id, open_enum, or_default, parsed};
use super::{Labels, Permit};
use serde::{Deserialize, Serialize};

id! {
    /// Id of a firewall.
    FirewallId
}

open_enum! {
    /// Which way a rule looks.
    Direction {
        /// Towards the server; what no rule allows is dropped.
        In = "in",
        /// From the server; without rules all is allowed.
        Out = "out",
    }
}

open_enum! {
    /// What a rule is about.
    Protocol {
        /// TCP; needs a port.
        Tcp = "tcp",
        /// UDP; needs a port.
        Udp = "udp",
        /// ICMP.
        Icmp = "icmp",
        /// ESP.
        Esp = "esp",
        /// GRE.
        Gre = "gre",
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FirewallRule {
    /// Which way it looks.
    pub direction: Direction,
    /// What it is about.
    pub protocol: Protocol,
    /// A port or a range such as `80-85`, for TCP and UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Networks it lets in, at most 100.
    #[serde(default, deserialize_with = "or_default")]
    pub source_ips: Vec<String>,
    /// Networks it lets out to, at most 100.
    #[serde(default, deserialize_with = "or_default")]
    pub destination_ips: Vec<String>,
    /// For people, at most 255 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// One firewall.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Firewall {
    /// Its id.
    pub id: FirewallId,
    /// Its name.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// Its labels.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: Labels,
    /// When it was made.
    #[serde(default, deserialize_with = "parsed")]
    pub created: Option<jiff::Timestamp>,
    /// Its rules.
    #[serde(default, deserialize_with = "or_default")]
    pub rules: Vec<FirewallRule>,
    /// What it protects.
    #[serde(default, deserialize_with = "or_default")]
    pub applied_to: Vec<FirewallResource>,
}

impl Firewall {
    /// Whether it has exactly these rules, in whatever order of rules and networks.
    pub fn has_rules(&self, rules: &[FirewallRule]) -> bool {
        normalised(&self.rules) == normalised(rules)
    }
}

fn normalised(rules: &[FirewallRule]) -> Vec<FirewallRule> {
    let mut rules = rules.to_vec();
    for rule in &mut rules {
        rule.source_ips.sort_unstable();
        rule.destination_ips.sort_unstable();
        rule.description = rule.description.take().filter(|text| !text.is_empty());
    }
    rules.sort_unstable();
    rules
}

/// What a firewall is applied to: a server, or all that a label selector matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallResource {
    /// `server` or `label_selector`.
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server: Option<ServerRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label_selector: Option<SelectorRef>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ServerRef {
    id: ServerId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SelectorRef {
    selector: String,
}

impl FirewallResource {
    /// One server.
    pub fn of_server(id: ServerId) -> Self {
        Self {
            kind: "server".to_owned(),
            server: Some(ServerRef { id }),
            label_selector: None,
        }
    }

    /// The server, if it is one.
    pub fn server(&self) -> Option<ServerId> {
        self.server.as_ref().map(|server| server.id)
    }

    /// The label selector, if it is one.
    pub fn label_selector(&self) -> Option<&str> {
        self.label_selector
            .as_ref()
            .map(|selector| selector.selector.as_str())
    }
}

/// What a new firewall shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CreateFirewall {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its rules, at most 50.
    pub rules: Vec<FirewallRule>,
}

#[derive(Deserialize)]
struct One {
    firewall: Firewall,
}

#[derive(Deserialize)]
struct Many {
    #[serde(deserialize_with = "or_default")]
    firewalls: Vec<Firewall>,
    #[serde(default, deserialize_with = "or_default")]
    meta: Meta,
}

impl Client {
    /// One page of the firewalls that a label selector matches, 50 at a time, and the number of the
    /// next page; `page` counts from 1.
    ///
    /// # Errors
    /// As every request.
    pub async fn firewalls_page(
        &self,
        permit: Permit,
        selector: &str,
        page: u32,
    ) -> Result<(Vec<Firewall>, Option<u32>), Error> {
        let call = Call::new("GET /firewalls").query("label_selector", selector);
        let call = call
            .query("per_page", PER_PAGE.to_string())
            .query("sort", "id:asc")
            .query("page", page.to_string());
        let answer: Many = self.send(permit, call).await?;
        Ok((answer.firewalls, answer.meta.pagination.next_page))
    }

    /// One firewall.
    ///
    /// # Errors
    /// [`Class::NotFound`](super::Class::NotFound) only if the API itself says so.
    pub async fn get_firewall(&self, permit: Permit, id: FirewallId) -> Result<Firewall, Error> {
        let answer: One = self
            .send(permit, Call::new("GET /firewalls/{id}").id(id.0))
            .await?;
        Ok(answer.firewall)
    }

    /// Creates a firewall. Its name is unique only by our own care: look for it by label first.
    ///
    /// # Errors
    /// As every request.
    pub async fn create_firewall(
        &self,
        permit: Permit,
        request: &CreateFirewall,
    ) -> Result<Firewall, Error> {
        let answer: One = self
            .send(permit, Call::new("POST /firewalls").json(request)?)
            .await?;
        Ok(answer.firewall)
    }

    /// Replaces all labels of a firewall.
    ///
    /// # Errors
    /// As every request.
    pub async fn update_firewall_labels(
        &self,
        permit: Permit,
        id: FirewallId,
        labels: &Labels,
    ) -> Result<Firewall, Error> {
        let body = serde_json::json!({ "labels": labels });
        let call = Call::new("PUT /firewalls/{id}").id(id.0).json(&body)?;
        let answer: One = self.send(permit, call).await?;
        Ok(answer.firewall)
    }

    /// Replaces all rules of a firewall.
    ///
    /// # Errors
    /// As every request.
    pub async fn set_firewall_rules(
        &self,
        permit: Permit,
        id: FirewallId,
        rules: &[FirewallRule],
    ) -> Result<Vec<Action>, Error> {
        let call = Call::new("POST /firewalls/{id}/actions/set_rules").id(id.0);
        self.act_on_firewall(permit, call.json(&serde_json::json!({ "rules": rules }))?)
            .await
    }

    /// Applies a firewall to servers.
    ///
    /// # Errors
    /// [`Class::Conflict`](super::Class::Conflict) if it was applied already or a server is gone.
    pub async fn apply_firewall(
        &self,
        permit: Permit,
        id: FirewallId,
        to: &[FirewallResource],
    ) -> Result<Vec<Action>, Error> {
        let call = Call::new("POST /firewalls/{id}/actions/apply_to_resources").id(id.0);
        self.act_on_firewall(permit, call.json(&serde_json::json!({ "apply_to": to }))?)
            .await
    }

    /// Removes a firewall from servers.
    ///
    /// # Errors
    /// As every request.
    pub async fn remove_firewall(
        &self,
        permit: Permit,
        id: FirewallId,
        from: &[FirewallResource],
    ) -> Result<Vec<Action>, Error> {
        let call = Call::new("POST /firewalls/{id}/actions/remove_from_resources").id(id.0);
        self.act_on_firewall(
            permit,
            call.json(&serde_json::json!({ "remove_from": from }))?,
        )
        .await
    }

    /// Deletes a firewall that is applied to nothing.
    ///
    /// # Errors
    /// [`Class::Conflict`](super::Class::Conflict) while it is still applied.
    pub async fn delete_firewall(&self, permit: Permit, id: FirewallId) -> Result<(), Error> {
        self.send(permit, Call::new("DELETE /firewalls/{id}").id(id.0))
            .await
    }

    async fn act_on_firewall(&self, permit: Permit, call: Call) -> Result<Vec<Action>, Error> {
        let answer: Actions = self.send(permit, call).await?;
        Ok(answer.actions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(port: &str, sources: &[&str]) -> FirewallRule {
        FirewallRule {
            direction: Direction::In,
            protocol: Protocol::Tcp,
            port: Some(port.into()),
            source_ips: sources.iter().map(|&ip| ip.into()).collect(),
            destination_ips: vec![],
            description: None,
        }
    }

    #[test]
    fn rules_are_compared_without_their_order() {
        let firewall = Firewall {
            rules: vec![rule("22", &["a", "b"]), rule("80", &["c"])],
            ..Firewall::default()
        };
        assert!(firewall.has_rules(&[rule("80", &["c"]), rule("22", &["b", "a"])]));
        assert!(!firewall.has_rules(&[rule("80", &["c"]), rule("22", &["b"])]));
    }

    #[test]
    fn applied_firewall_is_read_and_written() {
        let text = r#"{"id":4,"rules":[{"direction":"in","protocol":"icmp","port":null,"source_ips":["::/0"],"destination_ips":[]}],
            "applied_to":[{"type":"server","server":{"id":7}},{"type":"label_selector","label_selector":{"selector":"a=b"},"applied_to_resources":[]}]}"#;
        let firewall: Firewall = serde_json::from_str(text).unwrap();
        assert_eq!(firewall.applied_to[0].server(), Some(ServerId(7)));
        assert_eq!(firewall.applied_to[1].label_selector(), Some("a=b"));
        let sent = serde_json::to_value(FirewallResource::of_server(ServerId(7))).unwrap();
        assert_eq!(
            sent,
            serde_json::json!({"type": "server", "server": {"id": 7}})
        );
        let rule = serde_json::to_value(&firewall.rules[0]).unwrap();
        assert_eq!(rule["protocol"], "icmp");
        assert_eq!(rule.get("port"), None);
    }
}
