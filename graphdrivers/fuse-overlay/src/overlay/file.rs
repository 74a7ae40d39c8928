//! Open files.
//!
//! A file opened for writing is copied up first, so its handle lies in the upper directory. One opened for reading may
//! lie in a lower layer; when the file is copied up later, the handle gets a descriptor of the copy in the same instant:
//! all handles see one file (the kernel's overlayfs leaves such a handle with the old contents). This is not only
//! kinder: the kernel has one page cache for the file, and a read through an old descriptor would spoil it.
//!
//! Files can be used without a handle, too ([`Overlay::handle_of_node`]): the adapter then tells the kernel not to ask
//! for opens and releases at all, which saves programs that open many files two of three requests. The node keeps one
//! descriptor then, as long as there is room, and the file is copied up at the first write.
//!
//! Locks (fcntl, flock, OFD) need nothing here: the adapter asks for none of them, so the kernel keeps them itself, per
//! inode, which is right because a file has one node in a mount.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use rustix::fs::{self, FallocateFlags, FileType, OFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};

use super::at::At;
use super::copy_up::Purpose;
use super::descriptors::{Kept, KeptFd};
use super::layer::UPPER;
use super::lock::{lock, read, write};
use super::node::{Known, Node};
use super::types::Opened;
use super::{Overlay, Result};

/// Set in the numbers that stand for a node's file without a handle.
pub(super) const HANDLE_OF_NODE: u64 = 1 << 63;

/// An open file.
#[derive(Debug)]
pub struct FileHandle {
    fd: RwLock<Arc<OwnedFd>>,
    node: Known,
    writable: bool,
    /// Lies in the upper directory.
    upper: AtomicBool,
}

impl FileHandle {
    pub(super) fn new(node: &Arc<Node>, fd: Arc<OwnedFd>, writable: bool, upper: bool) -> Arc<Self> {
        Arc::new(Self {
            fd: RwLock::new(fd),
            node: Known::new(node),
            writable,
            upper: AtomicBool::new(upper),
        })
    }

    /// The descriptor to read and write at, for this moment: a copy-up by another handle exchanges it. Ask for it anew
    /// at each request.
    pub fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&read(&self.fd))
    }

    /// The file was copied up: reads go to the copy from now on.
    pub(super) fn exchange(&self, fd: &Arc<OwnedFd>) {
        let old = std::mem::replace(&mut *write(&self.fd), Arc::clone(fd));
        self.upper.store(true, Ordering::Release);
        drop(old);
    }

    pub(super) fn is_of(&self, node: &Arc<Node>) -> bool {
        Arc::ptr_eq(self.node.node(), node)
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    pub(super) fn is_upper(&self) -> bool {
        self.upper.load(Ordering::Acquire)
    }

    /// The layer that its descriptor lies in, as far as that matters.
    pub(super) fn layer(&self) -> u16 {
        if self.is_upper() {
            UPPER
        } else {
            read(&self.node.node().place).layer
        }
    }
}

/// Flags of open(2) that reach the file below: its access mode, and what concerns durability.
fn flags_below(flags: u32, writeback: bool, volatile: bool) -> OFlags {
    let flags = OFlags::from_bits_retain(flags);
    let mut below = flags & (OFlags::ACCMODE | OFlags::NONBLOCK);
    if writeback && below & OFlags::ACCMODE == OFlags::WRONLY {
        // The kernel reads a page before it overwrites a part of it.
        below = (below - OFlags::WRONLY) | OFlags::RDWR;
    }
    if !volatile {
        below |= flags & (OFlags::SYNC | OFlags::DSYNC);
    }
    below
}

fn is_writing(flags: u32) -> bool {
    let flags = OFlags::from_bits_retain(flags);
    flags & OFlags::ACCMODE != OFlags::RDONLY || flags.contains(OFlags::TRUNC)
}

impl Overlay {
    pub(super) fn file(&self, handle: u64) -> Result<Arc<FileHandle>> {
        self.files.get(handle).ok_or(Errno::BADF)
    }

