//! One request, one call of the overlay, one answer.

use std::time::Duration;

use rustix::io::Errno;

use super::Session;
use super::abi::{
    self, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, FSYNC_DATA, GETATTR_FH, OPEN_KILL_SUIDGID,
    SETXATTR_ACL_KILL_SGID, WRITE_KILL_SUIDGID, opcode, setattr,
};
use super::init::MAX_WRITE;
use super::reply::Reply;
use super::request::{Body, Malformed, Request};
use crate::overlay::{Attr, Caller, DirEntry, Entry, Lookup, Opened, Overlay, SetAttr, SetTime, Time};

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The answer is in the buffer.
    Answer,
    /// The kernel expects none.
    Silence,
}

type Handled = Result<Outcome, Errno>;

impl From<Malformed> for Errno {
    fn from(_: Malformed) -> Self {
        Self::INVAL
    }
}

/// Times of an answer are seconds and nanoseconds apart; a number of seconds beyond the kernel's is endless as well.
fn ttl(reply: &mut Reply, first: Duration, second: Duration) {
    let bounded = |time: Duration| time.as_secs().min(u64::from(u32::MAX));
    reply.u64(bounded(first)).u64(bounded(second));
    reply.u32(first.subsec_nanos()).u32(second.subsec_nanos());
}

fn put_attr(reply: &mut Reply, attr: &Attr) {
    reply.u64(attr.ino).u64(attr.size).u64(attr.blocks);
    let times = [attr.atime, attr.mtime, attr.ctime];
    for time in times {
        reply.u64(time.seconds.cast_unsigned());
    }
    for time in times {
        reply.u32(time.nanoseconds);
    }
    reply.u32(attr.mode).u32(attr.nlink).u32(attr.uid).u32(attr.gid);
    reply.u32(attr.rdev).u32(attr.blksize).u32(0);
}

fn put_entry(reply: &mut Reply, entry: &Entry) {
    reply.u64(entry.node).u64(entry.generation);
    ttl(reply, entry.ttl, entry.ttl);
    put_attr(reply, &entry.attr);
}

impl Session {
    /// Calls the overlay and fills the answer in.
    pub(super) fn handle(&self, request: &Request<'_>, reply: &mut Reply) -> Handled {
        match request.opcode {
            opcode::FORGET | opcode::BATCH_FORGET => self.forget(request),
            opcode::LOOKUP | opcode::GETATTR | opcode::SETATTR | opcode::READLINK | opcode::STATFS => {
                self.inode(request, reply)
            }
            opcode::SYMLINK | opcode::MKNOD | opcode::MKDIR | opcode::LINK => self.make(request, reply),
            opcode::UNLINK | opcode::RMDIR | opcode::RENAME | opcode::RENAME2 => self.unmake(request),
            opcode::OPEN | opcode::CREATE | opcode::TMPFILE => self.open(request, reply),
            opcode::OPENDIR | opcode::READDIR | opcode::READDIRPLUS | opcode::RELEASEDIR => {
                self.directory(request, reply)
            }
            opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => {
                self.xattr(request, reply)
            }
            opcode::READ
            | opcode::WRITE
            | opcode::RELEASE
            | opcode::FALLOCATE
            | opcode::LSEEK
            | opcode::COPY_FILE_RANGE => self.file(request, reply),
            opcode::FSYNC | opcode::FSYNCDIR | opcode::SYNCFS => self.sync(request),
            opcode::DESTROY => Ok(Outcome::Answer),
            // The kernel does not ask again. A close means nothing to layers on a local disk, permissions are the kernel's
            // business (default_permissions), and no request waits for anybody.
            opcode::FLUSH | opcode::ACCESS | opcode::INTERRUPT => Err(Errno::NOSYS),
            // ioctl, poll, locks that are not local, statx: the kernel has an answer of its own.
            _ => Err(Errno::NOSYS),
        }
    }

