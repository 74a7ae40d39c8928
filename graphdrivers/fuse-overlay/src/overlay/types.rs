//! Values that go in and out of the overlay: attributes, entries, callers, changes.

use std::ffi::OsStr;
use std::time::Duration;

use rustix::fs::FileType;

/// Inode number of the root directory.
pub const ROOT: u64 = 1;

/// Who makes a request, as seen inside the mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller {
    /// File-system user id.
    pub uid: u32,
    /// File-system group id.
    pub gid: u32,
    /// Process, 0 if unknown.
    pub pid: u32,
    /// File mode creation mask that is still to be applied (0 when the kernel has done it): applied unless the parent
    /// directory has a default access control list.
    pub umask: u32,
}

/// A moment: seconds and nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds, below 10⁹.
    pub nanoseconds: u32,
}

/// Attributes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// `st_ino`: what programs see; not the number by which requests name the inode.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last modification.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// File type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, in the kernel's 32-bit form that FUSE uses.
    pub rdev: u32,
    /// Preferred block size.
    pub blksize: u32,
}

/// An inode the kernel now knows once more: each entry given out is owed one [`forget`](super::Overlay::forget).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The number by which requests name the inode (FUSE's node id). Never used twice in a mount's life.
    pub node: u64,
    /// Always 0, since node ids are not used again.
    pub generation: u64,
    /// Attributes.
    pub attr: Attr,
    /// How long name and attributes may be kept.
    pub ttl: Duration,
}

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// There is such a file.
    Found(Entry),
    /// There is none, and the kernel may remember that for so long.
    Negative(Duration),
}

/// A new value of a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// This moment.
    At(Time),
}

/// Attributes to change; what is `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits (file type bits are ignored).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last modification.
    pub mtime: Option<SetTime>,
    /// Clear set-user-id, set-group-id and `security.capability`, as writing by an unprivileged user does.
    pub kill_privileges: bool,
}

impl SetAttr {
    /// Whether nothing but times is to change.
    pub(super) fn is_times_only(&self) -> bool {
        let times = Self {
            atime: self.atime,
            mtime: self.mtime,
            ..Self::default()
        };
        *self == times
    }
}

/// An open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Its handle, for read, write, release and so on.
    pub handle: u64,
    /// What the kernel has cached of the contents is still right. Always so: a mount has one writer.
    pub keep_cache: bool,
    /// Opening copied a file up whose number of links or inode number is now another: cached attributes are stale.
    pub attributes_changed: bool,
}

/// One name of a directory, lent to the callback of `readdir`.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a OsStr,
    /// `st_ino`.
    pub ino: u64,
    /// File type.
    pub kind: FileType,
    /// Where to go on after this entry.
    pub offset: u64,
}

/// Numbers about the file system below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks of `frsize` bytes.
    pub blocks: u64,
    /// Free ones.
    pub bfree: u64,
    /// Free ones for an ordinary user.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred block size.
    pub bsize: u32,
    /// Fundamental block size.
    pub frsize: u32,
    /// Longest name, in bytes.
    pub namelen: u32,
}
