//! Real machines: Debian with systemd, sshd and cloud-init, each in systemd-nspawn.
//!
//! ```text
//!   host ── hsimN ── uplink │ router, nft │ ve<id> ── eth0 │ machine
//!        10.N.0.1           │ metadata    │      10.N.x.y  │ gateway 172.31.1.1
//!                           └─ namespaces of one simulator ┘
//! ```
//!
//! Disks are overlays on one shared root. All of it lives in namespaces that end with the simulator.

mod keeper;
mod look;
mod machine;
pub(crate) mod metadata;
mod network;
mod shell;
mod snapshots;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::firewall_rules::Rule;
use crate::machines::fleet::{
    FleetError, GuestFaults, MachineError, MachineFaults, MachineView, lock,
};
use crate::machines::state_dir::StateDir;
use crate::machines::tasks::Tasks;
use crate::machines::voice::VoiceChange;
use crate::machines::{Order, What};

pub use keeper::KeeperError;
pub use shell::{Shell, ShellAnswer};

use keeper::Keeper;
pub(crate) use machine::Machine;
use machine::Plan;
use network::Network;
use snapshots::{Layers, Snapshots};

/// Port on which every real machine answers SSH.
pub(crate) const SSH_PORT: u16 = 22;

/// What all machines share.
pub(crate) struct Shared {
    keeper: Keeper,
    network: Network,
    tasks: Tasks,
    /// The root below all disks.
    root: PathBuf,
    /// Held so that the root is not removed.
    _root_lock: File,
    snapshots: Snapshots,
    voices: Mutex<Vec<VoiceChange>>,
    /// What the cloud-inits of all boots found wrong.
    complaints: Mutex<Vec<String>>,
    went_off: mpsc::UnboundedSender<u64>,
    /// The last to go.
    directory: StateDir,
}

impl Shared {
    fn went_off(&self, server: u64) {
        // Nobody listens at the simulator's end.
        let _ = self.went_off.send(server);
    }

    /// What a disk made from that snapshot lies on, once its copy is made.
    async fn layers_of(&self, snapshot: Option<u64>) -> Layers {
        let of_debian = vec![self.root.clone()];
        match snapshot {
            Some(image) => self.snapshots.layers_of(image).await.unwrap_or(of_debian),
            None => of_debian,
        }
    }

    /// Removes the layers of deleted snapshots that nothing lies on any more.
    async fn sweep_snapshots(&self) {
        while let Some(image) = self.snapshots.next_unused() {
            let removed = self.keeper.run("forget", &[&image.to_string()]).await;
            if let Err(error) = removed {
                tracing::warn!(image, %error, "snapshot");
            }
        }
    }
}

/// All real machines of a simulator.
pub(crate) struct NspawnFleet {
    shared: Arc<Shared>,
    machines: Mutex<HashMap<u64, Arc<Machine>>>,
    metadata: Mutex<Option<TcpListener>>,
    went_off: Mutex<Option<mpsc::UnboundedReceiver<u64>>>,
}

