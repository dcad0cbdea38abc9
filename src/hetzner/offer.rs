//! What can be ordered: server types, locations and images, and whether they fit together.

use super::servers::Server;
use super::snapshots::Snapshot;
use super::wire::{id, open_enum, or_default, parsed};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::sync::Arc;

id! {
    /// Id of an image.
    ImageId
}

open_enum! {
    /// Instruction set of a server type or an image.
    Architecture {
        /// Intel or AMD.
        X86 = "x86",
        /// Ampere.
        Arm = "arm",
    }
}

/// One server type.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ServerType {
    /// Its name, such as `cx23`.
    pub name: String,
    /// Its architecture.
    #[serde(default)]
    pub architecture: Option<Architecture>,
    /// Size of its disk in GB.
    #[serde(default)]
    pub disk: Option<f64>,
    /// Where it is offered.
    #[serde(default, deserialize_with = "or_default")]
    pub locations: Vec<TypeLocation>,
}

/// A server type in one location.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TypeLocation {
    /// Name of the location.
    pub name: String,
    /// Whether it is in stock.
    #[serde(default)]
    pub available: Option<bool>,
    /// Set when it will not be offered any longer.
    #[serde(default)]
    pub deprecation: Option<Deprecation>,
}

/// When something goes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Deprecation {
    /// No new servers after that.
    #[serde(default, deserialize_with = "parsed")]
    pub unavailable_after: Option<jiff::Timestamp>,
}

/// One location.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Location {
    /// Its name, such as `nbg1`.
    pub name: String,
    /// Its network zone, such as `eu-central`.
    #[serde(default, deserialize_with = "or_default")]
    pub network_zone: String,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its name; snapshots have none.
    #[serde(default)]
    pub name: Option<String>,
    /// Its architecture.
    #[serde(default)]
    pub architecture: Option<Architecture>,
}

/// Everything needed to check the places of one class.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// All server types.
    pub server_types: Arc<[ServerType]>,
    /// All locations.
    pub locations: Arc<[Location]>,
    /// Hetzner's own images.
    pub system_images: Arc<[Image]>,
    /// The image asked for, as it was written.
    pub image: String,
    /// The images that this names: one for each architecture.
    pub images: Arc<[Image]>,
}

/// A place that can be ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPlace {
    /// Name of the server type.
    pub server_type: String,
    /// Name of the location.
    pub location: String,
    /// The image for this type.
    pub image: ImageId,
    /// The architecture of type and image, if told.
    pub architecture: Option<Architecture>,
    /// Whether Hetzner says it is in stock.
    pub available: bool,
}

/// A value that Hetzner does not offer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value} is not offered{detail}; valid: {}", valid.join(", "))]
pub struct Problem {
    /// The field of the class: `serverTypes`, `locations` or `image`.
    pub field: &'static str,
    /// The value that is wrong.
    pub value: String,
    /// What it does not fit to, such as ` in nbg1`; empty if it is wrong everywhere.
    pub detail: String,
    /// Values that would do.
    pub valid: Vec<String>,
}

impl Offer {
    /// Checks that `server_type` can be ordered in `location` with the image, as of `at`.
    ///
    /// # Errors
    /// The first field that is wrong, and what it may be.
    pub fn validate(
        &self,
        server_type: &str,
        location: &str,
        at: jiff::Timestamp,
    ) -> Result<ResolvedPlace, Problem> {
        if !self
            .locations
            .iter()
            .any(|offered| offered.name == location)
        {
            let names = self.locations.iter().map(|offered| offered.name.as_str());
            return Err(problem("locations", location, "", names));
        }
        let wanted = self
            .server_types
            .iter()
            .find(|offered| offered.name == server_type);
        let Some(wanted) = wanted else {
            let here = self.types_in(location, at);
            return Err(problem("serverTypes", server_type, "", here));
        };
        let Some(available) = wanted.stock_in(location, at) else {
            let here = self.types_in(location, at);
            return Err(problem(
                "serverTypes",
                server_type,
                &format!(" in {location}"),
                here,
            ));
        };
        let image = self.image_for(wanted)?;
        Ok(ResolvedPlace {
            server_type: server_type.to_owned(),
            location: location.to_owned(),
            image: image.id,
            architecture: wanted.architecture.clone(),
            available,
        })
    }

    fn image_for(&self, server_type: &ServerType) -> Result<&Image, Problem> {
        let fits = |image: &&Image| match (&image.architecture, &server_type.architecture) {
            (Some(image), Some(server_type)) => image == server_type,
            _ => true,
        };
        self.images.iter().find(fits).ok_or_else(|| {
            let named = self
                .system_images
                .iter()
                .filter(fits)
                .filter_map(|image| image.name.as_deref());
            let detail = match &server_type.architecture {
                Some(architecture) if !self.images.is_empty() => format!(" for {architecture}"),
                _ => String::new(),
            };
            problem("image", &self.image, &detail, named)
        })
    }

    fn types_in(&self, location: &str, at: jiff::Timestamp) -> impl Iterator<Item = &str> {
        let here = move |offered: &&ServerType| offered.stock_in(location, at).is_some();
        self.server_types
            .iter()
            .filter(here)
            .map(|offered| offered.name.as_str())
    }
}

