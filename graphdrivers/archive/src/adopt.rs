//! Directories that a layer uses and does not describe.
//!
//! Most builders write an entry for each directory above a changed file; some do not. In a tree that holds the lower
//! layers' files nothing is to be done: the directory is there. In an overlay's upper directory it has to be made, and its
//! mode and owner would hide the lower one's: `/tmp` would lose its sticky bit. So, as containerd does (Docker leaves it
//! at 0755 root), it takes the metadata of the directory that shows through from below. This happens after the layer is
//! on top of its parent, because layers of one chain are unpacked side by side.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::WhiteoutFormat;
use crate::copy::copy_metadata;
use crate::error::{Error, Result, show};
use crate::root::directory_flags;
use crate::whiteout::{is_opaque, stat_at};

/// Bytes of names that are kept; what is beyond keeps the mode 0755.
const NAMES_MAX: usize = 8 << 20;

/// Names of such directories, parents before their children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImpliedDirectories {
    /// Each ends with a zero byte.
    names: Vec<u8>,
}

impl ImpliedDirectories {
    pub(crate) fn push(&mut self, path: &[u8]) {
        if self.names.len() + path.len() < NAMES_MAX {
            self.names.extend_from_slice(path);
            self.names.push(0);
        }
    }

    /// Whether the layer described all directories that it uses.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The names, relative to the layer's root.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.names.split(|&b| b == 0).filter(|name| !name.is_empty())
    }
}

/// Gives the `implied` directories of `upper` the metadata of those below: `lower` are directories in the same whiteout
/// format, topmost first.
///
/// # Errors
/// `Io`; `NoSpace`.
pub fn adopt_directories(
    upper: &Path,
    whiteouts: WhiteoutFormat,
    lower: &[PathBuf],
    implied: &ImpliedDirectories,
) -> Result<()> {
    if implied.is_empty() || whiteouts == WhiteoutFormat::Delete {
        return Ok(());
    }
    let open = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::open(path, flags, Mode::empty())
            .map_err(|errno| Error::os(format!("open directory {}", path.display()), errno))
    };
    let upper = open(upper)?;
    let lower = lower.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
    for path in implied.iter() {
        let failed = |errno| Error::os(format!("look for /{} in lower layers", show(path)), errno);
        // A member that came later may have replaced or described it.
        let Ok(made) = descend(&upper, path) else { continue };
        if let Some(below) = visible(&lower, whiteouts, path).map_err(failed)? {
            copy_metadata(&below, &made, path)?;
        }
    }
    Ok(())
}

/// The directory that an overlay of `lower` shows as `path`.
fn visible(lower: &[OwnedFd], format: WhiteoutFormat, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    for layer in lower {
        match look(layer, format, path)? {
            Looked::Found(directory) => return Ok(Some(directory)),
            Looked::Hidden => return Ok(None),
            Looked::Further => {}
        }
    }
    Ok(None)
}

enum Looked {
    Found(OwnedFd),
    /// Neither here nor further below.
    Hidden,
    /// Layers further below may have it.
    Further,
}

fn look(layer: &OwnedFd, format: WhiteoutFormat, path: &[u8]) -> Result<Looked, Errno> {
    let mut here = fs::openat(layer, ".", directory_flags(), Mode::empty())?;
    let mut opaque = false;
    for part in path.split(|&b| b == b'/') {
        match stat_at(&here, part) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
            // A whiteout, or something that is no directory: both end it.
            Ok(_) => return Ok(Looked::Hidden),
            Err(Errno::NOENT) if opaque => return Ok(Looked::Hidden),
            Err(Errno::NOENT) => return Ok(Looked::Further),
            Err(errno) => return Err(errno),
        }
        here = fs::openat(&here, part, directory_flags(), Mode::empty())?;
        opaque |= is_opaque(&here, format)?;
    }
    Ok(Looked::Found(here))
}

fn descend(top: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut here = fs::openat(top, ".", directory_flags(), Mode::empty())?;
    for part in path.split(|&b| b == b'/') {
        here = fs::openat(here.as_fd(), part, directory_flags(), Mode::empty())?;
    }
    Ok(here)
}
