//! One bed: a control plane, a simulated Hetzner Cloud with machines, and the operator, all of its own.
//!
//! A test ends with [`Bed::finish`], which checks what must hold in every test; a bed that goes without it says what the operator said last and
//! leaves its directory under `target/bed/`.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use hetzner_sim::{Config, Control, MachineKind, Simulator, StartError};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::audit::Audit;
use crate::cluster::Cluster;
use crate::control_plane::{ControlPlane, OPERATOR, SYSTEM, Turns};
use crate::failure::{Failure, Outcome, ensure};
use crate::instance::Instance;
use crate::late_watch::LateWatch;
use crate::operator::{Operator, Pace, Setup, answer_of, write_private};
use crate::oracle::{self, Canaries};
use crate::skip::skip;
use crate::{manifests, place, voices, wait};

/// Namespace of the instances.
pub const TENANT: &str = "tenant";
/// The token of the first project.
pub const TOKEN: &str = "token-of-the-first-project";

/// What a bed begins with.
pub struct Options {
    /// The simulated cloud; another bed's, where two clusters share a project.
    pub simulator: Option<Arc<Simulator>>,
    /// How that cloud is, where it is not another's.
    pub cloud: Config,
    /// How often the operator looks at Hetzner of itself.
    pub pace: Pace,
    /// Further flags of the operator.
    pub flags: Vec<String>,
    /// Whether the operator runs at once.
    pub operator: bool,
    /// Whether what the operator hears of instances can be held back, see [`Bed::late`].
    pub late: bool,
    /// Directory for all files; a new one under `target/bed/` unless named.
    pub dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            simulator: None,
            cloud: quick_cloud(),
            pace: Pace::default(),
            flags: vec![],
            operator: true,
            late: false,
            dir: None,
        }
    }
}

/// A cloud whose machines boot at once.
pub fn quick_cloud() -> Config {
    Config {
        tokens: vec![TOKEN.into()],
        machines: MachineKind::Fake,
        ..Config::default()
    }
}

/// A cloud whose machines are real, or why they cannot be had here, which with `CI=true` is a failure.
///
/// # Errors
/// As said.
pub async fn real_cloud() -> Outcome<Result<Simulator, StartError>> {
    let cloud = Config {
        machines: MachineKind::Nspawn,
        ..quick_cloud()
    };
    let started = Simulator::start(cloud).await;
    match started {
        Err(error) if std::env::var("CI").as_deref() == Ok("true") => Err(error.into()),
        started => Ok(started),
    }
}

/// All that a test needs.
pub struct Bed {
    /// The operator.
    pub operator: Operator,
    /// The API server, seen by the admin.
    pub cluster: Cluster,
    /// What the API server logged since the bed began.
    pub audit: Audit,
    /// Values that must be found nowhere but where they are declared.
    pub canaries: Canaries,
    late: Option<LateWatch>,
    simulator: Arc<Simulator>,
    dir: PathBuf,
    finished: bool,
    // Last, so that it is given back when all else has ended.
    _control_plane: ControlPlane,
}

impl Bed {
    /// A bed with all that most tests need: token, project, class, namespace, and the operator at work.
    ///
    /// # Errors
    /// Fails when a part cannot be started.
    pub async fn start() -> Outcome<Self> {
        Self::start_at(Pace::default()).await
    }

    /// The same, with an operator of another pace.
    ///
    /// # Errors
    /// Fails when a part cannot be started.
    pub async fn start_at(pace: Pace) -> Outcome<Self> {
        let bed = Self::with(Options {
            pace,
            ..Options::default()
        })
        .await?;
        bed.apply_basics().await?;
        Ok(bed)
    }

    /// Like [`Bed::start`], on real machines; none, and said so, where they cannot be had. With `CI=true` that is a failure.
    ///
    /// # Errors
    /// Fails when a part cannot be started.
    pub async fn start_real() -> Outcome<Option<Self>> {
        Self::start_real_at(Pace::default()).await
    }

