//! Copy-up: a file of a lower layer becomes one of the upper directory, before it is changed.
//!
//! ```text
//!   lower/a/f ──read──▶ workdir/work/<no name> ──link──▶ upper/a/f       upper/a first, the same way
//!                        owner, mode, attributes, contents, times
//! ```
//!
//! The copy is complete before it has a name, so that a crash at any instant leaves the old file or the new one; what
//! was under way has no name or is swept from the work directory. While contents are copied only the node's own
//! `copying` is held: other requests, those to this very file included, go on; the last step takes the parent's `names`.
//!
//! As in the kernel (without its index) a file of a lower layer with several names is copied up under one of them; the
//! others go on showing the lower file.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{self, AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::at::At;
use super::attr::{first_mode, times_of};
use super::descriptors::DirectoryFd;
use super::layer::{UPPER, kind_of};
use super::lock::{lock, read, write};
use super::node::{Node, Place, Slot};
use super::work::Work;
use super::xattr::{self, OverrideStat};
use super::{Overlay, Result, proc};

/// What a file is copied up for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// To be written, by a program that makes it durable if it cares; only the first bytes, if a number is given.
    Write(Option<u64>),
    /// For its attributes or its name: nobody has a reason to sync contents that he did not change.
    Keep,
}

/// A copy on its way.
enum Staged {
    /// A file without a name.
    Open(OwnedFd),
    /// Something in the work directory.
    Named(OsString, Option<OwnedFd>),
}

impl Overlay {
    /// Makes sure that `node` lies in the upper directory. Whether its inode number or number of links became another.
    pub(super) fn copy_up(&self, node: &Arc<Node>, purpose: Purpose) -> Result<bool> {
        let work = self.work.as_ref().ok_or(Errno::ROFS)?;
        if node.is_directory() {
            return self.upper_fd(node).map(|_| false);
        }
        if read(&node.place).layer == UPPER {
            return Ok(false);
        }
        let _copying = lock(&node.copying);
        // What lies in a lower layer does not move: the place needs no lock while it is read.
        let (parent, name, layer) = {
            let place = read(&node.place);
            if place.layer == UPPER {
                return Ok(false);
            }
            let parent = place.parent.as_ref().ok_or(Errno::STALE)?;
            (Arc::clone(parent.node()), place.name.clone(), place.layer)
        };
        let upper = match self.upper_fd(&parent) {
            Err(Errno::NOENT) if node.is_removed() => None,
            outcome => Some(outcome?),
        };
        let slot = self.directory_of(&parent)?.slot(layer).ok_or(Errno::STALE)?;
        let below = self.slot_fd(&parent, slot)?;
        let source = At::Name(below.as_fd(), &name);
        let stat = source.stat()?;
        self.refuse_unmapped(&source, layer, &stat)?;
        let staged = match kind_of(&stat) {
            FileType::RegularFile => {
                let staged = self.stage_regular(work, &source, layer, &stat, purpose)?;
                self.mark_plain(&staged.at()?, &name, FileType::RegularFile)
                    .inspect_err(|_| staged.discard(work))?;
                staged
            }
            _ => self.stage_special(work, &source, layer, &stat)?,
        };
        self.finish(work, node, &parent, &name, upper.as_deref(), &stat, staged)
    }

    /// Gives the copy its name.
    #[expect(clippy::too_many_arguments, reason = "the last step of one operation")]
    fn finish(
        &self,
        work: &Work,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &OsStr,
        upper: Option<&DirectoryFd>,
        old: &Stat,
        staged: Staged,
    ) -> Result<bool> {
        let directory = self.directory_of(parent)?;
        let _names = write(&directory.names);
        let mut place = write(&node.place);
        let upper = match upper {
            Some(upper) if !node.is_removed() => upper,
            _ => return self.finish_nameless(work, node, &mut place, staged),
        };
        let readers = self.readers(node, &staged)?;
        let new = staged.stat(work)?;
        let before = fs::fstat(upper)?;
        if let Err(errno) = staged.link(work, upper, name) {
            staged.discard(work);
            return Err(errno);
        }
        // For users nothing has happened in this directory.
        let _ = fs::utimensat(upper, c".", &times_of(&before), AtFlags::empty());
        place.layer = UPPER;
        let several = old.st_nlink > 1;
        if several {
            node.shown_ino
                .store(self.devices.ino(new.st_dev, new.st_ino), Ordering::Relaxed);
        } else {
            self.origins.set(new.st_ino, node.ino());
        }
        let key = self.table.key(UPPER, new.st_dev, new.st_ino);
        self.table.rekey(node, Some(key));
        directory.changed();
        exchange(node, readers);
        Ok(several)
    }

