//! Making the copies: layers, then writable layers, then the containers' records.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use jiff::Timestamp;
use skiff_graphdrivers::{
    ActiveId, DiffSource, ErrorKind as DriverErrorKind, GraphDriver, LayerId, PrepareOptions, SnapshotKey,
    SnapshotRef,
};

use super::journal::{Journal, Moved, Stage};
use super::plan::{LayerMove, MigrationPlan, Source, Trial, Way};
use super::{Migration, Progress, reserve};
use crate::digest::Digest;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::gc::remove_snapshots;
use crate::layers::{LayerRecord, owners_path, record_name};
use crate::rw::{active_id, container_of};
use crate::{FORMAT_VERSION, NewLayer, Store};

/// Active snapshots that are to become layers begin with this.
const PREFIX: &str = "move-";

/// How a conversion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is with the new driver; the old state waits for a word.
    Converted,
    /// It was asked to stop; the same call goes on.
    Interrupted,
}

impl Migration<'_> {
    /// Does what `plan` says, or what is left of it. Nothing of the old state is changed, except that the containers'
    /// records name the new driver in the end.
    ///
    /// # Errors
    /// `Conflict` when a migration to another driver is under way; `NoSpace`; `Corrupt` for a damaged blob; `Io`.
    /// The same call goes on where it ended.
    pub fn convert(&self, plan: &MigrationPlan, progress: &dyn Progress) -> Result<Outcome> {
        self.discard_lost_copies()?;
        let mut journal = self.begin(plan)?;
        if journal.stage == Stage::Converting {
            let sources = self.sources(&plan.to)?;
            let store = self.open_store(self.open_driver(&plan.to)?)?;
            let work = Work {
                store: &store,
                sources: &sources,
                progress,
            };
            // Opened, the store knows better than its records what is there.
            let present = store.holdings().layers.keys().cloned().collect();
            let missing = self.plan_against(&plan.to, &Trial::default(), &sources, present)?;
            for layer in &missing.layers {
                if progress.stop() {
                    return Ok(Outcome::Interrupted);
                }
                progress.begin(&format!("layer {:.12}", layer.id.hex()), layer.work());
                if let Err(error) = work.layer(layer) {
                    return interrupted_or(progress, error);
                }
                self.steps.after("layer moved");
            }
            for position in 0..journal.containers.len() {
                if progress.stop() {
                    return Ok(Outcome::Interrupted);
                }
                if journal.containers[position].done {
                    continue;
                }
                let moved = &journal.containers[position];
                let planned = plan.containers.iter().find(|c| c.container.id == moved.id);
                let name = planned.map_or(moved.id.as_str(), |c| c.container.name.as_str());
                progress.begin(&format!("container {name}"), planned.map_or(0, |c| c.size));
                if let Err(error) = work.container(moved) {
                    return interrupted_or(progress, error);
                }
                self.steps.after("writable layer moved");
                journal.containers[position].done = true;
                journal.write(&self.root, &self.steps)?;
            }
            progress.begin("writing everything to the disk", 0);
            store.settle()?;
            store.driver().sync()?;
            journal.stage = Stage::Switching;
            journal.write(&self.root, &self.steps)?;
        }
        if journal.stage == Stage::Switching {
            for moved in &journal.containers {
                self.containers.set_driver(&moved.id, &journal.to)?;
                self.steps.after("container switched");
            }
            journal.stage = Stage::Converted;
            journal.write(&self.root, &self.steps)?;
        }
        Ok(Outcome::Converted)
    }

    /// What was copied before a power failure may not have reached the disk. Copies of writable layers go here; then nothing
    /// stands on copied layers, and opening the store removes those whose record is of another boot or was not written.
    fn discard_lost_copies(&self) -> Result<()> {
        let Some(journal) = self.journal()? else {
            return Ok(());
        };
        if journal.stage != Stage::Converting || journal.boot == self.options.boot {
            return Ok(());
        }
        let driver = self.open_driver(&journal.to)?;
        let copies = driver.list()?.into_iter().map(|info| info.key);
        let copies = copies.filter(|key| match key {
            SnapshotKey::Active(id) => {
                id.as_str().starts_with(PREFIX)
                    || container_of(id)
                        .is_some_and(|id| journal.containers.iter().any(|moved| moved.id == id))
            }
            SnapshotKey::Layer(_) => false,
        });
        remove_snapshots(driver.as_ref(), copies.collect()).map(drop)
    }

    /// The journal: the one that is there, or a new one. From here on the daemon does not start.
    fn begin(&self, plan: &MigrationPlan) -> Result<Journal> {
        let known = self.journal()?;
        let is_new = known.is_none();
        let mut journal = match known {
            Some(journal) if journal.to == plan.to && journal.stage != Stage::RollingBack => journal,
            Some(journal) => {
                let text = match journal.stage {
                    Stage::RollingBack => "is being taken back: finish that with --rollback".to_owned(),
                    Stage::Converted | Stage::Confirming => "waits for --confirm or --rollback".to_owned(),
                    Stage::Converting | Stage::Switching => {
                        format!(
                            "was interrupted: finish it with --to {}, or take it back with --rollback",
                            journal.to
                        )
                    }
                };
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("a migration to {} {text}", journal.to),
                ));
            }
            None => {
                let mut journal = Journal::new(&plan.to, plan.sources.clone(), &self.options.boot);
                journal.had_layers = self.records_of(&plan.to)?.keys().map(Digest::from).collect();
                journal.was_empty = is_empty_directory(&self.data_root.join(&plan.to))?;
                journal
            }
        };
        if journal.stage != Stage::Converting {
            return Ok(journal);
        }
        // What was copied before a power failure may not have reached the disk.
        let trusted = journal.boot == self.options.boot;
        let done = |id: &str| {
            trusted
                && journal
                    .containers
                    .iter()
                    .any(|moved| moved.id == id && moved.done)
        };
        journal.containers = plan
            .containers
            .iter()
            .map(|c| Moved {
                id: c.container.id.clone(),
                from: c.container.driver.clone(),
                done: done(&c.container.id),
            })
            .collect();
        journal.boot.clone_from(&self.options.boot);
        journal.write(&self.root, &self.steps)?;
        match reserve::take(&self.root) {
            Ok(()) => Ok(journal),
            // Nothing is copied yet, and with so little room nothing will be.
            Err(error) if is_new => Journal::remove(&self.root).and(Err(error)),
            Err(error) => {
                tracing::warn!(%error, "no room is set aside for the end of the migration");
                Ok(journal)
            }
        }
    }
}