impl NspawnFleet {
    pub(crate) async fn start(config: &Config, network: Option<u8>) -> Result<Self, FleetError> {
        let no_root = |_| FleetError::NoRoot(config.machine_root.clone());
        let root = config.machine_root.canonicalize().map_err(no_root)?;
        let directory =
            StateDir::make(config.state_dir.as_deref()).map_err(FleetError::Directory)?;
        let keeper = Keeper::start(&directory.path, network).await?;
        let root_lock = File::create(root.with_extension("lock"))
            .and_then(|lock| lock.lock_shared().map(|()| lock))
            .map_err(FleetError::Directory)?;
        let metadata = TcpListener::bind((keeper.host(), 0)).await;
        let metadata = metadata.map_err(FleetError::Directory)?;
        let port = metadata.local_addr().map_or(0, |address| address.port());
        let (went_off, off) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            network: Network::new(SocketAddrV4::new(keeper.host(), port)),
            keeper,
            tasks: Tasks::new(),
            root,
            _root_lock: root_lock,
            snapshots: Snapshots::new(directory.path.join("snapshots")),
            voices: Mutex::default(),
            complaints: Mutex::default(),
            went_off,
            directory,
        });
        shared.network.apply(&shared.keeper).await?;
        let enforcing = Arc::clone(&shared);
        shared
            .tasks
            .spawn(async move { enforcing.network.keep(&enforcing.keeper).await });
        Ok(Self {
            shared,
            machines: Mutex::default(),
            metadata: Mutex::new(Some(metadata)),
            went_off: Mutex::new(Some(off)),
        })
    }

    /// The first two octets of all addresses.
    pub(crate) fn network(&self) -> [u8; 2] {
        [10, self.shared.keeper.network]
    }

    /// What serves metadata: the listener that machines reach at 169.254.169.254. It is given out once.
    pub(crate) fn metadata(&self) -> Option<TcpListener> {
        lock(&self.metadata).take()
    }

    /// Tells servers whose machines went off by themselves. It is given out once.
    pub(crate) fn went_off(&self) -> Option<mpsc::UnboundedReceiver<u64>> {
        lock(&self.went_off).take()
    }

    pub(crate) fn give(&self, order: Order) {
        let Order { server, what } = order;
        match what {
            What::Create { .. } => self.create(server, what),
            What::Delete => {
                if let Some(machine) = lock(&self.machines).remove(&server) {
                    self.shared.network.unplug(server);
                    machine.order(What::Delete);
                }
            }
            What::Snapshot { image } => {
                if let Some(machine) = self.machine(server) {
                    self.shared.snapshots.begin(image);
                    machine.order(what);
                }
            }
            What::Forget { image } => {
                self.shared.snapshots.delete(image);
                let shared = Arc::clone(&self.shared);
                self.shared
                    .tasks
                    .spawn(async move { shared.sweep_snapshots().await });
            }
            other => {
                if let What::Rebuild { snapshot, .. } = &other {
                    self.reserve(server, *snapshot);
                }
                if let Some(machine) = self.machine(server) {
                    machine.order(other);
                }
            }
        }
    }

    /// A snapshot that is deleted from now on still serves this disk.
    fn reserve(&self, server: u64, snapshot: Option<u64>) {
        if let Some(image) = snapshot {
            self.shared.snapshots.reserve(server, image);
        }
    }

    fn create(&self, server: u64, what: What) {
        let What::Create {
            address,
            hostname,
            ssh_keys,
            snapshot,
            ..
        } = &what
        else {
            return;
        };
        self.reserve(server, *snapshot);
        if let Some(address) = address {
            self.shared.network.plug_in(server, *address);
        }
        let plan = Plan {
            server,
            address: *address,
            hostname: hostname.clone(),
            ssh_keys: ssh_keys.clone(),
        };
        let (sender, orders) = mpsc::unbounded_channel();
        let machine = Arc::new(Machine::new(&self.shared, plan, sender));
        lock(&self.machines).insert(server, Arc::clone(&machine));
        machine.order(what);
        self.shared.tasks.spawn(machine::live(machine, orders));
    }

    /// Lets pass what the firewalls of each server let pass; a server that is not named has none.
    pub(crate) fn enforce(&self, walls: BTreeMap<u64, Vec<Rule>>) {
        self.shared.network.set_walls(walls);
    }

    pub(crate) fn stop(&self) {
        self.shared.tasks.stop();
        lock(&self.machines).clear();
    }

    pub(crate) async fn gone(&self) {
        self.shared.tasks.gone().await;
        self.shared.keeper.stop().await;
    }

    pub(crate) fn machine(&self, server: u64) -> Option<Arc<Machine>> {
        lock(&self.machines).get(&server).cloned()
    }

    pub(crate) fn set_faults(
        &self,
        server: u64,
        faults: MachineFaults,
    ) -> Result<(), MachineError> {
        let machine = self.machine(server).ok_or(MachineError::Unknown)?;
        let cuts = (faults.cut_input_after, faults.cut_output_after);
        if cuts != (None, None) || faults.guest != GuestFaults::default() {
            return Err(MachineError::Unsupported(
                "a real machine has the faults ssh and frozen only; its shell can bring about others",
            ));
        }
        if faults.frozen != lock(&machine.faults).frozen {
            machine.freeze(faults.frozen)?;
        }
        self.shared.network.set_ssh(server, faults.ssh);
        *lock(&machine.faults) = faults;
        Ok(())
    }

    pub(crate) async fn divert(
        &self,
        server: u64,
        to: Option<SocketAddrV4>,
    ) -> Result<(), MachineError> {
        self.machine(server).ok_or(MachineError::Unknown)?;
        self.shared.network.divert(server, to);
        self.shared.network.settled().await;
        Ok(())
    }

    /// What is put before a command for it to run on the router between host and machines.
    pub(crate) fn on_router(&self) -> Vec<String> {
        self.shared.keeper.prefix()
    }

    /// The host's address on the machines' network.
    pub(crate) fn host(&self) -> Ipv4Addr {
        self.shared.keeper.host()
    }

    pub(crate) fn view(&self, server: u64) -> Option<MachineView> {
        self.machine(server).map(|machine| machine.view())
    }

    pub(crate) fn views(&self) -> Vec<MachineView> {
        let machines: Vec<Arc<Machine>> = lock(&self.machines).values().cloned().collect();
        machines.iter().map(|machine| machine.view()).collect()
    }

    pub(crate) fn complaints(&self) -> Vec<String> {
        lock(&self.shared.complaints).clone()
    }

    pub(crate) fn voices(&self) -> Vec<VoiceChange> {
        let mut changes = lock(&self.shared.voices).clone();
        // A voice that was seen once begins and ends at one time; the sort keeps that order.
        changes.sort_by_key(|change| change.at_ms);
        changes
    }
}
