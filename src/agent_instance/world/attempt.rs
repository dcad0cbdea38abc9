//! What is remembered of the requests for one server, and of what was looked for before them.

use k8s_openapi::jiff::Timestamp;

use crate::{
    api::Timing,
    hetzner::{ActionId, Snapshot},
};

/// What is remembered of the requests for the server in the provisioning record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    /// The incarnation that all this is about.
    pub incarnation: u32,
    /// The record's time as this process wrote it; one written record permits one request.
    pub announced: Option<Timestamp>,
    /// The record's time at the last request that was sent.
    pub sent: Option<Timestamp>,
    /// What the last request came to.
    pub outcome: SendOutcome,
    /// What Hetzner said of a server that it made, and whose creation failed.
    pub half_failed: Option<String>,
    /// What Hetzner had not ended yet, of that creation, when it was last heard of.
    pub running: Vec<ActionId>,
    /// When Hetzner was last asked what became of that.
    pub asked: Option<Timestamp>,
    /// Until when a request with an unknown outcome may still take effect.
    pub unsettled_until: Option<Timestamp>,
    /// What a look-up by name, begun after the last request, has found.
    pub looked_up: Option<LookUp>,
    /// When which step was reached, as far as this process knows.
    pub timings: Vec<Timing>,
}

/// What a request for a server came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendOutcome {
    /// None was sent, or its answer was lost.
    #[default]
    Unknown,
    /// The server exists.
    Created,
    /// This place cannot be had; another may.
    OutOfStock,
    /// Hetzner cannot have it now, wherever it is asked for: quota, token, maintenance.
    Refused,
    /// Hetzner will not have it as it was asked for.
    Rejected,
}

impl SendOutcome {
    /// Whether there surely is no server, and none will come of that request.
    pub fn is_definite_no(self) -> bool {
        matches!(self, Self::OutOfStock | Self::Refused | Self::Rejected)
    }
}

/// What a look-up by name has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookUp {
    /// When it was begun.
    pub at: Timestamp,
    /// The id of a server of that name that is not ours.
    pub foreign: Option<i64>,
}

/// What was found when a snapshot of a server that is gone was looked for.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotLook {
    /// Id of the server.
    pub server: i64,
    /// When that was.
    pub at: Timestamp,
    /// The newest that there is.
    pub newest: Option<Snapshot>,
    /// Whether a server of any listed type can be made of it, as far as is known.
    pub fits: bool,
}
