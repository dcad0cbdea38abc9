//! Another address than the operator's, on the router between this host and real machines.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;

use tokio::process::Command;

use crate::bed::Bed;
use crate::failure::{Outcome, ensure};

/// Exits well if a connection from the first address to the second one and this port comes about within a second.
const CONNECT: &str = "
import socket, sys
socket.create_connection((sys.argv[2], int(sys.argv[3])), 1, (sys.argv[1], 0))";

/// Somebody with an address of his own.
pub struct Elsewhere {
    prefix: Vec<String>,
    /// That address.
    pub address: Ipv4Addr,
}

impl Elsewhere {
    /// Takes the address.
    ///
    /// # Errors
    /// Fails when the machines are not real.
    pub async fn of(bed: &Bed) -> Outcome<Self> {
        let [first, second, ..] = bed.host().octets();
        let somebody = Self {
            prefix: bed.cloud().on_router()?,
            address: Ipv4Addr::new(first, second, 255, 66),
        };
        let cidr = format!("{}/32", somebody.address);
        let add = ["ip", "address", "replace", &cidr, "dev", "lo"];
        let taken = somebody.command(&add).status().await?;
        ensure(taken.success(), || format!("cannot hold {cidr}"))?;
        Ok(somebody)
    }

    /// His network, as firewalls name it.
    pub fn network(&self) -> String {
        format!("{}/32", self.address)
    }

    /// A command that he runs; it ends with this process' interest in it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.prefix[0]);
        command
            .args(&self.prefix[1..])
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Whether a connection of his comes about.
    ///
    /// # Errors
    /// Fails when none can be tried.
    pub async fn reaches(&self, target: SocketAddr) -> Outcome<bool> {
        let (own, ip, port) = (
            self.address.to_string(),
            target.ip().to_string(),
            target.port().to_string(),
        );
        let mut attempt = self.command(&["python3", "-c", CONNECT, &own, &ip, &port]);
        Ok(attempt.stderr(Stdio::null()).status().await?.success())
    }
}
