//! All fake machines of a simulator, and what they share: the host, the directory, the tasks.

use std::collections::HashMap;
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::{Semaphore, mpsc};

use crate::config::Config;
use crate::machines::fake::{self, Machine};
use crate::machines::fleet::{FleetError, MachineError, MachineFaults, MachineView, lock};
use crate::machines::host::Host;
use crate::machines::state_dir::StateDir;
use crate::machines::tasks::Tasks;
use crate::machines::voice::{self, VoiceChange};
use crate::machines::{Order, What};

/// The longest path a unix socket may have, with some room.
const MAX_SOCKET_PATH: usize = 100;

/// How many machines work on their disks at once, each on a thread.
const DISKS_AT_ONCE: usize = 4;

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
    tasks: Tasks,
}

impl Shared {
    /// Runs a task that ends with the fleet at the latest.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
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

/// All fake machines of a simulator.
pub(crate) struct FakeFleet {
    shared: Arc<Shared>,
    machines: Mutex<HashMap<u64, Arc<Machine>>>,
}

impl FakeFleet {
    /// Prepares the directory; the machine host starts with the first machine.
    pub(crate) fn start(config: &Config) -> Result<Self, FleetError> {
        for needed in [&config.guest, &config.machine_host] {
            if !needed.exists() {
                return Err(FleetError::Missing(needed.clone()));
            }
        }
        let directory =
            StateDir::make(config.state_dir.as_deref()).map_err(FleetError::Directory)?;
        let socket = directory.path.join("host.sock");
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(FleetError::LongPath(socket));
        }
        let shared = Shared {
            host: Host::new(&config.python, &config.machine_host, &config.guest, socket),
            ssh_port: config.ssh_port,
            early_host_key: config.early_host_key,
            directory,
            disk_work: Semaphore::new(DISKS_AT_ONCE),
            past_voices: Mutex::new(Vec::new()),
            tasks: Tasks::new(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            machines: Mutex::new(HashMap::new()),
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
                ..
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
                    // What is asked between now and the end of the disk.
                    self.shared.keep_voice(server, &machine.root);
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
        self.shared.tasks.stop();
        lock(&self.machines).clear();
    }

    /// Returns once all machines have ended.
    pub(crate) async fn gone(&self) {
        self.shared.tasks.gone().await;
        self.shared.host.stop().await;
    }

    fn machine(&self, server: u64) -> Option<Arc<Machine>> {
        lock(&self.machines).get(&server).cloned()
    }

    pub(crate) fn set_faults(
        &self,
        server: u64,
        faults: MachineFaults,
    ) -> Result<(), MachineError> {
        let machine = self.machine(server).ok_or(MachineError::Unknown)?;
        machine.faults.send_replace(faults);
        Ok(())
    }

    pub(crate) fn move_to(
        &self,
        server: u64,
        address: Option<Ipv4Addr>,
    ) -> Result<(), MachineError> {
        let machine = self.machine(server).ok_or(MachineError::Unknown)?;
        machine.address.send_replace(address);
        Ok(())
    }

    pub(crate) fn change_host_key(&self, server: u64, on_disk: bool) -> Result<(), MachineError> {
        let machine = self.machine(server).ok_or(MachineError::Unknown)?;
        Ok(machine.change_host_key(on_disk)?)
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
        machines.iter().map(|machine| machine.view()).collect()
    }
}
