//! Tar streams and directories: unpacking a layer and writing one, for all storage drivers.
//!
//! Called by the layer store (pull, load, commit) and by the drivers' tests. Knows no image and no driver: it is told
//! a directory and a [`WhiteoutFormat`]. Nothing in a stream can touch anything outside that directory (`root`).
//!
//! ```text
//!   apply:  source ─▶ read + hash ─▶ decode ─▶ hash + reader ─▶ unpack ─▶ root / whiteout / xattrs
//!   diff:   walk (one upper directory, or two trees side by side) ─▶ writer ─▶ tar stream
//! ```
//!
//! Nothing is synced here: after `kill -9` the page cache survives, and for a power failure one `syncfs` before the
//! layer is made known is far cheaper than one `fsync` a file. That call is the storage driver's.

use std::io::{self, Read};
use std::path::PathBuf;
use std::thread;

use ring::digest::{Context, SHA256};

mod copy;
mod decode;
mod differ;
mod entry;
mod error;
mod header;
mod name;
mod pax;
mod pipeline;
mod reader;
mod remove;
mod root;
mod sparse;
mod unpack;
mod walk;
mod whiteout;
mod writer;
mod xattrs;

pub use copy::{Copied, copy_tree};
pub use differ::{DiffTree, Diffed, diff};
pub use error::{Error, ErrorKind, Result};
pub use remove::remove_tree;
pub use walk::{DiskUsage, diff_usage, usage};

use decode::Format;
use pipeline::{BUFFER_SIZE, Receiver, Sender};
use unpack::Unpacker;

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
    /// Largest id that exists in this user namespace; `None` does not check before the kernel does.
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
    /// Device nodes left out, because a user namespace cannot have them.
    pub skipped_devices: u64,
    /// Extended attributes left out: not permitted here, not known to the file system, or overlayfs's own.
    pub skipped_xattrs: u64,
}

/// Unpacks a layer: plain, gzip or zstd, recognised by its first bytes. Blocks; memory is bounded by a few buffers.
///
/// The source is read to its end and both digests cover everything, also what follows the end of the archive. On an
/// error the directory is left half-written: it is the caller's to throw away. The call returns when the current
/// `read` of the source does, so a source that can stall needs a timeout of its own.
///
/// # Errors
/// `Corrupt`, `Escape`, `IdRange` and `Unsupported` blame the layer; `Source` is the source's own error; `NoSpace` and
/// `Io` are the disk's.
pub fn apply(source: impl Read + Send, target: &ApplyTarget, options: &ApplyOptions) -> Result<Applied> {
    let unpacker = Unpacker::new(target, options)?;
    thread::scope(|scope| {
        let (sender, mut compressed) = pipeline::queue(false);
        let reader = spawn(scope, "layer-read", move || read(source, sender))?;
        let format = Format::detect(compressed.fill()?)?;
        let (counts, diff_id) = if format == Format::Plain {
            (run(unpacker, compressed)?.0, None)
        } else {
            let (sender, plain) = pipeline::queue(true);
            spawn(scope, "layer-decode", move || {
                decode::decode(format, compressed, sender);
            })?;
            run(unpacker, plain)?
        };
        let (blob_digest, blob_size) = reader
            .join()
            .ok()
            .flatten()
            .ok_or_else(|| Error::new(ErrorKind::Io, "the reader of a layer died"))?;
        Ok(Applied {
            diff_id: diff_id.unwrap_or_else(|| blob_digest.clone()),
            blob_digest,
            blob_size,
            size: counts.size,
            entries: counts.entries,
            skipped_devices: counts.skipped_devices,
            skipped_xattrs: counts.skipped_xattrs,
        })
    })
}

/// Unpacks `stream`, then receives what follows the archive, so that digests cover it and damage there is seen.
fn run(unpacker: Unpacker, mut stream: Receiver) -> Result<(unpack::Counts, Option<String>)> {
    let counts = unpacker.run(&mut stream)?;
    Ok((counts, stream.finish()?))
}

/// First stage: reads and hashes the source; `None` when it failed or nobody wanted the rest.
fn read(mut source: impl Read, sender: Sender) -> Option<(String, u64)> {
    let mut digest = Context::new(&SHA256);
    let mut size = 0u64;
    let mut failed = false;
    let outcome = sender.pump(|into| {
        loop {
            match source.read(into) {
                Ok(n) => {
                    debug_assert!(n <= BUFFER_SIZE);
                    digest.update(&into[..n]);
                    size += n as u64;
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failed = true;
                    return Err(Error::new(ErrorKind::Source, "read layer").caused_by(error));
                }
            }
        }
    });
    (outcome.is_ok() && !failed).then(|| (pipeline::digest_text(digest), size))
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<thread::ScopedJoinHandle<'scope, T>> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, work)
        .map_err(|error| Error::new(ErrorKind::Io, "start a thread").caused_by(error))
}
