//! What happens to instances is told to one receiver outside, each transition once, whatever becomes of the operator and the receiver.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::LOCATION},
    response::{IntoResponse as _, Response},
    routing::any,
};
use bed::{Bed, Call, Moment, Options, Outcome, Pace, ensure, manifests, oracle, wait_until};
use hetzner_sim::{GuestFaults, MachineFaults};
use serde_json::{Value, json};

const KEY: &str = "whsec_SGFsZiBhIGJsb2NrIG9mIGJ5dGVzLCBubyBtb3JlLg==";
/// As some receivers have it in their URL.
const TOKEN: &str = "url-token-5d1f0a";
/// In place of a status code.
const NEVER: u16 = 0;

/// What was posted.
#[derive(Clone)]
struct Posted {
    path: String,
    headers: Value,
    body: String,
    taken: bool,
}

impl Posted {
    fn field(&self, pointer: &str) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        let field = body.pointer(pointer).and_then(Value::as_str);
        field.unwrap_or_default().to_owned()
    }

    /// The last word of its type.
    fn kind(&self) -> String {
        let kind = self.field("/type");
        kind.trim_start_matches("dev.agentfleet.instance.")
            .to_owned()
    }
}

/// Takes events, or does not.
#[derive(Clone)]
struct Receiver {
    address: SocketAddr,
    posted: Arc<Mutex<Vec<Posted>>>,
    answer: Arc<AtomicU16>,
}

async fn take(State(receiver): State<Receiver>, request: axum::extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20)
        .await
        .unwrap_or_default();
    let code = receiver.answer.load(Ordering::SeqCst);
    receiver.all().push(Posted {
        path: parts.uri.path().to_owned(),
        headers: written(&parts.headers),
        body: String::from_utf8_lossy(&body).into_owned(),
        taken: code == 204,
    });
    if code == NEVER {
        std::future::pending::<()>().await;
    }
    let status = StatusCode::from_u16(code).unwrap_or_default();
    (status, [(LOCATION, "/elsewhere")]).into_response()
}

fn written(headers: &HeaderMap) -> Value {
    let text = |value: &axum::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let named = headers
        .iter()
        .map(|(name, value)| (name.to_string(), json!(text(value))));
    Value::Object(named.collect())
}

impl Receiver {
    async fn start(answer: u16) -> Outcome<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let receiver = Self {
            address: listener.local_addr()?,
            posted: Arc::default(),
            answer: Arc::new(AtomicU16::new(answer)),
        };
        let routes = Router::new()
            .fallback(any(take))
            .with_state(receiver.clone());
        tokio::spawn(async { axum::serve(listener, routes).await });
        Ok(receiver)
    }

    /// A bed whose operator tells this receiver.
    async fn bed(&self, flags: &[&str]) -> Outcome<Bed> {
        self.bed_that_waits(Pace::default().unreachable, flags)
            .await
    }

    /// The same, where a server may be out of reach for so long.
    async fn bed_that_waits(&self, unreachable: &'static str, flags: &[&str]) -> Outcome<Bed> {
        let dir = bed::scratch("notification")?;
        let key = dir.join("webhook-key");
        fs::write(&key, format!("{KEY}\n"))?;
        let url = format!("http://{}/hook?token={TOKEN}", self.address);
        let key = key.display().to_string();
        let own = ["--webhook-url", &url, "--webhook-secret-file", &key];
        let bed = Bed::with(Options {
            pace: Pace {
                unreachable,
                ..Pace::default()
            },
            flags: own
                .iter()
                .chain(flags)
                .map(|flag| (*flag).to_owned())
                .collect(),
            dir: Some(dir),
            ..Options::default()
        })
        .await?;
        bed.apply_basics().await?;
        let mut class = manifests::class();
        class["spec"]["health"] = probes();
        bed.change(&class).await?;
        Ok(bed)
    }

    fn answers(&self, code: u16) {
        self.answer.store(code, Ordering::SeqCst);
    }

    fn posted(&self) -> Vec<Posted> {
        self.all().clone()
    }

    fn all(&self) -> MutexGuard<'_, Vec<Posted>> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ids of all posts of a kind, taken or not.
    fn ids(&self, kind: &str) -> Vec<String> {
        let posted = self.posted().into_iter();
        let of_kind = posted.filter(|posted| posted.kind() == kind);
        of_kind.map(|posted| posted.field("/id")).collect()
    }

    /// Kinds of the events that were taken, in order; one that was taken twice counts once.
    fn told(&self) -> Vec<String> {
        let mut ids = vec![];
        let mut told = vec![];
        for posted in self.posted().into_iter().filter(|posted| posted.taken) {
            let id = posted.field("/id");
            if !ids.contains(&id) {
                ids.push(id);
                told.push(posted.kind());
            }
        }
        told
    }

    async fn was_told(&self, expected: &[&str]) -> Outcome {
        let what = format!("{expected:?} was told");
        let waited = wait_until(&what, async || Ok(self.told() == expected)).await;
        waited.map_err(|failure| bed::Failure::new(format!("{failure}, not {:?}", self.told())))
    }

    async fn was_posted(&self, kind: &str, times: usize) -> Outcome {
        let what = format!("{kind} is posted {times} times");
        wait_until(&what, async || Ok(self.ids(kind).len() >= times)).await
    }
}

