//! The machine host: one Python process that runs the guest program for all machines.
//!
//! It is started when the first machine needs it, and ends with the simulator: its standard input is a
//! pipe from here. What it is asked goes over a unix socket, one connection each.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, OnceCell, mpsc};

use crate::machines::fleet::GuestFaults;

/// How long the interpreter may take to listen.
const START: Duration = Duration::from_secs(20);
/// The longest answer that is believed, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// Why the guest could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("cannot start the machine host")]
    Start(#[source] io::Error),
    #[error("the machine host does not listen")]
    Silent(#[source] io::Error),
    #[error("the connection to the machine host broke")]
    Broken(#[from] io::Error),
    #[error("the machine host answered nonsense")]
    Nonsense,
}

/// What the guest answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) exit: u32,
    pub(crate) output: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    exit: u32,
    length: usize,
}

/// The host, started when first needed.
pub(crate) struct Host {
    python: PathBuf,
    program: PathBuf,
    guest: PathBuf,
    socket: PathBuf,
    process: OnceCell<Mutex<Child>>,
}

impl Host {
    pub(crate) fn new(python: &Path, program: &Path, guest: &Path, socket: PathBuf) -> Self {
        Self {
            python: python.to_owned(),
            program: program.to_owned(),
            guest: guest.to_owned(),
            socket,
            process: OnceCell::new(),
        }
    }

    async fn start(&self) -> Result<Child, HostError> {
        let child = Command::new(&self.python)
            .arg(&self.program)
            .arg("--guest")
            .arg(&self.guest)
            .arg("--socket")
            .arg(&self.socket)
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(HostError::Start)?;
        let began = Instant::now();
        loop {
            match UnixStream::connect(&self.socket).await {
                Ok(_) => return Ok(child),
                Err(error) if began.elapsed() > START => return Err(HostError::Silent(error)),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Runs the guest of one machine; `stdin` ends when its sender is dropped.
    ///
    /// The queue has no bound: were it to push back, SSH could not read on and neither side would move.
    pub(crate) async fn run(
        &self,
        root: &Path,
        argv: &[&str],
        faults: &GuestFaults,
        mut stdin: mpsc::UnboundedReceiver<Vec<u8>>,
    ) -> Result<Ran, HostError> {
        self.process
            .get_or_try_init(|| async { self.start().await.map(Mutex::new) })
            .await?;
        let mut stream = UnixStream::connect(&self.socket).await?;
        let header = json!({"root": root, "argv": argv, "faults": faults});
        stream.write_all(format!("{header}\n").as_bytes()).await?;
        while let Some(part) = stdin.recv().await {
            stream.write_all(&part).await?;
        }
        stream.shutdown().await?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        let header: Header = serde_json::from_str(&line).map_err(|_| HostError::Nonsense)?;
        if header.length > MAX_ANSWER {
            return Err(HostError::Nonsense);
        }
        let mut output = vec![0; header.length];
        reader.read_exact(&mut output).await?;
        Ok(Ran {
            exit: header.exit,
            output,
        })
    }

    /// Ends the host, and waits until it is gone.
    pub(crate) async fn stop(&self) {
        if let Some(process) = self.process.get()
            && let Err(error) = process.lock().await.kill().await
        {
            tracing::warn!(%error, "cannot end the machine host");
        }
    }

    /// The same without any input.
    pub(crate) async fn tell(
        &self,
        root: &Path,
        argv: &[&str],
        faults: &GuestFaults,
    ) -> Result<Ran, HostError> {
        let (_, nothing) = mpsc::unbounded_channel();
        self.run(root, argv, faults, nothing).await
    }
}
