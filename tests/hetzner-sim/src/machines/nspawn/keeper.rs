//! The namespaces of one simulator: processes, mounts and network of all its real machines.
//!
//! Their first process ends when its standard input does, which is a pipe from here. So however the
//! simulator ends, the kernel ends every machine, mount and interface; nothing is to be searched for.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

const KEEP: &str = include_str!("keep.sh");
const MACHINE: &str = include_str!("machine.sh");
/// Where the namespaces hold the hierarchy of control groups.
const GROUPS: &str = "/sys/fs/cgroup";
/// What the group of a simulator begins with; its process follows.
const GROUP: &str = "hetzner-sim-";
/// Networks that are tried, 10.N.0.0/16.
const NETWORKS: std::ops::RangeInclusive<u8> = 100..=250;

/// Why real machines cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A program could not be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The first process of the namespaces gave up.
    #[error("cannot make namespaces: {0}")]
    Namespaces(String),
    /// A program failed.
    #[error("{what} failed: {why}")]
    Failed {
        /// What was to be done.
        what: String,
        /// What it said.
        why: String,
    },
    /// No network for the machines is free.
    #[error("no machine network 10.N.0.0/16 is free")]
    NoNetwork,
}

/// The first process, and the network between it and the host.
pub(crate) struct Keeper {
    /// Process whose namespaces these are.
    pid: u32,
    process: Mutex<Child>,
    directory: PathBuf,
    /// The control group of all machines, in the namespaces.
    group: PathBuf,
    pub(crate) network: u8,
}

impl Keeper {
    /// Makes the namespaces, and the wanted network or one that no other simulator has.
    pub(crate) async fn start(directory: &Path, network: Option<u8>) -> Result<Self, KeeperError> {
        let mut keeper = Self::first_process(directory).await?;
        keeper.remove_groups_left_behind();
        keeper.network = keeper.claim_network(network).await?;
        keeper.connect().await?;
        Ok(keeper)
    }

