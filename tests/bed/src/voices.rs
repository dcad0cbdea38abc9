//! Who speaks when, as the simulated cloud has seen it on its machines.

use std::collections::BTreeMap;

use hetzner_sim::{Control, Life, VoiceChange};

use crate::failure::{Outcome, ensure};

/// From when until when an agent spoke, in milliseconds of the epoch.
type Speech = (i64, i64);

/// Whether the agent of a server speaks now.
pub fn speaks(cloud: &Control, server: u64) -> bool {
    let mut changes = cloud.voices().into_iter();
    changes
        .rfind(|change| change.server == server)
        .is_some_and(|change| change.speaks)
}

/// Fails when two servers of one instance ever spoke at once (I13).
///
/// # Errors
/// As said.
pub fn one_voice(cloud: &Control) -> Outcome {
    let changes = cloud.voices();
    let mut by_instance: BTreeMap<_, Vec<(Speech, u64)>> = BTreeMap::new();
    for life in cloud.lives() {
        let label = |key: &str| life.labels.get(&format!("agentfleet.dev/{key}")).cloned();
        let spoken = speeches(&life, &changes).into_iter();
        by_instance
            .entry((label("namespace"), label("name")))
            .or_default()
            .extend(spoken.map(|speech| (speech, life.server)));
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

/// A machine that is deleted falls silent with it, whatever was seen of it.
fn speeches(life: &Life, changes: &[VoiceChange]) -> Vec<Speech> {
    let end = life
        .deleted
        .map_or(i64::MAX, jiff::Timestamp::as_millisecond);
    let mut speeches: Vec<Speech> = Vec::new();
    for change in changes.iter().filter(|change| change.server == life.server) {
        let at = i64::try_from(change.at_ms).unwrap_or(i64::MAX);
        match speeches.last_mut() {
            Some(last) if !change.speaks => last.1 = at.min(end),
            _ if change.speaks => speeches.push((at, end)),
            _ => {}
        }
    }
    speeches
}
