//! One layer: a directory tree on disk, and the marks that overlay file systems leave in it.
//!
//! Written by us: `0:0` character devices as whiteouts, `user.overlay.opaque=y`. Understood besides: the kernel's
//! whiteouts as attributes (`user.overlay.whiteout` on an empty file in a directory with `user.overlay.opaque=x`), the
//! files `.wh.NAME` and `.wh..wh..opq` of fuse-overlayfs and Podman, and the attribute `user.fuseoverlayfs.opaque`.
//! Never followed, wherever they come from: `redirect` and `metacopy`, by which an image could point anywhere. What has
//! them cannot be shown as it was meant, so that it is EPERM, as with the kernel.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::config::XattrNamespace;
use super::descriptors::DirectoryFd;
use super::{NewError, Result, proc};

/// Prefix of whiteouts that are files.
pub(super) const DOT_WHITEOUT: &[u8] = b".wh.";
/// Its file that makes a directory opaque.
const DOT_OPAQUE: &str = ".wh..wh..opq";
/// Its attribute that does.
const FUSE_OPAQUE: &str = "user.fuseoverlayfs.opaque";
/// What its attributes begin with.
const FUSE_PREFIX: &[u8] = b"user.fuseoverlayfs.";

/// Index of the upper directory among the layers of a writable overlay.
pub(super) const UPPER: u16 = 0;

/// Names of overlayfs's own attributes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    pub(super) opaque: &'static str,
    /// Of ours alone: says of a file `.wh.NAME` that a user made it and it is no whiteout.
    pub(super) plain: &'static str,
    whiteout: &'static str,
    redirect: &'static [u8],
    pub(super) metacopy: &'static [u8],
    /// What is private begins with this.
    pub(super) prefix: &'static [u8],
    /// And what users call so is kept under names that begin with this.
    pub(super) escaped: &'static [u8],
}

impl Marks {
    pub(super) fn of(namespace: XattrNamespace) -> Self {
        match namespace {
            XattrNamespace::User => Self {
                opaque: "user.overlay.opaque",
                plain: "user.overlay.plain",
                whiteout: "user.overlay.whiteout",
                redirect: b"user.overlay.redirect",
                metacopy: b"user.overlay.metacopy",
                prefix: b"user.overlay.",
                escaped: b"user.overlay.overlay.",
            },
            XattrNamespace::Trusted => Self {
                opaque: "trusted.overlay.opaque",
                plain: "trusted.overlay.plain",
                whiteout: "trusted.overlay.whiteout",
                redirect: b"trusted.overlay.redirect",
                metacopy: b"trusted.overlay.metacopy",
                prefix: b"trusted.overlay.",
                escaped: b"trusted.overlay.overlay.",
            },
        }
    }

    /// Whether an attribute on disk is none of the users' business.
    pub(super) fn is_private(&self, name: &[u8]) -> bool {
        (name.starts_with(self.prefix) && !name.starts_with(self.escaped))
            || name.starts_with(FUSE_PREFIX)
            || super::xattr::OVERRIDES.iter().any(|o| o.as_bytes() == name)
    }
}

/// How a directory of a layer stands to those below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opacity {
    /// Merges with them.
    Clear,
    /// Hides them.
    Opaque,
    /// Merges, and may hold whiteouts that are attributes.
    XattrWhiteouts,
    /// Says that it merges with a directory of another name.
    Redirected,
}

/// An opened layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) root: Arc<DirectoryFd>,
    pub(super) root_stat: Stat,
    /// Its root says that it may hold whiteouts that are attributes.
    pub(super) xattr_whiteouts: bool,
    /// Attribute that holds owners and modes.
    pub(super) override_stat: Option<&'static str>,
    /// Contents could be shared with the upper directory so far.
    pub(super) shares: AtomicBool,
}

