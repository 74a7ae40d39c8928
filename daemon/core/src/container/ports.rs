//! What containers need of images and of the storage layer, as traits, so that this module can be tested
//! without either.

use std::io::Write;
use std::path::PathBuf;

use async_trait::async_trait;
use skiff_store::{AddedLayer, PathChange};

use crate::error::{Error, Result};
use crate::images::{ImageView, Images};

/// Where container creation looks images up.
pub trait ImageSource: Send + Sync + 'static {
    /// Finds an image by reference, id or beginning of an id.
    ///
    /// # Errors
    /// `NotFound` "No such image: …".
    fn find(&self, reference: &str) -> Result<ImageView>;
}

impl ImageSource for Images {
    fn find(&self, reference: &str) -> Result<ImageView> {
        Self::find(self, reference)
    }
}

/// Writes what is to be exported, where blocking is allowed.
pub type Export = Box<dyn FnOnce(Box<dyn Write + Send>) -> Result<()> + Send>;

/// The writable layers of containers.
#[async_trait]
pub trait RootFilesystems: Send + Sync + 'static {
    /// Name of the storage driver.
    fn driver(&self) -> String;

    /// Makes the writable layer of container `id` on top of layer `top` (a chain id; `None` is empty).
    async fn create(&self, id: &str, top: Option<&str>) -> Result<()>;

    /// Mounts it and returns the path of its root. A `disposable` one is removed after this use: nothing of it needs to
    /// reach the disk (overlayfs syncs a whole file system on unmount otherwise, which costs tens of milliseconds).
    async fn mount(&self, id: &str, disposable: bool) -> Result<PathBuf>;

    /// It is mounted since an earlier daemon, and in use.
    async fn take_over(&self, _id: &str) -> Result<()> {
        Ok(())
    }

    /// Unmounts it. Unmounting what is not mounted is not an error.
    async fn unmount(&self, id: &str) -> Result<()>;

    /// Removes it; a missing one is not an error.
    async fn remove(&self, id: &str) -> Result<()>;

    /// Bytes in the writable layer and bytes in all layers.
    async fn size(&self, id: &str, top: Option<&str>) -> Result<(u64, u64)>;

    /// Where the storage driver keeps it: rows of `GraphDriver.Data`, none for a driver that has nothing to say.
    async fn graph_data(&self, _id: &str) -> Result<Vec<(String, String)>> {
        Ok(Vec::new())
    }

    /// What has befallen the mounted root file system so that its container cannot use it any more, as a sentence.
    async fn trouble(&self, _id: &str) -> Option<String> {
        None
    }

    /// The names that the container added, changed and deleted.
    async fn changes(&self, _id: &str) -> Result<Vec<PathChange>> {
        Err(Error::not_implemented(
            "these file systems cannot tell what changed",
        ))
    }

    /// Makes a layer of what the container changed, on top of `top`; `None` when nothing changed.
    async fn commit(&self, _id: &str, _top: Option<&str>) -> Result<Option<AddedLayer>> {
        Err(Error::not_implemented("these file systems make no layers"))
    }

    /// Begins to write the whole root file system as a tar stream: what fails at once does so here.
    async fn export(&self, _id: &str, _top: Option<&str>) -> Result<Export> {
        Err(Error::not_implemented("these file systems cannot be exported"))
    }

    /// Frees at once the space of what was removed, which is otherwise done in the background; whether there was
    /// anything to do that for.
    async fn free_space(&self) -> bool {
        false
    }

    /// Removes the writable layers of all containers but `live`, and what else in the storage nobody needs.
    async fn keep_only(&self, live: &[String]) -> Result<()>;
}
