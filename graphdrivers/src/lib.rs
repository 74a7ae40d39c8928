//! Storage drivers: how layers lie on disk and how a container's root filesystem is put together from them.
//!
//! Drivers return data, engines act: a driver never mounts, never counts references and never reads a tar stream;
//! it says what to mount ([`Mount`]), where to unpack ([`ApplyTarget`]) and where a diff can be read
//! ([`DiffSource`]). The `Mounter` mounts, `skiff-archive` unpacks. A driver knows no image and no registry.
//!
//! Vocabulary (containerd's): an *active* snapshot is writable and has a key chosen by the caller; `commit` turns it
//! into a *layer*, immutable and named by its chain id. A container's writable layer is an active snapshot that is
//! never committed.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

pub use skiff_archive::{ApplyTarget, WhiteoutFormat};
use skiff_archive::{DiffTree, DiskUsage};

mod backing;
mod btrfs;
mod error;
mod exercise;
mod fuse_overlayfs;
mod layered;
mod mounter;
mod overlay2;
mod select;
mod snapshots;
mod trial;
mod vfs;

pub use btrfs::Btrfs;
pub use error::{Error, ErrorKind, Result};
pub use fuse_overlayfs::FuseOverlayfs;
pub use mounter::{FuseServer, Mounter};
pub use overlay2::Overlay2;
pub use select::{Evidence, Selected, drivers, probe, select};
pub use vfs::Vfs;

/// A data root's `<driver>/trash/<snapshot>` are three.
const LEVELS: u32 = 3;

/// Removes a directory in which drivers kept their things: a driver's root, or one that holds several. It neither needs the
/// drivers to work nor their book-keeping to be whole, but nobody may use it. Gives the bytes of what was deleted file by
/// file; a missing directory is no error.
///
/// # Errors
/// `Io`, also when something in it is mounted; the same call goes on.
pub fn remove_roots(directory: &Path) -> Result<u64> {
    btrfs::remove_places(directory, LEVELS)
}

/// A storage driver. Methods may block on the disk: call them from a thread that may.
pub trait GraphDriver: Send + Sync + fmt::Debug {
    /// `vfs`, `overlay2`, `fuse-overlayfs` or `btrfs`.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Rows for `docker info`, in Docker's order and words.
    fn status(&self) -> Vec<(String, String)>;

    /// Makes a writable snapshot on top of `parent`.
    ///
    /// # Errors
    /// `AlreadyExists` when `key` is taken; `NotFound` when the parent is not a committed layer;
    /// `TooDeep` beyond `max_depth`, naming the limit.
    fn prepare(&self, key: &ActiveId, parent: Option<&LayerId>, options: &PrepareOptions) -> Result<()>;

    /// Puts an active snapshot that was prepared without parent on top of `parent`, as if it had been prepared there:
    /// layers of one chain can be unpacked side by side and are stacked in order, each right before its `commit`.
    /// `root_in_layer` says that the unpacked layer set the root directory's own metadata; without it the root takes
    /// the parent's. Only for drivers whose [`Capabilities::parallel_apply`] is true.
    ///
    /// # Errors
    /// `NotFound` for the key or when the parent is not a committed layer; `TooDeep`; `InvalidArgument` when the
    /// snapshot has a parent; `Unsupported` without `parallel_apply`.
    fn stack(&self, _key: &ActiveId, _parent: &LayerId, _root_in_layer: bool) -> Result<()> {
        let text = format!("{} cannot unpack layers side by side", self.name());
        Err(Error::new(ErrorKind::Unsupported, text))
    }

    /// Makes `key` the immutable layer `layer`, atomically.
    ///
    /// # Errors
    /// `NotFound` for the key, `AlreadyExists` for the layer (the active snapshot stays).
    fn commit(&self, key: &ActiveId, layer: &LayerId) -> Result<()>;

