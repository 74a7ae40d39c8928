//! Garbage collection: mark from names, images, containers and leases; sweep the rest.
//!
//! Run at start-up, after containers were removed and once an hour, with a grace period: an interrupted pull leaves blobs
//! and layers that its next try reuses. What a running pull holds by a [`crate::Lease`] is never taken. While a manifest
//! of some image cannot be read, its layers are not known, and no blob is taken at all.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use skiff_graphdrivers::{ErrorKind as DriverErrorKind, GraphDriver, LayerId, SnapshotKey, SnapshotRef};

use crate::catalog::Catalog;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::rw::active_id;
use crate::{Holdings, Store};

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
        report.snapshots = self.drop_orphan_snapshots(&options.containers)?;
        report.bytes += self.purge()?;
        Ok(report)
    }

    /// Frees the space of what was removed; nothing waits for it. Returns the driver's bytes.
    ///
    /// # Errors
    /// `Io`.
    pub fn purge(&self) -> Result<u64> {
        self.empty_trash()?;
        Ok(self.inner.driver.purge()?)
    }

    /// Removes those of an image's `layers` (bottom first) that no image, container or lease needs, for a pull or load
    /// that failed. Removals are renames; [`Store::purge`] frees the space. Returns what went, top first.
    ///
    /// # Errors
    /// `Io`.
    pub fn discard_unneeded_layers(&self, layers: &[LayerId]) -> Result<Vec<LayerId>> {
        self.drop_chain(layers)
    }

    /// Removes layers (bottom first) from the top until one is needed by somebody else. Returns what went, top first.
    pub(crate) fn drop_chain(&self, chain: &[LayerId]) -> Result<Vec<LayerId>> {
        let mut removed = Vec::new();
        for layer in chain.iter().rev() {
            let mut holdings = self.holdings();
            // Looked up under the lock: a pull registers its image before it gives its lease back.
            let needed = self.catalog().needed_layers().contains(layer) || holdings.layer_is_held(layer);
            if needed {
                break;
            }
            // Not unpacked (with this driver, or yet); those below may be.
            if !holdings.layers.contains_key(layer) {
                continue;
            }
            if !self.drop_layer(&mut holdings, layer)? {
                break;
            }
            removed.push(layer.clone());
        }
        Ok(removed)
    }

    /// Removes those of `candidates` that nobody needs; returns how many went and their bytes. None go while a manifest
    /// cannot be read.
    pub(crate) fn drop_blobs(&self, candidates: &HashSet<Digest>) -> Result<(usize, u64)> {
        let (mut count, mut bytes) = (0, 0);
        let holdings = self.holdings();
        // Looked up under the lock: a pull registers its image before it gives its lease back.
        let catalog = self.catalog();
        if catalog.unread().is_some() {
            return Ok((0, 0));
        }
        let needed = holdings.needed_blobs(&catalog);
        for digest in candidates {
            if !needed.contains(digest) && !holdings.blob_is_held(digest) {
                bytes += self.discard_blob(digest)?;
                count += 1;
            }
        }
        Ok((count, bytes))
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
        let catalog = self.catalog();
        if let Some(image) = catalog.unread() {
            tracing::warn!(%image, "no blob is removed, because a manifest of this image cannot be read and may need it; \
                pull the image again, or remove it");
            return Ok(());
        }
        let needed = catalog.needed_blobs();
        let old = |digest: &Digest| !needed.contains(digest) && is_older(&self.blob_path(digest), grace);
        let candidates: HashSet<Digest> = self.list_blobs()?.into_iter().filter(old).collect();
        let (count, bytes) = self.drop_blobs(&candidates)?;
        report.blobs += count;
        report.bytes += bytes;
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

    /// Takes the driver's snapshots that belong to nobody: left by a daemon that was killed, or by a container whose
    /// record is gone. Whoever prepares a snapshot is kept out for that moment; removals are renames.
    fn drop_orphan_snapshots(&self, containers: &HashSet<String>) -> Result<Vec<SnapshotKey>> {
        let _exclusive = self
            .inner
            .sweeping
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let of_containers: HashSet<_> = containers.iter().filter_map(|id| active_id(id).ok()).collect();
        let mut orphans: Vec<SnapshotKey> = self
            .inner
            .driver
            .list()?
            .into_iter()
            .map(|info| info.key)
            .collect();
        {
            let holdings = self.holdings();
            orphans.retain(|key| match key {
                SnapshotKey::Active(id) => !of_containers.contains(id) && !holdings.actives.contains(id),
                SnapshotKey::Layer(id) => {
                    !holdings.layers.contains_key(id) && !holdings.unpacking.contains(id)
                }
            });
        }
        remove_snapshots(self.inner.driver.as_ref(), orphans)
    }
}

impl Holdings {
    /// Every blob that an image or a name needs, or from which a layer was unpacked that an image needs: another driver
    /// unpacks it again from that one.
    pub(crate) fn needed_blobs(&self, catalog: &Catalog) -> HashSet<Digest> {
        let needed = catalog.needed_layers().into_iter();
        let sources = needed.filter_map(|layer| Some(self.layers.get(layer)?.blob.as_ref()?.digest));
        sources.chain(catalog.needed_blobs()).collect()
    }
}

/// Removes snapshots, children before parents; what something else stands on stays. Returns what went.
pub(crate) fn remove_snapshots(
    driver: &dyn GraphDriver,
    mut keys: Vec<SnapshotKey>,
) -> Result<Vec<SnapshotKey>> {
    let mut removed = Vec::new();
    loop {
        let before = removed.len();
        let mut rest = Vec::new();
        for key in keys {
            let snapshot = match &key {
                SnapshotKey::Active(id) => SnapshotRef::Active(id),
                SnapshotKey::Layer(id) => SnapshotRef::Layer(id),
            };
            match driver.remove(snapshot) {
                Ok(()) => removed.push(key),
                Err(error) if error.kind() == DriverErrorKind::InUse => rest.push(key),
                Err(error) if error.kind() == DriverErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        if removed.len() == before {
            return Ok(removed);
        }
        keys = rest;
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
