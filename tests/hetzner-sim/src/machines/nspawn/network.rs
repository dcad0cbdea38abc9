//! What passes between host, machines and metadata: one nft table, replaced as a whole.
//!
//! Machines hang on a router, each by a cable of its own, as at Hetzner; so every packet passes the
//! router's hooks. Whoever changes a wish need not wait: a task applies the newest.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};

use tokio::sync::watch;

use crate::firewall_rules::Rule;
use crate::machines::fleet::SshFault;
use crate::machines::nspawn::keeper::{Keeper, KeeperError};

/// The address on which servers find their metadata.
const METADATA: &str = "169.254.169.254";

/// What is to pass.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    version: u64,
    /// Where metadata is served.
    metadata: SocketAddrV4,
    addresses: BTreeMap<u64, Ipv4Addr>,
    /// The rules of servers that have a firewall.
    walls: BTreeMap<u64, Vec<Rule>>,
    ssh: BTreeMap<u64, SshFault>,
    diverted: BTreeMap<u64, SocketAddrV4>,
}

/// The wishes, and how far they have come true.
pub(crate) struct Network {
    wanted: watch::Sender<Wanted>,
    applied: watch::Sender<u64>,
}

impl Network {
    pub(crate) fn new(metadata: SocketAddrV4) -> Self {
        let wanted = Wanted {
            version: 1,
            metadata,
            addresses: BTreeMap::new(),
            walls: BTreeMap::new(),
            ssh: BTreeMap::new(),
            diverted: BTreeMap::new(),
        };
        Self {
            wanted: watch::Sender::new(wanted),
            applied: watch::Sender::new(0),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Wanted)) {
        self.wanted.send_modify(|wanted| {
            wanted.version += 1;
            change(wanted);
        });
    }

    pub(crate) fn plug_in(&self, server: u64, address: Ipv4Addr) {
        self.change(|wanted| {
            wanted.addresses.insert(server, address);
        });
    }

    /// Forgets a server that is gone.
    pub(crate) fn unplug(&self, server: u64) {
        self.change(|wanted| {
            wanted.addresses.remove(&server);
            wanted.ssh.remove(&server);
            wanted.diverted.remove(&server);
        });
    }

    /// The rules of all servers that have a firewall.
    pub(crate) fn set_walls(&self, walls: BTreeMap<u64, Vec<Rule>>) {
        if self.wanted.borrow().walls != walls {
            self.change(|wanted| wanted.walls = walls);
        }
    }

    pub(crate) fn set_ssh(&self, server: u64, fault: SshFault) {
        self.change(|wanted| {
            wanted.ssh.insert(server, fault);
        });
    }

    /// New connections to a server's SSH end there instead; nothing ends that.
    pub(crate) fn divert(&self, server: u64, to: Option<SocketAddrV4>) {
        self.change(|wanted| {
            match to {
                Some(to) => wanted.diverted.insert(server, to),
                None => wanted.diverted.remove(&server),
            };
        });
    }

    /// Returns once all that was wanted until now is so.
    pub(crate) async fn settled(&self) {
        let version = self.wanted.borrow().version;
        let mut applied = self.applied.subscribe();
        // It only fails with the network, and then nothing passes.
        let _ = applied.wait_for(|applied| *applied >= version).await;
    }

    /// Makes wishes come true, for as long as the fleet lives.
    pub(crate) async fn keep(&self, keeper: &Keeper) {
        let mut wanted = self.wanted.subscribe();
        wanted.mark_changed();
        while wanted.changed().await.is_ok() {
            wanted.borrow_and_update();
            if let Err(error) = self.apply(keeper).await {
                tracing::error!(%error, "the firewalls are not enforced");
            }
        }
    }

    /// Makes the newest wish come true.
    pub(crate) async fn apply(&self, keeper: &Keeper) -> Result<(), KeeperError> {
        let (version, table) = {
            let wanted = self.wanted.borrow();
            (wanted.version, wanted.table())
        };
        keeper.feed("nft", &table).await?;
        self.applied.send_replace(version);
        Ok(())
    }
}

