//! What names a directory has: its layers' names, merged, without whiteouts and what they hide.
//!
//! A listing is made when a handle is first read (and when it is read again from the start after a change): entries lie
//! in one vector, their names in one string of bytes.
//!
//! An offset belongs to the name, not to the listing: it is a hash of the name, and listings are in its order (as
//! ext4's are). The kernel keeps listings too: it puts one together from pieces that several readers asked for, and takes
//! it for true as long as it knows of no change since the first. So each piece is what the directory has at that moment,
//! whatever the handle's listing was made of: one that lacks a name is made anew, and a removed name is left out.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use hashbrown::HashTable;
use rustix::fs::{FileType, RawDir, RawDirEntry};

use super::descriptors::{Descriptors, DirectoryFd};
use super::layer::{DOT_WHITEOUT, is_dot_whiteout, is_xattr_whiteout, kind_of, stat_at};
use super::node::{Node, Slot};
use super::resolve::remembered;
use super::{Overlay, Result};

/// As the C library reads directories.
const BUFFER: usize = 32 * 1024;

/// One name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    start: u32,
    length: u16,
    /// Topmost layer that has it.
    pub(super) layer: u16,
    pub(super) kind: FileType,
    /// A whiteout: hides names below, is not shown.
    hidden: bool,
    /// Other layers below may have it too.
    pub(super) several: bool,
    pub(super) ino: u64,
    /// Where a reader goes on behind this name. More than [`OFFSETS`] less one, and less than `i64::MAX`.
    pub(super) offset: u64,
}

/// The first offset of a name; those before are for `.` and `..`.
pub(super) const OFFSETS: u64 = 3;

#[derive(Debug)]
pub(super) struct Listing {
    pub(super) version: u64,
    pub(super) additions: u64,
    bytes: Vec<u8>,
    pub(super) names: Vec<Name>,
}

impl Listing {
    /// The names behind an offset.
    pub(super) fn behind(&self, offset: u64) -> &[Name] {
        let first = self.names.partition_point(|name| name.offset <= offset);
        self.names.get(first..).unwrap_or_default()
    }

    pub(super) fn name(&self, name: &Name) -> &OsStr {
        let start = name.start as usize;
        OsStr::from_bytes(
            self.bytes
                .get(start..start + usize::from(name.length))
                .unwrap_or_default(),
        )
    }
}

/// Reads a directory through a descriptor of its own.
pub(super) fn raw(
    directory: &DirectoryFd,
    descriptors: &Descriptors,
    mut each: impl FnMut(&RawDirEntry<'_>),
) -> Result<()> {
    let fd = descriptors.open_quietly(directory)?;
    entries(fd, &mut each)
}

fn entries(fd: impl AsFd, each: &mut dyn FnMut(&RawDirEntry<'_>)) -> Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER);
    let buffer: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
    let mut entries = RawDir::new(fd, buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            each(&entry);
        }
    }
    Ok(())
}

/// The names in a freshly opened directory.
pub(super) fn names(fd: impl AsFd) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    entries(fd, &mut |entry| {
        names.push(OsString::from_vec(entry.file_name().to_bytes().to_vec()));
    })?;
    Ok(names)
}

impl Overlay {
    /// Lists a directory. The caller holds its `names` lock.
    pub(super) fn list(&self, node: &Arc<Node>) -> Result<Listing> {
        let directory = self.directory_of(node)?;
        let mut listing = Listing {
            version: directory.version(),
            additions: directory.additions(),
            bytes: Vec::new(),
            names: Vec::new(),
        };
        if node.is_removed() {
            return Ok(listing);
        }
        let merged = directory.is_merged();
        let mut index = HashTable::new();
        for slot in directory.slots() {
            let fd = self.slot_fd(node, slot)?;
            self.add_layer(&mut listing, slot, &fd, merged.then_some(&mut index))?;
        }
        drop(index);
        listing.names.retain(|name| !name.hidden);
        listing.names.sort_unstable_by_key(|name| name.offset);
        // Equal hashes are as good as never; then the second one goes behind the first.
        let mut last = 0;
        for name in &mut listing.names {
            name.offset = name.offset.max(last + 1);
            last = name.offset;
        }
        Ok(listing)
    }

