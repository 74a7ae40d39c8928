//! Layers that are unpacked into the storage driver: one record each, and their life after that.
//!
//! ```text
//!   <driver>/layers/<hex>.json      the record
//!   <driver>/layers/<hex>.owners    real owners of files whose ids do not exist here (`--storage-opt oversized-ids=squash`)
//! ```
//!
//! How they come there: `unpack` (one) and `chain` (an image's, several at a time).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use skiff_archive::Owners;
use skiff_graphdrivers::{ErrorKind as DriverErrorKind, GraphDriver, LayerId, SnapshotKey, SnapshotRef};

use crate::chain::ChainLayer;
use crate::digest::{Descriptor, Digest};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::follow::StopToken;
use crate::gc::remove_snapshots;
use crate::image::Image;
use crate::{FORMAT_VERSION, Store};

/// Ending of the tables of real owners.
const OWNERS: &str = "owners";

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
    /// Bytes of the layer's regular files and symbolic links.
    pub size: u64,
    /// The compressed blob it was unpacked from.
    pub blob: Option<Descriptor>,
    /// When it was unpacked.
    pub created: Timestamp,
    /// Files whose owner does not exist in this user namespace and was folded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub squashed: Option<Squashed>,
    /// The boot during which it was unpacked, until its files are known to be on the disk: see [`Store::settle`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsettled: Option<String>,
}

/// Folded owners of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Squashed {
    /// Files.
    pub files: u64,
    /// The user they belong to now.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Store {
    /// The record of a layer that is unpacked with this driver.
    pub fn layer(&self, layer: &LayerId) -> Option<Arc<LayerRecord>> {
        self.holdings().layers.get(layer).cloned()
    }

    /// Makes sure that all layers of an image are unpacked with this driver, from the kept blobs if need be.
    /// Returns the top layer; `None` for an image without layers.
    ///
    /// # Errors
    /// `NotFound` when a layer is missing and its blob is not kept; as [`Store::unpack`].
    pub fn ensure_layers(&self, image: &Image) -> Result<Option<LayerId>> {
        let lease = self.lease();
        let missing = image.chain.iter().filter(|id| lease.layer(id).is_none()).count();
        if missing == 0 {
            return Ok(image.top_layer().cloned());
        }
        tracing::info!(image = %image.id, layers = missing, driver = self.inner.driver.name(),
            "unpacking layers again from their blobs");
        let layers = (0..image.chain.len())
            .map(|index| {
                let blob = match self.layer(&image.chain[index]) {
                    Some(_) => None,
                    None => Some(self.kept_blob(image, index)?.clone()),
                };
                Ok(ChainLayer {
                    diff_id: image.diff_ids[index],
                    blob,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let open = |index: usize| match &layers[index].blob {
            Some(blob) => self.open_blob(&blob.digest),
            None => Err(Error::not_found(format!("layer {} vanished", image.chain[index]))),
        };
        self.unpack_chain(&layers, &StopToken::default(), open, |_, _| ())
            .map_err(|failed| failed.error)
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

    /// The real owners of files in the chain of layers up to `top`, for a diff of what stands on it; `None` when all
    /// files have their own.
    ///
    /// # Errors
    /// `Io`; `Corrupt` for a damaged table.
    pub fn real_owners(&self, top: &LayerId) -> Result<Option<Owners>> {
        let mut chain = Vec::new();
        let mut next = self.layer(top);
        while let Some(record) = next {
            next = match &record.parent {
                Some(parent) => self.layer(&parent.to_layer_id()?),
                None => None,
            };
            chain.push(record);
        }
        let mut found: Option<Owners> = None;
        for record in chain.iter().rev() {
            let Some(squashed) = &record.squashed else {
                continue;
            };
            let path = owners_path(&self.layer_records(), &record.chain_id.to_layer_id()?);
            let failed = |e| Error::io(format!("read {}", path.display()), e);
            let owners = found.get_or_insert_with(|| Owners::new((squashed.uid, squashed.gid)));
            let table = BufReader::new(fs::File::open(&path).map_err(failed)?);
            owners.read(table).map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData => Error::corrupt(format!("{}: {error}", path.display())),
                _ => failed(error),
            })?;
        }
        Ok(found)
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
        let record = holdings.layers.remove(id);
        remove_record(&self.layer_records().join(record_name(id)))?;
        if record.is_some_and(|record| record.squashed.is_some()) {
            remove_record(&owners_path(&self.layer_records(), id))?;
        }
        self.inner.steps.after("layer record removed");
        Ok(true)
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
    let mut tables = Vec::new();
    let failed = |e| Error::io(format!("list {}", directory.display()), e);
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        match read_record(&path)? {
            Some((id, record)) if committed.contains(&id) && record.is_trusted_in(boot) => {
                records.insert(id, Arc::new(record));
            }
            // Looked at when all records are known.
            _ if is_table(&path) => tables.push(path),
            _ => {
                tracing::info!(path = %path.display(), "dropping a layer record; the layer is unpacked again when needed");
                remove_record(&path)?;
            }
        }
    }
    drop_orphans(&mut records);
    let wanted: HashSet<PathBuf> = records.keys().map(|id| owners_path(directory, id)).collect();
    for orphan in tables.iter().filter(|table| !wanted.contains(*table)) {
        remove_record(orphan)?;
    }
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

/// The records in a directory, as they are; nothing is judged or removed.
pub(crate) fn read_records(directory: &Path) -> Result<HashMap<LayerId, LayerRecord>> {
    let failed = |e| Error::io(format!("list {}", directory.display()), e);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut records = HashMap::new();
    for entry in entries {
        records.extend(read_record(&entry.map_err(failed)?.path())?);
    }
    Ok(records)
}

pub(crate) fn record_name(id: &LayerId) -> String {
    format!("{}.json", id.hex())
}

/// Where the real owners of a layer's files are kept.
pub(crate) fn owners_path(directory: &Path, id: &LayerId) -> PathBuf {
    directory.join(format!("{}.{OWNERS}", id.hex()))
}

fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == OWNERS)
}

pub(crate) fn remove_record(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}
