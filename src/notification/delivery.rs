//! Brings events to the one receiver that the flags name.
//!
//! Beside the reconcilers and in a pool of its own, within a deadline: a receiver that is slow or dead keeps nobody waiting. Each event goes out
//! once; whether it goes out again is the plan's business. The URL may hold a password or a token, so no log or error ever shows it.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use jiff::Timestamp;
use reqwest::{StatusCode, Url, header::CONTENT_TYPE};
use secrecy::{ExposeSecret as _, SecretString};
use std::sync::Arc;
use tokio::sync::mpsc;

use super::{
    event::{Event, Subject},
    signature::{InvalidKeys, SigningKeys},
};
use crate::{
    agent_instance::desired::Identity, crash_point, guest::acts::Acts, kube_ext::error_chain,
    metrics::Metrics,
};

/// How many events are on their way at once.
const AT_ONCE: usize = 16;
/// `CloudEvents` in JSON, attributes and data in one body.
const CLOUD_EVENT: &str = "application/cloudevents+json";

/// What the flags say of the receiver.
pub struct Receiver {
    /// Where it takes events.
    pub url: SecretString,
    /// The file with the keys that events are signed with; it is read anew for each event, so that keys can be exchanged.
    pub keys: PathBuf,
    /// A file with certificates of authorities beside those that everybody trusts.
    pub authorities: Option<PathBuf>,
    /// How long it may take for one event.
    pub timeout: Duration,
}

/// Why a receiver cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// The URL is none, or not one for this.
    #[error("--webhook-url must be an http or https URL with a host")]
    Url,
    /// The file with the keys, or with certificates, cannot be read.
    #[error("cannot read {0}")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// The file holds no fit keys.
    #[error("--webhook-secret-file {0} is of no use")]
    Keys(PathBuf, #[source] InvalidKeys),
    /// The file holds no certificates.
    #[error("--webhook-ca-file {0} holds no certificates in PEM")]
    Authorities(PathBuf),
    /// No client can be made.
    #[error("cannot make a client for the webhook")]
    Client(#[source] reqwest::Error),
}

/// What became of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The receiver has it.
    Taken(Event),
    /// It may not have it.
    Failed(Event),
}

/// The keys of deliveries that are over.
pub type Ended = mpsc::UnboundedReceiver<Identity>;

/// Deliveries that are under way, if there is a receiver.
#[derive(Debug)]
pub struct Notifications {
    receiver: Option<Arc<Client>>,
    acts: Acts<Identity, Delivery>,
    metrics: Metrics,
}

struct Client {
    http: reqwest::Client,
    url: Url,
    keys: PathBuf,
    /// Whether the last event was not taken, so that the log tells of the first only.
    failing: AtomicBool,
    /// Whether the receiver said that it is gone for ever.
    gone: AtomicBool,
}

impl Notifications {
    /// Checks what can be checked before the first event.
    ///
    /// # Errors
    /// When the receiver cannot be used as the flags say.
    pub fn new(
        receiver: Option<Receiver>,
        metrics: Metrics,
    ) -> Result<(Self, Ended), ReceiverError> {
        let receiver = receiver.map(Client::new).transpose()?.map(Arc::new);
        let (acts, ended) = Acts::new(AT_ONCE);
        let notifications = Self {
            receiver,
            acts,
            metrics,
        };
        Ok((notifications, ended))
    }

    /// Whether there is somebody to tell.
    pub fn are_on(&self) -> bool {
        let receiver = self.receiver.as_ref();
        receiver.is_some_and(|receiver| !receiver.gone.load(Ordering::Relaxed))
    }

    /// Starts to bring an event, unless another of that instance is on its way.
    pub fn start(&self, instance: &Identity, event: Event, subject: Subject) {
        let Some(client) = self.receiver.clone() else {
            return;
        };
        let metrics = self.metrics.clone();
        let act = async move {
            let delivery = client.deliver(event, &subject).await;
            metrics.delivered(matches!(delivery, Delivery::Taken(_)));
            delivery
        };
        self.acts.start(instance.clone(), act);
    }