    fn forget(&self, request: &Request<'_>) -> Handled {
        let mut body = request.body;
        if request.opcode == opcode::FORGET {
            self.overlay.forget(request.node, body.u64()?);
            return Ok(Outcome::Silence);
        }
        let count = body.u32()?;
        body.skip(4)?;
        for _ in 0..count {
            let (node, lookups) = (body.u64()?, body.u64()?);
            self.overlay.forget(node, lookups);
        }
        Ok(Outcome::Silence)
    }

    fn caller(&self, request: &Request<'_>, umask: u32) -> Caller {
        Caller {
            uid: request.uid,
            gid: request.gid,
            pid: request.pid,
            umask,
        }
    }

    fn inode(&self, request: &Request<'_>, reply: &mut Reply) -> Handled {
        let (mut body, node) = (request.body, request.node);
        match request.opcode {
            opcode::LOOKUP => match self.overlay.lookup(node, body.name()?)? {
                Lookup::Found(entry) => put_entry(reply, &entry),
                Lookup::Negative(Duration::ZERO) => return Err(Errno::NOENT),
                Lookup::Negative(time) => {
                    reply.zeros(16);
                    ttl(reply, time, Duration::ZERO);
                    reply.zeros(abi::ENTRY_OUT - 40);
                }
            },
            opcode::GETATTR => {
                let flags = body.u32()?;
                body.skip(4)?;
                let handle = body.u64()?;
                let handle = (flags & GETATTR_FH != 0).then_some(handle);
                self.answer_attr(reply, &self.overlay.getattr(node, handle)?);
            }
            opcode::SETATTR => {
                let (handle, change) = read_setattr(&mut body)?;
                self.answer_attr(reply, &self.overlay.setattr(node, handle, &change)?);
            }
            opcode::READLINK => drop(reply.bytes(&self.overlay.readlink(node)?)),
            _ => {
                let numbers = self.overlay.statfs()?;
                reply.u64(numbers.blocks).u64(numbers.bfree).u64(numbers.bavail);
                reply.u64(numbers.files).u64(numbers.ffree);
                reply.u32(numbers.bsize).u32(numbers.namelen).u32(numbers.frsize);
                reply.zeros(28);
            }
        }
        Ok(Outcome::Answer)
    }

    fn answer_attr(&self, reply: &mut Reply, attr: &Attr) {
        let time = self.overlay.config().ttl;
        reply.u64(time.as_secs().min(u64::from(u32::MAX)));
        reply.u32(time.subsec_nanos()).u32(0);
        put_attr(reply, attr);
    }

    fn make(&self, request: &Request<'_>, reply: &mut Reply) -> Handled {
        let (mut body, parent) = (request.body, request.node);
        let entry = match request.opcode {
            opcode::SYMLINK => {
                let (name, target) = (body.name()?, body.name()?);
                let caller = self.caller(request, 0);
                self.overlay.symlink(&caller, parent, name, target)?
            }
            opcode::MKNOD => {
                let (mode, rdev, umask) = (body.u32()?, body.u32()?, body.u32()?);
                body.skip(4)?;
                let caller = self.caller(request, umask);
                self.overlay.mknod(&caller, parent, body.name()?, mode, rdev)?
            }
            opcode::MKDIR => {
                let (mode, umask) = (body.u32()?, body.u32()?);
                let caller = self.caller(request, umask);
                self.overlay.mkdir(&caller, parent, body.name()?, mode)?
            }
            _ => {
                let node = body.u64()?;
                self.overlay.link(node, parent, body.name()?)?
            }
        };
        put_entry(reply, &entry);
        Ok(Outcome::Answer)
    }