/// What an error means when somebody wanted us to stop: reading was broken off on purpose.
fn interrupted_or(progress: &dyn Progress, error: Error) -> Result<Outcome> {
    if progress.stop() {
        Ok(Outcome::Interrupted)
    } else {
        Err(error)
    }
}

fn is_empty_directory(path: &Path) -> Result<bool> {
    match std::fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Error::io(format!("list {}", path.display()), error)),
    }
}

fn directory_of(source: &DiffSource) -> &Path {
    match source {
        DiffSource::Native { directory, .. } | DiffSource::Compare { directory, .. } => directory,
    }
}

struct Work<'w> {
    store: &'w Store,
    sources: &'w [Source],
    progress: &'w dyn Progress,
}

impl Work<'_> {
    fn to(&self) -> &dyn GraphDriver {
        self.store.driver().as_ref()
    }

    fn source(&self, name: &str) -> Result<(&dyn GraphDriver, &HashMap<LayerId, LayerRecord>)> {
        let source = self.sources.iter().find(|source| source.name == name);
        let source =
            source.ok_or_else(|| Error::not_found(format!("storage driver {name} holds nothing")))?;
        match &source.driver {
            Ok(driver) => Ok((driver.as_ref(), &source.records)),
            Err(error) => Err(Error::new(error.kind(), error.to_string())),
        }
    }

    fn layer(&self, layer: &LayerMove) -> Result<()> {
        if self.store.layer(&layer.id).is_some() {
            return Ok(());
        }
        match &layer.way {
            Way::Blob { blob, diff_id } => {
                let new = NewLayer {
                    parent: layer.parent.as_ref(),
                    diff_id: *diff_id,
                    blob,
                };
                let open = || {
                    Ok(Counted {
                        inner: self.store.open_blob(&blob.digest)?,
                        progress: self.progress,
                    })
                };
                self.store.unpack(&new, open).map(drop)
            }
            Way::Copy { from } => self.copy_layer(layer, from),
        }
    }

    /// Makes a layer from another driver's files. Its tar stream cannot be had again byte by byte, so the digests of its
    /// record are taken over.
    fn copy_layer(&self, layer: &LayerMove, from: &str) -> Result<()> {
        let (source, records) = self.source(from)?;
        if self.to().stat(SnapshotRef::Layer(&layer.id)).is_ok() {
            // Committed, and killed before its record was written; or it never had one.
            return self.record(layer, from, records.get(&layer.id), layer.size);
        }
        let active = ActiveId::new(format!("{PREFIX}{}", layer.id.hex()))?;
        let size = self.transfer(
            source,
            SnapshotRef::Layer(&layer.id),
            &active,
            layer.parent.as_ref(),
        )?;
        self.to().commit(&active, &layer.id)?;
        self.record(layer, from, records.get(&layer.id), size)
    }

    fn record(&self, layer: &LayerMove, from: &str, old: Option<&LayerRecord>, size: u64) -> Result<()> {
        // A layer that only a container needs, of an image that is gone: nobody will ask for it by its record.
        let Some(old) = old else { return Ok(()) };
        let record = LayerRecord {
            version: FORMAT_VERSION,
            size,
            created: Timestamp::now(),
            unsettled: Some(self.store.inner.boot.clone()),
            ..old.clone()
        };
        let directory = self.store.layer_records();
        // Owners that do not exist here and were folded when the layer was unpacked.
        let owners = owners_path(&self.store.inner.root.join(from).join("layers"), &layer.id);
        match std::fs::copy(&owners, owners_path(&directory, &layer.id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(format!("copy {}", owners.display()), error));
            }
            _ => {}
        }
        durable::write_json_lightly(
            &directory,
            &record_name(&layer.id),
            &record,
            &self.store.inner.steps,
        )?;
        self.store
            .holdings()
            .layers
            .insert(layer.id.clone(), Arc::new(record));
        Ok(())
    }

    fn container(&self, moved: &Moved) -> Result<()> {
        let (source, _) = self.source(&moved.from)?;
        let active = active_id(&moved.id)?;
        let parent = source.stat(SnapshotRef::Active(&active))?.parent;
        self.transfer(source, SnapshotRef::Active(&active), &active, parent.as_ref())
            .map(drop)
    }

    /// Copies what `from` changed into the new snapshot `active`; gives the bytes of its files.
    fn transfer(
        &self,
        source: &dyn GraphDriver,
        from: SnapshotRef<'_>,
        active: &ActiveId,
        parent: Option<&LayerId>,
    ) -> Result<u64> {
        match self.to().remove(SnapshotRef::Active(active)) {
            // Half a copy, from before a kill.
            Ok(()) => drop(self.to().purge()?),
            Err(error) if error.kind() == DriverErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        self.to().prepare(active, parent, &PrepareOptions::default())?;
        self.store.inner.steps.after("copy prepared");
        let old = source.diff_source(from)?;
        let target = self.to().apply_target(active)?;
        let copied = self.pipe(&old.tree(), &target);
        self.store.inner.steps.after("copy filled");
        let size = copied.and_then(|size| {
            skiff_archive::copy_root_metadata(directory_of(&old), &target.directory)?;
            Ok(size)
        });
        if size.is_err() {
            // The space may be what is missing.
            let _ = self.to().remove(SnapshotRef::Active(active));
            let _ = self.to().purge();
        }
        size
    }

    fn pipe(
        &self,
        tree: &skiff_archive::DiffTree<'_>,
        target: &skiff_graphdrivers::ApplyTarget,
    ) -> Result<u64> {
        let (reader, writer) = io::pipe().map_err(|e| Error::io("pipe", e))?;
        let failure: Mutex<Option<skiff_archive::Error>> = Mutex::new(None);
        let applied = thread::scope(|scope| {
            scope.spawn(|| {
                if let Err(error) = skiff_archive::diff(tree, io::BufWriter::with_capacity(1 << 18, writer)) {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            });
            let counted = Counted {
                inner: reader,
                progress: self.progress,
            };
            skiff_archive::apply(counted, target, &self.store.inner.apply)
        });
        let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (applied, failure) {
            (Ok(applied), None) => Ok(applied.size),
            // When the reader gave up, the writer's error is only the broken pipe.
            (Err(error), _) if error.kind() != skiff_archive::ErrorKind::Corrupt => Err(error.into()),
            (_, Some(error)) => Err(error.into()),
            (Err(error), None) => Err(error.into()),
        }
    }
}

/// Tells how much was read, and breaks off when somebody wants to stop.
struct Counted<'p, R> {
    inner: R,
    progress: &'p dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.progress.stop() {
            return Err(io::Error::other("stopped"));
        }
        let count = self.inner.read(into)?;
        self.progress.advance(count as u64);
        Ok(count)
    }
}
