//! Unpacked layers against their blobs, and containers' writable layers.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::thread;

use skiff_archive::{DiffTree, Difference, Inventory, Tolerance};
use skiff_graphdrivers::{DiffSource, LayerId, SnapshotKey, SnapshotRef};

use super::{Place, Remedy, Verification, pull};
use crate::Store;
use crate::digest::{Descriptor, Digest};
use crate::error::{Error, ErrorKind, Result};
use crate::layers::LayerRecord;
use crate::migrate::{ContainerRecord, Progress};
use crate::rw::{active_id, container_of};

/// How many differences of one layer are named.
const SHOWN: usize = 3;

impl Store {
    /// Adds to `found` (what [`super::verify_blobs`] gave) what is wrong with unpacked layers and with the writable layers
    /// of `containers`. The data root must be ours alone.
    ///
    /// # Errors
    /// `Io` when the disk cannot be read at all.
    pub fn verify(
        &self,
        found: &mut Verification,
        containers: &[ContainerRecord],
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut comparison = Comparison {
            store: self,
            trees: HashMap::new(),
        };
        for (id, record) in self.layers_bottom_up() {
            if progress.stop() {
                return Err(Error::new(ErrorKind::Conflict, "interrupted"));
            }
            progress.begin(&format!("layer {:.12}", id.hex()), record.size);
            self.verify_layer(&id, &record, &mut comparison, found)?;
            progress.advance(record.size);
        }
        self.verify_containers(containers, found)?;
        self.note_orphans(containers, found)
    }

    /// All layers with records, parents before children.
    pub(super) fn layers_bottom_up(&self) -> Vec<(LayerId, std::sync::Arc<LayerRecord>)> {
        let all = self.holdings().layers.clone();
        let depth = |record: &LayerRecord| {
            let mut depth = 0_usize;
            let mut next = record.parent;
            while let Some(parent) = next.and_then(|p| p.to_layer_id().ok()).and_then(|p| all.get(&p)) {
                depth += 1;
                next = parent.parent;
            }
            depth
        };
        let mut sorted: Vec<_> = all
            .iter()
            .map(|(id, r)| (depth(r), id.clone(), r.clone()))
            .collect();
        sorted.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        sorted.into_iter().map(|(_, id, record)| (id, record)).collect()
    }

    fn verify_layer(
        &self,
        id: &LayerId,
        record: &LayerRecord,
        comparison: &mut Comparison<'_>,
        found: &mut Verification,
    ) -> Result<()> {
        let blob = self.good_blob_of(id, record, &found.good_blobs);
        let outcome = comparison.differences(id, record, blob.as_ref());
        found.layers += 1;
        let images = self.names_of_layer(id);
        let driver = self.inner.driver.name();
        let place = Place::Layer {
            driver,
            id: id.clone(),
        };
        let subject = format!("layer {id} ({driver})");
        let remedy = || match &blob {
            Some(_) => Remedy::Repair,
            None => pull(&images),
        };
        match outcome {
            Ok((files, differences)) => {
                found.files += files;
                if !differences.is_empty() {
                    let damage = describe(&differences);
                    found
                        .problem(place, subject, damage)
                        .of(images.clone())
                        .helped_by(remedy());
                }
            }
            // A file that cannot be read is damage, too.
            Err(error) => found
                .problem(place, subject, error.to_string())
                .of(images.clone())
                .helped_by(remedy()),
        }
        Ok(())
    }

    /// A whole blob from which a layer can be unpacked.
    pub(super) fn good_blob_of(
        &self,
        id: &LayerId,
        record: &LayerRecord,
        good: &HashSet<Digest>,
    ) -> Option<Descriptor> {
        let catalog = self.catalog();
        let of_images = catalog.images.values().filter_map(|image| {
            let index = image.chain.iter().position(|layer| layer == id)?;
            Some(image.layer_sources(index).cloned().collect::<Vec<_>>())
        });
        let mut all = of_images.flatten().chain(record.blob.clone());
        all.find(|blob| good.contains(&blob.digest))
    }

    fn names_of_layer(&self, id: &LayerId) -> BTreeSet<String> {
        let catalog = self.catalog();
        let images = catalog.images.values().filter(|image| image.chain.contains(id));
        images
            .flat_map(|image| {
                let names: Vec<String> = catalog
                    .names_of(&image.id)
                    .map(|(name, _)| name.to_string())
                    .collect();
                if names.is_empty() {
                    vec![image.id.short()]
                } else {
                    names
                }
            })
            .collect()
    }

    fn verify_containers(&self, containers: &[ContainerRecord], found: &mut Verification) -> Result<()> {
        let driver = &self.inner.driver;
        for container in containers.iter().filter(|c| c.driver == driver.name()) {
            found.containers += 1;
            let active = active_id(&container.id)?;
            let damage = match driver.stat(SnapshotRef::Active(&active)) {
                Err(_) => Some("its writable layer is gone".to_owned()),
                Ok(info) => info.parent.and_then(|parent| {
                    let missing = driver.stat(SnapshotRef::Layer(&parent)).is_err();
                    missing.then(|| format!("its image's layer {parent} is gone"))
                }),
            };
            if let Some(damage) = damage {
                found
                    .problem(
                        Place::Elsewhere,
                        format!("container {} ({:.12})", container.name, container.id),
                        damage,
                    )
                    .helped_by(Remedy::Remove(format!("docker rm {}", container.name)));
            }
        }
        Ok(())
    }

