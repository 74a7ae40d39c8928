//! `docker system df`: what takes how much room.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt, stream};

use crate::Engine;
use crate::container::{ContainerSize, ContainerView, ListOptions};
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::images::ImageView;

/// Writable layers measured at the same time: each is a walk over what the container changed.
const WALKS: usize = 4;

/// What images take.
#[derive(Debug, Clone)]
pub struct ImagesUsage {
    /// Bytes of all layers, each once.
    pub layers_size: u64,
    /// Each image.
    pub images: Vec<ImageUsage>,
}

/// What an image takes.
#[derive(Debug, Clone)]
pub struct ImageUsage {
    /// The image.
    pub image: ImageView,
    /// Bytes of those of its layers that another image has, too.
    pub shared: u64,
    /// Containers made from it.
    pub containers: usize,
}

impl Engine {
    /// What images take.
    ///
    /// # Errors
    /// `System`.
    pub async fn images_usage(&self) -> Result<ImagesUsage> {
        let images = self.images.clone();
        let (views, sizes) = tokio::task::spawn_blocking(move || {
            let views = images.list(false, &Filters::default());
            views.map(|views| (views, images.shared_sizes()))
        })
        .await
        .map_err(|e| Error::system("measure the images").caused_by(e))??;
        let mut users: HashMap<String, usize> = HashMap::new();
        for view in self.all_containers()? {
            *users.entry(view.record.image.clone()).or_default() += 1;
        }
        let usage = |image: ImageView| ImageUsage {
            shared: sizes.of(&image.id),
            containers: users.get(&image.id).copied().unwrap_or_default(),
            image,
        };
        Ok(ImagesUsage {
            layers_size: sizes.layers,
            images: views.into_iter().map(usage).collect(),
        })
    }

    /// What all containers take; `None` for one that went meanwhile, or whose files another storage driver has.
    ///
    /// # Errors
    /// `System`.
    pub async fn containers_usage(&self) -> Result<Vec<(Arc<ContainerView>, Option<ContainerSize>)>> {
        let measured = stream::iter(self.all_containers()?).map(|view| async move {
            let size = self.containers.size(&view.record.id).await.ok();
            (view, size)
        });
        Ok(measured.buffered(WALKS).collect().await)
    }

    fn all_containers(&self) -> Result<Vec<Arc<ContainerView>>> {
        self.containers.list(&ListOptions {
            all: true,
            limit: None,
            filters: Filters::default(),
        })
    }
}
