//! Extended attributes between archives and files.
//!
//! overlayfs keeps its own state in `user.overlay.*` and `trusted.overlay.*`. Such names never go from an archive to
//! the disk (an image could otherwise redirect a file to any other) nor from the disk into an archive.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

use crate::entry::{Entry, Xattrs};
use crate::error::{Error, Result, show};

/// Where attributes are written or read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// An open file or directory (not opened with `O_PATH`).
    Open(BorrowedFd<'a>),
    /// A name in a directory, not followed.
    Name(BorrowedFd<'a>, &'a [u8]),
}

impl Place<'_> {
    /// The kernel has no calls relative to a directory before 6.13; `/proc/self/fd` gives the same.
    fn path(parent: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
        [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat()
    }
}

/// The value of an attribute.
pub(crate) fn get<'a>(attributes: &'a Xattrs, name: &[u8]) -> Option<&'a [u8]> {
    let found = attributes.binary_search_by(|(there, _)| there[..].cmp(name));
    found.ok().map(|place| &attributes[place].1[..])
}

/// Whether a name belongs to overlayfs itself.
pub(crate) fn is_overlay_state(name: &[u8]) -> bool {
    name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.")
}

/// Writes the attributes of a member; gives how many could not be written and were left out.
///
/// As with Docker, EPERM (a user namespace has no `trusted.*` nor `security.selinux`) and ENOTSUP (the file system has
/// none) leave an attribute out; everything else is an error.
pub(crate) fn write(place: Place<'_>, entry: &Entry, path: &[u8]) -> Result<u64> {
    let mut skipped = 0;
    for (name, value) in &entry.xattrs {
        if is_overlay_state(name) {
            skipped += 1;
            tracing::warn!(
                path = show(path),
                attribute = show(name),
                "attribute of overlayfs in a layer left out"
            );
            continue;
        }
        let outcome = match place {
            Place::Open(fd) => fs::fsetxattr(fd, &name[..], value, XattrFlags::empty()),
            Place::Name(parent, base) => {
                fs::lsetxattr(Place::path(parent, base), &name[..], value, XattrFlags::empty())
            }
        };
        match outcome {
            Ok(()) => {}
            Err(errno @ (Errno::PERM | Errno::OPNOTSUPP)) => {
                skipped += 1;
                tracing::debug!(path = show(path), attribute = show(name), %errno, "attribute left out");
            }
            Err(errno) => {
                return Err(Error::os(
                    format!("set attribute {:?} of /{}", show(name), show(path)),
                    errno,
                ));
            }
        }
    }
    Ok(skipped)
}

/// Removes the attributes of an open directory that the member does not have.
pub(crate) fn remove_others(directory: BorrowedFd<'_>, entry: &Entry, path: &[u8]) -> Result<()> {
    let failed = |errno| Error::os(format!("remove attributes of /{}", show(path)), errno);
    for (name, _) in read(Place::Open(directory)).map_err(failed)? {
        if get(&entry.xattrs, &name).is_none() {
            match fs::fremovexattr(directory, &name[..]) {
                Ok(()) | Err(Errno::PERM | Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
    Ok(())
}

/// The attributes of a file that belong into an archive, sorted by name.
///
/// These are `user.*`, `trusted.*`, ACLs and `security.capability`; other `security.*` names (SELinux, IMA, Smack) say
/// something about this host, not about the file.
pub(crate) fn read(place: Place<'_>) -> Result<Xattrs, Errno> {
    let list = match grow(|buffer| match place {
        Place::Open(fd) => fs::flistxattr(fd, buffer),
        Place::Name(parent, base) => fs::llistxattr(Place::path(parent, base), buffer),
    }) {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in list.split(|&b| b == 0).filter(|name| belongs_into_archive(name)) {
        let value = grow(|buffer| match place {
            Place::Open(fd) => fs::fgetxattr(fd, name, buffer),
            Place::Name(parent, base) => fs::lgetxattr(Place::path(parent, base), name, buffer),
        });
        match value {
            Ok(value) => found.push((name.to_vec(), value)),
            // Removed meanwhile, or listed but not readable in this namespace.
            Err(Errno::NODATA | Errno::PERM | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn belongs_into_archive(name: &[u8]) -> bool {
    if name.is_empty() || is_overlay_state(name) {
        return false;
    }
    name == b"security.capability" || !(name.starts_with(b"security.") || name.starts_with(b"system.nfs4"))
}

/// Calls `get` with a buffer that fits.
fn grow(get: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match get(&mut buffer) {
            Ok(n) => {
                buffer.truncate(n);
                return Ok(buffer);
            }
            // The kernel's limit is 64 KiB.
            Err(Errno::RANGE) if buffer.len() < 1 << 17 => buffer.resize(buffer.len() * 8, 0),
            Err(errno) => return Err(errno),
        }
    }
}