    /// What nobody needs is no damage, but takes room.
    fn note_orphans(&self, containers: &[ContainerRecord], found: &mut Verification) -> Result<()> {
        let known: HashSet<&str> = containers.iter().map(|c| c.id.as_str()).collect();
        let orphans = self
            .inner
            .driver
            .list()?
            .into_iter()
            .filter(|info| match &info.key {
                SnapshotKey::Active(id) => {
                    container_of(id).is_none_or(|container| !known.contains(container))
                }
                SnapshotKey::Layer(id) => self.layer(id).is_none(),
            });
        let count = orphans.count();
        if count > 0 {
            found.notes.push(format!(
                "{count} snapshots of {} belong to nobody; the next start of the daemon removes them",
                self.inner.driver.name()
            ));
        }
        let catalog = self.catalog();
        if catalog.unread().is_some() {
            // Found by its digest; until it is here again, nobody knows what else it needs.
            return Ok(());
        }
        let needed = self.holdings().needed_blobs(&catalog);
        let unneeded: Vec<Digest> = self
            .list_blobs()?
            .into_iter()
            .filter(|d| !needed.contains(d))
            .collect();
        if !unneeded.is_empty() {
            let mut bytes = 0;
            for digest in &unneeded {
                bytes += self.blob_size(digest)?.unwrap_or(0);
            }
            found.notes.push(format!(
                "{} blobs ({bytes} bytes) are needed by no image, perhaps of a pull that was interrupted; the daemon \
                 removes them when they are an hour old",
                unneeded.len()
            ));
        }
        Ok(())
    }
}

/// Compares layers, lower ones first.
pub(super) struct Comparison<'s> {
    pub(super) store: &'s Store,
    /// What the whole tree of a layer should be, for drivers that keep whole trees.
    pub(super) trees: HashMap<LayerId, Rc<Inventory>>,
}

impl Comparison<'_> {
    /// How many files a layer should have, and what is wrong. Without a blob it is only read.
    pub(super) fn differences(
        &mut self,
        id: &LayerId,
        record: &LayerRecord,
        blob: Option<&Descriptor>,
    ) -> Result<(u64, Vec<Difference>)> {
        let source = self.store.inner.driver.diff_source(SnapshotRef::Layer(id))?;
        let tolerance = tolerance(record);
        let expected = match blob {
            Some(blob) => Some(skiff_archive::inventory(self.store.open_blob(&blob.digest)?)?),
            None => None,
        };
        match &source {
            DiffSource::Native { .. } => {
                let found = read(&source.tree())?;
                let expected = expected.as_ref().unwrap_or(&found);
                Ok((expected.len() as u64, expected.differences(&found, &tolerance)))
            }
            DiffSource::Compare { directory, .. } => {
                let found = read(&DiffTree::Compare {
                    directory,
                    parent: None,
                })?;
                let parent = record.parent.and_then(|parent| parent.to_layer_id().ok());
                let below = match &parent {
                    Some(parent) => self.trees.get(parent).cloned(),
                    None => Some(Rc::new(Inventory::default())),
                };
                let (Some(layer), Some(below)) = (expected, below) else {
                    self.trees.insert(id.clone(), Rc::new(found));
                    return Ok((0, Vec::new()));
                };
                let mut tree = Inventory::clone(&below);
                tree.stack(&layer);
                let differences = tree.differences(&found, &tolerance);
                self.trees.insert(id.clone(), Rc::new(tree));
                Ok((layer.len() as u64, differences))
            }
        }
    }
}

/// What a user namespace cannot have is not missed.
fn tolerance(record: &LayerRecord) -> Tolerance {
    Tolerance {
        no_devices: true,
        max_id: record
            .squashed
            .as_ref()
            .map(|squashed| squashed.uid.min(squashed.gid)),
    }
}

/// Reads the files of a layer through the same eyes as the blob.
fn read(tree: &DiffTree<'_>) -> Result<Inventory> {
    let (reader, writer) = io::pipe().map_err(|e| Error::io("pipe", e))?;
    let failure: Mutex<Option<skiff_archive::Error>> = Mutex::new(None);
    let inventory = thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(error) = skiff_archive::diff(tree, io::BufWriter::with_capacity(1 << 18, writer)) {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        skiff_archive::inventory(reader)
    });
    match (
        failure.into_inner().unwrap_or_else(PoisonError::into_inner),
        inventory,
    ) {
        (Some(error), _) => Err(error.into()),
        (None, inventory) => Ok(inventory?),
    }
}

fn describe(differences: &[Difference]) -> String {
    let mut parts: Vec<String> = differences
        .iter()
        .take(SHOWN)
        .map(|difference| {
            format!(
                "/{} {}",
                String::from_utf8_lossy(&difference.path),
                difference.what
            )
        })
        .collect();
    if differences.len() > SHOWN {
        parts.push(format!("and {} more", differences.len() - SHOWN));
    }
    parts.join("; ")
}
