//! One fake machine: an address on loopback, a scratch directory for a disk, a host key, and a life that
//! follows orders.
//!
//! Two tasks a machine: `live` takes orders, and the boot it started brings SSH up and keeps it. Losing
//! power ends the boot task and every connection; the disk stays.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::machines::cloud_init::{CloudConfig, CloudInitError, Login, PhoneHome};
use crate::machines::fake_fleet::Shared;
use crate::machines::fleet::{MachineFaults, MachineView, SshFault, Stage, lock};
use crate::machines::phone_home::{self, Caller};
use crate::machines::{Boot, What, ssh};

const HOST_KEY: &str = "etc/ssh/ssh_host_ed25519_key.pub";
/// Between two tries to get the address back after a reboot.
const BIND_AGAIN: Duration = Duration::from_millis(50);

/// A machine.
pub(crate) struct Machine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) server: u64,
    pub(crate) address: watch::Sender<Option<Ipv4Addr>>,
    hostname: String,
    pub(crate) root: PathBuf,
    orders: mpsc::UnboundedSender<What>,
    pub(crate) faults: watch::Sender<MachineFaults>,
    /// Counts the times that the power went off; connections end when it changes.
    pub(crate) outages: watch::Sender<u64>,
    disk: Mutex<Disk>,
}

/// What a machine remembers; a rebuild starts from a new one.
struct Disk {
    user_data: Option<String>,
    host_key: PublicKey,
    ssh: Arc<russh::server::Config>,
    logins: Vec<Login>,
    /// Guest runs that units enabled at the first boot ask for at every boot.
    units: Vec<Vec<String>>,
    cloud_init_done: Option<Timestamp>,
    boot_error: Option<String>,
    stage: Stage,
    ssh_since: Option<Timestamp>,
}

impl Disk {
    fn fresh(user_data: Option<String>) -> Self {
        let (host_key, ssh) = new_host_key();
        Self {
            user_data,
            host_key,
            ssh,
            logins: Vec::new(),
            units: Vec::new(),
            cloud_init_done: None,
            boot_error: None,
            stage: Stage::Off,
            ssh_since: None,
        }
    }
}

fn new_host_key() -> (PublicKey, Arc<russh::server::Config>) {
    let key = PrivateKey::from(russh::keys::ssh_key::private::Ed25519Keypair::from_seed(
        &rand::random(),
    ));
    debug_assert_eq!(key.algorithm(), Algorithm::Ed25519);
    (key.public_key().clone(), Arc::new(ssh::config(key)))
}

impl Machine {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        server: u64,
        address: Option<Ipv4Addr>,
        hostname: String,
        user_data: Option<String>,
        orders: mpsc::UnboundedSender<What>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            server,
            address: watch::Sender::new(address),
            hostname,
            root: shared.root_of(server),
            orders,
            faults: watch::Sender::new(MachineFaults::default()),
            outages: watch::Sender::new(0),
            disk: Mutex::new(Disk::fresh(user_data)),
        }
    }

    pub(crate) fn order(&self, what: What) {
        // Nobody listens once the machine is gone, and then the order is void.
        let _ = self.orders.send(what);
    }

    /// The login of that user with that key.
    pub(crate) fn login(&self, user: &str, key: &PublicKey) -> Option<Login> {
        let disk = lock(&self.disk);
        let fits = |login: &&Login| login.user == user && login.key.key_data() == key.key_data();
        disk.logins.iter().find(fits).cloned()
    }

    pub(crate) fn ssh_config(&self) -> Arc<russh::server::Config> {
        Arc::clone(&lock(&self.disk).ssh)
    }

    /// A new host key for new connections.
    pub(crate) fn change_host_key(&self, on_disk: bool) -> std::io::Result<()> {
        let (host_key, ssh) = new_host_key();
        {
            let mut disk = lock(&self.disk);
            (disk.host_key, disk.ssh) = (host_key, ssh);
        }
        if on_disk {
            self.write_host_key()
        } else {
            Ok(())
        }
    }

    fn write_host_key(&self) -> std::io::Result<()> {
        let path = self.root.join(HOST_KEY);
        let line = format!("{} root@{}\n", self.host_key_line(), self.hostname);
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(path, line)
    }

    fn host_key_line(&self) -> String {
        let openssh = lock(&self.disk).host_key.to_openssh().unwrap_or_default();
        openssh
            .split_whitespace()
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
    }

    pub(crate) fn view(&self) -> MachineView {
        let host_key = self.host_key_line();
        let address = *self.address.borrow();
        let disk = lock(&self.disk);
        MachineView {
            server: self.server,
            address: address.map(|ip| format!("{ip}:{}", self.shared.ssh_port)),
            hostname: self.hostname.clone(),
            root: self.root.clone(),
            stage: disk.stage,
            host_key,
            ssh_since: disk.ssh_since,
            cloud_init_done: disk.cloud_init_done,
            boot_error: disk.boot_error.clone(),
            faults: *self.faults.borrow(),
        }
    }

    /// Runs the guest without input, as a unit does.
    async fn run_guest(&self, argv: &[&str]) {
        let faults = self.faults.borrow().guest;
        if let Err(error) = self.shared.host.tell(&self.root, argv, &faults).await {
            tracing::warn!(server = self.server, ?argv, %error, "guest");
        }
    }
}

