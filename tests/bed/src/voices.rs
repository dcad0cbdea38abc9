//! Who speaks when: the machines' own notes of when their agent started and stopped.
//!
//! A deleted machine takes its disk along, so each note is kept by a hard link from the moment it is first seen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hetzner_sim::{Control, Life};
use tokio::task::JoinHandle;

use crate::failure::{Outcome, ensure};

const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The notes of all machines of a bed.
pub struct Voices {
    dir: PathBuf,
    cloud: Control,
    keeper: JoinHandle<()>,
}

/// From when until when an agent spoke, in milliseconds of the epoch.
type Speech = (i64, i64);

impl Voices {
    /// Keeps the notes in `dir` from now on.
    pub(crate) fn listen(cloud: Control, dir: PathBuf) -> Outcome<Self> {
        std::fs::create_dir_all(&dir)?;
        let (notes, machines) = (dir.clone(), cloud.clone());
        let keeper = tokio::spawn(async move {
            loop {
                keep(&machines, &notes);
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        });
        Ok(Self { dir, cloud, keeper })
    }

    /// Whether the agent of a server speaks now.
    ///
    /// # Errors
    /// Fails when its notes are no notes.
    pub fn speaks(&self, server: u64) -> Outcome<bool> {
        keep(&self.cloud, &self.dir);
        Ok(self
            .speeches(server)?
            .last()
            .is_some_and(|(_, until)| *until == i64::MAX))
    }

    /// Fails when two servers of one instance ever spoke at once (I13).
    ///
    /// # Errors
    /// As said.
    pub fn one_voice(&self, lives: &[Life]) -> Outcome {
        keep(&self.cloud, &self.dir);
        let mut by_instance: BTreeMap<_, Vec<(Speech, u64)>> = BTreeMap::new();
        for life in lives {
            let label = |key: &str| life.labels.get(&format!("agentfleet.dev/{key}")).cloned();
            let end = life
                .deleted
                .map_or(i64::MAX, jiff::Timestamp::as_millisecond);
            // A machine that is deleted falls silent with it, whatever its notes say.
            let spoken = self
                .speeches(life.server)?
                .into_iter()
                .map(|(from, until)| ((from, until.min(end)), life.server));
            by_instance
                .entry((label("namespace"), label("name")))
                .or_default()
                .extend(spoken);
        }
        for (instance, mut speeches) in by_instance {
            speeches.sort_unstable();
            for pair in speeches.windows(2) {
                let ((_, first_end), first) = pair[0];
                let ((second_start, _), second) = pair[1];
                ensure(first_end <= second_start, || {
                    format!("two voices of {instance:?} at once: servers {first} and {second}")
                })?;
            }
        }
        Ok(())
    }

    fn speeches(&self, server: u64) -> Outcome<Vec<Speech>> {
        let text = std::fs::read_to_string(self.dir.join(server.to_string())).unwrap_or_default();
        let mut speeches: Vec<Speech> = Vec::new();
        for line in text.lines() {
            let (transition, at) = line.split_once(' ').unwrap_or((line, ""));
            let at: i64 = at.parse()?;
            match (transition, speeches.last_mut()) {
                ("stop", Some(last)) => last.1 = at,
                ("start", _) => speeches.push((at, i64::MAX)),
                _ => {}
            }
        }
        Ok(speeches)
    }
}

impl Drop for Voices {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Links each note that is not linked yet; one that is not there yet is linked later.
fn keep(cloud: &Control, dir: &Path) {
    for machine in cloud.machines() {
        let kept = dir.join(machine.server.to_string());
        if !kept.exists() {
            let _later = std::fs::hard_link(machine.root.join(".machine/voice.log"), kept);
        }
    }
}
