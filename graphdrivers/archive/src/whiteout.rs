//! How deletions are put on disk, in each [`WhiteoutFormat`].
//!
//! A whiteout concerns the layers below only (OCI image specification, "Whiteouts"): what this layer itself has
//! written under the same name stays. With [`WhiteoutFormat::Delete`] the lower layers' files are in the same
//! directory, so the names this layer wrote are remembered (as hashes with a key of this process: eight bytes a name
//! whatever its length, and no archive can make two of them meet).

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags, FileType, Mode, Stat, XattrFlags};
use rustix::io::Errno;

use crate::WhiteoutFormat;
use crate::error::{Error, ErrorKind, Result, show};
use crate::root::{Directory, directory_flags, names, remove_all};

/// Attribute of an opaque directory, where overlayfs looks for it.
pub(crate) const OPAQUE_TRUSTED: &str = "trusted.overlay.opaque";
/// The same for mounts with `userxattr`.
pub(crate) const OPAQUE_USER: &str = "user.overlay.opaque";

/// What fuse-overlayfs puts into an opaque directory when it has no privilege: AUFS's mark, which it shows to nobody.
const OPAQUE_FILE: &[u8] = b".wh..wh..opq";
/// How all such names begin.
const MARK_PREFIX: &[u8] = b".wh.";

/// Records deletions.
#[derive(Debug)]
pub(crate) struct Whiteouts {
    format: WhiteoutFormat,
    /// Names that this layer wrote, with their directory's inode; only kept for `Delete`.
    written: HashSet<u64>,
    key: RandomState,
}

impl Whiteouts {
    pub(crate) fn new(format: WhiteoutFormat) -> Self {
        Self {
            format,
            written: HashSet::new(),
            key: RandomState::new(),
        }
    }

    /// Remembers that this layer has `base` in the directory with inode `parent`.
    pub(crate) fn written(&mut self, parent: u64, base: &[u8]) {
        if self.format == WhiteoutFormat::Delete {
            self.written.insert(self.key.hash_one((parent, base)));
        }
    }

    fn wrote(&self, parent: u64, base: &[u8]) -> bool {
        self.written.contains(&self.key.hash_one((parent, base)))
    }

    /// Deletes `name`; says whether a directory or symbolic link vanished.
    pub(crate) fn delete(&self, parent: &Directory, name: &[u8]) -> Result<bool> {
        let failed = |errno| Error::os(format!("delete {:?}", show(name)), errno);
        if self.format == WhiteoutFormat::Delete {
            if self.wrote(parent.inode, name) {
                return Ok(false);
            }
            return Ok(remove_all(parent, name).map_err(failed)?.path_changed);
        }
        match fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(false),
            Err(Errno::EXIST) => {
                // This layer has the name itself: a file hides the lower one anyway, a directory must not merge.
                match fs::openat(parent, name, directory_flags(), Mode::empty()) {
                    Ok(directory) => self.set_opaque(&directory, name).map(|()| false),
                    Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(false),
                    Err(errno) => Err(failed(errno)),
                }
            }
            Err(Errno::PERM) => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "whiteout of {:?}: the kernel refuses character device 0:0 here (allowed in user namespaces since 5.8)",
                    show(name)
                ),
            )),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Deletes what the lower layers have in `directory`.
    pub(crate) fn opaque(&self, directory: &Directory) -> Result<bool> {
        if self.format == WhiteoutFormat::Delete {
            return self.purge(directory, directory.inode);
        }
        self.set_opaque(directory, b".").map(|()| false)
    }

    /// Hides a lower directory below a directory that replaced something else.
    pub(crate) fn hide_lower(&self, directory: &Directory) -> Result<()> {
        match self.format {
            WhiteoutFormat::Delete => Ok(()),
            _ => self.set_opaque(directory, b"."),
        }
    }

    /// Whether `stat` shows a deletion that this format has put on disk.
    pub(crate) fn is_whiteout(&self, stat: &Stat) -> bool {
        self.format != WhiteoutFormat::Delete && is_whiteout_device(stat)
    }

    fn set_opaque(&self, directory: impl AsFd, name: &[u8]) -> Result<()> {
        let attribute = match self.format {
            WhiteoutFormat::OverlayTrusted => OPAQUE_TRUSTED,
            _ => OPAQUE_USER,
        };
        fs::fsetxattr(directory, attribute, b"y", XattrFlags::empty())
            .map_err(|errno| Error::os(format!("set {attribute} on {:?}", show(name)), errno))
    }

    /// Removes everything below `directory` that this layer did not write.
    fn purge(&self, directory: impl AsFd, inode: u64) -> Result<bool> {
        let failed = |errno| Error::os("make a directory opaque", errno);
        let mut path_changed = false;
        for name in names(directory.as_fd()).map_err(failed)? {
            if !self.wrote(inode, &name) {
                path_changed |= remove_all(directory.as_fd(), &name).map_err(failed)?.path_changed;
                continue;
            }
            // Written by this layer, but a directory may have been there before and still hold lower files.
            match fs::openat(directory.as_fd(), &name[..], directory_flags(), Mode::empty()) {
                Ok(child) => {
                    let inode = fs::fstat(&child).map_err(failed)?.st_ino;
                    path_changed |= self.purge(&child, inode)?;
                }
                Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(path_changed)
    }
}

/// Whether `stat` is a character device 0:0, overlayfs's whiteout.
pub(crate) fn is_whiteout_device(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether the overlay sees the open directory as opaque.
pub(crate) fn is_opaque(directory: impl AsFd, format: WhiteoutFormat) -> Result<bool, Errno> {
    let attribute = match format {
        WhiteoutFormat::Delete => return Ok(false),
        WhiteoutFormat::OverlayTrusted => OPAQUE_TRUSTED,
        WhiteoutFormat::OverlayUser | WhiteoutFormat::FuseOverlayfs => OPAQUE_USER,
    };
    let mut value = [0u8; 8];
    match fs::fgetxattr(&directory, attribute, &mut value[..]) {
        Ok(n) if &value[..n] == b"y" => return Ok(true),
        Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    if format != WhiteoutFormat::FuseOverlayfs {
        return Ok(false);
    }
    match stat_at(directory, OPAQUE_FILE) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether a name on disk is book-keeping of this format and nothing that a container has.
pub(crate) fn is_mark(name: &[u8], format: WhiteoutFormat) -> bool {
    format == WhiteoutFormat::FuseOverlayfs && name.starts_with(MARK_PREFIX)
}

/// What a name in a directory is, without following it.
pub(crate) fn stat_at(parent: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
    fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
}
