//! Writes to objects that others write too: status by server-side apply, finalizers by merge patch.
//!
//! Both always carry the `resourceVersion` that the caller decided on, so that a stale view gets a 409 and never its way, and so that nothing
//! that is gone comes back: a merge patch of a missing object is a 404, where an apply would make it again.

use std::fmt::Debug;
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{CallError, call};

/// How far apart counts that keep changing are written into a status.
pub const COUNTS_PERIOD: Duration = Duration::from_secs(10);

/// An object after a status apply.
#[derive(Debug)]
pub struct Applied<K> {
    /// The object as the API server now has it; its `resourceVersion` is good for the next write.
    pub object: K,
    /// Whether anything was written: the same content again is not.
    pub written: bool,
}

/// Applies the status fields of one field manager, by force, on exactly the given `resourceVersion`.
///
/// A field that this manager applied before and that is missing now is removed; fields of other managers stay. Nulls are left out: an explicit
/// null would be stored, or refused.
///
/// # Errors
/// [`CallError::Stale`] when the object is not the given version any more; see [`CallError`] for others.
pub async fn apply_status<K>(
    api: &Api<K>,
    manager: &str,
    name: &str,
    resource_version: &str,
    status_fields: Value,
) -> Result<Applied<K>, CallError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name, "resourceVersion": resource_version},
        "status": without_nulls(status_fields),
    });
    // Without force, a field of another manager would be a conflict that hides whether the version was stale.
    let params = PatchParams::apply(manager).force();
    let label = format!("PATCH {}/status {manager}", K::plural(&()));
    let object = call(&label, api.patch_status(name, &params, &Patch::Apply(body))).await?;
    let written = object.resource_version().as_deref() != Some(resource_version);
    Ok(Applied { object, written })
}

/// Puts a finalizer on an object, keeping those of others; does nothing when it is there already. Answers the `resourceVersion` for the next write.
///
/// # Errors
/// See [`CallError`]; an object that is being deleted takes no new finalizer and answers [`CallError::Invalid`].
pub async fn add_finalizer<K>(
    api: &Api<K>,
    object: &K,
    finalizer: &str,
) -> Result<String, CallError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    if object
        .finalizers()
        .iter()
        .any(|present| present == finalizer)
    {
        return Ok(object.resource_version().unwrap_or_default());
    }
    let finalizers = object
        .finalizers()
        .iter()
        .cloned()
        .chain([finalizer.to_owned()])
        .collect();
    patch_finalizers(api, object, "finalizer add", finalizers).await
}

/// Takes a finalizer off an object, keeping those of others; does nothing when it, or the object, is not there: a view may be older than its end.
///
/// # Errors
/// See [`CallError`].
pub async fn remove_finalizer<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), CallError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    if object
        .finalizers()
        .iter()
        .all(|present| present != finalizer)
    {
        return Ok(());
    }
    let finalizers = object
        .finalizers()
        .iter()
        .filter(|present| *present != finalizer)
        .cloned()
        .collect();
    match patch_finalizers(api, object, "finalizer remove", finalizers).await {
        Ok(_) | Err(CallError::Gone { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sets an annotation of an object that is still as it was at that version; answers the `resourceVersion` for the next write.
///
/// # Errors
/// See [`CallError`].
pub async fn annotate<K>(
    api: &Api<K>,
    object: &K,
    resource_version: &str,
    (key, value): (&str, &str),
) -> Result<String, CallError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    let body = json!({"metadata": {
        "uid": object.uid(),
        "resourceVersion": resource_version,
        "annotations": {key: value},
    }});
    let label = format!("PATCH {} annotation", K::plural(&()));
    let (name, params, body) = (
        object.name_any(),
        PatchParams::default(),
        Patch::Merge(body),
    );
    let patched = call(&label, api.patch_metadata(&name, &params, &body)).await?;
    Ok(patched.resource_version().unwrap_or_default())
}

/// A merge patch replaces the whole list, which is safe because it is bound to the version whose list was read.
async fn patch_finalizers<K>(
    api: &Api<K>,
    object: &K,
    what: &str,
    finalizers: Vec<String>,
) -> Result<String, CallError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    let body = json!({"metadata": {
        "uid": object.uid(),
        "resourceVersion": object.resource_version(),
        "finalizers": finalizers,
    }});
    let label = format!("PATCH {} {what}", K::plural(&()));
    let patched = call(
        &label,
        api.patch_metadata(
            &object.name_any(),
            &PatchParams::default(),
            &Patch::Merge(body),
        ),
    )
    .await?;
    Ok(patched.resource_version().unwrap_or_default())
}

/// Whether two statuses differ in what the API server would store: a null and an absent field are the same.
pub fn status_changed(old: &Value, new: &Value) -> bool {
    without_nulls(old.clone()) != without_nulls(new.clone())
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_nulls(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        scalar => scalar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_absent_fields_are_the_same_status() {
        let old = json!({"phase": "Ready", "conditions": [{"type": "Ready", "message": null}], "server": {"ipv6": null}});
        let same = json!({"phase": "Ready", "conditions": [{"type": "Ready"}], "server": {}, "voice": null});

        assert!(!status_changed(&old, &same));
    }

    #[test]
    fn changed_removed_and_reordered_values_are_a_change() {
        let old = json!({"phase": "Ready", "conditions": [{"type": "A"}, {"type": "B"}]});
        for new in [
            json!({"phase": "Failed", "conditions": [{"type": "A"}, {"type": "B"}]}),
            json!({"conditions": [{"type": "A"}, {"type": "B"}]}),
            json!({"phase": "Ready", "conditions": [{"type": "B"}, {"type": "A"}]}),
        ] {
            assert!(status_changed(&old, &new), "{new}");
        }
    }
}
