//! Writes with a version against a real API server.

use agentfleet::api::{AgentInstance, FINALIZER};
use agentfleet::kube_ext::{
    CallError, Clients, Events, add_finalizer, apply_status, remove_finalizer,
};
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use k8s_openapi::api::events::v1::Event as Told;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::events::{Event, EventType};
use kube::{Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::MutexGuard;

use crate::control_plane::{clients_and_namespace, eventually, only_user_of_instances};

const RECORDS: &str = "agentfleet-records";
const REPORT: &str = "agentfleet";

/// One instance in a namespace of its own, deleted at the end of the test by [`Fixture::end`].
struct Fixture {
    api: Api<AgentInstance>,
    _alone: MutexGuard<'static, ()>,
}

impl Fixture {
    async fn new() -> (Self, AgentInstance) {
        let alone = only_user_of_instances().await;
        let (clients, namespace) = clients_and_namespace().await;
        let api: Api<AgentInstance> = Api::namespaced(clients.write.clone(), &namespace);
        let instance = api
            .create(&PostParams::default(), &instance("one"))
            .await
            .unwrap();
        (Self { api, _alone: alone }, instance)
    }

    async fn apply(
        &self,
        manager: &str,
        version: &str,
        fields: Value,
    ) -> Result<(AgentInstance, bool), CallError> {
        let applied = apply_status(&self.api, manager, "one", version, fields).await?;
        Ok((applied.object, applied.written))
    }

    async fn end(self) {
        self.api
            .delete_collection(&DeleteParams::default(), &ListParams::default())
            .await
            .unwrap();
    }
}

fn instance(name: &str) -> AgentInstance {
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"className": "c"}})).unwrap()
}

fn version(instance: &AgentInstance) -> String {
    instance.resource_version().unwrap()
}

fn voice(epoch: i64) -> Value {
    json!({"voice": {"incarnation": 1, "epoch": epoch}})
}

#[tokio::test]
async fn status_apply_on_a_stale_view_changes_nothing() {
    let (fixture, seen) = Fixture::new().await;
    let (newer, _) = fixture
        .apply(RECORDS, &version(&seen), voice(2))
        .await
        .unwrap();

    let stale = fixture.apply(RECORDS, &version(&seen), voice(1)).await;
    let stale_but_same = fixture.apply(RECORDS, &version(&seen), voice(2)).await;

    assert!(matches!(stale, Err(CallError::Stale { .. })), "{stale:?}");
    assert!(
        matches!(stale_but_same, Err(CallError::Stale { .. })),
        "{stale_but_same:?}"
    );
    assert_eq!(
        version(&fixture.api.get("one").await.unwrap()),
        version(&newer)
    );
    fixture.end().await;
}

#[tokio::test]
async fn write_ahead_records_survive_every_status_report() {
    let (fixture, seen) = Fixture::new().await;
    let (recorded, _) = fixture
        .apply(RECORDS, &version(&seen), voice(7))
        .await
        .unwrap();

    let (reported, _) = fixture
        .apply(
            REPORT,
            &version(&recorded),
            json!({"phase": "Ready", "incarnation": 1}),
        )
        .await
        .unwrap();
    let (again, _) = fixture
        .apply(REPORT, &version(&reported), json!({"phase": "Failed"}))
        .await
        .unwrap();

    let status = again.status.unwrap();
    assert_eq!(status.voice.unwrap().epoch, 7);
    assert_eq!(
        (status.phase.as_deref(), status.incarnation),
        (Some("Failed"), None),
        "a field that its manager leaves out goes"
    );
    fixture.end().await;
}

#[tokio::test]
async fn same_status_again_is_not_written() {
    let (fixture, seen) = Fixture::new().await;
    let (first, written) = fixture
        .apply(
            REPORT,
            &version(&seen),
            json!({"phase": "Ready", "server": null}),
        )
        .await
        .unwrap();
    assert!(written);

    let (second, written) = fixture
        .apply(REPORT, &version(&first), json!({"phase": "Ready"}))
        .await
        .unwrap();

    assert!(!written);
    assert_eq!(version(&first), version(&second));
    fixture.end().await;
}

#[tokio::test]
async fn status_of_a_missing_instance_is_gone_and_not_made() {
    let (fixture, seen) = Fixture::new().await;
    fixture
        .api
        .delete("one", &DeleteParams::default())
        .await
        .unwrap();

    let gone = fixture.apply(RECORDS, &version(&seen), voice(1)).await;

    assert!(matches!(gone, Err(CallError::Gone { .. })), "{gone:?}");
    assert!(fixture.api.get_opt("one").await.unwrap().is_none());
    fixture.end().await;
}

#[tokio::test]
async fn status_that_the_schema_refuses_is_invalid_and_not_transient() {
    let (fixture, seen) = Fixture::new().await;

    let unknown = fixture
        .apply(REPORT, &version(&seen), json!({"nonsense": 1}))
        .await;
    let mistyped = fixture
        .apply(REPORT, &version(&seen), json!({"phase": "x".repeat(33)}))
        .await;

    assert!(
        matches!(unknown, Err(CallError::Invalid { .. })),
        "{unknown:?}"
    );
    assert!(
        matches!(mistyped, Err(CallError::Invalid { .. })),
        "{mistyped:?}"
    );
    fixture.end().await;
}

