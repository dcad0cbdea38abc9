//! The API server as a person with a kubeconfig sees it: objects are plain JSON, so that no type of the operator stands between test and truth.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::control_plane::SYSTEM;
use crate::each::each;
use crate::failure::{Failure, Outcome, ensure};
use crate::{place, wait};

/// A user of the API server.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    config: Config,
    kubeconfig: PathBuf,
}

/// Name of the `ConfigMap` in which the operator's guard says what it holds.
pub const GUARD: &str = "agentfleet-guard";
/// Kinds that the operator owns, those first that others wait for.
const OWNED: [&str; 4] = [
    "Subscription",
    "AgentInstance",
    "AgentClass",
    "HetznerProject",
];

fn resource(kind: &str) -> Outcome<ApiResource> {
    let (group, version, plural) = match kind {
        "HetznerProject" => ("agentfleet.dev", "v1alpha1", "hetznerprojects"),
        "AgentClass" => ("agentfleet.dev", "v1alpha1", "agentclasses"),
        "AgentInstance" => ("agentfleet.dev", "v1alpha1", "agentinstances"),
        "Subscription" => ("agentfleet.dev", "v1alpha1", "subscriptions"),
        "CustomResourceDefinition" => ("apiextensions.k8s.io", "v1", "customresourcedefinitions"),
        "Namespace" => ("", "v1", "namespaces"),
        "Secret" => ("", "v1", "secrets"),
        "ConfigMap" => ("", "v1", "configmaps"),
        "Event" => ("events.k8s.io", "v1", "events"),
        "ControllerRevision" => ("apps", "v1", "controllerrevisions"),
        "Lease" => ("coordination.k8s.io", "v1", "leases"),
        "ClusterRole" => ("rbac.authorization.k8s.io", "v1", "clusterroles"),
        "SubjectAccessReview" => ("authorization.k8s.io", "v1", "subjectaccessreviews"),
        "RoleBinding" => ("rbac.authorization.k8s.io", "v1", "rolebindings"),
        _ => return Err(Failure::new(format!("the bed knows no kind {kind}"))),
    };
    Ok(ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk(group, version, kind),
        plural,
    ))
}

fn text<'a>(object: &'a Value, pointer: &str) -> Outcome<&'a str> {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .ok_or_else(|| Failure::new(format!("no {pointer} in {object}")))
}

/// A YAML document as JSON.
///
/// # Errors
/// Fails when it is none.
pub fn from_yaml(document: &[u8]) -> Outcome<Value> {
    Ok(serde_saphyr::from_slice(document)?)
}

impl Cluster {
    /// The admin of a control plane.
    ///
    /// # Errors
    /// Fails on an unusable kubeconfig.
    pub async fn admin(kubeconfig: &Path) -> Outcome<Self> {
        let read = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        Self::of(config, kubeconfig)
    }

    fn of(config: Config, kubeconfig: &Path) -> Outcome<Self> {
        Ok(Self {
            client: Client::try_from(config.clone())?,
            config,
            kubeconfig: kubeconfig.to_owned(),
        })
    }

    /// The same cluster as another user sees it.
    ///
    /// # Errors
    /// Fails on an unusable name.
    pub fn as_user(&self, name: &str) -> Outcome<Self> {
        let mut config = self.config.clone();
        config.auth_info.impersonate = Some(name.to_owned());
        Self::of(config, &self.kubeconfig)
    }

    /// A client of the same API server that brings no identity.
    ///
    /// # Errors
    /// Never, as long as the admin's own works.
    pub(crate) fn nobody(&self) -> Outcome<Client> {
        let mut config = self.config.clone();
        config.auth_info = kube::config::AuthInfo::default();
        config.default_retry = false;
        Ok(Client::try_from(config)?)
    }

