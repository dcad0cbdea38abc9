//! The snapshots of a project, for those whose server is lost: one list for all who ask for theirs at the same time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    connection::Connection,
    request::{Asked, Failure},
};
use crate::hetzner::{ImageId, Lane, Place, ServerId, Snapshot};

/// How long a list serves those who come after: as long as it takes to notice what was lost together.
const FRESH: Duration = Duration::from_secs(5);

/// What was listed last, and when that was begun.
#[derive(Default)]
pub struct SnapshotList(tokio::sync::Mutex<Option<(Instant, Arc<[Snapshot]>)>>);

/// The newest of the snapshots of a server; beside its own, that which it was made of is one.
pub fn newest_of(all: &[Snapshot], server: ServerId, made_of: Option<ImageId>) -> Option<Snapshot> {
    let is_its = |snapshot: &&Snapshot| {
        let from = snapshot.created_from.as_ref();
        from.is_some_and(|from| from.id == server) || Some(snapshot.id) == made_of
    };
    let its = all.iter().filter(is_its);
    let told = its.filter(|snapshot| snapshot.created.is_some());
    told.max_by_key(|snapshot| (snapshot.created, snapshot.id))
        .cloned()
}

impl Connection {
    /// Lists the snapshots of the project that servers can be made of, unless somebody else has just done so.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn list_snapshots(&self) -> Result<Arc<[Snapshot]>, Failure> {
        let mut known = self.snapshots.0.lock().await;
        if let Some((begun, all)) = known.as_ref()
            && begun.elapsed() < FRESH
        {
            return Ok(Arc::clone(all));
        }
        let begun = Instant::now();
        let asked = Asked {
            lane: Lane::ReplaceVanished,
            who: "snapshots",
            route: "GET /images snapshots",
        };
        let (mut all, mut next) = (vec![], Some(1));
        while let Some(page) = next {
            let read = self.read(asked, async |client, permit| {
                client.usable_snapshots_page(permit, page).await
            });
            let (snapshots, after) = read.await?;
            all.extend(snapshots);
            next = after.filter(|after| *after > page);
        }
        let all: Arc<[Snapshot]> = all.into();
        *known = Some((begun, Arc::clone(&all)));
        Ok(all)
    }

    /// Those of the places where a server can be made of a snapshot; all of them, while the types were not read yet.
    pub fn holding(&self, places: &[Place], snapshot: &Snapshot) -> Vec<Place> {
        let Some(types) = self.catalogue.server_types() else {
            return places.to_vec();
        };
        let can = |place: &&Place| {
            let offered = types
                .iter()
                .find(|offered| offered.name == place.server_type);
            offered.is_some_and(|offered| offered.can_hold(snapshot))
        };
        places.iter().filter(can).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hetzner::TakenFrom;

    fn snapshot(id: u64, server: u64, second: Option<i64>) -> Snapshot {
        Snapshot {
            id: ImageId(id),
            created: second.map(|second| jiff::Timestamp::from_second(second).unwrap()),
            created_from: Some(TakenFrom {
                id: ServerId(server),
            }),
            ..Snapshot::default()
        }
    }

    #[test]
    fn the_newest_snapshot_of_the_server_counts_or_what_it_was_made_of_and_no_other() {
        let all = [
            snapshot(1, 41, Some(10)),
            snapshot(2, 41, Some(30)),
            snapshot(3, 41, Some(20)),
            snapshot(4, 99, Some(40)),
            snapshot(5, 41, None),
            Snapshot {
                created_from: None,
                ..snapshot(6, 0, Some(50))
            },
        ];
        let newest = |server, made_of: Option<u64>| {
            let found = newest_of(&all, ServerId(server), made_of.map(ImageId));
            found.map(|snapshot| snapshot.id.0)
        };
        assert_eq!(newest(41, None), Some(2));
        assert_eq!(newest(42, None), None);
        assert_eq!(newest(42, Some(3)), Some(3), "none of its own yet");
        assert_eq!(newest(99, Some(1)), Some(4), "its own is newer");
        assert_eq!(newest(42, Some(7)), None, "it is not there any more");
    }
}
