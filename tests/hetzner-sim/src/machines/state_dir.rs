//! The directory of all that machines keep on disk.
//!
//! A directory that was made here goes with its simulator. One whose simulator was killed is found by its
//! lock, which the kernel drops with the process, and removed by the next simulator.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const PREFIX: &str = "hetzner-sim-";
const LOCK: &str = "lock";

/// A directory that is ours while the lock is held.
pub(crate) struct StateDir {
    pub(crate) path: PathBuf,
    ours: bool,
    _lock: File,
}

impl StateDir {
    /// Takes the wanted directory, or a new one after removing those that were left behind.
    pub(crate) fn make(wanted: Option<&Path>) -> io::Result<Self> {
        if let Some(path) = wanted {
            let lock = take(path)?.ok_or(io::ErrorKind::ResourceBusy)?;
            return Self::with_machines(path, false, lock);
        }
        remove_left_behind(&std::env::temp_dir());
        loop {
            let (pid, random) = (std::process::id(), rand::random::<u32>());
            let path = std::env::temp_dir().join(format!("{PREFIX}{pid}-{random:08x}"));
            if let Some(lock) = take(&path)? {
                return Self::with_machines(&path, true, lock);
            }
        }
    }

    fn with_machines(path: &Path, ours: bool, lock: File) -> io::Result<Self> {
        fs::create_dir_all(path.join("machines"))?;
        Ok(Self {
            path: path.canonicalize()?,
            ours,
            _lock: lock,
        })
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        if self.ours {
            remove(&self.path);
        }
    }
}

/// Removes a directory, its lock last: as long as something is left, it is known to be left behind.
fn remove(path: &Path) {
    let removed = || {
        for entry in fs::read_dir(path)?.flatten() {
            if entry.file_name() == LOCK {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_dir_all(path)
    };
    match removed() {
        // Whoever ended the machines has removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, path = %path.display(), "cannot remove"),
        Ok(()) => {}
    }
}

/// Makes the directory where it is missing and locks it; nothing when somebody else has it.
fn take(path: &Path) -> io::Result<Option<File>> {
    fs::create_dir_all(path)?;
    let lock = File::create(path.join(LOCK))?;
    // Between its making and its lock, a directory may look left behind and be removed.
    let held = lock.try_lock().is_ok();
    let there = fs::metadata(path.join(LOCK)).is_ok_and(|found| {
        lock.metadata()
            .is_ok_and(|ours| (ours.dev(), ours.ino()) == (found.dev(), found.ino()))
    });
    Ok((held && there).then_some(lock))
}

/// Removes directories of simulators that were killed; what cannot be removed is somebody else's.
fn remove_left_behind(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let left = File::open(path.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if left {
            remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_whose_owner_is_gone_are_removed() {
        let parent = StateDir::make(None).unwrap();
        let (left, held, other) = (
            parent.path.join("hetzner-sim-1-left"),
            parent.path.join("hetzner-sim-2-held"),
            parent.path.join("other"),
        );
        drop(take(&left).unwrap().unwrap());
        fs::write(left.join("file"), "").unwrap();
        let lock = take(&held).unwrap().unwrap();
        drop(take(&other).unwrap().unwrap());
        remove_left_behind(&parent.path);
        assert_eq!(
            (left.exists(), held.exists(), other.exists()),
            (false, true, true)
        );
        assert!(take(&held).unwrap().is_none());
        drop(lock);
        remove_left_behind(&parent.path);
        assert!(!held.exists());
    }
}
