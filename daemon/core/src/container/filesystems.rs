//! Containers' writable layers in the image store: the blocking calls of `skiff-store` on threads that may block.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use skiff_graphdrivers::{LayerId, Mounter};
use skiff_store::{AddedLayer, GcOptions, PathChange, RwLayers, Store};

use super::{Export, RootFilesystems};
use crate::error::{Error, Result};

/// Blobs and layers that no image needs (yet) are left alone for so long: a pull may be about to name them, and an
/// interrupted one is resumed from them.
const GRACE: Duration = Duration::from_secs(3600);

/// The writable layers of a store.
#[derive(Debug, Clone)]
pub struct StoredFilesystems {
    store: Store,
    layers: RwLayers,
}

impl StoredFilesystems {
    /// Writable layers in `store`, mounted by `mounter` below `mount_root` where the driver needs mounts.
    pub fn new(store: Store, mount_root: PathBuf, mounter: Mounter) -> Self {
        let layers = RwLayers::with_mounter(store.clone(), mount_root, mounter);
        Self { store, layers }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> skiff_store::Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || work(&this))
            .await
            .map_err(|e| Error::system("storage call").caused_by(e))?
            .map_err(Error::from)
    }
}

fn layer_id(text: &str) -> skiff_store::Result<LayerId> {
    Ok(LayerId::new(text)?)
}

#[async_trait]
impl RootFilesystems for StoredFilesystems {
    fn driver(&self) -> String {
        self.store.driver().name().to_owned()
    }

    async fn create(&self, id: &str, top: Option<&str>) -> Result<()> {
        let (id, top) = (id.to_owned(), top.map(str::to_owned));
        self.blocking(move |this| {
            let top = top.as_deref().map(layer_id).transpose()?;
            this.layers.create(&id, top.as_ref())
        })
        .await
    }

    async fn mount(&self, id: &str, disposable: bool) -> Result<PathBuf> {
        let id = id.to_owned();
        self.blocking(move |this| this.layers.mount(&id, disposable))
            .await
    }

    async fn take_over(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.blocking(move |this| this.layers.take_over(&id)).await
    }

    async fn unmount(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.blocking(move |this| this.layers.unmount(&id)).await
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.blocking(move |this| this.layers.remove(&id)).await
    }

    async fn graph_data(&self, id: &str) -> Result<Vec<(String, String)>> {
        let id = id.to_owned();
        self.blocking(move |this| this.layers.graph_data(&id)).await
    }

    async fn trouble(&self, id: &str) -> Option<String> {
        let container = id.to_owned();
        match self.blocking(move |this| this.layers.trouble(&container)).await {
            Ok(trouble) => trouble,
            // Being removed, or damaged: whoever needs it will say so.
            Err(error) => {
                tracing::debug!(container = id, %error, "cannot ask after a root file system");
                None
            }
        }
    }

    async fn size(&self, id: &str, top: Option<&str>) -> Result<(u64, u64)> {
        let (id, top) = (id.to_owned(), top.map(str::to_owned));
        self.blocking(move |this| {
            let own = this.layers.usage(&id)?.size;
            let mut all = own;
            let mut layer = top.as_deref().map(layer_id).transpose()?;
            while let Some(record) = layer.and_then(|layer| this.store.layer(&layer)) {
                all += record.size;
                layer = record
                    .parent
                    .map(|parent| layer_id(&parent.to_string()))
                    .transpose()?;
            }
            Ok((own, all))
        })
        .await
    }

    async fn changes(&self, id: &str) -> Result<Vec<PathChange>> {
        let id = id.to_owned();
        self.blocking(move |this| this.layers.changes(&id)).await
    }

    async fn commit(&self, id: &str, top: Option<&str>) -> Result<Option<AddedLayer>> {
        let (id, top) = (id.to_owned(), top.map(str::to_owned));
        self.blocking(move |this| {
            let top = top.as_deref().map(layer_id).transpose()?;
            this.layers.commit(&id, top.as_ref())
        })
        .await
    }

    async fn export(&self, id: &str, top: Option<&str>) -> Result<Export> {
        let (id, top) = (id.to_owned(), top.map(str::to_owned));
        let begun = self.blocking(move |this| {
            let top = top.as_deref().map(layer_id).transpose()?;
            this.layers.export(&id, top.as_ref())
        });
        let export = begun.await?;
        Ok(Box::new(move |out| export.write(out).map_err(Error::from)))
    }

    async fn free_space(&self) -> bool {
        match self.blocking(|this| this.store.purge()).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot free the space of what was removed");
                false
            }
        }
    }

    async fn keep_only(&self, live: &[String]) -> Result<()> {
        let containers: HashSet<String> = live.iter().cloned().collect();
        let report = self
            .blocking(move |this| {
                this.store.gc(&GcOptions {
                    containers,
                    grace: GRACE,
                })
            })
            .await?;
        tracing::debug!(?report, "collected unneeded storage");
        Ok(())
    }
}
