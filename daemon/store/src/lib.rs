//! The image store: content-addressed blobs, unpacked layers, images and their names, containers' writable layers.
//!
//! Called by `skiff-core` (which hands it byte streams; the store opens no connection) and by the program at start-up.
//! Every call may block on the disk: call from a thread that may. [`Store`] is cheap to clone.
//!
//! ```text
//!  <data-root>/image/
//!    lock                         flock: one daemon per store
//!    oci-layout                   marks blobs/ as OCI layout; what `skopeo` and friends read
//!    blobs/sha256/<hex>           complete, verified, never changed: manifests, configurations, compressed layers
//!    ingest/<hex>.partial         being downloaded, or left by an interrupted download and resumed by the next
//!    trash/                       removed blobs on their way out
//!    repositories.json            THE record: which images exist and which names they have      (`catalog`)
//!    <driver>/layers/<hex>.json   one record a layer unpacked with that driver, named by chain id (`layers`)
//!    migration.json               a change of driver that is under way                            (`migrate`)
//!  <data-root>/<driver>/…         the driver's own: layers and active snapshots
//!
//!  pull:    blobs ──▶ driver.prepare ─ unpack ─ driver.commit ──▶ layer record ──▶ repositories.json
//!  remove:  repositories.json ──▶ driver.remove, layer record (top first) ──▶ blobs
//! ```
//!
//! Invariants, each true after `kill -9` at any instant ([`Store::check`] verifies them):
//! * An image exists when `repositories.json` says so, by one rename. Everything it needs is there before.
//! * A file in `blobs/` has the digest in its name: it came there by rename after verification and fsync.
//! * A layer record exists only for a layer that the driver committed. A driver layer without record, an active
//!   snapshot without owner, a blob without image and an old partial are orphans; [`Store::gc`] takes them.
//! * After a power failure a layer is used only if it had reached the disk ([`Store::settle`]).
//! * Nothing that has a digest is ever re-serialised.
//!
//! The files of another driver are left alone: after a change of driver, [`Store::ensure_layers`] unpacks an image
//! again from the kept blobs when it is first needed. Containers' writable layers stay where they are; [`migrate`] moves
//! them.
//!
//! Locks, outermost first: `writer` (catalogue changes, held across the disk write) → `sweeping` (shared by whoever
//! prepares a snapshot, exclusive for the driver's clean-up) → `holdings` (memory, and removals, which are renames).
//! Readers of images and names take none of them for longer than it takes to copy an `Arc`.

mod added;
mod blobs;
mod catalog;
mod chain;
mod check;
mod digest;
mod durable;
mod error;
mod follow;
mod gc;
mod image;
mod ingest;
mod layers;
mod lease;
pub mod migrate;
mod rw;
mod rw_diff;
mod sizes;
mod staging;
mod unpack;
pub mod verify;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use skiff_archive::ApplyOptions;
use skiff_graphdrivers::{ActiveId, GraphDriver, LayerId};

pub use added::{AddedLayer, OCI_LAYER};
pub use catalog::{
    Catalog, Reference, ReferenceKey, Registration, RemovalPlan, Removed, SeenNames, Selector,
};
pub use chain::{ChainFailed, ChainLayer};
pub use digest::{Descriptor, Digest, chain_id, chain_ids};
pub use error::{Error, ErrorKind, Result};
pub use follow::{Follower, FollowingReader, StopToken};
pub use gc::{GcOptions, GcReport};
pub use image::{BASE_DIGEST, Image, Manifest};
pub use ingest::Ingest;
pub use layers::{LayerRecord, Squashed};
pub use lease::Lease;
pub use rw::{RwLayer, RwLayers};
pub use rw_diff::Export;
pub use sizes::{ImageSize, Sizes};
pub use skiff_archive::{ChangeKind, OversizedIds, PathChange};
pub use staging::Staging;
pub use unpack::NewLayer;

use durable::Steps;
use lease::LeaseSet;

/// The format of every record this crate writes.
const FORMAT_VERSION: u32 = 1;

/// A store, opened with one storage driver.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// What may be set when a store is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Handed to the unpacker with each layer.
    pub apply: ApplyOptions,
    /// How many layers of an image are unpacked at a time, where the driver can.
    pub parallel_unpacks: usize,
    /// Names the running kernel's boot; [`StoreOptions::default`] asks the kernel.
    pub boot: String,
}

impl Default for StoreOptions {
    fn default() -> Self {
        // Without an answer every boot looks the same: then layers are trusted, as other engines always do.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            apply: ApplyOptions::default(),
            parallel_unpacks: default_parallel_unpacks(),
            boot: boot.trim().to_owned(),
        }
    }
}

