//! Garbage collection: mark from names, images, containers and leases; sweep the rest.
//!
//! Run at start-up with a grace period (an interrupted pull leaves blobs and layers that its next try reuses) and
//! after removals. What a running pull holds by a [`crate::Lease`] is never taken.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use skiff_graphdrivers::{LayerId, SnapshotKey};

use crate::Store;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::rw::active_id;

/// What to keep beside images and leases.
#[derive(Debug, Clone, Default)]
pub struct GcOptions {
    /// Ids of all containers that exist: their writable layers are kept.
    pub containers: HashSet<String>,
    /// Unneeded blobs, layers and partial downloads younger than this are kept.
    pub grace: Duration,
}

/// What a collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Layers.
    pub layers: Vec<LayerId>,
    /// Complete blobs.
    pub blobs: usize,
    /// Interrupted downloads.
    pub partials: usize,
    /// Snapshots of the driver that nobody owned.
    pub snapshots: Vec<SnapshotKey>,
    /// Bytes freed, as far as known.
    pub bytes: u64,
}

impl Store {
    /// Removes everything that no image, name, container or lease needs.
    ///
    /// # Errors
    /// `Io`; what was removed before stays removed.
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport> {
        let mut report = GcReport {
            layers: self.drop_unneeded_layers(options.grace)?,
            ..GcReport::default()
        };
        self.drop_unneeded_blobs(options.grace, &mut report)?;
        self.drop_partials(options.grace, &mut report)?;
        self.empty_trash()?;
        self.clean_driver(&options.containers, &mut report)?;
        Ok(report)
    }

    /// Removes an image's layers from the top until one is needed by somebody else. Returns what went, top first.
    pub(crate) fn drop_chain(&self, image: &Image) -> Result<Vec<LayerId>> {
        let mut removed = Vec::new();
        for layer in image.chain.iter().rev() {
            let mut holdings = self.holdings();
            // Looked up under the lock: a pull registers its image before it gives its lease back.
            let needed = self.catalog().needed_layers().contains(layer) || holdings.layer_is_held(layer);
            if needed || !holdings.layers.contains_key(layer) || !self.drop_layer(&mut holdings, layer)? {
                break;
            }
            removed.push(layer.clone());
        }
        Ok(removed)
    }

    /// Removes those of `candidates` that nobody needs; returns their bytes.
    pub(crate) fn drop_blobs(&self, candidates: &HashSet<Digest>) -> Result<u64> {
        let mut bytes = 0;
        let holdings = self.holdings();
        let needed = self.catalog().needed_blobs();
        for digest in candidates {
            if !needed.contains(digest) && !holdings.blob_is_held(digest) {
                bytes += self.discard_blob(digest)?;
            }
        }
        Ok(bytes)
    }

    fn drop_unneeded_layers(&self, grace: Duration) -> Result<Vec<LayerId>> {
        let limit = Timestamp::now() - grace;
        let mut removed = Vec::new();
        // Children before parents: each round takes the leaves.
        loop {
            let before = removed.len();
            let mut holdings = self.holdings();
            let catalog = self.catalog();
            let needed = catalog.needed_layers();
            let parents: HashSet<Digest> = holdings
                .layers
                .values()
                .filter_map(|record| record.parent)
                .collect();
            let leaves: Vec<LayerId> = holdings
                .layers
                .iter()
                .filter(|(id, record)| {
                    !needed.contains(id)
                        && !parents.contains(&record.chain_id)
                        && !holdings.layer_is_held(id)
                        && (record.created <= limit || grace.is_zero())
                })
                .map(|(id, _)| id.clone())
                .collect();
            for id in leaves {
                if self.drop_layer(&mut holdings, &id)? {
                    removed.push(id);
                }
            }
            if removed.len() == before {
                return Ok(removed);
            }
        }
    }

    fn drop_unneeded_blobs(&self, grace: Duration, report: &mut GcReport) -> Result<()> {
        for digest in self.list_blobs()? {
            let holdings = self.holdings();
            let needed = self.catalog().needed_blobs().contains(&digest) || holdings.blob_is_held(&digest);
            if !needed && is_older(&self.blob_path(&digest), grace) {
                report.bytes += self.discard_blob(&digest)?;
                report.blobs += 1;
            }
        }
        Ok(())
    }

    fn drop_partials(&self, grace: Duration, report: &mut GcReport) -> Result<()> {
        let directory = self.inner.root.join("ingest");
        let failed = |e| Error::io(format!("list {}", directory.display()), e);
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(|name| name.strip_suffix(".partial"));
            let Some(digest) = digest.and_then(|hex| format!("sha256:{hex}").parse().ok()) else {
                continue;
            };
            let holdings = self.holdings();
            if !holdings.blob_is_held(&digest) && is_older(&entry.path(), grace) {
                report.bytes += entry.metadata().map_or(0, |m| m.len());
                report.partials += 1;
                fs::remove_file(entry.path())
                    .map_err(|e| Error::io(format!("remove {}", entry.path().display()), e))?;
            }
        }
        Ok(())
    }

    /// Lets the driver free its trash and the snapshots that belong to nobody.
    fn clean_driver(&self, containers: &HashSet<String>, report: &mut GcReport) -> Result<()> {
        let _exclusive = self
            .inner
            .sweeping
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut live: HashSet<SnapshotKey> = containers
            .iter()
            .filter_map(|id| active_id(id).ok())
            .map(SnapshotKey::Active)
            .collect();
        {
            let holdings = self.holdings();
            live.extend(holdings.layers.keys().cloned().map(SnapshotKey::Layer));
            live.extend(holdings.unpacking.iter().cloned().map(SnapshotKey::Layer));
            live.extend(holdings.actives.iter().cloned().map(SnapshotKey::Active));
        }
        let cleaned = self.inner.driver.cleanup(&live)?;
        report.bytes += cleaned.freed;
        report.snapshots = cleaned.removed;
        Ok(())
    }
}

/// Whether a file was last written longer than `grace` ago; a file that cannot be looked at is not.
fn is_older(path: &Path, grace: Duration) -> bool {
    if grace.is_zero() {
        return true;
    }
    let modified = fs::metadata(path).and_then(|m| m.modified());
    modified.is_ok_and(|time| {
        SystemTime::now()
            .duration_since(time)
            .is_ok_and(|age| age >= grace)
    })
}