    async fn first_process(directory: &Path) -> Result<Self, KeeperError> {
        let (own, random) = (std::process::id(), rand::random::<u32>());
        let group = Path::new(GROUPS).join(format!("{GROUP}{own}-{random:08x}"));
        let mut process = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child"])
            .args(["--mount-proc", "sh", "-c", KEEP, "keep"])
            .arg(directory)
            .arg(&group)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| cannot_run("unshare", source))?;
        let stdout = process.stdout.take().map(BufReader::new);
        let mut line = String::new();
        if let Some(mut stdout) = stdout {
            // Whatever is wrong, it shows in the line.
            let _ = stdout.read_line(&mut line).await;
        }
        if line != "ready\n" {
            let said = process.wait_with_output().await;
            let said = said.map(|out| String::from_utf8_lossy(&out.stderr).into_owned());
            return Err(KeeperError::Namespaces(said.unwrap_or_default()));
        }
        Ok(Self {
            pid: process.id().unwrap_or_default(),
            process: Mutex::new(process),
            directory: directory.to_owned(),
            group,
            network: 0,
        })
    }

    /// Takes the first free network by the name of the interface that leads to it.
    async fn claim_network(&self, wanted: Option<u8>) -> Result<u8, KeeperError> {
        let known = run("ip", Command::new("ip").args(["-4", "route", "show"])).await?;
        for number in wanted.map_or(NETWORKS, |number| number..=number) {
            let taken = known.contains(&format!("10.{number}."));
            let mut link = Command::new("ip");
            link.args(["link", "add", &format!("hsim{number}"), "type", "veth"])
                .args(["peer", "name", "uplink", "netns", &self.pid.to_string()]);
            if !taken && run("ip", &mut link).await.is_ok() {
                return Ok(number);
            }
        }
        Err(KeeperError::NoNetwork)
    }

    async fn connect(&self) -> Result<(), KeeperError> {
        let (host, router) = (self.host().to_string(), self.router().to_string());
        let (link, subnet) = (format!("hsim{}", self.network), self.subnet());
        self.run("network", &[&host, &router, &subnet]).await?;
        for arguments in [
            vec!["address", "add", &host, "peer", &router, "dev", &link],
            vec!["link", "set", &link, "up"],
            vec!["route", "add", &subnet, "via", &router],
        ] {
            run("ip", Command::new("ip").args(arguments)).await?;
        }
        Ok(())
    }

    /// The host's address on the machines' network.
    pub(crate) fn host(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.network, 0, 1)
    }

    /// The address of the namespace that routes between host and machines.
    pub(crate) fn router(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.network, 255, 1)
    }

    /// All addresses of machines.
    pub(crate) fn subnet(&self) -> String {
        format!("10.{}.0.0/16", self.network)
    }

    /// What is put before a command for it to run in the namespaces.
    pub(crate) fn prefix(&self) -> Vec<String> {
        let own = format!("/proc/{}/ns", self.pid);
        vec![
            "nsenter".to_owned(),
            format!("--mount={own}/mnt"),
            format!("--net={own}/net"),
            format!("--pid={own}/pid_for_children"),
        ]
    }

    /// A command that runs in the namespaces, without input.
    pub(crate) fn command(&self, program: &str) -> Command {
        let prefix = self.prefix();
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(program).stdin(Stdio::null());
        command
    }

    /// One of the things that are done to machines.
    pub(crate) fn verb(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = self.command("sh");
        command
            .args(["-c", MACHINE, "machine"])
            .arg(&self.directory)
            .arg(&self.group)
            .arg(verb)
            .args(arguments);
        command
    }

    /// Does it, and waits for its end.
    pub(crate) async fn run(&self, verb: &str, arguments: &[&str]) -> Result<(), KeeperError> {
        run(verb, &mut self.verb(verb, arguments)).await.map(drop)
    }

    /// Runs a program on this input, and waits for its end.
    pub(crate) async fn feed(&self, program: &str, input: &str) -> Result<(), KeeperError> {
        let mut command = self.command(program);
        command
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let broken = |source| cannot_run(program, source);
        let mut child = command.spawn().map_err(broken)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await.map_err(broken)?;
        }
        let ended = child.wait_with_output().await.map_err(broken)?;
        output_of(program, &ended).map(drop)
    }

    /// A path in the namespaces as the host reaches it.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let root = PathBuf::from(format!("/proc/{}/root", self.pid));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The root of a machine's disk.
    pub(crate) fn root_of(&self, server: u64) -> PathBuf {
        self.path(self.directory.join(format!("machines/{server}/root")))
    }

    /// The control group of a machine.
    pub(crate) fn group_of(&self, server: u64) -> PathBuf {
        self.path(self.group.join(server.to_string()))
    }

    /// Removes the groups of simulators that were killed together with their first process.
    fn remove_groups_left_behind(&self) {
        let groups = std::fs::read_dir(self.path(GROUPS));
        for group in groups.into_iter().flatten().flatten() {
            let name = group.file_name().to_string_lossy().into_owned();
            let owner = name
                .strip_prefix(GROUP)
                .and_then(|rest| rest.split('-').next());
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                remove_group(&group.path());
            }
        }
    }

    /// Lets the namespaces go, and waits until they have.
    pub(crate) async fn stop(&self) {
        let mut process = self.process.lock().await;
        drop(process.stdin.take());
        if let Err(error) = process.wait().await {
            tracing::warn!(%error, "cannot end the namespaces");
        }
    }
}

/// Groups are removed one by one, from within; the files in them go along.
fn remove_group(group: &Path) {
    let inner = std::fs::read_dir(group).into_iter().flatten().flatten();
    for inner in inner.filter(|inner| inner.path().is_dir()) {
        remove_group(&inner.path());
    }
    if let Err(error) = std::fs::remove_dir(group) {
        tracing::warn!(%error, group = %group.display(), "cannot remove what was left behind");
    }
}

fn cannot_run(program: &str, source: io::Error) -> KeeperError {
    let program = program.to_owned();
    KeeperError::Run { program, source }
}

/// Runs a command to its end; what it prints is the answer.
async fn run(what: &str, command: &mut Command) -> Result<String, KeeperError> {
    let ended = command.output().await;
    output_of(what, &ended.map_err(|source| cannot_run(what, source))?)
}

fn output_of(what: &str, ended: &std::process::Output) -> Result<String, KeeperError> {
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    Err(KeeperError::Failed {
        what: what.to_owned(),
        why: String::from_utf8_lossy(&ended.stderr).trim().to_owned(),
    })
}
