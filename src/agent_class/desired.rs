//! What a class should be: places, an image, and the rules of its firewall.
//!
//! Pure. Rules come out in the one form that Hetzner answers with, so that what was set is recognised again.

use std::net::IpAddr;

use crate::{
    api::{self, AgentClass, AgentClassSpec},
    hetzner::{Direction, FirewallRule, Protocol},
};

/// What is wanted of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Name of the class.
    pub name: String,
    /// Whether it is being deleted.
    pub absent: bool,
    /// Names of its projects, in order of preference.
    pub projects: Vec<String>,
    /// Server types.
    pub server_types: Vec<String>,
    /// Locations.
    pub locations: Vec<String>,
    /// Image.
    pub image: String,
    /// Name of a network.
    pub network: Option<String>,
    /// What its firewall lets through.
    pub rules: Vec<FirewallRule>,
}

impl Desired {
    /// Reads a class; `ssh_port` is where guests listen, `former` what the class was when agents of it were given what they still have.
    pub fn parse(class: &AgentClass, ssh_port: u16, former: &[AgentClass]) -> Self {
        let spec = class.spec.clone();
        let mut rules = rules(&spec, ssh_port);
        for probe in former.iter().filter_map(|former| probe(&former.spec)) {
            if !rules.contains(&probe) {
                rules.push(probe);
            }
        }
        Self {
            name: class.metadata.name.clone().unwrap_or_default(),
            absent: class.metadata.deletion_timestamp.is_some(),
            projects: spec.projects,
            server_types: spec.server_types,
            locations: spec.locations,
            image: spec.image,
            network: spec.network,
            rules,
        }
    }
}

/// SSH and the health probe for those who may, and what the class adds; all else is dropped at Hetzner.
fn rules(spec: &AgentClassSpec, ssh_port: u16) -> Vec<FirewallRule> {
    let firewall = &spec.firewall;
    let ssh = inbound("SSH", ssh_port, &firewall.ssh_from);
    std::iter::once(ssh)
        .chain(probe(spec))
        .chain(firewall.rules.iter().map(rule))
        .collect()
}

fn probe(spec: &AgentClassSpec) -> Option<FirewallRule> {
    let (http, from) = (spec.health.http.as_ref()?, &spec.firewall.health_from);
    (!from.is_empty()).then(|| inbound("health probe", http.port, from))
}

fn inbound(what: &str, port: u16, from: &[String]) -> FirewallRule {
    FirewallRule {
        direction: Direction::In,
        protocol: Protocol::Tcp,
        port: Some(port.to_string()),
        source_ips: networks(from),
        destination_ips: vec![],
        description: Some(what.into()),
    }
}

fn rule(rule: &api::FirewallRule) -> FirewallRule {
    let (direction, source_ips, destination_ips) = match rule.direction {
        api::Direction::In => (Direction::In, networks(&rule.networks), vec![]),
        api::Direction::Out => (Direction::Out, vec![], networks(&rule.networks)),
    };
    let protocol = match rule.protocol {
        api::Protocol::Tcp => Protocol::Tcp,
        api::Protocol::Udp => Protocol::Udp,
        api::Protocol::Icmp => Protocol::Icmp,
        api::Protocol::Esp => Protocol::Esp,
        api::Protocol::Gre => Protocol::Gre,
    };
    FirewallRule {
        direction,
        protocol,
        port: rule.port.clone(),
        source_ips,
        destination_ips,
        description: rule.description.clone(),
    }
}

fn networks(written: &[String]) -> Vec<String> {
    let mut networks: Vec<String> = written.iter().map(|network| canonical(network)).collect();
    networks.sort_unstable();
    networks.dedup();
    networks
}

/// A network without host bits, in the usual form; what cannot be read is left for Hetzner to refuse.
fn canonical(network: &str) -> String {
    let masked = || {
        let (address, length) = network.split_once('/')?;
        let length: u32 = length.parse().ok()?;
        Some(match address.parse().ok()? {
            IpAddr::V4(address) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - length).unwrap_or_default();
                format!(
                    "{}/{length}",
                    std::net::Ipv4Addr::from_bits(address.to_bits() & mask)
                )
            }
            IpAddr::V6(address) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or_default();
                format!(
                    "{}/{length}",
                    std::net::Ipv6Addr::from_bits(address.to_bits() & mask)
                )
            }
            _ => return None,
        })
    };
    masked().unwrap_or_else(|| network.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_written_as_hetzner_answers_them() {
        for (written, sent) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("203.0.113.7/32", "203.0.113.7/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:DB8:0:0::1/64", "2001:db8::/64"),
            ("2001:db8::1/128", "2001:db8::1/128"),
            ("10.0.0.0/33", "10.0.0.0/33"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(canonical(written), sent);
        }
    }

    fn class(firewall: &serde_json::Value, health: &serde_json::Value) -> AgentClass {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "agentfleet.dev/v1alpha1", "kind": "AgentClass", "metadata": {"name": "small"},
            "spec": {"projects": ["one"], "serverTypes": ["cx23"], "locations": ["nbg1"], "image": "debian-13",
                     "firewall": firewall, "health": health, "agent": {"service": {"execStart": ["/bin/agent"]}}}
        }))
        .unwrap()
    }

    #[test]
    fn firewall_lets_ssh_the_probe_and_the_rules_of_the_class_through_and_nothing_else() {
        let firewall = serde_json::json!({
            "sshFrom": ["10.0.0.1/32", "10.0.0.1/32"],
            "healthFrom": ["10.0.0.2/32"],
            "rules": [
                {"direction": "Out", "protocol": "Udp", "port": "53", "networks": ["1.1.1.1/32"]},
                {"direction": "In", "protocol": "Icmp", "networks": ["0.0.0.0/0"], "description": "ping"},
            ],
        });
        let class = class(&firewall, &serde_json::json!({"http": {"port": 8080}}));
        let rules = Desired::parse(&class, 2222, &[]).rules;
        let told: Vec<_> = rules
            .iter()
            .map(|rule| {
                (
                    rule.direction.as_str(),
                    rule.protocol.as_str(),
                    rule.port.as_deref(),
                    rule.source_ips.len(),
                    rule.destination_ips.len(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("in", "tcp", Some("2222"), 1, 0),
                ("in", "tcp", Some("8080"), 1, 0),
                ("out", "udp", Some("53"), 0, 1),
                ("in", "icmp", None, 1, 0)
            ]
        );
    }

    #[test]
    fn a_port_stays_open_for_as_long_as_somebody_is_asked_there() {
        let asked_at = |port: u16| {
            let firewall =
                serde_json::json!({"sshFrom": ["10.0.0.1/32"], "healthFrom": ["10.0.0.2/32"]});
            class(&firewall, &serde_json::json!({"http": {"port": port}}))
        };
        let ports = |class: &AgentClass, former: &[AgentClass]| {
            let rules = Desired::parse(class, 22, former).rules.into_iter();
            rules.filter_map(|rule| rule.port).collect::<Vec<_>>()
        };
        let (now, before) = (asked_at(8081), asked_at(8080));
        let same = now.clone();
        assert_eq!(ports(&now, &[before.clone(), same]), ["22", "8081", "8080"]);
        let by_command = class(
            &serde_json::json!({"sshFrom": ["10.0.0.1/32"]}),
            &serde_json::json!({"exec": {"command": "true"}}),
        );
        assert_eq!(ports(&by_command, &[before]), ["22", "8080"]);
        assert_eq!(ports(&by_command, &[]), ["22"]);
    }
}