    fn add_layer(
        &self,
        listing: &mut Listing,
        slot: &Slot,
        fd: &DirectoryFd,
        mut index: Option<&mut HashTable<u32>>,
    ) -> Result<()> {
        // A few entries need a closer look, which must wait until the directory has been read.
        let mut unclear = Vec::new();
        let xattrs = self.has_xattr_whiteouts(slot, fd)?;
        let upper = self.is_upper(slot.layer);
        let mut any_dots = false;
        raw(fd, &self.descriptors, |entry| {
            let bytes = entry.file_name().to_bytes();
            let kind = entry.file_type();
            let own = kind == FileType::CharacterDevice
                && upper
                && self
                    .work
                    .as_ref()
                    .is_some_and(|work| work.is_own_whiteout(entry.ino()));
            let dot = bytes.starts_with(DOT_WHITEOUT);
            any_dots |= dot;
            let look = !own
                && (matches!(kind, FileType::CharacterDevice | FileType::Unknown)
                    || (xattrs && kind == FileType::RegularFile)
                    || dot);
            if look {
                unclear.push((bytes.to_vec(), kind, entry.ino()));
            } else {
                let ino = self.listed_ino(slot, kind, entry.ino());
                self.add(listing, bytes, kind, ino, slot.layer, own, index.as_deref_mut());
            }
        })?;
        let dots = remembered(&slot.dot_whiteouts, || Ok(any_dots))?;
        for (bytes, kind, ino) in unclear {
            let name = OsStr::from_bytes(&bytes);
            let Some(stat) = stat_at(fd, name)? else { continue };
            let mut hidden = super::layer::is_whiteout(&stat)
                || (xattrs && is_xattr_whiteout(fd, name, &stat, &self.marks));
            if let Some(target) = bytes.strip_prefix(DOT_WHITEOUT)
                && dots
                && is_dot_whiteout(fd, name, &stat, upper, &self.marks)
            {
                hidden = true;
                self.add(listing, target, kind, ino, slot.layer, true, index.as_deref_mut());
            }
            let kind = kind_of(&stat);
            let ino = self.listed_ino(slot, kind, ino);
            self.add(
                listing,
                &bytes,
                kind,
                ino,
                slot.layer,
                hidden,
                index.as_deref_mut(),
            );
        }
        Ok(())
    }

    fn listed_ino(&self, slot: &Slot, kind: FileType, ino: u64) -> u64 {
        if kind != FileType::Directory
            && self.is_upper(slot.layer)
            && let Some(shown) = self.origins.get(ino)
        {
            return shown;
        }
        self.devices.ino(slot.dev, ino)
    }

    #[expect(clippy::too_many_arguments, reason = "one entry, as it is on disk")]
    fn add(
        &self,
        listing: &mut Listing,
        bytes: &[u8],
        kind: FileType,
        ino: u64,
        layer: u16,
        hidden: bool,
        index: Option<&mut HashTable<u32>>,
    ) {
        let hash = self.table.hash(bytes);
        if let Some(index) = index {
            let at = |i: &u32| {
                let name = &listing.names[*i as usize];
                &listing.bytes[name.start as usize..name.start as usize + usize::from(name.length)]
            };
            if let Some(&there) = index.find(hash, |i| at(i) == bytes) {
                let there = &mut listing.names[there as usize];
                if kind == FileType::Directory
                    && there.kind == FileType::Directory
                    && !there.hidden
                    && layer != there.layer
                {
                    // The topmost lower layer's number is shown for a merged directory.
                    if !there.several && self.is_upper(there.layer) {
                        there.ino = ino;
                    }
                    there.several = true;
                }
                // A whiteout `.wh.NAME` beside NAME in the same layer hides only what is below.
                if there.layer == layer && there.hidden && !hidden {
                    *there = Name {
                        layer,
                        kind,
                        hidden,
                        ino,
                        ..*there
                    };
                }
                return;
            }
            let new = u32::try_from(listing.names.len()).unwrap_or(u32::MAX);
            index.insert_unique(hash, new, |i| self.table.hash(at(i)));
        }
        listing.names.push(Name {
            start: u32::try_from(listing.bytes.len()).unwrap_or(u32::MAX),
            length: u16::try_from(bytes.len()).unwrap_or(u16::MAX),
            layer,
            kind,
            hidden,
            several: false,
            ino,
            // Two bits less: the kernel's offsets are signed.
            offset: (hash >> 2) + OFFSETS,
        });
        listing.bytes.extend_from_slice(bytes);
    }

    /// How many subdirectories a merged directory shows. The caller holds its `names` lock.
    pub(super) fn count_subdirectories(&self, node: &Arc<Node>) -> Result<u32> {
        let listing = self.list(node)?;
        let count = listing
            .names
            .iter()
            .filter(|n| n.kind == FileType::Directory)
            .count();
        Ok(u32::try_from(count).unwrap_or(u32::MAX - 3))
    }

    /// Whether a directory shows no names. The caller holds its `names` lock.
    pub(super) fn is_empty(&self, node: &Arc<Node>) -> Result<bool> {
        Ok(self.list(node)?.names.is_empty())
    }
}
