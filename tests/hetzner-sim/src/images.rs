//! Images: Hetzner's own for both architectures, and the snapshots of a project.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{Ask, Call, Reply, rfc3339, unknown_ask};
use crate::error::ApiError;
use crate::labels::Labels;
use crate::machines::{Order, What};
use crate::paging::{self, Listed};
use crate::request::IdOrName;

/// An image to boot from.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) id: u64,
    /// Empty for a snapshot, which has no name.
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) kind: &'static str,
    pub(crate) os_flavor: &'static str,
    pub(crate) os_version: Option<&'static str>,
    pub(crate) architecture: &'static str,
    pub(crate) disk_size: u32,
    pub(crate) created: Timestamp,
    pub(crate) deprecated: bool,
    pub(crate) labels: Labels,
    pub(crate) delete_protected: bool,
    /// Id and name of the server a snapshot was taken from.
    pub(crate) created_from: Option<(u64, String)>,
}

impl Listed for Image {
    fn id(&self) -> u64 {
        self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn created(&self) -> Timestamp {
        self.created
    }
    fn labels(&self) -> Option<&Labels> {
        Some(&self.labels)
    }
}

impl Image {
    fn is_snapshot(&self) -> bool {
        self.kind == "snapshot"
    }

    pub(crate) fn show(&self) -> Value {
        let snapshot = self.is_snapshot();
        let deprecated = self.deprecated.then_some("2026-01-01T00:00:00Z");
        let from = self.created_from.as_ref();
        json!({
            "id": self.id,
            "type": self.kind,
            "status": "available",
            "name": (!snapshot).then_some(&self.name),
            "description": self.description,
            "image_size": snapshot.then_some(2.3),
            "disk_size": self.disk_size,
            "created": rfc3339(self.created),
            "created_from": from.map(|(id, name)| json!({"id": id, "name": name})),
            "bound_to": null,
            "os_flavor": self.os_flavor,
            "os_version": self.os_version,
            "rapid_deploy": !snapshot,
            "protection": {"delete": self.delete_protected},
            "deprecated": deprecated,
            "deleted": null,
            "labels": self.labels,
            "architecture": self.architecture,
        })
    }
}

/// Hetzner's own images: both architectures have the same name and different ids.
pub(crate) fn system_images() -> Vec<Image> {
    let table = [
        (114_690_387, 114_690_389, "debian", "12", "Debian 12", false),
        (310_557_660, 310_557_661, "debian", "13", "Debian 13", false),
        (
            161_547_269,
            161_547_270,
            "ubuntu",
            "24.04",
            "Ubuntu 24.04",
            false,
        ),
        (
            67_794_396,
            103_908_130,
            "ubuntu",
            "22.04",
            "Ubuntu 22.04",
            false,
        ),
        (
            15_512_617,
            103_908_070,
            "ubuntu",
            "20.04",
            "Ubuntu 20.04",
            true,
        ),
    ];
    let both =
        table
            .into_iter()
            .flat_map(|(x86, arm, flavor, version, description, deprecated)| {
                [(x86, "x86"), (arm, "arm")].map(|(id, architecture)| Image {
                    id,
                    name: format!("{flavor}-{version}"),
                    description: description.to_owned(),
                    kind: "system",
                    os_flavor: flavor,
                    os_version: Some(version),
                    architecture,
                    disk_size: 5,
                    created: Timestamp::from_second(1_700_000_000).unwrap_or_default(),
                    deprecated,
                    labels: Labels::new(),
                    delete_protected: false,
                    created_from: None,
                })
            });
    both.collect()
}

/// All images a project may use.
pub(crate) fn all<'a>(call: &'a Call) -> impl Iterator<Item = &'a Image> {
    call.state
        .system_images
        .iter()
        .chain(call.project().snapshots.values())
}

/// The image meant by `wanted`: a name takes the one of that architecture.
pub(crate) fn for_server<'a>(
    call: &'a Call,
    wanted: &IdOrName,
    architecture: &str,
) -> Result<&'a Image, ApiError> {
    let fits = |image: &&Image| match wanted {
        IdOrName::Id(id) => image.id == *id,
        IdOrName::Name(name) => image.name == *name && image.architecture == architecture,
    };
    let found = all(call).filter(|image| !image.deprecated).find(fits);
    let image = found.ok_or_else(|| ApiError::invalid("image", "image not found"))?;
    if image.architecture != architecture {
        let complaint = "image architecture does not match the server type";
        return Err(ApiError::invalid("image", complaint));
    }
    Ok(image)
}

pub(crate) fn answer(call: &mut Call, ask: &Ask) -> Result<Reply, ApiError> {
    match ask {
        Ask::List => list(call),
        Ask::Get(id) => {
            let image = all(call).find(|image| image.id == *id);
            let image = image.ok_or_else(|| ApiError::not_found("image"))?;
            Ok(Reply::ok(json!({"image": image.show()})))
        }
        Ask::Update(id) => update(call, *id),
        Ask::Delete(id) => delete(call, *id),
        Ask::Act(id, "change_protection") => change_protection(call, *id),
        Ask::Create | Ask::Act(..) | Ask::Members(_) => Err(unknown_ask()),
    }
}

fn list(call: &Call) -> Result<Reply, ApiError> {
    let request = call.request;
    let kinds: Vec<&str> = request.params("type").collect();
    let statuses: Vec<&str> = request.params("status").collect();
    let architectures: Vec<&str> = request.params("architecture").collect();
    let deprecated_too = request.param("include_deprecated") == Some("true");
    let mut images = paging::select(request, all(call))?;
    images.retain(|image| {
        (kinds.is_empty() || kinds.contains(&image.kind))
            && (statuses.is_empty() || statuses.contains(&"available"))
            && (architectures.is_empty() || architectures.contains(&image.architecture))
            && (deprecated_too || !image.deprecated)
            && request.param("bound_to").is_none()
    });
    paging::page(request, "images", images, Image::show)
}

fn snapshot_mut<'a>(call: &'a mut Call, id: u64) -> Result<&'a mut Image, ApiError> {
    let found = call.project_mut().snapshots.get_mut(&id);
    found.ok_or_else(|| ApiError::not_found("image"))
}

fn update(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let input = call.request.input()?;
    let (labels, description) = (input.labels()?, input.text("description")?);
    let image = snapshot_mut(call, id)?;
    image.labels = labels.unwrap_or_else(|| image.labels.clone());
    image.description = description.map_or_else(|| image.description.clone(), str::to_owned);
    Ok(Reply::ok(json!({"image": image.show()})))
}

fn delete(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let image = snapshot_mut(call, id)?;
    if image.delete_protected {
        return Err(ApiError::protected("image"));
    }
    let (server, what) = (
        image.created_from.as_ref().map_or(0, |(id, _)| *id),
        What::Forget { image: id },
    );
    call.state.orders.push(Order { server, what });
    call.project_mut().snapshots.remove(&id);
    Ok(Reply::no_content())
}

fn change_protection(call: &mut Call, id: u64) -> Result<Reply, ApiError> {
    let delete = call.request.input()?.flag("delete")?;
    let image = snapshot_mut(call, id)?;
    image.delete_protected = delete.unwrap_or(image.delete_protected);
    let action = call.begin_instant("change_protection", vec![("image", id)]);
    Ok(Reply::created(json!({"action": action.show(call.now)})))
}
