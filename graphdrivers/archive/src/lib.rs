//! Tar streams and directories: unpacking a layer and writing one, for all storage drivers.
//!
//! Called by the layer store (pull, load, commit) and by the drivers' tests. Knows no image and no driver: it is told
//! a directory and a [`WhiteoutFormat`]. Nothing in a stream can touch anything outside that directory (`root`).
//!
//! ```text
//!   apply:  source ─▶ read + hash ─▶ decode ─▶ hash ─▶ reader ─▶ unpack ─▶ root / whiteout / xattrs / owner
//!   diff:   walk (one upper directory, or two trees side by side) ─▶ writer ─▶ tar stream
//! ```
//!
//! Nothing is synced here: after `kill -9` the page cache survives, and for a power failure one `syncfs` before the
//! layer is made known is far cheaper than one `fsync` a file. That call is the storage driver's.

use std::path::PathBuf;
use std::thread;

mod adopt;
mod bundle;
mod changes;
mod copy;
mod decode;
mod differ;
mod entry;
mod error;
mod frames;
mod header;
mod inventory;
mod name;
mod owner;
mod pax;
mod pipeline;
mod reader;
mod remove;
mod root;
mod source;
mod sparse;
mod times;
mod unpack;
mod walk;
mod whiteout;
mod writer;
mod xattrs;

pub use adopt::{ImpliedDirectories, adopt_directories};
pub use bundle::{BundleWriter, Member, MemberKind, Peeked, media_type_suffix, read_bundle};
pub use changes::{ChangeKind, LowerLayers, PathChange, changed_paths, placeholders};
pub use copy::{Copied, copy_root_metadata, copy_tree};
pub use differ::{DiffOptions, DiffTree, Diffed, diff, diff_with};
pub use error::{Error, ErrorKind, Result};
pub use inventory::{Difference, Inventory, Tolerance, inventory};
pub use owner::{OwnerSink, OwnerTable, Owners, SquashedOwner};
pub use remove::remove_tree;
pub use walk::{DiskUsage, diff_usage, usage};

use decode::Format;
use pipeline::Receiver;
use source::Source;
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
    /// The same as written here. Read, it is also what fuse-overlayfs (1.10 to 2.0) writes as an ordinary user: an opaque
    /// directory may have a file `.wh..wh..opq` instead, and no name that begins with `.wh.` is the container's.
    FuseOverlayfs,
}

/// What to check and to report while unpacking.
#[derive(Debug, Clone, Default)]
pub struct ApplyOptions {
    /// Largest id to give to a file; `None` takes all that this user namespace has.
    pub max_id: Option<u32>,
    /// What becomes of owners that this user namespace does not have.
    pub oversized_ids: OversizedIds,
    /// Somebody else vouches for the compressed bytes, or the caller compares the diff id: they are not hashed here.
    pub source_verified: bool,
}

/// What becomes of owners that this user namespace does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum OversizedIds {
    /// The layer is refused, with Docker's text.
    #[default]
    Refuse,
    /// They are folded onto the highest id there is; see [`apply_recording`].
    Squash,
}

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Digest of the compressed stream as read, `sha256:…`; `None` when it was not hashed because of
    /// [`ApplyOptions::source_verified`].
    pub blob_digest: Option<String>,
    /// Its length in bytes.
    pub blob_size: u64,
    /// Digest of the tar stream, `sha256:…`: the diff id.
    pub diff_id: String,
    /// Bytes of regular files and of symbolic links' targets, each inode once: what Docker counts.
    pub size: u64,
    /// Entries in the archive.
    pub entries: u64,
    /// Device nodes left out, because a user namespace cannot have them.
    pub skipped_devices: u64,
    /// Extended attributes left out: not permitted here, not known to the file system, or overlayfs's own.
    pub skipped_xattrs: u64,
    /// Members whose owner was folded.
    pub squashed: u64,
    /// The user and group that owners were, or would have been, folded onto.
    pub folded: (u32, u32),
    /// Directories that the archive uses and does not describe, for [`adopt_directories`].
    pub implied: ImpliedDirectories,
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
pub fn apply(
    source: impl std::io::Read + Send,
    target: &ApplyTarget,
    options: &ApplyOptions,
) -> Result<Applied> {
    apply_recording(source, target, options, &mut |_| Ok(()))
}

/// As [`apply`]; tells `sink` the real owner of each member whose owner is folded, in the order of the archive.
///
/// # Errors
/// As [`apply`]; an error of `sink` is `Io` or `NoSpace`.
pub fn apply_recording(
    source: impl std::io::Read + Send,
    target: &ApplyTarget,
    options: &ApplyOptions,
    sink: &mut OwnerSink<'_>,
) -> Result<Applied> {
    let unpacker = Unpacker::new(target, options, sink)?;
    let folded = unpacker.folded();
    let mut source = Source::new(source, !options.source_verified);
    let format = Format::detect(source.head()?);
    if format == Format::Plain {
        // The blob's digest is the diff id.
        source.hash();
    }
    thread::scope(|scope| {
        let (unpacked, blob, diff_id) = if format == Format::Plain {
            let (sender, plain) = pipeline::queue();
            let reading = spawn(scope, "layer-read", move || source.pump(sender))?;
            let unpacked = run(unpacker, plain)?;
            let blob = join(reading)?;
            (unpacked, blob.clone(), blob.0)
        } else {
            let (sender, hashing, plain) = pipeline::hashed_queue();
            let hashing = spawn(scope, "layer-hash", move || hashing.run())?;
            let (unpacked, blob) = if source.is_hashed() {
                let (compressed_in, compressed) = pipeline::queue();
                let reading = spawn(scope, "layer-read", move || source.pump(compressed_in))?;
                spawn(scope, "layer-decode", move || {
                    decode::decode(format, compressed, sender);
                })?;
                (run(unpacker, plain)?, join(reading)?)
            } else {
                // Nothing to do on the way: the decoder reads for itself.
                let decoding = spawn(scope, "layer-decode", move || {
                    decode::decode(format, &mut source, sender);
                    source.finish()
                })?;
                (run(unpacker, plain)?, join(decoding)?)
            };
            (unpacked, blob, join(hashing)?)
        };
        let (blob_digest, blob_size) = blob;
        let counts = unpacked.counts;
        Ok(Applied {
            diff_id: diff_id.ok_or_else(died)?,
            blob_digest,
            blob_size,
            size: counts.size,
            entries: counts.entries,
            skipped_devices: counts.skipped_devices,
            skipped_xattrs: counts.skipped_xattrs,
            squashed: counts.squashed,
            folded,
            implied: unpacked.implied,
        })
    })
}

/// Unpacks `stream`, then receives what follows the archive, so that digests cover it and damage there is seen.
fn run(unpacker: Unpacker<'_>, mut stream: Receiver) -> Result<unpack::Unpacked> {
    let unpacked = unpacker.run(&mut stream)?;
    stream.finish()?;
    Ok(unpacked)
}

fn died() -> Error {
    Error::new(ErrorKind::Io, "a thread of the unpacker died")
}

fn join<T>(handle: thread::ScopedJoinHandle<'_, T>) -> Result<T> {
    handle.join().map_err(|_| died())
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