    /// Makes `key` the layer `layer`, atomically, in the place of one that exists and may be damaged: what stands on that one
    /// stands on the new one then. Both have the same parent.
    ///
    /// # Errors
    /// `NotFound` for either; `InvalidArgument` when their parents differ; `InUse` when a snapshot that stands on the layer
    /// is mounted.
    fn replace(&self, key: &ActiveId, layer: &LayerId) -> Result<()>;

    /// Removes a snapshot: an immediate rename into the trash; [`GraphDriver::cleanup`] frees the space.
    ///
    /// # Errors
    /// `NotFound`; `InUse` for a layer that has children.
    fn remove(&self, snapshot: SnapshotRef<'_>) -> Result<()>;

    /// Describes a snapshot. # Errors: `NotFound`.
    fn stat(&self, snapshot: SnapshotRef<'_>) -> Result<SnapshotInfo>;

    /// All snapshots.
    fn list(&self) -> Result<Vec<SnapshotInfo>>;

    /// Disk use of the snapshot alone, without its parents.
    fn usage(&self, snapshot: SnapshotRef<'_>) -> Result<Usage>;

    /// What to mount, in order, to see the snapshot as a whole.
    fn mounts(&self, snapshot: SnapshotRef<'_>, access: Access) -> Result<Vec<Mount>>;

    /// Where to unpack a layer's tar stream.
    fn apply_target(&self, key: &ActiveId) -> Result<ApplyTarget>;

    /// Where the difference to the parent can be read.
    fn diff_source(&self, snapshot: SnapshotRef<'_>) -> Result<DiffSource>;

    /// Frees the trash and everything that is not in `live` (parents of live snapshots are live).
    ///
    /// Snapshots that are being prepared during the call stay; one that was finished after `live` was computed does
    /// not: the caller keeps `prepare` out meanwhile.
    fn cleanup(&self, live: &HashSet<SnapshotKey>) -> Result<CleanupReport>;

    /// Frees the trash only; gives the bytes.
    fn purge(&self) -> Result<u64> {
        Ok(0)
    }

    /// Makes everything written so far survive a power failure (syncfs(2)). Nothing else does: a kill of the daemon
    /// needs nothing, and one call before an image is made known is far cheaper than one at each `commit`.
    fn sync(&self) -> Result<()> {
        Ok(())
    }

    /// Rows of `GraphDriver.Data` in the `inspect` of a container or an image, in Docker's words; none is `null` there.
    fn inspect(&self, _snapshot: SnapshotRef<'_>) -> Result<Vec<(String, String)>> {
        Ok(Vec::new())
    }

    /// Where the driver would like an active snapshot to be mounted; `None` leaves it to the caller.
    fn mount_point(&self, _key: &ActiveId) -> Result<Option<PathBuf>> {
        Ok(None)
    }
}

/// Key of an active snapshot: letters, digits, `.`, `_`, `-`; not empty, at most 128 bytes, not beginning with a dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActiveId(String);

/// Name of a committed layer: a chain id, `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(String);

/// A snapshot, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnapshotRef<'a> {
    /// Writable.
    Active(&'a ActiveId),
    /// Committed.
    Layer(&'a LayerId),
}

/// A snapshot, owned.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SnapshotKey {
    /// Writable.
    Active(ActiveId),
    /// Committed.
    Layer(LayerId),
}

/// What a driver can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The difference to the parent can be read without comparing trees.
    pub native_diff: bool,
    /// How many layers a chain may have; `None` without limit.
    pub max_depth: Option<usize>,
    /// A snapshot is a plain directory that needs no mount to be read as a whole.
    pub direct_path: bool,
    /// Layers of one chain can be unpacked at the same time.
    pub parallel_apply: bool,
}

/// Options of [`GraphDriver::prepare`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrepareOptions {
    /// Owner of the new root directory when there is no parent.
    pub root_owner: Option<(u32, u32)>,
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Which.
    pub key: SnapshotKey,
    /// Its parent.
    pub parent: Option<LayerId>,
}

/// Disk use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of regular files and of symbolic links' targets, each inode once (apparent size, as Docker counts).
    pub size: u64,
    /// Inodes.
    pub inodes: u64,
}

/// How a mount will be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    ReadOnly,
    /// Read and write; only for active snapshots.
    ReadWrite,
    /// The same for a snapshot that will be thrown away after this use (`docker run --rm`): nothing in it is worth
    /// writing to the disk. An overlay is mounted `volatile`; without it the kernel syncs the whole file system below
    /// when the overlay is unmounted.
    Volatile,
}

/// One mount to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// Bind a directory.
    Bind {
        /// The directory.
        source: PathBuf,
        /// Read only.
        read_only: bool,
    },
    /// An overlay.
    Overlay(OverlayMount),
    /// An overlay by a FUSE file system.
    Fuse(FuseMount),
}