#[tokio::test]
async fn finalizers_of_others_stay() {
    let (fixture, _) = Fixture::new().await;
    let others = json!({"metadata": {"finalizers": ["example.com/other"]}});
    let seen = fixture
        .api
        .patch("one", &PatchParams::default(), &Patch::Merge(others))
        .await
        .unwrap();

    add_finalizer(&fixture.api, &seen, FINALIZER).await.unwrap();
    let with = fixture.api.get("one").await.unwrap();
    add_finalizer(&fixture.api, &with, FINALIZER).await.unwrap();
    assert_eq!(
        version(&fixture.api.get("one").await.unwrap()),
        version(&with),
        "what is there is not written again"
    );
    assert_eq!(with.finalizers(), ["example.com/other", FINALIZER]);

    remove_finalizer(&fixture.api, &with, FINALIZER)
        .await
        .unwrap();
    let without = fixture.api.get("one").await.unwrap();
    assert_eq!(without.finalizers(), ["example.com/other"]);

    remove_finalizer(&fixture.api, &without, "example.com/other")
        .await
        .unwrap();
    fixture.end().await;
}

#[tokio::test]
async fn finalizer_is_not_put_on_another_object_of_the_same_name() {
    let (fixture, seen) = Fixture::new().await;
    fixture
        .api
        .delete("one", &DeleteParams::default())
        .await
        .unwrap();

    let missing = add_finalizer(&fixture.api, &seen, FINALIZER).await;
    assert!(
        matches!(missing, Err(CallError::Gone { .. })),
        "{missing:?}"
    );
    assert!(fixture.api.get_opt("one").await.unwrap().is_none());

    let namesake = fixture
        .api
        .create(&PostParams::default(), &instance("one"))
        .await
        .unwrap();
    let refused = add_finalizer(&fixture.api, &seen, FINALIZER).await;
    assert!(
        matches!(refused, Err(CallError::Stale { .. })),
        "{refused:?}"
    );
    assert_eq!(
        version(&fixture.api.get("one").await.unwrap()),
        version(&namesake)
    );
    fixture.end().await;
}

#[tokio::test]
async fn finalizer_is_not_taken_off_on_a_stale_view() {
    let (fixture, seen) = Fixture::new().await;
    add_finalizer(&fixture.api, &seen, FINALIZER).await.unwrap();
    let old = fixture.api.get("one").await.unwrap();
    fixture
        .apply(RECORDS, &version(&old), voice(1))
        .await
        .unwrap();

    let stale = remove_finalizer(&fixture.api, &old, FINALIZER).await;

    assert!(matches!(stale, Err(CallError::Stale { .. })), "{stale:?}");
    let now = fixture.api.get("one").await.unwrap();
    assert_eq!(now.finalizers(), [FINALIZER]);
    remove_finalizer(&fixture.api, &now, FINALIZER)
        .await
        .unwrap();
    fixture.end().await;
}

fn event(reason: &str, note: &str) -> Event {
    Event {
        type_: EventType::Warning,
        reason: reason.into(),
        note: Some(note.into()),
        action: "Create".into(),
        secondary: None,
    }
}

async fn config_map(clients: &Clients, namespace: &str) -> ObjectReference {
    let metadata = ObjectMeta {
        name: Some("subject".into()),
        ..ObjectMeta::default()
    };
    let api: Api<ConfigMap> = Api::namespaced(clients.write.clone(), namespace);
    let subject = api
        .create(
            &PostParams::default(),
            &ConfigMap {
                metadata,
                ..ConfigMap::default()
            },
        )
        .await
        .unwrap();
    subject.object_ref(&())
}

#[tokio::test]
async fn new_message_under_a_known_reason_is_an_event_of_its_own() {
    let (clients, namespace) = clients_and_namespace().await;
    let subject = config_map(&clients, &namespace).await;
    let (events, writer) = Events::new(clients.write.clone(), "agentfleet-0");

    events.publish(&subject, event("Stalled", "first message"));
    events.publish(&subject, event("Stalled", "first message"));
    events.publish(&subject, event("Stalled", "second message"));
    drop(events);
    writer.run().await;

    let told: Api<Told> = Api::namespaced(clients.read, &namespace);
    let mut told = told.list(&ListParams::default()).await.unwrap().items;
    told.sort_by_key(|event| event.note.clone());
    let notes: Vec<_> = told
        .iter()
        .map(|event| event.note.as_deref().unwrap())
        .collect();
    assert_eq!(notes, ["first message", "second message"]);
    assert_eq!(told[0].reporting_controller.as_deref(), Some("agentfleet"));
    assert_eq!(told[0].reporting_instance.as_deref(), Some("agentfleet-0"));
    assert_eq!(told[0].regarding.as_ref().unwrap().uid, subject.uid);
}

#[tokio::test]
async fn event_that_is_refused_does_not_stop_the_next() {
    let (clients, namespace) = clients_and_namespace().await;
    let subject = config_map(&clients, &namespace).await;
    let nowhere = ObjectReference {
        namespace: Some("no-such-namespace".into()),
        ..subject.clone()
    };
    let (events, writer) = Events::new(clients.write.clone(), "agentfleet-0");
    let writer = tokio::spawn(writer.run());

    events.publish(&nowhere, event("Stalled", "to nowhere"));
    events.publish(&subject, event("Stalled", "to somewhere"));

    let told: Api<Told> = Api::namespaced(clients.read, &namespace);
    eventually("the second event is written", async || {
        told.list(&ListParams::default()).await.unwrap().items.len() == 1
    })
    .await;
    drop(events);
    writer.await.unwrap();
}
