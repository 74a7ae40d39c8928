//! Copies a directory tree: for drivers that cannot share files between layers.
//!
//! Keeps owners, modes, times, extended attributes, hard links and holes. Where the file system can share blocks
//! (btrfs, XFS, bcachefs) a file costs one ioctl, and no disk.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use crate::entry::Entry;
use crate::error::{Error, Result, show};
use crate::root::{directory_flags, names};
use crate::walk::below;
use crate::whiteout::stat_at;
use crate::writer::blank;
use crate::xattrs::{self, Place};

/// What a copy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Regular files whose blocks are shared with the source.
    pub shared: u64,
    /// Regular files whose bytes were copied.
    pub copied: u64,
}

/// Copies the contents and the metadata of `source` to `target`, an existing and empty directory.
///
/// # Errors
/// `NoSpace`, `Io`. The target is then half-written.
pub fn copy_tree(source: &Path, target: &Path) -> Result<Copied> {
    let (source, target) = (open(source)?, open(target)?);
    let stat = fs::fstat(&source).map_err(|errno| Error::os("stat the source of a copy", errno))?;
    let mut copy = Copy {
        top: target.as_fd(),
        links: HashMap::new(),
        sharing: true,
        copied: Copied::default(),
    };
    copy.contents(&source, &target, &mut Vec::new())?;
    finish(&source, &target, &stat, b"")?;
    Ok(copy.copied)
}

/// Gives the directory `target` the owner, the mode, the attributes and the times of the directory `source`, and nothing
/// of its contents: an archive of a tree does not describe the tree's root.
///
/// # Errors
/// `Io`.
pub fn copy_root_metadata(source: &Path, target: &Path) -> Result<()> {
    copy_metadata(&open(source)?, &open(target)?, b"")
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::open(path, flags, Mode::empty())
        .map_err(|errno| Error::os(format!("open directory {}", path.display()), errno))
}

struct Copy<'t> {
    top: BorrowedFd<'t>,
    /// First copy of each inode with several names, relative to `top`.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Whether sharing blocks worked so far.
    sharing: bool,
    copied: Copied,
}

fn failed(operation: &str, path: &[u8], errno: Errno) -> Error {
    Error::os(format!("{operation} /{}", show(path)), errno)
}

impl Copy<'_> {
    fn contents(&mut self, from: &OwnedFd, to: &OwnedFd, path: &mut Vec<u8>) -> Result<()> {
        for name in names(from).map_err(|e| failed("read directory", path, e))? {
            below(path, &name, |path| self.one(from, to, &name, path))?;
        }
        Ok(())
    }

    fn one(&mut self, from: &OwnedFd, to: &OwnedFd, name: &[u8], path: &mut Vec<u8>) -> Result<()> {
        let stat = stat_at(from, name).map_err(|e| failed("stat", path, e))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                return fs::linkat(self.top, &first[..], to, name, AtFlags::empty())
                    .map_err(|e| failed("link", path, e));
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        match kind {
            FileType::Directory => return self.directory(from, to, name, &stat, path),
            FileType::RegularFile => return self.regular(from, to, name, &stat, path),
            FileType::Symlink => {
                let link = fs::readlinkat(from, name, Vec::new()).map_err(|e| failed("readlink", path, e))?;
                fs::symlinkat(&link, to, name).map_err(|e| failed("symlink", path, e))?;
            }
            // A socket on disk is only a name to bind to; the copy's owner may want to unlink it first, as usual.
            other => fs::mknodat(to, name, other, Mode::from_raw_mode(0o600), stat.st_rdev)
                .map_err(|e| failed("mknod", path, e))?,
        }
        let (uid, gid) = owner(&stat);
        fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("chown", path, e))?;
        if kind != FileType::Symlink {
            fs::chmodat(to, name, mode(&stat), AtFlags::empty()).map_err(|e| failed("chmod", path, e))?;
        }
        attributes(
            Place::Name(from.as_fd(), name),
            Place::Name(to.as_fd(), name),
            path,
        )?;
        fs::utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("set times of", path, e))
    }

    fn directory(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &[u8],
        stat: &Stat,
        path: &mut Vec<u8>,
    ) -> Result<()> {
        let open = |fd: &OwnedFd| fs::openat(fd, name, directory_flags(), Mode::empty());
        fs::mkdirat(to, name, Mode::from_raw_mode(0o700)).map_err(|e| failed("mkdir", path, e))?;
        let source = open(from).map_err(|e| failed("open", path, e))?;
        let target = open(to).map_err(|e| failed("open", path, e))?;
        self.contents(&source, &target, path)?;
        // Last: every name made inside changed its times.
        finish(&source, &target, stat, path)
    }

    fn regular(&mut self, from: &OwnedFd, to: &OwnedFd, name: &[u8], stat: &Stat, path: &[u8]) -> Result<()> {
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = fs::openat(from, name, read, Mode::empty()).map_err(|e| failed("open", path, e))?;
        let target =
            fs::openat(to, name, write, Mode::from_raw_mode(0o600)).map_err(|e| failed("create", path, e))?;
        self.data(&source, &target, stat)
            .map_err(|e| failed("copy", path, e))?;
        finish(&source, &target, stat, path)
    }

    fn data(&mut self, source: &OwnedFd, target: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        if size == 0 {
            return Ok(());
        }
        if self.sharing {
            match fs::ioctl_ficlone(target, source) {
                Ok(()) => {
                    self.copied.shared += 1;
                    return Ok(());
                }
                Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => return Err(errno),
                // Not this file system, or not between these two: every file would give the same answer.
                Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS | Errno::PERM) => {
                    self.sharing = false;
                }
                // This one only: a file without copy-on-write on btrfs, for one.
                Err(_) => {}
            }
        }
        self.copied.copied += 1;
        // Fewer blocks than bytes: there are holes to keep.
        if u64::try_from(stat.st_blocks).unwrap_or_default() * 512 < size {
            copy_extents(source, target, size)
        } else {
            copy_range(source, target, 0, size)
        }
    }
}