impl ServerType {
    /// Whether Hetzner lets a server become one of this type where it is, with the disk that it has: the same architecture, in stock in its
    /// location, and a disk that is not smaller.
    pub fn can_be_had_by(&self, server: &Server, at: jiff::Timestamp) -> bool {
        let same = self.architecture.is_some()
            && self.architecture == server.server_type.architecture
            && self.name != server.server_type.name;
        let disks = self.disk.zip(server.primary_disk_size);
        let holds = disks.is_some_and(|(offered, has)| offered >= has);
        same && holds && self.stock_in(&server.location.name, at) == Some(true)
    }

    /// Whether a server of this type can be made of a snapshot, as far as both tell: the same architecture, and a disk that is not smaller.
    pub fn can_hold(&self, snapshot: &Snapshot) -> bool {
        let (own, its) = (&self.architecture, &snapshot.architecture);
        let same = own.is_none() || its.is_none() || own == its;
        let disks = self.disk.zip(snapshot.disk_size);
        same && disks.is_none_or(|(offered, needed)| offered >= needed)
    }

    /// Whether it is in stock in `location`; `None` if it is not offered there (any longer).
    fn stock_in(&self, location: &str, at: jiff::Timestamp) -> Option<bool> {
        if self.locations.is_empty() {
            return Some(true);
        }
        let here = self.locations.iter().find(|here| here.name == location)?;
        let gone = here
            .deprecation
            .as_ref()
            .and_then(|deprecation| deprecation.unavailable_after);
        gone.is_none_or(|gone| at < gone)
            .then_some(here.available != Some(false))
    }
}

fn problem<'a>(
    field: &'static str,
    value: &str,
    detail: &str,
    valid: impl Iterator<Item = &'a str>,
) -> Problem {
    let valid: BTreeSet<&str> = valid.collect();
    Problem {
        field,
        value: value.to_owned(),
        detail: detail.to_owned(),
        valid: valid.into_iter().map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn offer(image: &str, images: serde_json::Value) -> Offer {
        let read = |value: serde_json::Value| serde_json::from_value::<Vec<Image>>(value).unwrap();
        let types = json!([
            {"name": "cx23", "architecture": "x86", "locations": [
                {"name": "nbg1", "available": true, "deprecation": null},
                {"name": "hel1", "available": false, "deprecation": {"unavailable_after": "2026-03-01T00:00:00Z"}},
            ]},
            {"name": "cax11", "architecture": "arm", "locations": [{"name": "nbg1"}, {"name": "hel1"}]},
        ]);
        let types: Vec<ServerType> = serde_json::from_value(types).unwrap();
        let locations = json!([{"name": "nbg1"}, {"name": "hel1"}, {"name": "ash"}]);
        let locations: Vec<Location> = serde_json::from_value(locations).unwrap();
        let system = read(json!([
            {"id": 1, "name": "debian-13", "architecture": "x86"},
            {"id": 2, "name": "debian-13", "architecture": "arm"},
        ]));
        Offer {
            server_types: types.into(),
            locations: locations.into(),
            system_images: system.into(),
            image: image.to_owned(),
            images: read(images).into(),
        }
    }

    fn debian() -> Offer {
        offer(
            "debian-13",
            json!([{"id": 1, "architecture": "x86"}, {"id": 2, "architecture": "arm"}]),
        )
    }

    fn at(text: &str) -> jiff::Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn image_follows_the_architecture_of_the_type() {
        let day = at("2026-02-01T00:00:00Z");
        assert_eq!(
            debian().validate("cx23", "nbg1", day).unwrap().image,
            ImageId(1)
        );
        let arm = debian().validate("cax11", "hel1", day).unwrap();
        assert_eq!(
            (arm.image, arm.architecture, arm.available),
            (ImageId(2), Some(Architecture::Arm), true)
        );
        assert!(!debian().validate("cx23", "hel1", day).unwrap().available);
    }

    #[test]
    fn wrong_values_are_named_with_the_valid_ones() {
        let day = at("2026-04-01T00:00:00Z");
        let table = [
            (
                "cx99",
                "nbg1",
                "serverTypes: cx99 is not offered; valid: cax11, cx23",
            ),
            (
                "cx23",
                "moon",
                "locations: moon is not offered; valid: ash, hel1, nbg1",
            ),
            (
                "cx23",
                "hel1",
                "serverTypes: cx23 is not offered in hel1; valid: cax11",
            ),
        ];
        for (server_type, location, message) in table {
            let problem = debian().validate(server_type, location, day).unwrap_err();
            assert_eq!(problem.to_string(), message);
        }
        let none = offer("debian-99", json!([]))
            .validate("cx23", "nbg1", day)
            .unwrap_err();
        assert_eq!(
            none.to_string(),
            "image: debian-99 is not offered; valid: debian-13"
        );
        let arm_only = offer("77", json!([{"id": 77, "architecture": "arm"}]));
        let problem = arm_only.validate("cx23", "nbg1", day).unwrap_err();
        assert_eq!(
            problem.to_string(),
            "image: 77 is not offered for x86; valid: debian-13"
        );
    }
}