/// Follows orders until the machine is deleted.
pub(crate) async fn live(machine: Arc<Machine>, mut orders: mpsc::UnboundedReceiver<What>) {
    // Dropping it ends the boot that it stands for.
    let mut power: Option<watch::Sender<()>> = None;
    while let Some(order) = orders.recv().await {
        match order {
            What::Create { .. } | What::Snapshot { .. } | What::Forget { .. } => {}
            What::PowerOn { boot } => {
                if power.is_none() {
                    power = Some(start(&machine, boot));
                }
            }
            What::PowerOff { after } if after.is_zero() => unplug(&machine, &mut power).await,
            What::PowerOff { after } | What::Shutdown { after } => {
                let later = Arc::clone(&machine);
                machine.shared.spawn(async move {
                    sleep(after).await;
                    later.order(What::PowerOff {
                        after: Duration::ZERO,
                    });
                });
            }
            What::Reboot { boot, .. } => {
                unplug(&machine, &mut power).await;
                power = Some(start(&machine, boot));
            }
            What::Rebuild {
                user_data, boot, ..
            } => {
                unplug(&machine, &mut power).await;
                wipe(&machine).await;
                let user_data = user_data.or(lock(&machine.disk).user_data.take());
                *lock(&machine.disk) = Disk::fresh(user_data);
                power = Some(start(&machine, boot));
            }
            What::Delete => {
                unplug(&machine, &mut power).await;
                wipe(&machine).await;
                return;
            }
        }
    }
}

/// Boots in a task of its own, until the sender that is returned is dropped.
fn start(machine: &Arc<Machine>, times: Boot) -> watch::Sender<()> {
    let (power, mut powered) = watch::channel(());
    let booting = Arc::clone(machine);
    machine.faults.send_modify(|faults| faults.frozen = false);
    lock(&machine.disk).stage = Stage::Booting;
    machine.shared.spawn(async move {
        tokio::select! {
            () = boot(&booting, times) => {}
            _ = powered.changed() => {}
        }
    });
    power
}

/// The power goes: SSH, connections and the agent end; the disk stays.
async fn unplug(machine: &Machine, power: &mut Option<watch::Sender<()>>) {
    if power.take().is_none() {
        return;
    }
    machine.outages.send_modify(|count| *count += 1);
    {
        let mut disk = lock(&machine.disk);
        (disk.stage, disk.ssh_since) = (Stage::Off, None);
    }
    if machine.root.exists() {
        machine.run_guest(&["@power", "off"]).await;
    }
}

async fn wipe(machine: &Arc<Machine>) {
    let gone = Arc::clone(machine);
    let wiped = machine.shared.on_disk(move || {
        gone.shared.keep_voice(gone.server, &gone.root);
        if gone.root.exists() {
            std::fs::remove_dir_all(&gone.root)
        } else {
            Ok(())
        }
    });
    if let Some(Err(error)) = wiped.await {
        tracing::warn!(server = machine.server, %error, "cannot remove the disk");
    }
}

