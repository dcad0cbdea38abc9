//! Everything the simulated cloud remembers.
//!
//! One value behind one lock. It has no clock: every question brings the time along, and what
//! changes by itself (actions, server status) is a function of that time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::actions::Action;
use crate::config::{Config, MachineKind, Spread};
use crate::faults::Faults;
use crate::firewall_rules::Rule;
use crate::firewalls::{self, Firewall};
use crate::images::{self, Image};
use crate::ledger::Ledger;
use crate::machines::{Boot, Order};
use crate::networks::Network;
use crate::placement_groups::PlacementGroup;
use crate::primary_ips::{Family, PrimaryIp};
use crate::rate_limit::Bucket;
use crate::servers::Server;
use crate::ssh_keys::SshKey;

/// One Hetzner Cloud project.
#[derive(Debug)]
pub(crate) struct Project {
    pub(crate) bucket: Bucket,
    /// How many servers the account allows; none is no limit.
    pub(crate) max_servers: Option<usize>,
    pub(crate) servers: BTreeMap<u64, Server>,
    pub(crate) ssh_keys: BTreeMap<u64, SshKey>,
    pub(crate) firewalls: BTreeMap<u64, Firewall>,
    pub(crate) snapshots: BTreeMap<u64, Image>,
    pub(crate) networks: BTreeMap<u64, Network>,
    pub(crate) placement_groups: BTreeMap<u64, PlacementGroup>,
    pub(crate) primary_ips: BTreeMap<u64, PrimaryIp>,
    /// Root passwords that were handed out because no SSH key was given.
    pub(crate) root_passwords: u64,
}

impl Project {
    fn new(rate_limit: u32, max_servers: Option<usize>, now: Timestamp) -> Self {
        Self {
            bucket: Bucket::full(rate_limit, now),
            max_servers,
            servers: BTreeMap::new(),
            ssh_keys: BTreeMap::new(),
            firewalls: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            networks: BTreeMap::new(),
            placement_groups: BTreeMap::new(),
            primary_ips: BTreeMap::new(),
            root_passwords: 0,
        }
    }
}

/// What a token opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) project: usize,
    pub(crate) read_only: bool,
}

/// What is out of stock: server types by location.
#[derive(Debug, Default)]
pub(crate) struct Stock(BTreeMap<(String, String), u64>);

impl Stock {
    /// Sets how many servers of a type a location can still place; `None` is no limit.
    pub(crate) fn set(&mut self, server_type: &str, location: &str, left: Option<u64>) {
        let place = (server_type.to_owned(), location.to_owned());
        match left {
            Some(left) => self.0.insert(place, left),
            None => self.0.remove(&place),
        };
    }

    pub(crate) fn has(&self, server_type: &str, location: &str) -> bool {
        self.left(server_type, location) != Some(0)
    }

    pub(crate) fn left(&self, server_type: &str, location: &str) -> Option<u64> {
        self.0
            .get(&(server_type.to_owned(), location.to_owned()))
            .copied()
    }

    pub(crate) fn take(&mut self, server_type: &str, location: &str) {
        if let Some(left) = self.left(server_type, location) {
            self.set(server_type, location, Some(left.saturating_sub(1)));
        }
    }
}

/// The whole simulated cloud.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) projects: Vec<Project>,
    pub(crate) tokens: HashMap<String, Access>,
    /// The allowance of those who bring no valid token.
    pub(crate) strangers: Bucket,
    pub(crate) actions: BTreeMap<u64, Action>,
    pub(crate) system_images: Vec<Image>,
    pub(crate) stock: Stock,
    pub(crate) ledger: Ledger,
    pub(crate) faults: Faults,
    /// What the machines have yet to be told.
    pub(crate) orders: Vec<Order>,
    /// Machines tell by themselves when they went off.
    pub(crate) machines_report: bool,
    timing: Timing,
    rng: StdRng,
    next_id: u64,
    next_host: u32,
    /// The first two octets of all addresses.
    free_hosts_in: [u8; 2],
    addresses_in_use: BTreeSet<Ipv4Addr>,
}

#[derive(Debug, Clone, Copy)]
struct Timing {
    action: Spread,
    boot_ssh: Spread,
    boot_cloud_init: Spread,
    factor: f64,
}

