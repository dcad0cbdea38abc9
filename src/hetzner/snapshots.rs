//! Snapshots of a project, as far as they carry labels.

use super::error::Error;
use super::offer::ImageId;
use super::transport::{Call, Client};
use super::wire::{Meta, PER_PAGE, or_default, parsed};
use super::{Labels, Permit};
use serde::Deserialize;

/// One snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Snapshot {
    /// Its id, as an image.
    pub id: ImageId,
    /// What somebody called it: snapshots have no name.
    #[serde(default, deserialize_with = "or_default")]
    pub description: String,
    /// When it was taken.
    #[serde(default, deserialize_with = "parsed")]
    pub created: Option<jiff::Timestamp>,
    /// Its labels.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: Labels,
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
}
