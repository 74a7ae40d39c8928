//! Containers' writable layers: active snapshots that are never committed, named by the container.

use std::io::ErrorKind as IoKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skiff_graphdrivers::{
    Access, ActiveId, ErrorKind as DriverErrorKind, LayerId, Mounter, SnapshotKey, SnapshotRef, Usage,
};

use crate::Store;
use crate::durable;
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
    mounter: Arc<Mounter>,
    mount_root: PathBuf,
}

impl RwLayers {
    /// The writable layers of a store. What must be mounted is mounted where the driver says, else below `mount_root`.
    pub fn new(store: Store, mount_root: PathBuf) -> Self {
        Self::with_mounter(store, mount_root, Mounter::new())
    }

    /// The same with a mounter that the caller has set up.
    pub fn with_mounter(store: Store, mount_root: PathBuf, mounter: Mounter) -> Self {
        Self {
            store,
            mounter: Arc::new(mounter),
            mount_root,
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Makes a container's writable layer on top of an image's. A layer that is not unpacked for this driver (it was
    /// another one when the image was pulled) is unpacked first.
    ///
    /// # Errors
    /// `NotFound` for the layer; `Conflict` when the container has one; `Unsupported` for a chain too long; `NoSpace`;
    /// `Io`.
    pub fn create(&self, container: &str, top: Option<&LayerId>) -> Result<()> {
        let active = active_id(container)?;
        let lease = self.store.lease();
        if let Some(top) = top
            && lease.layer(top).is_none()
        {
            self.unpack_again(top)?;
        }
        self.store.prepare(&active, top)
    }

    /// Unpacks the layers below a writable one again if they have no records: a power failure before they were settled may
    /// have damaged them. Those whose image is gone are used as they are: the container's own files are worth more than a
    /// refusal.
    fn restore_layers(&self, active: &ActiveId) -> Result<crate::Lease> {
        let lease = self.store.lease();
        let driver = &self.store.inner.driver;
        if let Some(top) = driver.stat(SnapshotRef::Active(active))?.parent
            && lease.layer(&top).is_none()
        {
            match self.unpack_again(&top) {
                Err(error) if error.kind() == ErrorKind::NotFound => tracing::warn!(
                    snapshot = %active, layer = %top, %error,
                    "layers without a record cannot be unpacked again and are used as they are"
                ),
                other => other?,
            }
        }
        Ok(lease)
    }

    fn unpack_again(&self, top: &LayerId) -> Result<()> {
        let catalog = self.store.catalog();
        let image = catalog.images.values().find(|image| image.chain.contains(top));
        let image = image.ok_or_else(|| Error::not_found(format!("layer {top} does not exist")))?;
        self.store.ensure_layers(image).map(drop)
    }

    /// Removes a container's writable layer; nothing happens when there is none. Its space is freed by the next
    /// [`Store::gc`].
    ///
    /// # Errors
    /// `Conflict` while it is mounted; `Io`.
    pub fn remove(&self, container: &str) -> Result<()> {
        let active = active_id(container)?;
        if let Some(target) = self.target(&active)? {
            if self.mounter.references(&target) > 0 {
                let text = format!("the root file system of container {container} is mounted");
                return Err(Error::new(ErrorKind::Conflict, text));
            }
            // A daemon that was killed may have left the mount.
            self.mounter.unmount(&target)?;
            if target.starts_with(&self.mount_root) {
                remove_empty_directory(&target)?;
            }
        }
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

    /// Puts the container's root file system together and returns its path. Each call is one use; the last
    /// [`RwLayers::unmount`] takes it apart. A mount left by an earlier daemon is taken over. What is `disposable` will
    /// be removed after this use, and is not synced to disk when it is taken apart.
    ///
    /// # Errors
    /// `NotFound` for the container; `Unsupported`; `Io`.
    pub fn mount(&self, container: &str, disposable: bool) -> Result<PathBuf> {
        let access = if disposable {
            Access::Volatile
        } else {
            Access::ReadWrite
        };
        let active = active_id(container)?;
        let _lease = self.restore_layers(&active)?;
        let mounts = self
            .store
            .inner
            .driver
            .mounts(SnapshotRef::Active(&active), access)?;
        if let Some(path) = Mounter::direct(&mounts) {
            return Ok(path.to_owned());
        }
        let target = self.mount_point(&active)?;
        durable::make_directory(&target)?;
        self.mounter.mount(&mounts, &target)?;
        Ok(target)
    }

    /// Counts the use of a root file system that an earlier daemon mounted, by a container that still runs.
    ///
    /// # Errors
    /// `Io`.
    pub fn take_over(&self, container: &str) -> Result<()> {
        match self.target(&active_id(container)?)? {
            Some(target) => Ok(self.mounter.take_over(&target)?),
            None => Ok(()),
        }
    }

    /// Ends one use of the container's root file system; nothing happens when it is not mounted.
    ///
    /// # Errors
    /// `Io`.
    pub fn unmount(&self, container: &str) -> Result<()> {
        match self.target(&active_id(container)?)? {
            Some(target) => Ok(self.mounter.unmount(&target)?),
            None => Ok(()),
        }
    }

    /// Whether somebody of this process uses the container's root file system.
    ///
    /// # Errors
    /// `Io`.
    pub fn is_mounted(&self, container: &str) -> Result<bool> {
        let target = self.target(&active_id(container)?)?;
        Ok(target.is_some_and(|target| self.mounter.references(&target) > 0))
    }

    /// What has befallen the mounted root file system so that processes in it get errors, as a sentence.
    ///
    /// # Errors
    /// `Io`.
    pub fn trouble(&self, container: &str) -> Result<Option<String>> {
        let target = self.target(&active_id(container)?)?;
        Ok(target.and_then(|target| self.mounter.trouble(&target)))
    }

    /// Where the snapshot is or would be mounted; `None` when there is no snapshot or it needs no mount.
    fn target(&self, active: &ActiveId) -> Result<Option<PathBuf>> {
        let mounts = self
            .store
            .inner
            .driver
            .mounts(SnapshotRef::Active(active), Access::ReadWrite);
        match mounts {
            Ok(mounts) if Mounter::direct(&mounts).is_some() => Ok(None),
            Ok(_) => self.mount_point(active).map(Some),
            Err(error) if error.kind() == DriverErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn mount_point(&self, active: &ActiveId) -> Result<PathBuf> {
        let wanted = self.store.inner.driver.mount_point(active)?;
        Ok(wanted.unwrap_or_else(|| self.mount_root.join(active.as_str())))
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

    /// Rows of `GraphDriver.Data` for a container; none for a driver that has nothing to say.
    ///
    /// # Errors
    /// `NotFound`; `Io`.
    pub fn graph_data(&self, container: &str) -> Result<Vec<(String, String)>> {
        let active = active_id(container)?;
        Ok(self.store.inner.driver.inspect(SnapshotRef::Active(&active))?)
    }

    /// All writable layers that this driver has.
    ///
    /// # Errors
    /// `Io`.
    pub fn list(&self) -> Result<Vec<RwLayer>> {
        let of_container = |key: SnapshotKey| match key {
            SnapshotKey::Active(id) => container_of(&id).map(str::to_owned),
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

/// The container whose writable layer a snapshot is.
pub(crate) fn container_of(active: &ActiveId) -> Option<&str> {
    active.as_str().strip_prefix(PREFIX)
}

/// The driver's key for a container's writable layer.
pub(crate) fn active_id(container: &str) -> Result<ActiveId> {
    Ok(ActiveId::new(format!("{PREFIX}{container}"))?)
}

fn remove_empty_directory(path: &Path) -> Result<()> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != IoKind::NotFound => {
            Err(Error::io(format!("rmdir {}", path.display()), error))
        }
        _ => Ok(()),
    }
}
