//! Removing a tree that nobody uses any more.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, Mode, OFlags};

use crate::error::{Error, Result};
use crate::root::remove_all;

/// Removes `path` and everything below, without following anything; a missing path is no error.
///
/// Gives the bytes of the regular files whose last name is gone with it.
///
/// # Errors
/// `Io`, also when something inside is a mount point (EBUSY): nothing that is mounted is ever removed.
pub fn remove_tree(path: &Path) -> Result<u64> {
    let failed = |errno| Error::os(format!("remove {}", path.display()), errno);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(rustix::io::Errno::INVAL));
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = fs::open(parent, flags, Mode::empty()).map_err(failed)?;
    Ok(remove_all(&parent, name.as_bytes()).map_err(failed)?.bytes)
}
