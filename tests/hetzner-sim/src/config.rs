//! What a simulator is told at its start; the same for the program and for tests in process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, ValueEnum};

/// Seconds drawn at random between two bounds: `2..5`, or `3` for always three.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The least, in seconds.
    pub from: f64,
    /// The most, in seconds.
    pub to: f64,
}

impl Spread {
    /// Always the same number of seconds.
    pub fn exactly(seconds: f64) -> Self {
        Self {
            from: seconds,
            to: seconds,
        }
    }
}

impl FromStr for Spread {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, to) = text.split_once("..").unwrap_or((text, text));
        let seconds = |part: &str| {
            let parsed = part.trim().parse::<f64>().ok();
            parsed
                .filter(|s| s.is_finite() && *s >= 0.0)
                .ok_or(format!("'{part}' is not a number of seconds"))
        };
        let spread = Self {
            from: seconds(from)?,
            to: seconds(to)?,
        };
        if spread.from > spread.to {
            return Err(format!("'{text}' begins after it ends"));
        }
        Ok(spread)
    }
}

/// What stands behind the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MachineKind {
    /// An SSH server each, that runs the guest program in a scratch directory.
    Fake,
    /// A real Debian each, in systemd-nspawn; needs root.
    Nspawn,
    /// Nothing: the API alone.
    None,
}

/// A simulated Hetzner Cloud, with control over its faults under `/_sim`.
#[derive(Debug, Clone, Parser)]
#[command(name = "hetzner-sim", version)]
pub struct Config {
    /// Address the API listens on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,

    /// A token, and with it a project; may be repeated.
    #[arg(long = "token", value_name = "TOKEN")]
    pub tokens: Vec<String>,

    /// A token that may only read the first project; may be repeated.
    #[arg(long = "read-only-token", value_name = "TOKEN")]
    pub read_only_tokens: Vec<String>,

    /// What stands behind the servers.
    #[arg(long, value_enum, default_value = "none")]
    pub machines: MachineKind,

    /// Network of the servers' addresses, `127.N.0.0/16` (real machines: `10.N.0.0/16`); by default the first free N.
    #[arg(long, value_name = "CIDR")]
    pub machine_net: Option<String>,

    /// Port on which machines answer SSH; real ones always do on 22.
    #[arg(long, default_value_t = 2222)]
    pub ssh_port: u16,

    /// Python that runs the machine host.
    #[arg(long, default_value = "python3")]
    pub python: PathBuf,

    /// The machine host: a program that runs the guest program for all machines.
    #[arg(long, value_name = "PATH", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/machine_host.py"))]
    pub machine_host: PathBuf,

    /// The guest program, as the machine host is to load it beforehand.
    #[arg(long, value_name = "PATH", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../src/guest/program.py"))]
    pub guest: PathBuf,

    /// The root that real machines share; `make machine-root` makes it.
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/machine-root/current"))]
    pub machine_root: PathBuf,

    /// Directory for the machines' scratch directories; by default one that goes with the simulator.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// File to write once everything answers: JSON with `endpoint`, `control`, `machineNet`, `host`, `sshPort`.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,

    /// Seconds from the start of a machine until SSH answers, `A..B`.
    #[arg(long, default_value = "8..15")]
    pub boot_ssh_s: Spread,

    /// Seconds from the start of a machine until cloud-init is through, `A..B`.
    #[arg(long, default_value = "12..25")]
    pub boot_cloud_init_s: Spread,

    /// Seconds that an action takes, `A..B`.
    #[arg(long, default_value = "1..3")]
    pub action_s: Spread,

    /// Factor on all of these durations; 0.1 is ten times as fast.
    #[arg(long, default_value_t = 1.0)]
    pub time_factor: f64,

    /// Requests per hour and project.
    #[arg(long, default_value_t = 3600)]
    pub rate_limit: u32,

    /// How many servers each project may have.
    #[arg(long)]
    pub max_servers: Option<usize>,

    /// Serve a host key that nobody will see again until cloud-init is through.
    #[arg(long)]
    pub early_host_key: bool,

    /// Seed of all random durations.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Default for Config {
    /// The defaults of the program, with one project whose token is `test-token`, no waiting in
    /// actions and boots.
    fn default() -> Self {
        let mut config = Self::parse_from(["hetzner-sim", "--token", "test-token"]);
        config.time_factor = 0.0;
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_read_as_ranges_or_single_numbers() {
        assert_eq!("2..5".parse(), Ok(Spread { from: 2.0, to: 5.0 }));
        assert_eq!("0".parse(), Ok(Spread::exactly(0.0)));
        assert!("5..2".parse::<Spread>().is_err());
        assert!("-1".parse::<Spread>().is_err());
        assert!("soon".parse::<Spread>().is_err());
    }
}
