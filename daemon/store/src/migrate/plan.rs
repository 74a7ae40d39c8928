//! What a migration has to do, and what room it takes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use skiff_graphdrivers::{ErrorKind as DriverErrorKind, GraphDriver, LayerId, SnapshotRef};

use super::{ContainerRecord, Migration};
use crate::catalog::{self, Catalog};
use crate::digest::{Descriptor, Digest};
use crate::error::{Error, ErrorKind, Result};
use crate::layers::LayerRecord;
use crate::rw::active_id;

/// Room for what is not file contents: inodes, directories, the file system's own.
const MARGIN_BYTES: u64 = 16 << 20;
/// The same, growing with the contents: one part in so many.
const MARGIN_PART: u64 = 20;

/// What a migration has to do.
#[derive(Debug)]
pub struct MigrationPlan {
    /// Where everything goes.
    pub to: String,
    /// Where it comes from.
    pub sources: Vec<String>,
    /// Layers, parents before children; those that are there already are left out.
    pub layers: Vec<LayerMove>,
    /// Containers.
    pub containers: Vec<ContainerMove>,
    /// What cannot be moved because it is not whole now, one sentence each.
    pub losses: Vec<String>,
    /// Bytes the copies take on the disk, an estimate on the safe side.
    pub needed: u64,
    /// Bytes that are free.
    pub free: u64,
}

/// A layer to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerMove {
    /// Its chain id.
    pub id: LayerId,
    /// The layer below.
    pub parent: Option<LayerId>,
    /// Bytes of its files.
    pub size: u64,
    /// What it is made from.
    pub way: Way,
}

/// What a layer is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Its kept blob.
    Blob {
        /// The blob.
        blob: Descriptor,
        /// Digest of the tar stream.
        diff_id: Digest,
    },
    /// The files of another driver, because no blob is kept.
    Copy {
        /// That driver.
        from: String,
    },
}

/// A container whose writable layer is to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerMove {
    /// The container.
    pub container: ContainerRecord,
    /// The image's top layer below it.
    pub parent: Option<LayerId>,
    /// Bytes of its writable layer.
    pub size: u64,
}

impl MigrationPlan {
    /// Whether there is nothing to move and nothing to clean up.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Bytes of work, for a progress bar.
    pub fn work(&self) -> u64 {
        let layers = self.layers.iter().map(LayerMove::work);
        layers.chain(self.containers.iter().map(|c| c.size)).sum()
    }

    /// # Errors
    /// `NoSpace` when the copies do not fit beside the old state.
    pub fn check_space(&self) -> Result<()> {
        if self.needed <= self.free {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NoSpace,
            format!(
                "the copies need about {} bytes beside what is there, and only {} are free",
                self.needed, self.free
            ),
        ))
    }
}

impl LayerMove {
    /// Bytes that are read.
    pub(super) fn work(&self) -> u64 {
        match &self.way {
            Way::Blob { blob, .. } => blob.size,
            Way::Copy { .. } => self.size,
        }
    }
}

/// An old driver.
pub(super) struct Source {
    pub(super) name: String,
    /// `Err`: why it cannot be used on this machine.
    pub(super) driver: Result<Arc<dyn GraphDriver>>,
    pub(super) records: HashMap<LayerId, LayerRecord>,
}

impl Source {
    fn has(&self, layer: &LayerId) -> bool {
        self.driver
            .as_ref()
            .is_ok_and(|d| d.stat(SnapshotRef::Layer(layer)).is_ok())
    }
}

