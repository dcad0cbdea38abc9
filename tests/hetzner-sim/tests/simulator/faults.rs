//! Each fault of transport, as a client meets it and as the ledger knows it.

use crate::support::{ask, ask_as, control, wait_for, wish};
use hetzner_sim::{Config, Fault, FaultBody, FaultRule, Simulator, WhichAnswer};
use serde_json::{Value, json};

async fn with_fault(fault: Fault) -> Simulator {
    let simulator = Simulator::start(Config::default()).await.unwrap();
    simulator
        .control()
        .add_fault(FaultRule::next("POST", "/servers", fault));
    simulator
}

fn servers(simulator: &Simulator) -> usize {
    simulator.control().projects()[0].servers
}

#[tokio::test]
async fn a_status_without_commit_changes_nothing() {
    let status = 503;
    let (code, message, commit, body) = (None, None, false, FaultBody::Json);
    let simulator = with_fault(Fault::Status {
        status,
        code,
        message,
        commit,
        body,
    })
    .await;
    let answer = ask(&simulator, "POST", "/servers", &wish("a"))
        .await
        .unwrap();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "unavailable")
    );
    assert_eq!(servers(&simulator), 0);
    let next = ask(&simulator, "POST", "/servers", &wish("a"))
        .await
        .unwrap();
    assert_eq!(next.status, 201);
}

#[tokio::test]
async fn a_status_with_commit_hides_what_was_done() {
    let (code, message, commit, body) = (None, None, true, FaultBody::Html);
    let simulator = with_fault(Fault::Status {
        status: 502,
        code,
        message,
        commit,
        body,
    })
    .await;
    let answer = ask(&simulator, "POST", "/servers", &wish("a"))
        .await
        .unwrap();
    assert_eq!(answer.status, 502);
    assert!(answer.text.starts_with("<html>"));
    assert_eq!(servers(&simulator), 1);
    let again = ask(&simulator, "POST", "/servers", &wish("a"))
        .await
        .unwrap();
    assert_eq!(
        (again.status, again.code().as_str()),
        (409, "uniqueness_error")
    );
}

#[tokio::test]
async fn an_empty_body_is_a_body_without_json() {
    let (code, message, commit, body) = (None, None, false, FaultBody::Empty);
    let simulator = with_fault(Fault::Status {
        status: 504,
        code,
        message,
        commit,
        body,
    })
    .await;
    let answer = ask(&simulator, "POST", "/servers", &wish("a"))
        .await
        .unwrap();
    assert_eq!((answer.status, answer.text.as_str()), (504, ""));
}

#[tokio::test]
async fn a_reset_before_commit_leaves_nothing() {
    let simulator = with_fault(Fault::ResetBeforeCommit).await;
    assert!(
        ask(&simulator, "POST", "/servers", &wish("a"))
            .await
            .is_err()
    );
    assert_eq!(servers(&simulator), 0);
    let requests = simulator.control().requests();
    assert_eq!((requests[0].status, requests[0].count), (0, 1));
}

#[tokio::test]
async fn a_reset_after_commit_leaves_a_server() {
    let simulator = with_fault(Fault::ResetAfterCommit).await;
    assert!(
        ask(&simulator, "POST", "/servers", &wish("a"))
            .await
            .is_err()
    );
    assert_eq!(servers(&simulator), 1);
    assert_eq!(simulator.control().mutations(0).len(), 1);
}

#[tokio::test]
async fn a_late_commit_comes_after_the_reset() {
    let simulator = with_fault(Fault::ResetThenCommit { seconds: 0.2 }).await;
    assert!(
        ask(&simulator, "POST", "/servers", &wish("a"))
            .await
            .is_err()
    );
    wait_for("the late commit", || {
        (servers(&simulator) == 1).then_some(())
    })
    .await;
    assert_eq!(simulator.control().mutations(0)[0].status, 201);
}

#[tokio::test]
async fn a_late_commit_after_the_end_never_comes() {
    let simulator = with_fault(Fault::ResetThenCommit { seconds: 3600.0 }).await;
    assert!(
        ask(&simulator, "POST", "/servers", &wish("a"))
            .await
            .is_err()
    );
    simulator.shutdown().await;
}