async fn boot(machine: &Arc<Machine>, times: Boot) {
    sleep(times.after).await;
    let began = Instant::now();
    let (ssh_at, cloud_init_at) = (began + times.ssh, began + times.cloud_init);
    let first = lock(&machine.disk).cloud_init_done.is_none();
    if !first {
        sleep_until(ssh_at).await;
        tokio::join!(serve_ssh(machine), run_units(machine, None));
    } else if cloud_init_at <= ssh_at {
        sleep_until(cloud_init_at).await;
        let phone = first_boot(machine).await;
        let later = async {
            sleep_until(ssh_at).await;
            serve_ssh(machine).await;
        };
        tokio::join!(later, run_units(machine, phone));
    } else {
        if !machine.shared.early_host_key {
            make_disk(machine);
        }
        let later = async {
            sleep_until(cloud_init_at).await;
            let phone = first_boot(machine).await;
            run_units(machine, phone).await;
        };
        let serving = async {
            sleep_until(ssh_at).await;
            serve_ssh(machine).await;
        };
        tokio::join!(serving, later);
    }
}

fn make_disk(machine: &Machine) {
    if let Err(error) = machine.write_host_key() {
        lock(&machine.disk).boot_error = Some(format!("cannot write the disk: {error}"));
    }
}

async fn first_boot(machine: &Arc<Machine>) -> Option<PhoneHome> {
    let booting = Arc::clone(machine);
    let applied = machine.shared.on_disk(move || apply_cloud_init(&booting));
    applied.await.flatten()
}

/// The first boot: host key, files, logins. A failure leaves a machine that nobody can log in to.
fn apply_cloud_init(machine: &Machine) -> Option<PhoneHome> {
    if machine.shared.early_host_key {
        let (host_key, ssh) = new_host_key();
        let mut disk = lock(&machine.disk);
        (disk.host_key, disk.ssh) = (host_key, ssh);
    }
    make_disk(machine);
    let applied = configure(machine);
    let mut disk = lock(&machine.disk);
    disk.cloud_init_done = Some(Timestamp::now());
    disk.stage = Stage::Up;
    match applied {
        Ok(phone) => phone,
        Err(error) => {
            tracing::warn!(server = machine.server, %error, "cloud-init");
            disk.boot_error = Some(error.to_string());
            None
        }
    }
}

fn configure(machine: &Machine) -> Result<Option<PhoneHome>, CloudInitError> {
    let user_data = lock(&machine.disk).user_data.clone();
    let Some(user_data) = user_data else {
        return Ok(None);
    };
    let config = CloudConfig::parse(&user_data)?;
    config.write_files(&machine.root)?;
    let units = config.guest_units(&machine.root);
    let mut disk = lock(&machine.disk);
    (disk.logins, disk.units) = (config.logins(), units);
    Ok(config.phone_home)
}

/// What systemd would start: the agent where it may, and the guest's own units.
async fn run_units(machine: &Machine, phone: Option<PhoneHome>) {
    let units = {
        let mut disk = lock(&machine.disk);
        disk.stage = Stage::Up;
        disk.units.clone()
    };
    let units = async {
        machine.run_guest(&["@power", "on"]).await;
        for argv in &units {
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            machine.run_guest(&argv).await;
        }
    };
    let call = async {
        let Some(phone) = phone else {
            return;
        };
        let caller = Caller {
            pub_key_ed25519: &machine.host_key_line(),
            instance_id: &machine.server.to_string(),
            hostname: &machine.hostname,
        };
        if let Err(error) = phone_home::call(&phone, &caller).await {
            tracing::warn!(server = machine.server, %error, "phone_home");
        }
    };
    tokio::join!(units, call);
}

/// Listens where its address is while SSH is not told to refuse, for as long as there is power.
async fn serve_ssh(machine: &Arc<Machine>) {
    let mut addresses = machine.address.subscribe();
    let mut faults = machine.faults.subscribe();
    loop {
        let refuses = |faults: &MachineFaults| faults.ssh == SshFault::Refuse;
        if faults.wait_for(|faults| !refuses(faults)).await.is_err() {
            return;
        }
        let address = addresses.wait_for(Option::is_some).await;
        let Some(address) = address.ok().and_then(|address| *address) else {
            return;
        };
        let Ok(listener) = TcpListener::bind((address, machine.shared.ssh_port)).await else {
            sleep(BIND_AGAIN).await;
            continue;
        };
        lock(&machine.disk)
            .ssh_since
            .get_or_insert_with(Timestamp::now);
        loop {
            tokio::select! {
                over = faults.wait_for(refuses) => match over {
                    Ok(_) => break,
                    Err(_) => return,
                },
                _ = addresses.changed() => break,
                accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                    machine.shared.spawn(ssh::connection(Arc::clone(machine), stream));
                },
            }
        }
    }
}