    /// The same, with an operator of another pace.
    ///
    /// # Errors
    /// Fails when a part cannot be started.
    pub async fn start_real_at(pace: Pace) -> Outcome<Option<Self>> {
        let simulator = match real_cloud().await? {
            Ok(simulator) => simulator,
            Err(error) => {
                skip(&format!("needs root and real machines: {error}"))?;
                return Ok(None);
            }
        };
        let bed = Self::with(Options {
            simulator: Some(Arc::new(simulator)),
            pace,
            ..Options::default()
        })
        .await?;
        bed.apply_basics().await?;
        Ok(Some(bed))
    }

    /// A bed without any object but the namespace of the instances.
    ///
    /// # Errors
    /// Fails when a part cannot be started.
    pub async fn with(options: Options) -> Outcome<Self> {
        let mut turns = Turns::take(1).await?;
        Self::on(turns.control_plane().await?, options).await
    }

    /// Two beds, for two clusters at once.
    ///
    /// # Errors
    /// Fails when a part cannot be started.
    pub async fn pair(
        first: Options,
        second: impl FnOnce(&Self) -> Options,
    ) -> Outcome<(Self, Self)> {
        let mut turns = Turns::take(2).await?;
        let first = Self::on(turns.control_plane().await?, first).await?;
        let options = second(&first);
        let second = Self::on(turns.control_plane().await?, options).await?;
        Ok((first, second))
    }

    async fn on(control_plane: ControlPlane, options: Options) -> Outcome<Self> {
        let dir = options.dir.map_or_else(|| place::scratch("run"), Ok)?;
        let cluster = Cluster::admin(control_plane.kubeconfig()?).await?;
        let audit = Audit::from_now(control_plane.audit_log()?)?;
        let simulator = match options.simulator {
            Some(simulator) => simulator,
            None => Arc::new(Simulator::start(options.cloud).await?),
        };
        let kubeconfig = dir.join("operator.kubeconfig");
        let mut access = cluster.kubeconfig_of(SYSTEM, "agentfleet")?;
        let mut late = None;
        if options.late {
            let way = LateWatch::open(cluster.nobody()?, "/agentinstances").await?;
            access["clusters"][0]["cluster"] = json!({"server": way.url()});
            late = Some(way);
        }
        write_private(&kubeconfig, &access.to_string())?;
        let (endpoint, guest_port) = (simulator.endpoint(), simulator.ssh_port());
        let host = simulator.host();
        let operator = Operator::new(Setup {
            kubeconfig,
            endpoint,
            guest_port,
            host,
            pace: options.pace,
            flags: options.flags,
            dir: dir.clone(),
        })?;
        let mut bed = Self {
            operator,
            cluster,
            audit,
            canaries: Canaries::default(),
            late,
            simulator,
            dir,
            finished: false,
            _control_plane: control_plane,
        };
        bed.cluster.apply(&manifests::namespace(TENANT)).await?;
        if options.operator {
            bed.operator.start()?;
        }
        Ok(bed)
    }

