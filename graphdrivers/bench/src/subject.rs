//! One driver under test: the image's layers, and at most one container that workloads share.
//!
//! A workload says what it needs of the container ([`Subject::container`]); one that is too used is thrown away and a
//! fresh one made, outside the clock.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use skiff_archive::{ApplyOptions, apply};
use skiff_graphdrivers::{
    Access, ActiveId, GraphDriver, LayerId, Mount, Mounter, PrepareOptions, SnapshotRef,
};

use crate::error::{Error, Result};
use crate::size::Size;
use crate::{cold, disk, seed};

/// A driver, its layers and its container.
#[derive(Debug)]
pub struct Subject {
    pub(crate) driver: Arc<dyn GraphDriver>,
    pub(crate) size: Size,
    pub(crate) stop: Arc<AtomicBool>,
    mounter: Arc<Mounter>,
    /// The scratch directory; the driver's root and the mount points are below.
    place: PathBuf,
    layers: Vec<LayerId>,
    /// Free space that the layers took, where blocks are shared.
    pub(crate) layers_took: Option<u64>,
    serial: u64,
    container: Option<Container>,
}

#[derive(Debug)]
struct Container {
    key: ActiveId,
    target: PathBuf,
    mounts: Vec<Mount>,
    touched: Touched,
}

/// What was done to a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    /// Files were created.
    pub(crate) created: bool,
    /// Files of the image were deleted.
    pub(crate) deleted: bool,
    /// The big file was copied up.
    pub(crate) copied_up: bool,
    /// One small file was changed.
    pub(crate) changed: bool,
}

impl Subject {
    /// A subject without layers; `driver` has its root in `place`.
    pub fn new(
        driver: Arc<dyn GraphDriver>,
        mounter: Arc<Mounter>,
        place: &Path,
        size: Size,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self {
            driver,
            size,
            stop,
            mounter,
            place: place.to_owned(),
            layers: Vec::new(),
            layers_took: None,
            serial: 0,
            container: None,
        }
    }