    /// What a request is about: an open handle, or the file of a node that the kernel opened by itself.
    fn opened_file(&self, handle: u64, writing: bool) -> Result<OpenFile> {
        if handle & HANDLE_OF_NODE == 0 {
            let handle = self.file(handle)?;
            return Ok(OpenFile {
                fd: Descriptor::Own(handle.fd()),
                node: Arc::clone(handle.node.node()),
                writable: handle.is_writable(),
                upper: handle.is_upper(),
            });
        }
        let node = self.node(handle & !HANDLE_OF_NODE)?;
        if node.kind != FileType::RegularFile {
            return Err(Errno::BADF);
        }
        if writing {
            self.copy_up(&node, Purpose::Write(None))?;
        }
        let kept = node.kept.get_or_init(Arc::default);
        let fd = match kept.get() {
            Some(fd) => Descriptor::Kept(fd),
            None => self.with(&node, |at, layer| {
                self.open_kept(kept, &at, self.is_upper(layer), writing)
            })?,
        };
        let upper = self.is_upper(read(&node.place).layer);
        Ok(OpenFile {
            fd,
            node,
            writable: upper,
            upper,
        })
    }

    /// Opens a file for whatever comes; the caller holds its place.
    fn open_kept(&self, kept: &Arc<Kept>, at: &At<'_>, upper: bool, writing: bool) -> Result<Descriptor> {
        let fd = self.descriptors.with_room(|| {
            if upper {
                return at.open(OFlags::RDWR);
            }
            match at.open(OFlags::RDONLY | OFlags::NOATIME) {
                Err(Errno::PERM) => at.open(OFlags::RDONLY),
                outcome => outcome,
            }
        });
        match fd {
            Ok(fd) => Ok(Descriptor::Kept(self.descriptors.keep(kept, fd))),
            // Immutable, or being executed from outside: enough for this once.
            Err(Errno::PERM | Errno::TXTBSY | Errno::ACCESS) if !writing => {
                let fd = self.descriptors.with_room(|| at.open(OFlags::RDONLY))?;
                Ok(Descriptor::Own(Arc::new(fd)))
            }
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn do_open(&self, node: u64, flags: u32) -> Result<Opened> {
        let node = self.node(node)?;
        match node.kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            // The kernel opens devices, pipes and sockets itself.
            _ => return Err(Errno::NXIO),
        }
        let mut attributes_changed = false;
        let truncate = OFlags::from_bits_retain(flags).contains(OFlags::TRUNC);
        if is_writing(flags) {
            attributes_changed = self.copy_up(&node, Purpose::Write(truncate.then_some(0)))?;
        }
        let mut below = self.flags_below(flags);
        if truncate {
            below |= OFlags::TRUNC;
        }
        self.open_at(&node, below).map(|handle| Opened {
            handle,
            keep_cache: true,
            attributes_changed,
        })
    }

    pub(super) fn flags_below(&self, flags: u32) -> OFlags {
        flags_below(flags, self.config.writeback, self.config.volatile)
    }

    /// Opens the file where it is, and notes the handle before a copy-up can come in between.
    fn open_at(&self, node: &Arc<Node>, flags: OFlags) -> Result<u64> {
        self.with(node, |at, layer| {
            let upper = self.is_upper(layer);
            // Reading must not write to a layer that others share.
            let wanted = if upper { flags } else { flags | OFlags::NOATIME };
            let fd = self.descriptors.with_room(|| match at.open(wanted) {
                Err(Errno::PERM) if !upper => at.open(flags),
                outcome => outcome,
            })?;
            let writable = flags & OFlags::ACCMODE != OFlags::RDONLY;
            Ok(self.note(FileHandle::new(node, Arc::new(fd), writable, upper)))
        })
    }

    /// Gives a handle its number.
    pub(super) fn note(&self, handle: Arc<FileHandle>) -> u64 {
        lock(&handle.node.node().handles).push(Arc::downgrade(&handle));
        self.files.insert(handle)
    }

    pub(super) fn do_release(&self, handle: u64) {
        if let Some(handle) = self.files.remove(handle) {
            lock(&handle.node.node().handles)
                .retain(|weak| !std::ptr::eq(weak.as_ptr(), Arc::as_ptr(&handle)));
        }
    }

    pub(super) fn do_read(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let file = self.opened_file(handle, false)?;
        // A file gives all it has: less than asked for is its end.
        retry_on_intr(|| rustix::io::pread(&file.fd, &mut *buffer, offset))
    }

    pub(super) fn do_write(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        kill_privileges: bool,
    ) -> Result<usize> {
        let file = self.opened_file(handle, true)?;
        if kill_privileges {
            self.drop_unasked(&file)?;
        }
        let mut written = 0;
        while written < data.len() {
            match retry_on_intr(|| rustix::io::pwrite(&file.fd, &data[written..], offset + written as u64)) {
                Ok(0) => break,
                Ok(n) => written += n,
                // What was written counts; the error comes again with the rest.
                Err(_) if written > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(written)
    }

    pub(super) fn do_kill_privileges(&self, handle: u64) -> Result<()> {
        let file = self.opened_file(handle, true)?;
        self.drop_unasked(&file)
    }

    /// Drops privileges by a request whose answer does not tell the new mode.
    fn drop_unasked(&self, file: &OpenFile) -> Result<()> {
        if self.drop_privileges(&file.node, &At::Fd(file.fd.as_fd()))?
            && !file.node.lost_privileges.swap(true, Ordering::AcqRel)
        {
            self.lost_privileges.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    pub(super) fn was_privileged(&self, node: u64) -> bool {
        if self.lost_privileges.load(Ordering::Acquire) == 0 {
            return false;
        }
        let lost = |node: Arc<Node>| node.lost_privileges.swap(false, Ordering::AcqRel);
        let was = self.table.get(node).is_some_and(lost);
        if was {
            self.lost_privileges.fetch_sub(1, Ordering::AcqRel);
        }
        was
    }

    pub(super) fn do_fsync(&self, handle: u64, data_only: bool) -> Result<()> {
        let file = self.opened_file(handle, false)?;
        if self.config.volatile || !file.upper {
            return Ok(());
        }
        if data_only {
            fs::fdatasync(&file.fd)
        } else {
            fs::fsync(&file.fd)
        }
    }

    pub(super) fn do_fallocate(&self, handle: u64, offset: u64, length: u64, mode: u32) -> Result<()> {
        let file = self.opened_file(handle, true)?;
        if !file.writable {
            return Err(Errno::BADF);
        }
        let mode = FallocateFlags::from_bits_retain(mode);
        // The kernel leaves this to us and, other than with writes, does not say for whom it need not be.
        self.drop_unasked(&file)?;
        retry_on_intr(|| fs::fallocate(&file.fd, mode, offset, length))
    }

    pub(super) fn do_lseek(&self, handle: u64, offset: u64, whence: u32) -> Result<u64> {
        const DATA: u32 = 3;
        const HOLE: u32 = 4;
        let from = match whence {
            DATA => SeekFrom::Data(offset),
            HOLE => SeekFrom::Hole(offset),
            // The kernel does the others itself.
            _ => return Err(Errno::INVAL),
        };
        fs::seek(&self.opened_file(handle, false)?.fd, from)
    }

    pub(super) fn do_copy_file_range(
        &self,
        from: u64,
        mut at: u64,
        to: u64,
        mut to_at: u64,
        length: u64,
    ) -> Result<u64> {
        // First the one that may be copied up: it may be the other one, too.
        let target = self.opened_file(to, true)?;
        let source = self.opened_file(from, false)?;
        if !target.writable {
            return Err(Errno::BADF);
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        self.drop_unasked(&target)?;
        let copied = retry_on_intr(|| {
            fs::copy_file_range(&source.fd, Some(&mut at), &target.fd, Some(&mut to_at), length)
        })?;
        Ok(copied as u64)
    }
}

/// A file as one request uses it.
struct OpenFile {
    fd: Descriptor,
    node: Arc<Node>,
    writable: bool,
    upper: bool,
}

/// A descriptor that lives at least as long as the request.
enum Descriptor {
    Own(Arc<OwnedFd>),
    Kept(Arc<KeptFd>),
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => fd.as_fd(),
            Self::Kept(fd) => fd.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_concerns_the_file_below_is_passed_on() {
        let flags =
            OFlags::WRONLY | OFlags::APPEND | OFlags::DIRECT | OFlags::CREATE | OFlags::EXCL | OFlags::SYNC;
        assert_eq!(
            flags_below(flags.bits(), false, false),
            OFlags::WRONLY | OFlags::SYNC
        );
        assert_eq!(flags_below(flags.bits(), true, true), OFlags::RDWR);
        assert_eq!(flags_below(0, true, false), OFlags::RDONLY);
        assert!(is_writing(flags.bits()) && is_writing(OFlags::TRUNC.bits()) && !is_writing(0));
    }
}