    fn unmake(&self, request: &Request<'_>) -> Handled {
        let (mut body, parent) = (request.body, request.node);
        match request.opcode {
            opcode::UNLINK => self.overlay.unlink(parent, body.name()?)?,
            opcode::RMDIR => self.overlay.rmdir(parent, body.name()?)?,
            kind => {
                let new_parent = body.u64()?;
                let mut flags = 0;
                if kind == opcode::RENAME2 {
                    flags = body.u32()?;
                    body.skip(4)?;
                }
                let (name, new_name) = (body.name()?, body.name()?);
                self.overlay.rename(parent, name, new_parent, new_name, flags)?;
            }
        }
        Ok(Outcome::Answer)
    }

    fn open(&self, request: &Request<'_>, reply: &mut Reply) -> Handled {
        let mut body = request.body;
        if request.opcode == opcode::OPEN && self.agreed.no_open {
            return Err(Errno::NOSYS);
        }
        if request.opcode == opcode::OPEN {
            let (flags, open_flags) = (body.u32()?, body.u32()?);
            let opened = self.overlay.open(request.node, flags)?;
            if open_flags & OPEN_KILL_SUIDGID != 0
                && let Err(errno) = self.overlay.kill_privileges(opened.handle)
            {
                self.overlay.release(opened.handle);
                return Err(errno);
            }
            if self.overlay.lost_privileges(request.node) || opened.attributes_changed {
                self.forget_attributes(request.node);
            }
            self.put_open(reply, &opened);
            return Ok(Outcome::Answer);
        }
        let (flags, mode, umask) = (body.u32()?, body.u32()?, body.u32()?);
        body.skip(4)?;
        let caller = self.caller(request, umask);
        let create = request.opcode == opcode::CREATE;
        if self.agreed.no_open {
            // The kernel will not release what it opened, not even this.
            let entry = match create {
                true => self
                    .overlay
                    .create_handleless(&caller, request.node, body.name()?, mode, flags)?,
                false => self
                    .overlay
                    .tmpfile_handleless(&caller, request.node, mode, flags)?,
            };
            put_entry(reply, &entry);
            reply.u64(0).u32(FOPEN_KEEP_CACHE).u32(0);
            return Ok(Outcome::Answer);
        }
        let (entry, opened) = if create {
            self.overlay
                .create(&caller, request.node, body.name()?, mode, flags)?
        } else {
            self.overlay.tmpfile(&caller, request.node, mode, flags)?
        };
        put_entry(reply, &entry);
        self.put_open(reply, &opened);
        Ok(Outcome::Answer)
    }

    fn put_open(&self, reply: &mut Reply, opened: &Opened) {
        let mut flags = if opened.keep_cache { FOPEN_KEEP_CACHE } else { 0 };
        if !self.agreed.writeback {
            // A close has nothing to write but what was changed through shared memory, which need not be then.
            flags |= FOPEN_NOFLUSH;
        }
        reply.u64(opened.handle).u32(flags).u32(0);
    }

    fn directory(&self, request: &Request<'_>, reply: &mut Reply) -> Handled {
        let mut body = request.body;
        if request.opcode == opcode::OPENDIR {
            if self.agreed.no_opendir {
                return Err(Errno::NOSYS);
            }
            let handle = self.overlay.opendir(request.node)?;
            let endless = self.overlay.config().ttl > Duration::ZERO;
            let flags = if endless {
                FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE
            } else {
                0
            };
            reply.u64(handle).u32(flags).u32(0);
            return Ok(Outcome::Answer);
        }
        let handle = body.u64()?;
        if request.opcode == opcode::RELEASEDIR {
            self.overlay.releasedir(handle);
            return Ok(Outcome::Answer);
        }
        let (offset, size) = (body.u64()?, body.u32()?);
        let limit = usize::try_from(size.min(MAX_WRITE)).unwrap_or(0);
        let plus = request.opcode == opcode::READDIRPLUS;
        let mut read = |handle| self.read_directory(handle, offset, limit, plus, reply);
        if self.agreed.no_opendir {
            self.directories.read(&self.overlay, request.node, offset, read)?;
        } else {
            read(handle)?;
        }
        Ok(Outcome::Answer)
    }

