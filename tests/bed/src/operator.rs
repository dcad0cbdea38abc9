//! The operator as a process of its own, with the rights of the chart's ServiceAccount and nothing else.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::control_plane::SYSTEM;
use crate::failure::{Failure, Outcome, ensure};
use crate::{place, wait};

/// What a process that aborts itself dies of.
const SIGABRT: i32 = 6;
/// The same in every bed.
const FLAGS: [&str; 6] = [
    "--log-format",
    "json",
    "--namespace",
    SYSTEM,
    "--fleet",
    FLEET,
];
/// Most tests that delete many agents mean it.
const UNGUARDED: [&str; 2] = ["--guard-least", "100000"];
/// Name of the fleet in all beds.
pub const FLEET: &str = "bed";

/// How often the operator looks at Hetzner of itself, and how long it waits, as its flags take it.
#[derive(Clone, Copy)]
pub struct Pace {
    /// Between lists of servers while something is in flux.
    pub fast: &'static str,
    /// Between lists of servers otherwise.
    pub slow: &'static str,
    /// Between looks at a project.
    pub project: &'static str,
    /// How long a request to Hetzner may take.
    pub request_timeout: &'static str,
    /// How long after a request without an answer it may still take effect.
    pub settle: &'static str,
    /// How long others wait for a silent holder of the Lease.
    pub lease: &'static str,
    /// How long a server may be out of reach before it is rebooted.
    pub unreachable: &'static str,
}

impl Default for Pace {
    /// So often, and so briefly, that no test waits for it.
    fn default() -> Self {
        Self {
            fast: "500ms",
            slow: "2s",
            project: "1s",
            request_timeout: "5s",
            settle: "1s",
            // As by default: an API server that others keep busy may be silent for seconds.
            lease: "15s",
            // Most tests that make a server unreachable are not about its recovery.
            unreachable: "5m",
        }
    }
}

/// How an operator is started.
#[derive(Clone)]
pub struct Setup {
    /// What it reaches the API server with.
    pub kubeconfig: PathBuf,
    /// Base URL of the Hetzner API.
    pub endpoint: String,
    /// Port of SSH on machines.
    pub guest_port: u16,
    /// Address of this host, as machines reach it.
    pub host: Ipv4Addr,
    /// Its periods and windows.
    pub pace: Pace,
    /// Further flags.
    pub flags: Vec<String>,
    /// Directory for its log.
    pub dir: PathBuf,
}

/// The operator's process; it is killed when this goes.
pub struct Operator {
    setup: Setup,
    /// Behind a lock, so that whoever waits for something else can see that it has ended.
    child: Mutex<Option<Child>>,
    http: SocketAddr,
    phone_home: SocketAddr,
}

/// A point at which a process can be made to abort.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Call {
    /// `kubernetes`, `hetzner` or `guest`.
    pub site: String,
    /// Verb and route.
    pub call: String,
    /// The n-th such call of the process, from 1.
    pub occurrence: u64,
}

/// Right before a call, or right after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nothing of it has happened.
    Before,
    /// Its outcome is known, and nothing has been done with it.
    After,
}

impl Call {
    /// The setting of `FAILPOINTS` that aborts there.
    pub fn fail_point(&self, moment: Moment) -> String {
        let moment = match moment {
            Moment::Before => "before",
            Moment::After => "after",
        };
        format!(
            "{} {} {moment}={}*off->return",
            self.site,
            self.call,
            self.occurrence - 1
        )
    }
}

impl Operator {
    /// An operator that does not run yet.
    ///
    /// # Errors
    /// Fails when no port is free.
    pub fn new(setup: Setup) -> Outcome<Self> {
        Ok(Self {
            child: Mutex::default(),
            http: (Ipv4Addr::LOCALHOST, place::free_port()?).into(),
            phone_home: (setup.host, place::free_port()?).into(),
            setup,
        })
    }

