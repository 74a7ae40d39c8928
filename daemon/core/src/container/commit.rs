//! `POST /commit`: an image of what a container changed, on top of its image.
//!
//! ```text
//!   container's changes ─▶ layer (filesystems) ─┐
//!   container's configuration + --change ───────┴─▶ image (images::compose) ─▶ "tag", "commit"
//! ```
//!
//! The container is not paused while it is read: that needs a freezer, which there is not without root. Each file is as it
//! was at some instant of the commit (docs/divergences.md).

use super::actor::publish_event;
use super::export::require_whole;
use super::{Containers, create};
use crate::config::ContainerConfig;
use crate::error::Result;
use crate::images::{Images, NewImage, apply_changes, new_name};

/// `POST /commit`.
#[derive(Debug, Clone, Default)]
pub struct CommitRequest {
    /// The container's id or name.
    pub container: String,
    /// Name to give; empty for none.
    pub repository: String,
    /// Tag to give; empty is `latest`, or what the repository has behind a colon.
    pub tag: String,
    /// Comment of the history's entry.
    pub comment: String,
    /// Author of the image.
    pub author: String,
    /// Stop the container's processes meanwhile, where that is possible.
    pub pause: bool,
    /// Dockerfile instructions that change the configuration.
    pub changes: Vec<String>,
    /// What the image's containers inherit, completed from the container's; `None` takes the container's.
    pub config: Option<ContainerConfig>,
}

impl Containers {
    /// Makes an image of a container; gives its id, `sha256:…`.
    ///
    /// # Errors
    /// `NotFound` for the container or its image; `InvalidParameter` for a malformed name or instruction; `Conflict` for a
    /// container that is being removed, or whose files another storage driver has; `System`.
    pub async fn commit(&self, images: &Images, request: CommitRequest) -> Result<String> {
        let view = self.find(&request.container)?;
        let record = &view.record;
        require_whole(&view, "commit")?;
        self.shared.require_own_driver(record)?;
        let name = new_name(&request.repository, &request.tag)?;
        let mut config = request.config.unwrap_or_else(|| record.config.clone());
        apply_changes(&mut config, &request.changes)?;
        create::inherit(&mut config, &record.config);
        if request.pause && view.state.status().running {
            tracing::debug!(container = %record.id, "committed without being paused");
        }
        let top = record.image_top_layer.as_deref();
        let layer = self.shared.filesystems.commit(&record.id, top).await?;
        let image_name = name.as_ref().map(|name| name.familiar()).unwrap_or_default();
        let id = images
            .compose(NewImage {
                parent: Some(record.image.clone()),
                layer,
                container: Some((record.id.clone(), record.config.clone())),
                config,
                author: request.author,
                comment: request.comment.clone(),
                name,
                platform: None,
            })
            .await?;
        let attributes = [
            ("comment", request.comment),
            ("imageID", id.to_string()),
            ("imageRef", image_name),
        ];
        publish_event(&self.shared, record, "commit", attributes);
        Ok(id.to_string())
    }
}