struct Inner {
    root: PathBuf,
    driver: Arc<dyn GraphDriver>,
    apply: ApplyOptions,
    parallel_unpacks: usize,
    boot: String,
    steps: Steps,
    catalog: RwLock<Arc<Catalog>>,
    writer: Mutex<()>,
    settling: Mutex<()>,
    sweeping: RwLock<()>,
    holdings: Mutex<Holdings>,
    /// Sizes of layers that are unpacked with other drivers; see `sizes`.
    other_sizes: OnceLock<HashMap<LayerId, u64>>,
    /// Told whenever an entry leaves `Holdings::unpacking` or `Holdings::ingesting`.
    released: Condvar,
    _lock: File,
}

/// What is there and what is being worked on; the part of the state that several threads change.
#[derive(Default)]
struct Holdings {
    /// Layers unpacked with this driver.
    layers: HashMap<LayerId, Arc<LayerRecord>>,
    /// What running pulls and creations hold.
    leases: HashMap<u64, LeaseSet>,
    next_id: u64,
    /// Blobs being written: one writer each.
    ingesting: HashSet<Digest>,
    /// Layers being unpacked: one unpacker each, others wait on `released`.
    unpacking: HashSet<LayerId>,
    /// Active snapshots made by this process and not removed since.
    actives: HashSet<ActiveId>,
}

impl Store {
    /// Opens the store below `root` (`<data-root>/image`), making it if need be. Reads the records and asks the
    /// driver for its list; hashes nothing.
    ///
    /// # Errors
    /// `Conflict` when another process has it open, or when a change of driver is half done; `Corrupt` when `repositories.json` is damaged (it is never
    /// replaced silently); `Unsupported` when a newer engine wrote it; `Io`.
    pub fn open(root: &Path, driver: Arc<dyn GraphDriver>) -> Result<Self> {
        Self::open_with(root, driver, StoreOptions::default())
    }

    /// As [`Store::open`], with options.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(root: &Path, driver: Arc<dyn GraphDriver>, options: StoreOptions) -> Result<Self> {
        migrate::Journal::admit(root, driver.name())?;
        Self::open_stepping(root, driver, options, Steps::default())
    }

    /// Opens the store for a check, without an ordinary user's marks; a migration that waits for a word goes on waiting.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_for_checking(
        root: &Path,
        driver: Arc<dyn GraphDriver>,
        options: StoreOptions,
    ) -> Result<Self> {
        if let Some(journal) = migrate::Journal::read(root)? {
            journal.driver_for_daemon(Some(driver.name()))?;
        }
        Self::open_stepping(root, driver, options, Steps::default())
    }

    fn open_stepping(
        root: &Path,
        driver: Arc<dyn GraphDriver>,
        options: StoreOptions,
        steps: Steps,
    ) -> Result<Self> {
        let layer_records = root.join(driver.name()).join("layers");
        for directory in [
            &root.join("blobs/sha256"),
            &root.join("ingest"),
            &root.join("trash"),
            &layer_records,
        ] {
            durable::make_directory(directory)?;
        }
        let lock = durable::lock(&root.join("lock"))?;
        write_layout_marker(root)?;
        staging::sweep(root)?;
        let catalog = catalog::load(root)?;
        let layers = layers::load(&layer_records, driver.as_ref(), &options.boot)?;
        let inner = Inner {
            root: root.to_owned(),
            driver,
            apply: options.apply,
            parallel_unpacks: options.parallel_unpacks,
            boot: options.boot,
            steps,
            catalog: RwLock::new(Arc::new(catalog)),
            writer: Mutex::default(),
            settling: Mutex::default(),
            sweeping: RwLock::default(),
            holdings: Mutex::new(Holdings {
                layers,
                ..Holdings::default()
            }),
            other_sizes: OnceLock::new(),
            released: Condvar::new(),
            _lock: lock,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The storage driver.
    pub fn driver(&self) -> &Arc<dyn GraphDriver> {
        &self.inner.driver
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    fn holdings(&self) -> MutexGuard<'_, Holdings> {
        // Each change of the holdings is complete before the lock is released; a panic elsewhere leaves them whole.
        self.inner.holdings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layer_records(&self) -> PathBuf {
        self.inner.root.join(self.inner.driver.name()).join("layers")
    }
}

/// As many as there are processors, but each takes memory (a zstd window is 8 MiB) and a place on the disk's queue.
fn default_parallel_unpacks() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4))
}

impl Holdings {
    /// A number no other caller of this process got.
    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("root", &self.inner.root)
            .field("driver", &self.inner.driver.name())
            .finish()
    }
}

fn write_layout_marker(root: &Path) -> Result<()> {
    let path = root.join("oci-layout");
    if path.exists() {
        return Ok(());
    }
    fs::write(&path, r#"{"imageLayoutVersion":"1.0.0"}"#)
        .map_err(|e| Error::io(format!("write {}", path.display()), e))
}

#[cfg(test)]
mod tests;
