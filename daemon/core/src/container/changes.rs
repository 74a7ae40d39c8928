//! `GET /containers/ID/changes`: what a container added, changed and deleted (`docker diff`).

pub use skiff_store::ChangeKind;

use super::Containers;
use crate::error::Result;

/// A name in a container's root file system that is not as in its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The absolute name. What is no UTF-8 in it is shown as a replacement character.
    pub path: String,
    /// What happened to it.
    pub kind: ChangeKind,
}

impl Containers {
    /// The changes, a directory before its contents. The cost follows their number with drivers that keep them apart
    /// (overlays), the size of the image with others.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when another storage driver has its files; `System`.
    pub async fn changes(&self, reference: &str) -> Result<Vec<Change>> {
        let view = self.find(reference)?;
        self.shared.require_own_driver(&view.record)?;
        let changes = self.shared.filesystems.changes(&view.record.id).await?;
        let absolute = |path: &[u8]| format!("/{}", String::from_utf8_lossy(path));
        Ok(changes
            .iter()
            .map(|change| Change {
                path: absolute(&change.path),
                kind: change.kind,
            })
            .collect())
    }
}
