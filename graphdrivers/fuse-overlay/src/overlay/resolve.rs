//! From a name in a directory to an inode: which layers have it, and which of them count.
//!
//! ```text
//!   directory, in its layers   upper      lower 1     lower 2     what the name is
//!                              file       anything    anything    upper's file
//!                              whiteout   anything    anything    nothing
//!                              –          directory   directory   both, merged (unless lower 1's is opaque)
//!                              directory  file        directory   upper's directory alone
//! ```
//!
//! Only layers that have the parent directory are asked. A directory that lies in one layer costs one system call a
//! name. The caller holds the parent's `names` lock from the first call until the node is known.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{self, FileType, Stat};
use rustix::io::Errno;

use super::at::At;
use super::descriptors::DirectoryFd;
use super::layer::{self, DOT_WHITEOUT, Opacity, UPPER, kind_of, stat_at};
use super::listing;
use super::lock::{read, write};
use super::node::{Directory, Node, Place, Slot, UNKNOWN};
use super::table::Key;
use super::types::{Entry, Lookup};
use super::{Overlay, Result};

/// A name that leads to a file.
#[derive(Debug)]
pub(super) struct Found {
    /// Of the topmost layer that has it.
    pub(super) stat: Stat,
    pub(super) layer: u16,
    /// The parent in that layer, and its inode there.
    pub(super) parent: Arc<DirectoryFd>,
    pub(super) parent_ino: u64,
    /// Of a directory: itself in each layer that counts.
    pub(super) parts: Vec<Part>,
}

/// A directory in one layer, before it is a [`Slot`].
#[derive(Debug)]
pub(super) struct Part {
    pub(super) layer: u16,
    pub(super) stat: Stat,
    fd: Option<OwnedFd>,
    opacity: Option<Opacity>,
}

impl Found {
    /// A file that only one layer is known to have.
    pub(super) fn alone(stat: Stat, slot: &Slot, parent: Arc<DirectoryFd>) -> Self {
        let mut found = Self {
            stat,
            layer: slot.layer,
            parent,
            parent_ino: slot.ino,
            parts: Vec::new(),
        };
        if found.is_directory() {
            found.parts.push(Part {
                layer: slot.layer,
                stat,
                fd: None,
                opacity: None,
            });
        }
        found
    }

    pub(super) fn kind(&self) -> FileType {
        kind_of(&self.stat)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }

    fn has_several_names(&self) -> bool {
        !self.is_directory() && self.stat.st_nlink > 1
    }
}

impl Overlay {
    pub(super) fn do_lookup(&self, parent: u64, name: &OsStr) -> Result<Lookup> {
        let parent = self.directory_node(parent)?;
        let _names = read(&self.directory_of(&parent)?.names);
        match self.resolve(&parent, name, false)? {
            None => Ok(Lookup::Negative(self.config.ttl)),
            Some(found) => {
                let node = self.known(&parent, name, &found);
                let at = At::Name(found.parent.as_fd(), name);
                self.entry(&node, &found.stat, found.layer, &at)
                    .map(Lookup::Found)
            }
        }
    }

    /// The answer to a request that made `node` known once more; on failure the kernel does not come to know it.
    pub(super) fn entry(&self, node: &Arc<Node>, stat: &Stat, layer: u16, at: &At<'_>) -> Result<Entry> {
        let shown = self
            .refuse_metacopy(stat, at)
            .and_then(|()| self.shown(node, stat, layer, at));
        match shown {
            Ok(attr) => Ok(Entry {
                node: node.id,
                generation: 0,
                attr,
                ttl: self.config.ttl,
            }),
            Err(errno) => {
                self.table.forget(node, 1);
                Err(errno)
            }
        }
    }

    /// A file whose contents are another's: all hole, and marked.
    fn refuse_metacopy(&self, stat: &Stat, at: &At<'_>) -> Result<()> {
        let hollow = stat.st_blocks == 0 && stat.st_size > 0 && kind_of(stat) == FileType::RegularFile;
        if hollow && at.get_xattr(self.marks.metacopy, &mut []).is_ok() {
            tracing::warn!(?at, "a file's redirection (metacopy) is refused");
            return Err(Errno::PERM);
        }
        Ok(())
    }

