//! Repairing from what is good: bad blobs go, so that a pull fetches them again; damaged layers are unpacked again.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use skiff_archive::{ApplyTarget, Difference, WhiteoutFormat};
use skiff_graphdrivers::{DiffSource, LayerId, SnapshotRef};

use super::layers::Comparison;
use super::{Place, Verification};
use crate::digest::Descriptor;
use crate::error::{Error, Result};
use crate::layers::LayerRecord;
use crate::migrate::Progress;
use crate::{NewLayer, Store};

impl Store {
    /// Repairs what `found` names as far as that is possible here, and marks it as repaired. Layers of another driver are
    /// left to a store that has that driver. The data root must be ours alone. A kill in between leaves damage that the
    /// next call finds.
    ///
    /// # Errors
    /// `NoSpace`; `Io`.
    pub fn repair(&self, found: &mut Verification, progress: &dyn Progress) -> Result<()> {
        for index in 0..found.problems.len() {
            if progress.stop() {
                return Ok(());
            }
            match found.problems[index].place.clone() {
                Place::Blob(digest) => {
                    progress.begin(&format!("removing blob {digest}"), 0);
                    let _holdings = self.holdings();
                    self.discard_blob(&digest)?;
                    // An image that needs it is whole only after a pull.
                    found.problems[index].repaired = found.problems[index].images.is_empty();
                }
                Place::Layer { driver, .. } if driver != self.inner.driver.name() => {}
                Place::Layer { id, .. } => {
                    progress.begin(&format!("layer {:.12}", id.hex()), 0);
                    match self.repair_layer(&id, found) {
                        Ok(repaired) => found.problems[index].repaired = repaired,
                        Err(error) => {
                            let text = format!("; it cannot be repaired in its place: {error}");
                            found.problems[index].damage.push_str(&text);
                        }
                    }
                }
                Place::Elsewhere => {}
            }
        }
        self.inner.driver.sync()?;
        self.purge().map(drop)
    }

    /// `false` when there is no blob to repair it from.
    fn repair_layer(&self, id: &LayerId, found: &Verification) -> Result<bool> {
        let Some(record) = self.layer(id) else {
            return Ok(false);
        };
        let Some(blob) = self.good_blob_of(id, &record, &found.good_blobs) else {
            return Ok(false);
        };
        let parent = record.parent.and_then(|parent| parent.to_layer_id().ok());
        let alone = {
            let mut holdings = self.holdings();
            self.drop_layer(&mut holdings, id)?
        };
        if alone {
            let new = NewLayer {
                parent: parent.as_ref(),
                diff_id: record.diff_id,
                blob: &blob,
            };
            self.unpack(&new, || self.open_blob(&blob.digest))?;
        } else {
            self.repair_in_place(id, &record, found)?;
        }
        let record = self.layer(id).unwrap_or(record);
        Ok(self.differences(id, &record, found)?.is_empty())
    }

    /// What other snapshots stand on cannot be replaced, so its files are.
    fn repair_in_place(&self, id: &LayerId, record: &LayerRecord, found: &Verification) -> Result<()> {
        let surplus = self.differences(id, record, found)?;
        let source = self.inner.driver.diff_source(SnapshotRef::Layer(id))?;
        let (directory, whiteouts, chain) = match &source {
            DiffSource::Native { directory, whiteouts } => (directory, *whiteouts, vec![id.clone()]),
            // A whole tree: everything below goes over it first.
            DiffSource::Compare { directory, .. } => (directory, WhiteoutFormat::Delete, self.chain_to(id)),
        };
        remove_surplus(directory, &surplus)?;
        let target = ApplyTarget {
            directory: directory.clone(),
            whiteouts,
        };
        for layer in chain {
            let blob = self.blob_for(&layer, found)?;
            skiff_archive::apply(self.open_blob(&blob.digest)?, &target, &self.inner.apply)?;
        }
        Ok(())
    }

    fn blob_for(&self, id: &LayerId, found: &Verification) -> Result<Descriptor> {
        let record = self.layer(id);
        let blob = record.and_then(|record| self.good_blob_of(id, &record, &found.good_blobs));
        blob.ok_or_else(|| Error::not_found(format!("layer {id} has no good blob")))
    }

    /// A layer and those below it, bottom first.
    fn chain_to(&self, top: &LayerId) -> Vec<LayerId> {
        let mut chain = Vec::new();
        let mut next = Some(top.clone());
        while let Some(id) = next {
            next = self
                .layer(&id)
                .and_then(|record| record.parent)
                .and_then(|parent| parent.to_layer_id().ok());
            chain.push(id);
        }
        chain.reverse();
        chain
    }

    /// Compares one layer, with everything below it where the driver keeps whole trees.
    fn differences(
        &self,
        id: &LayerId,
        record: &LayerRecord,
        found: &Verification,
    ) -> Result<Vec<Difference>> {
        let mut comparison = Comparison {
            store: self,
            trees: HashMap::new(),
        };
        for below in self.chain_to(id) {
            if below != *id
                && let Some(record) = self.layer(&below)
            {
                let blob = self.good_blob_of(&below, &record, &found.good_blobs);
                // Its own damage is its own problem.
                comparison.differences(&below, &record, blob.as_ref())?;
            }
        }
        let blob = self.good_blob_of(id, record, &found.good_blobs);
        Ok(comparison.differences(id, record, blob.as_ref())?.1)
    }
}

/// Removes what does not belong into a layer, and what has the wrong kind: directories in the place of files.
fn remove_surplus(directory: &Path, differences: &[Difference]) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    for difference in differences.iter().filter(|difference| difference.surplus) {
        // The names come from a walk that follows no links, and nobody else is here.
        let path = directory.join(std::ffi::OsStr::from_bytes(&difference.path));
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                skiff_archive::remove_tree(&path)?;
            }
            Ok(_) => {
                fs::remove_file(&path).map_err(|e| Error::io(format!("remove {}", path.display()), e))?;
            }
            // Removed with its directory.
            Err(_) => {}
        }
    }
    Ok(())
}