    /// Another replica of it, that does not run yet.
    pub(crate) fn replica(&self, kubeconfig: PathBuf) -> Outcome<Self> {
        let dir = self.setup.dir.join("replica");
        std::fs::create_dir_all(&dir)?;
        Self::new(Setup {
            kubeconfig,
            dir,
            ..self.setup.clone()
        })
    }

    /// Starts it, with more settings in its environment.
    ///
    /// # Errors
    /// Fails when it runs already or cannot be started.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) -> Outcome {
        let guarded = self.setup.flags.iter().any(|flag| flag == "--guard-least");
        ensure(self.child().is_none(), || {
            "the operator runs already".into()
        })?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let child = Command::new(place::operator()?)
            .arg("run")
            .args(FLAGS)
            .args(["--inventory-fast", self.setup.pace.fast])
            .args(["--inventory-slow", self.setup.pace.slow])
            .args(["--project-period", self.setup.pace.project])
            .args(["--request-timeout", self.setup.pace.request_timeout])
            .args(["--settle", self.setup.pace.settle])
            .args(["--lease-duration", self.setup.pace.lease])
            .args(["--unreachable-max", self.setup.pace.unreachable])
            .args(["--guest-port", &self.setup.guest_port.to_string()])
            .args([
                "--http-listen",
                &self.http.to_string(),
                "--phone-home-listen",
                &self.phone_home.to_string(),
            ])
            .args(if guarded { &[] } else { UNGUARDED.as_slice() })
            .args(&self.setup.flags)
            .args(["--phone-home-url", &format!("http://{}", self.phone_home)])
            .env("KUBECONFIG", &self.setup.kubeconfig)
            .env("HCLOUD_ENDPOINT", &self.setup.endpoint)
            .env("AGENTFLEET_CALL_LOG", self.call_log())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        *self.child() = Some(child);
        Ok(())
    }

    /// Starts it.
    ///
    /// # Errors
    /// As [`Self::start_with`].
    pub fn start(&mut self) -> Outcome {
        self.start_with(&[])
    }

    /// Starts it so that it aborts at a call.
    ///
    /// # Errors
    /// As [`Self::start_with`].
    pub fn start_to_crash_at(&mut self, call: &Call, moment: Moment) -> Outcome {
        self.start_with(&[("FAILPOINTS", &call.fail_point(moment))])
    }

    /// Starts it without one of its flags, from now on.
    ///
    /// # Errors
    /// As [`Self::start_with`].
    pub fn start_without(&mut self, flag: &str) -> Outcome {
        self.setup.flags.retain(|given| given != flag);
        self.start()
    }

    /// Another one that is started in the same way, with files of its own.
    ///
    /// # Errors
    /// Fails when it can have no directory or port.
    pub fn another(&self) -> Outcome<Self> {
        let dir = self.setup.dir.join("another");
        std::fs::create_dir(&dir)?;
        Self::new(Setup {
            dir,
            ..self.setup.clone()
        })
    }

    /// Holds its process, or lets a held one go on, as a busy or suspended host does.
    ///
    /// # Errors
    /// Fails when it does not run.
    pub fn hold(&self, hold: bool) -> Outcome {
        let id = self.process().ok_or_else(not_running)?.to_string();
        let signal = if hold { "-STOP" } else { "-CONT" };
        let told = Command::new("kill").args([signal, &id]).status()?;
        ensure(told.success(), || format!("kill {signal} failed"))
    }

    /// Id of its process, while it runs.
    pub fn process(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// Kills it on the spot and waits until it is gone.
    ///
    /// # Errors
    /// Fails when it does not run.
    pub fn kill(&mut self) -> Outcome<ExitStatus> {
        let mut child = self.child().take().ok_or_else(not_running)?;
        child.kill()?;
        Ok(child.wait()?)
    }

    /// Asks it to end, as Kubernetes does, and waits until it has.
    ///
    /// # Errors
    /// Fails when it does not end.
    pub async fn stop(&mut self) -> Outcome<ExitStatus> {
        let id = self
            .child()
            .as_ref()
            .ok_or_else(not_running)?
            .id()
            .to_string();
        let told = Command::new("kill").args(["-TERM", &id]).status()?;
        ensure(told.success(), || "kill -TERM failed".into())?;
        self.end().await
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// Fails when it does not.
    pub async fn end(&mut self) -> Outcome<ExitStatus> {
        let status = wait::wait_for("the operator ends", async || self.ended()).await?;
        *self.child() = None;
        Ok(status)
    }

    /// Whether it aborted, as a crash point makes it; fails when it ended in another way.
    ///
    /// # Errors
    /// Fails when it ended in another way, or does not run.
    pub fn has_crashed(&mut self) -> Outcome<bool> {
        let Some(status) = self.ended()? else {
            return Ok(false);
        };
        *self.child() = None;
        ensure(status.signal() == Some(SIGABRT), || {
            format!("the operator ended by itself: {status}")
        })?;
        Ok(true)
    }

    /// Kills it and starts it again.
    ///
    /// # Errors
    /// As [`Self::kill`] and [`Self::start_with`].
    pub fn restart(&mut self) -> Outcome {
        self.kill()?;
        self.start()
    }

    /// Fails when it has ended by itself, with what it said last; one that was stopped or never started is none of that.
    ///
    /// # Errors
    /// As said.
    pub fn check_alive(&self) -> Outcome {
        let ended = self
            .child()
            .as_mut()
            .map(Child::try_wait)
            .transpose()?
            .flatten();
        match ended {
            Some(status) => Err(Failure::new(format!("the operator ended: {status}"))),
            None => Ok(()),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> Outcome<Option<ExitStatus>> {
        Ok(self.child().as_mut().ok_or_else(not_running)?.try_wait()?)
    }

    /// Where it writes its log.
    pub fn log_file(&self) -> PathBuf {
        self.setup.dir.join("operator.log")
    }

    /// All it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The last lines of its log.
    pub fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Where it answers `/healthz` and `/readyz`.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where servers report their host key.
    pub fn phone_home(&self) -> SocketAddr {
        self.phone_home
    }

    /// Status code of a GET; none when nobody answers.
    pub async fn get(&self, path: &str) -> Option<u16> {
        status_of(
            self.http,
            &format!("GET {path} HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n"),
        )
        .await
    }

    /// What Prometheus would scrape; none when nobody answers.
    pub async fn scrape(&self) -> Option<String> {
        let request = "GET /metrics HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n";
        let (status, body) = answer_of(self.http, request).await?;
        (status == 200).then_some(body)
    }

    /// Where its calls are recorded, when it was built with fail points.
    pub fn call_log(&self) -> PathBuf {
        self.setup.dir.join("calls")
    }

    /// The calls that were recorded since the last time they were forgotten.
    ///
    /// # Errors
    /// Fails when a line is none.
    pub fn calls(&self) -> Outcome<Vec<Call>> {
        let text = std::fs::read_to_string(self.call_log()).unwrap_or_default();
        Ok(text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        if self.child().is_some()
            && let Err(failure) = self.kill()
        {
            eprintln!("the operator cannot be killed: {failure}");
        }
    }
}

fn not_running() -> Failure {
    Failure::new("the operator does not run")
}

/// Sends a request as it stands; answers the status code.
pub async fn status_of(address: SocketAddr, request: &str) -> Option<u16> {
    Some(answer_of(address, request).await?.0)
}

/// Sends a request as it stands, which must ask for the end of the connection; answers status code and body.
pub async fn answer_of(address: SocketAddr, request: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split_whitespace().nth(1)?.parse().ok()?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    Some((status, body.unwrap_or_default().to_owned()))
}

/// Writes a file that only we can read.
///
/// # Errors
/// Fails when it cannot be written.
pub fn write_private(path: &Path, text: &str) -> Outcome {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}
