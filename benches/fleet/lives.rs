//! Whole lives: created, Ready, deleted, gone.

use std::collections::BTreeMap;
use std::time::Duration;

use bed::{Outcome, Write, wait_within};

use crate::stack::{PATIENCE, Stack};
use crate::summary::{Summary, number};

/// Lets so many instances live and die at once, and counts what that cost.
pub(crate) async fn measure(stack: &Stack, lives: usize, summary: &mut Summary) -> Outcome {
    stack.create_secrets(0..lives).await?;
    let before = stack.writes()?.len();
    stack.cloud.forget_requests();
    stack.create(0..lives).await?;
    stack.all_ready(lives).await?;
    stack.delete(0..lives).await?;
    wait_within(PATIENCE, "no instance is left", async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(stack
            .cluster
            .list("AgentInstance")
            .await?
            .is_empty()
            .then_some(()))
    })
    .await?;
    let how = "simulator's count from the first create until all are gone, all shared lists included; default periods (lists 10 s and 60 s, project \
               60 s), boots of 20 to 40 s, --settle 1s, and deletion right after Ready: ";
    summary.add(
        "requests_per_lifecycle",
        (number(stack.count()) / number(lives), "requests"),
        lives,
        how.to_owned() + &stack.routes(),
    )?;
    let writes = stack.writes()?.split_off(before);
    let status = writes.iter().filter(|write| is_status(write)).count();
    summary.add(
        "status_writes_per_life",
        (number(status) / number(lives), "writes"),
        lives,
        "audit log: successful patches of agentinstances/status by the operator",
    )?;
    summary.add(
        "writes_per_life",
        (number(writes.len()) / number(lives), "writes"),
        lives,
        format!(
            "audit log: all writes of the operator but the Lease: {}",
            by_kind(&writes)
        ),
    )
}

/// Whether it is a write of the status of an instance.
pub(crate) fn is_status(write: &Write) -> bool {
    write.what.starts_with("patch agentinstances/status ")
}

/// Counts by verb and resource, as text.
pub(crate) fn by_kind(writes: &[Write]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for write in writes {
        let kind = write
            .what
            .rsplit_once(' ')
            .map_or(write.what.as_str(), |(kind, _)| kind);
        *counts.entry(kind).or_default() += 1;
    }
    let told = counts.iter().map(|(kind, count)| format!("{count} {kind}"));
    told.collect::<Vec<_>>().join(", ")
}