    /// Whether an event of an instance is on its way.
    pub fn is_busy(&self, instance: &Identity) -> bool {
        self.acts.is_running(instance)
    }

    /// What became of the last event of an instance, once.
    pub fn take(&self, instance: &Identity) -> Option<Delivery> {
        self.acts.take_result(instance)?.ok()
    }

    /// Drops what is on its way for an instance that is gone.
    pub fn forget(&self, instance: &Identity) {
        self.acts.forget(instance);
    }
}

impl Client {
    fn new(receiver: Receiver) -> Result<Self, ReceiverError> {
        let url: Url = receiver
            .url
            .expose_secret()
            .parse()
            .map_err(|_| ReceiverError::Url)?;
        if !["http", "https"].contains(&url.scheme()) || !url.has_host() {
            return Err(ReceiverError::Url);
        }
        let text = std::fs::read_to_string(&receiver.keys)
            .map_err(|error| ReceiverError::Unreadable(receiver.keys.clone(), error))?;
        SigningKeys::parse(&text.into())
            .map_err(|invalid| ReceiverError::Keys(receiver.keys.clone(), invalid))?;
        let builder = reqwest::Client::builder()
            .user_agent(concat!("agentfleet/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .tls_certs_merge(authorities(receiver.authorities.as_deref())?)
            .timeout(receiver.timeout);
        Ok(Self {
            http: builder.build().map_err(ReceiverError::Client)?,
            url,
            keys: receiver.keys,
            failing: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        })
    }

    async fn deliver(&self, event: Event, subject: &Subject) -> Delivery {
        let sent = crash_point::around("webhook", "POST", self.send(&event, subject)).await;
        match sent {
            Ok(()) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("the receiver of the webhook takes events again");
                }
                tracing::info!(
                    instance = %format_args!("{}/{}", subject.namespace, subject.name),
                    event = event.notice.as_str(), id = event.id, "told to the webhook"
                );
                Delivery::Taken(event)
            }
            Err(why) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        why,
                        "the receiver of the webhook does not take events; they wait"
                    );
                }
                Delivery::Failed(event)
            }
        }
    }

    async fn send(&self, event: &Event, subject: &Subject) -> Result<(), String> {
        let (body, time) = (event.json(subject), Timestamp::now().as_second());
        let keys = tokio::fs::read_to_string(&self.keys).await;
        let keys = keys.map_err(|error| format!("the file with its keys: {error}"))?;
        let keys = SigningKeys::parse(&keys.into());
        let keys = keys.map_err(|invalid| format!("the file with its keys: {invalid}"))?;
        let request = self
            .http
            .post(self.url.clone())
            .header(CONTENT_TYPE, CLOUD_EVENT)
            .header("webhook-id", &event.id)
            .header("webhook-timestamp", time)
            .header(
                "webhook-signature",
                keys.sign(&event.id, time, body.as_bytes()),
            )
            .body(body);
        let answer = request.send().await;
        self.verdict(
            answer
                .map_err(|error| error_chain(&error.without_url()))?
                .status(),
        )
    }

    fn verdict(&self, status: StatusCode) -> Result<(), String> {
        if status == StatusCode::GONE && !self.gone.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "the receiver of the webhook says that it is gone for ever (410): it is told nothing more until the operator is started again"
            );
        }
        if status.is_success() {
            Ok(())
        } else {
            Err(format!("it answers {}", status.as_u16()))
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

fn authorities(file: Option<&Path>) -> Result<Vec<reqwest::Certificate>, ReceiverError> {
    let Some(file) = file else { return Ok(vec![]) };
    let unreadable = |error| ReceiverError::Unreadable(file.to_owned(), error);
    let pem = std::fs::read(file).map_err(unreadable)?;
    match reqwest::Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(ReceiverError::Authorities(file.to_owned())),
    }
}