impl Migration<'_> {
    /// Finds out what a migration to the driver `to` has to do. Writes nothing outside a temporary directory.
    ///
    /// # Errors
    /// `Unsupported` when `to` does not work here, or cannot stack as many layers as an image has; `Io`.
    pub fn plan(&self, to: &str) -> Result<MigrationPlan> {
        let trial = self.try_driver(to)?;
        let sources = self.sources(to)?;
        let present = self.records_of(to)?.into_keys().collect();
        self.plan_against(to, &trial, &sources, present)
    }

    /// The same, when it is known which layers the new driver really has.
    pub(super) fn plan_against(
        &self,
        to: &str,
        trial: &Trial,
        sources: &[Source],
        present: HashSet<LayerId>,
    ) -> Result<MigrationPlan> {
        let catalog = catalog::load(&self.root)?;
        let mut planner = Planner {
            migration: self,
            sources,
            present,
            planned: HashSet::new(),
            full: HashMap::new(),
            plan: MigrationPlan {
                to: to.to_owned(),
                sources: sources.iter().map(|source| source.name.clone()).collect(),
                layers: Vec::new(),
                containers: Vec::new(),
                losses: Vec::new(),
                needed: 0,
                free: free_bytes(&self.data_root)?,
            },
            whole_copies: trial.whole_copies,
        };
        if let Some(max) = trial.max_depth {
            refuse_deep_images(&catalog, to, max)?;
        }
        for image in catalog.images.values() {
            planner.image(image)?;
        }
        for container in self.containers.list()? {
            if container.driver != to {
                planner.container(container)?;
            }
        }
        let mut plan = planner.plan;
        if plan.needed > 0 {
            plan.needed += plan.needed / MARGIN_PART + MARGIN_BYTES;
        }
        Ok(plan)
    }

    /// The drivers that hold something, opened as far as that is possible here.
    pub(super) fn sources(&self, to: &str) -> Result<Vec<Source>> {
        self.drivers_in_use(to, &self.containers.list()?)?
            .into_iter()
            .map(|name| {
                Ok(Source {
                    driver: self.open_driver(&name),
                    records: self.records_of(&name)?,
                    name,
                })
            })
            .collect()
    }

    /// Opens `to` in a temporary directory: its own must not come into being by a question.
    fn try_driver(&self, to: &str) -> Result<Trial> {
        let place = self.data_root.join(format!(".try-{}", std::process::id()));
        fs::create_dir_all(&place).map_err(|e| Error::io(format!("mkdir {}", place.display()), e))?;
        let trial = (self.open)(&place, to).map(|driver| {
            let capabilities = driver.capabilities();
            Trial {
                max_depth: capabilities.max_depth,
                // A driver without differences of its own copies the parent, unless the file system shares blocks.
                whole_copies: to == "vfs" && !shares_blocks(&place),
            }
        });
        let removed = skiff_archive::remove_tree(&place);
        let trial = trial.map_err(|text| Error::new(ErrorKind::Unsupported, text))?;
        removed?;
        Ok(trial)
    }
}

/// What is known of the new driver.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Trial {
    max_depth: Option<usize>,
    whole_copies: bool,
}

struct Planner<'p> {
    migration: &'p Migration<'p>,
    sources: &'p [Source],
    /// Layers the new driver has.
    present: HashSet<LayerId>,
    /// Layers it will have, too.
    planned: HashSet<LayerId>,
    /// Bytes of a layer with everything below it.
    full: HashMap<LayerId, u64>,
    plan: MigrationPlan,
    whole_copies: bool,
}

