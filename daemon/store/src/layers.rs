//! Layers: compressed blobs unpacked into the storage driver, one record each.
//!
//! ```text
//!   claim(chain id) ─▶ prepare(temporary key, parent) ─▶ unpack ─▶ diff id right? ─▶ driver.commit ─▶ record
//!     others wait          └────────── any failure: the temporary snapshot is removed ───────┘
//! ```

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use skiff_archive::Applied;
use skiff_graphdrivers::{
    ActiveId, ErrorKind as DriverErrorKind, GraphDriver, LayerId, PrepareOptions, SnapshotKey, SnapshotRef,
};

use crate::digest::{Descriptor, Digest, chain_id};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::gc::remove_snapshots;
use crate::image::Image;
use crate::{FORMAT_VERSION, Store};

/// Active snapshots of the unpacker begin with this.
pub(crate) const UNPACK_PREFIX: &str = "unpack-";

/// An unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Format of the record.
    pub version: u32,
    /// Names the layer and everything below it.
    pub chain_id: Digest,
    /// Digest of the tar stream.
    pub diff_id: Digest,
    /// Chain id of the layer below.
    pub parent: Option<Digest>,
    /// Bytes of the layer's regular files.
    pub size: u64,
    /// The compressed blob it was unpacked from.
    pub blob: Option<Descriptor>,
    /// When it was unpacked.
    pub created: Timestamp,
    /// The boot during which it was unpacked, until its files are known to be on the disk: see [`Store::settle`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsettled: Option<String>,
}

/// A layer to be unpacked.
#[derive(Debug, Clone)]
pub struct NewLayer<'a> {
    /// The layer below, already there.
    pub parent: Option<&'a LayerId>,
    /// What the image's configuration says the tar stream's digest is.
    pub diff_id: Digest,
    /// The compressed blob.
    pub blob: &'a Descriptor,
}

impl NewLayer<'_> {
    /// The name the layer will have.
    ///
    /// # Errors
    /// None in practice: a digest always is a layer id.
    pub fn chain_id(&self) -> Result<LayerId> {
        chain_id(self.parent.map(Digest::from).as_ref(), &self.diff_id).to_layer_id()
    }
}

impl Store {
    /// The record of a layer that is unpacked with this driver.
    pub fn layer(&self, layer: &LayerId) -> Option<Arc<LayerRecord>> {
        self.holdings().layers.get(layer).cloned()
    }

    /// Unpacks a layer from what `open` gives (the compressed stream) unless it is there; when another thread is at
    /// it, waits for that one. Hold a [`crate::Lease`] on the layer. The image's configuration vouches for `diff_id`,
    /// so the compressed stream need not have been verified.
    ///
    /// # Errors
    /// `NotFound` for the parent; `Corrupt` for a damaged stream or a wrong diff id; `IdRange`; `NoSpace`;
    /// `Unsupported` for a chain too long for the driver; `Io`. Nothing is left behind.
    pub fn unpack<R: Read + Send>(
        &self,
        layer: &NewLayer<'_>,
        open: impl FnOnce() -> Result<R>,
    ) -> Result<Arc<LayerRecord>> {
        let id = layer.chain_id()?;
        let Some(_claim) = self.claim_layer(&id)? else {
            return self
                .layer(&id)
                .ok_or_else(|| Error::not_found(format!("layer {id} vanished")));
        };
        if let Some(parent) = layer.parent
            && self.layer(parent).is_none()
        {
            return Err(Error::not_found(format!("parent layer {parent} does not exist")));
        }
        let active = ActiveId::new(format!("{UNPACK_PREFIX}{}", id.hex()))?;
        self.prepare_for_unpack(&active, layer.parent)?;
        let done = self
            .fill(&active, layer, open)
            .and_then(|applied| self.commit_layer(&active, &id, layer, &applied));
        if done.is_err() {
            self.remove_active(&active);
            // At once: a disk that was full would stay so for the next, smaller, image.
            if let Err(error) = self.purge() {
                tracing::warn!(%error, "cannot free the space of a failed layer");
            }
        }
        self.holdings().actives.remove(&active);
        done
    }

    /// Makes sure that all layers of an image are unpacked with this driver, from the kept blobs if need be.
    /// Returns the top layer; `None` for an image without layers.
    ///
    /// # Errors
    /// `NotFound` when a layer is missing and its blob is not kept; as [`Store::unpack`].
    pub fn ensure_layers(&self, image: &Image) -> Result<Option<LayerId>> {
        let lease = self.lease();
        let mut parent: Option<LayerId> = None;
        for (index, (id, diff_id)) in image.chain.iter().zip(&image.diff_ids).enumerate() {
            if lease.layer(id).is_none() {
                let blob = self.kept_blob(image, index)?;
                tracing::info!(layer = %id, driver = self.inner.driver.name(), "unpacking a layer again from its blob");
                let new = NewLayer {
                    parent: parent.as_ref(),
                    diff_id: *diff_id,
                    blob,
                };
                self.unpack(&new, || self.open_blob(&blob.digest))?;
            }
            parent = Some(id.clone());
        }
        Ok(parent)
    }

