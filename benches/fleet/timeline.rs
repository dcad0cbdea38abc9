//! When each instance came how far, by the machines' disks and the API server's audit log.

use std::collections::BTreeMap;
use std::path::Path;

use bed::{Outcome, Write};
use jiff::Timestamp;
use serde_json::Value;

use crate::lives::is_status;
use crate::stack::{Stack, is_ready};

/// Where the guest notes each step of its installation, the last one at its end.
const INSTALL_LOG: &str = "var/lib/agentfleet/install.log";

/// One instance from the birth of its server on.
pub(crate) struct Timeline {
    /// The server was created.
    pub(crate) created: Timestamp,
    /// SSH answers and the guest has installed the agent: the operator's turn.
    pub(crate) installed: Timestamp,
    /// The record of the voice was written.
    pub(crate) voice: Timestamp,
    /// The agent runs.
    pub(crate) runs: Timestamp,
    /// The status that says Ready was written.
    pub(crate) ready: Timestamp,
}

/// What the status writes of an instance tell.
#[derive(Default)]
struct Written {
    server: Option<u64>,
    voice: Option<Timestamp>,
    ready: Option<Timestamp>,
}

/// The timelines of all instances that became Ready in these writes.
pub(crate) fn timelines(stack: &Stack, writes: &[Write]) -> Outcome<Vec<Timeline>> {
    let mut written: BTreeMap<&str, Written> = BTreeMap::new();
    for write in writes.iter().filter(|write| is_status(write)) {
        let told = written.entry(write.what.as_str()).or_default();
        let object = &write.event["responseObject"];
        let at: Timestamp = write.event["stageTimestamp"]
            .as_str()
            .unwrap_or_default()
            .parse()?;
        told.server = object["status"]["server"]["id"].as_u64().or(told.server);
        if object["status"]["voice"] != Value::Null {
            told.voice.get_or_insert(at);
        }
        if is_ready(object) {
            told.ready.get_or_insert(at);
        }
    }
    let lives = stack.cloud.lives();
    let created: BTreeMap<u64, Timestamp> = lives
        .iter()
        .map(|life| (life.server, life.created))
        .collect();
    let voices = stack.cloud.voices();
    let mut found = vec![];
    for told in written.values() {
        if let (Some(server), Some(voice), Some(ready)) = (told.server, told.voice, told.ready) {
            let machine = stack.cloud.machine(server)?;
            let first = voices.iter().find(|change| change.server == server);
            let (Some(created), Some(ssh), Some(first)) =
                (created.get(&server), machine.ssh_since, first)
            else {
                continue;
            };
            found.push(Timeline {
                created: *created,
                installed: changed(&machine.root.join(INSTALL_LOG))?.max(ssh),
                voice,
                runs: Timestamp::from_millisecond(i64::try_from(first.at_ms)?)?,
                ready,
            });
        }
    }
    Ok(found)
}

fn changed(file: &Path) -> Outcome<Timestamp> {
    Ok(std::fs::metadata(file)?.modified()?.try_into()?)
}

/// Seconds from one moment to another; negative when it was before.
pub(crate) fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}