/// An overlay served by a process of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FuseMount {
    /// Topmost first.
    pub lower: Vec<PathBuf>,
    /// Upper and work directory; `None` for a read-only mount.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// The program that serves it; `None` is the one in this binary.
    pub program: Option<PathBuf>,
    /// Further options, such as `volatile`.
    pub options: Vec<String>,
}

/// An overlay mount, as values (no option string).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayMount {
    /// Topmost first.
    pub lower: Vec<PathBuf>,
    /// Upper and work directory; `None` for a read-only mount.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Use `user.overlay.*` instead of `trusted.overlay.*`.
    pub userxattr: bool,
    /// Further options, such as `volatile`.
    pub options: Vec<String>,
}

/// Where a difference can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiffSource {
    /// This directory holds exactly the difference, with whiteouts in this format.
    Native {
        /// The directory.
        directory: PathBuf,
        /// How deletions are marked.
        whiteouts: WhiteoutFormat,
    },
    /// Compare these two trees (`None`: empty parent).
    Compare {
        /// The snapshot.
        directory: PathBuf,
        /// Its parent.
        parent: Option<PathBuf>,
    },
}

impl DiffSource {
    /// The same for [`skiff_archive::diff`].
    pub fn tree(&self) -> DiffTree<'_> {
        match self {
            Self::Native { directory, whiteouts } => DiffTree::Native {
                directory,
                whiteouts: *whiteouts,
            },
            Self::Compare { directory, parent } => DiffTree::Compare {
                directory,
                parent: parent.as_deref(),
            },
        }
    }
}

impl From<DiskUsage> for Usage {
    fn from(usage: DiskUsage) -> Self {
        Self {
            size: usage.bytes,
            inodes: usage.inodes,
        }
    }
}

/// Writes the file system that holds `root` to the disk.
pub(crate) fn sync_file_system(root: &Path) -> Result<()> {
    let failed = |error| Error::io(format!("syncfs {}", root.display()), error);
    let directory = std::fs::File::open(root).map_err(failed)?;
    rustix::fs::syncfs(&directory).map_err(|errno| failed(errno.into()))
}

/// What a clean-up did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CleanupReport {
    /// Snapshots that nobody needed.
    pub removed: Vec<SnapshotKey>,
    /// Bytes freed, as far as known.
    pub freed: u64,
}

impl ActiveId {
    /// Checks and wraps a key. # Errors: `InvalidArgument`.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let ok = !text.is_empty()
            && text.len() <= 128
            && !text.starts_with('.')
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if ok {
            Ok(Self(text))
        } else {
            Err(Error::invalid(format!("bad snapshot key {text:?}")))
        }
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl LayerId {
    /// Checks and wraps a chain id. # Errors: `InvalidArgument`.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let ok = text.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64
                && hex
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if ok {
            Ok(Self(text))
        } else {
            Err(Error::invalid(format!("bad layer id {text:?}")))
        }
    }

    /// The chain id, `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl fmt::Display for ActiveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SnapshotRef<'_> {
    /// An owned copy.
    pub fn to_key(self) -> SnapshotKey {
        match self {
            Self::Active(id) => SnapshotKey::Active(id.clone()),
            Self::Layer(id) => SnapshotKey::Layer(id.clone()),
        }
    }
}
