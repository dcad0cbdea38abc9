//! One real machine: a disk in layers, a cable, and a life that follows orders.
//!
//! One task a machine takes orders, waits for the machine's own end (it may switch itself off or boot
//! again), and looks at it meanwhile. The kernel's control group of the machine is its power: killing
//! the group is pulling the plug.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use crate::machines::cloud_init::maybe_b64decode;
use crate::machines::fleet::{MachineFaults, MachineView, Stage, lock};
use crate::machines::nspawn::keeper::KeeperError;
use crate::machines::nspawn::look::{self, Seen};
use crate::machines::nspawn::{SSH_PORT, Shared};
use crate::machines::{Boot, What};

/// Between two looks at a running machine.
const LOOK: Duration = Duration::from_millis(50);
/// How a supervisor ends whose machine wants to boot again.
const WANTS_TO_BOOT: i32 = 133;
/// What asks systemd as the first process to power off, and to boot again.
const POWER_OFF: &str = "-38";
const REBOOT: &str = "-39";

/// What makes a machine.
pub(crate) struct Plan {
    pub(crate) server: u64,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) hostname: String,
    pub(crate) ssh_keys: Vec<String>,
}

/// A machine.
pub(crate) struct Machine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) plan: Plan,
    orders: mpsc::UnboundedSender<What>,
    pub(crate) seen: Mutex<Seen>,
    pub(crate) faults: Mutex<MachineFaults>,
}

enum Power {
    Off,
    At(Instant),
    On(Child),
}

/// What comes by itself.
enum Turn {
    /// The time to boot.
    Due,
    /// The machine ended.
    Ended(ExitStatus),
}

impl Machine {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        plan: Plan,
        orders: mpsc::UnboundedSender<What>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            plan,
            orders,
            seen: Mutex::default(),
            faults: Mutex::default(),
        }
    }

    pub(crate) fn order(&self, what: What) {
        // Nobody listens once the machine is gone, and then the order is void.
        let _ = self.orders.send(what);
    }

    fn id(&self) -> String {
        self.plan.server.to_string()
    }

    fn directory(&self) -> PathBuf {
        let machines = self.shared.directory.path.join("machines");
        machines.join(self.id())
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.directory().join("console.log")
    }

    /// Host's number of the machine's first process, while it runs.
    pub(crate) fn leader(&self) -> Option<u32> {
        let group = self.shared.keeper.group_of(self.plan.server);
        let first = std::fs::read_to_string(group.join("payload/init.scope/cgroup.procs")).ok()?;
        first.lines().next()?.parse().ok()
    }

    pub(crate) fn view(&self) -> MachineView {
        let root = self.shared.keeper.root_of(self.plan.server);
        let seen = lock(&self.seen);
        let address = self.plan.address.map(|ip| format!("{ip}:{SSH_PORT}"));
        MachineView {
            server: self.plan.server,
            address,
            hostname: self.plan.hostname.clone(),
            host_key: look::host_key(&root),
            root,
            stage: seen.stage,
            ssh_since: seen.ssh_since,
            cloud_init_done: seen.cloud_init_done,
            boot_error: seen.boot_error.clone(),
            faults: *lock(&self.faults),
        }
    }

    /// Lets all of its processes stand still, or go on.
    pub(crate) fn freeze(&self, frozen: bool) -> std::io::Result<()> {
        let group = self.shared.keeper.group_of(self.plan.server);
        std::fs::write(group.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    async fn verb(&self, verb: &str, more: &[&str]) -> Result<(), KeeperError> {
        let id = self.id();
        let arguments: Vec<&str> = [id.as_str()].iter().chain(more).copied().collect();
        self.shared.keeper.run(verb, &arguments).await
    }

    fn failed(&self, error: &KeeperError) {
        tracing::warn!(server = self.plan.server, %error, "machine");
        lock(&self.seen).boot_error = Some(error.to_string());
    }

    /// A fresh disk on Debian or on a snapshot, and what cloud-init is to find.
    async fn make_disk(&self, user_data: Option<&str>, snapshot: Option<u64>) {
        let layers = self.shared.layers_of(snapshot).await;
        let names: Vec<&str> = layers.iter().filter_map(|layer| layer.to_str()).collect();
        let seeded = self.write_seed(user_data.unwrap_or_default());
        let made = self.verb("disk", &[&names.join(":")]).await;
        self.shared.snapshots.lies_on(self.plan.server, layers);
        self.shared.sweep_snapshots().await;
        *lock(&self.seen) = Seen::default();
        if let Err(error) = made {
            self.failed(&error);
        }
        if let Err(error) = seeded {
            lock(&self.seen).boot_error = Some(format!("cannot write the seed: {error}"));
        }
    }

    fn write_seed(&self, user_data: &str) -> std::io::Result<()> {
        let seed = self.directory().join("seed");
        std::fs::create_dir_all(&seed)?;
        let meta = json!({
            "instance-id": self.id(),
            "local-hostname": self.plan.hostname,
            "public-keys": self.plan.ssh_keys,
        });
        std::fs::write(seed.join("meta-data"), meta.to_string())?;
        std::fs::write(seed.join("user-data"), maybe_b64decode(user_data))
    }

    async fn start(&self) -> Power {
        // No packet passes before the firewalls that it was created with.
        self.shared.network.settled().await;
        let powered = SystemTime::now();
        match self.spawn() {
            Ok(child) => {
                let mut seen = lock(&self.seen);
                (seen.stage, seen.powered) = (Stage::Booting, Some(powered));
                drop(seen);
                lock(&self.faults).frozen = false;
                Power::On(child)
            }
            Err(error) => {
                lock(&self.seen).boot_error = Some(format!("cannot start: {error}"));
                Power::Off
            }
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let mut console = std::fs::File::options();
        let console = console.create(true).append(true).open(self.console())?;
        let router = self.shared.keeper.router().to_string();
        let address = self.plan.address.map(|address| address.to_string());
        let address = address.unwrap_or_default();
        let mut start = self
            .shared
            .keeper
            .verb("start", &[&self.id(), &router, &address]);
        start
            .stdout(Stdio::from(console.try_clone()?))
            .stderr(Stdio::from(console))
            .spawn()
    }

    /// The power goes, or has gone; the disk stays.
    async fn unplug(&self, power: &mut Power) {
        let was_on = std::mem::replace(power, Power::Off);
        if let Power::On(mut child) = was_on {
            if let Err(error) = self.verb("unplug", &[]).await {
                self.failed(&error);
            }
            if let Err(error) = child.wait().await {
                tracing::warn!(server = self.plan.server, %error, "supervisor");
            }
            look::power_lost(self);
        }
    }

    /// Asks the first process for something, where there is one to listen.
    async fn signal(&self, signal: &str) {
        if let Some(leader) = self.leader() {
            let mut ask = Command::new("kill");
            ask.args([signal, &leader.to_string()]);
            if let Err(error) = ask.status().await {
                tracing::warn!(server = self.plan.server, %error, "signal");
            }
        }
    }

    async fn take_snapshot(&self, image: u64) {
        let name = image.to_string();
        if let Err(error) = self.verb("snapshot", &[&name]).await {
            tracing::warn!(server = self.plan.server, %error, "snapshot");
        }
        self.shared.snapshots.made(image, self.plan.server);
        self.shared.sweep_snapshots().await;
    }
}

/// Follows orders until the machine is deleted.
pub(crate) async fn live(machine: Arc<Machine>, mut orders: mpsc::UnboundedReceiver<What>) {
    let mut power = Power::Off;
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    if let Err(error) = machine.verb("create", &[]).await {
        machine.failed(&error);
    }
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some(order) = order else { return };
                let gone = matches!(order, What::Delete);
                follow(&machine, &mut power, order).await;
                if gone {
                    return;
                }
            }
            turn = turn(&mut power) => turned(&machine, &mut power, turn).await,
            _ = looks.tick(), if matches!(power, Power::On(_)) => look::at(&machine),
        }
    }
}

