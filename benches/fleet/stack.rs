//! What is measured: a control plane, a simulated Hetzner Cloud with machines, and the release build of the operator between them.
//!
//! Much like a bed, but with the periods that users have, and without the looks at disks and voices that would take their share of the
//! processor.

use std::path::PathBuf;
use std::time::Duration;

use bed::{
    Audit, Cluster, ControlPlane, OPERATOR, Operator, Outcome, Pace, SYSTEM, Setup, TENANT, TOKEN,
    Turns, Write, ensure, manifests, wait_within,
};
use hetzner_sim::{Config, Control, RequestCount, Simulator, Spread};
use serde_json::{Value, json};

use crate::summary::{Summary, number};

/// The operator's own defaults, but for the time that deletions wait for requests that may still be under way.
const PACE: Pace = Pace {
    fast: "10s",
    slow: "60s",
    project: "60s",
    request_timeout: "30s",
    settle: "1s",
    lease: "15s",
    unreachable: "5m",
};
/// How many servers may be rebooted in a minute: more than the default, so that hundreds of them are seen to come back.
pub(crate) const RECOVERIES: &str = "60";
/// Between two looks at all instances: a list of hundreds costs the API server what dozens of writes do.
const SELDOM: Duration = Duration::from_secs(5);
/// Used up by a failure only.
pub(crate) const PATIENCE: Duration = Duration::from_mins(15);

/// Where the agent proves, at its start, that it has its secret.
pub(crate) const PROOF: &str = "/home/agent/proof";
/// The agent: it writes an HMAC under a key that is none, by which who knows the secret can tell that the agent was started with it.
const PROVES: &str = "\
import hmac, os, signal
proof = hmac.new(b'proof', os.environ['API_KEY'].encode(), 'sha256').hexdigest()
with open('/home/agent/proof.new', 'w') as file:
    file.write(proof)
os.replace('/home/agent/proof.new', '/home/agent/proof')
signal.pause()
";

/// All of it.
pub(crate) struct Stack {
    pub(crate) operator: Operator,
    pub(crate) cluster: Cluster,
    pub(crate) audit: Audit,
    pub(crate) cloud: Control,
    dir: PathBuf,
    // Last, so that they end when all else has ended.
    simulator: Simulator,
    _control_plane: ControlPlane,
}

/// Boots of 20 to 40 s, and Hetzner's limit of requests. SSH answers when logins and guest are there: cloud-init orders itself before sshd.
fn cloud() -> Config {
    Config {
        time_factor: 1.0,
        boot_ssh_s: Spread {
            from: 20.0,
            to: 40.0,
        },
        boot_cloud_init_s: Spread {
            from: 15.0,
            to: 20.0,
        },
        rate_limit: 3600,
        ..bed::quick_cloud()
    }
}

impl Stack {
    /// Starts everything, and waits for a project and a class that are Ready.
    pub(crate) async fn start(summary: &mut Summary) -> Outcome<Self> {
        let stack = Self::with(&["--recoveries-per-minute", RECOVERIES]).await?;
        let how = "from an empty project to HetznerProject and AgentClass Ready, from the simulator's count: ";
        summary.add(
            "setup_requests",
            (number(stack.count()), "requests"),
            1,
            how.to_owned() + &stack.routes(),
        )?;
        Ok(stack)
    }

    /// The same with these flags of the operator.
    pub(crate) async fn with(flags: &[&str]) -> Outcome<Self> {
        Self::on(Simulator::start(cloud()).await?, flags).await
    }

    /// The same on these machines.
    pub(crate) async fn on(simulator: Simulator, flags: &[&str]) -> Outcome<Self> {
        let control_plane = Turns::take(1).await?.control_plane().await?;
        let cluster = Cluster::admin(control_plane.kubeconfig()?).await?;
        let audit = Audit::from_now(control_plane.audit_log()?)?;
        let dir = bed::scratch("bench")?;
        let kubeconfig = dir.join("operator.kubeconfig");
        bed::write_private(
            &kubeconfig,
            &cluster.kubeconfig_of(SYSTEM, "agentfleet")?.to_string(),
        )?;
        let operator = Operator::new(Setup {
            kubeconfig,
            endpoint: simulator.endpoint(),
            guest_port: simulator.ssh_port(),
            host: simulator.host(),
            dir: dir.clone(),
            pace: PACE,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        })?;
        let mut stack = Self {
            operator,
            cluster,
            audit,
            cloud: simulator.control(),
            dir,
            simulator,
            _control_plane: control_plane,
        };
        stack.operator.start()?;
        stack.set_up().await?;
        Ok(stack)
    }

