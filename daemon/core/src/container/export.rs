//! `GET /containers/ID/export`: a container's whole root file system as a tar stream, running or not. What is mounted in it
//! is not part of it.

use std::io;
use std::sync::Arc;

use super::actor::publish_event;
use super::state::State;
use super::view::{ContainerView, Record};
use super::{Containers, Shared};
use crate::error::{Error, Result};
use crate::pipe::{ByteStream, byte_stream};

impl Containers {
    /// Exports a container. The stream ends with an error when a file cannot be read to its end.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` for a container that is being removed, or whose files another storage driver has.
    pub fn export(&self, reference: &str) -> Result<ByteStream> {
        let view = self.find(reference)?;
        require_whole(&view, "export")?;
        self.shared.require_own_driver(&view.record)?;
        let (sink, stream) = byte_stream();
        let (shared, record) = (Arc::clone(&self.shared), Arc::clone(&view.record));
        publish_event(&shared, &record, "export", []);
        let errors = sink.errors();
        tokio::spawn(async move {
            if let Err(error) = write(&shared, &record, Box::new(sink)).await {
                // A client that left knows; another one must not take the beginning for the whole.
                tracing::warn!(container = %record.id, %error, "export broke off");
                let _ = errors.send(Err(io::Error::other(error.to_string()))).await;
            }
        });
        Ok(stream)
    }
}

async fn write(shared: &Shared, record: &Record, out: Box<dyn io::Write + Send>) -> Result<()> {
    let top = record.image_top_layer.as_deref();
    shared.filesystems.export(&record.id, top, out).await
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
