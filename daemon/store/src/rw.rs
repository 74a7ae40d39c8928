//! Containers' writable layers: active snapshots that are never committed, named by the container.

use std::path::PathBuf;

use skiff_graphdrivers::{Access, ActiveId, LayerId, Mount, SnapshotKey, SnapshotRef, Usage};

use crate::Store;
use crate::error::{Error, ErrorKind, Result};

/// Active snapshots of containers begin with this.
const PREFIX: &str = "rw-";

/// A container's writable layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RwLayer {
    /// The container's id.
    pub container: String,
    /// The image's top layer below it.
    pub parent: Option<LayerId>,
}

/// All writable layers; cheap to clone.
#[derive(Debug, Clone)]
pub struct RwLayers {
    store: Store,
    mount_root: PathBuf,
}

impl RwLayers {
    /// The writable layers of a store; what must be mounted is mounted below `mount_root`.
    pub fn new(store: Store, mount_root: PathBuf) -> Self {
        Self { store, mount_root }
    }

    /// Makes a container's writable layer on top of an image's.
    ///
    /// # Errors
    /// `NotFound` for the layer; `Conflict` when the container has one; `NoSpace`; `Io`.
    pub fn create(&self, container: &str, top: Option<&LayerId>) -> Result<()> {
        self.store.prepare(&active_id(container)?, top)
    }

    /// Removes a container's writable layer; nothing happens when there is none. Its space is freed in the background
    /// by the next [`Store::gc`].
    ///
    /// # Errors
    /// `Conflict` while it is mounted; `Io`.
    pub fn remove(&self, container: &str) -> Result<()> {
        let active = active_id(container)?;
        match self
            .store
            .inner
            .driver
            .remove(SnapshotRef::Active(&active))
            .map_err(Error::from)
        {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => {
                self.store.holdings().actives.remove(&active);
                Ok(())
            }
        }
    }

    /// Disk use of a container's writable layer alone.
    ///
    /// # Errors
    /// `NotFound`; `Io`.
    pub fn usage(&self, container: &str) -> Result<Usage> {
        Ok(self
            .store
            .inner
            .driver
            .usage(SnapshotRef::Active(&active_id(container)?))?)
    }

    /// Puts the container's root file system together and returns its path. Mounting what is mounted is no error.
    ///
    /// # Errors
    /// `NotFound` for the container; `Unsupported`; `Io`.
    pub fn mount(&self, container: &str) -> Result<PathBuf> {
        let active = active_id(container)?;
        let mounts = self
            .store
            .inner
            .driver
            .mounts(SnapshotRef::Active(&active), Access::ReadWrite)?;
        match mounts.as_slice() {
            [
                Mount::Bind {
                    source,
                    read_only: false,
                },
            ] => Ok(source.clone()),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                format!("cannot mount {mounts:?} below {}", self.mount_root.display()),
            )),
        }
    }

    /// Takes it apart again; nothing happens when it is not mounted.
    ///
    /// # Errors
    /// `Conflict` while processes use it; `Io`.
    pub fn unmount(&self, container: &str) -> Result<()> {
        active_id(container).map(drop)
    }

    /// All writable layers that this driver has.
    ///
    /// # Errors
    /// `Io`.
    pub fn list(&self) -> Result<Vec<RwLayer>> {
        let of_container = |key: SnapshotKey| match key {
            SnapshotKey::Active(id) => id.as_str().strip_prefix(PREFIX).map(str::to_owned),
            SnapshotKey::Layer(_) => None,
        };
        let snapshots = self.store.inner.driver.list()?.into_iter();
        Ok(snapshots
            .filter_map(|info| {
                Some(RwLayer {
                    container: of_container(info.key)?,
                    parent: info.parent,
                })
            })
            .collect())
    }
}

/// The driver's key for a container's writable layer.
pub(crate) fn active_id(container: &str) -> Result<ActiveId> {
    Ok(ActiveId::new(format!("{PREFIX}{container}"))?)
}
