//! What a subscription says of its instance, and what it has said.
//!
//! It speaks by server-side apply under a field manager of its own: what it does not say is left alone, and `suspend` it says only while it
//! means it, so that a person's own suspension stands. What it has said is read back from the fields that it manages, so that it says nothing
//! twice, and takes back what it means no more.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::{ResourceExt as _, api::ObjectMeta};
use serde_json::{Value, json};

use super::{desired::Desired, entitlement::Entitlement, guard::TOO_MANY};
use crate::{
    api::{
        AgentInstance, GROUP, TERMINATE_AT_ANNOTATION, TERMINATION_ANNOUNCED_ANNOTATION,
        TERMINATION_HELD_ANNOTATION, UNENTITLED_SINCE_ANNOTATION,
    },
    labels,
};

/// The field manager of what is declared.
pub const MANAGER: &str = "agentfleet-subscription";

/// What is declared of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// The subscription of that name.
    pub subscription: String,
    /// Its customer.
    pub customer: String,
    /// The class.
    pub class: String,
    /// The Secret.
    pub secret: Option<String>,
    /// Environment of the service.
    pub environment: BTreeMap<String, String>,
    /// Whether it shall not run; never declared otherwise.
    pub suspend: bool,
    /// When it is terminated.
    pub terminate_at: Option<Timestamp>,
    /// Since when it is not, or will not be, entitled to run.
    pub unentitled_since: Option<Timestamp>,
    /// Whether it is kept beyond its end, as one of too many.
    pub held: bool,
    /// Who was told that it ends soon, now that its subscription cannot tell it.
    pub announced: Option<Announced>,
}

/// Who was told of the end of an instance whose subscription is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// People.
    Told,
    /// The receiver of the webhook too.
    Taken,
}

impl Announced {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Told => "Told",
            Self::Taken => "Taken",
        }
    }
}

/// The object that a declaration is meant for; none when it is to make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its UID: another object of that name is another customer's, and one that is gone does not come back.
    pub uid: String,
    /// The version that was seen.
    pub version: String,
}

impl Target {
    /// An instance as it was seen.
    pub fn of(instance: &AgentInstance) -> Self {
        Self {
            uid: instance.uid().unwrap_or_default(),
            version: instance.resource_version().unwrap_or_default(),
        }
    }
}

impl Declaration {
    /// What is to be declared.
    pub fn new(desired: &Desired, entitlement: &Entitlement, held: bool) -> Self {
        Self {
            subscription: desired.name.clone(),
            customer: desired.customer.clone(),
            class: desired.plan.clone(),
            secret: desired.secret.clone(),
            environment: desired.environment.clone(),
            suspend: !entitlement.entitled,
            terminate_at: entitlement.terminate_at,
            unentitled_since: entitlement.unentitled_since,
            held,
            announced: None,
        }
    }

    /// What has been declared of an instance, and stands: nothing that others have overridden.
    pub fn found(instance: &AgentInstance) -> Self {
        let managed = Managed::of(&instance.metadata);
        let spec = &instance.spec;
        let label = |key: &str| {
            let value = instance.labels().get(key).cloned();
            value
                .filter(|_| managed.has(&["f:metadata", "f:labels", &format!("f:{key}")]))
                .unwrap_or_default()
        };
        let has = |field: &str| managed.has(&["f:spec", field]);
        let variables = spec.environment.iter();
        let environment = variables
            .filter(|(key, _)| managed.has(&["f:spec", "f:environment", &format!("f:{key}")]))
            .map(|(key, value)| (key.clone(), value.clone()));
        let annotated = |key: &str| {
            let told = time(instance, key);
            told.filter(|_| managed.has(&["f:metadata", "f:annotations", &format!("f:{key}")]))
        };
        Self {
            subscription: label(labels::SUBSCRIPTION),
            customer: label(labels::CUSTOMER),
            class: if has("f:className") {
                spec.class_name.clone()
            } else {
                String::new()
            },
            secret: spec.secret_name.clone().filter(|_| has("f:secretName")),
            environment: environment.collect(),
            suspend: spec.suspend && has("f:suspend"),
            terminate_at: annotated(TERMINATE_AT_ANNOTATION),
            unentitled_since: annotated(UNENTITLED_SINCE_ANNOTATION),
            held: is_termination_held(instance),
            announced: announced(instance),
        }
    }