    /// The file lost its name while it was copied (or before): the copy stays without one.
    fn finish_nameless(
        &self,
        work: &Work,
        node: &Arc<Node>,
        place: &mut Place,
        staged: Staged,
    ) -> Result<bool> {
        let readers = self.readers(node, &staged)?;
        let fd = match staged {
            Staged::Open(fd) => fd,
            Staged::Named(name, Some(fd)) => {
                work.discard(&name);
                fd
            }
            Staged::Named(name, None) => {
                work.discard(&name);
                return Err(Errno::NOENT);
            }
        };
        *place = Place::nameless(Some(Arc::new(fd)));
        self.table.rekey(node, None);
        exchange(node, readers);
        Ok(false)
    }

    /// A descriptor of the copy for the handles that read the old file; opened before anything is visible, since it
    /// may fail.
    fn readers(&self, node: &Arc<Node>, staged: &Staged) -> Result<Option<Arc<OwnedFd>>> {
        match staged {
            Staged::Open(fd) | Staged::Named(_, Some(fd)) if node.some_handle().is_some() => {
                let open = || At::Fd(fd.as_fd()).open(OFlags::RDONLY);
                self.descriptors.with_room(open).map(|fd| Some(Arc::new(fd)))
            }
            _ => Ok(None),
        }
    }

    fn stage_regular(
        &self,
        work: &Work,
        source: &At<'_>,
        layer: u16,
        stat: &Stat,
        purpose: Purpose,
    ) -> Result<Staged> {
        let from = self
            .descriptors
            .with_room(|| match source.open(OFlags::RDONLY | OFlags::NOATIME) {
                Err(Errno::PERM) => source.open(OFlags::RDONLY),
                outcome => outcome,
            })?;
        let staged = self.nameless_file(work, first_mode(stat.st_mode))?;
        let outcome = self
            .copy_contents(layer, &from, staged.fd()?, stat, purpose)
            .and_then(|()| self.copy_metadata(&At::Fd(from.as_fd()), &staged.at()?, layer, stat));
        if let Err(errno) = outcome {
            staged.discard(work);
            return Err(errno);
        }
        Ok(staged)
    }

    /// A regular file that nobody can see yet.
    fn nameless_file(&self, work: &Work, mode: Mode) -> Result<Staged> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let nameless = || fs::openat(&work.fd, c".", flags | OFlags::TMPFILE, mode);
        match self.descriptors.with_room(nameless) {
            Ok(fd) => return Ok(Staged::Open(fd)),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOSYS | Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
        let name = work.name();
        let named = || fs::openat(&work.fd, &*name, flags | OFlags::CREATE | OFlags::EXCL, mode);
        let fd = self.descriptors.with_room(named)?;
        Ok(Staged::Named(name, Some(fd)))
    }

    fn copy_contents(
        &self,
        layer: u16,
        from: &OwnedFd,
        to: &OwnedFd,
        stat: &Stat,
        purpose: Purpose,
    ) -> Result<()> {
        let whole = u64::try_from(stat.st_size).unwrap_or_default();
        let size = match purpose {
            Purpose::Write(Some(size)) => size.min(whole),
            Purpose::Write(None) | Purpose::Keep => whole,
        };
        if size == 0 {
            return Ok(());
        }
        let layer = &self.layers[usize::from(layer)];
        if size == whole && layer.shares() {
            if skiff_sys::contents::share(from, to)? {
                return Ok(());
            }
            layer.shares.store(false, Ordering::Relaxed);
        }
        let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
        skiff_sys::contents::copy(from, to, size, blocks)?;
        if matches!(purpose, Purpose::Keep) && !self.config.volatile {
            // A name that is durable before the contents would leave an empty file after a power failure. Waiting for the
            // disk is 3 ms a file, this a fifth.
            skiff_sys::contents::start_writing(to);
        }
        Ok(())
    }