    /// The kubeconfig of the admin.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn api(&self, kind: &str, namespace: Option<&str>) -> Outcome<Api<DynamicObject>> {
        let resource = resource(kind)?;
        Ok(match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        })
    }

    fn api_of(&self, object: &Value) -> Outcome<Api<DynamicObject>> {
        self.api(
            text(object, "/kind")?,
            text(object, "/metadata/namespace").ok(),
        )
    }

    /// Applies an object; answers it as it is then.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn apply(&self, object: &Value) -> Outcome<Value> {
        let params = PatchParams::apply("bed").force();
        let applied = self
            .api_of(object)?
            .patch(
                text(object, "/metadata/name")?,
                &params,
                &Patch::Apply(object),
            )
            .await?;
        Ok(serde_json::to_value(applied)?)
    }

    /// Applies objects, several at a time.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn apply_all(&self, objects: impl IntoIterator<Item = Value>) -> Outcome {
        each(objects, async |object| {
            self.apply(&object).await?;
            Ok(())
        })
        .await
    }

    /// Creates an object; answers it as it is then.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn create(&self, object: &Value) -> Outcome<Value> {
        let created = self
            .api_of(object)?
            .create(
                &PostParams::default(),
                &serde_json::from_value(object.clone())?,
            )
            .await?;
        Ok(serde_json::to_value(created)?)
    }

    /// What the API server says against an object; fails when it takes it.
    ///
    /// # Errors
    /// Fails when the object is taken, or for another reason than its content.
    pub async fn refusal(&self, object: &Value) -> Outcome<String> {
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        match self
            .api_of(object)?
            .create(&params, &serde_json::from_value(object.clone())?)
            .await
        {
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 422) => Ok(status.message),
            Err(other) => Err(other.into()),
            Ok(_) => Err(Failure::new(format!("the API server took {object}"))),
        }
    }

    /// An object, if it exists.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn get(
        &self,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Outcome<Option<Value>> {
        let found = self.api(kind, namespace)?.get_opt(name).await?;
        Ok(found.map(serde_json::to_value).transpose()?)
    }

    /// All objects of a kind.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn list(&self, kind: &str) -> Outcome<Vec<Value>> {
        let found = self.api(kind, None)?.list(&ListParams::default()).await?;
        found
            .items
            .into_iter()
            .map(|item| Ok(serde_json::to_value(item)?))
            .collect()
    }

    /// Merges into an object.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn merge(
        &self,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
        patch: Value,
    ) -> Outcome {
        self.api(kind, namespace)?
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Merges into the status of an object: what a restored backup or a careless person would do.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn merge_status(
        &self,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
        status: Value,
    ) -> Outcome {
        let patch = Patch::Merge(json!({"status": status}));
        self.api(kind, namespace)?
            .patch_status(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// Asks for the deletion of an object; one that is not there is as good as deleted.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn delete(&self, kind: &str, namespace: Option<&str>, name: &str) -> Outcome {
        match self
            .api(kind, namespace)?
            .delete(name, &DeleteParams::default())
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => Ok(other.map(|_| ())?),
        }
    }

    /// Deletes an object with all that it owns, it last, as a tool does that prunes what it applied before.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn prune(&self, kind: &str, namespace: Option<&str>, name: &str) -> Outcome {
        let foreground = DeleteParams::foreground();
        self.api(kind, namespace)?.delete(name, &foreground).await?;
        Ok(())
    }

    /// Takes all finalizers off an object and deletes it, whatever it stands for.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn remove(&self, object: &Value, kind: &str) -> Outcome {
        let (namespace, name) = (
            text(object, "/metadata/namespace").ok(),
            text(object, "/metadata/name")?,
        );
        if object.pointer("/metadata/finalizers").is_some() {
            self.merge(
                kind,
                namespace,
                name,
                json!({"metadata": {"finalizers": null}}),
            )
            .await?;
        }
        self.delete(kind, namespace, name).await
    }

    /// Removes whatever a bed has left: all objects of agentfleet, the operator's Secrets, Lease and guard, former revisions, events, a namespace
    /// that was deleted and is not gone.
    ///
    /// # Errors
    /// Fails with what the API server says.
    pub async fn empty(&self) -> Outcome {
        for kind in OWNED.into_iter().chain(["Secret"]) {
            for object in self.list(kind).await? {
                self.remove(&object, kind).await?;
            }
        }
        let left = [
            ("Lease", Some(SYSTEM)),
            ("ControllerRevision", Some(SYSTEM)),
            ("Event", None),
        ];
        for (kind, namespace) in left {
            for object in self.list(kind).await? {
                let place = text(&object, "/metadata/namespace").ok();
                if namespace.is_none() || namespace == place {
                    self.remove(&object, kind).await?;
                }
            }
        }
        self.delete("ConfigMap", Some(SYSTEM), GUARD).await?;
        wait::wait_until("no namespace is on its way out", async || {
            let namespaces = self.list("Namespace").await?;
            let leaves = |one: &Value| one.pointer("/metadata/deletionTimestamp").is_some();
            Ok(!namespaces.iter().any(leaves))
        })
        .await
    }

    /// Runs kubectl as the admin; answers what it printed.
    ///
    /// # Errors
    /// Fails with what kubectl says when it does.
    pub fn kubectl(&self, arguments: &[&str]) -> Outcome<String> {
        self.kubectl_with(arguments, b"")
    }

    /// Like [`Self::kubectl`], with something on its standard input.
    ///
    /// # Errors
    /// As [`Self::kubectl`].
    pub fn kubectl_with(&self, arguments: &[&str], input: &[u8]) -> Outcome<String> {
        let mut child = Command::new("kubectl")
            .current_dir(place::project())
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input)?;
        }
        let output = child.wait_with_output()?;
        let words = arguments.join(" ");
        ensure(output.status.success(), || {
            format!(
                "kubectl {words}: {}",
                String::from_utf8_lossy(&output.stderr)
            )
        })?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A kubeconfig for a ServiceAccount, with a token made for it.
    ///
    /// # Errors
    /// Fails when the API server gives no token.
    pub fn kubeconfig_of(&self, namespace: &str, service_account: &str) -> Outcome<Value> {
        let token = self.kubectl(&[
            "create",
            "token",
            service_account,
            "--namespace",
            namespace,
            "--duration",
            "4h",
        ])?;
        let admin = from_yaml(&std::fs::read(&self.kubeconfig)?)?;
        let cluster = admin
            .pointer("/clusters/0")
            .ok_or_else(|| Failure::new("no cluster in the admin's kubeconfig"))?;
        let name = text(cluster, "/name")?;
        Ok(json!({
            "apiVersion": "v1", "kind": "Config", "current-context": service_account,
            "clusters": [cluster],
            "users": [{"name": service_account, "user": {"token": token.trim()}}],
            "contexts": [{"name": service_account, "context": {"cluster": name, "user": service_account}}],
        }))
    }
}