    /// Token, project and class as most tests have them.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn apply_basics(&self) -> Outcome {
        self.apply_token(manifests::PROJECT, TOKEN).await?;
        self.cluster
            .apply(&manifests::project(manifests::PROJECT))
            .await?;
        self.cluster.apply(&self.class()).await?;
        Ok(())
    }

    /// The class that most tests have, open to this host.
    pub fn class(&self) -> Value {
        let mut class = manifests::class();
        let host = self.host();
        if host != Ipv4Addr::LOCALHOST {
            class["spec"]["firewall"]["sshFrom"] = json!([format!("{host}/32")]);
        }
        class
    }

    /// Whether the servers are real machines.
    pub fn has_real_machines(&self) -> bool {
        self.host() != Ipv4Addr::LOCALHOST
    }

    /// Address of this host, as machines reach it.
    pub fn host(&self) -> Ipv4Addr {
        self.simulator.host()
    }

    /// Sets the token of a project.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn apply_token(&self, project: &str, token: &str) -> Outcome {
        let secret = manifests::secret(SYSTEM, &manifests::token_secret(project), "token", token);
        self.cluster.apply(&secret).await?;
        Ok(())
    }

    /// Sets the Secret of an instance to a fresh canary, which it answers.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn apply_secret(&self, name: &str) -> Outcome<String> {
        let value = self.canaries.fresh();
        self.cluster
            .apply(&manifests::secret(TENANT, name, "API_KEY", &value))
            .await?;
        Ok(value)
    }

    /// Applies a project or a class and waits until the operator has seen it: watches of several kinds do not keep to one order, and an
    /// instance applied afterwards might still meet the former one.
    ///
    /// # Errors
    /// Fails with what the API server says, or at the deadline.
    pub async fn change(&self, object: &Value) -> Outcome {
        let applied = self.cluster.apply(object).await?;
        let of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, name) = (of(&applied["kind"]), of(&applied["metadata"]["name"]));
        let wanted = applied["metadata"]["generation"].as_i64();
        self.wait_until(&format!("{kind} {name} is seen as it is"), async || {
            let now = self.cluster.get(&kind, None, &name).await?;
            Ok(now.is_some_and(|now| now["status"]["observedGeneration"].as_i64() == wanted))
        })
        .await
    }

    /// A user who may do everything with the instances of the namespace and is no admin of agentfleet.
    ///
    /// # Errors
    /// Fails with what the API server says, or at the deadline.
    pub async fn tenant(&self) -> Outcome<Cluster> {
        for object in manifests::tenant(TENANT, "rachel") {
            self.cluster.apply(&object).await?;
        }
        let tenant = self.cluster.as_user("rachel")?;
        let instance = manifests::instance(TENANT, "adopted");
        self.guards_words_of_admins(&tenant, instance).await?;
        Ok(tenant)
    }

    /// Waits until a user may create an object, though not with a word in it that is an admin's: an API server acts on rights and admission
    /// policies some time after they were written.
    ///
    /// # Errors
    /// Fails at the deadline.
    pub async fn guards_words_of_admins(&self, user: &Cluster, mut object: Value) -> Outcome {
        object["metadata"]["annotations"] = json!({"agentfleet.dev/adopt": "1"});
        self.wait_until(
            "rights and policies are in effect: an admin's word is refused",
            async || {
                let said = user.refusal(&object).await;
                Ok(said.is_ok_and(|said| said.contains("agentfleet-admin")))
            },
        )
        .await
    }

    /// An instance with a Secret of its own, applied.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn create(&self, name: &str) -> Outcome<Instance<'_>> {
        self.apply_secret(name).await?;
        self.cluster
            .apply(&manifests::instance(TENANT, name))
            .await?;
        Ok(self.instance(name))
    }

    /// An instance of that name, whether or not it exists.
    pub fn instance(&self, name: &str) -> Instance<'_> {
        Instance::of(self, name)
    }

    /// Says as the admin that the end of an agent is meant, now and for an hour, however many others end with it.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn confirm(&self, kind: &str, namespace: Option<&str>, name: &str) -> Outcome {
        let word = Timestamp::now() + SignedDuration::from_hours(1);
        let annotation = json!({"agentfleet.dev/confirm-termination": word.to_string()});
        let patch = json!({"metadata": {"annotations": annotation}});
        self.cluster.merge(kind, namespace, name, patch).await
    }

    /// Another replica of the operator, that does not run yet and goes to the API server by a way of its own.
    ///
    /// # Errors
    /// Fails when it can have no rights, directory or port.
    pub fn replica(&self) -> Outcome<Operator> {
        let kubeconfig = self.dir.join("replica.kubeconfig");
        let access = self.cluster.kubeconfig_of(SYSTEM, "agentfleet")?;
        write_private(&kubeconfig, &access.to_string())?;
        self.operator.replica(kubeconfig)
    }

    /// What the operator hears of instances, in a bed that was made with [`Options::late`].
    ///
    /// # Errors
    /// Fails in any other.
    pub fn late(&self) -> Outcome<&LateWatch> {
        self.late
            .as_ref()
            .ok_or_else(|| Failure::new("this bed was not made to hold anything back"))
    }

    /// Control over the simulated cloud, and its ledger.
    pub fn cloud(&self) -> Control {
        self.simulator.control()
    }

    /// The simulated cloud, to share it with another bed.
    pub fn simulator(&self) -> Arc<Simulator> {
        Arc::clone(&self.simulator)
    }

    /// The mutations that the cloud accepted after the one of that number, as `POST /servers`; the holder label, written at each take-over of
    /// the lease, left out.
    pub fn mutations_after(&self, seq: u64) -> Vec<String> {
        let mutations = self.cloud().mutations(seq).into_iter();
        let told = mutations.map(|mutation| format!("{} {}", mutation.method, mutation.route));
        told.filter(|mutation| mutation != "PUT /ssh_keys/{id}")
            .collect()
    }

    /// Number of the latest mutation.
    pub fn latest_mutation(&self) -> u64 {
        self.cloud()
            .mutations(0)
            .last()
            .map_or(0, |mutation| mutation.seq)
    }

    /// A request to the cloud as a person with the first project's token makes it; answers what it is answered.
    ///
    /// # Errors
    /// Fails when it is refused.
    pub async fn at_hetzner(&self, method: &str, path: &str, body: &Value) -> Outcome<Value> {
        let endpoint = self.simulator.endpoint();
        let url = endpoint.trim_start_matches("http://");
        let (address, base) = url.split_once('/').unwrap_or((url, ""));
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = format!(
            "{method} /{base}{path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = answer_of(address.parse()?, &request).await;
        match answer {
            Some((status, body)) if status < 300 => {
                Ok(serde_json::from_str(&body).unwrap_or_default())
            }
            other => Err(Failure::new(format!("{method} {path}: {other:?}"))),
        }
    }

    /// How often a route was asked, whatever the answer.
    pub fn requests_to(&self, method: &str, route: &str) -> u64 {
        let routes = self.cloud().requests().into_iter();
        routes
            .filter(|asked| asked.method == method && asked.route == route)
            .map(|asked| asked.count)
            .sum()
    }

    /// The directory of this bed's files.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Waits until something is so; the operator has to stay alive meanwhile, if it runs.
    ///
    /// # Errors
    /// Fails at the deadline.
    pub async fn wait_until(
        &self,
        what: &str,
        mut look: impl AsyncFnMut() -> Outcome<bool>,
    ) -> Outcome {
        self.wait_for(what, async || Ok(look().await?.then_some(())))
            .await
    }

    /// Waits until there is an answer; the operator has to stay alive meanwhile, if it runs.
    ///
    /// # Errors
    /// Fails at the deadline.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        mut look: impl AsyncFnMut() -> Outcome<Option<T>>,
    ) -> Outcome<T> {
        wait::wait_for(what, async || {
            self.operator.check_alive()?;
            look().await
        })
        .await
    }

    /// Waits until an object has a condition with that status and reason; answers its message.
    ///
    /// # Errors
    /// Fails at the deadline, with the conditions as they are then.
    pub async fn condition(
        &self,
        object: (&str, Option<&str>, &str),
        kind: &str,
        status: &str,
        reason: &str,
    ) -> Outcome<String> {
        let mut last = Value::Null;
        let what = format!("{} {} has {kind}={status}/{reason}", object.0, object.2);
        let waited = self.wait_for(&what, async || {
            last = self
                .cluster
                .get(object.0, object.1, object.2)
                .await?
                .map_or(Value::Null, |found| found["status"].clone());
            let found = oracle::condition(&last, kind);
            Ok(found
                .filter(|found| found["status"] == status && found["reason"] == reason)
                .cloned())
        });
        match waited.await {
            Ok(found) => Ok(found["message"].as_str().unwrap_or_default().to_owned()),
            Err(failure) => Err(Failure::new(format!("{failure}; its status is {last:#}"))),
        }
    }

    /// Waits until a condition of an object says all of these words; answers that condition.
    ///
    /// # Errors
    /// Fails at the deadline, with the conditions as they are then.
    pub async fn told(&self, object: (&str, Option<&str>, &str), words: &[&str]) -> Outcome<Value> {
        let mut last = Value::Null;
        let what = format!("{} {} says {words:?}", object.0, object.2);
        let waited = self
            .wait_for(&what, async || {
                last = self
                    .cluster
                    .get(object.0, object.1, object.2)
                    .await?
                    .map_or(Value::Null, |found| found["status"]["conditions"].clone());
                let says = |found: &&Value| {
                    words.iter().all(|word| {
                        found["message"]
                            .as_str()
                            .is_some_and(|message| message.contains(word))
                    })
                };
                Ok(last.as_array().into_iter().flatten().find(says).cloned())
            })
            .await;
        waited.map_err(|failure| Failure::new(format!("{failure}; its conditions are {last:#}")))
    }

    /// What the operator has written to Kubernetes since the bed began.
    ///
    /// # Errors
    /// Fails when the audit log cannot be read.
    pub fn writes(&self) -> Outcome<Vec<crate::audit::Write>> {
        self.audit.writes_of(OPERATOR)
    }

    /// Deletes instances, class and project, and waits until nothing is left anywhere.
    ///
    /// # Errors
    /// Fails when something is left at the deadline.
    pub async fn delete_all(&self) -> Outcome {
        for kind in [
            "Subscription",
            "AgentInstance",
            "AgentClass",
            "HetznerProject",
        ] {
            for object in self.cluster.list(kind).await? {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let namespace = object["metadata"]["namespace"].as_str();
                if kind == "AgentInstance"
                    && let Err(failure) = self.confirm(kind, namespace, name).await
                    && self.cluster.get(kind, namespace, name).await?.is_some()
                {
                    return Err(failure);
                }
                self.cluster.delete(kind, namespace, name).await?;
            }
            self.wait_until(&format!("no {kind} is left"), async || {
                Ok(self.cluster.list(kind).await?.is_empty())
            })
            .await?;
        }
        for project in self.cloud().projects() {
            let left = (
                project.servers,
                project.firewalls,
                project.ssh_keys,
                project.primary_ips,
            );
            ensure(left == (0, 0, 0, 0), || {
                format!("left at Hetzner: {project:?}")
            })?;
        }
        Ok(())
    }

    /// Ends the bed without checking anything.
    pub fn close(mut self) {
        self.finished = true;
    }

    /// Ends the bed after checking what holds in every test: one server, one voice, secrets where they belong, no root password, nothing that cloud-init
    /// complains of.
    ///
    /// # Errors
    /// Fails when one of them does not hold.
    pub async fn finish(self) -> Outcome {
        oracle::one_server(&self.cloud().lives())?;
        self.finish_after_a_late_server().await
    }

    /// Like [`Self::finish`], after servers were replaced by others that were prepared beside them.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub async fn finish_after_replacements(self) -> Outcome {
        oracle::one_server_each(&self.cloud().lives())?;
        self.finish_after_a_late_server().await
    }

    /// Like [`Self::finish`], after a request that took effect later than anybody waits: then there were two servers for a while, of which only
    /// one ever spoke.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub async fn finish_after_a_late_server(mut self) -> Outcome {
        self.operator.check_alive()?;
        voices::one_voice(&self.cloud())?;
        oracle::no_root_password(&self.cloud().projects())?;
        let complaints = self.cloud().complaints();
        ensure(complaints.is_empty(), || {
            format!("cloud-init complains: {complaints:#?}")
        })?;
        self.canaries.are_nowhere_else(&self).await?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.finished {
            // What cannot be removed now is in the way of nobody.
            let _ = std::fs::remove_dir_all(&self.dir);
        } else {
            eprintln!(
                "the operator's last words (more in {}):\n{}",
                self.dir.display(),
                self.operator.last_words()
            );
        }
    }
}