    /// A file whose owner the copy could not have.
    fn refuse_unmapped(&self, source: &At<'_>, layer: u16, stat: &Stat) -> Result<()> {
        match &self.unmapped {
            // Where owners are kept in attributes, the inode's does not matter.
            Some(unmapped) if self.override_in(layer).is_none() => unmapped.refuse(
                source,
                stat,
                self.config.squash_to_uid.is_none(),
                self.config.squash_to_gid.is_none(),
            ),
            _ => Ok(()),
        }
    }

    /// Owner, mode, attributes and times, in the order in which none undoes another.
    fn copy_metadata(&self, source: &At<'_>, target: &At<'_>, layer: u16, stat: &Stat) -> Result<()> {
        let mode = self.mode_to_keep(source, stat)?;
        match self.override_in(UPPER) {
            Some(name) => {
                let stored = match self.override_in(layer) {
                    Some(name) => OverrideStat::read(source, name)?,
                    None => None,
                };
                xattr::copy(self, source, target)?;
                stored
                    .unwrap_or(OverrideStat {
                        mode,
                        ..OverrideStat::of(stat)
                    })
                    .write(target, name, kind_of(stat))?;
            }
            None => {
                let uid = self.config.squash_to_uid.map_or(stat.st_uid, |_| self.own.0);
                let gid = self.config.squash_to_gid.map_or(stat.st_gid, |_| self.own.1);
                if (uid, gid) != self.own {
                    target.chown(Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
                }
                let kind = kind_of(stat);
                let other = mode != first_mode(stat.st_mode).as_raw_mode();
                if kind == FileType::Directory || (kind != FileType::Symlink && other) {
                    target.chmod(mode)?;
                }
                xattr::copy(self, source, target)?;
            }
        }
        target.set_times(&times_of(stat))
    }

    /// The mode of the copy. With an access list the group's bits are those of its mask; without it they are the
    /// group's, which must not get what only others on the list have.
    fn mode_to_keep(&self, source: &At<'_>, stat: &Stat) -> Result<u32> {
        let mode = stat.st_mode & 0o7777;
        if !self.config.noacl || kind_of(stat) == FileType::Symlink {
            return Ok(mode);
        }
        Ok(match xattr::group_of_acl(source)? {
            Some(group) => mode & (!0o070 | group << 3),
            None => mode,
        })
    }

    fn stage_special(&self, work: &Work, source: &At<'_>, layer: u16, stat: &Stat) -> Result<Staged> {
        let name = work.name();
        if kind_of(stat) == FileType::Symlink {
            fs::symlinkat(source.read_link()?, &work.fd, &*name)?;
        } else {
            fs::mknodat(
                &work.fd,
                &*name,
                kind_of(stat),
                first_mode(stat.st_mode),
                stat.st_rdev,
            )?;
        }
        let target = At::Name(work.fd.as_fd(), &name);
        let outcome = self.copy_metadata(source, &target, layer, stat);
        if let Err(errno) = outcome {
            work.discard(&name);
            return Err(errno);
        }
        Ok(Staged::Named(name, None))
    }

    /// The directory in the upper layer; it and its ancestors are made there if need be.
    pub(super) fn upper_fd(&self, node: &Arc<Node>) -> Result<Arc<DirectoryFd>> {
        let work = self.work.as_ref().ok_or(Errno::ROFS)?;
        let directory = self.directory_of(node)?;
        if let Some(slot) = directory.upper.get() {
            return self.slot_fd(node, slot);
        }
        let mut missing = vec![Arc::clone(node)];
        let mut here = Arc::clone(node);
        loop {
            let parent = here.parent().ok_or(Errno::STALE)?;
            if self.directory_of(&parent)?.upper.get().is_some() {
                break;
            }
            missing.push(Arc::clone(&parent));
            here = parent;
        }
        while let Some(node) = missing.pop() {
            self.copy_up_directory(work, &node)?;
        }
        self.slot_fd(node, directory.upper.get().ok_or(Errno::STALE)?)
    }

    fn copy_up_directory(&self, work: &Work, node: &Arc<Node>) -> Result<()> {
        let directory = self.directory_of(node)?;
        let _copying = lock(&node.copying);
        if directory.upper.get().is_some() {
            return Ok(());
        }
        let (parent, name) = {
            let place = read(&node.place);
            let parent = place.parent.as_ref().ok_or(Errno::STALE)?;
            (Arc::clone(parent.node()), place.name.clone())
        };
        let (below, layer) = self.top_fd(node)?;
        let source = At::Fd(below.as_fd());
        let stat = source.stat()?;
        self.refuse_unmapped(&source, layer, &stat)?;
        let above = self.upper_fd(&parent)?;
        let staged = work.name();
        fs::mkdirat(&work.fd, &*staged, Mode::RWXU)?;
        let made = self.descriptors.open(&work.fd, &*staged).and_then(|fd| {
            self.copy_metadata(&source, &At::Fd(fd.as_fd()), layer, &stat)?;
            Ok((fs::fstat(&fd)?, fd))
        });
        let (new, fd) = made.inspect_err(|_| work.discard(&staged))?;

        let parent_directory = self.directory_of(&parent)?;
        let _names = write(&parent_directory.names);
        let outcome = if node.is_removed() {
            Err(Errno::NOENT)
        } else {
            let before = fs::fstat(&*above)?;
            fs::renameat(&work.fd, &*staged, &*above, &*name).map(|()| {
                let _ = fs::utimensat(&*above, c".", &times_of(&before), AtFlags::empty());
            })
        };
        outcome.inspect_err(|_| work.discard(&staged))?;
        if directory.lower.len() == 1 && stat.st_nlink >= 2 {
            let count = u32::try_from(stat.st_nlink - 2).unwrap_or_default();
            directory.subdirectories.store(count, Ordering::Relaxed);
        }
        let slot = directory.upper.get_or_init(|| Slot::of_ours(&new));
        self.descriptors.keep(&slot.kept, fd);
        self.table
            .rekey(node, Some(self.table.key(UPPER, new.st_dev, new.st_ino)));
        parent_directory.changed();
        directory.changed();
        Ok(())
    }
}

impl Staged {
    fn fd(&self) -> Result<&OwnedFd> {
        match self {
            Self::Open(fd) | Self::Named(_, Some(fd)) => Ok(fd),
            Self::Named(_, None) => Err(Errno::BADF),
        }
    }

