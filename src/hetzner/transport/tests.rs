use super::super::stub::{Reply, TOKEN, client, permit, serve};
use super::super::{Budget, Class, Lane, ServerId};
use super::*;
use serde_json::json;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The error of a DELETE that is answered so.
async fn failed_delete(answer: impl Fn() -> Reply + Send + Sync + 'static) -> Error {
    let endpoint = serve(move |_| answer()).await;
    client(&endpoint)
        .delete_server(permit(), ServerId(7))
        .await
        .unwrap_err()
}

#[tokio::test]
async fn request_carries_token_agent_and_path_and_its_answer_is_read() {
    let seen = Arc::new(Mutex::new(String::new()));
    let noted = Arc::clone(&seen);
    let endpoint = serve(move |request| {
        request.clone_into(&mut noted.lock().unwrap());
        Reply::json("200 OK", &json!({"servers": [{"id": 42}], "meta": {"pagination": {"next_page": null, "total_entries": 1}}}))
    })
    .await;
    let page = client(&endpoint)
        .servers_page(permit(), "a/b=c", 2)
        .await
        .unwrap();
    assert_eq!(
        (page.servers[0].id, page.next_page, page.total_entries),
        (ServerId(42), None, Some(1))
    );
    let seen = seen.lock().unwrap().to_ascii_lowercase();
    assert!(
        seen.starts_with(
            "get /v1/servers?label_selector=a%2fb%3dc&per_page=50&sort=id%3aasc&page=2 "
        ),
        "{seen}"
    );
    assert!(seen.contains(&format!(
        "authorization: bearer {}",
        TOKEN.to_ascii_lowercase()
    )));
    assert!(seen.contains("user-agent: agentfleet/"));
}

#[tokio::test]
async fn connection_reset_leaves_a_mutation_unknown() {
    let error = failed_delete(|| Reply::Reset).await;
    assert_eq!(
        (error.outcome(), error.class()),
        (Outcome::Unknown, Class::Transient)
    );
    assert_eq!((error.code(), error.status()), (&ErrorCode::NoAnswer, None));
}

#[tokio::test]
async fn refused_connection_is_a_request_never_sent() {
    // Nobody listens on a port that was just given back.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let error = client(&endpoint)
        .delete_server(permit(), ServerId(7))
        .await
        .unwrap_err();
    assert_eq!(
        (error.outcome(), error.code()),
        (Outcome::Refused, &ErrorCode::NotSent)
    );
}

#[tokio::test]
async fn silent_server_and_slow_body_run_into_the_timeout_and_stay_unknown() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"action\"".to_vec();
    for sent in [Vec::new(), head] {
        let endpoint = serve(move |_| Reply::Hang(sent.clone())).await;
        let impatient = Client::new(&endpoint, TOKEN.into(), Duration::from_millis(200)).unwrap();
        let error = impatient
            .delete_server(permit(), ServerId(7))
            .await
            .unwrap_err();
        assert_eq!(
            (error.outcome(), error.code()),
            (Outcome::Unknown, &ErrorCode::NoAnswer)
        );
    }
}

#[tokio::test]
async fn truncated_and_foreign_bodies_of_a_success_stay_unknown() {
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"action\":".to_vec();
    let error = failed_delete(move || Reply::Bytes(cut.clone())).await;
    assert_eq!(
        (error.outcome(), error.status()),
        (Outcome::Unknown, Some(200))
    );
    for body in ["", "<html>ok</html>", "{}", r#"{"action":{"id":1"#] {
        let error = failed_delete(move || Reply::http("200 OK", "", body)).await;
        assert_eq!(
            (error.outcome(), error.code()),
            (Outcome::Unknown, &ErrorCode::Unreadable),
            "{body}"
        );
    }
}

#[tokio::test]
async fn oversized_answer_is_not_read_to_its_end() {
    let error = failed_delete(|| Reply::http("200 OK", "", &" ".repeat(MAX_BODY + 1))).await;
    assert_eq!(
        (error.outcome(), error.code()),
        (Outcome::Unknown, &ErrorCode::Unreadable)
    );
}

#[tokio::test]
async fn html_of_a_gateway_counts_by_its_status() {
    let error = failed_delete(|| {
        Reply::http(
            "502 Bad Gateway",
            "x-correlation-id: c-1\r\n",
            "<html>502</html>",
        )
    })
    .await;
    assert_eq!(
        (error.outcome(), error.status(), error.correlation_id()),
        (Outcome::Unknown, Some(502), Some("c-1"))
    );
}

#[tokio::test]
async fn redirect_is_not_followed() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let error = failed_delete(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        Reply::http("307 Temporary Redirect", "location: /v1/servers/7\r\n", "")
    })
    .await;
    assert_eq!(
        (error.outcome(), error.status()),
        (Outcome::Unknown, Some(307))
    );
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn throttled_answer_shows_no_part_of_the_token_and_pauses_the_budget() {
    let message = format!(
        "Limit of '3600' requests per hour for token '{}…' reached.",
        &TOKEN[..32]
    );
    let body =
        json!({"error": {"code": "rate_limit_exceeded", "message": message, "details": null}});
    let endpoint = serve(move |_| Reply::json("429 Too Many Requests", &body)).await;
    let budget = Budget::new();
    let permit = budget
        .try_acquire(Lane::Delete, "a", Instant::now())
        .ok()
        .unwrap();
    let error = client(&endpoint)
        .delete_server(permit, ServerId(7))
        .await
        .unwrap_err();
    assert_eq!(
        (error.outcome(), error.class()),
        (Outcome::Refused, Class::Throttled)
    );
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains(&TOKEN[..6]), "{shown}");
    }
    let view = budget.view(Instant::now());
    assert_eq!((view.limit, view.left), (Some(3600), Some(0)));
    assert!(view.paused_until.is_some());
}

