//! An instance that is deleted together with many others, which is likelier a mistake: it is left as it is until a person says what was meant (I9).
//!
//! Its agent goes on as it was, since whoever runs it may not have meant that it stops; nothing is asked of its server or its guest, so nothing
//! new can speak beside it (I13). Kubernetes takes no deletion back: what was a mistake is undone by `deletionPolicy: Retain`, which lets the
//! object go and keeps the server, and a new object that takes it up.

use super::{Duration, Look, Plan, ServerView, Stage, Step};

/// Reason, and phase, of an instance whose deletion is held.
pub const DELETION_HELD: &str = "DeletionHeld";
/// How soon to look again whether it is known who else was deleted.
const COUNTING: Duration = Duration::from_secs(1);

impl Look<'_> {
    /// What is done instead of removing it, if anything is.
    pub(super) fn held_back(&self) -> Option<Plan> {
        let deletion = self.world.deletion?;
        let mut servers = self.own();
        let server = servers.find(|server| !server.deleting && !self.was_never_armed(server))?;
        match deletion.too_many {
            _ if deletion.held => Some(Plan::wait(held(server))),
            Some(true) => Some(Plan::act(Step::HoldDeletion, held(server))),
            None => Some(Plan::wait(counting()).until(self.now + COUNTING)),
            Some(false) if deletion.settles > self.now => {
                Some(Plan::wait(counting()).until(deletion.settles))
            }
            Some(false) => None,
        }
    }
}

fn counting() -> Stage {
    Stage::Deleting(
        "DeletionCounted",
        "others that may be deleted with it are counted first; it is as it was".into(),
    )
}

fn held(server: &ServerView) -> Stage {
    Stage::Deleting(
        DELETION_HELD,
        format!(
            "so many agents were deleted at about the same time that server {id} is kept, as it was: if that was a mistake, set \
             spec.deletionPolicy to Retain, and make the instance anew with the annotation agentfleet.dev/adopt: \"{id}\"; if it is meant, an \
             admin sets the annotation agentfleet.dev/confirm-termination to the present time",
            id = server.id
        ),
    )
}
