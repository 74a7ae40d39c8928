//! New names: files, directories, links.
//!
//! A new file is made in its place in the upper directory, which is one system call, and given to the caller; nobody
//! else sees it before the request is answered, because the kernel holds the directory. Only where a whiteout is in
//! the way is it made in the work directory and takes the whiteout's place in one step.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use rustix::fs::{self, AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use super::at::At;
use super::attr::large_device;
use super::copy_up::Purpose;
use super::descriptors::DirectoryFd;
use super::file::FileHandle;
use super::layer::{self, UPPER, is_whiteout, stat_at};
use super::lock::write;
use super::node::{Directory, Node, Place, Slot};
use super::table::Table;
use super::types::{Caller, Entry, Opened};
use super::work::Work;
use super::xattr::{ACL_ACCESS, ACL_DEFAULT, OverrideStat, grow};
use super::{Overlay, Result, proc};

const SETGID: u32 = 0o2000;

/// Where a new file goes.
struct Target<'a> {
    work: &'a Work,
    /// The directory in the upper layer.
    upper: &'a DirectoryFd,
    name: &'a OsStr,
    /// Lower layers have something of this name that must not come back.
    covers: bool,
    /// There is a whiteout in the way.
    whiteout: bool,
}

/// Whose a new file will be.
struct Ownership {
    uid: u32,
    gid: u32,
    /// What the file system gives it anyway, in the place where it is made.
    given: (u32, u32),
    mode: u32,
}