/// Waits for what comes by itself.
async fn turn(power: &mut Power) -> Turn {
    match power {
        Power::Off => std::future::pending().await,
        Power::At(instant) => {
            sleep_until(*instant).await;
            Turn::Due
        }
        Power::On(child) => Turn::Ended(child.wait().await.unwrap_or_default()),
    }
}

async fn turned(machine: &Machine, power: &mut Power, turn: Turn) {
    let boots = match turn {
        Turn::Due => true,
        Turn::Ended(status) => {
            machine.unplug(power).await;
            let boots = status.code() == Some(WANTS_TO_BOOT);
            if !boots && !status.success() {
                let error = format!("its supervisor ended with {status}: see its console");
                lock(&machine.seen).boot_error = Some(error);
            }
            boots
        }
    };
    if boots {
        *power = machine.start().await;
    } else {
        machine.shared.went_off(machine.plan.server);
    }
}

fn starting(boot: Boot) -> Power {
    Power::At(Instant::now() + boot.after)
}

async fn follow(machine: &Arc<Machine>, power: &mut Power, order: What) {
    match order {
        What::Create {
            user_data,
            snapshot,
            boot,
            ..
        } => {
            machine.make_disk(user_data.as_deref(), snapshot).await;
            *power = boot.map_or(Power::Off, starting);
        }
        What::PowerOn { boot } => {
            if matches!(power, Power::Off) {
                *power = starting(boot);
            }
        }
        What::PowerOff { after } if after.is_zero() => machine.unplug(power).await,
        What::PowerOff { after } => {
            let later = Arc::clone(machine);
            machine.shared.tasks.spawn(async move {
                sleep(after).await;
                later.order(What::PowerOff {
                    after: Duration::ZERO,
                });
            });
        }
        What::Shutdown { .. } => machine.signal(POWER_OFF).await,
        What::Reboot { hard: false, .. } => machine.signal(REBOOT).await,
        What::Reboot { hard: true, boot } => {
            machine.unplug(power).await;
            *power = starting(boot);
        }
        What::Rebuild {
            user_data,
            snapshot,
            boot,
        } => {
            machine.unplug(power).await;
            machine.make_disk(user_data.as_deref(), snapshot).await;
            *power = starting(boot);
        }
        What::Snapshot { image } => machine.take_snapshot(image).await,
        // No machine's business.
        What::Forget { .. } => {}
        What::Delete => {
            machine.unplug(power).await;
            if let Err(error) = machine.verb("delete", &[]).await {
                machine.failed(&error);
            }
            machine.shared.snapshots.disk_gone(machine.plan.server);
            machine.shared.sweep_snapshots().await;
        }
    }
}
