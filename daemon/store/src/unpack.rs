//! One layer from its compressed blob into the storage driver.
//!
//! ```text
//!   claim(chain id) ─▶ prepare(temporary key, parent) ─▶ unpack ─▶ diff id right? ─▶ driver.commit ─▶ record
//!     others wait      │ parent not there yet: without              │ then: driver.stack
//!                      └────────── any failure: the temporary snapshot is removed (`Draft`) ───────┘
//! ```

use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use skiff_archive::{Applied, ApplyOptions, OwnerTable, SquashedOwner};
use skiff_graphdrivers::{
    Access, ActiveId, ErrorKind as DriverErrorKind, LayerId, Mount, PrepareOptions, SnapshotRef,
};

use crate::digest::{Descriptor, Digest, chain_id};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::{LayerRecord, Squashed, owners_path, record_name};
use crate::{FORMAT_VERSION, Store};

/// Active snapshots of the unpacker begin with this.
pub(crate) const UNPACK_PREFIX: &str = "unpack-";

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
        let Some(claim) = self.claim_layer(&id)? else {
            return self
                .layer(&id)
                .ok_or_else(|| Error::not_found(format!("layer {id} vanished")));
        };
        if let Some(parent) = layer.parent
            && self.layer(parent).is_none()
        {
            return Err(Error::not_found(format!("parent layer {parent} does not exist")));
        }
        let mut draft = Draft::begin(claim, layer.parent)?;
        draft.fill(open()?, layer)?;
        draft.commit(layer)
    }

    /// Waits until nobody unpacks `id`; `None` when it exists then, else the right to unpack it.
    pub(crate) fn claim_layer(&self, id: &LayerId) -> Result<Option<LayerClaim<'_>>> {
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

    pub(crate) fn prepare_for_unpack(&self, active: &ActiveId, parent: Option<&LayerId>) -> Result<()> {
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

    /// Makes an active snapshot a layer. One that is there already lost its record, and something stood on it at the start:
    /// after a power failure its files may be damaged, so they make room for the new ones. Where a container is mounted on
    /// it there has been none since, and it stays.
    pub(crate) fn commit_snapshot(&self, active: &ActiveId, layer: &LayerId) -> Result<()> {
        let driver = &self.inner.driver;
        let replaced = match driver.commit(active, layer) {
            Err(error) if error.kind() == DriverErrorKind::AlreadyExists => driver.replace(active, layer),
            committed => return Ok(committed?),
        };
        match replaced {
            Err(error) if error.kind() == DriverErrorKind::InUse => self.remove_active(active),
            other => other?,
        }
        Ok(())
    }

    pub(crate) fn remove_active(&self, active: &ActiveId) {
        match self.inner.driver.remove(SnapshotRef::Active(active)) {
            Ok(()) => {}
            Err(error) if error.kind() == DriverErrorKind::NotFound => {}
            Err(error) => tracing::warn!(snapshot = %active, %error, "cannot remove an unfinished snapshot"),
        }
    }
}

/// The right to unpack one layer.
pub(crate) struct LayerClaim<'s> {
    store: &'s Store,
    id: LayerId,
}

impl Drop for LayerClaim<'_> {
    fn drop(&mut self) {
        self.store.holdings().unpacking.remove(&self.id);
        self.store.inner.released.notify_all();
    }
}

/// A layer on its way. Dropped before it is committed, it leaves nothing.
pub(crate) struct Draft<'s> {
    active: ActiveId,
    /// It was prepared on top of its parent.
    stacked: bool,
    applied: Option<Applied>,
    /// Real owners of its files, staged.
    owners: Option<PathBuf>,
    committed: bool,
    claim: LayerClaim<'s>,
}

impl<'s> Draft<'s> {
    /// Prepares a snapshot; without parent when that one is not there yet.
    pub(crate) fn begin(claim: LayerClaim<'s>, parent: Option<&LayerId>) -> Result<Self> {
        let active = ActiveId::new(format!("{UNPACK_PREFIX}{}", claim.id.hex()))?;
        claim.store.prepare_for_unpack(&active, parent)?;
        Ok(Self {
            active,
            stacked: parent.is_some(),
            applied: None,
            owners: None,
            committed: false,
            claim,
        })
    }

