//! `make bench`: what agentfleet costs and how fast it is, counted where others count it: at the simulated Hetzner Cloud, in the API server's
//! audit log, on the machines' disks and in `/proc`.
//!
//! One stack of fake machines is used from beginning to end: lives of a few instances, a burst, growth to a large fleet, calm, a restart, a fall
//! of many. A second one has Subscriptions alone, a third one real machines. The numbers go to `target/bench/summary.json`; nothing here judges
//! them.

mod fall;
mod fleet;
mod healing;
mod lives;
mod processes;
mod real;
mod scale;
mod stack;
mod subscriptions;
mod summary;
mod timeline;
mod user_data;

use std::process::ExitCode;

use bed::{Failure, Outcome};

use crate::scale::Scale;
use crate::stack::Stack;
use crate::summary::Summary;

#[tokio::main]
async fn main() -> ExitCode {
    match measure_unless_interrupted().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// An interrupt ends the operator and all else as the end of a run does.
async fn measure_unless_interrupted() -> Outcome {
    let scale = Scale::chosen();
    tokio::select! {
        outcome = measure(&scale) => outcome,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            Err(Failure::new("interrupted"))
        }
    }
}

async fn measure(scale: &Scale) -> Outcome {
    let mut summary = Summary::begin()?;
    user_data::measure(&mut summary)?;
    if scale.fleet > 0 {
        fakes(scale, &mut summary).await?;
    }
    if scale.subscriptions > 0 {
        subscriptions::measure(scale, &mut summary).await?;
    }
    if scale.real > 0 {
        real::measure(scale, &mut summary).await?;
    }
    summary.end()
}

/// Breadth: many machines that only pretend.
async fn fakes(scale: &Scale, summary: &mut Summary) -> Outcome {
    let mut stack = Stack::start(summary).await?;
    lives::measure(&stack, scale.lives, summary).await?;
    fleet::burst(&stack, scale.burst, summary).await?;
    fleet::grow(&stack, scale, summary).await?;
    fleet::calm(&stack, scale, summary).await?;
    fleet::restart(&mut stack, scale, summary).await?;
    fall::measure(&stack, scale, summary).await?;
    stack.close();
    Ok(())
}
