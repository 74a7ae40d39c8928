//! The overlay file system itself: several read-only layers and one writable directory shown as one tree.
//!
//! Called by `adapter`, one call a FUSE request, from as many threads as it likes: every method takes `&self` and
//! blocks only on system calls of its own inode. Knows no FUSE library.

mod config;
mod types;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

pub use config::{Config, IdMap, OVERFLOW_ID, XattrNamespace, XattrPermissions};
pub use types::{
    Attr, Caller, DirEntry, Entry, Lookup, Opened, ROOT, SetAttr, SetTime, StatFs, Time,
};

/// Outcome of a request.
pub type Result<T> = std::result::Result<T, Errno>;

/// A mounted overlay.
#[derive(Debug)]
pub struct Overlay {
    config: Config,
}

/// Why an overlay could not be put together.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {errno}")]
pub struct NewError {
    what: String,
    /// What the system call said.
    pub errno: Errno,
}

/// An open file.
#[derive(Debug)]
pub struct FileHandle {
    fd: std::sync::RwLock<Arc<OwnedFd>>,
}

impl FileHandle {
    /// The descriptor to read and write at, for this moment: a copy-up by another handle exchanges it, so that all
    /// handles of a file see the same contents. Ask for it anew at each request.
    pub fn fd(&self) -> Arc<OwnedFd> {
        let fd = self.fd.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(&fd)
    }
}

#[expect(unused_variables, reason = "signatures first")]
impl Overlay {
    /// Opens the layers. The process must have umask 0 from then on: `new` sets it.
    pub fn new(config: Config) -> std::result::Result<Self, NewError> {
        Ok(Self { config })
    }

    /// What it was made of.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Finds `name` in `parent`; `Found` is owed one `forget`.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Lookup> {
        Err(Errno::NOSYS)
    }

    /// The kernel dropped `count` references to an inode.
    pub fn forget(&self, node: u64, count: u64) {}

    /// Attributes; `handle` is preferred when given.
    pub fn getattr(&self, node: u64, handle: Option<u64>) -> Result<Attr> {
        Err(Errno::NOSYS)
    }

    /// Changes attributes and gives the new ones.
    pub fn setattr(&self, node: u64, handle: Option<u64>, change: &SetAttr) -> Result<Attr> {
        Err(Errno::NOSYS)
    }

    /// Target of a symbolic link.
    pub fn readlink(&self, node: u64) -> Result<Vec<u8>> {
        Err(Errno::NOSYS)
    }

    /// Makes a file, device, pipe or socket; `mode` as `st_mode`, `rdev` in the kernel's 32-bit form.
    pub fn mknod(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32, rdev: u32) -> Result<Entry> {
        Err(Errno::NOSYS)
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32) -> Result<Entry> {
        Err(Errno::NOSYS)
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, caller: &Caller, parent: u64, name: &OsStr, target: &OsStr) -> Result<Entry> {
        Err(Errno::NOSYS)
    }

    /// Gives `node` another name.
    pub fn link(&self, node: u64, parent: u64, name: &OsStr) -> Result<Entry> {
        Err(Errno::NOSYS)
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Renames; `flags` as in renameat2(2).
    pub fn rename(&self, parent: u64, name: &OsStr, new_parent: u64, new_name: &OsStr, flags: u32) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Opens a file; `flags` as in open(2).
    pub fn open(&self, node: u64, flags: u32) -> Result<Opened> {
        Err(Errno::NOSYS)
    }

    /// Makes and opens a regular file. An existing one is `EXIST` if `flags` say so, else opened.
    pub fn create(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32, flags: u32) -> Result<(Entry, Opened)> {
        Err(Errno::NOSYS)
    }

    /// Makes and opens a regular file without a name.
    pub fn tmpfile(&self, caller: &Caller, parent: u64, mode: u32, flags: u32) -> Result<(Entry, Opened)> {
        Err(Errno::NOSYS)
    }

    /// An open file, to read and write at its descriptor directly.
    pub fn handle(&self, handle: u64) -> Result<Arc<FileHandle>> {
        Err(Errno::BADF)
    }

    /// Reads.
    pub fn read(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        Err(Errno::NOSYS)
    }

    /// Writes; `kill_privileges` as FUSE's write flag of that name.
    pub fn write(&self, handle: u64, offset: u64, data: &[u8], kill_privileges: bool) -> Result<usize> {
        Err(Errno::NOSYS)
    }

    /// To be called before the adapter writes to a descriptor itself with FUSE's flag to kill privileges.
    pub fn kill_privileges(&self, handle: u64) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// A descriptor of the file was closed.
    pub fn flush(&self, handle: u64) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Makes the file durable.
    pub fn fsync(&self, handle: u64, data_only: bool) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// The last descriptor of the handle was closed.
    pub fn release(&self, handle: u64) {}

    /// Opens a directory.
    pub fn opendir(&self, node: u64) -> Result<u64> {
        Err(Errno::NOSYS)
    }

    /// Lists names after `offset` (0: from the start) until `fill` says `false`: that entry was not taken.
    /// Begins with `.` and `..`.
    pub fn readdir(&self, handle: u64, offset: u64, fill: &mut dyn FnMut(&DirEntry<'_>) -> bool) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// The same with attributes. An entry given with `Some` and taken is owed one `forget`; `.` and `..` have none
    /// (FUSE's node id 0).
    pub fn readdirplus(
        &self,
        handle: u64,
        offset: u64,
        fill: &mut dyn FnMut(&DirEntry<'_>, Option<&Entry>) -> bool,
    ) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: u64) {}

    /// Makes a directory durable.
    pub fn fsyncdir(&self, handle: u64, data_only: bool) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Makes everything durable.
    pub fn syncfs(&self) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Numbers about the file system that holds the upper directory.
    pub fn statfs(&self) -> Result<StatFs> {
        Err(Errno::NOSYS)
    }

    /// Value of an extended attribute.
    pub fn getxattr(&self, node: u64, name: &OsStr) -> Result<Vec<u8>> {
        Err(Errno::NOSYS)
    }

    /// Sets an extended attribute; `flags` as in setxattr(2).
    pub fn setxattr(&self, node: u64, name: &OsStr, value: &[u8], flags: u32) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Names of extended attributes, each followed by a zero byte.
    pub fn listxattr(&self, node: u64) -> Result<Vec<u8>> {
        Err(Errno::NOSYS)
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, node: u64, name: &OsStr) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Whether `caller` may do `mask` (as in access(2)) by the mode bits; only asked without `default_permissions`.
    pub fn access(&self, caller: &Caller, node: u64, mask: u32) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Allocates or frees room in a file; `mode` as in fallocate(2).
    pub fn fallocate(&self, handle: u64, offset: u64, length: u64, mode: u32) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Seeks data or a hole (`whence` as in lseek(2)).
    pub fn lseek(&self, handle: u64, offset: u64, whence: u32) -> Result<u64> {
        Err(Errno::NOSYS)
    }

    /// Copies between open files.
    pub fn copy_file_range(&self, from: u64, from_offset: u64, to: u64, to_offset: u64, length: u64) -> Result<u64> {
        Err(Errno::NOSYS)
    }
}