impl Planner<'_> {
    fn image(&mut self, image: &crate::Image) -> Result<()> {
        let mut parent: Option<LayerId> = None;
        for (index, id) in image.chain.iter().enumerate() {
            let blob = self.kept_blob(image.layer_sources(index))?.map(|blob| Way::Blob {
                blob,
                diff_id: image.diff_ids[index],
            });
            if !self.layer(id, parent.as_ref(), blob) {
                self.plan.losses.push(format!(
                    "image {}: layer {id} is neither kept as a blob nor unpacked; pull the image again",
                    image.id.short()
                ));
                return Ok(());
            }
            parent = Some(id.clone());
        }
        Ok(())
    }

    fn container(&mut self, container: ContainerRecord) -> Result<()> {
        let active = active_id(&container.id)?;
        let active = SnapshotRef::Active(&active);
        let Some(source) = self.sources.iter().find(|source| source.name == container.driver) else {
            self.lost(
                &container,
                &format!("nothing of the storage driver {} is left", container.driver),
            );
            return Ok(());
        };
        let driver = match &source.driver {
            Ok(driver) => Arc::clone(driver),
            // Going on would mean to leave its data behind.
            Err(error) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "container {} cannot be moved: the storage driver {} cannot be used: {error}",
                        container.name, source.name
                    ),
                ));
            }
        };
        let parent = match driver.stat(active) {
            Ok(info) => info.parent,
            Err(error) if error.kind() == DriverErrorKind::NotFound => {
                self.lost(
                    &container,
                    &format!("{} does not have its writable layer", source.name),
                );
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        for (id, below) in chain_below(driver.as_ref(), parent.as_ref())? {
            self.layer(&id, below.as_ref(), None);
        }
        let size = driver.usage(active)?.size;
        self.plan.needed += size + self.copied_with(parent.as_ref());
        self.plan.containers.push(ContainerMove {
            container,
            parent,
            size,
        });
        Ok(())
    }

    fn lost(&mut self, container: &ContainerRecord, why: &str) {
        self.plan.losses.push(format!(
            "container {} ({:.12}): {why}; it can only be removed",
            container.name, container.id
        ));
    }

    /// Plans a layer; `false` when there is nothing to make it from.
    fn layer(&mut self, id: &LayerId, parent: Option<&LayerId>, blob: Option<Way>) -> bool {
        let record = self.sources.iter().find_map(|source| source.records.get(id));
        let size = record.map_or(0, |record| record.size);
        let full = size
            + parent
                .and_then(|parent| self.full.get(parent))
                .copied()
                .unwrap_or(0);
        self.full.insert(id.clone(), full);
        if self.present.contains(id) || self.planned.contains(id) {
            return true;
        }
        let copy = || {
            let source = self.sources.iter().find(|source| source.has(id))?;
            Some(Way::Copy {
                from: source.name.clone(),
            })
        };
        let Some(way) = blob.or_else(copy) else {
            return false;
        };
        // A layer that is not unpacked anywhere: layers shrink to a third or so when compressed.
        let guess = match &way {
            Way::Blob { blob, .. } if record.is_none() => blob.size * 3,
            _ => size,
        };
        self.plan.needed += guess + self.copied_with(parent);
        self.planned.insert(id.clone());
        self.plan.layers.push(LayerMove {
            id: id.clone(),
            parent: parent.cloned(),
            size,
            way,
        });
        true
    }

    /// Bytes that are copied along with a snapshot on `parent`.
    fn copied_with(&self, parent: Option<&LayerId>) -> u64 {
        let full = parent.and_then(|parent| self.full.get(parent));
        full.copied().filter(|_| self.whole_copies).unwrap_or(0)
    }

    fn kept_blob<'b>(&self, blobs: impl Iterator<Item = &'b Descriptor>) -> Result<Option<Descriptor>> {
        for blob in blobs {
            let path = self.migration.root.join("blobs/sha256").join(blob.digest.hex());
            match fs::metadata(&path) {
                Ok(metadata) if metadata.len() == blob.size => return Ok(Some(blob.clone())),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io(format!("stat {}", path.display()), error)),
            }
        }
        Ok(None)
    }
}

/// A layer and everything below it, bottom first, each with its parent.
fn chain_below(driver: &dyn GraphDriver, top: Option<&LayerId>) -> Result<Vec<(LayerId, Option<LayerId>)>> {
    let mut chain = Vec::new();
    let mut next = top.cloned();
    while let Some(id) = next {
        let parent = driver.stat(SnapshotRef::Layer(&id))?.parent;
        next = parent.clone();
        chain.push((id, parent));
    }
    chain.reverse();
    Ok(chain)
}

fn refuse_deep_images(catalog: &Catalog, to: &str, max: usize) -> Result<()> {
    let too_deep: BTreeMap<usize, &Digest> = catalog
        .images
        .values()
        .filter(|image| image.chain.len() > max)
        .map(|image| (image.chain.len(), &image.id))
        .collect();
    match too_deep.last_key_value() {
        None => Ok(()),
        Some((depth, id)) => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "image {} has {depth} layers, {to} stacks at most {max}",
                id.short()
            ),
        )),
    }
}

fn free_bytes(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path).map_err(|e| Error::io(format!("statvfs {}", path.display()), e))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether files on this file system can share blocks (FICLONE), found by trying.
fn shares_blocks(directory: &Path) -> bool {
    let attempt = || -> std::io::Result<()> {
        let source = directory.join("source");
        fs::write(&source, [0; 4096])?;
        let target = File::create(directory.join("target"))?;
        Ok(rustix::fs::ioctl_ficlone(&target, File::open(source)?)?)
    };
    attempt().is_ok()
}
