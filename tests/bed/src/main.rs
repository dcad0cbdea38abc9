//! `agentfleet-bed demo` shows a whole life of three agents on real parts, and that of a customer's subscription; `agentfleet-bed dev` keeps the same stack until Ctrl-C.

mod demo;
mod dev;

use std::process::ExitCode;
use std::time::Duration;

use bed::{Failure, Outcome};
use clap::Parser;
use tokio::time::timeout;

/// Well above what a slow machine needs; used up by a failure only.
const DEMO_DEADLINE: Duration = Duration::from_mins(10);

/// A real Kubernetes, a simulated Hetzner Cloud, and the operator between them.
#[derive(Parser)]
#[command(name = "agentfleet-bed", version)]
enum Command {
    /// Creates, uses and deletes three agents, lets a customer subscribe, not pay, pay and cancel, tells each step, and fails when anything is not as
    /// told.
    Demo,
    /// Starts the same and keeps it until Ctrl-C; see target/dev/env.
    Dev,
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Command::parse();
    let outcome = match command {
        Command::Demo => bounded_demo().await,
        Command::Dev => dev::run().await,
    };
    bed::end_idle();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("agentfleet-bed: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn bounded_demo() -> Outcome {
    tokio::select! {
        outcome = timeout(DEMO_DEADLINE, demo::run()) => outcome?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            Err(Failure::new("interrupted"))
        }
    }
}