    /// The object as server-side apply takes it.
    pub fn body(&self, namespace: &str, name: &str, target: Option<&Target>) -> Value {
        let labels =
            json!({labels::SUBSCRIPTION: self.subscription, labels::CUSTOMER: self.customer});
        let mut metadata = json!({"namespace": namespace, "name": name, "labels": labels});
        let times = [
            (TERMINATE_AT_ANNOTATION, self.terminate_at),
            (UNENTITLED_SINCE_ANNOTATION, self.unentitled_since),
        ];
        for (key, at) in times {
            if let Some(at) = at {
                metadata["annotations"][key] = json!(at.to_string());
            }
        }
        if self.held {
            metadata["annotations"][TERMINATION_HELD_ANNOTATION] = json!(TOO_MANY);
        }
        if let Some(announced) = self.announced {
            metadata["annotations"][TERMINATION_ANNOUNCED_ANNOTATION] = json!(announced.as_str());
        }
        if let Some(Target { uid, version }) = target {
            metadata["uid"] = json!(uid);
            metadata["resourceVersion"] = json!(version);
        }
        let mut spec = json!({"className": self.class});
        if let Some(secret) = &self.secret {
            spec["secretName"] = json!(secret);
        }
        if !self.environment.is_empty() {
            spec["environment"] = json!(self.environment);
        }
        if self.suspend {
            spec["suspend"] = json!(true);
        }
        json!({
            "apiVersion": format!("{GROUP}/v1alpha1"), "kind": "AgentInstance",
            "metadata": metadata, "spec": spec,
        })
    }
}

/// When an instance says that it is terminated; none if it does not, or nobody can read it.
pub fn terminate_at(instance: &AgentInstance) -> Option<Timestamp> {
    time(instance, TERMINATE_AT_ANNOTATION)
}

/// Since when an instance says that it is not entitled to run.
pub fn unentitled_since(instance: &AgentInstance) -> Option<Timestamp> {
    time(instance, UNENTITLED_SINCE_ANNOTATION)
}

/// Whether an instance says that it is kept beyond its end.
pub fn is_termination_held(instance: &AgentInstance) -> bool {
    instance
        .annotations()
        .contains_key(TERMINATION_HELD_ANNOTATION)
}

fn announced(instance: &AgentInstance) -> Option<Announced> {
    let told = instance
        .annotations()
        .get(TERMINATION_ANNOUNCED_ANNOTATION)?;
    [Announced::Told, Announced::Taken]
        .into_iter()
        .find(|announced| announced.as_str() == told)
}

fn time(instance: &AgentInstance, annotation: &str) -> Option<Timestamp> {
    instance.annotations().get(annotation)?.parse().ok()
}

/// Keeps of an object's managed fields only what was declared here: the rest is of no use, and the larger half of a small object.
pub fn keep_declared_fields(instance: &mut AgentInstance) {
    let fields = instance.metadata.managed_fields.take();
    let declared = fields.map(|fields| {
        let ours = |manager: Option<&str>| manager == Some(MANAGER);
        let fields = fields.into_iter();
        fields
            .filter(|entry| ours(entry.manager.as_deref()))
            .collect::<Vec<_>>()
    });
    instance.metadata.managed_fields = declared.filter(|declared| !declared.is_empty());
}

/// The fields of an object that were declared here.
struct Managed<'a>(Option<&'a Value>);

impl<'a> Managed<'a> {
    fn of(metadata: &'a ObjectMeta) -> Self {
        let entries = metadata.managed_fields.iter().flatten();
        let mut ours = entries.filter(|entry| {
            let applied = entry.operation.as_deref() == Some("Apply");
            applied && entry.manager.as_deref() == Some(MANAGER) && entry.subresource.is_none()
        });
        Self(
            ours.next()
                .and_then(|entry| Some(&entry.fields_v1.as_ref()?.0)),
        )
    }

