//! The program of `examples/billing` as a process of its own, with the rights that its manifest gives it and nothing else; and what is sent to it.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::bed::Bed;
use crate::cluster::Cluster;
use crate::failure::{Failure, Outcome, ensure};
use crate::operator::{answer_of, status_of, write_private};
use crate::{place, wait};

const PROGRAM: &str = "examples/billing/billing.py";
const MANIFEST: &str = "examples/billing/deployment.yaml";
/// The namespace and the account in the manifest.
const NAMESPACE: &str = "agents";
const ACCOUNT: &str = "billing";

/// Who sends a message.
#[derive(Clone, Copy, Debug)]
pub enum Sender {
    /// Stripe's webhooks.
    Stripe,
    /// The module of WHMCS.
    Whmcs,
}

impl Sender {
    const fn path_and_header(self) -> (&'static str, &'static str) {
        match self {
            Self::Stripe => ("/stripe", "Stripe-Signature"),
            Self::Whmcs => ("/whmcs", "Whmcs-Signature"),
        }
    }
}

/// The program's process; it is killed when this goes.
pub struct Billing {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
    user: String,
    secret: String,
}

impl Billing {
    /// Starts it for the Subscriptions of a namespace, under the account of its own manifest.
    ///
    /// # Errors
    /// Fails when it does not answer, or with what the API server says.
    pub async fn start(bed: &Bed, namespace: &str) -> Outcome<Self> {
        let address: SocketAddr = (Ipv4Addr::LOCALHOST, place::free_port()?).into();
        let dir = bed.dir().join(format!("billing-{}", address.port()));
        std::fs::create_dir(&dir)?;
        give_account(&bed.cluster, namespace)?;
        let access = bed.cluster.kubeconfig_of(namespace, ACCOUNT)?;
        let (kubeconfig, log) = (dir.join("kubeconfig"), dir.join("log"));
        write_private(&kubeconfig, &access.to_string())?;
        let (file, secret) = (dir.join("secret"), bed.canaries.fresh());
        write_private(&file, &secret)?;
        let child = program(address, namespace, &file)?
            .env("KUBECONFIG", &kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut this = Self {
            child,
            address,
            log,
            user: format!("system:serviceaccount:{namespace}:{ACCOUNT}"),
            secret,
        };
        this.answers().await?;
        Ok(this)
    }

    async fn answers(&mut self) -> Outcome {
        let request = "GET /healthz HTTP/1.0\r\n\r\n";
        let waited = wait::wait_until("the billing system's program answers", async || {
            let ended = self.child.try_wait()?;
            ensure(ended.is_none(), || format!("it ended: {ended:?}"))?;
            Ok(status_of(self.address, request).await == Some(200))
        });
        let outcome = waited.await;
        outcome.map_err(|failure| Failure::new(format!("{failure}: {}", self.log())))
    }

    /// Its user name at the API server.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The header that signs a body at a time.
    pub fn sign(&self, at: i64, body: &str) -> String {
        let mac = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes());
        let signed = mac.map(|mac| mac.chain_update(format!("{at}.{body}")).finalize());
        let code = signed.map(|code| hex::encode(code.into_bytes()));
        format!("t={at},v1={}", code.unwrap_or_default())
    }

    /// Sends a message as its sender signs it; answers status code and text.
    ///
    /// # Errors
    /// Fails when there is no answer.
    pub async fn send(&self, sender: Sender, message: &Value) -> Outcome<(u16, String)> {
        let body = message.to_string();
        let signature = self.sign(Timestamp::now().as_second(), &body);
        self.send_signed(sender, &signature, &body).await
    }

    /// Sends a message that has to be taken, again while that is asked for; answers what was done.
    ///
    /// # Errors
    /// Fails when it is refused.
    pub async fn tell(&self, sender: Sender, message: &Value) -> Outcome<String> {
        let mut last = (0, String::new());
        wait::wait_until("a message is taken", async || {
            last = self.send(sender, message).await?;
            Ok(last.0 != 503)
        })
        .await?;
        ensure(last.0 == 200, || format!("{message}: {last:?}"))?;
        Ok(last.1.trim().to_owned())
    }

