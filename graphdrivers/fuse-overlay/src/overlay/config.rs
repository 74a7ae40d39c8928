//! What an overlay is made of: layers, and how owners, modes and attributes are shown.
//!
//! Filled in by `program` from the options of the well-known program, and by tests.

use std::path::PathBuf;
use std::time::Duration;

/// Description of an overlay, given to [`Overlay::new`](super::Overlay::new).
#[derive(Debug, Clone)]
pub struct Config {
    /// Read-only layers, topmost first; at least one.
    pub lower: Vec<PathBuf>,
    /// Upper and work directory, on one file system; `None` for a read-only overlay.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Where overlayfs's own attributes are kept.
    pub xattr_namespace: XattrNamespace,
    /// How user ids on disk are shown; empty shows them as they are.
    pub uid_map: IdMap,
    /// The same for group ids.
    pub gid_map: IdMap,
    /// Show every file as owned by this user (0 for `squash_to_root`); changes of owner are then ignored.
    pub squash_to_uid: Option<u32>,
    /// Show every file as owned by this group.
    pub squash_to_gid: Option<u32>,
    /// Keep owner and mode in an extended attribute instead of the inode.
    pub xattr_permissions: XattrPermissions,
    /// Directories have one link, whatever they hold; without it they have two and one for each subdirectory.
    pub static_nlink: bool,
    /// Access control lists do not exist.
    pub noacl: bool,
    /// The upper directory is thrown away after this use: never sync.
    pub volatile: bool,
    /// The kernel caches writes: handles are opened so that it can read what it is about to overwrite in part.
    pub writeback: bool,
    /// How long the kernel may keep what an answer says. A private mount has one writer, so: endless.
    pub ttl: Duration,
    /// Most directory descriptors kept open; `None` derives it from `RLIMIT_NOFILE`.
    pub directory_descriptors: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lower: Vec::new(),
            upper: None,
            xattr_namespace: XattrNamespace::User,
            uid_map: IdMap::default(),
            gid_map: IdMap::default(),
            squash_to_uid: None,
            squash_to_gid: None,
            xattr_permissions: XattrPermissions::Off,
            static_nlink: false,
            noacl: false,
            volatile: false,
            writeback: false,
            ttl: Duration::from_secs(86_400 * 365),
            directory_descriptors: None,
        }
    }
}

/// Which extended attributes hold overlayfs's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrNamespace {
    /// `user.overlay.*`, as the kernel with `userxattr`.
    User,
    /// `trusted.overlay.*`; needs real root.
    Trusted,
}

/// Where owner and mode of a file are kept (`xattr_permissions=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrPermissions {
    /// In the inode (0).
    Off,
    /// In `security.fuseoverlayfs.override_stat` (1); needs real root.
    Privileged,
    /// In `user.containers.override_stat` (2).
    Containers,
}

/// A mapping of ids, as in `uidmapping=INSIDE:OUTSIDE:COUNT:…`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap {
    ranges: Vec<[u32; 3]>,
}

/// Shown for an id that the map does not have.
pub const OVERFLOW_ID: u32 = 65_534;

impl IdMap {
    /// A map of `[inside, outside, count]`: a file whose owner on disk is `outside + n` is shown as `inside + n`.
    pub fn new(ranges: Vec<[u32; 3]>) -> Self {
        Self { ranges }
    }

    /// Whether ids are left as they are.
    pub fn is_identity(&self) -> bool {
        self.ranges.is_empty()
    }

    /// What is shown for the id `outside` on disk.
    pub fn shown(&self, outside: u32) -> u32 {
        if self.ranges.is_empty() {
            return outside;
        }
        self.ranges
            .iter()
            .find(|[_, start, count]| outside.wrapping_sub(*start) < *count)
            .map_or(OVERFLOW_ID, |[inside, start, _]| {
                inside.wrapping_add(outside - start)
            })
    }

    /// What is written to disk for the id `inside`; `None` if the map does not have it.
    pub fn stored(&self, inside: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(inside);
        }
        self.ranges
            .iter()
            .find(|[start, _, count]| inside.wrapping_sub(*start) < *count)
            .map(|[start, outside, _]| outside.wrapping_add(inside - start))
    }
}
