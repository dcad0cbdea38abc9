//! All machines of a simulator, and what they share: the host, the directory, the signal to stop.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::config::Config;
use crate::machines::fake::{self, Machine};
use crate::machines::host::Host;
use crate::machines::voice::{self, VoiceChange};
use crate::machines::{Order, What};

/// The longest path a unix socket may have, with some room.
const MAX_SOCKET_PATH: usize = 100;

/// How many machines work on their disks at once, each on a thread.
const DISKS_AT_ONCE: usize = 4;

/// Why machines could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The guest program or the machine host is not there.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// The directory of the machines cannot be made.
    #[error("cannot make {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A unix socket cannot have so long a path.
    #[error("{0} is too long a path for a socket: choose a shorter --state-dir")]
    LongPath(PathBuf),
}

/// How SSH misbehaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SshFault {
    /// It answers.
    #[default]
    None,
    /// Nothing listens: connections are refused.
    Refuse,
    /// Connections are taken and nothing is ever said.
    Hang,
}

/// What goes wrong in the guest program's surroundings; the machine host brings it about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fault that a test switches by itself"
)]
pub struct GuestFaults {
    /// The disk is full.
    pub disk_full: bool,
    /// The agent's unit cannot start.
    pub unit_fails: bool,
    /// The agent's unit starts and dies.
    pub unit_crashes: bool,
    /// The agent's user does not exist.
    pub user_missing: bool,
    /// The source cannot be fetched.
    pub source_fails: bool,
    /// Packages cannot be installed.
    pub packages_fail: bool,
    /// Processes of the unit survive its stop.
    pub stubborn: bool,
}

/// What goes wrong on a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MachineFaults {
    /// How SSH misbehaves.
    pub ssh: SshFault,
    /// Connections and the machine itself stand still; a shutdown request is not heard.
    pub frozen: bool,
    /// The connection is reset once so many bytes of a command's input arrived.
    pub cut_input_after: Option<u64>,
    /// The connection is reset once so many bytes of a command's output were sent.
    pub cut_output_after: Option<u64>,
    /// What goes wrong around the guest program.
    pub guest: GuestFaults,
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Without power.
    Off,
    /// On its way up.
    Booting,
    /// Cloud-init is through.
    Up,
}

/// One machine, as a test sees it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineView {
    /// Id of its server.
    pub server: u64,
    /// Where SSH answers; nothing for a server without IPv4.
    pub address: Option<String>,
    /// Its name when it was made.
    pub hostname: String,
    /// Its scratch directory.
    pub root: PathBuf,
    /// Where it is in its life.
    pub stage: Stage,
    /// Public host key that it shows now, in OpenSSH's form.
    pub host_key: String,
    /// When SSH began to answer, in this boot.
    pub ssh_since: Option<Timestamp>,
    /// When cloud-init was through, in its first boot.
    pub cloud_init_done: Option<Timestamp>,
    /// What went wrong in its boot.
    pub boot_error: Option<String>,
    /// What a test made go wrong.
    pub faults: MachineFaults,
}

/// What all machines share.
pub(crate) struct Shared {
    pub(crate) host: Host,
    pub(crate) ssh_port: u16,
    pub(crate) early_host_key: bool,
    directory: StateDir,
    /// Room for work on disks, which would hold up the API and SSH.
    disk_work: Semaphore,
    /// What was noted on disks that are gone.
    past_voices: Mutex<Vec<VoiceChange>>,
    stop: watch::Sender<bool>,
    /// Held by every task, so that the end of the last one can be seen.
    alive: Mutex<Option<mpsc::Sender<()>>>,
}

