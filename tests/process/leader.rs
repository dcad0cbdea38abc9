//! The Lease against a real API server.

use std::time::{Duration, Instant};

use agentfleet::kube_ext::clients;
use agentfleet::leader::{Candidate, Leadership, Timing};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, Config};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::control_plane::{clients_and_namespace, config, eventually};
use crate::partition::{Link, link};

const LEASE: &str = "agentfleet";
const SHORT: Timing = Timing {
    lease: Duration::from_secs(3),
    renew: Duration::from_millis(500),
    deadline: Duration::from_secs(2),
};
/// Nobody gets this Lease by waiting, so who gets it was given it.
const LONG: Timing = Timing {
    lease: Duration::from_hours(1),
    ..SHORT
};

struct Running {
    leadership: Leadership,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

fn leases(client: Client, namespace: &str) -> Api<Lease> {
    Api::namespaced(client, namespace)
}

fn run(leases: Api<Lease>, identity: &str, timing: Timing) -> Running {
    let (leadership, candidate) = Candidate::new(leases, LEASE, identity, timing).unwrap();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(candidate.run(async { drop(stopped.await) }));
    Running {
        leadership,
        stop,
        task,
    }
}

async fn acquired(leadership: &Leadership) {
    tokio::time::timeout(Duration::from_mins(3), leadership.acquired())
        .await
        .expect("the lease is not acquired within 3 minutes");
}

#[tokio::test]
async fn only_one_of_two_candidates_holds_the_lease() {
    let (clients, namespace) = clients_and_namespace().await;
    let leases = leases(clients.write, &namespace);
    let one = run(leases.clone(), "one", LONG);
    let two = run(leases.clone(), "two", LONG);
    let record = async || leases.get(LEASE).await.unwrap().spec.unwrap();
    tokio::select! {
        () = acquired(&one.leadership) => {}
        () = acquired(&two.leadership) => {}
    }
    let first = record().await;

    for _ in 0..3 {
        let renewed = record().await.renew_time;
        eventually("the holder renews", async || {
            assert!(!(one.leadership.holds() && two.leadership.holds()));
            record().await.renew_time != renewed
        })
        .await;
    }

    let last = record().await;
    assert_eq!(
        (last.holder_identity, last.lease_transitions),
        (first.holder_identity, first.lease_transitions)
    );
}

#[tokio::test]
async fn released_lease_is_taken_without_waiting_for_its_end() {
    let (clients, namespace) = clients_and_namespace().await;
    let leases = leases(clients.write, &namespace);
    let one = run(leases.clone(), "one", LONG);
    acquired(&one.leadership).await;
    let two = run(leases.clone(), "two", LONG);

    one.stop.send(()).unwrap();
    one.task.await.unwrap();

    assert!(!one.leadership.holds());
    acquired(&two.leadership).await;
    assert_eq!(
        leases
            .get(LEASE)
            .await
            .unwrap()
            .spec
            .unwrap()
            .holder_identity
            .as_deref(),
        Some("two")
    );
}

#[tokio::test]
async fn stopping_a_standby_leaves_the_lease_with_its_holder() {
    let (clients, namespace) = clients_and_namespace().await;
    let leases = leases(clients.write, &namespace);
    let one = run(leases.clone(), "one", LONG);
    acquired(&one.leadership).await;
    let two = run(leases.clone(), "two", LONG);

    two.stop.send(()).unwrap();
    two.task.await.unwrap();

    assert_eq!(
        leases
            .get(LEASE)
            .await
            .unwrap()
            .spec
            .unwrap()
            .holder_identity
            .as_deref(),
        Some("one")
    );
}

#[tokio::test]
async fn holder_stops_when_another_is_written_into_the_record() {
    let (clients, namespace) = clients_and_namespace().await;
    let leases = leases(clients.write, &namespace);
    let one = run(leases.clone(), "one", LONG);
    acquired(&one.leadership).await;

    let person = json!({"spec": {"holderIdentity": "person"}});
    leases
        .patch(LEASE, &PatchParams::default(), &Patch::Merge(person))
        .await
        .unwrap();

    tokio::time::timeout(Duration::from_secs(30), one.leadership.lost())
        .await
        .unwrap();
    assert_eq!(
        leases
            .get(LEASE)
            .await
            .unwrap()
            .spec
            .unwrap()
            .holder_identity
            .as_deref(),
        Some("person")
    );
}

#[tokio::test]
async fn deleted_lease_is_made_again_by_its_holder() {
    let (clients, namespace) = clients_and_namespace().await;
    let leases = leases(clients.write, &namespace);
    let one = run(leases.clone(), "one", LONG);
    acquired(&one.leadership).await;

    leases
        .delete(LEASE, &DeleteParams::default())
        .await
        .unwrap();

    eventually("the lease is there again", async || {
        leases.get_opt(LEASE).await.unwrap().is_some()
    })
    .await;
    acquired(&one.leadership).await;
}

/// Cuts the holder off and returns when it knew that it had lost, and when the other won.
async fn partition(how: Link) -> (Instant, Instant) {
    let (clients_of_two, namespace) = clients_and_namespace().await;
    let (linked, state): (Config, _) = link(&config().await).await;
    let one = run(
        leases(clients(&linked).unwrap().write, &namespace),
        "one",
        SHORT,
    );
    acquired(&one.leadership).await;
    let two = run(leases(clients_of_two.write, &namespace), "two", SHORT);

    state.send_replace(how);

    let lost = async {
        one.leadership.lost().await;
        Instant::now()
    };
    let won = async {
        acquired(&two.leadership).await;
        assert!(!one.leadership.holds());
        Instant::now()
    };
    tokio::join!(lost, won)
}

#[tokio::test]
async fn holder_whose_packets_vanish_has_lost_before_another_wins() {
    let (lost, won) = partition(Link::Silent).await;
    assert!(lost < won);
}

#[tokio::test]
async fn holder_whose_connections_break_has_lost_before_another_wins() {
    let (lost, won) = partition(Link::Closed).await;
    assert!(lost < won);
}

#[tokio::test]
async fn holder_that_was_cut_off_comes_back_as_a_standby() {
    let (clients_of_two, namespace) = clients_and_namespace().await;
    let (linked, state) = link(&config().await).await;
    let one = run(
        leases(clients(&linked).unwrap().write, &namespace),
        "one",
        SHORT,
    );
    acquired(&one.leadership).await;
    let two = run(leases(clients_of_two.write, &namespace), "two", SHORT);
    state.send_replace(Link::Closed);
    acquired(&two.leadership).await;

    state.send_replace(Link::Open);
    two.stop.send(()).unwrap();
    two.task.await.unwrap();

    acquired(&one.leadership).await;
}
