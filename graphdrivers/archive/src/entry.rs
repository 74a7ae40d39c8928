//! One member of a tar archive, with all extension headers applied.

/// A point in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time {
    /// Seconds since 1970, may be negative.
    pub(crate) seconds: i64,
    /// 0 to 999,999,999, added to the seconds.
    pub(crate) nanoseconds: u32,
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

impl Kind {
    /// Members without data, whatever size their header claims (as Go's reader, so that both see the same archive).
    pub(crate) fn is_header_only(self) -> bool {
        self != Self::Regular
    }
}

/// A piece of a sparse file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Extended attributes: names and values, in the order of the names, each once.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As written in the archive.
    pub(crate) path: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits with set-id and sticky, nothing else.
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: Time,
    pub(crate) atime: Option<Time>,
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    /// Length of the file once unpacked.
    pub(crate) size: u64,
    pub(crate) xattrs: Xattrs,
    /// Where the data goes; `None`: one piece from the start to the end.
    pub(crate) sparse: Option<Vec<Extent>>,
}
