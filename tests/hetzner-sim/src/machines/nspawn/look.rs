//! What is seen of a running machine from outside: sockets, files on its disk, control groups.
//!
//! Nothing in the machine takes part, so what it says of itself does not count. When the agent ran is
//! read from the group of its unit: it speaks while that holds a process. The times lie within the true
//! ones, by at most the pause between two looks: two voices that are seen at once were there at once.

use std::path::Path;
use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::machines::fleet::{Stage, lock};
use crate::machines::nspawn::machine::Machine;
use crate::machines::voice::VoiceChange;

/// Port 22 in state LISTEN, in the kernel's list of sockets.
const LISTENS: &str = ":0016 00000000:0000 0A";
const LISTENS_V6: &str = ":0016 00000000000000000000000000000000:0000 0A";

/// It looks for the keys of all kinds, also those that user-data wants neither made nor posted.
const HARMLESS: [&str; 2] = [
    "/etc/ssh/ssh_host_rsa_key.pub: failed to open, can not phone home that data!",
    "/etc/ssh/ssh_host_ecdsa_key.pub: failed to open, can not phone home that data!",
];

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) stage: Stage,
    /// When this boot began.
    pub(crate) powered: Option<SystemTime>,
    pub(crate) ssh_since: Option<Timestamp>,
    pub(crate) cloud_init_done: Option<Timestamp>,
    pub(crate) boot_error: Option<String>,
    /// When the agent was last seen running, in milliseconds since the epoch.
    spoke: Option<u64>,
}

/// The public host key on a disk, without its comment; empty before there is one.
pub(crate) fn host_key(root: &Path) -> String {
    let file = root.join("etc/ssh/ssh_host_ed25519_key.pub");
    let line = std::fs::read_to_string(file).unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().take(2).collect();
    words.join(" ")
}

/// One look.
pub(crate) fn at(machine: &Machine) {
    let root = machine.shared.keeper.root_of(machine.plan.server);
    let before = now_ms();
    let speaks = speaks(machine, &root);
    let mut seen = lock(&machine.seen);
    if seen.ssh_since.is_none() && listens(machine) {
        seen.ssh_since = Some(Timestamp::now());
    }
    if seen.stage == Stage::Booting
        && let Some(result) = cloud_init_result(&root, seen.powered)
    {
        seen.stage = Stage::Up;
        seen.cloud_init_done.get_or_insert_with(Timestamp::now);
        seen.boot_error = complaint(&result, &cloud_init_status(&root));
        if let Some(complaint) = &seen.boot_error {
            let told = format!("server {}: {complaint}", machine.plan.server);
            lock(&machine.shared.complaints).push(told);
        }
    }
    match (speaks, seen.spoke) {
        (true, None) => {
            let after = now_ms();
            note(machine, after, true);
            seen.spoke = Some(after);
        }
        (true, Some(_)) => seen.spoke = Some(before),
        (false, _) => fell_silent(machine, &mut seen),
    }
}

fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default()
}

/// The machine has ended.
pub(crate) fn power_lost(machine: &Machine) {
    let mut seen = lock(&machine.seen);
    (seen.stage, seen.ssh_since) = (Stage::Off, None);
    fell_silent(machine, &mut seen);
}

fn fell_silent(machine: &Machine, seen: &mut Seen) {
    if let Some(last) = seen.spoke.take() {
        note(machine, last, false);
    }
}

fn note(machine: &Machine, at_ms: u64, speaks: bool) {
    let server = machine.plan.server;
    lock(&machine.shared.voices).push(VoiceChange {
        at_ms,
        server,
        speaks,
    });
}

fn listens(machine: &Machine) -> bool {
    let sockets = |leader: u32, table: &str| {
        std::fs::read_to_string(format!("/proc/{leader}/net/{table}")).unwrap_or_default()
    };
    machine.leader().is_some_and(|leader| {
        sockets(leader, "tcp").contains(LISTENS) || sockets(leader, "tcp6").contains(LISTENS_V6)
    })
}

/// What this boot's cloud-init leaves once it is through; until then that of the boot before may be there.
fn cloud_init_result(root: &Path, powered: Option<SystemTime>) -> Option<Value> {
    let file = root.join("var/lib/cloud/data/result.json");
    let written = std::fs::metadata(&file).ok()?.modified().ok()?;
    let result = (Some(written) > powered).then(|| std::fs::read(file))?;
    serde_json::from_slice(&result.ok()?).ok()
}

/// What it says of each stage, of this boot too: it is written before the result is.
fn cloud_init_status(root: &Path) -> Value {
    let status = std::fs::read(root.join("var/lib/cloud/data/status.json"));
    serde_json::from_slice(&status.unwrap_or_default()).unwrap_or_default()
}

/// What cloud-init found wrong: the errors of its stages, and what it could go on after.
fn complaint(result: &Value, status: &Value) -> Option<String> {
    let stages = status["v1"].as_object().into_iter().flat_map(Map::values);
    let levels = stages.filter_map(|stage| stage["recoverable_errors"].as_object());
    let lists = levels
        .flat_map(Map::values)
        .chain([&result["v1"]["errors"]]);
    let told = lists.filter_map(Value::as_array).flatten();
    let told = told.filter_map(Value::as_str);
    let told: Vec<&str> = told.filter(|told| !HARMLESS.contains(told)).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// Whether the unit that the agent's description names holds a process.
fn speaks(machine: &Machine, root: &Path) -> bool {
    let unit = || {
        let description = std::fs::read(root.join("etc/agentfleet/agent.json")).ok()?;
        let description: Value = serde_json::from_slice(&description).ok()?;
        Some(description["unit"]["name"].as_str()?.to_owned())
    };
    let Some(unit) = unit() else {
        return false;
    };
    let group = machine.shared.keeper.group_of(machine.plan.server);
    let slices = std::fs::read_dir(group.join("payload"));
    let mut units = slices.into_iter().flatten().flatten();
    units.any(|slice| {
        let events = slice.path().join(&unit).join("cgroup.events");
        std::fs::read_to_string(events).is_ok_and(|events| events.contains("populated 1"))
    })
}