impl Layer {
    pub(super) fn open(path: &Path, marks: &Marks) -> std::result::Result<Self, NewError> {
        let failed = |errno| NewError::new(format!("open layer {}", path.display()), errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(path, flags, Mode::empty()).map_err(failed)?;
        let root_stat = fs::fstat(&root).map_err(failed)?;
        let override_stat = super::xattr::OVERRIDES
            .into_iter()
            .find(|name| fs::fgetxattr(&root, *name, &mut [0u8; 64][..]).is_ok());
        Ok(Self {
            xattr_whiteouts: opacity(&root, marks).map_err(failed)? == Opacity::XattrWhiteouts,
            root: DirectoryFd::permanent(root),
            root_stat,
            override_stat,
            shares: AtomicBool::new(true),
        })
    }

    pub(super) fn shares(&self) -> bool {
        self.shares.load(Ordering::Relaxed)
    }
}

/// What a name in a directory is, without following it; `None` if there is none.
pub(super) fn stat_at(parent: impl AsFd, name: &OsStr) -> Result<Option<Stat>> {
    match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(super) fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// A character device 0:0.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    kind_of(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// What stands for a whiteout where nobody can make devices, under the name `.wh.NAME`: an empty file. In layers that
/// came from an archive it has the archive's mode (Podman unpacks images so). In the upper directory only those count
/// that an overlay made, fuse-overlayfs (0700) or Podman (0): a container may use such names for files of its own. Those
/// made through us are marked.
pub(super) fn is_dot_whiteout(
    parent: impl AsFd,
    name: &OsStr,
    stat: &Stat,
    upper: bool,
    marks: &Marks,
) -> bool {
    if is_whiteout(stat) {
        return true;
    }
    let empty = kind_of(stat) == FileType::RegularFile && stat.st_size == 0;
    let path = || proc::child(parent.as_fd(), name);
    empty
        && (!upper
            || (matches!(stat.st_mode & 0o7777, 0o700 | 0)
                && fs::lgetxattr(path(), marks.plain, &mut [0u8; 8][..]).is_err()))
}

/// The kernel's whiteout as an attribute, in a directory that may hold such.
pub(super) fn is_xattr_whiteout(parent: impl AsFd, name: &OsStr, stat: &Stat, marks: &Marks) -> bool {
    kind_of(stat) == FileType::RegularFile
        && stat.st_size == 0
        && fs::lgetxattr(
            proc::child(parent.as_fd(), name),
            marks.whiteout,
            &mut [0u8; 8][..],
        )
        .is_ok()
}

/// Whether there is a file `.wh.NAME` that is a whiteout for `name`.
pub(super) fn has_dot_whiteout(parent: impl AsFd, name: &OsStr, upper: bool, marks: &Marks) -> Result<bool> {
    let name = [DOT_WHITEOUT, name.as_bytes()].concat();
    let name = OsStr::from_bytes(&name);
    match stat_at(&parent, name) {
        Ok(found) => Ok(found.is_some_and(|stat| is_dot_whiteout(parent, name, &stat, upper, marks))),
        Err(Errno::NAMETOOLONG) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Reads the marks of an open directory.
pub(super) fn opacity(directory: impl AsFd, marks: &Marks) -> Result<Opacity> {
    let fd = directory.as_fd();
    let path = proc::itself(fd);
    let list = match super::xattr::grow(|buffer| fs::listxattr(&path, buffer)) {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP) => Vec::new(),
        Err(errno) => return Err(errno),
    };
    let mut merges = Opacity::Clear;
    for name in list.split(|&b| b == 0) {
        if name == marks.redirect {
            merges = Opacity::Redirected;
        }
        if name != marks.opaque.as_bytes() && name != FUSE_OPAQUE.as_bytes() {
            continue;
        }
        let mut value = [0u8; 8];
        match fs::getxattr(&path, name, &mut value[..]) {
            Ok(1) if value[0] == b'y' => return Ok(Opacity::Opaque),
            Ok(1) if value[0] == b'x' && merges == Opacity::Clear => merges = Opacity::XattrWhiteouts,
            Ok(_) | Err(Errno::NODATA | Errno::RANGE) => {}
            Err(errno) => return Err(errno),
        }
    }
    match stat_at(fd, OsStr::new(DOT_OPAQUE))? {
        Some(stat) if kind_of(&stat) != FileType::Directory => Ok(Opacity::Opaque),
        _ => Ok(merges),
    }
}