    /// Fills the answer with names; says behind which offset it ends, if it has any.
    fn read_directory(
        &self,
        handle: u64,
        offset: u64,
        limit: usize,
        plus: bool,
        reply: &mut Reply,
    ) -> Result<Option<u64>, Errno> {
        let mut last = None;
        if plus {
            self.overlay.readdirplus(handle, offset, &mut |found, entry| {
                let fits = reply.has_room_for(found.name, true, limit);
                if fits {
                    match entry {
                        Some(entry) => put_entry(reply, entry),
                        None => drop(reply.zeros(abi::ENTRY_OUT)),
                    }
                    put_dirent(reply, found);
                    last = Some(found.offset);
                }
                fits
            })?;
        } else {
            self.overlay.readdir(handle, offset, &mut |found| {
                let fits = reply.has_room_for(found.name, false, limit);
                if fits {
                    put_dirent(reply, found);
                    last = Some(found.offset);
                }
                fits
            })?;
        }
        Ok(last)
    }

    fn xattr(&self, request: &Request<'_>, reply: &mut Reply) -> Handled {
        let (mut body, node) = (request.body, request.node);
        match request.opcode {
            opcode::SETXATTR => {
                let (size, flags) = (body.u32()?, body.u32()?);
                let mut kill_group = false;
                if self.agreed.setxattr_ext {
                    kill_group = body.u32()? & SETXATTR_ACL_KILL_SGID != 0;
                    body.skip(4)?;
                }
                let name = body.name()?;
                self.overlay.setxattr(node, name, body.bytes(size)?, flags)?;
                if kill_group {
                    self.clear_group_bit(node)?;
                }
            }
            opcode::REMOVEXATTR => self.overlay.removexattr(node, body.name()?)?,
            kind => {
                let size = body.u32()?;
                body.skip(4)?;
                let value = if kind == opcode::GETXATTR {
                    self.overlay.getxattr(node, body.name()?)?
                } else {
                    self.overlay.listxattr(node)?
                };
                let length = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
                if size == 0 {
                    reply.u32(length).u32(0);
                } else if length > size {
                    return Err(Errno::RANGE);
                } else {
                    reply.bytes(&value);
                }
            }
        }
        Ok(Outcome::Answer)
    }

    /// An access control list was set by somebody outside the file's group: the group's execution right goes.
    fn clear_group_bit(&self, node: u64) -> Result<(), Errno> {
        const SET_GROUP_ID: u32 = 0o2000;
        let mode = self.overlay.getattr(node, None)?.mode;
        if mode & SET_GROUP_ID != 0 {
            let change = SetAttr {
                mode: Some(mode & 0o7777 & !SET_GROUP_ID),
                ..SetAttr::default()
            };
            self.overlay.setattr(node, None, &change)?;
        }
        Ok(())
    }

    fn file(&self, request: &Request<'_>, reply: &mut Reply) -> Handled {
        let mut body = request.body;
        let handle = handle_or_node(body.u64()?, request.node);
        match request.opcode {
            opcode::READ => {
                let (offset, size) = (body.u64()?, body.u32()?);
                let limit = usize::try_from(size.min(MAX_WRITE)).unwrap_or(0);
                reply.fill(limit, |buffer| self.overlay.read(handle, offset, buffer))?;
            }
            opcode::WRITE => {
                let (offset, size, flags) = (body.u64()?, body.u32()?, body.u32()?);
                body.skip(16)?;
                let data = body.bytes(size)?;
                let kill = flags & WRITE_KILL_SUIDGID != 0;
                let written = self.overlay.write(handle, offset, data, kill);
                self.tell_of_lost_privileges(request.node);
                let written = written?;
                reply.u32(u32::try_from(written).unwrap_or(size)).u32(0);
            }
            opcode::RELEASE => self.overlay.release(handle),
            opcode::FALLOCATE => {
                let (offset, length, mode) = (body.u64()?, body.u64()?, body.u32()?);
                let outcome = self.overlay.fallocate(handle, offset, length, mode);
                self.tell_of_lost_privileges(request.node);
                outcome?;
            }
            opcode::LSEEK => {
                let (offset, whence) = (body.u64()?, body.u32()?);
                reply.u64(self.overlay.lseek(handle, offset, whence)?);
            }
            _ => {
                let from_offset = body.u64()?;
                let to_node = body.u64()?;
                let (to, to_offset, length) = (body.u64()?, body.u64()?, body.u64()?);
                let to = handle_or_node(to, to_node);
                let copied = self
                    .overlay
                    .copy_file_range(handle, from_offset, to, to_offset, length);
                self.tell_of_lost_privileges(to_node);
                let copied = copied?;
                reply.u32(u32::try_from(copied).unwrap_or(u32::MAX)).u32(0);
            }
        }
        Ok(Outcome::Answer)
    }