    async fn set_up(&self) -> Outcome {
        let token = manifests::token_secret(manifests::PROJECT);
        let mut class = manifests::class();
        class["spec"]["firewall"]["sshFrom"] = json!([self.operators()]);
        class["spec"]["agent"]["service"]["execStart"] =
            json!(["/usr/bin/python3", "-ISc", PROVES]);
        self.apply_all(vec![
            manifests::namespace(TENANT),
            manifests::secret(SYSTEM, &token, "token", TOKEN),
            manifests::project(manifests::PROJECT),
            class,
        ])
        .await?;
        for (kind, name) in [
            ("HetznerProject", manifests::PROJECT),
            ("AgentClass", manifests::CLASS),
        ] {
            wait_within(PATIENCE, &format!("{kind} {name} is Ready"), async || {
                let found = self.cluster.get(kind, None, name).await?;
                Ok(found.filter(is_ready).map(|_| ()))
            })
            .await?;
        }
        Ok(())
    }

    /// The addresses from where servers are talked to.
    pub(crate) fn operators(&self) -> String {
        format!("{}/32", self.simulator.host())
    }

    /// Ends it; what it leaves on disk is in the way of nobody.
    pub(crate) fn close(mut self) {
        let _ended = self.operator.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    /// Applies objects, several at a time.
    pub(crate) async fn apply_all(&self, objects: Vec<Value>) -> Outcome {
        let (namespaces, rest): (Vec<_>, Vec<_>) = objects
            .into_iter()
            .partition(|object| object["kind"] == "Namespace");
        for objects in [namespaces, rest] {
            self.cluster.apply_all(objects).await?;
        }
        Ok(())
    }

    /// Creates instances of these numbers, whose Secrets exist already.
    pub(crate) async fn create(&self, numbers: std::ops::Range<usize>) -> Outcome {
        let instances = numbers.map(|n| manifests::instance(TENANT, &name(n)));
        self.apply_all(instances.collect()).await
    }

    /// Creates the Secrets of instances of these numbers.
    pub(crate) async fn create_secrets(&self, numbers: std::ops::Range<usize>) -> Outcome {
        let secrets = numbers.map(|n| manifests::secret(TENANT, &name(n), "API_KEY", &name(n)));
        self.apply_all(secrets.collect()).await
    }

    /// Waits until so many instances are Ready. Exact times are in the audit log, so this looks seldom.
    pub(crate) async fn all_ready(&self, wanted: usize) -> Outcome {
        wait_within(
            PATIENCE,
            &format!("{wanted} instances are Ready"),
            async || {
                tokio::time::sleep(SELDOM).await;
                self.operator.check_alive()?;
                let instances = self.cluster.list("AgentInstance").await?;
                let ready = instances
                    .iter()
                    .filter(|instance| is_ready(instance))
                    .count();
                Ok((ready == wanted).then_some(()))
            },
        )
        .await
    }

    /// Asks for the deletion of instances of these numbers.
    pub(crate) async fn delete(&self, numbers: std::ops::Range<usize>) -> Outcome {
        bed::each(numbers, async |n| {
            let cluster = &self.cluster;
            cluster
                .delete("AgentInstance", Some(TENANT), &name(n))
                .await
        })
        .await
    }

    /// Requests to Hetzner since they were last forgotten.
    pub(crate) fn count(&self) -> u64 {
        self.cloud.requests().iter().map(|asked| asked.count).sum()
    }

    /// How many of them were answered with a status.
    pub(crate) fn answered_with(&self, status: u16) -> u64 {
        let asked = self.cloud.requests().into_iter();
        asked
            .filter(|asked| asked.status == status)
            .map(|asked| asked.count)
            .sum()
    }

    /// The same by route, as text.
    pub(crate) fn routes(&self) -> String {
        let told = |asked: RequestCount| {
            let RequestCount {
                method,
                route,
                status,
                count,
                ..
            } = asked;
            format!("{count} {method} {route} {status}")
        };
        self.cloud
            .requests()
            .into_iter()
            .map(told)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// What the operator has written to Kubernetes, the Lease left out.
    pub(crate) fn writes(&self) -> Outcome<Vec<Write>> {
        let mut writes = self.audit.writes_of(OPERATOR)?;
        writes.retain(|write| !write.is_lease());
        Ok(writes)
    }

    /// Id of the operator's process.
    pub(crate) fn process(&self) -> Outcome<u32> {
        let process = self.operator.process();
        ensure(process.is_some(), || "the operator does not run".into())?;
        Ok(process.unwrap_or_default())
    }
}

/// Name of the n-th instance and of its Secret.
pub(crate) fn name(n: usize) -> String {
    format!("agent-{n:04}")
}

/// Whether an object says that it is Ready.
pub(crate) fn is_ready(object: &Value) -> bool {
    bed::oracle::condition(&object["status"], "Ready")
        .is_some_and(|ready| ready["status"] == "True")
}