impl State {
    /// An empty cloud whose servers get addresses that begin with these two octets.
    pub(crate) fn new(config: &Config, net: [u8; 2], now: Timestamp) -> Self {
        let fresh = || Project::new(config.rate_limit, config.max_servers, now);
        let owners = config.tokens.iter().enumerate().map(|(project, token)| {
            (
                token.clone(),
                Access {
                    project,
                    read_only: false,
                },
            )
        });
        let readers = config.read_only_tokens.iter().map(|token| {
            (
                token.clone(),
                Access {
                    project: 0,
                    read_only: true,
                },
            )
        });
        Self {
            projects: config.tokens.iter().map(|_| fresh()).collect(),
            tokens: owners.chain(readers).collect(),
            strangers: Bucket::full(config.rate_limit, now),
            actions: BTreeMap::new(),
            system_images: images::system_images(),
            stock: Stock::default(),
            ledger: Ledger::default(),
            faults: Faults::default(),
            orders: Vec::new(),
            machines_report: config.machines == MachineKind::Nspawn,
            timing: Timing {
                action: config.action_s,
                boot_ssh: config.boot_ssh_s,
                boot_cloud_init: config.boot_cloud_init_s,
                factor: config.time_factor,
            },
            rng: StdRng::seed_from_u64(config.seed),
            next_id: 1_000_000,
            next_host: 1,
            free_hosts_in: net,
            addresses_in_use: BTreeSet::new(),
        }
    }

    pub(crate) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// An address that nobody has. IPv4 addresses go round, so that one is reused late.
    pub(crate) fn new_address(&mut self, family: Family) -> String {
        match family {
            Family::V6 => format!(
                "2001:db8:{:x}:{:x}::/64",
                self.next_id >> 16,
                self.next_id & 0xffff
            ),
            Family::V4 => {
                let address = self.next_ipv4();
                self.addresses_in_use.insert(address);
                address.to_string()
            }
        }
    }

    fn next_ipv4(&mut self) -> Ipv4Addr {
        loop {
            self.next_host = (self.next_host + 1) % 0xff00;
            let [_, _, high, low] = self.next_host.to_be_bytes();
            let [first, second] = self.free_hosts_in;
            let address = Ipv4Addr::new(first, second, high, low);
            let usable = low != 0 && low != 255 && self.next_host > 1;
            if usable && !self.addresses_in_use.contains(&address) {
                return address;
            }
        }
    }

    /// Addresses of primary IPs that no longer exist may be given out again.
    pub(crate) fn forget_unused_addresses(&mut self) {
        let held = self
            .projects
            .iter()
            .flat_map(|project| project.primary_ips.values());
        let held: BTreeSet<Ipv4Addr> = held.filter_map(|ip| ip.ip.parse().ok()).collect();
        self.addresses_in_use
            .retain(|address| held.contains(address));
    }

    fn draw(&mut self, spread: Spread) -> Duration {
        let seconds = self.rng.random_range(spread.from..=spread.to) * self.timing.factor;
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    /// How long the next action takes.
    pub(crate) fn action_time(&mut self) -> Duration {
        self.draw(self.timing.action)
    }

    /// The times of a boot that begins after `after`.
    pub(crate) fn boot(&mut self, after: Duration) -> Boot {
        let timing = self.timing;
        Boot {
            after,
            ssh: self.draw(timing.boot_ssh),
            cloud_init: self.draw(timing.boot_cloud_init),
        }
    }

    /// A root password as Hetzner makes them.
    pub(crate) fn new_root_password(&mut self) -> String {
        const LETTERS: &[u8] = b"abcdefghjkmnpqrstuvwxyzABCDEFGHJKMNPQRSTUVWXYZ23456789";
        let letter = |_| char::from(LETTERS[self.rng.random_range(0..LETTERS.len())]);
        (0..20).map(letter).collect()
    }

    /// The rules of all servers that have a firewall.
    pub(crate) fn walls(&self) -> BTreeMap<u64, Vec<Rule>> {
        let of_project = |project: &Project| -> Vec<(u64, Vec<Rule>)> {
            let servers = project.servers.values();
            let walled = servers
                .filter_map(|server| Some((server.id, firewalls::rules_of(project, server)?)));
            walled.collect()
        };
        self.projects.iter().flat_map(of_project).collect()
    }

    /// Server, and the project it is in.
    pub(crate) fn find_server(&self, id: u64) -> Option<(usize, &Server)> {
        let mut numbered = self.projects.iter().enumerate();
        numbered.find_map(|(number, p)| p.servers.get(&id).map(|s| (number, s)))
    }

    pub(crate) fn find_server_mut(&mut self, id: u64) -> Option<&mut Server> {
        self.projects
            .iter_mut()
            .find_map(|project| project.servers.get_mut(&id))
    }
}
