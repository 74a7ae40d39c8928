//! Tar streams and directories: unpacking a layer and writing one, for all storage drivers.

use std::io::Read;
use std::path::PathBuf;

/// Where a layer is unpacked and how deletions are marked there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyTarget {
    /// The directory, exists.
    pub directory: PathBuf,
    /// How deletions are marked.
    pub whiteouts: WhiteoutFormat,
}

/// How a deletion in a layer is recorded on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WhiteoutFormat {
    /// The directory already holds the lower layers' files: delete them.
    Delete,
    /// overlayfs: character device 0:0, opaque directories by `trusted.overlay.opaque` (as root).
    OverlayTrusted,
    /// overlayfs with `userxattr`: character device 0:0, opaque directories by `user.overlay.opaque`.
    OverlayUser,
}

/// What to check and to report while unpacking.
#[derive(Debug, Clone, Default)]
pub struct ApplyOptions {
    /// Ids that exist in this user namespace; `None` does not check before the kernel does.
    pub max_id: Option<u32>,
}

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Digest of the compressed stream as read, `sha256:…`.
    pub blob_digest: String,
    /// Its length in bytes.
    pub blob_size: u64,
    /// Digest of the tar stream, `sha256:…`: the diff id.
    pub diff_id: String,
    /// Bytes of regular files, each inode once.
    pub size: u64,
    /// Entries in the archive.
    pub entries: u64,
}

/// Placeholder error, replaced by its owner.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// Unpacks a layer: plain, gzip or zstd, recognised by its first bytes.
pub fn apply(_source: impl Read + Send, _target: &ApplyTarget, _options: &ApplyOptions) -> Result<Applied, Error> {
    Err(Error("not written yet".to_owned()))
}