    /// Before the answer to who wrote: he could start the program as its owner until the kernel asks for the mode again.
    fn tell_of_lost_privileges(&self, node: u64) {
        if self.overlay.lost_privileges(node) {
            self.forget_attributes(node);
        }
    }

    fn sync(&self, request: &Request<'_>) -> Handled {
        if self.no_fsync {
            // The kernel does not ask again, and tells programs that all is well.
            return Err(Errno::NOSYS);
        }
        let mut body = request.body;
        if request.opcode == opcode::SYNCFS {
            self.overlay.syncfs()?;
            return Ok(Outcome::Answer);
        }
        let (handle, flags) = (body.u64()?, body.u32()?);
        let data_only = flags & FSYNC_DATA != 0;
        if request.opcode == opcode::FSYNC {
            self.overlay
                .fsync(handle_or_node(handle, request.node), data_only)?;
        } else if handle == 0 {
            let handle = self.overlay.opendir(request.node)?;
            let outcome = self.overlay.fsyncdir(handle, data_only);
            self.overlay.releasedir(handle);
            outcome?;
        } else {
            self.overlay.fsyncdir(handle, data_only)?;
        }
        Ok(Outcome::Answer)
    }
}

/// What the kernel opened by itself has no handle here.
fn handle_or_node(handle: u64, node: u64) -> u64 {
    match handle {
        0 => Overlay::handle_of_node(node),
        handle => handle,
    }
}

fn put_dirent(reply: &mut Reply, found: &DirEntry<'_>) {
    let kind = found.kind.as_raw_mode() >> 12;
    reply.dirent(found.ino, found.offset, kind, found.name);
}

/// `fuse_setattr_in`.
fn read_setattr(body: &mut Body<'_>) -> Result<(Option<u64>, SetAttr), Malformed> {
    let valid = body.u32()?;
    body.skip(4)?;
    let (handle, size) = (body.u64()?, body.u64()?);
    body.skip(8)?;
    let seconds = [body.u64()?, body.u64()?, body.u64()?];
    let nanoseconds = [body.u32()?, body.u32()?, body.u32()?];
    let mode = body.u32()?;
    body.skip(4)?;
    let (uid, gid) = (body.u32()?, body.u32()?);
    let has = |flag| valid & flag != 0;
    let time = |index: usize, now: u32, at: u32| match () {
        () if has(now) => Some(SetTime::Now),
        () if has(at) => Some(SetTime::At(Time {
            seconds: seconds[index].cast_signed(),
            nanoseconds: nanoseconds[index],
        })),
        () => None,
    };
    let change = SetAttr {
        mode: has(setattr::MODE).then_some(mode),
        uid: has(setattr::UID).then_some(uid),
        gid: has(setattr::GID).then_some(gid),
        size: has(setattr::SIZE).then_some(size),
        atime: time(0, setattr::ATIME_NOW, setattr::ATIME),
        mtime: time(1, setattr::MTIME_NOW, setattr::MTIME),
        kill_privileges: has(setattr::KILL_SUIDGID),
    };
    Ok((has(setattr::FH).then_some(handle), change))
}