    /// Name of the driver.
    pub fn name(&self) -> &'static str {
        self.driver.name()
    }

    /// Where everything lies.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// The driver's directory.
    pub(crate) fn root(&self) -> PathBuf {
        self.place.join(self.name())
    }

    /// Unpacks the image's layers.
    ///
    /// # Errors
    /// The driver's, the disk's; `Stopped`.
    pub fn build(&mut self) -> Result<()> {
        disk::sync(&self.place)?;
        let before = disk::free(&self.place)?.bytes;
        for index in 0..self.size.layers {
            let parent = self.layers.last().cloned();
            let stop = Arc::clone(&self.stop);
            let layer = self.unpack(parent.as_ref(), seed::layer(&self.size, index, &stop))?;
            self.layers.push(layer);
        }
        disk::sync(&self.place)?;
        self.layers_took = Some(before.saturating_sub(disk::free(&self.place)?.bytes));
        Ok(())
    }

    /// Makes a layer of a tar stream, as a pull does.
    pub(crate) fn unpack(&mut self, parent: Option<&LayerId>, stream: impl Read + Send) -> Result<LayerId> {
        let key = self.key("unpack")?;
        // Like a digest it differs from others in its first digits, of which drivers make short names.
        let layer = LayerId::new(format!(
            "sha256:{:016x}{:048x}",
            seed::scramble(self.serial),
            self.serial
        ))?;
        self.driver.prepare(&key, parent, &PrepareOptions::default())?;
        let target = self.driver.apply_target(&key)?;
        let applied = apply(stream, &target, &ApplyOptions::default());
        self.checked(applied.map_err(Error::from))?;
        self.driver.commit(&key, &layer)?;
        Ok(layer)
    }

    /// The image's last layer.
    pub(crate) fn top(&self) -> Result<LayerId> {
        self.layers
            .last()
            .cloned()
            .ok_or_else(|| Error::io("use the image", std::io::ErrorKind::NotFound))
    }

    pub(crate) fn key(&mut self, what: &str) -> Result<ActiveId> {
        self.serial += 1;
        Ok(ActiveId::new(format!("{what}-{}", self.serial))?)
    }

    /// An error that came while somebody asked us to stop is that.
    pub(crate) fn checked<T>(&self, outcome: Result<T>) -> Result<T> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::stopped());
        }
        outcome
    }

    /// Where the shared container is mounted. A new one is made unless the present one `fits`.
    pub(crate) fn container(&mut self, fits: impl FnOnce(&Touched) -> bool) -> Result<PathBuf> {
        if let Some(container) = &self.container
            && fits(&container.touched)
        {
            return Ok(container.target.clone());
        }
        self.drop_container()?;
        let key = self.key("container")?;
        let top = self.top()?;
        self.driver
            .prepare(&key, Some(&top), &PrepareOptions::default())?;
        let (target, mounts) = self.mount(&key, Access::ReadWrite)?;
        let path = target.clone();
        self.container = Some(Container {
            key,
            target,
            mounts,
            touched: Touched::default(),
        });
        disk::sync(&self.place)?;
        Ok(path)
    }

    /// Notes what a workload does to the container.
    pub(crate) fn touch(&mut self, change: impl FnOnce(&mut Touched)) {
        if let Some(container) = &mut self.container {
            change(&mut container.touched);
        }
    }

    /// The container's snapshot.
    pub(crate) fn container_key(&self) -> Result<ActiveId> {
        self.container
            .as_ref()
            .map(|container| container.key.clone())
            .ok_or_else(|| Error::io("use the container", std::io::ErrorKind::NotFound))
    }

    pub(crate) fn touched(&self) -> Touched {
        self.container.as_ref().map(|c| c.touched).unwrap_or_default()
    }

    /// Unmounts the container, drops what it shows from the page cache, and mounts it again (see [`cold::COLD`]).
    pub(crate) fn cool(&mut self) -> Result<()> {
        let Some(container) = &self.container else {
            return Ok(());
        };
        self.mounter.unmount(&container.target)?;
        disk::sync(&self.place)?;
        for directory in cold::sources(&container.mounts) {
            cold::drop_contents(&directory)?;
        }
        self.mounter.mount(&container.mounts, &container.target)?;
        Ok(())
    }

    /// Mounts a snapshot; gives the mount point and what was mounted there.
    pub(crate) fn mount(&self, key: &ActiveId, access: Access) -> Result<(PathBuf, Vec<Mount>)> {
        let mounts = self.driver.mounts(SnapshotRef::Active(key), access)?;
        let target = match self.driver.mount_point(key)? {
            Some(target) => target,
            None => self.place.join("mnt").join(format!("{}-{key}", self.name())),
        };
        fs::create_dir_all(&target)
            .map_err(|error| Error::io(format!("mkdir {}", target.display()), error))?;
        self.mounter.mount(&mounts, &target)?;
        Ok((target, mounts))
    }

    /// Unmounts and removes a snapshot, as `docker rm` does; what it took is freed by [`Subject::tidy`].
    pub(crate) fn unmount_and_remove(&self, key: &ActiveId, target: &Path) -> Result<()> {
        self.mounter.unmount(target)?;
        self.driver.remove(SnapshotRef::Active(key))?;
        Ok(())
    }

    /// Unmounts.
    pub(crate) fn unmount(&self, target: &Path) -> Result<()> {
        Ok(self.mounter.unmount(target)?)
    }

    pub(crate) fn drop_container(&mut self) -> Result<()> {
        match self.container.take() {
            Some(container) => self.unmount_and_remove(&container.key, &container.target),
            None => Ok(()),
        }
    }

    /// Frees what was removed, and writes everything to the disk.
    pub(crate) fn tidy(&self) -> Result<()> {
        self.driver.purge()?;
        disk::sync(&self.place)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Some(container) = self.container.take()
            && let Err(error) = self.mounter.unmount(&container.target)
        {
            tracing::debug!(%error, "unmount a benchmark's container");
        }
    }
}
