//! What the admin of a class offers to an instance: namespaces and how many.

use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    Api, ResourceExt as _,
    api::ObjectMeta,
    core::{Selector, SelectorExt as _},
};

use super::Look;
use crate::{
    api::{AgentClass, AgentInstance},
    kube_ext::{CallError, call},
};

impl Look<'_> {
    /// What the admin of the class has not offered to this instance.
    pub(super) async fn refusal(
        &self,
        class: &AgentClass,
    ) -> Result<Option<(&'static str, String)>, CallError> {
        let name = class.name_any();
        if !self.namespace_allowed(class).await? {
            let message = format!(
                "AgentClass {name} is not offered to namespace {}: see its spec.namespaceSelector",
                self.identity.namespace
            );
            return Ok(Some(("NamespaceNotAllowed", message)));
        }
        let Some(limit) = class.spec.limits.instances else {
            return Ok(None);
        };
        let over = self.rank(&name) >= usize::try_from(limit).unwrap_or_default();
        let message = format!(
            "AgentClass {name} allows {limit} instances; its admin sets spec.limits.instances"
        );
        Ok(over.then_some(("LimitReached", message)))
    }

    async fn namespace_allowed(&self, class: &AgentClass) -> Result<bool, CallError> {
        let Some(selector) = class.spec.namespace_selector.clone() else {
            return Ok(true);
        };
        let Ok(selector) = Selector::try_from(selector) else {
            return Ok(false);
        };
        let namespaces: Api<Namespace> = Api::all(self.ctx.clients.read.clone());
        let namespace = call("GET namespaces", namespaces.get(&self.identity.namespace)).await?;
        Ok(selector.matches(namespace.labels()))
    }

    /// How many instances of the class are older than this one.
    fn rank(&self, class: &str) -> usize {
        fn age(instance: &AgentInstance) -> (Option<&Time>, Option<&String>) {
            let ObjectMeta {
                creation_timestamp,
                uid,
                ..
            } = &instance.metadata;
            (creation_timestamp.as_ref(), uid.as_ref())
        }
        let own = age(self.instance);
        let older = self
            .ctx
            .stores
            .instances
            .state_filter(|other| other.spec.class_name == class && age(other) < own);
        older.len()
    }
}
