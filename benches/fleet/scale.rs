//! How much is measured: the design's numbers, or fewer for a quick look.

use std::time::Duration;

/// Sizes and lengths of one run.
pub(crate) struct Scale {
    /// Instances that live a whole life.
    pub(crate) lives: usize,
    /// Instances that are created at once.
    pub(crate) burst: usize,
    /// Instances of the large fleet, those of the burst among them.
    pub(crate) fleet: usize,
    /// Subscriptions at first, each with an instance.
    pub(crate) subscribed: usize,
    /// Subscriptions at most.
    pub(crate) subscriptions: usize,
    /// Instances on real machines.
    pub(crate) real: usize,
    /// Agents on real machines that die, move and lose their server.
    pub(crate) healing: usize,
    /// How long the large fleet is watched while nothing happens.
    pub(crate) calm: Duration,
}

impl Scale {
    /// The design's sizes; fewer if `AGENTFLEET_BENCH` is `small`, none but the real machines if it is `real`, none but Subscriptions if it is
    /// `subscriptions`.
    pub(crate) fn chosen() -> Self {
        let design = Self {
            lives: 50,
            burst: 500,
            fleet: 1_000,
            subscribed: 1_000,
            subscriptions: 5_000,
            real: 50,
            healing: 5,
            calm: Duration::from_mins(5),
        };
        match std::env::var("AGENTFLEET_BENCH").as_deref() {
            Ok("small") => Self {
                lives: 50,
                burst: 50,
                fleet: 100,
                subscribed: 100,
                subscriptions: 500,
                real: 4,
                healing: 1,
                calm: Duration::from_secs(30),
            },
            Ok("real") => Self {
                fleet: 0,
                subscriptions: 0,
                ..design
            },
            Ok("subscriptions") => Self {
                fleet: 0,
                real: 0,
                ..design
            },
            _ => design,
        }
    }
}