fn finish(from: &OwnedFd, to: &OwnedFd, stat: &Stat, path: &[u8]) -> Result<()> {
    let (uid, gid) = owner(stat);
    fs::fchown(to, Some(uid), Some(gid)).map_err(|e| failed("chown", path, e))?;
    fs::fchmod(to, mode(stat)).map_err(|e| failed("chmod", path, e))?;
    attributes(Place::Open(from.as_fd()), Place::Open(to.as_fd()), path)?;
    fs::futimens(to, &times(stat)).map_err(|e| failed("set times of", path, e))
}

fn attributes(from: Place<'_>, to: Place<'_>, path: &[u8]) -> Result<()> {
    let found = xattrs::read(from).map_err(|e| failed("read attributes of", path, e))?;
    if found.is_empty() {
        return Ok(());
    }
    let entry = Entry {
        xattrs: found,
        ..blank()
    };
    xattrs::write(to, &entry, path).map(drop)
}

/// Gives the open directory `to` what `from` has: owner, mode, attributes, times.
pub(crate) fn copy_metadata(from: &OwnedFd, to: &OwnedFd, path: &[u8]) -> Result<()> {
    let stat = fs::fstat(from).map_err(|e| failed("stat", path, e))?;
    finish(from, to, &stat, path)
}

fn owner(stat: &Stat) -> (fs::Uid, fs::Gid) {
    (fs::Uid::from_raw(stat.st_uid), fs::Gid::from_raw(stat.st_gid))
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    let spec = |tv_sec, nanoseconds: u64| Timespec {
        tv_sec,
        tv_nsec: nanoseconds.try_into().unwrap_or_default(),
    };
    Timestamps {
        last_access: spec(stat.st_atime, stat.st_atime_nsec),
        last_modification: spec(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn copy_extents(source: &OwnedFd, target: &OwnedFd, size: u64) -> Result<(), Errno> {
    let mut at = 0;
    while at < size {
        let start = match fs::seek(source, fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => at,
            Err(errno) => return Err(errno),
        };
        let end = fs::seek(source, fs::SeekFrom::Hole(start))
            .unwrap_or(size)
            .min(size);
        copy_range(source, target, start, end)?;
        at = end.max(start + 1);
    }
    fs::ftruncate(target, size)
}

fn copy_range(source: &OwnedFd, target: &OwnedFd, start: u64, end: u64) -> Result<(), Errno> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let wanted = usize::try_from(end - from).unwrap_or(usize::MAX).min(1 << 30);
        match fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
            // The file became shorter: what is left of its length is a hole.
            Ok(0) => return fs::ftruncate(target, end),
            Ok(_) => {}
            Err(Errno::INTR) => {}
            Err(Errno::NOSYS | Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                return read_write(source, target, from, end);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn read_write(source: &OwnedFd, target: &OwnedFd, start: u64, end: u64) -> Result<(), Errno> {
    let mut buffer = vec![0; crate::pipeline::BUFFER_SIZE];
    let mut at = start;
    while at < end {
        let wanted = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let n = rustix::io::retry_on_intr(|| rustix::io::pread(source, &mut buffer[..wanted], at))?;
        if n == 0 {
            return fs::ftruncate(target, end);
        }
        let mut piece = &buffer[..n];
        while !piece.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(target, piece, at))?;
            piece = &piece[written..];
            at += written as u64;
        }
    }
    Ok(())
}