impl Overlay {
    /// Finds out where the new file `name` goes and makes it. # Errors: `EXIST` if there is one.
    fn make<T>(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        make: impl Fn(&Target<'_>) -> Result<T>,
    ) -> Result<T> {
        let work = self.work.as_ref().ok_or(Errno::ROFS)?;
        let upper = self.upper_fd(parent)?;
        let directory = self.directory_of(parent)?;
        let _names = write(&directory.names);
        if parent.is_removed() {
            return Err(Errno::NOENT);
        }
        let mut target = Target {
            work,
            upper: &upper,
            name,
            covers: !directory.is_pure_upper() && self.resolve(parent, name, true)?.is_some(),
            whiteout: false,
        };
        if target.covers {
            target.whiteout = match stat_at(&*upper, name)? {
                Some(stat) => is_whiteout(&stat),
                None if layer::has_dot_whiteout(&*upper, name, true, &self.marks)? => false,
                None => return Err(Errno::EXIST),
            };
        }
        if !target.whiteout {
            match make(&target) {
                Err(Errno::EXIST) if stat_at(&*upper, name)?.is_some_and(|stat| is_whiteout(&stat)) => {
                    target.whiteout = true;
                }
                outcome => return outcome.inspect(|_| directory.gained()),
            }
        }
        make(&target).inspect(|_| directory.gained())
    }

    /// A container may give a file a name that would make it a whiteout, with a mode to match. Where there are no
    /// attributes, and for special files, that stays so.
    pub(super) fn mark_plain(&self, at: &At<'_>, name: &OsStr, kind: FileType) -> Result<()> {
        if kind != FileType::RegularFile || !name.as_bytes().starts_with(layer::DOT_WHITEOUT) {
            return Ok(());
        }
        match at.set_xattr(self.marks.plain.as_bytes(), b"y", XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Ok(()),
            outcome => outcome,
        }
    }

    fn ownership(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        mode: u32,
        target: Option<&Target<'_>>,
    ) -> Result<Ownership> {
        let directory = self.directory_of(parent)?;
        let inherits = directory.mode.load(Ordering::Relaxed) & SETGID != 0;
        let parent_gid = directory.gid.load(Ordering::Relaxed);
        let in_place = target.is_none_or(|target| !target.whiteout);
        let masked = caller.umask != 0 && !self.has_default_acl(parent)?;
        Ok(Ownership {
            uid: self.stored_uid(Some(caller.uid))?.unwrap_or(self.own.0),
            gid: match self.stored_gid(Some(caller.gid))? {
                _ if inherits => parent_gid,
                Some(gid) => gid,
                None => self.own.1,
            },
            given: (
                self.own.0,
                if inherits && in_place {
                    parent_gid
                } else {
                    self.own.1
                },
            ),
            mode: mode & 0o7777 & if masked { !caller.umask } else { !0 },
        })
    }

    /// Gives a file that has just been made its owner, and the mode bits that a change of owner clears.
    fn give(&self, at: &At<'_>, kind: FileType, owner: &Ownership) -> Result<()> {
        if let Some(name) = self.override_in(UPPER) {
            let stored = OverrideStat {
                uid: owner.uid,
                gid: owner.gid,
                mode: owner.mode,
            };
            return stored.write(at, name, kind);
        }
        if owner.must_be_given() {
            at.chown(Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
            if owner.mode & 0o7000 != 0 && !matches!(kind, FileType::Symlink | FileType::Directory) {
                at.chmod(owner.mode)?;
            }
        }
        Ok(())
    }

    /// The mode to make a file with.
    fn first_mode(&self, owner: &Ownership) -> Mode {
        if self.override_in(UPPER).is_some() {
            // For us to work with; what others see is in the attribute.
            return Mode::from_raw_mode(owner.mode & 0o777 | 0o700);
        }
        let special = if owner.must_be_given() { 0 } else { 0o7000 };
        Mode::from_raw_mode(owner.mode & (0o777 | special))
    }

    /// A node for a file that has just been made in the upper directory.
    fn fresh(&self, parent: &Arc<Node>, name: &OsStr, stat: &Stat) -> Arc<Node> {
        if self.origins.get(stat.st_ino).is_some() {
            self.origins.remove(stat.st_ino);
        }
        let kind = layer::kind_of(stat);
        let key = self.table.key(UPPER, stat.st_dev, stat.st_ino);
        let make = |id: (u64, &Weak<Table>)| {
            let directory = (kind == FileType::Directory).then(|| {
                let directory = Directory::new(Some(Slot::of_ours(stat)), Vec::new(), stat);
                if let Some(parent) = &parent.directory {
                    let inherited = parent.default_acl.load(Ordering::Relaxed);
                    directory.default_acl.store(inherited, Ordering::Relaxed);
                }
                directory
            });
            let ino = self.devices.ino(stat.st_dev, stat.st_ino);
            Node::new(id, kind, ino, Place::new(parent, name, UPPER), directory)
        };
        let (node, _) = self.table.acquire(key, |_| false, make);
        node.no_capability.store(true, Ordering::Relaxed);
        node
    }

    fn fresh_entry(&self, parent: &Arc<Node>, target: &Target<'_>) -> Result<(Arc<Node>, Entry)> {
        let at = At::Name(target.upper.as_fd(), target.name);
        let stat = at.stat()?;
        let node = self.fresh(parent, target.name, &stat);
        let entry = self.entry(&node, &stat, UPPER, &at)?;
        Ok((node, entry))
    }

    pub(super) fn do_create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        let parent = self.directory_node(parent)?;
        match self.new_file(caller, &parent, name, mode, flags) {
            Ok((node, entry, fd)) => Ok((entry, self.opened(&node, Arc::new(fd), flags))),
            Err(Errno::EXIST) if !is_exclusive(flags) => self.open_existing(&parent, name, flags),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn do_create_handleless(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: u32,
    ) -> Result<Entry> {
        let parent = self.directory_node(parent)?;
        // For whatever will be asked of the node.
        let wide = (OFlags::from_bits_retain(flags) - OFlags::ACCMODE) | OFlags::RDWR;
        match self.new_file(caller, &parent, name, mode, wide.bits()) {
            Ok((node, entry, fd)) => {
                self.descriptors.keep(node.kept.get_or_init(Arc::default), fd);
                Ok(entry)
            }
            Err(Errno::EXIST) if !is_exclusive(flags) => {
                let (entry, opened) = self.open_existing(&parent, name, flags)?;
                self.do_release(opened.handle);
                Ok(entry)
            }
            Err(errno) => Err(errno),
        }
    }

    fn new_file(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        name: &OsStr,
        mode: u32,
        flags: u32,
    ) -> Result<(Arc<Node>, Entry, OwnedFd)> {
        self.make(parent, name, |target| {
            let owner = self.ownership(caller, parent, mode, None)?;
            let fd = self.create_file(target, &owner, flags)?;
            let outcome = self
                .give(&At::Fd(fd.as_fd()), FileType::RegularFile, &owner)
                .and_then(|()| self.mark_plain(&At::Fd(fd.as_fd()), name, FileType::RegularFile))
                .and_then(|()| {
                    if target.whiteout {
                        replace_whiteout(target, &fd)?;
                    }
                    fs::fstat(&fd)
                });
            let stat = outcome.inspect_err(|_| {
                if !target.whiteout {
                    let _ = fs::unlinkat(target.upper, name, AtFlags::empty());
                }
            })?;
            let node = self.fresh(parent, name, &stat);
            let entry = self.entry(&node, &stat, UPPER, &At::Fd(fd.as_fd()))?;
            Ok((node, entry, fd))
        })
    }

    fn create_file(&self, target: &Target<'_>, owner: &Ownership, flags: u32) -> Result<OwnedFd> {
        let mode = self.first_mode(owner);
        let below = self.flags_below(flags) | OFlags::CLOEXEC;
        if target.whiteout {
            // Made in the directory, so that it inherits what there is to inherit.
            let below = if below & OFlags::ACCMODE == OFlags::RDONLY {
                below | OFlags::RDWR
            } else {
                below
            };
            let open = || fs::openat(target.upper, c".", below | OFlags::TMPFILE, mode);
            return self.descriptors.with_room(open);
        }
        let create = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let open = || fs::openat(target.upper, target.name, below | create, mode);
        self.descriptors.with_room(open)
    }

    /// A handle of a file that was made with it.
    fn opened(&self, node: &Arc<Node>, fd: Arc<OwnedFd>, flags: u32) -> Opened {
        let writable = OFlags::from_bits_retain(flags) & OFlags::ACCMODE != OFlags::RDONLY;
        Opened {
            handle: self.note(FileHandle::new(node, fd, writable, true)),
            keep_cache: true,
            attributes_changed: false,
        }
    }

    fn open_existing(&self, parent: &Arc<Node>, name: &OsStr, flags: u32) -> Result<(Entry, Opened)> {
        let super::Lookup::Found(entry) = self.do_lookup(parent.id, name)? else {
            return Err(Errno::NOENT);
        };
        let outcome = self.do_open(entry.node, flags).and_then(|opened| {
            let attr = self.do_getattr(entry.node, Some(opened.handle))?;
            Ok((Entry { attr, ..entry }, opened))
        });
        outcome.inspect_err(|_| self.forget(entry.node, 1))
    }

    pub(super) fn do_tmpfile(
        &self,
        caller: &Caller,
        parent: u64,
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        let (node, entry, fd) = self.new_nameless(caller, parent, mode, flags)?;
        Ok((entry, self.opened(&node, fd, flags)))
    }

    pub(super) fn do_tmpfile_handleless(
        &self,
        caller: &Caller,
        parent: u64,
        mode: u32,
        flags: u32,
    ) -> Result<Entry> {
        // The node keeps a descriptor anyway.
        self.new_nameless(caller, parent, mode, flags)
            .map(|(_, entry, _)| entry)
    }

    fn new_nameless(
        &self,
        caller: &Caller,
        parent: u64,
        mode: u32,
        flags: u32,
    ) -> Result<(Arc<Node>, Entry, Arc<OwnedFd>)> {
        let parent = self.directory_node(parent)?;
        let upper = self.upper_fd(&parent)?;
        let owner = self.ownership(caller, &parent, mode, None)?;
        let mut below = self.flags_below(flags) | OFlags::CLOEXEC | OFlags::TMPFILE;
        if is_exclusive(flags) {
            below |= OFlags::EXCL;
        }
        let open = || fs::openat(&*upper, c".", below, self.first_mode(&owner));
        let fd = Arc::new(self.descriptors.with_room(open)?);
        let at = At::Fd(fd.as_fd());
        self.give(&at, FileType::RegularFile, &owner)?;
        let stat = at.stat()?;
        let node = self.table.number(|id| {
            let ino = self.devices.ino(stat.st_dev, stat.st_ino);
            let place = Place::nameless(Some(Arc::clone(&fd)));
            Node::new(id, FileType::RegularFile, ino, place, None)
        });
        node.removed.store(true, Ordering::Release);
        let entry = self.entry(&node, &stat, UPPER, &at)?;
        Ok((node, entry, fd))
    }

    pub(super) fn do_mknod(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        rdev: u32,
    ) -> Result<Entry> {
        let kind = FileType::from_raw_mode(mode);
        match kind {
            FileType::CharacterDevice if rdev == 0 => return Err(Errno::PERM),
            FileType::Directory | FileType::Symlink | FileType::Unknown => return Err(Errno::INVAL),
            _ => {}
        }
        let parent = self.directory_node(parent)?;
        self.make_named(caller, &parent, name, mode, kind, |directory, name, mode| {
            fs::mknodat(directory, name, kind, mode, large_device(rdev))
        })
    }

    pub(super) fn do_symlink(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Entry> {
        let parent = self.directory_node(parent)?;
        let caller = Caller { umask: 0, ..*caller };
        self.make_named(
            &caller,
            &parent,
            name,
            0o777,
            FileType::Symlink,
            |directory, name, _| fs::symlinkat(target, directory, name),
        )
    }

    /// Makes something that is not opened: in its place, or in the work directory.
    fn make_named(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        name: &OsStr,
        mode: u32,
        kind: FileType,
        make: impl Fn(std::os::fd::BorrowedFd<'_>, &OsStr, Mode) -> Result<()>,
    ) -> Result<Entry> {
        self.make(parent, name, |target| {
            let owner = self.ownership(caller, parent, mode, Some(target))?;
            let mode = self.first_mode(&owner);
            if target.whiteout {
                let staged = target.work.name();
                make(target.work.fd.as_fd(), &staged, mode)?;
                let at = At::Name(target.work.fd.as_fd(), &staged);
                self.inherit_acl(parent, &at, kind, &owner)
                    .and_then(|()| self.give(&at, kind, &owner))
                    .and_then(|()| self.mark_plain(&at, name, kind))
                    .and_then(|()| fs::renameat(&target.work.fd, &*staged, target.upper, name))
                    .inspect_err(|_| target.work.discard(&staged))?;
            } else {
                make(target.upper.as_fd(), name, mode)?;
                let at = At::Name(target.upper.as_fd(), name);
                self.give(&at, kind, &owner)
                    .and_then(|()| self.mark_plain(&at, name, kind))
                    .inspect_err(|_| {
                        let _ = fs::unlinkat(target.upper, name, AtFlags::empty());
                    })?;
            }
            self.fresh_entry(parent, target).map(|(_, entry)| entry)
        })
    }

    pub(super) fn do_mkdir(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32) -> Result<Entry> {
        let parent = self.directory_node(parent)?;
        self.make(&parent, name, |target| {
            let mut owner = self.ownership(caller, &parent, mode & 0o1777, Some(target))?;
            if self.directory_of(&parent)?.mode.load(Ordering::Relaxed) & SETGID != 0 {
                owner.mode |= SETGID;
            }
            if target.whiteout {
                self.mkdir_over_whiteout(&parent, target, &owner)?;
            } else {
                fs::mkdirat(
                    target.upper,
                    name,
                    self.first_mode(&owner) | Mode::from_raw_mode(owner.mode & 0o1000),
                )?;
                let at = At::Name(target.upper.as_fd(), name);
                let opaque = || match target.covers {
                    true => at.set_xattr(self.marks.opaque.as_bytes(), b"y", XattrFlags::empty()),
                    false => Ok(()),
                };
                opaque()
                    .and_then(|()| self.give(&at, FileType::Directory, &owner))
                    .inspect_err(|_| {
                        let _ = fs::unlinkat(target.upper, name, AtFlags::REMOVEDIR);
                    })?;
            }
            let (_, entry) = self.fresh_entry(&parent, target)?;
            self.directory_of(&parent)?.count(1);
            Ok(entry)
        })
    }

    /// A directory takes a whiteout's place, opaque, so that what the whiteout hid does not come back.
    fn mkdir_over_whiteout(&self, parent: &Arc<Node>, target: &Target<'_>, owner: &Ownership) -> Result<()> {
        let work = &target.work.fd;
        let staged = target.work.name();
        fs::mkdirat(work, &*staged, self.first_mode(owner))?;
        let at = At::Name(work.as_fd(), &staged);
        at.set_xattr(self.marks.opaque.as_bytes(), b"y", XattrFlags::empty())
            .and_then(|()| self.inherit_acl(parent, &at, FileType::Directory, owner))
            .and_then(|()| self.give(&at, FileType::Directory, owner))
            .and_then(|()| match self.override_in(UPPER) {
                None if owner.mode & 0o7000 != 0 => at.chmod(at.stat()?.st_mode | owner.mode & 0o7000),
                _ => Ok(()),
            })
            .and_then(|()| {
                fs::renameat_with(work, &*staged, target.upper, target.name, RenameFlags::EXCHANGE)
            })
            .inspect_err(|_| target.work.discard(&staged))?;
        // The whiteout, now.
        target.work.discard(&staged);
        Ok(())
    }

    /// Gives a file made elsewhere the access control list that the kernel would have given it in `parent`.
    fn inherit_acl(&self, parent: &Arc<Node>, at: &At<'_>, kind: FileType, owner: &Ownership) -> Result<()> {
        if kind == FileType::Symlink || !self.has_default_acl(parent)? {
            return Ok(());
        }
        let list = self.with(parent, |at, _| grow(|buffer| at.get_xattr(ACL_DEFAULT, buffer)))?;
        if kind == FileType::Directory {
            at.set_xattr(ACL_DEFAULT, &list, XattrFlags::empty())?;
        }
        at.set_xattr(ACL_ACCESS, &list, XattrFlags::empty())?;
        // The list's bits of owner, mask and others are what the mode allows at most.
        at.chmod(at.stat()?.st_mode & owner.mode)
    }

    pub(super) fn do_link(&self, node: u64, parent: u64, name: &OsStr) -> Result<Entry> {
        let node = self.node(node)?;
        let parent = self.directory_node(parent)?;
        if node.is_directory() {
            return Err(Errno::PERM);
        }
        self.copy_up(&node, Purpose::Keep)?;
        self.with(&node, |at, _| self.mark_plain(&at, name, node.kind))?;
        self.make(&parent, name, |target| {
            let mut place = write(&node.place);
            if target.whiteout {
                let staged = target.work.name();
                self.link_to(&place, target.work.fd.as_fd(), &staged)?;
                fs::renameat(&target.work.fd, &*staged, target.upper, name)
                    .inspect_err(|_| target.work.discard(&staged))?;
            } else {
                self.link_to(&place, target.upper.as_fd(), name)?;
            }
            let at = At::Name(target.upper.as_fd(), name);
            let stat = at.stat()?;
            if node.removed.swap(false, Ordering::AcqRel) || place.fd.is_some() {
                let key = self.table.key(UPPER, stat.st_dev, stat.st_ino);
                self.table.rekey(&node, Some(key));
            }
            place.learn(&parent, name);
            drop(place);
            node.lookups.fetch_add(1, Ordering::Relaxed);
            self.entry(&node, &stat, UPPER, &at)
        })
    }

    /// Links the file at `place`, in the upper directory, to a further name.
    fn link_to(&self, place: &Place, directory: std::os::fd::BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        if let Some(fd) = &place.fd {
            return fs::linkat(
                CWD,
                proc::itself(fd.as_fd()),
                directory,
                name,
                AtFlags::SYMLINK_FOLLOW,
            );
        }
        let parent = place.parent.as_ref().ok_or(Errno::NOENT)?.node();
        let slot = self.directory_of(parent)?.slot(UPPER).ok_or(Errno::STALE)?;
        let from = self.slot_fd(parent, slot)?;
        fs::linkat(&*from, &*place.name, directory, name, AtFlags::empty())
    }
}

fn is_exclusive(flags: u32) -> bool {
    OFlags::from_bits_retain(flags).contains(OFlags::EXCL)
}

impl Ownership {
    fn must_be_given(&self) -> bool {
        (self.uid, self.gid) != self.given
    }
}

/// Lets a file without a name take a whiteout's place.
fn replace_whiteout(target: &Target<'_>, fd: &OwnedFd) -> Result<()> {
    let staged = target.work.name();
    let work = &target.work.fd;
    fs::linkat(
        CWD,
        proc::itself(fd.as_fd()),
        work,
        &*staged,
        AtFlags::SYMLINK_FOLLOW,
    )?;
    fs::renameat(work, &*staged, target.upper, target.name).inspect_err(|_| target.work.discard(&staged))
}
