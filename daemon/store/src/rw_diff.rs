//! What a container changed: as a list (`docker diff`), as a layer (`docker commit`); and all it has (`docker export`).
//!
//! A container's root file system holds a few empty files and directories that were made only to mount something on
//! them. dockerd hides them in a layer of their own below the container's; here they are left out of both answers, as
//! long as they are empty and the image does not have them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, PipeReader, Read, Write};
use std::path::PathBuf;
use std::thread::{self, ScopedJoinHandle};

use skiff_archive::{DiffOptions, DiffTree, LowerLayers, Owners, PathChange, Peeked, WhiteoutFormat};
use skiff_graphdrivers::{Access, ActiveId, DiffSource, LayerId, Mount, SnapshotRef};

use crate::added::AddedLayer;
use crate::error::{Error, Result};
use crate::rw::{RwLayers, active_id};

/// What is mounted on in every container, contents before their directories.
const MOUNTED_ON: [&str; 15] = [
    ".dockerenv",
    "dev/console",
    "dev/mqueue",
    "dev/pts",
    "dev/shm",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
    "proc",
    "sys/fs/cgroup",
    "sys/fs",
    "sys",
    "dev",
    "etc",
];

/// An empty tar stream: nothing changed.
const EMPTY_ARCHIVE: usize = 1024;

impl RwLayers {
    /// The names that a container added, changed and deleted, in order.
    ///
    /// # Errors
    /// `NotFound`; `Io`.
    pub fn changes(&self, container: &str) -> Result<Vec<PathChange>> {
        let difference = self.difference(&active_id(container)?)?;
        let tree = difference.source.tree();
        Ok(skiff_archive::changed_paths(
            &tree,
            &difference.lower,
            &difference.without,
        )?)
    }

    /// Makes a layer of what a container changed, on top of the layer below it. The container keeps its own, and may run:
    /// then the layer holds each file as it is when it is read. `None` when nothing changed.
    ///
    /// # Errors
    /// `NotFound`; `NoSpace`; `Io`.
    pub fn commit(&self, container: &str, parent: Option<&LayerId>) -> Result<Option<AddedLayer>> {
        let difference = self.difference(&active_id(container)?)?;
        let owners = match parent {
            Some(parent) => self.store().real_owners(parent)?,
            None => None,
        };
        let (reader, writer) = io::pipe().map_err(|e| Error::io("pipe", e))?;
        thread::scope(|scope| {
            let differ = scope.spawn(|| {
                let options = DiffOptions {
                    owners: owners.as_ref(),
                    without: Some(&difference.without),
                };
                skiff_archive::diff_with(&difference.source.tree(), &options, writer).map(drop)
            });
            let stream = DiffStream {
                pipe: reader,
                differ: Some(differ),
            };
            let failed = |error| Error::from(skiff_archive::Error::of_data(error));
            let stream = Peeked::new(stream, EMPTY_ARCHIVE + 1).map_err(failed)?;
            if stream.head().len() <= EMPTY_ARCHIVE && stream.head().iter().all(|&byte| byte == 0) {
                return Ok(None);
            }
            self.store().add_layer(parent, stream).map(Some)
        })
    }

    /// Begins to export a container's whole root file system, as it is without what is mounted in it. It is put together
    /// for this if it is not.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported`; `Io`, also when its files cannot be reached.
    pub fn export(&self, container: &str, parent: Option<&LayerId>) -> Result<Export> {
        let owners = match parent {
            Some(parent) => self.store().real_owners(parent)?,
            None => None,
        };
        let root = self.mount(container, false)?;
        let export = Export {
            layers: self.clone(),
            container: container.to_owned(),
            root,
            owners,
            mounted: true,
        };
        // A server that has died is noticed only by those who look.
        fs::read_dir(&export.root)
            .map_err(|e| Error::io(format!("open directory {}", export.root.display()), e))?;
        Ok(export)
    }

    fn difference(&self, active: &ActiveId) -> Result<Difference> {
        let driver = self.store().driver();
        let snapshot = SnapshotRef::Active(active);
        let source = driver.diff_source(snapshot)?;
        let lower = match &source {
            DiffSource::Native { whiteouts, .. } => LowerLayers {
                directories: lower_directories(&driver.mounts(snapshot, Access::ReadWrite)?),
                whiteouts: *whiteouts,
            },
            DiffSource::Compare { parent, .. } => LowerLayers {
                directories: parent.iter().cloned().collect(),
                whiteouts: WhiteoutFormat::Delete,
            },
        };
        let without = skiff_archive::placeholders(&source.tree(), &lower, &MOUNTED_ON)?;
        Ok(Difference {
            source,
            lower,
            without,
        })
    }
}

/// A container's root file system that is being exported. It is in use as long as this value lives.
#[derive(Debug)]
pub struct Export {
    layers: RwLayers,
    container: String,
    root: PathBuf,
    owners: Option<Owners>,
    mounted: bool,
}

impl Export {
    /// Writes it as a tar stream.
    ///
    /// # Errors
    /// What `out` gives; `Io`.
    pub fn write(mut self, out: impl Write) -> Result<()> {
        let tree = DiffTree::Compare {
            directory: &self.root,
            parent: None,
        };
        let options = DiffOptions {
            owners: self.owners.as_ref(),
            ..DiffOptions::default()
        };
        let written = skiff_archive::diff_with(&tree, &options, out);
        // Its use ends however the writing ended; the first error counts.
        let unmounted = self.unmount();
        written?;
        unmounted
    }

    fn unmount(&mut self) -> Result<()> {
        if std::mem::take(&mut self.mounted) {
            self.layers.unmount(&self.container)?;
        }
        Ok(())
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::warn!(container = self.container, %error, "cannot let an exported root file system go");
        }
    }
}

/// Where a container's changes are, what they are changes of, and what does not count.
struct Difference {
    source: DiffSource,
    lower: LowerLayers,
    without: BTreeSet<Vec<u8>>,
}

/// The directories below the writable one.
fn lower_directories(mounts: &[Mount]) -> Vec<PathBuf> {
    match mounts.last() {
        Some(Mount::Overlay(overlay)) => overlay.lower.clone(),
        Some(Mount::Fuse(overlay)) => overlay.lower.clone(),
        Some(Mount::Bind { .. }) | None => Vec::new(),
    }
}

/// The differ's output. Its end counts only when the differ says that it was the end.
struct DiffStream<'scope> {
    pipe: PipeReader,
    differ: Option<ScopedJoinHandle<'scope, skiff_archive::Result<()>>>,
}

impl Read for DiffStream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.pipe.read(into)?;
        if count == 0
            && !into.is_empty()
            && let Some(differ) = self.differ.take()
        {
            match differ.join() {
                Ok(outcome) => outcome.map_err(io::Error::other)?,
                Err(_) => return Err(io::Error::other("the differ died")),
            }
        }
        Ok(count)
    }
}
