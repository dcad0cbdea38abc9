//! The master key Secret against a real API server.

use agentfleet::api::AgentInstance;
use agentfleet::fleet::{FleetError, MASTER_KEY_SECRET, load_or_create};
use agentfleet::kube_ext::apply_status;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, PostParams};
use secrecy::ExposeSecret as _;
use serde_json::json;

use crate::control_plane::{clients_and_namespace, only_user_of_instances};

#[tokio::test]
async fn first_start_makes_the_master_key_and_later_starts_find_it() {
    let _alone = only_user_of_instances().await;
    let (clients, namespace) = clients_and_namespace().await;

    let first = load_or_create(&clients, &namespace, None).await.unwrap();
    let later = load_or_create(&clients, &namespace, None).await.unwrap();

    let namespaces: Api<Namespace> = Api::all(clients.read.clone());
    assert_eq!(
        first.name,
        namespaces.get("kube-system").await.unwrap().uid().unwrap()
    );
    assert_eq!(first.name, later.name);
    assert_eq!(
        first.master_key.expose_secret(),
        later.master_key.expose_secret()
    );
    let secret = Api::<Secret>::namespaced(clients.read, &namespace)
        .get(MASTER_KEY_SECRET)
        .await
        .unwrap();
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
    assert_eq!(
        secret.labels()["app.kubernetes.io/managed-by"],
        "agentfleet"
    );
}

#[tokio::test]
async fn operators_that_start_together_share_one_master_key() {
    let _alone = only_user_of_instances().await;
    let (clients, namespace) = clients_and_namespace().await;

    let together = futures::future::join_all(
        (0..8).map(|_| load_or_create(&clients, &namespace, Some("shared"))),
    )
    .await;

    let keys: Vec<_> = together
        .into_iter()
        .map(|fleet| fleet.unwrap().master_key.expose_secret().to_vec())
        .collect();
    assert!(keys.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn name_by_flag_counts_at_the_first_start_and_cannot_change() {
    let _alone = only_user_of_instances().await;
    let (clients, namespace) = clients_and_namespace().await;
    let bad = load_or_create(&clients, &namespace, Some("no label")).await;
    assert!(matches!(bad, Err(FleetError::InvalidName(_))), "{bad:?}");

    assert_eq!(
        load_or_create(&clients, &namespace, Some("blue"))
            .await
            .unwrap()
            .name,
        "blue"
    );

    assert_eq!(
        load_or_create(&clients, &namespace, None)
            .await
            .unwrap()
            .name,
        "blue"
    );
    let renamed = load_or_create(&clients, &namespace, Some("green")).await;
    assert!(
        matches!(renamed, Err(FleetError::OtherFleet { .. })),
        "{renamed:?}"
    );
}

#[tokio::test]
async fn master_key_lost_ends_with_one_clear_line() {
    let _alone = only_user_of_instances().await;
    let (clients, namespace) = clients_and_namespace().await;
    let instances: Api<AgentInstance> = Api::namespaced(clients.write.clone(), &namespace);
    let instance =
        serde_json::from_value(json!({"metadata": {"name": "one"}, "spec": {"className": "c"}}))
            .unwrap();
    let instance: AgentInstance = instances
        .create(&PostParams::default(), &instance)
        .await
        .unwrap();
    let reported = apply_status(
        &instances,
        "agentfleet",
        "one",
        &instance.resource_version().unwrap(),
        json!({"phase": "Pending"}),
    )
    .await
    .unwrap();
    let version = reported.object.resource_version().unwrap();

    // A status that tells of no server is no reason to refuse.
    let (_, elsewhere) = clients_and_namespace().await;
    load_or_create(&clients, &elsewhere, None).await.unwrap();

    apply_status(
        &instances,
        "agentfleet-records",
        "one",
        &version,
        json!({"voice": {"epoch": 1}}),
    )
    .await
    .unwrap();
    let lost = load_or_create(&clients, &namespace, None)
        .await
        .unwrap_err()
        .to_string();
    instances
        .delete("one", &DeleteParams::default())
        .await
        .unwrap();

    assert!(
        lost.starts_with(&format!(
            "the master key is lost: Secret {namespace}/agentfleet-master-key does not exist"
        )),
        "{lost}"
    );
    assert!(
        lost.contains(&format!("{namespace}/one"))
            && lost.contains("restore this Secret from its backup"),
        "{lost}"
    );
    assert_eq!(lost.lines().count(), 1);
    let secrets: Api<Secret> = Api::namespaced(clients.read, &namespace);
    assert!(secrets.get_opt(MASTER_KEY_SECRET).await.unwrap().is_none());
}

#[tokio::test]
async fn damaged_master_key_secret_is_not_replaced() {
    let (clients, namespace) = clients_and_namespace().await;
    let secrets: Api<Secret> = Api::namespaced(clients.write.clone(), &namespace);
    let mut secret = Secret::default();
    secret.metadata.name = Some(MASTER_KEY_SECRET.into());
    secret.data = Some(
        [
            ("key".into(), ByteString(b"canary".to_vec())),
            ("fleet".into(), ByteString(b"blue".to_vec())),
        ]
        .into(),
    );
    let damaged = secrets
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();

    let error = load_or_create(&clients, &namespace, None)
        .await
        .unwrap_err()
        .to_string();

    assert!(
        error.contains("less than 32 bytes") && !error.contains("canary"),
        "{error}"
    );
    assert_eq!(
        secrets
            .get(MASTER_KEY_SECRET)
            .await
            .unwrap()
            .resource_version(),
        damaged.resource_version()
    );
}
