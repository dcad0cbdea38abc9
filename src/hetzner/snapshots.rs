//! Snapshots of a project.

use super::error::Error;
use super::offer::{Architecture, ImageId};
use super::servers::ServerId;
use super::transport::{Call, Client};
use super::wire::{Meta, PER_PAGE, or_default, parsed};
use super::{Labels, Permit};
use serde::Deserialize;

/// One snapshot.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Snapshot {
    /// Its id, as an image.
    pub id: ImageId,
    /// What somebody called it: snapshots have no name.
    #[serde(default, deserialize_with = "or_default")]
    pub description: String,
    /// When it was taken.
    #[serde(default, deserialize_with = "parsed")]
    pub created: Option<jiff::Timestamp>,
    /// Its labels; those of its server are not copied to it.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: Labels,
    /// The server that it was taken from, which may be gone.
    #[serde(default)]
    pub created_from: Option<TakenFrom>,
    /// Its architecture.
    #[serde(default)]
    pub architecture: Option<Architecture>,
    /// What the disk of a server that is made of it has at least, in GB.
    #[serde(default)]
    pub disk_size: Option<f64>,
}

/// The server that a snapshot was taken from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TakenFrom {
    /// Its id.
    pub id: ServerId,
}

#[derive(Deserialize)]
struct Many {
    #[serde(deserialize_with = "or_default")]
    images: Vec<Snapshot>,
    #[serde(default, deserialize_with = "or_default")]
    meta: Meta,
}

impl Client {
    /// One page of the snapshots that a label selector matches, 50 at a time, and the number of the next page; `page` counts from 1.
    ///
    /// # Errors
    /// As every request.
    pub async fn snapshots_page(
        &self,
        permit: Permit,
        selector: &str,
        page: u32,
    ) -> Result<(Vec<Snapshot>, Option<u32>), Error> {
        let call = Call::new("GET /images")
            .query("type", "snapshot")
            .query("label_selector", selector)
            .query("per_page", PER_PAGE.to_string())
            .query("page", page.to_string());
        let answer: Many = self.send(permit, call).await?;
        Ok((answer.images, answer.meta.pagination.next_page))
    }

    /// One page of the snapshots that servers can be made of, whoever took them, 50 at a time, and the number of the next page.
    ///
    /// # Errors
    /// As every request.
    pub async fn usable_snapshots_page(
        &self,
        permit: Permit,
        page: u32,
    ) -> Result<(Vec<Snapshot>, Option<u32>), Error> {
        let call = Call::new("GET /images")
            .query("type", "snapshot")
            .query("status", "available")
            .query("sort", "id:asc")
            .query("per_page", PER_PAGE.to_string())
            .query("page", page.to_string());
        let answer: Many = self.send(permit, call).await?;
        Ok((answer.images, answer.meta.pagination.next_page))
    }
}

#[cfg(test)]
mod tests {
    use super::super::stub::{Reply, client, permit, serve};
    use super::*;
    use serde_json::json;

    /// As Hetzner's description of its API shows one.
    fn example() -> serde_json::Value {
        json!({
            "id": 42, "type": "snapshot", "status": "available", "name": null, "description": "Ubuntu 20.04 Standard 64 bit",
            "image_size": 2.3, "disk_size": 10, "created": "2016-01-30T23:55:00+00:00",
            "created_from": {"id": 7, "name": "Server"}, "bound_to": null, "os_flavor": "ubuntu", "os_version": "20.04",
            "rapid_deploy": false, "protection": {"delete": false}, "deprecated": null, "deleted": null,
            "labels": {}, "architecture": "x86",
        })
    }

    #[tokio::test]
    async fn a_snapshot_tells_its_server_and_what_can_be_made_of_it() {
        let endpoint = serve(|request| {
            assert!(
                request.starts_with("GET /v1/images?type=snapshot&status=available&sort=id%3Aasc&per_page=50&page=2 "),
                "{request}"
            );
            let sparse = json!({"id": 43, "created_from": null, "disk_size": null});
            let meta = json!({"pagination": {"next_page": 3}});
            Reply::json("200 OK", &json!({"images": [example(), sparse], "meta": meta}))
        })
        .await;
        let client = client(&endpoint);
        let (found, next) = client.usable_snapshots_page(permit(), 2).await.unwrap();
        assert_eq!(next, Some(3));
        let expected = Snapshot {
            id: ImageId(42),
            description: "Ubuntu 20.04 Standard 64 bit".into(),
            created: Some("2016-01-30T23:55:00Z".parse().unwrap()),
            labels: Labels::default(),
            created_from: Some(TakenFrom { id: ServerId(7) }),
            architecture: Some(Architecture::X86),
            disk_size: Some(10.0),
        };
        assert_eq!(found[0], expected);
        assert_eq!((found[1].id, &found[1].created_from), (ImageId(43), &None));
    }
}
