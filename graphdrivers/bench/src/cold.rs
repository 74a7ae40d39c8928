//! What "cold" means here: what a user without privilege can do about caches, and no more.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use skiff_graphdrivers::Mount;
use walkdir::WalkDir;

use crate::error::{Error, Result};

/// What readers of the figures need to know.
pub const COLD: &str = "\"first\" means: the container's file system is freshly mounted and the contents of its files were \
                        dropped from the page cache (posix_fadvise DONTNEED). The names and inodes of the file system \
                        below stay cached, because only root can drop those";

/// Directories whose files can be seen through `mounts`.
pub(crate) fn sources(mounts: &[Mount]) -> Vec<PathBuf> {
    let overlay = |lower: &[PathBuf], upper: &Option<(PathBuf, PathBuf)>| {
        let mut all = lower.to_vec();
        all.extend(upper.iter().map(|(upper, _)| upper.clone()));
        all
    };
    mounts
        .iter()
        .flat_map(|mount| match mount {
            Mount::Bind { source, .. } => vec![source.clone()],
            Mount::Overlay(mount) => overlay(&mount.lower, &mount.upper),
            Mount::Fuse(mount) => overlay(&mount.lower, &mount.upper),
        })
        .collect()
}

/// Drops the contents of all files below `directory` from the page cache; what was not yet written stays, so sync
/// before. Symbolic links are followed for `directory` itself only.
pub(crate) fn drop_contents(directory: &Path) -> Result<()> {
    let directory = directory
        .canonicalize()
        .map_err(|error| Error::io(format!("resolve {}", directory.display()), error))?;
    for entry in WalkDir::new(&directory) {
        let entry = entry.map_err(|error| Error::io(format!("walk {}", directory.display()), error))?;
        if entry.file_type().is_file() {
            let path = entry.path();
            let failed = |error| Error::io(format!("drop {} from the cache", path.display()), error);
            let file = File::open(path).map_err(failed)?;
            fadvise(&file, 0, None, Advice::DontNeed).map_err(|errno| failed(errno.into()))?;
        }
    }
    Ok(())
}
