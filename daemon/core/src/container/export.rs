//! `GET /containers/ID/export`: a container's whole root file system as a tar stream, running or not. What is mounted in it
//! is not part of it.

use std::io;
use std::sync::Arc;

use super::Containers;
use super::actor::publish_event;
use super::state::State;
use super::view::ContainerView;
use crate::error::{Error, Result};
use crate::pipe::{ByteStream, byte_stream};

impl Containers {
    /// Exports a container. What fails before the first byte does so here; the stream ends with an error when a file
    /// cannot be read.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` for a container that is being removed, or whose files another storage driver has; `System`
    /// when its files cannot be reached.
    pub async fn export(&self, reference: &str) -> Result<ByteStream> {
        let view = self.find(reference)?;
        require_whole(&view, "export")?;
        let record = Arc::clone(&view.record);
        self.shared.require_own_driver(&record)?;
        let top = record.image_top_layer.as_deref();
        let write = self.shared.filesystems.export(&record.id, top).await?;
        publish_event(&self.shared, &record, "export", []);
        let (sink, stream) = byte_stream();
        let errors = sink.errors();
        let writing = tokio::task::spawn_blocking(move || write(Box::new(sink)));
        tokio::spawn(async move {
            let written = writing.await;
            let written = written.unwrap_or_else(|e| Err(Error::system("export").caused_by(e)));
            if let Err(error) = written {
                // A client that left knows; another one must not take the beginning for the whole.
                tracing::warn!(container = %record.id, %error, "export broke off");
                let _ = errors.send(Err(io::Error::other(error.to_string()))).await;
            }
        });
        Ok(stream)
    }
}

/// Refuses containers of which only a part may be left.
pub(super) fn require_whole(view: &ContainerView, operation: &str) -> Result<()> {
    let id = &view.record.id;
    match view.state {
        State::Dead { .. } => Err(Error::conflict(format!(
            "You cannot {operation} container {id} which is Dead"
        ))),
        State::Removing { .. } => Err(Error::conflict(format!(
            "You cannot {operation} container {id} which is being removed"
        ))),
        _ => Ok(()),
    }
}