    fn at(&self) -> Result<At<'_>> {
        self.fd().map(|fd| At::Fd(fd.as_fd()))
    }

    fn stat(&self, work: &Work) -> Result<Stat> {
        match self {
            Self::Open(fd) | Self::Named(_, Some(fd)) => fs::fstat(fd),
            Self::Named(name, None) => At::Name(work.fd.as_fd(), name).stat(),
        }
    }

    fn link(&self, work: &Work, directory: &DirectoryFd, name: &OsStr) -> Result<()> {
        match self {
            Self::Open(fd) => fs::linkat(
                CWD,
                proc::itself(fd.as_fd()),
                directory,
                name,
                AtFlags::SYMLINK_FOLLOW,
            ),
            Self::Named(staged, _) => fs::renameat(&work.fd, &**staged, directory, name),
        }
    }

    fn discard(&self, work: &Work) {
        if let Self::Named(name, _) = self {
            work.discard(name);
        }
    }
}

/// Lets the handles that were open before read the copy.
fn exchange(node: &Arc<Node>, fd: Option<Arc<OwnedFd>>) {
    if let Some(kept) = node.kept.get() {
        kept.clear();
    }
    let Some(fd) = fd else { return };
    for handle in lock(&node.handles).iter().filter_map(std::sync::Weak::upgrade) {
        if !handle.is_upper() {
            handle.exchange(&fd);
        }
    }
}