    /// Unpacks the compressed stream and compares the diff id.
    pub(crate) fn fill(&mut self, source: impl Read + Send, layer: &NewLayer<'_>) -> Result<()> {
        let store = self.claim.store;
        let target = store.inner.driver.apply_target(&self.active)?;
        // The diff id vouches for everything that gets to the disk.
        let options = ApplyOptions {
            source_verified: true,
            ..store.inner.apply.clone()
        };
        let mut owners = OwnersFile {
            path: owners_path(&store.layer_records(), &self.claim.id).with_extension("owners.tmp"),
            table: None,
        };
        let applied =
            skiff_archive::apply_recording(source, &target, &options, &mut |owner| owners.push(owner));
        self.owners = owners.table.is_some().then(|| owners.path.clone());
        let applied = applied?;
        owners.finish()?;
        store.inner.steps.after("layer unpacked");
        if applied.diff_id != layer.diff_id.to_string() {
            return Err(
                Error::corrupt("layers from manifest don't match image configuration").caused_by(format!(
                    "blob {} unpacks to {}, not {}",
                    layer.blob.digest, applied.diff_id, layer.diff_id
                )),
            );
        }
        self.applied = Some(applied);
        Ok(())
    }

    /// Makes the layer known; its parent is there.
    pub(crate) fn commit(mut self, layer: &NewLayer<'_>) -> Result<Arc<LayerRecord>> {
        let store = self.claim.store;
        let Some(applied) = self.applied.take() else {
            return Err(Error::invalid(format!(
                "layer {} was not unpacked",
                self.claim.id
            )));
        };
        if let Some(parent) = layer.parent {
            if !self.stacked {
                // The unpacker leaves the root directory's own metadata alone, as Docker and containerd do.
                store.inner.driver.stack(&self.active, parent, false)?;
                store.inner.steps.after("layer stacked");
            }
            self.adopt_directories(&applied)?;
        }
        let id = self.claim.id.clone();
        if let Some(staged) = self.owners.take() {
            // A table without a record is an orphan, so it comes first.
            durable::publish(&staged, &owners_path(&store.layer_records(), &id))?;
        }
        store.commit_snapshot(&self.active, &id)?;
        self.committed = true;
        store.inner.steps.after("layer committed");
        store.record(&id, layer, &applied)
    }

    /// Directories that the layer uses without describing them look as they do below.
    fn adopt_directories(&self, applied: &Applied) -> Result<()> {
        if applied.implied.is_empty() {
            return Ok(());
        }
        let driver = &self.claim.store.inner.driver;
        let mounts = driver.mounts(SnapshotRef::Active(&self.active), Access::ReadWrite)?;
        let lower = match mounts.as_slice() {
            [Mount::Overlay(overlay)] => &overlay.lower,
            [Mount::Fuse(fuse)] => &fuse.lower,
            // One tree: they were there.
            _ => return Ok(()),
        };
        let target = driver.apply_target(&self.active)?;
        Ok(skiff_archive::adopt_directories(
            &target.directory,
            target.whiteouts,
            lower,
            &applied.implied,
        )?)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        let store = self.claim.store;
        if let Some(staged) = &self.owners
            && let Err(error) = fs::remove_file(staged)
        {
            tracing::warn!(path = %staged.display(), %error, "cannot remove a table of owners");
        }
        if !self.committed {
            store.remove_active(&self.active);
            // At once: a disk that was full would stay so for the next, smaller, image.
            if let Err(error) = store.purge() {
                tracing::warn!(%error, "cannot free the space of a failed layer");
            }
        }
        store.holdings().actives.remove(&self.active);
    }
}

impl Store {
    pub(crate) fn record(
        &self,
        id: &LayerId,
        layer: &NewLayer<'_>,
        applied: &Applied,
    ) -> Result<Arc<LayerRecord>> {
        let squashed = (applied.squashed > 0).then_some(Squashed {
            files: applied.squashed,
            uid: applied.folded.0,
            gid: applied.folded.1,
        });
        if let Some(squashed) = &squashed {
            tracing::warn!(layer = %id, files = squashed.files, uid = squashed.uid, gid = squashed.gid,
                "owners outside of this user namespace were folded (--storage-opt oversized-ids=squash)");
        }
        let record = Arc::new(LayerRecord {
            version: FORMAT_VERSION,
            chain_id: Digest::from(id),
            diff_id: layer.diff_id,
            parent: layer.parent.map(Digest::from),
            size: applied.size,
            blob: Some(layer.blob.clone()),
            created: Timestamp::now(),
            squashed,
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
}

/// A table of real owners that is made when it is first needed.
pub(crate) struct OwnersFile {
    pub(crate) path: PathBuf,
    pub(crate) table: Option<OwnerTable<BufWriter<File>>>,
}

impl OwnersFile {
    pub(crate) fn push(&mut self, owner: SquashedOwner<'_>) -> io::Result<()> {
        let table = match &mut self.table {
            Some(table) => table,
            none => none.insert(OwnerTable::new(BufWriter::new(File::create(&self.path)?))),
        };
        table.push(owner)
    }

    pub(crate) fn finish(self) -> Result<()> {
        let finished = self.table.map(OwnerTable::finish).transpose();
        finished
            .map(drop)
            .map_err(|e| Error::io(format!("write {}", self.path.display()), e))
    }
}