    fn has(&self, path: &[&str]) -> bool {
        let mut at = self.0;
        for step in path {
            at = at.and_then(|fields| fields.get(step));
        }
        at.is_some()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};

    use super::*;

    fn declaration() -> Declaration {
        Declaration {
            subscription: "alice".into(),
            customer: "cus_1".into(),
            class: "small".into(),
            secret: Some("alice".into()),
            environment: [("A".to_owned(), "1".to_owned())].into(),
            suspend: true,
            terminate_at: Some(Timestamp::from_second(1_800_000_000).unwrap()),
            unentitled_since: Some(Timestamp::from_second(1_700_000_000).unwrap()),
            held: true,
            announced: Some(Announced::Taken),
        }
    }

    /// The fields of a value in the form in which the API server tells who manages them.
    fn fields(value: &Value) -> Value {
        let Some(map) = value.as_object() else {
            return json!({});
        };
        let told = map
            .iter()
            .map(|(key, value)| (format!("f:{key}"), fields(value)));
        Value::Object(told.collect())
    }

    /// An instance as it is after that was applied.
    fn applied(declaration: &Declaration) -> AgentInstance {
        let body = declaration.body("agents", "alice", None);
        let mut instance: AgentInstance = serde_json::from_value(body.clone()).unwrap();
        let metadata = json!({"labels": body["metadata"]["labels"], "annotations": body["metadata"]["annotations"]});
        instance.metadata.managed_fields = Some(vec![ManagedFieldsEntry {
            manager: Some(MANAGER.into()),
            operation: Some("Apply".into()),
            fields_v1: Some(FieldsV1(fields(
                &json!({"metadata": metadata, "spec": body["spec"]}),
            ))),
            ..ManagedFieldsEntry::default()
        }]);
        instance
    }

    #[test]
    fn what_was_declared_is_found_again() {
        let bare = Declaration {
            secret: None,
            environment: BTreeMap::new(),
            suspend: false,
            terminate_at: None,
            unentitled_since: None,
            held: false,
            announced: None,
            ..declaration()
        };
        let told = Declaration {
            announced: Some(Announced::Told),
            ..declaration()
        };
        for declared in [declaration(), bare, told] {
            assert_eq!(Declaration::found(&applied(&declared)), declared);
        }
    }

    #[test]
    fn what_others_have_said_is_not_ours() {
        let mut instance = applied(&Declaration {
            suspend: false,
            ..declaration()
        });
        instance.spec.suspend = true;
        instance.spec.environment.insert("B".into(), "2".into());
        let found = Declaration::found(&instance);
        assert!(!found.suspend, "a person's own");
        assert_eq!(found.environment, declaration().environment);
        instance.metadata.managed_fields = None;
        let found = Declaration::found(&instance);
        assert_eq!((found.class.as_str(), found.secret), ("", None));
    }

    #[test]
    fn a_declaration_speaks_of_one_object_and_of_suspend_only_when_it_means_it() {
        let target = Target {
            uid: "u".into(),
            version: "7".into(),
        };
        let running = Declaration {
            suspend: false,
            terminate_at: None,
            unentitled_since: None,
            held: false,
            announced: None,
            ..declaration()
        };
        let body = running.body("agents", "alice", Some(&target));
        assert_eq!(body["metadata"]["uid"], "u");
        assert_eq!(body["metadata"]["resourceVersion"], "7");
        assert!(body["spec"].get("suspend").is_none());
        assert!(body["metadata"].get("annotations").is_none());
        assert!(body["metadata"].get("ownerReferences").is_none());
    }

    #[test]
    fn other_managers_fields_are_dropped_from_what_is_kept() {
        let mut instance = applied(&declaration());
        let other = ManagedFieldsEntry {
            manager: Some("kubectl".into()),
            ..ManagedFieldsEntry::default()
        };
        let entries = instance.metadata.managed_fields.as_mut().unwrap();
        entries.push(other);
        keep_declared_fields(&mut instance);
        assert_eq!(instance.metadata.managed_fields.as_ref().unwrap().len(), 1);
        assert_eq!(Declaration::found(&instance), declaration());
    }
}