#[tokio::test]
async fn a_request_delivered_twice_is_carried_out_twice() {
    let simulator = with_fault(Fault::DeliverTwice {
        answer: WhichAnswer::Second,
    })
    .await;
    let answer = ask(&simulator, "POST", "/servers", &wish("a"))
        .await
        .unwrap();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (409, "uniqueness_error")
    );
    assert_eq!(servers(&simulator), 1);
    let first = Fault::DeliverTwice {
        answer: WhichAnswer::First,
    };
    simulator
        .control()
        .add_fault(FaultRule::next("POST", "/servers", first));
    let answer = ask(&simulator, "POST", "/servers", &wish("b"))
        .await
        .unwrap();
    assert_eq!(answer.status, 201);
}

#[tokio::test]
async fn a_truncated_body_breaks_off_after_commit() {
    let simulator = with_fault(Fault::TruncatedBody).await;
    assert!(
        ask(&simulator, "POST", "/servers", &wish("a"))
            .await
            .is_err()
    );
    assert_eq!(servers(&simulator), 1);
}

#[tokio::test]
async fn a_delay_after_commit_lets_others_see_the_server_first() {
    let simulator = with_fault(Fault::Delay {
        seconds: 0.3,
        after_commit: true,
    })
    .await;
    let slow = async {
        let answer = ask(&simulator, "POST", "/servers", &wish("a"))
            .await
            .unwrap();
        (answer.status, servers(&simulator))
    };
    let other = wait_for("the server", || (servers(&simulator) == 1).then_some(()));
    let ((status, _), ()) = tokio::join!(slow, other);
    assert_eq!(status, 201);
}

#[tokio::test]
async fn the_drained_bucket_answers_429_with_part_of_the_token() {
    let token = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ01";
    let config = Config {
        tokens: vec![token.to_owned()],
        rate_limit: 60,
        ..Config::default()
    };
    let simulator = Simulator::start(config).await.unwrap();
    let fine = ask_as(&simulator, token, "GET", "/servers", &Value::Null)
        .await
        .unwrap();
    assert_eq!(fine.headers["ratelimit-limit"], "60");
    assert_eq!(fine.headers["ratelimit-remaining"], "59");
    assert!(fine.headers.contains_key("ratelimit-reset"));
    assert!(fine.headers.contains_key("x-correlation-id"));
    simulator.control().drain(0, 0).unwrap();
    let limited = ask_as(&simulator, token, "GET", "/servers", &Value::Null)
        .await
        .unwrap();
    assert_eq!(
        (limited.status, limited.code().as_str()),
        (429, "rate_limit_exceeded")
    );
    assert!(limited.text.contains("abcdefghijklmnopqrstuvwxyz012345…"));
    assert!(!limited.text.contains(token));
}

#[tokio::test]
async fn tokens_open_their_own_project_and_readers_only_read() {
    let mut config = Config {
        tokens: vec!["one".to_owned(), "two".to_owned()],
        ..Config::default()
    };
    config.read_only_tokens = vec!["reader".to_owned()];
    let simulator = Simulator::start(config).await.unwrap();
    ask_as(&simulator, "one", "POST", "/servers", &wish("a"))
        .await
        .unwrap();
    for (token, total) in [("one", 1), ("two", 0), ("reader", 1)] {
        let list = ask_as(&simulator, token, "GET", "/servers", &Value::Null)
            .await
            .unwrap();
        assert_eq!(
            list.json()["meta"]["pagination"]["total_entries"],
            total,
            "{token}"
        );
    }
    let refused = ask_as(&simulator, "reader", "POST", "/servers", &wish("b"))
        .await
        .unwrap();
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (401, "token_readonly")
    );
    simulator.control().revoke_token("one");
    let refused = ask_as(&simulator, "one", "GET", "/servers", &Value::Null)
        .await
        .unwrap();
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (401, "unauthorized")
    );
}

