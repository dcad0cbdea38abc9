//! Control planes: real ones, with the chart installed, each for one bed at a time.
//!
//! An operator watches the instances of its whole cluster, so two beds cannot share one. A program keeps [`AT_ONCE`] at most; a bed that ends
//! hands its control plane to the next, which empties it first: that takes 20 ms, and starting another one 5 s.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::cluster::Cluster;
use crate::failure::{Failure, Outcome, ensure};
use crate::{place, wait};

/// How many control planes one program runs at once: most of what a test does is to wait.
pub const AT_ONCE: u32 = 3;
/// Where the operator is installed.
pub const SYSTEM: &str = "agentfleet-system";
/// The operator's user name at the API server.
pub const OPERATOR: &str = "system:serviceaccount:agentfleet-system:agentfleet";
const START_DEADLINE: Duration = Duration::from_mins(3);

static FREE: Semaphore = Semaphore::const_new(AT_ONCE as usize);
static IDLE: Mutex<Vec<Plane>> = Mutex::new(Vec::new());

/// A control plane that nobody else uses, empty but for the chart.
pub struct ControlPlane {
    plane: Option<Plane>,
    _turn: SemaphorePermit<'static>,
}

/// The right to so many control planes; taken together, so that two tests cannot wait for one another.
pub struct Turns(SemaphorePermit<'static>);

/// One running control plane. It ends when its standard input closes, which the end of this program does too.
struct Plane {
    child: Child,
    ready: Ready,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ready {
    kubeconfig: PathBuf,
    audit_log: PathBuf,
}

/// Ends the control planes that no bed uses, and waits until nothing is left of them.
///
/// A program that does not ask for it ends them too, but a moment after itself.
pub fn end_idle() {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

impl Turns {
    /// Waits for so many control planes.
    ///
    /// # Errors
    /// Never, as long as the program runs.
    pub async fn take(beds: u32) -> Outcome<Self> {
        Ok(Self(FREE.acquire_many(beds).await?))
    }

    /// One of them.
    ///
    /// # Errors
    /// Fails when none is left, or the control plane cannot be started or emptied.
    pub async fn control_plane(&mut self) -> Outcome<ControlPlane> {
        let turn = self
            .0
            .split(1)
            .ok_or_else(|| Failure::new("no turn is left"))?;
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let plane = match idle {
            Some(plane) => {
                Cluster::admin(&plane.ready.kubeconfig)
                    .await?
                    .empty()
                    .await?;
                plane
            }
            None => Plane::start().await?,
        };
        Ok(ControlPlane {
            plane: Some(plane),
            _turn: turn,
        })
    }
}

impl ControlPlane {
    /// The admin's kubeconfig.
    ///
    /// # Errors
    /// Never, as long as it is in use.
    pub fn kubeconfig(&self) -> Outcome<&PathBuf> {
        Ok(&self.ready()?.kubeconfig)
    }

    /// The audit log.
    ///
    /// # Errors
    /// Never, as long as it is in use.
    pub fn audit_log(&self) -> Outcome<&PathBuf> {
        Ok(&self.ready()?.audit_log)
    }

    fn ready(&self) -> Outcome<&Ready> {
        let plane = self
            .plane
            .as_ref()
            .ok_or_else(|| Failure::new("the control plane was given back"))?;
        Ok(&plane.ready)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        IDLE.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(self.plane.take());
    }
}

impl Plane {
    async fn start() -> Outcome<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "agentfleet-plane-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(name);
        let (ready_file, words) = (dir.with_extension("ready"), dir.with_extension("stderr"));
        let mut child = Command::new(place::built(
            "control-plane/control-plane",
            "control-plane",
        )?)
        .args(["run", "--exit-with-stdin", "--dir"])
        .arg(&dir)
        .arg("--ready-file")
        .arg(&ready_file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&words)?)
        .spawn()?;
        let ready = wait::wait_within(START_DEADLINE, "the control plane is ready", async || {
            let ended = child.try_wait()?;
            ensure(ended.is_none(), || {
                let said = std::fs::read_to_string(&words).unwrap_or_default();
                format!("it ended: {ended:?}: {said}")
            })?;
            Ok(std::fs::read(&ready_file)
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok()))
        });
        let ready: Ready = ready.await?;
        std::fs::remove_file(words)?;
        let plane = Self { child, ready };
        plane.install_chart().await?;
        Ok(plane)
    }

    /// Renders the chart and applies it as users do.
    async fn install_chart(&self) -> Outcome {
        let cluster = Cluster::admin(&self.ready.kubeconfig).await?;
        cluster.apply(&crate::manifests::namespace(SYSTEM)).await?;
        let chart = Command::new(place::built("helm/helm", "helm")?)
            .args([
                "template",
                "agentfleet",
                "charts/agentfleet",
                "--include-crds",
                "--namespace",
                SYSTEM,
            ])
            .current_dir(place::project())
            .output()?;
        ensure(chart.status.success(), || {
            String::from_utf8_lossy(&chart.stderr).into_owned()
        })?;
        cluster.kubectl_with(
            &["apply", "--server-side", "--filename", "-"],
            &chart.stdout,
        )?;
        wait::wait_until("the resource definitions are established", async || {
            let definitions = cluster.list("CustomResourceDefinition").await?;
            Ok(definitions.iter().all(is_established))
        })
        .await?;
        let operator = cluster.as_user(OPERATOR)?;
        wait::wait_until("the operator's rights are in effect", async || {
            Ok(operator.get("Secret", Some(SYSTEM), "any").await.is_ok())
        })
        .await
    }
}

/// Whether the API server serves what a definition declares.
fn is_established(definition: &Value) -> bool {
    definition["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|told| told["type"] == "Established" && told["status"] == "True")
}

impl Drop for Plane {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It has ended or is about to; there is nobody to tell.
        let _ = self.child.wait();
    }
}
