//! A way into a running machine for tests, beside SSH.

use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::sleep;

use crate::machines::fleet::MachineError;
use crate::machines::nspawn::machine::Machine;

/// The most of a console that is shown, in bytes.
const MAX_CONSOLE: usize = 256 << 10;

/// How long a command may have been stopped together with its machine.
const AWAKE: Duration = Duration::from_millis(500);

/// A command to run in a machine.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shell {
    /// What `sh` is given.
    pub command: String,
    /// Who runs it; root where nobody is named.
    #[serde(default)]
    pub user: Option<String>,
    /// What it reads.
    #[serde(default)]
    pub stdin: String,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShellAnswer {
    /// Its exit code; 255 where a signal ended it.
    pub exit: i32,
    /// All it wrote, errors too.
    pub output: String,
}

/// A machine that goes down stops all its processes before it ends them, and nsenter stops with its own; but it has to see that one's end, or
/// the machine never comes to its own.
async fn keep_awake(nsenter: Option<u32>) -> std::io::Error {
    let nsenter = nsenter.map(|id| id.to_string());
    loop {
        sleep(AWAKE).await;
        let mut go_on = Command::new("kill");
        if let Err(error) = go_on.arg("-CONT").args(&nsenter).status().await {
            return error;
        }
    }
}

impl Machine {
    /// Runs a command in the machine and waits for its end; one that is given up goes on until its machine ends.
    pub(crate) async fn shell(&self, shell: &Shell) -> Result<ShellAnswer, MachineError> {
        let down = MachineError::Unsupported("the machine is not up");
        let leader = self.leader().ok_or(down)?.to_string();
        let user = shell.user.as_deref().unwrap_or("root");
        let mut child = Command::new("nsenter")
            .args(["--target", &leader, "--mount", "--uts", "--ipc", "--net"])
            .args(["--pid", "--cgroup", "--", "/usr/bin/env", "-i", "TERM=dumb"])
            .args([
                "/usr/sbin/runuser",
                "--login",
                "--shell=/bin/sh",
                user,
                "-c",
            ])
            .arg(format!("exec 2>&1\n{}", shell.command))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take();
        let input = async {
            if let Some(mut stdin) = stdin {
                // A command need not read what it is given.
                let _ = stdin.write_all(shell.stdin.as_bytes()).await;
            }
        };
        let nsenter = child.id();
        let ended = async { tokio::join!(input, child.wait_with_output()).1 };
        let ended = tokio::select! {
            ended = ended => ended?,
            error = keep_awake(nsenter) => return Err(error.into()),
        };
        let output = [ended.stdout, ended.stderr].concat();
        Ok(ShellAnswer {
            exit: ended.status.code().unwrap_or(255),
            output: String::from_utf8_lossy(&output).into_owned(),
        })
    }

    /// The end of what it wrote to its console, over all its boots.
    pub(crate) fn console_output(&self) -> Result<String, MachineError> {
        let written = match std::fs::read(self.console()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let end = &written[written.len().saturating_sub(MAX_CONSOLE)..];
        Ok(String::from_utf8_lossy(end).into_owned())
    }
}