impl Wanted {
    /// Replaces the table in one transaction.
    fn table(&self) -> String {
        let mut chains = String::new();
        let (mut redirect, mut from, mut to) = (String::new(), String::new(), String::new());
        for (server, address) in &self.addresses {
            if let Some(there) = self.diverted.get(server) {
                let _ = writeln!(redirect, "ip daddr {address} tcp dport 22 dnat to {there}");
            }
            let _ = writeln!(from, "iifname ve{server} ip saddr != {address} drop");
            let verdict = match self.ssh.get(server) {
                Some(SshFault::Refuse) => Some("reject with tcp reset"),
                Some(SshFault::Hang) => Some("drop"),
                Some(SshFault::None) | None => None,
            };
            if let Some(verdict) = verdict {
                let new = "tcp dport 22 ct state new";
                let _ = writeln!(from, "ip daddr {address} {new} {verdict}");
            }
            if let Some(rules) = self.walls.get(server) {
                chains += &wall(*server, rules);
                let _ = writeln!(to, "oifname ve{server} jump in{server}");
                if rules.iter().any(|rule| rule.direction == "out") {
                    let outbound = format!("iifname ve{server} ip daddr != {METADATA}");
                    let _ = writeln!(from, "{outbound} jump out{server}");
                }
            }
        }
        let metadata = self.metadata;
        format!(
            "table ip machines\n\
             delete table ip machines\n\
             table ip machines {{\n{chains}\
             chain elsewhere {{\ntype nat hook prerouting priority dstnat\n\
             iifname \"ve*\" ip daddr {METADATA} tcp dport 80 dnat to {metadata}\n{redirect}}}\n\
             chain leaving {{\ntype filter hook prerouting priority mangle\n{from}}}\n\
             chain arriving {{\ntype filter hook postrouting priority filter\n{to}}}\n}}\n"
        )
    }
}

/// The chains of one server: inbound nothing passes but by rule, outbound only if there are rules.
fn wall(server: u64, rules: &[Rule]) -> String {
    let mut chains = String::new();
    for (direction, side) in [("in", "saddr"), ("out", "daddr")] {
        let _ = writeln!(chains, "chain {direction}{server} {{");
        chains += "ct state established,related accept\n";
        for rule in rules.iter().filter(|rule| rule.direction == direction) {
            let cidrs = rule.source_ips.iter().chain(&rule.destination_ips);
            let v4: Vec<&str> = cidrs
                .map(String::as_str)
                .filter(|cidr| !cidr.contains(':'))
                .collect();
            for cidr in v4 {
                let _ = writeln!(chains, "ip {side} {cidr} {} accept", protocol(rule));
            }
        }
        chains += "drop\n}\n";
    }
    chains
}

fn protocol(rule: &Rule) -> String {
    // By number: their names are known only where /etc/protocols is.
    let number = match rule.protocol.as_str() {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "gre" => 47,
        _ => 50,
    };
    match rule.port.as_deref() {
        None | Some("any") => format!("meta l4proto {number}"),
        Some(ports) => format!("meta l4proto {number} th dport {ports}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(protocol: &str, port: Option<&str>, sources: &[&str]) -> Rule {
        Rule {
            description: None,
            direction: "in".to_owned(),
            protocol: protocol.to_owned(),
            port: port.map(str::to_owned),
            source_ips: sources.iter().map(ToString::to_string).collect(),
            destination_ips: Vec::new(),
        }
    }

    #[test]
    fn rules_become_accepts_before_a_drop_and_ipv6_is_left_out() {
        let rules = [
            rule("tcp", Some("22"), &["10.0.0.0/8", "::/0"]),
            rule("udp", Some("1000-2000"), &["0.0.0.0/0"]),
            rule("tcp", Some("any"), &["192.0.2.1/32"]),
            rule("icmp", None, &["0.0.0.0/0"]),
        ];
        let expected = "chain in7 {\nct state established,related accept\n\
            ip saddr 10.0.0.0/8 meta l4proto 6 th dport 22 accept\n\
            ip saddr 0.0.0.0/0 meta l4proto 17 th dport 1000-2000 accept\n\
            ip saddr 192.0.2.1/32 meta l4proto 6 accept\n\
            ip saddr 0.0.0.0/0 meta l4proto 1 accept\ndrop\n}\n";
        assert!(wall(7, &rules).starts_with(expected), "{}", wall(7, &rules));
    }
}