#[tokio::test]
async fn the_ledger_holds_user_data_apart_from_the_mutations() {
    let simulator = Simulator::start(Config::default()).await.unwrap();
    let mut wanted = wish("a");
    wanted["user_data"] = "#cloud-config\n# canary".into();
    let answer = ask(&simulator, "POST", "/servers", &wanted).await.unwrap();
    let id = answer.json()["server"]["id"].as_u64();
    let control = simulator.control();
    let mutation = &control.mutations(0)[0];
    assert_eq!(
        (mutation.seq, mutation.route.as_str(), mutation.id),
        (1, "/servers", id)
    );
    assert!(!mutation.body.to_string().contains("canary"));
    assert_eq!(mutation.body["user_data"]["bytes"], 22);
    assert!(control.user_data_of_mutation(1).unwrap().contains("canary"));
}

#[tokio::test]
async fn what_happens_behind_the_operators_back_is_no_mutation() {
    let simulator = Simulator::start(Config::default()).await.unwrap();
    let control = simulator.control();
    let id = control.create_server(0, &wish("foreign")).unwrap();
    control
        .set_labels(id, &[("a".to_owned(), "b".to_owned())].into())
        .unwrap();
    control.block_ipv4(id, true).unwrap();
    let address = || control.servers()[0]["public_net"]["ipv4"]["ip"].clone();
    let former = address();
    control.change_ipv4(id, false).unwrap();
    assert_eq!(address(), Value::Null);
    control.change_ipv4(id, true).unwrap();
    assert!(address().is_string() && address() != former);
    control.block_ipv4(id, true).unwrap();
    control.power(id, false).unwrap();
    let shown = ask(&simulator, "GET", &format!("/servers/{id}"), &Value::Null)
        .await
        .unwrap();
    let server = &shown.json()["server"];
    assert_eq!(
        (&server["status"], &server["labels"]["a"]),
        (&"off".into(), &"b".into())
    );
    assert_eq!(server["public_net"]["ipv4"]["blocked"], true);
    control.vanish(id).unwrap();
    let gone = ask(&simulator, "GET", &format!("/servers/{id}"), &Value::Null)
        .await
        .unwrap();
    assert_eq!(gone.status, 404);
    assert!(control.mutations(0).is_empty());
    assert!(control.lives()[0].deleted.is_some());
}

#[tokio::test]
async fn a_client_that_gives_up_does_not_take_its_request_back() {
    let simulator = with_fault(Fault::Delay {
        seconds: 3.0,
        after_commit: false,
    })
    .await;
    let wanted = wish("a");
    let gives_up = ask(&simulator, "POST", "/servers", &wanted);
    let answer = tokio::time::timeout(std::time::Duration::from_secs(1), gives_up).await;
    assert!(answer.is_err());
    wait_for("the server", || (servers(&simulator) == 1).then_some(())).await;
}

#[tokio::test]
async fn a_test_in_another_language_has_the_same_control() {
    let simulator = Simulator::start(Config::default()).await.unwrap();
    let id = control(
        &simulator,
        "POST",
        "/servers",
        &json!({"server": wish("foreign")}),
    )
    .await["id"]
        .clone();
    let rule = json!({"method": "GET", "route": "/servers/{id}", "fault": {"kind": "status", "status": 500}});
    control(&simulator, "POST", "/faults", &rule).await;
    let path = format!("/servers/{id}");
    assert_eq!(
        ask(&simulator, "GET", &path, &Value::Null)
            .await
            .unwrap()
            .status,
        500
    );
    let faults = control(&simulator, "GET", "/faults", &Value::Null).await;
    assert_eq!(faults["faults"][0]["hits"], 1);
    control(&simulator, "POST", "/projects/0/drain", &json!({"left": 0})).await;
    assert_eq!(
        ask(&simulator, "GET", &path, &Value::Null)
            .await
            .unwrap()
            .status,
        429
    );
    let counts = control(&simulator, "GET", "/requests", &Value::Null).await;
    assert_eq!(counts["total"], 2);
    let bill = control(&simulator, "GET", "/billing", &Value::Null).await;
    assert_eq!(bill["projects"][0]["startedHours"], 1);
    control(&simulator, "DELETE", &path, &Value::Null).await;
    let lives = control(&simulator, "GET", "/lives", &Value::Null).await;
    assert_eq!(
        (&lives["lives"][0]["server"], &lives["lives"][0]["origin"]),
        (&id, &json!("control"))
    );
}
