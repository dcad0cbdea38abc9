//! The objects that tests begin with; a test changes what it is about and leaves the rest.

use serde_json::{Value, json};

use crate::control_plane::SYSTEM;

/// Name of the project in most tests.
pub const PROJECT: &str = "main";
/// Name of the class in most tests.
pub const CLASS: &str = "worker";
/// Where the class below writes the Secret on a server.
pub const SECRET_FILE: &str = "/home/agent/.env";

/// A namespace.
pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A Secret with one key.
pub fn secret(namespace: &str, name: &str, key: &str, value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": namespace, "name": name}, "type": "Opaque",
        "stringData": {key: value},
    })
}

/// A project whose token is in the Secret `hetzner-<name>` of the operator's namespace.
pub fn project(name: &str) -> Value {
    json!({
        "apiVersion": "agentfleet.dev/v1alpha1", "kind": "HetznerProject", "metadata": {"name": name},
        "spec": {"tokenSecretRef": {"namespace": SYSTEM, "name": token_secret(name)}},
    })
}

/// Name of the Secret with the token of a project.
pub fn token_secret(project: &str) -> String {
    format!("hetzner-{project}")
}

/// A class with one secret file and a service.
pub fn class() -> Value {
    json!({
        "apiVersion": "agentfleet.dev/v1alpha1", "kind": "AgentClass", "metadata": {"name": CLASS},
        "spec": {
            "projects": [PROJECT], "serverTypes": ["cx23"], "locations": ["nbg1", "fsn1"], "image": "debian-13",
            "firewall": {"sshFrom": ["127.0.0.0/8"]},
            "agent": {
                "install": ["echo installed > installed.txt"],
                "service": {"execStart": ["/usr/bin/sleep", "infinity"], "environmentFiles": [SECRET_FILE]},
                "secretKeys": [{"name": "API_KEY", "description": "what the agent calls its model with"}],
                "secretFiles": [{"path": SECRET_FILE, "env": {}}],
            },
        },
    })
}

/// An instance of that class with the Secret of its own name.
pub fn instance(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "agentfleet.dev/v1alpha1", "kind": "AgentInstance", "metadata": {"namespace": namespace, "name": name},
        "spec": {"className": CLASS, "secretName": name},
    })
}

/// A role and its binding: all verbs on instances, each by its name, since `*` is an admin's right.
pub fn tenant(namespace: &str, user: &str) -> [Value; 2] {
    let group = "rbac.authorization.k8s.io";
    let api = "rbac.authorization.k8s.io/v1";
    let verbs = [
        "get", "list", "watch", "create", "update", "patch", "delete",
    ];
    [
        json!({
            "apiVersion": api, "kind": "ClusterRole", "metadata": {"name": "tenant"},
            "rules": [{"apiGroups": ["agentfleet.dev"], "resources": ["agentinstances"], "verbs": verbs}],
        }),
        json!({
            "apiVersion": api, "kind": "RoleBinding", "metadata": {"namespace": namespace, "name": user},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "tenant"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        }),
    ]
}
