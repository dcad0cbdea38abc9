//! What processes cost, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

use bed::{Failure, Outcome};

/// `/proc` counts in hundredths of a second on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

/// Resident memory of a process, in MiB.
pub(crate) fn resident_mib(process: u32) -> Outcome<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().next())
        .ok_or_else(|| Failure::new("no VmRSS"))?
        .parse()?;
    Ok(kib / 1024.0)
}

/// Processor seconds of a process so far.
pub(crate) fn cpu_seconds(process: u32) -> Outcome<f64> {
    let stat = Stat::of(process).ok_or_else(|| Failure::new("the process has ended"))?;
    Ok(stat.own)
}

/// Processor seconds so far, by program, of this process and all below it; and of the whole machine, under `machine`.
pub(crate) fn cpu_by_program() -> Outcome<BTreeMap<String, f64>> {
    let stats: BTreeMap<u32, Stat> = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|process| Some((process, Stat::of(process)?)))
        .collect();
    let mut found = BTreeMap::from([("machine".to_owned(), machine_seconds()?)]);
    for (process, stat) in &stats {
        if is_below(&stats, *process, std::process::id()) {
            // A host of guests forks for each run: what it has buried counts as its own.
            *found.entry(stat.program.clone()).or_default() += stat.own + stat.buried;
        }
    }
    Ok(found)
}

/// What was used between two looks, the largest first, as text.
pub(crate) fn cpu_between(
    before: &BTreeMap<String, f64>,
    after: &BTreeMap<String, f64>,
    seconds: f64,
) -> String {
    let mut used: Vec<(&str, f64)> = after
        .iter()
        .map(|(program, after)| {
            (
                program.as_str(),
                after - before.get(program).unwrap_or(&0.0),
            )
        })
        .filter(|(_, used)| *used >= 0.1)
        .collect();
    used.sort_by(|a, b| b.1.total_cmp(&a.1));
    let told = used
        .iter()
        .map(|(program, used)| format!("{program} {used:.1} s"));
    format!(
        "processor time in {seconds:.0} s: {}; load {}",
        told.collect::<Vec<_>>().join(", "),
        fs::read_to_string("/proc/loadavg")
            .unwrap_or_default()
            .trim()
    )
}

struct Stat {
    program: String,
    parent: u32,
    own: f64,
    buried: f64,
}

impl Stat {
    /// See `proc_pid_stat(5)`; nothing for a process that has ended.
    fn of(process: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let (head, rest) = text.rsplit_once(") ")?;
        let (_, program) = head.split_once('(')?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
        Some(Self {
            program: program.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            own: (ticks(11)? + ticks(12)?) / TICKS,
            buried: (ticks(13)? + ticks(14)?) / TICKS,
        })
    }
}

fn is_below(stats: &BTreeMap<u32, Stat>, process: u32, ancestor: u32) -> bool {
    let mut at = process;
    while at != ancestor {
        match stats.get(&at) {
            Some(stat) if stat.parent != 0 => at = stat.parent,
            _ => return false,
        }
    }
    true
}

/// Busy seconds of all processors: user, nice, system, irq, softirq and steal of `proc_stat(5)`.
fn machine_seconds() -> Outcome<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let busy = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|at| ticks.get(*at))
        .sum::<f64>();
    Ok(busy / TICKS)
}
