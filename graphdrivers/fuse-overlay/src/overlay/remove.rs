//! Names go: unlink and rmdir.
//!
//! What only the upper directory has is removed from it. What a lower layer has too gets a whiteout in the same step
//! that removes it, so that no instant shows the lower file.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{self, AtFlags, OFlags, RenameFlags};
use rustix::io::Errno;

use super::at::At;
use super::descriptors::DirectoryFd;
use super::lock::{read, write};
use super::node::{Known, Node, Place};
use super::resolve::Found;
use super::work::Work;
use super::{Overlay, Result};

impl Overlay {
    /// The upper directory of `parent`, made only if `name` is there to be removed from it.
    ///
    /// `may_go` refuses what cannot be removed before directories are made for it; it is asked again under the lock.
    fn upper_to_remove(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        may_go: impl FnOnce(&Found) -> Result<()>,
    ) -> Result<Arc<DirectoryFd>> {
        let directory = self.directory_of(parent)?;
        if self.work.is_some() && directory.upper.get().is_none() {
            let _names = read(&directory.names);
            may_go(&self.resolve(parent, name, false)?.ok_or(Errno::NOENT)?)?;
        }
        self.upper_fd(parent)
    }

    /// Whether a lower layer has `name`, which needs a whiteout then.
    pub(super) fn is_covered(&self, parent: &Arc<Node>, name: &OsStr) -> Result<bool> {
        Ok(!self.directory_of(parent)?.is_pure_upper() && self.resolve(parent, name, true)?.is_some())
    }

