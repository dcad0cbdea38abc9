//! Commands on real machines, past all that a test is about.

use hetzner_sim::{Control, Shell};
use tokio::time::timeout;

use crate::failure::{Failure, Outcome, ensure};
use crate::wait::PATIENCE;

/// What a command on a real machine, whoever's it is, writes; root runs it where nobody is named, and it must end well.
///
/// # Errors
/// Fails when the machine is not up, or with what the command says.
pub async fn run_in(cloud: &Control, server: u64, shell: &Shell) -> Outcome<String> {
    let command = &shell.command;
    // A machine that loses its power meanwhile never answers.
    let ran = timeout(PATIENCE, cloud.shell(server, shell)).await;
    let ran = ran.map_err(|_| Failure::new(format!("{command}: no end")))??;
    ensure(ran.exit == 0, || format!("{command}: {}", ran.output))?;
    Ok(ran.output)
}
