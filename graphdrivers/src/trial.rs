//! A directory to try things in: what works on a file system is found out by doing it there.
//!
//! It lies beside the drivers' directories and not in one, so that a driver that does not work leaves nothing that looks
//! like a prior one. A trial holds a lock on its directory; one that was killed has let go of it, and the next trial of
//! the same driver takes it away. Several processes may try at the same time (a benchmark beside a daemon).

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{ErrorKind, Result};
use crate::mounter;
use crate::snapshots::{is_ours, make_directory, read_dir, unique_name};

const PREFIX: &str = ".probe-";

/// Where a trial may mount something; taken down with it.
pub(crate) const MOUNT_POINT: &str = "merged";

/// A directory that is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Trial {
    path: PathBuf,
    _lock: Option<File>,
}

/// What asking for a lock gives.
enum Lock {
    Taken(File),
    /// Somebody has it, or the directory is gone.
    Busy,
    /// This file system has none (NFS has none for directories). A trial goes on without, and left-overs stay.
    None,
}

impl Trial {
    /// Makes an empty directory on the file system of `data_root`: in it, or above it while there is no data root.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn begin(data_root: &Path, driver: &str) -> Result<Self> {
        let place = existing(data_root);
        let prefix = format!("{PREFIX}{driver}-");
        for path in read_dir(place)? {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(&prefix))
                && let Lock::Taken(_lock) = lock(&path)
                && let Err(error) = discard(&path)
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove what an earlier trial left");
            }
        }
        loop {
            let path = place.join(format!("{prefix}{}", unique_name()));
            make_directory(&path, 0o700)?;
            match lock(&path) {
                Lock::Taken(lock) => {
                    return Ok(Self {
                        path,
                        _lock: Some(lock),
                    });
                }
                Lock::None => return Ok(Self { path, _lock: None }),
                // Somebody else has taken the unlocked directory for a left-over.
                Lock::Busy => {}
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Err(error) = discard(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove what a trial left");
        }
    }
}

/// The outcome of a trial; on a full disk, for a driver that has its layers in `root` already, what it can go on with
/// untried. Without the driver nobody could remove what fills the disk.
pub(crate) fn unless_full<T>(
    outcome: Result<T>,
    driver: &str,
    root: &Path,
    untried: impl FnOnce() -> T,
) -> Result<T> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NoSpace && is_ours(driver, root) => {
            tracing::warn!(
                "[graphdriver] {driver} could not be tried out, because the disk is full ({error}); it is used all the \
                 same, as it was before, so that images and containers can be removed"
            );
            Ok(untried())
        }
        outcome => outcome,
    }
}

/// The deepest directory on the way to `path` that is there.
pub(crate) fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"))
}

fn lock(path: &Path) -> Lock {
    let Ok(file) = File::open(path) else {
        return Lock::Busy;
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        // It may have been removed between the two calls, by who had the lock before.
        Ok(()) if path.exists() => Lock::Taken(file),
        Ok(()) | Err(Errno::WOULDBLOCK) => Lock::Busy,
        Err(_) => Lock::None,
    }
}

fn discard(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    mounter::detach(&path.join(MOUNT_POINT))?;
    crate::btrfs::remove_tree(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_a_killed_trial_left_is_removed_and_a_living_one_stays() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("not/yet");
        let left = root.path().join(".probe-x-0123");
        fs::create_dir_all(left.join("merged/deep")).unwrap();
        let first = Trial::begin(&data, "x").unwrap();
        assert!(!left.exists() && first.path().starts_with(root.path()));
        let second = Trial::begin(&data, "x").unwrap();
        assert!(first.path().is_dir() && first.path() != second.path());
        fs::write(second.path().join("file"), "x").unwrap();
        drop((first, second));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
