//! The sweep of what carries our labels and belongs to nobody.
//!
//! ```text
//! observe ─► plan ─► ask guests, plan again ─► delete, each after an uncached check ─► tell
//! ```
//! A server that was paid for and forgotten costs money, a server that was deleted by mistake costs a customer's data. So the picture is taken from
//! what is at hand anyway, and before anything goes it must have been seen twice, be old, be unclaimed when the API server is asked for just that
//! name, still be what it was when Hetzner is asked for just that id, and be one of few (I9). What may go without a person is in [`plan::verdict`];
//! all else is told, with the command that deletes it.
//!
//! The servers of a living instance are its own controller's work, which knows of hand-overs; only what that left behind while the instance is
//! Ready is taken here. Firewalls are the classes' work; only those whose class is gone are taken here.

pub mod by_hand;
pub mod finding;
pub mod memory;
mod observe;
mod past;
mod perform;
pub mod plan;
mod report;
pub mod world;

use std::{sync::Arc, time::Duration};

use crate::context::Context;
use memory::Memory;
use plan::{Step, plan};

/// What the flags say of the sweep.
#[derive(Clone, Copy, Debug)]
pub struct SweepFlags {
    /// From one sweep to the next, and so from one sighting to the next; zero: none.
    pub period: Duration,
    /// What is younger is left alone.
    pub min_age: Duration,
    /// How much one sweep may delete.
    pub fuse: usize,
    /// Whether it only tells.
    pub dry_run: bool,
}

/// The first sweep comes no later than this after the start: it deletes nothing, costs a request or two (I10), and lets the status speak.
const FIRST: Duration = Duration::from_mins(1);

/// Sweeps for as long as it is polled, which must be only under the Lease (I11).
pub async fn run(ctx: Arc<Context>) {
    let period = ctx.settings.sweep.period;
    if period.is_zero() {
        return std::future::pending().await;
    }
    let mut memory = Memory::default();
    tokio::time::sleep(period.min(FIRST)).await;
    loop {
        sweep(&ctx, &mut memory).await;
        tokio::time::sleep(period).await;
    }
}

async fn sweep(ctx: &Context, memory: &mut Memory) {
    if !ctx.stores.synced.is_cancelled() || !ctx.leadership.holds() {
        return;
    }
    let flags = &ctx.settings.sweep;
    let mut world = observe::observe(ctx, memory).await;
    let mut found = plan(&world, flags);
    if found.steps.iter().any(|step| matches!(step, Step::Ask(_))) {
        perform::ask(ctx, &mut world, &found.steps).await;
        found = plan(&world, flags);
    }
    memory.sighted(&found.findings, world.steady);
    let swept = perform::delete_all(ctx, &world, &found).await;
    report::tell(ctx, memory, &world, &found, &swept);
}
