//! Directories that the kernel reads without having opened them here.
//!
//! The overlay lists a directory for a handle. An offset means the same in every listing of a directory, so a handle may be
//! let go of at any time; keeping it until the last name was read saves listing the directory again for each piece.
//!
//! A request does not say which of several readers it comes from. A handle therefore serves whoever asks for its place,
//! unless its listing is older than somebody's start: that one must see every name that was there when it started.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::overlay::{Overlay, Result};

/// Directories that somebody is in the middle of. More at once are listed once more for each piece.
const KEPT: usize = 32;
/// Groups of directories whose last start is known together.
const GROUPS: usize = 64;

/// Handles of directories under way; the oldest first.
#[derive(Debug)]
pub(super) struct Directories {
    kept: Mutex<Vec<Kept>>,
    /// Counts starts, of all directories.
    clock: AtomicU64,
    /// When a directory of this group was last read from its start.
    started: [AtomicU64; GROUPS],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    node: u64,
    /// Where the next piece begins.
    offset: u64,
    handle: u64,
    /// Its listing is at least as new.
    listed: u64,
}

impl Default for Directories {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            clock: AtomicU64::new(0),
            started: array::from_fn(|_| AtomicU64::new(0)),
        }
    }
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
        let listed = self.now(node, offset);
        let (handle, listed) = match self.take(node, offset) {
            Some(kept) => (kept.handle, kept.listed),
            None => (overlay.opendir(node)?, listed),
        };
        let outcome = read(handle);
        match outcome {
            Ok(Some(offset)) => {
                let kept = Kept {
                    node,
                    offset,
                    handle,
                    listed,
                };
                if let Some(oldest) = self.keep(kept) {
                    overlay.releasedir(oldest);
                }
            }
            Ok(None) | Err(_) => overlay.releasedir(handle),
        }
        outcome.map(drop)
    }

    fn last_start(&self, node: u64) -> &AtomicU64 {
        let group = usize::try_from(node).unwrap_or_default() % GROUPS;
        &self.started[group]
    }

    /// The time before a listing is made; a piece at the start is one from which on older listings serve nobody.
    fn now(&self, node: u64, offset: u64) -> u64 {
        if offset != 0 {
            return self.clock.load(Ordering::SeqCst);
        }
        let now = self.clock.fetch_add(1, Ordering::SeqCst) + 1;
        self.last_start(node).fetch_max(now, Ordering::SeqCst);
        now
    }

    /// The handle of whoever is at this place; nobody else has it meanwhile.
    fn take(&self, node: u64, offset: u64) -> Option<Kept> {
        if offset == 0 {
            return None;
        }
        let oldest = self.last_start(node).load(Ordering::SeqCst);
        let mut kept = self.kept();
        let at = kept
            .iter()
            .position(|k| k.node == node && k.offset == offset && k.listed >= oldest)?;
        Some(kept.remove(at))
    }

    /// Keeps a handle, and gives the one back for which there is no room.
    fn keep(&self, new: Kept) -> Option<u64> {
        let mut kept = self.kept();
        let oldest = (kept.len() >= KEPT).then(|| kept.remove(0).handle);
        kept.push(new);
        oldest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_a_listing_from_before_its_start() {
        let directories = Directories::default();
        let at = |handle, listed| Kept {
            node: 7,
            offset: 9,
            handle,
            listed,
        };
        let first = directories.now(7, 0);
        assert_eq!(directories.keep(at(1, first)), None);
        // Another starts, and comes to the same place.
        let second = directories.now(7, 0);
        assert_eq!(
            directories.take(7, 9),
            None,
            "the first one's listing may lack names"
        );
        directories.keep(at(2, second));
        assert_eq!(directories.take(7, 9), Some(at(2, second)));
        // The first one goes on with a new listing, which is new enough for both.
        let again = directories.now(7, 9);
        directories.keep(at(3, again));
        assert_eq!(directories.take(7, 9), Some(at(3, again)));
        // A directory elsewhere disturbs nobody.
        directories.keep(at(4, again));
        directories.now(8, 0);
        assert_eq!(directories.take(7, 9), Some(at(4, again)));
    }

    #[test]
    fn room_is_made_by_the_oldest() {
        let directories = Directories::default();
        let at = |handle| Kept {
            node: 7,
            offset: handle,
            handle,
            listed: 0,
        };
        for handle in 1..=KEPT as u64 {
            assert_eq!(directories.keep(at(handle)), None);
        }
        assert_eq!(directories.keep(at(99)), Some(1));
        assert_eq!(directories.take(7, 1), None);
        assert_eq!(directories.take(7, 99), Some(at(99)));
    }
}
