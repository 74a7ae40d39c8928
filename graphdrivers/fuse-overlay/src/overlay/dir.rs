//! Open directories.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use rustix::fs::{self, FileType};
use rustix::io::Errno;

use super::at::At;
use super::layer::{kind_of, stat_at};
use super::listing::{Listing, Name};
use super::lock::{lock, read};
use super::node::{Known, Node};
use super::resolve::Found;
use super::types::{DirEntry, Entry};
use super::{Overlay, Result};

/// Offsets 1 and 2 are those behind `.` and `..`; names have larger ones, see `listing`.
const DOTS: [&str; 2] = [".", ".."];

/// An open directory.
#[derive(Debug)]
pub(super) struct DirectoryHandle {
    node: Known,
    listing: Mutex<Option<Arc<Listing>>>,
}

impl Overlay {
    pub(super) fn do_opendir(&self, node: u64) -> Result<u64> {
        let node = self.directory_node(node)?;
        Ok(self.directories.insert(Arc::new(DirectoryHandle {
            node: Known::new(&node),
            listing: Mutex::default(),
        })))
    }

    /// The handle's listing: a new one if names came since the last, or changed and it is read from the start.
    fn listing(&self, handle: &DirectoryHandle, from_the_start: bool) -> Result<Arc<Listing>> {
        let directory = self.directory_of(handle.node.node())?;
        let mut cached = lock(&handle.listing);
        if let Some(listing) = &*cached
            && listing.additions == directory.additions()
            && (!from_the_start || listing.version == directory.version())
        {
            return Ok(Arc::clone(listing));
        }
        let _names = read(&directory.names);
        let listing = Arc::new(self.list(handle.node.node())?);
        *cached = Some(Arc::clone(&listing));
        Ok(listing)
    }

    /// Gives `.` and `..`, as far as asked for. Whether all were taken.
    fn dots(&self, node: &Arc<Node>, offset: u64, fill: &mut dyn FnMut(&DirEntry<'_>) -> bool) -> bool {
        let parent = node.parent();
        let inos = [node.ino(), parent.map_or(node.ino(), |parent| parent.ino())];
        (0u64..).zip(DOTS.into_iter().zip(inos)).all(|(i, (name, ino))| {
            i < offset
                || fill(&DirEntry {
                    name: name.as_ref(),
                    ino,
                    kind: FileType::Directory,
                    offset: i + 1,
                })
        })
    }

    pub(super) fn do_readdir(
        &self,
        handle: u64,
        offset: u64,
        fill: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let handle = self.directories.get(handle).ok_or(Errno::BADF)?;
        let listing = self.listing(&handle, offset == 0)?;
        if !self.dots(handle.node.node(), offset, fill) {
            return Ok(());
        }
        let directory = self.directory_of(handle.node.node())?;
        let _names = read(&directory.names);
        let current = directory.version() == listing.version;
        for name in listing.behind(offset) {
            // A name that cannot be used is still one.
            let gone = !current
                && matches!(
                    self.resolve(handle.node.node(), listing.name(name), false),
                    Ok(None)
                );
            if !gone && !fill(&entry_of(&listing, name)) {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn do_readdirplus(
        &self,
        handle: u64,
        offset: u64,
        fill: &mut dyn FnMut(&DirEntry<'_>, Option<&Entry>) -> bool,
    ) -> Result<()> {
        let handle = self.directories.get(handle).ok_or(Errno::BADF)?;
        let listing = self.listing(&handle, offset == 0)?;
        if !self.dots(handle.node.node(), offset, &mut |entry| fill(entry, None)) {
            return Ok(());
        }
        let directory = self.directory_of(handle.node.node())?;
        for name in listing.behind(offset) {
            let file = listing.name(name);
            let known = {
                let _names = read(&directory.names);
                let current = directory.version() == listing.version;
                match self.find_listed(handle.node.node(), &listing, name, current) {
                    Ok(Some(found)) => {
                        let node = self.known(handle.node.node(), file, &found);
                        let at = At::Name(found.parent.as_fd(), file);
                        self.entry(&node, &found.stat, found.layer, &at)
                            .map(|entry| (node, entry))
                    }
                    // Removed since.
                    Ok(None) => continue,
                    Err(errno) => Err(errno),
                }
            };
            let listed = entry_of(&listing, name);
            let Ok((node, entry)) = known else {
                // The kernel asks again when somebody wants it, and that one gets the error.
                if fill(&listed, None) {
                    continue;
                }
                break;
            };
            let listed = DirEntry {
                ino: entry.attr.ino,
                ..listed
            };
            if !fill(&listed, Some(&entry)) {
                self.table.forget(&node, 1);
                break;
            }
        }
        Ok(())
    }

    /// What a listed name is: in the layer that the listing says, if the listing is `current`.
    fn find_listed(
        &self,
        parent: &Arc<Node>,
        listing: &Listing,
        name: &Name,
        current: bool,
    ) -> Result<Option<Found>> {
        let file = listing.name(name);
        if !current || name.several {
            return self.resolve(parent, file, false);
        }
        let slot = self.directory_of(parent)?.slot(name.layer).ok_or(Errno::STALE)?;
        let fd = self.slot_fd(parent, slot)?;
        match stat_at(&*fd, file)? {
            Some(stat) if kind_of(&stat) == name.kind => Ok(Some(Found::alone(stat, slot, fd))),
            // Not what was listed: the long way.
            _ => self.resolve(parent, file, false),
        }
    }

    pub(super) fn do_fsyncdir(&self, handle: u64, data_only: bool) -> Result<()> {
        let handle = self.directories.get(handle).ok_or(Errno::BADF)?;
        let Some(slot) = self.directory_of(handle.node.node())?.upper.get() else {
            return Ok(());
        };
        if self.config.volatile || handle.node.node().is_removed() || self.work.is_none() {
            return Ok(());
        }
        let fd = self.slot_fd(handle.node.node(), slot)?;
        if data_only {
            fs::fdatasync(fd.as_fd())
        } else {
            fs::fsync(fd.as_fd())
        }
    }
}

fn entry_of<'a>(listing: &'a Listing, name: &Name) -> DirEntry<'a> {
    DirEntry {
        name: listing.name(name),
        ino: name.ino,
        kind: name.kind,
        offset: name.offset,
    }
}
