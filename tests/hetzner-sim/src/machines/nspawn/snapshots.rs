//! What disks lie on: the layers of snapshots, which go once they were deleted and nothing lies on them any more.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Mutex;

use tokio::sync::watch;

use crate::machines::fleet::lock;

/// The directories that a disk lies on, the topmost first.
pub(crate) type Layers = Vec<PathBuf>;

/// All snapshots of a simulator, and the disks that may lie on them.
pub(crate) struct Snapshots {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The layers of each snapshot, once its copy is made.
    taken: HashMap<u64, watch::Sender<Option<Layers>>>,
    /// Those that were deleted, and are still there.
    unwanted: BTreeSet<u64>,
    /// What the disk of each server lies on, or is to lie on.
    disks: HashMap<u64, Layers>,
}

impl Snapshots {
    pub(crate) fn new(folder: PathBuf) -> Self {
        let state = Mutex::default();
        Self { folder, state }
    }

    fn layer(&self, image: u64) -> PathBuf {
        self.folder.join(image.to_string())
    }

    /// A copy is to be made.
    pub(crate) fn begin(&self, image: u64) {
        let taken = watch::Sender::new(None);
        lock(&self.state).taken.insert(image, taken);
    }

    /// The copy of a server's disk is made.
    pub(crate) fn made(&self, image: u64, server: u64) {
        let state = lock(&self.state);
        let below = state.disks.get(&server).cloned().unwrap_or_default();
        if let Some(snapshot) = state.taken.get(&image) {
            let layers = [self.layer(image)].into_iter().chain(below).collect();
            snapshot.send_replace(Some(layers));
        }
    }

    /// The disk of a server is to lie on that snapshot, too.
    pub(crate) fn reserve(&self, server: u64, image: u64) {
        let mut state = lock(&self.state);
        let layers = state.disks.entry(server).or_default();
        layers.push(self.layer(image));
    }

    /// The layers of a snapshot, once its copy is made; none where there is no such snapshot.
    pub(crate) async fn layers_of(&self, image: u64) -> Option<Layers> {
        let taken = lock(&self.state).taken.get(&image)?.subscribe();
        let mut taken = taken;
        let layers = taken.wait_for(Option::is_some).await.ok()?;
        layers.clone()
    }

    /// The disk of a server lies on these layers and no others.
    pub(crate) fn lies_on(&self, server: u64, layers: Layers) {
        lock(&self.state).disks.insert(server, layers);
    }

    /// The disk of a server is gone.
    pub(crate) fn disk_gone(&self, server: u64) {
        lock(&self.state).disks.remove(&server);
    }

    /// Nobody is to begin from that snapshot any more.
    pub(crate) fn delete(&self, image: u64) {
        lock(&self.state).unwanted.insert(image);
    }

    /// Forgets a deleted snapshot on whose layer neither a disk nor another snapshot lies; that layer is then to be removed.
    pub(crate) fn next_unused(&self) -> Option<u64> {
        let mut state = lock(&self.state);
        let is_unused = |image: &&u64| {
            let layer = self.layer(**image);
            let is_made = |id: &u64| state.taken.get(id).is_some_and(|of| of.borrow().is_some());
            let below_another = state.taken.iter().any(|(other, layers)| {
                let layers = layers.borrow();
                other != *image && layers.as_ref().is_some_and(|all| all.contains(&layer))
            });
            is_made(image)
                && !below_another
                && !state.disks.values().any(|all| all.contains(&layer))
        };
        let image = state.unwanted.iter().find(is_unused).copied()?;
        state.unwanted.remove(&image);
        state.taken.remove(&image);
        Some(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deleted_snapshot_goes_when_neither_disk_nor_snapshot_lies_on_it() {
        let snapshots = Snapshots::new("/s".into());
        snapshots.lies_on(1, vec!["/root".into()]);
        snapshots.begin(10);
        snapshots.delete(10);
        assert_eq!(snapshots.next_unused(), None, "its copy is being made");
        snapshots.made(10, 1);
        snapshots.reserve(2, 10);
        assert_eq!(snapshots.next_unused(), None, "a disk is to lie on it");
        snapshots.lies_on(2, vec!["/s/10".into(), "/root".into()]);
        snapshots.begin(11);
        snapshots.made(11, 2);
        snapshots.disk_gone(2);
        assert_eq!(snapshots.next_unused(), None, "another snapshot lies on it");
        snapshots.delete(11);
        assert_eq!(snapshots.next_unused(), Some(11));
        assert_eq!(snapshots.next_unused(), Some(10));
        assert_eq!(snapshots.next_unused(), None);
    }
}