    /// Makes the layers unpacked so far survive a power failure. Not part of a pull, which would wait for the whole
    /// layer to reach the disk: until this is done, layers are marked with the boot in which they were unpacked, and a
    /// store opened in another boot throws them away and unpacks them again from their blobs.
    ///
    /// # Errors
    /// `NoSpace`; `Io`.
    pub fn settle(&self) -> Result<()> {
        let _one = self.inner.settling.lock().unwrap_or_else(PoisonError::into_inner);
        let unsettled: Vec<Arc<LayerRecord>> = {
            let holdings = self.holdings();
            holdings
                .layers
                .values()
                .filter(|record| record.unsettled.is_some())
                .cloned()
                .collect()
        };
        if unsettled.is_empty() {
            return Ok(());
        }
        self.inner.driver.sync()?;
        let directory = self.layer_records();
        for record in unsettled {
            self.mark_settled(&directory, &record)?;
        }
        durable::sync_directory(&directory)
    }

    fn mark_settled(&self, directory: &Path, record: &Arc<LayerRecord>) -> Result<()> {
        let id = record.chain_id.to_layer_id()?;
        let settled = LayerRecord {
            unsettled: None,
            ..LayerRecord::clone(record)
        };
        let temporary = directory.join(format!(".{}.settled.tmp", id.hex()));
        durable::stage(&temporary, &settled, durable::Flush::Now)?;
        let mut holdings = self.holdings();
        match holdings.layers.get_mut(&id) {
            Some(current) if Arc::ptr_eq(current, record) => {
                durable::publish(&temporary, &directory.join(record_name(&id)))?;
                *current = Arc::new(settled);
                Ok(())
            }
            // Removed meanwhile, perhaps unpacked once more.
            _ => remove_record(&temporary),
        }
    }

    fn kept_blob<'a>(&self, image: &'a Image, index: usize) -> Result<&'a Descriptor> {
        for blob in image.layer_sources(index) {
            if self.blob_size(&blob.digest)? == Some(blob.size) {
                return Ok(blob);
            }
        }
        Err(Error::not_found(format!(
            "layer {} of image {} is not unpacked for {} and its blob is not kept; pull the image again",
            image.diff_ids[index],
            image.id,
            self.inner.driver.name()
        )))
    }

    /// Waits until nobody unpacks `id`; `None` when it exists then, else the right to unpack it.
    fn claim_layer(&self, id: &LayerId) -> Result<Option<LayerClaim<'_>>> {
        let mut holdings = self.holdings();
        loop {
            if holdings.layers.contains_key(id) {
                return Ok(None);
            }
            if holdings.unpacking.insert(id.clone()) {
                return Ok(Some(LayerClaim {
                    store: self,
                    id: id.clone(),
                }));
            }
            holdings = self
                .inner
                .released
                .wait(holdings)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn prepare_for_unpack(&self, active: &ActiveId, parent: Option<&LayerId>) -> Result<()> {
        match self.prepare(active, parent) {
            // Left by a daemon that was killed: we hold the claim and the store's lock, so nobody works on it.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                self.inner.driver.remove(SnapshotRef::Active(active))?;
                self.prepare(active, parent)
            }
            other => other,
        }
    }

    /// Prepares a snapshot so that the driver's clean-up cannot take it for an orphan.
    pub(crate) fn prepare(&self, active: &ActiveId, parent: Option<&LayerId>) -> Result<()> {
        let _no_sweep = self.inner.sweeping.read().unwrap_or_else(PoisonError::into_inner);
        self.inner
            .driver
            .prepare(active, parent, &PrepareOptions::default())?;
        self.holdings().actives.insert(active.clone());
        self.inner.steps.after("snapshot prepared");
        Ok(())
    }

    fn fill<R: Read + Send>(
        &self,
        active: &ActiveId,
        layer: &NewLayer<'_>,
        open: impl FnOnce() -> Result<R>,
    ) -> Result<Applied> {
        let target = self.inner.driver.apply_target(active)?;
        let applied = skiff_archive::apply(open()?, &target, &self.inner.apply)?;
        self.inner.steps.after("layer unpacked");
        if applied.diff_id != layer.diff_id.to_string() {
            return Err(
                Error::corrupt("layers from manifest don't match image configuration").caused_by(format!(
                    "blob {} unpacks to {}, not {}",
                    layer.blob.digest, applied.diff_id, layer.diff_id
                )),
            );
        }
        Ok(applied)
    }

    fn commit_layer(
        &self,
        active: &ActiveId,
        id: &LayerId,
        layer: &NewLayer<'_>,
        applied: &Applied,
    ) -> Result<Arc<LayerRecord>> {
        match self.inner.driver.commit(active, id) {
            Ok(()) => {}
            // Its record was lost, and at the start something stood on it; it has the same content as ours.
            Err(error) if error.kind() == DriverErrorKind::AlreadyExists => self.remove_active(active),
            Err(error) => return Err(error.into()),
        }
        self.inner.steps.after("layer committed");
        let record = Arc::new(LayerRecord {
            version: FORMAT_VERSION,
            chain_id: Digest::from(id),
            diff_id: layer.diff_id,
            parent: layer.parent.map(Digest::from),
            size: applied.size,
            blob: Some(layer.blob.clone()),
            created: Timestamp::now(),
            unsettled: Some(self.inner.boot.clone()),
        });
        // Not trusted after a power failure until it is settled, so there is nothing to wait for here.
        let (directory, name) = (self.layer_records(), record_name(id));
        let written = durable::write_json_lightly(&directory, &name, record.as_ref(), &self.inner.steps);
        if let Err(error) = written {
            if let Err(second) = self.inner.driver.remove(SnapshotRef::Layer(id)) {
                tracing::warn!(layer = %id, error = %second, "cannot remove a layer whose record could not be written");
            }
            return Err(error);
        }
        self.holdings().layers.insert(id.clone(), Arc::clone(&record));
        Ok(record)
    }

    fn remove_active(&self, active: &ActiveId) {
        match self.inner.driver.remove(SnapshotRef::Active(active)) {
            Ok(()) => {}
            Err(error) if error.kind() == DriverErrorKind::NotFound => {}
            Err(error) => tracing::warn!(snapshot = %active, %error, "cannot remove an unfinished snapshot"),
        }
    }

    /// Removes a layer nobody needs from the driver and forgets it; `false` when something is built on it.
    /// The caller holds the `holdings` lock and has asked it.
    pub(crate) fn drop_layer(&self, holdings: &mut crate::Holdings, id: &LayerId) -> Result<bool> {
        match self.inner.driver.remove(SnapshotRef::Layer(id)) {
            Ok(()) => {}
            Err(error) if error.kind() == DriverErrorKind::NotFound => {}
            Err(error) if error.kind() == DriverErrorKind::InUse => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        self.inner.steps.after("layer removed");
        holdings.layers.remove(id);
        remove_record(&self.layer_records().join(record_name(id)))?;
        self.inner.steps.after("layer record removed");
        Ok(true)
    }
}