impl Shared {
    /// Runs a task that ends with the fleet at the latest.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let Some(alive) = lock(&self.alive).clone() else {
            return;
        };
        let mut stop = self.stop.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            drop(alive);
        });
    }

    /// Does work that blocks, beside the tasks; nothing comes of it where the runtime ends.
    pub(crate) async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let _room = self.disk_work.acquire().await.ok()?;
        tokio::task::spawn_blocking(work).await.ok()
    }

    /// Keeps what a disk tells of its agent before the disk goes.
    pub(crate) fn keep_voice(&self, server: u64, root: &Path) {
        lock(&self.past_voices).extend(voice::on_disk(server, root));
    }

    pub(crate) fn root_of(&self, server: u64) -> PathBuf {
        self.directory
            .path
            .join("machines")
            .join(server.to_string())
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All machines of a simulator.
pub(crate) struct Fleet {
    shared: Arc<Shared>,
    machines: Mutex<HashMap<u64, Arc<Machine>>>,
    ended: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

impl Fleet {
    /// Prepares the directory; the machine host starts with the first machine.
    pub(crate) fn start(config: &Config) -> Result<Self, FleetError> {
        for needed in [&config.guest, &config.machine_host] {
            if !needed.exists() {
                return Err(FleetError::Missing(needed.clone()));
            }
        }
        let directory = StateDir::make(config.state_dir.as_deref())?;
        let socket = directory.path.join("host.sock");
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(FleetError::LongPath(socket));
        }
        let (alive, ended) = mpsc::channel(1);
        let shared = Shared {
            host: Host::new(&config.python, &config.machine_host, &config.guest, socket),
            ssh_port: config.ssh_port,
            early_host_key: config.early_host_key,
            directory,
            disk_work: Semaphore::new(DISKS_AT_ONCE),
            past_voices: Mutex::new(Vec::new()),
            stop: watch::Sender::new(false),
            alive: Mutex::new(Some(alive)),
        };
        Ok(Self {
            shared: Arc::new(shared),
            machines: Mutex::new(HashMap::new()),
            ended: tokio::sync::Mutex::new(ended),
        })
    }

    /// Passes an order on; the machine carries it out by itself.
    pub(crate) fn give(&self, order: Order) {
        let Order { server, what } = order;
        let mut machines = lock(&self.machines);
        match what {
            What::Create {
                address,
                hostname,
                user_data,
                boot,
            } => {
                let (sender, orders) = mpsc::unbounded_channel();
                let machine =
                    Machine::new(&self.shared, server, address, hostname, user_data, sender);
                let machine = Arc::new(machine);
                machines.insert(server, Arc::clone(&machine));
                if let Some(boot) = boot {
                    machine.order(What::PowerOn { boot });
                }
                self.shared.spawn(fake::live(machine, orders));
            }
            What::Delete => {
                if let Some(machine) = machines.remove(&server) {
                    machine.order(What::Delete);
                }
            }
            other => {
                if let Some(machine) = machines.get(&server) {
                    machine.order(other);
                }
            }
        }
    }

    /// Ends all machines.
    pub(crate) fn stop(&self) {
        lock(&self.shared.alive).take();
        self.shared.stop.send_replace(true);
        lock(&self.machines).clear();
    }

    /// Returns once all machines have ended.
    pub(crate) async fn gone(&self) {
        while self.ended.lock().await.recv().await.is_some() {}
        self.shared.host.stop().await;
    }

    fn machine(&self, server: u64) -> Option<Arc<Machine>> {
        lock(&self.machines).get(&server).cloned()
    }

    pub(crate) fn set_faults(&self, server: u64, faults: MachineFaults) -> bool {
        self.machine(server).is_some_and(|machine| {
            machine.faults.send_replace(faults);
            true
        })
    }

    pub(crate) fn change_host_key(&self, server: u64, on_disk: bool) -> bool {
        self.machine(server)
            .is_some_and(|machine| machine.change_host_key(on_disk))
    }

    pub(crate) fn view(&self, server: u64) -> Option<MachineView> {
        self.machine(server).map(|machine| machine.view())
    }

    /// When the agents of all machines, also of those that are gone, began and ceased to run.
    pub(crate) fn voices(&self) -> Vec<VoiceChange> {
        let machines: Vec<Arc<Machine>> = lock(&self.machines).values().cloned().collect();
        let mut changes = lock(&self.shared.past_voices).clone();
        for machine in machines {
            changes.extend(voice::on_disk(machine.server, &machine.root));
        }
        changes.sort();
        changes.dedup();
        changes
    }

    pub(crate) fn views(&self) -> Vec<MachineView> {
        let machines: Vec<Arc<Machine>> = lock(&self.machines).values().cloned().collect();
        let mut views: Vec<MachineView> = machines.iter().map(|machine| machine.view()).collect();
        views.sort_by_key(|view| view.server);
        views
    }
}

/// The directory of all scratch directories; one that was made here goes away again.
struct StateDir {
    path: PathBuf,
    ours: bool,
}

impl StateDir {
    fn make(wanted: Option<&Path>) -> Result<Self, FleetError> {
        let name = format!(
            "hetzner-sim-{}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        );
        let path = wanted.map_or_else(|| std::env::temp_dir().join(name), Path::to_owned);
        let made = std::fs::create_dir_all(path.join("machines"));
        made.map_err(|source| FleetError::Directory {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            path,
            ours: wanted.is_none(),
        })
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove");
        }
    }
}