#[tokio::test]
async fn headers_reach_the_budget_even_if_the_body_does_not() {
    let cut = b"HTTP/1.1 200 OK\r\nratelimit-limit: 7200\r\nratelimit-remaining: 55\r\ncontent-length: 9\r\n\r\n{".to_vec();
    let endpoint = serve(move |_| Reply::Bytes(cut.clone())).await;
    let budget = Budget::new();
    let permit = budget
        .try_acquire(Lane::Other, "a", Instant::now())
        .ok()
        .unwrap();
    assert!(
        client(&endpoint)
            .get_server(permit, ServerId(1))
            .await
            .is_err()
    );
    let view = budget.view(Instant::now());
    assert_eq!(view.limit, Some(7200));
    assert!((55..60).contains(&view.left.unwrap()));
}

#[tokio::test]
async fn delete_without_a_body_is_read() {
    let endpoint = serve(|_| Reply::Bytes(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())).await;
    client(&endpoint)
        .delete_ssh_key(permit(), super::super::SshKeyId(3))
        .await
        .unwrap();
}

#[test]
fn client_shows_no_token_and_refuses_bad_endpoints() {
    let client = client("https://api.hetzner.cloud/v1");
    assert!(!format!("{client:?}").contains(&TOKEN[..6]));
    for endpoint in ["api.hetzner.cloud", "ftp://x", "https://user:secret@x/v1"] {
        let error = Client::new(endpoint, TOKEN.into(), Duration::from_secs(1)).unwrap_err();
        assert!(!format!("{error:?}").contains("secret"));
    }
    assert!(Client::new("https://x", "line\nbreak".into(), Duration::from_secs(1)).is_err());
}

#[test]
fn created_id_is_found_in_answers_of_creates() {
    assert_eq!(
        created_id(br#"{"server":{"id":7,"name":"x"},"root_password":"p"}"#),
        Some(7)
    );
    assert_eq!(created_id(br#"{"firewall":{"id":8}}"#), Some(8));
    assert_eq!(created_id(br#"{"ssh_key":{"id":9}}"#), Some(9));
    assert_eq!(created_id(br#"{"action":{"id":9}}"#), None);
}

/// What a subscriber of one test has written.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn mutations_are_logged_with_span_id_and_outcome_and_without_bodies() {
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // A scoped subscriber would race with call sites that other tests register.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let endpoint = serve(|request| {
        if request.starts_with("POST /v1/servers ") {
            return Reply::json(
                "201 Created",
                &json!({"server": {"id": 42}, "root_password": "hunter2hunter2"}),
            );
        }
        let refusal =
            json!({"error": {"code": "locked", "message": format!("token '{}'", &TOKEN[..32])}});
        Reply::json("423 Locked", &refusal)
    })
    .await;
    let request = super::super::CreateServer {
        name: "n".into(),
        server_type: "t".into(),
        location: "l".into(),
        image: super::super::ImageId(1),
        ssh_keys: vec![],
        user_data: "boot-proof-key".into(),
        labels: super::super::Labels::new(),
        firewalls: vec![],
        networks: vec![],
        public_net: super::super::PublicNetRequest {
            enable_ipv4: true,
            enable_ipv6: true,
        },
        start_after_create: true,
    };
    let client = client(&endpoint);
    let span = tracing::info_span!("step", instance = "ns/agent", incarnation = 3);
    let entered = span.enter();
    client.create_server(permit(), &request).await.unwrap();
    client
        .delete_server(permit(), ServerId(7))
        .await
        .unwrap_err();
    client.get_server(permit(), ServerId(7)).await.unwrap_err();
    drop(entered);
    let log = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("hetzner mutation") && line.contains("ns/agent"))
        .collect();
    assert_eq!(lines.len(), 2, "a GET is no mutation: {log}");
    assert!(lines.iter().all(|line| line.contains("incarnation=3")));
    assert!(
        lines[0].contains("id=42") && lines[0].contains(r#"outcome="done""#),
        "{log}"
    );
    assert!(lines[0].contains(r#"correlation_id="abc-1""#), "{log}");
    assert!(
        lines[1].contains("id=7") && lines[1].contains(r#"outcome="refused""#),
        "{log}"
    );
    for secret in ["boot-proof-key", "hunter2", &TOKEN[..6]] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test]
async fn whoever_counts_is_told_of_each_request_once_with_its_template_lane_and_code() {
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let note = |told: &Arc<Mutex<Vec<String>>>| {
        let told = Arc::clone(told);
        move |exchange: &Exchange<'_>| {
            let code = match exchange.code {
                Ok(status) => status.to_string(),
                Err(code) => code.as_str().to_owned(),
            };
            let (route, lane) = (exchange.route, exchange.lane);
            told.lock()
                .unwrap()
                .push(format!("{route} {lane:?} {code}"));
        }
    };
    let refusal = r#"{"error":{"code":"not_found","message":"x"}}"#;
    for (status, body) in [("200 OK", "<html>"), ("404 Not Found", refusal)] {
        let endpoint = serve(move |_| Reply::http(status, "", body)).await;
        let client = client(&endpoint).telling(note(&told));
        let asked = client.get_server(permit(), ServerId(7)).await;
        assert!(asked.is_err());
    }
    let nobody = client("http://127.0.0.1:1").telling(note(&told));
    assert!(nobody.delete_server(permit(), ServerId(7)).await.is_err());
    let expected = [
        "GET /servers/{id} Other unreadable",
        "GET /servers/{id} Other not_found",
        "DELETE /servers/{id} Other not_sent",
    ];
    assert_eq!(*told.lock().unwrap(), expected);
}