    /// Sends a body with a signature; answers status code and text.
    ///
    /// # Errors
    /// Fails when there is no answer.
    pub async fn send_signed(
        &self,
        sender: Sender,
        signature: &str,
        body: &str,
    ) -> Outcome<(u16, String)> {
        let (path, header) = sender.path_and_header();
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n{header}: {signature}\r\n\r\n{body}"
        );
        let answer = answer_of(self.address, &request).await;
        answer.ok_or_else(|| Failure::new(format!("no answer to {path}: {}", self.log())))
    }

    /// Fails when its log holds the secret that messages are signed with.
    ///
    /// # Errors
    /// As said.
    pub fn keeps_its_secret(&self) -> Outcome {
        ensure(!self.log().contains(&self.secret), || {
            "the secret stands in the log of the billing system's program".into()
        })
    }
}

impl Drop for Billing {
    fn drop(&mut self) {
        // It has ended or is about to; there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program for a namespace, which reads one secret for both senders.
fn program(listen: SocketAddr, namespace: &str, secret: &Path) -> Outcome<Command> {
    let mut command = Command::new(place::built("venv/bin/python", "venv")?);
    command
        .arg(place::project().join(PROGRAM))
        .args(["--listen", &listen.to_string()])
        .args(["--namespace", namespace])
        .arg("--stripe-secret")
        .arg(secret)
        .arg("--whmcs-secret")
        .arg(secret)
        // Wherever this runs, it is not in the cluster.
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(command)
}

/// Makes the account and the binding of the manifest, in another namespace than it names.
fn give_account(cluster: &Cluster, namespace: &str) -> Outcome {
    let documents = manifest(namespace)?;
    let wanted = documents
        .into_iter()
        .filter(|one| one["kind"] == "ServiceAccount" || one["kind"] == "RoleBinding");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": wanted.collect::<Vec<_>>()});
    cluster.kubectl_with(&["apply", "--filename", "-"], list.to_string().as_bytes())?;
    Ok(())
}

fn manifest(namespace: &str) -> Outcome<Vec<Value>> {
    let text = std::fs::read_to_string(place::project().join(MANIFEST))?;
    let here = format!("namespace: {namespace}");
    let text = text.replace(&format!("namespace: {NAMESPACE}"), &here);
    Ok(serde_saphyr::from_multiple(&text)?)
}

/// A customer's subscription at Stripe, and the events that it sends, each of a second of its own.
pub struct AtStripe {
    subscription: Value,
    at: i64,
}

impl AtStripe {
    /// One that is active, for an agent; it has a price of a plan, and is paid for a month.
    pub fn new(agent: &str, plan: &str) -> Self {
        let now = Timestamp::now().as_second();
        // So that what is sent lies behind us.
        let created = now - 3600;
        Self {
            subscription: json!({
                "id": format!("sub_{agent}"), "customer": format!("cus_{agent}"), "status": "active", "created": created, "metadata": {"agent": agent},
                "items": {"data": [{"price": {"lookup_key": plan}, "current_period_end": now + 30 * 86_400}]},
            }),
            at: created,
        }
    }

    /// Sets a field of it.
    pub fn set(&mut self, field: &str, value: Value) -> &mut Self {
        self.subscription[field] = value;
        self
    }

    /// Sets until when it is paid.
    pub fn paid_until(&mut self, at: Timestamp) -> &mut Self {
        self.subscription["items"]["data"][0]["current_period_end"] = json!(at.as_second());
        self
    }

    /// Sets what is paid for.
    pub fn plan(&mut self, plan: &str) -> &mut Self {
        self.subscription["items"]["data"][0]["price"]["lookup_key"] = json!(plan);
        self
    }

    /// The event `customer.subscription.…` of the next second, with a status.
    pub fn event(&mut self, kind: &str, status: &str) -> Value {
        self.set("status", json!(status));
        let subscription = self.subscription.clone();
        self.message(&format!("customer.subscription.{kind}"), &subscription)
    }

    /// The event `invoice.…` of the next second, about the present period.
    pub fn invoice(&mut self, kind: &str) -> Value {
        let one = &self.subscription;
        let end = &one["items"]["data"][0]["current_period_end"];
        let details = json!({"subscription": one["id"], "metadata": one["metadata"]});
        let invoice = json!({
            "parent": {"subscription_details": details}, "lines": {"data": [{"period": {"end": end}}]},
        });
        self.message(&format!("invoice.{kind}"), &invoice)
    }

    fn message(&mut self, kind: &str, object: &Value) -> Value {
        self.at += 1;
        let id = format!("evt_{}", self.at);
        json!({"id": id, "type": kind, "created": self.at, "data": {"object": object}})
    }
}