    /// What `name` is in `parent`; with `below`, in the lower layers alone.
    pub(super) fn resolve(&self, parent: &Arc<Node>, name: &OsStr, below: bool) -> Result<Option<Found>> {
        if parent.is_removed() {
            return Ok(None);
        }
        let directory = self.directory_of(parent)?;
        let mut found: Option<Found> = None;
        let mut slots = directory
            .slots()
            .filter(|slot| !below || !self.is_upper(slot.layer))
            .peekable();
        while let Some(slot) = slots.next() {
            let last = slots.peek().is_none();
            let fd = self.slot_fd(parent, slot)?;
            let Some(stat) = stat_at(&*fd, name)? else {
                if !last
                    && self.has_dot_whiteouts(slot, &fd)?
                    && layer::has_dot_whiteout(&*fd, name, self.is_upper(slot.layer), &self.marks)?
                {
                    break;
                }
                continue;
            };
            if self.is_whiteout_in(slot, &fd, name, &stat)? {
                break;
            }
            let is_directory = kind_of(&stat) == FileType::Directory;
            if !is_directory && found.is_some() {
                break;
            }
            let part = Part {
                layer: slot.layer,
                stat,
                fd: None,
                opacity: None,
            };
            let found = found.get_or_insert_with(|| Found {
                stat,
                layer: slot.layer,
                parent: fd,
                parent_ino: slot.ino,
                parts: Vec::new(),
            });
            if !is_directory {
                break;
            }
            found.parts.push(part);
        }
        drop(slots);
        if let Some(found) = &mut found {
            self.cut_below_opaque(parent, name, &mut found.parts)?;
        }
        Ok(found)
    }

    /// Leaves out what an opaque directory hides. Only asked where there is something to hide.
    fn cut_below_opaque(&self, parent: &Arc<Node>, name: &OsStr, parts: &mut Vec<Part>) -> Result<()> {
        for i in 0..parts.len().saturating_sub(1) {
            let slot = self
                .directory_of(parent)?
                .slot(parts[i].layer)
                .ok_or(Errno::STALE)?;
            let above = self.slot_fd(parent, slot)?;
            let fd = self.descriptors.open(&*above, name)?;
            let opacity = layer::opacity(&fd, &self.marks)?;
            if opacity == Opacity::Redirected {
                tracing::warn!(
                    ?name,
                    layer = parts[i].layer,
                    "a directory's redirection is refused"
                );
                return Err(Errno::PERM);
            }
            parts[i].fd = Some(fd);
            parts[i].opacity = Some(opacity);
            if opacity == Opacity::Opaque {
                parts.truncate(i + 1);
                break;
            }
        }
        Ok(())
    }

    /// Whether the file `name` in this layer says that there is nothing, here or below.
    pub(super) fn is_whiteout_in(
        &self,
        slot: &Slot,
        fd: &DirectoryFd,
        name: &OsStr,
        stat: &Stat,
    ) -> Result<bool> {
        if layer::is_whiteout(stat) {
            return Ok(true);
        }
        Ok(kind_of(stat) == FileType::RegularFile
            && stat.st_size == 0
            && self.has_xattr_whiteouts(slot, fd)?
            && layer::is_xattr_whiteout(fd, name, stat, &self.marks))
    }

    pub(super) fn has_xattr_whiteouts(&self, slot: &Slot, fd: &DirectoryFd) -> Result<bool> {
        if !self.layers[usize::from(slot.layer)].xattr_whiteouts {
            return Ok(false);
        }
        remembered(&slot.xattr_whiteouts, || {
            Ok(layer::opacity(fd, &self.marks)? == Opacity::XattrWhiteouts)
        })
    }

    /// Whether this directory had files `.wh.*` when this was first asked; those that come later are users'.
    fn has_dot_whiteouts(&self, slot: &Slot, fd: &DirectoryFd) -> Result<bool> {
        remembered(&slot.dot_whiteouts, || {
            let mut any = false;
            listing::raw(fd, &self.descriptors, |entry| {
                any |= entry.file_name().to_bytes().starts_with(DOT_WHITEOUT);
            })?;
            Ok(any)
        })
    }

    /// The node of what was found, with one reference more.
    pub(super) fn known(&self, parent: &Arc<Node>, name: &OsStr, found: &Found) -> Arc<Node> {
        let kind = found.kind();
        let (node, new) = self.table.acquire(
            self.key_of(name, found),
            |node| node.kind == kind && !node.is_removed(),
            |id| {
                let directory = found.is_directory().then(|| self.new_directory(found));
                let place = Place::new(parent, name, found.layer);
                Node::new(id, kind, self.ino_of(found), place, directory)
            },
        );
        if !new && found.has_several_names() {
            write(&node.place).learn(parent, name);
        }
        node
    }

