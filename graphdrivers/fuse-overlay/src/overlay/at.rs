//! A file to act on: by its name in an open directory, or by a descriptor of its own where it has no name.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, AtFlags, CWD, Gid, Mode, OFlags, Stat, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::lock::read;
use super::node::Node;
use super::{Overlay, Result, proc};

/// See above. Names are never followed; a descriptor may be `O_PATH`.
#[derive(Debug, Clone, Copy)]
pub(super) enum At<'a> {
    Name(BorrowedFd<'a>, &'a OsStr),
    Fd(BorrowedFd<'a>),
}

impl Overlay {
    /// Does something with the file where it is now, in the layer given; no rename comes in between.
    pub(super) fn with<T>(&self, node: &Arc<Node>, act: impl FnOnce(At<'_>, u16) -> Result<T>) -> Result<T> {
        if node.is_directory() {
            let (fd, layer) = self.top_fd(node)?;
            return act(At::Fd(fd.as_fd()), layer);
        }
        let place = read(&node.place);
        if let Some(fd) = &place.fd {
            return act(At::Fd(fd.as_fd()), place.layer);
        }
        let parent = place.parent.as_ref().ok_or(Errno::STALE)?.node();
        let slot = self.directory_of(parent)?.slot(place.layer).ok_or(Errno::STALE)?;
        let fd = self.slot_fd(parent, slot)?;
        act(At::Name(fd.as_fd(), &place.name), place.layer)
    }
}

impl At<'_> {
    pub(super) fn stat(&self) -> Result<Stat> {
        match self {
            Self::Name(directory, name) => fs::statat(directory, *name, AtFlags::SYMLINK_NOFOLLOW),
            Self::Fd(fd) => fs::fstat(fd),
        }
    }

    /// Opens it. Not for symbolic links, and `flags` must not create.
    pub(super) fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        match self {
            Self::Name(directory, name) => fs::openat(
                directory,
                *name,
                flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            ),
            Self::Fd(fd) => fs::open(proc::itself(*fd), flags | OFlags::CLOEXEC, Mode::empty()),
        }
    }

    pub(super) fn chown(&self, uid: Option<Uid>, gid: Option<Gid>) -> Result<()> {
        match self {
            Self::Name(directory, name) => fs::chownat(directory, *name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
            Self::Fd(fd) => fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    /// Not for symbolic links, which have no mode.
    pub(super) fn chmod(&self, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match self {
            Self::Name(directory, name) => fs::chmodat(directory, *name, mode, AtFlags::empty()),
            Self::Fd(fd) => match fs::fchmod(fd, mode) {
                Err(Errno::BADF) => fs::chmod(proc::itself(*fd), mode),
                outcome => outcome,
            },
        }
    }

    pub(super) fn set_times(&self, times: &Timestamps) -> Result<()> {
        match self {
            Self::Name(directory, name) => fs::utimensat(directory, *name, times, AtFlags::SYMLINK_NOFOLLOW),
            Self::Fd(fd) => match fs::futimens(fd, times) {
                Err(Errno::BADF) => fs::utimensat(CWD, proc::itself(*fd), times, AtFlags::empty()),
                outcome => outcome,
            },
        }
    }

    pub(super) fn read_link(&self) -> Result<Vec<u8>> {
        match self {
            Self::Name(directory, name) => fs::readlinkat(directory, *name, Vec::new()),
            Self::Fd(fd) => fs::readlinkat(fd, c"", Vec::new()),
        }
        .map(CString::into_bytes)
    }

    pub(super) fn get_xattr(&self, name: &[u8], buffer: &mut [u8]) -> Result<usize> {
        match self {
            Self::Name(directory, file) => fs::lgetxattr(proc::child(*directory, file), name, buffer),
            Self::Fd(fd) => fs::getxattr(proc::itself(*fd), name, buffer),
        }
    }

    pub(super) fn set_xattr(&self, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        match self {
            Self::Name(directory, file) => fs::lsetxattr(proc::child(*directory, file), name, value, flags),
            Self::Fd(fd) => fs::setxattr(proc::itself(*fd), name, value, flags),
        }
    }

    pub(super) fn list_xattrs(&self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Self::Name(directory, file) => fs::llistxattr(proc::child(*directory, file), buffer),
            Self::Fd(fd) => fs::listxattr(proc::itself(*fd), buffer),
        }
    }

    pub(super) fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        match self {
            Self::Name(directory, file) => fs::lremovexattr(proc::child(*directory, file), name),
            Self::Fd(fd) => fs::removexattr(proc::itself(*fd), name),
        }
    }
}