/// The right to unpack one layer.
struct LayerClaim<'a> {
    store: &'a Store,
    id: LayerId,
}

impl Drop for LayerClaim<'_> {
    fn drop(&mut self) {
        self.store.holdings().unpacking.remove(&self.id);
        self.store.inner.released.notify_all();
    }
}

/// Reads the records of layers that the driver really has, and takes everything else out of both: records without a
/// layer, layers without a record, layers whose files a power failure may have damaged.
pub(crate) fn load(
    directory: &Path,
    driver: &dyn GraphDriver,
    boot: &str,
) -> Result<HashMap<LayerId, Arc<LayerRecord>>> {
    let committed: HashSet<LayerId> = driver
        .list()?
        .into_iter()
        .filter_map(|info| match info.key {
            SnapshotKey::Layer(id) => Some(id),
            SnapshotKey::Active(_) => None,
        })
        .collect();
    let mut records = HashMap::new();
    let failed = |e| Error::io(format!("list {}", directory.display()), e);
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        match read_record(&path)? {
            Some((id, record)) if committed.contains(&id) && record.is_trusted_in(boot) => {
                records.insert(id, Arc::new(record));
            }
            _ => {
                tracing::info!(path = %path.display(), "dropping a layer record; the layer is unpacked again when needed");
                remove_record(&path)?;
            }
        }
    }
    drop_orphans(&mut records);
    let orphans = committed
        .into_iter()
        .filter(|id| !records.contains_key(id))
        .map(SnapshotKey::Layer)
        .collect();
    for orphan in remove_snapshots(driver, orphans)? {
        tracing::info!(?orphan, "removed a layer without record");
    }
    Ok(records)
}

/// Forgets layers whose parent has no record.
fn drop_orphans(records: &mut HashMap<LayerId, Arc<LayerRecord>>) {
    loop {
        let known: HashSet<Digest> = records.keys().map(Digest::from).collect();
        let before = records.len();
        records.retain(|_, record| record.parent.is_none_or(|parent| known.contains(&parent)));
        if records.len() == before {
            return;
        }
    }
}

impl LayerRecord {
    /// A kill leaves the page cache; only a reboot may have lost what was not written.
    fn is_trusted_in(&self, boot: &str) -> bool {
        self.unsettled
            .as_ref()
            .is_none_or(|unpacked_in| unpacked_in == boot)
    }
}

/// A layer's record; `None` when the file is no usable record (a temporary file, a damaged one).
fn read_record(path: &Path) -> Result<Option<(LayerId, LayerRecord)>> {
    let record: LayerRecord = match durable::read_json(path) {
        Ok(Some(record)) => record,
        Ok(None) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(None),
        Err(error) => return Err(error),
    };
    let id = record.chain_id.to_layer_id()?;
    let named_right = path.file_name().is_some_and(|name| *name == *record_name(&id));
    Ok((named_right && record.version == FORMAT_VERSION).then_some((id, record)))
}

fn record_name(id: &LayerId) -> String {
    format!("{}.json", id.hex())
}

fn remove_record(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}