    /// What was found, as the table knows it.
    pub(super) fn key_of(&self, name: &OsStr, found: &Found) -> Key {
        let (stat, layer) = (&found.stat, found.layer);
        if found.has_several_names() && !self.is_upper(layer) {
            self.table
                .key_of_name(layer, stat.st_dev, stat.st_ino, found.parent_ino, name.as_bytes())
        } else {
            self.table.key(layer, stat.st_dev, stat.st_ino)
        }
    }

    fn new_directory(&self, found: &Found) -> Box<Directory> {
        let mut slots: Vec<Slot> = Vec::with_capacity(found.parts.len());
        for part in &found.parts {
            let slot = Slot::new(part.layer, &part.stat);
            if let Some(opacity) = part.opacity {
                slot.xattr_whiteouts
                    .store(u8::from(opacity == Opacity::XattrWhiteouts), Ordering::Relaxed);
            }
            slots.push(slot);
        }
        let upper = if self.is_upper(found.layer) {
            Some(slots.remove(0))
        } else {
            None
        };
        Directory::new(upper, slots, &found.stat)
    }

    /// `st_ino` of what was found: that of the topmost lower layer for a merged directory, since it may have been
    /// there before the upper one; that of the file it was copied up from, if that happened in this mount.
    fn ino_of(&self, found: &Found) -> u64 {
        let stat = found
            .parts
            .iter()
            .find(|part| !self.is_upper(part.layer))
            .map_or(&found.stat, |part| &part.stat);
        if self.is_upper(found.layer)
            && found.parts.is_empty()
            && let Some(ino) = self.origins.get(found.stat.st_ino)
        {
            return ino;
        }
        self.devices.ino(stat.st_dev, stat.st_ino)
    }

    /// Whether a layer is the one that can be written.
    pub(super) fn is_upper(&self, layer: u16) -> bool {
        layer == UPPER && self.work.is_some()
    }

    /// The descriptor of a directory in one layer.
    pub(super) fn slot_fd(&self, node: &Arc<Node>, slot: &Slot) -> Result<Arc<DirectoryFd>> {
        match slot.kept.get() {
            Some(fd) => Ok(fd),
            None => self.open_by_path(node, slot.layer),
        }
    }

    /// The descriptor of the topmost layer's directory.
    pub(super) fn top_fd(&self, node: &Arc<Node>) -> Result<(Arc<DirectoryFd>, u16)> {
        let slot = self.directory_of(node)?.slots().next().ok_or(Errno::STALE)?;
        Ok((self.slot_fd(node, slot)?, slot.layer))
    }

    /// Climbs to the next ancestor that is open in this layer, and comes back opening each directory on the way.
    #[cold]
    fn open_by_path(&self, node: &Arc<Node>, layer: u16) -> Result<Arc<DirectoryFd>> {
        let _tree = read(&self.tree);
        let mut way = Vec::new();
        let mut here = Arc::clone(node);
        let mut fd = loop {
            let slot = self.directory_of(&here)?.slot(layer).ok_or(Errno::STALE)?;
            if let Some(fd) = slot.kept.get() {
                break fd;
            }
            let (parent, name) = {
                let place = read(&here.place);
                let parent = place.parent.as_ref().ok_or(Errno::STALE)?;
                (Arc::clone(parent.node()), place.name.clone())
            };
            way.push((std::mem::replace(&mut here, parent), name));
        };
        while let Some((node, name)) = way.pop() {
            let slot = self.directory_of(&node)?.slot(layer).ok_or(Errno::STALE)?;
            let opened = self.descriptors.open(&*fd, &*name)?;
            let stat = fs::fstat(&opened)?;
            if (stat.st_dev, stat.st_ino) != (slot.dev, slot.ino) {
                return Err(Errno::STALE);
            }
            fd = self.descriptors.keep(&slot.kept, opened);
        }
        Ok(fd)
    }
}

/// Something that does not change, asked once.
pub(super) fn remembered(memory: &AtomicU8, ask: impl FnOnce() -> Result<bool>) -> Result<bool> {
    match memory.load(Ordering::Relaxed) {
        UNKNOWN => {
            let answer = ask()?;
            memory.store(u8::from(answer), Ordering::Relaxed);
            Ok(answer)
        }
        known => Ok(known == 1),
    }
}
