//! Directories that the kernel reads without having opened them here.
//!
//! The overlay lists a directory for a handle. An offset means the same in every listing of a directory, so a handle may be
//! let go of at any time; keeping it until the last name was read saves listing the directory again for each piece.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::overlay::{Overlay, Result};

/// Directories that somebody is in the middle of. More at once are listed once more for each piece.
const KEPT: usize = 32;

/// Handles of directories under way; the oldest first.
#[derive(Debug, Default)]
pub(super) struct Directories {
    kept: Mutex<Vec<Kept>>,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    node: u64,
    /// Where the next piece begins.
    offset: u64,
    handle: u64,
}

impl Directories {
    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a piece of the directory `node` behind `offset` with `read`, which is given a handle and says behind which
    /// offset it stopped: `None` if there was nothing more.
    pub(super) fn read(
        &self,
        overlay: &Overlay,
        node: u64,
        offset: u64,
        read: impl FnOnce(u64) -> Result<Option<u64>>,
    ) -> Result<()> {
        let handle = match self.take(node, offset) {
            Some(handle) => handle,
            None => overlay.opendir(node)?,
        };
        let outcome = read(handle);
        match outcome {
            Ok(Some(offset)) => self.keep(overlay, Kept { node, offset, handle }),
            Ok(None) | Err(_) => overlay.releasedir(handle),
        }
        outcome.map(drop)
    }

    /// The handle of whoever is at this place; nobody else has it meanwhile.
    fn take(&self, node: u64, offset: u64) -> Option<u64> {
        if offset == 0 {
            return None;
        }
        let mut kept = self.kept();
        let at = kept.iter().position(|k| k.node == node && k.offset == offset)?;
        Some(kept.remove(at).handle)
    }

    fn keep(&self, overlay: &Overlay, new: Kept) {
        let mut kept = self.kept();
        let oldest = (kept.len() >= KEPT).then(|| kept.remove(0));
        kept.push(new);
        drop(kept);
        if let Some(oldest) = oldest {
            overlay.releasedir(oldest.handle);
        }
    }
}