/// Holds what was posted against the example of the documentation, and each with one byte changed.
fn verify(posted: &[Posted]) -> Outcome {
    const DRIVER: &str = r#"
import json, sys
for headers, body in json.load(sys.stdin):
    verify(sys.argv[1], headers, body.encode())
    try:
        verify(sys.argv[1], headers, body.replace("1", "2", 1).encode())
    except ValueError:
        continue
    sys.exit("a changed body passes for a signed one")
"#;
    let docs = include_str!("../../docs/notifications.md");
    let example = docs.split("```python\n").nth(1).unwrap_or_default();
    let example = example.split("```").next().unwrap_or_default();
    let mut python = Command::new("python3")
        .args(["-c", &format!("{example}{DRIVER}"), KEY])
        .stdin(Stdio::piped())
        .spawn()?;
    let all: Vec<_> = posted.iter().map(|one| (&one.headers, &one.body)).collect();
    if let Some(mut stdin) = python.stdin.take() {
        stdin.write_all(json!(all).to_string().as_bytes())?;
    }
    ensure(python.wait()?.success(), || "a signature is wrong".into())
}

/// How agents are asked here.
fn probes() -> Value {
    json!({"interval": "1s", "failureThreshold": 2})
}

async fn suspend(bed: &Bed, name: &str, suspend: bool) -> Outcome {
    let spec = json!({"spec": {"suspend": suspend}});
    bed.cluster
        .merge("AgentInstance", Some(bed::TENANT), name, spec)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_is_told_in_order_and_signed_and_then_nothing_more() -> Outcome {
    let receiver = Receiver::start(204).await?;
    let bed = receiver.bed_that_waits("2s", &[]).await?;
    // More than it takes: a reset that is slow is no reason to give up.
    let mut class = manifests::class();
    class["spec"]["health"] = probes();
    class["spec"]["lifecycle"]["recovery"]["reboots"] = json!(4);
    bed.change(&class).await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    receiver.was_told(&["ready"]).await?;
    let frozen = MachineFaults {
        frozen: true,
        ..MachineFaults::default()
    };
    bed.cloud().set_machine_faults(server, frozen)?;
    receiver.was_told(&["ready", "recovered"]).await?;
    suspend(&bed, "one", true).await?;
    receiver
        .was_told(&["ready", "recovered", "suspended"])
        .await?;
    suspend(&bed, "one", false).await?;
    let all = ["ready", "recovered", "suspended", "resumed", "deleted"];
    receiver.was_told(&all[..4]).await?;
    oracle::calm(&bed).await?;
    one.delete().await?;
    one.gone().await?;
    receiver.was_told(&all).await?;

    let posted = receiver.posted();
    assert_eq!(posted.len(), all.len(), "each is posted once");
    verify(&posted)?;
    let uid = posted[0].field("/data/uid");
    for event in &posted {
        assert_eq!(event.path, "/hook");
        assert_eq!(
            event.headers["content-type"],
            "application/cloudevents+json"
        );
        assert_eq!(event.headers["webhook-id"], event.field("/id"));
        assert_eq!(event.field("/subject"), format!("{}/one", bed::TENANT));
        assert_eq!(event.field("/data/uid"), uid);
        assert!(!event.body.contains("canary-"), "{}", event.body);
    }
    assert!(!bed.operator.log().contains(TOKEN));
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_told_by_its_name() -> Outcome {
    let receiver = Receiver::start(204).await?;
    let bed = receiver.bed(&[]).await?;
    let server = bed.create("one").await?.ready().await?;
    let mut told = vec!["ready", "updateFailed"];
    receiver.was_told(&told[..1]).await?;
    let full = MachineFaults {
        guest: GuestFaults {
            disk_full: true,
            ..GuestFaults::default()
        },
        ..MachineFaults::default()
    };
    bed.cloud().set_machine_faults(server, full)?;
    bed.apply_secret("one").await?;
    receiver.was_told(&told).await?;
    bed.cloud().vanish(server)?;
    told.push("stalled");
    receiver.was_told(&told).await?;
    for (name, level, kind) in [("kept", "Keep", "failed"), ("gone", "Remove", "rolledBack")] {
        let mut class = manifests::class();
        class["metadata"]["name"] = json!(name);
        class["spec"]["lifecycle"] = json!({"onProvisionFailure": level});
        class["spec"]["agent"]["install"] = json!(["exit 7"]);
        bed.change(&class).await?;
        bed.apply_secret(name).await?;
        let mut instance = manifests::instance(bed::TENANT, name);
        instance["spec"]["className"] = json!(name);
        bed.cluster.apply(&instance).await?;
        told.push(kind);
        receiver.was_told(&told).await?;
    }
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_taken_is_told_by_the_next_operator_under_the_same_id() -> Outcome {
    let receiver = Receiver::start(307).await?;
    let mut bed = receiver.bed(&[]).await?;
    bed.create("one").await?.ready().await?;
    receiver.was_posted("ready", 2).await?;
    let before = receiver.ids("ready").len();
    bed.operator.restart()?;
    receiver.was_posted("ready", before + 1).await?;
    receiver.answers(204);
    receiver.was_told(&["ready"]).await?;
    let mut ids = receiver.ids("ready");
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    bed.wait_until("the status says so", async || {
        let status = bed.instance("one").status().await?;
        Ok(status["notified"]["id"] == ids[0] && status["notified"]["event"] == "Ready")
    })
    .await?;

    bed.operator.stop().await?;
    let post = Call {
        site: "webhook".into(),
        call: "POST".into(),
        occurrence: 1,
    };
    bed.operator.start_to_crash_at(&post, Moment::After)?;
    suspend(&bed, "one", true).await?;
    wait_until("the operator crashes", async || bed.operator.has_crashed()).await?;
    assert_eq!(receiver.told(), ["ready", "suspended"]);
    bed.operator.start()?;
    receiver.was_posted("suspended", 2).await?;
    bed.instance("one").delete().await?;
    bed.instance("one").gone().await?;
    receiver
        .was_told(&["ready", "suspended", "deleted"])
        .await?;
    let elsewhere = receiver
        .posted()
        .iter()
        .filter(|one| one.path != "/hook")
        .count();
    assert_eq!(elsewhere, 0, "no redirect is followed");
    let log = bed.operator.log();
    assert!(log.contains("does not take events") && !log.contains(TOKEN));
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn i7_a_receiver_that_never_answers_keeps_nobody_waiting() -> Outcome {
    let receiver = Receiver::start(NEVER).await?;
    let flags = ["--webhook-timeout", "1h", "--webhook-patience", "2s"];
    let bed = receiver.bed(&flags).await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    receiver.was_posted("ready", 1).await?;
    let two = bed.create("two").await?;
    two.ready().await?;
    one.delete().await?;
    one.gone().await?;
    bed.wait_until("it is logged", async || {
        let words = "was not told that this instance was deleted";
        Ok(bed.operator.log().contains(words))
    })
    .await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_gone_for_ever_is_told_nothing_more() -> Outcome {
    let receiver = Receiver::start(410).await?;
    let bed = receiver.bed(&["--webhook-patience", "1h"]).await?;
    let one = bed.create("one").await?;
    one.ready().await?;
    receiver.was_posted("ready", 1).await?;
    one.delete().await?;
    one.gone().await?;
    assert_eq!(receiver.posted().len(), 1);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_subscription_takes_away_is_told_before_it_comes_and_each_one_time() -> Outcome {
    let receiver = Receiver::start(307).await?;
    let mut bed = receiver.bed(&[]).await?;
    let mut secret = manifests::secret(bed::TENANT, "one", "API_KEY", &bed.canaries.fresh());
    secret["metadata"]["labels"] = json!({"agentfleet.dev/customer": "cus_1"});
    bed.cluster.apply(&secret).await?;
    let says = |state: &str, grace: &str| {
        json!({
            "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription", "metadata": {"namespace": bed::TENANT, "name": "one"},
            "spec": {
                "customerId": "cus_1", "plan": manifests::CLASS, "state": state, "secretName": "one",
                "gracePeriod": grace, "retention": "4s",
            },
        })
    };
    bed.cluster.apply(&says("Active", "1h")).await?;
    bed.instance("one").ready().await?;
    bed.cluster.apply(&says("PastDue", "1h")).await?;
    receiver.was_posted("suspendsSoon", 2).await?;
    bed.operator.restart()?;
    receiver.answers(204);
    wait_until("it is taken", async || {
        Ok(receiver.told().contains(&"suspendsSoon".to_owned()))
    })
    .await?;
    let mut ids = receiver.ids("suspendsSoon");
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    bed.wait_until("the status says so", async || {
        let one = bed
            .cluster
            .get("Subscription", Some(bed::TENANT), "one")
            .await?;
        let status = one.unwrap_or_default()["status"].clone();
        Ok(status["notified"] == status["announced"])
    })
    .await?;
    bed.cluster.apply(&says("Unpaid", "1h")).await?;
    bed.instance("one").gone().await?;
    for kind in ["terminatesSoon", "terminated", "deleted"] {
        receiver.was_posted(kind, 1).await?;
    }
    let ends = receiver
        .posted()
        .into_iter()
        .find(|posted| posted.kind() == "terminatesSoon");
    let ends = ends
        .map(|posted| posted.field("/data/message"))
        .unwrap_or_default();
    assert!(ends.contains("all of its data"), "{ends}");

    // An agent whose Subscription is gone: nobody but its instance knows what was told.
    let mut left = says("Active", "1h");
    left["spec"]["retention"] = json!("20s");
    bed.cluster.apply(&left).await?;
    bed.instance("one").ready().await?;
    bed.cluster
        .delete("Subscription", Some(bed::TENANT), "one")
        .await?;
    bed.wait_until("its end is announced", async || {
        let one = bed.instance("one").object().await?.unwrap_or_default();
        let told = &one["metadata"]["annotations"]["agentfleet.dev/termination-announced"];
        Ok(told == "Taken")
    })
    .await?;
    bed.operator.restart()?;
    bed.instance("one").gone().await?;
    receiver.was_posted("deleted", 2).await?;
    let counts = ["terminatesSoon", "terminated"].map(|kind| receiver.ids(kind).len());
    assert_eq!(counts, [2, 2]);
    let events = bed.cluster.list("Event").await?;
    let soon = events.iter().filter(|event| {
        event["reason"] == "TerminatesSoon" && event["regarding"]["kind"] == "AgentInstance"
    });
    assert_eq!(soon.count(), 1);
    bed.delete_all().await?;
    bed.finish().await
}
