//! Moving images and containers to another storage driver: `skiffd storage migrate`.
//!
//! Called by the command, never by a daemon: nothing else may use the data root meanwhile.
//!
//! ```text
//!   image layers          kept blob ──────────────unpack─────────────▶ layer of the new driver
//!                         no blob: layer of an old driver ─diff─apply─▶ layer of the new driver
//!   writable layers       rw-ID of the old driver ────────diff─apply─▶ rw-ID of the new driver
//!   containers' records   driver: old ──────────────────────────────▶ driver: new           (after all copies)
//! ```
//!
//! The old state is not touched before somebody confirms that the new one is good ([`Migration::confirm`]); until then
//! [`Migration::roll_back`] returns to it. [`Journal`] draws the stages. Each step can be repeated, so a kill at any
//! instant is followed by the same command, or by a roll-back.

mod convert;
mod finish;
mod journal;
mod plan;
mod reserve;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skiff_graphdrivers::{GraphDriver, LayerId};

use crate::durable::Steps;
use crate::error::{Error, Result};
use crate::layers::{self, LayerRecord};
use crate::{Store, StoreOptions};

pub use convert::Outcome;
pub use finish::RolledBack;
pub use journal::{Journal, Stage};
pub use plan::{ContainerMove, LayerMove, MigrationPlan, Way};

/// A container, as far as the store is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRecord {
    /// Its id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The driver that holds its writable layer.
    pub driver: String,
}

/// The containers' records, which are not the store's.
pub trait ContainerRecords: Sync {
    /// All containers.
    ///
    /// # Errors
    /// When the records cannot be read.
    fn list(&self) -> Result<Vec<ContainerRecord>>;

    /// Writes down, durably, that a container's writable layer is now `driver`'s.
    ///
    /// # Errors
    /// When the record cannot be written.
    fn set_driver(&self, id: &str, driver: &str) -> Result<()>;
}

/// Who watches.
pub trait Progress: Sync {
    /// Work on `what` begins; it is about so many bytes.
    fn begin(&self, what: &str, bytes: u64);

    /// So many bytes more are done.
    fn advance(&self, bytes: u64);

    /// Whether to stop at the next occasion.
    fn stop(&self) -> bool {
        false
    }
}

/// Opens a driver by name in a data root; the error is for people.
pub type OpenDriver<'a> = &'a (dyn Fn(&Path, &str) -> Result<Arc<dyn GraphDriver>, String> + Sync);

/// A data root whose storage driver is to be changed. The caller holds the data root's lock, and no container runs.
pub struct Migration<'a> {
    data_root: PathBuf,
    root: PathBuf,
    open: OpenDriver<'a>,
    containers: &'a dyn ContainerRecords,
    options: StoreOptions,
    steps: Steps,
}

impl<'a> Migration<'a> {
    /// Nothing is opened or written yet.
    pub fn new(
        data_root: &Path,
        open: OpenDriver<'a>,
        containers: &'a dyn ContainerRecords,
        options: StoreOptions,
    ) -> Self {
        Self {
            data_root: data_root.to_owned(),
            root: data_root.join("image"),
            open,
            containers,
            options,
            steps: Steps::default(),
        }
    }

    /// The migration that is under way.
    ///
    /// # Errors
    /// As [`Journal::read`].
    pub fn journal(&self) -> Result<Option<Journal>> {
        Journal::read(&self.root)
    }

    fn open_driver(&self, name: &str) -> Result<Arc<dyn GraphDriver>> {
        (self.open)(&self.data_root, name).map_err(|text| Error::new(crate::ErrorKind::Unsupported, text))
    }

    fn open_store(&self, driver: Arc<dyn GraphDriver>) -> Result<Store> {
        Store::open_stepping(&self.root, driver, self.options.clone(), self.steps.clone())
    }

    /// The drivers that hold something here, `to` excluded: those with layer records, and those containers name.
    fn drivers_in_use(&self, to: &str, containers: &[ContainerRecord]) -> Result<BTreeSet<String>> {
        let mut names = drivers_with_records(&self.root)?;
        names.extend(containers.iter().map(|container| container.driver.clone()));
        names.remove(to);
        names.retain(|name| self.data_root.join(name).is_dir());
        Ok(names)
    }

    fn records_of(&self, driver: &str) -> Result<HashMap<LayerId, LayerRecord>> {
        layers::read_records(&self.root.join(driver).join("layers"))
    }
}

impl fmt::Debug for Migration<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Migration")
            .field("data_root", &self.data_root)
            .finish_non_exhaustive()
    }
}

/// Names of the drivers that have layer records below `root` (`<data-root>/image`).
///
/// # Errors
/// `Io`.
pub fn drivers_with_records(root: &Path) -> Result<BTreeSet<String>> {
    let failed = |e| Error::io(format!("list {}", root.display()), e);
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.path().join("layers").is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.insert(name);
        }
    }
    Ok(names)
}
