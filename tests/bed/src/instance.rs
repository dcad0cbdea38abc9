//! One instance of a bed, as those see it who wrote it, and as its machine tells.

use hetzner_sim::Shell;
use serde_json::{Value, json};

use crate::bed::{Bed, TENANT};
use crate::failure::{Failure, Outcome, ensure};
use crate::shell::run_in;
use crate::{oracle, voices};

/// One instance of a bed.
pub struct Instance<'a> {
    bed: &'a Bed,
    /// Its name.
    pub name: String,
}

impl<'a> Instance<'a> {
    pub(crate) fn of(bed: &'a Bed, name: &str) -> Self {
        Self {
            bed,
            name: name.to_owned(),
        }
    }

    /// The object, if it exists.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn object(&self) -> Outcome<Option<Value>> {
        self.bed
            .cluster
            .get("AgentInstance", Some(TENANT), &self.name)
            .await
    }

    /// Its status; null when there is none.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn status(&self) -> Outcome<Value> {
        Ok(self
            .object()
            .await?
            .map_or(Value::Null, |object| object["status"].clone()))
    }

    /// Waits until it is Ready, and its agent runs on a machine with the Secret of now; answers the server's id.
    ///
    /// # Errors
    /// Fails at the deadline, or when Ready is not the truth.
    pub async fn ready(&self) -> Outcome<u64> {
        let what = format!("{} is Ready", self.name);
        let waited = self.bed.wait_until(&what, async || {
            Ok(oracle::condition(&self.status().await?, "Ready")
                .is_some_and(|ready| ready["status"] == "True"))
        });
        if let Err(failure) = waited.await {
            let status = self.status().await?;
            let id = status["server"]["id"].as_u64().unwrap_or_default();
            // Of a real machine.
            let console = self.bed.cloud().console(id).unwrap_or_default();
            return Err(Failure::new(format!(
                "{failure}; its status is {status:#}{console}"
            )));
        }
        self.serves().await
    }

    /// The id of its server; for an instance that is Ready.
    ///
    /// # Errors
    /// Fails when its agent does not run there.
    pub async fn serves(&self) -> Outcome<u64> {
        let id = self.status().await?["server"]["id"]
            .as_u64()
            .ok_or_else(|| Failure::new("Ready without a server"))?;
        let speaks = || voices::speaks(&self.bed.cloud(), id);
        if self.bed.has_real_machines() {
            // They are looked at from outside, now and then.
            let what = format!("the agent of {} is seen on server {id}", self.name);
            self.bed.wait_until(&what, async || Ok(speaks())).await?;
        }
        ensure(speaks(), || {
            format!(
                "{} is Ready and its agent does not run on server {id}",
                self.name
            )
        })?;
        Ok(id)
    }

    /// Waits for a condition with a status and a reason; answers its message.
    ///
    /// # Errors
    /// Fails at the deadline.
    pub async fn condition(&self, kind: &str, status: &str, reason: &str) -> Outcome<String> {
        self.bed
            .condition(
                ("AgentInstance", Some(TENANT), &self.name),
                kind,
                status,
                reason,
            )
            .await
    }

    /// Waits until one of its conditions says all of these words; answers that condition.
    ///
    /// # Errors
    /// Fails at the deadline.
    pub async fn told(&self, words: &[&str]) -> Outcome<Value> {
        self.bed
            .told(("AgentInstance", Some(TENANT), &self.name), words)
            .await
    }

    /// A file on its server.
    ///
    /// # Errors
    /// Fails when it has no server.
    pub async fn file(&self, path: &str) -> Outcome<Option<String>> {
        let root = self.bed.cloud().machine(self.server().await?)?.root;
        Ok(std::fs::read_to_string(root.join(path.trim_start_matches('/'))).ok())
    }

    /// Waits until a file on its server holds a text.
    ///
    /// # Errors
    /// Fails at the deadline.
    pub async fn has_in_file(&self, path: &str, text: &str) -> Outcome {
        let what = format!(
            "{path} on the server of {} holds what was declared",
            self.name
        );
        self.bed
            .wait_until(&what, async || {
                Ok(self
                    .file(path)
                    .await?
                    .is_some_and(|content| content.contains(text)))
            })
            .await
    }

    /// What a command, run as root on its real machine, writes; it must end well.
    ///
    /// # Errors
    /// Fails when the machine is not up, or with what the command says.
    pub async fn shell(&self, command: &str) -> Outcome<String> {
        let shell = Shell {
            command: command.to_owned(),
            ..Shell::default()
        };
        run_in(&self.bed.cloud(), self.server().await?, &shell).await
    }

    /// The same as the agent's user.
    ///
    /// # Errors
    /// As [`Self::shell`].
    pub async fn shell_as_agent(&self, command: &str) -> Outcome<String> {
        let shell = Shell {
            command: command.to_owned(),
            user: Some("agent".to_owned()),
            ..Shell::default()
        };
        run_in(&self.bed.cloud(), self.server().await?, &shell).await
    }

    /// Orders something of its server at Hetzner, as a person would in the Console; answers what Hetzner does.
    ///
    /// # Errors
    /// Fails with what the API says.
    pub async fn act(&self, command: &str, body: Value) -> Outcome<Value> {
        let path = format!("/servers/{}/actions/{command}", self.server().await?);
        self.bed.at_hetzner("POST", &path, &body).await
    }

    /// Waits until a condition is True.
    ///
    /// # Errors
    /// Fails at the deadline.
    pub async fn is(&self, kind: &str) -> Outcome {
        let what = format!("{} is {kind}", self.name);
        self.bed
            .wait_until(&what, async || {
                Ok(oracle::condition(&self.status().await?, kind)
                    .is_some_and(|found| found["status"] == "True"))
            })
            .await
    }

    async fn server(&self) -> Outcome<u64> {
        let id = self.status().await?["server"]["id"].as_u64();
        id.ok_or_else(|| Failure::new(format!("{} has no server", self.name)))
    }

    /// Sets an annotation, as the admin.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn annotate(&self, key: &str, value: &str) -> Outcome {
        let patch = json!({"metadata": {"annotations": {key: value}}});
        self.bed
            .cluster
            .merge("AgentInstance", Some(TENANT), &self.name, patch)
            .await
    }

    /// Asks for its deletion.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn delete(&self) -> Outcome {
        self.bed
            .cluster
            .delete("AgentInstance", Some(TENANT), &self.name)
            .await
    }

    /// Waits until the object is gone.
    ///
    /// # Errors
    /// Fails at the deadline.
    pub async fn gone(&self) -> Outcome {
        let what = format!("{} is gone", self.name);
        self.bed
            .wait_until(&what, async || Ok(self.object().await?.is_none()))
            .await
            .map_err(|failure| {
                let left: Vec<_> = self
                    .bed
                    .cloud()
                    .servers()
                    .iter()
                    .map(|server| server["name"].clone())
                    .collect();
                Failure::new(format!("{failure}; servers left: {left:?}"))
            })
    }
}
