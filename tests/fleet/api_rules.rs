//! What the API server refuses by the resources' own rules, with which words, and what `kubectl explain` tells of each field.

use bed::{Bed, Options, Outcome, TENANT, ensure, manifests};
use serde_json::{Value, json};

async fn bed() -> Outcome<Bed> {
    Bed::with(Options {
        operator: false,
        ..Options::default()
    })
    .await
}

/// A class with one thing changed.
fn class_with(pointer: &str, value: Value) -> Value {
    with(manifests::class(), pointer, value)
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
    if let Some(parent) = object.pointer_mut(parent) {
        parent[key] = value;
    }
    object
}

/// What is refused, and words that the refusal has.
type Refused = (Value, &'static str);

fn firewalls_that_are_refused() -> Vec<Refused> {
    vec![
        (
            class_with("/spec/firewall/sshFrom", json!(["everywhere"])),
            "firewall.sshFrom holds networks in CIDR form, such as 203.0.113.7/32",
        ),
        (
            class_with("/spec/firewall/sshFrom", json!([])),
            "spec.firewall.sshFrom",
        ),
        (
            class_with("/spec/firewall/healthFrom", json!(["1.2.3.4"])),
            "firewall.healthFrom holds networks in CIDR form",
        ),
        (
            class_with(
                "/spec/firewall/rules",
                json!([{"direction": "In", "protocol": "Icmp", "port": "80", "networks": ["0.0.0.0/0"]}]),
            ),
            "a firewall rule has a port exactly when its protocol is Tcp or Udp",
        ),
    ]
}

fn probes_that_are_refused() -> Vec<Refused> {
    let http = json!({"port": 8080});
    vec![
        (
            class_with(
                "/spec/health",
                json!({"http": http, "exec": {"command": "true"}}),
            ),
            "health has at most one of systemd, http and exec",
        ),
        (
            class_with("/spec/health", json!({"http": http})),
            "health.http and firewall.healthFrom belong together",
        ),
        (
            class_with("/spec/health", json!({"timeout": "2m"})),
            "health.timeout is between 1s and 1m",
        ),
        (
            class_with("/spec/health", json!({"interval": "0s"})),
            "health.interval is 1s or longer",
        ),
        (
            class_with("/spec/health", json!({"failureThreshold": 0})),
            "spec.health.failureThreshold",
        ),
    ]
}

fn agents_that_are_refused() -> Vec<Refused> {
    let unit = json!({"unit": "[Service]\n", "execStart": ["/usr/bin/sleep"]});
    vec![
        (
            class_with("/spec/agent/service", json!({})),
            "agent.service needs either execStart (and the other fields) or a whole unit",
        ),
        (
            class_with("/spec/agent/service", unit),
            "agent.service needs either execStart (and the other fields) or a whole unit",
        ),
        (
            class_with("/spec/agent/service/execStart", json!(["sleep"])),
            "agent.service.execStart must begin with the absolute path of a program",
        ),
        (
            class_with("/spec/agent/service/name", json!("agentfleet-x")),
            "agent.service.name must not begin with agentfleet",
        ),
        (
            class_with("/spec/agent/user", json!("root")),
            "agent.user must be a user of its own",
        ),
        (
            class_with("/spec/agent/cloudInit", json!("packages: [git]")),
            "let its first line be #cloud-config",
        ),
        (
            class_with("/spec/agent/update", json!(["make"])),
            "set agent.source, or leave out agent.update",
        ),
        (
            class_with("/spec/agent/secretFiles/0/key", json!("API_KEY")),
            "a secret file has exactly one of key (the raw value), env (an EnvironmentFile) and template",
        ),
        (
            class_with("/spec/agent/environment", json!({"LOG-LEVEL": "debug"})),
            "agent.environment holds variables whose names are letters, digits and _ and begin with no digit",
        ),
        (
            class_with("/spec/agent/secretFiles/0/mode", json!("777777")),
            "spec.agent.secretFiles[0].mode",
        ),
    ]
}

/// Fields of a service beside its `execStart`, and whether its agent has sudo.
fn service_with(fields: &Value, sudo: bool) -> Value {
    let mut class = class_with("/spec/agent/sudo", json!(sudo));
    let service = &mut class["spec"]["agent"]["service"];
    for (name, value) in fields.as_object().into_iter().flatten() {
        service[name] = value.clone();
    }
    class
}

fn services_that_are_refused() -> Vec<Refused> {
    let unit = json!({"unit": "[Service]\n", "restartSec": "5s"});
    vec![
        (
            class_with("/spec/agent/service", unit),
            "leave out all other fields but name",
        ),
        (
            service_with(&json!({"restartSteps": 5}), false),
            "agent.service.restartSteps and restartMaxDelaySec work together only",
        ),
        (
            service_with(&json!({"restartMaxDelaySec": "1m"}), false),
            "agent.service.restartSteps and restartMaxDelaySec work together only",
        ),
        (
            service_with(
                &json!({"restartSteps": 5, "restartSec": "1m30s", "restartMaxDelaySec": "1m"}),
                false,
            ),
            "restartMaxDelaySec must be longer than restartSec",
        ),
        (
            service_with(&json!({"protectHome": "Inaccessible"}), false),
            "set workingDirectory to a directory outside of /home",
        ),
        (
            service_with(&json!({"noNewPrivileges": true}), true),
            "agent.sudo does not work in a service with noNewPrivileges",
        ),
        (
            service_with(&json!({"restrictSUIDSGID": true}), true),
            "agent.sudo does not work in a service with noNewPrivileges",
        ),
        (
            service_with(&json!({"memoryMax": "lots"}), false),
            "spec.agent.service.memoryMax",
        ),
    ]
}

/// All that a service offers, as it belongs together.
fn hardened() -> Value {
    let service = json!({
        "restart": "OnAbnormal", "restartSec": "5s", "restartSteps": 5, "restartMaxDelaySec": "1m", "startLimitIntervalSec": "5m",
        "startLimitBurst": 5, "timeoutStopSec": "10s", "killMode": "Mixed", "killSignal": "SIGTERM", "privateTmp": true,
        "privateDevices": true, "noNewPrivileges": true, "protectSystem": "Usr", "protectHome": "ReadOnly", "protectKernelTunables": true,
        "protectControlGroups": true, "restrictSUIDSGID": true, "readWritePaths": ["/home/agent"], "memoryMax": "2G", "tasksMax": 512,
    });
    with(
        service_with(&service, false),
        "/metadata/name",
        json!("hardened"),
    )
}

fn rollouts_that_are_refused() -> Vec<Refused> {
    vec![
        (
            class_with(
                "/spec/lifecycle",
                json!({"rollout": {"maxUnavailable": "0%"}}),
            ),
            "lifecycle.rollout.maxUnavailable is 1 or more, or a part such as 10%",
        ),
        (
            class_with("/spec/lifecycle", json!({"rollout": {"maxSurge": 0}})),
            "lifecycle.rollout.maxSurge is 1 or more, or a part such as 10%",
        ),
        (
            class_with(
                "/spec/lifecycle",
                json!({"rollout": {"windows": [{"start": "02:00", "duration": "1s"}]}}),
            ),
            "lifecycle.rollout.windows: duration is between 1m and 168h",
        ),
        (
            class_with(
                "/spec/lifecycle",
                json!({"rollout": {"windows": [{"start": "24:00", "duration": "1h"}]}}),
            ),
            "spec.lifecycle.rollout.windows[0].start",
        ),
    ]
}

fn other_objects_that_are_refused() -> Vec<Refused> {
    let long = "a".repeat(64);
    vec![
        (
            class_with("/spec/labels", json!({"agentfleet.dev/fleet": "other"})),
            "labels must not begin with agentfleet.dev/",
        ),
        (
            class_with("/spec/lifecycle", json!({"provisionTimeout": "15 minutes"})),
            "spec.lifecycle.provisionTimeout",
        ),
        (
            class_with(
                "/spec/lifecycle",
                json!({"recovery": {"restarts": 8, "reboots": 2}}),
            ),
            "restarts, reboots and recreations are at most 10 together",
        ),
        (
            class_with(
                "/spec/lifecycle",
                json!({"rollout": {"strategy": "Replace"}}),
            ),
            "lifecycle.rollout.strategy Replace needs lifecycle.disk Disposable",
        ),
        (
            class_with(
                "/spec/lifecycle",
                json!({"disk": "Preserve", "rollout": {"strategy": "Replace"}}),
            ),
            "lifecycle.rollout.strategy Replace needs lifecycle.disk Disposable",
        ),
        (
            class_with("/spec/lifecycle", json!({"recovery": {"restarts": -1}})),
            "spec.lifecycle.recovery.restarts",
        ),
        (
            with(
                class_with("/spec/ipv4", json!(false)),
                "/spec/ipv6",
                json!(false),
            ),
            "allow at least one",
        ),
        (
            class_with("/metadata/name", json!(long.clone())),
            "the name of an AgentClass must have at most 63 characters",
        ),
        (
            with(
                manifests::project("main"),
                "/metadata/name",
                json!(long.clone()),
            ),
            "the name of a HetznerProject must have at most 63 characters",
        ),
        (
            with(manifests::project("main"), "/spec/maxServers", json!(-1)),
            "spec.maxServers",
        ),
        (
            with(
                manifests::instance(TENANT, "one"),
                "/metadata/name",
                json!(long),
            ),
            "the name of an AgentInstance must have at most 63 characters",
        ),
        (
            with(
                manifests::instance(TENANT, "one"),
                "/spec/className",
                json!(""),
            ),
            "spec.className",
        ),
        (
            with(
                manifests::instance(TENANT, "one"),
                "/spec/overrides",
                json!({"serverTypes": []}),
            ),
            "spec.overrides.serverTypes",
        ),
        (
            with(
                manifests::instance(TENANT, "one"),
                "/spec/environment",
                json!({"2ND_TOKEN": ""}),
            ),
            "environment holds variables whose names are letters, digits and _ and begin with no digit",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rule_refuses_is_told_in_a_sentence_that_says_what_to_write() -> Outcome {
    let bed = bed().await?;
    let refused = [
        firewalls_that_are_refused(),
        agents_that_are_refused(),
        probes_that_are_refused(),
        rollouts_that_are_refused(),
        services_that_are_refused(),
        other_objects_that_are_refused(),
    ];
    for (object, words) in refused.into_iter().flatten() {
        let said = bed.cluster.refusal(&object).await?;
        assert!(said.contains(words), "instead of {words:?}: {said}");
    }
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_write_is_taken_as_it_is() -> Outcome {
    let bed = bed().await?;
    for object in [
        manifests::project("main"),
        manifests::class(),
        hardened(),
        manifests::instance(TENANT, "one"),
    ] {
        bed.cluster.create(&object).await?;
    }
    bed.cluster
        .kubectl(&["apply", "--filename", "examples/quickstart"])?;
    bed.cluster
        .kubectl(&["apply", "--filename", "examples/rachel8"])?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_may_order_what_can_cost_a_disk() -> Outcome {
    let bed = bed().await?;
    bed.cluster
        .create(&manifests::instance(TENANT, "one"))
        .await?;
    let tenant = bed.tenant().await?;
    for annotation in ["adopt", "recreate", "confirm-termination", "release-hold"] {
        let patch =
            json!({"metadata": {"annotations": {format!("agentfleet.dev/{annotation}"): "1"}}});
        let refused = tenant
            .merge("AgentInstance", Some(TENANT), "one", patch)
            .await
            .expect_err(annotation)
            .to_string();
        let words = format!(
            "only somebody with the ClusterRole agentfleet-admin may set agentfleet.dev/{annotation}"
        );
        assert!(refused.contains(&words), "{refused}");
    }
    tenant
        .merge(
            "AgentInstance",
            Some(TENANT),
            "one",
            json!({"metadata": {"annotations": {"agentfleet.dev/restart": "1"}}}),
        )
        .await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_makes_no_sense_is_refused() -> Outcome {
    let bed = bed().await?;
    let good = json!({
        "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription", "metadata": {"namespace": TENANT, "name": "one"},
        "spec": {"customerId": "cus_1", "plan": "small", "state": "Active"},
    });
    let changed = |pointer, value| with(good.clone(), pointer, value);
    let refused: Vec<Refused> = vec![
        (changed("/spec/state", json!("Overdue")), "spec.state"),
        (changed("/spec/customerId", json!("a b")), "spec.customerId"),
        (changed("/spec/plan", json!("")), "spec.plan"),
        (
            changed("/spec/paidUntil", json!("tomorrow")),
            "spec.paidUntil",
        ),
        (
            changed("/spec/gracePeriod", json!("3d")),
            "spec.gracePeriod",
        ),
        (
            changed("/spec/retention", json!("8785h")),
            "retention is at most 8784h, which is 366 days",
        ),
        (
            changed("/spec/pausedRetention", json!("9000h")),
            "pausedRetention is at most 8784h",
        ),
        (
            changed("/spec/gracePeriod", json!("9000h")),
            "gracePeriod is at most 8784h",
        ),
        (
            changed("/spec/environment", json!({"": "nameless"})),
            "environment holds variables whose names are letters, digits and _ and begin with no digit",
        ),
        (
            changed("/spec/externalRef", json!({"system": "stripe"})),
            "spec.externalRef.id",
        ),
        (
            changed("/metadata/name", json!("x".repeat(64))),
            "must have at most 63 characters",
        ),
    ];
    for (object, words) in refused {
        let said = bed.cluster.refusal(&object).await?;
        assert!(said.contains(words), "{said} does not say {words}");
    }
    let created = bed.cluster.create(&good).await?;
    let periods =
        ["gracePeriod", "retention", "pausedRetention"].map(|field| created["spec"][field].clone());
    assert_eq!(periods, ["72h", "168h", "720h"]);
    let other = json!({"spec": {"customerId": "cus_2"}});
    let said = bed
        .cluster
        .merge("Subscription", Some(TENANT), "one", other)
        .await;
    let said = said.expect_err("another customer").to_string();
    assert!(said.contains("customerId cannot change"), "{said}");
    bed.finish().await
}

const KINDS: [&str; 4] = [
    "HetznerProject",
    "AgentClass",
    "AgentInstance",
    "Subscription",
];

fn schema_of(kind: &str) -> String {
    format!("dev.agentfleet.v1alpha1.{kind}")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_has_words_for_kubectl_explain() -> Outcome {
    let bed = bed().await?;
    let published = ["get", "--raw", "/openapi/v3/apis/agentfleet.dev/v1alpha1"];
    // An API server publishes what a CRD says some time after it serves it.
    bed.wait_until("the API server publishes the kinds", async || {
        let openapi = bed.cluster.kubectl(&published).unwrap_or_default();
        Ok(KINDS.iter().all(|kind| openapi.contains(&schema_of(kind))))
    })
    .await?;
    let openapi: Value = serde_json::from_str(&bed.cluster.kubectl(&published)?)?;
    let mut silent = Vec::new();
    for kind in KINDS {
        let schema = &openapi["components"]["schemas"][schema_of(kind)];
        ensure(schema.is_object(), || format!("no schema of {kind}"))?;
        for part in ["spec", "status"] {
            fields_without_words(
                &schema["properties"][part],
                &format!("{kind}.{part}"),
                &mut silent,
            );
        }
    }
    assert!(silent.is_empty(), "no description: {silent:#?}");
    let explained = bed.cluster.kubectl(&[
        "explain",
        "agentclass.spec.agent.secretFiles.agentMayChange",
    ])?;
    assert!(
        explained.contains("Whether the agent itself changes the file"),
        "{explained}"
    );
    bed.finish().await
}

fn fields_without_words(schema: &Value, path: &str, silent: &mut Vec<String>) {
    if schema["description"].as_str().is_none_or(str::is_empty) {
        silent.push(path.to_owned());
    }
    let inner = if schema["items"].is_object() {
        &schema["items"]
    } else {
        schema
    };
    for (name, field) in inner["properties"].as_object().into_iter().flatten() {
        fields_without_words(field, &format!("{path}.{name}"), silent);
    }
}

#[test]
fn crds_in_the_repository_are_what_the_code_says() {
    for (file, text) in agentfleet::api::crds().unwrap() {
        let path = bed::project().join("crds").join(&file);
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            text,
            "run `make crds`: {file} is not what the code says"
        );
    }
}