    pub(super) fn do_unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        let work = self.work.as_ref().ok_or(Errno::ROFS)?;
        let parent = self.directory_node(parent)?;
        let is_file = |found: &Found| match found.is_directory() {
            true => Err(Errno::ISDIR),
            false => Ok(()),
        };
        let upper = self.upper_to_remove(&parent, name, is_file)?;
        let directory = self.directory_of(&parent)?;
        let _names = write(&directory.names);
        let found = self.resolve(&parent, name, false)?.ok_or(Errno::NOENT)?;
        is_file(&found)?;
        let in_upper = self.is_upper(found.layer);
        let covered = !in_upper || self.is_covered(&parent, name)?;
        let node = self.table.find(&self.key_of(name, &found));
        let mut place = node.as_ref().map(|node| write(&node.place));
        let kept = match (&node, &place) {
            (Some(node), Some(place)) if in_upper => self.keep_nameless(node, place, &parent, &upper, name),
            _ => None,
        };
        match (in_upper, covered) {
            (true, false) => fs::unlinkat(&*upper, name, AtFlags::empty())?,
            (true, true) => work.whiteout_over(&*upper, name)?,
            (false, _) => work.whiteout(&*upper, name)?,
        }
        directory.changed();
        match (&node, &mut place) {
            (Some(node), Some(place)) => self.lost_name(node, place, &parent, name, &found, kept),
            _ if in_upper && found.stat.st_nlink == 1 => self.origins.remove(found.stat.st_ino),
            _ => {}
        }
        Ok(())
    }

    /// A descriptor to keep a file of the upper directory by, if it is about to lose its last known name: one that is
    /// open anyway, or a new one. Without any (none left), it will be gone for those who still know it.
    pub(super) fn keep_nameless(
        &self,
        node: &Node,
        place: &Place,
        parent: &Arc<Node>,
        upper: &DirectoryFd,
        name: &OsStr,
    ) -> Option<Arc<OwnedFd>> {
        if !place.is(parent, name) || !place.aliases.is_empty() {
            return None;
        }
        if let Some(handle) = node.some_handle() {
            return Some(handle.fd());
        }
        let at = At::Name(upper.as_fd(), name);
        self.descriptors
            .with_room(|| at.open(OFlags::PATH))
            .ok()
            .map(Arc::new)
    }

    /// `name` does not lead to the file any more.
    pub(super) fn lost_name(
        &self,
        node: &Arc<Node>,
        place: &mut Place,
        parent: &Arc<Node>,
        name: &OsStr,
        found: &Found,
        kept: Option<Arc<OwnedFd>>,
    ) {
        if !self.is_upper(found.layer) {
            // It stays where it is, below; only no name of the overlay leads there.
            node.removed.store(true, Ordering::Release);
            self.table.rekey(node, None);
            return;
        }
        if place.unlearn(parent, name) {
            *place = Place::nameless(kept);
        }
        if found.stat.st_nlink <= 1 {
            node.removed.store(true, Ordering::Release);
            self.table.rekey(node, None);
            self.origins.remove(found.stat.st_ino);
        }
    }

    pub(super) fn do_rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        let work = self.work.as_ref().ok_or(Errno::ROFS)?;
        let parent = self.directory_node(parent)?;
        let upper = self.upper_to_remove(&parent, name, |found| {
            if !found.is_directory() {
                return Err(Errno::NOTDIR);
            }
            let known = Known::taken(self.known(&parent, name, found));
            let _names = read(&self.directory_of(known.node())?.names);
            self.is_empty(known.node())?.then_some(()).ok_or(Errno::NOTEMPTY)
        })?;
        let directory = self.directory_of(&parent)?;
        let _names = write(&directory.names);
        let found = self.resolve(&parent, name, false)?.ok_or(Errno::NOENT)?;
        if !found.is_directory() {
            return Err(Errno::NOTDIR);
        }
        let known = Known::taken(self.known(&parent, name, &found));
        let node = known.node();
        let victim = self.directory_of(node)?;
        let _victim = write(&victim.names);
        let covered = victim.upper.get().is_none() || self.is_covered(&parent, name)?;
        self.pin(node)?;
        self.take_away(work, node, &upper, name, covered)
            .inspect_err(|_| self.unpin(node))?;
        self.directory_is_gone(node);
        directory.changed();
        directory.count(-1);
        Ok(())
    }

    /// Removes an empty directory from the upper one; leaves a whiteout if lower layers have its name.
    fn take_away(
        &self,
        work: &Work,
        node: &Arc<Node>,
        upper: &DirectoryFd,
        name: &OsStr,
        covered: bool,
    ) -> Result<()> {
        let in_upper = self.directory_of(node)?.upper.get().is_some();
        if in_upper && !covered {
            match fs::unlinkat(upper, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                outcome => return outcome,
            }
        }
        if !self.is_empty(node)? {
            return Err(Errno::NOTEMPTY);
        }
        if !in_upper {
            return work.whiteout(upper, name);
        }
        // Nothing but whiteouts can be in it.
        let staged = work.name();
        if covered {
            work.whiteout(&work.fd, &staged)?;
            fs::renameat_with(&work.fd, &*staged, upper, name, RenameFlags::EXCHANGE)
                .inspect_err(|_| work.discard(&staged))?;
        } else {
            fs::renameat(upper, name, &work.fd, &*staged)?;
        }
        work.discard(&staged);
        Ok(())
    }

    /// Keeps the upper directory's descriptor: soon no path will lead there.
    pub(super) fn pin(&self, node: &Arc<Node>) -> Result<()> {
        if let Some(slot) = self.directory_of(node)?.upper.get() {
            slot.kept.pin(self.slot_fd(node, slot)?);
        }
        Ok(())
    }

    /// The directory stays after all.
    pub(super) fn unpin(&self, node: &Node) {
        if let Some(slot) = node
            .directory
            .as_ref()
            .and_then(|directory| directory.upper.get())
        {
            slot.kept.unpin();
        }
    }

    pub(super) fn directory_is_gone(&self, node: &Arc<Node>) {
        node.removed.store(true, Ordering::Release);
        self.table.rekey(node, None);
        if let Some(directory) = &node.directory {
            directory.changed();
        }
    }
}
