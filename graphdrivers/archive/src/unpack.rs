//! Writes the members of a layer into a directory.
//!
//! Order of metadata for each member: owner, mode, extended attributes, times; a directory's times come at the very
//! end, because every member written into it changes them. The last member of a name wins; a directory is replaced
//! only by something that is not a directory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::adopt::ImpliedDirectories;
use crate::entry::{Entry, Kind, Time};
use crate::error::{Error, ErrorKind, Result, show};
use crate::name::{self, Meaning};
use crate::owner::{Owner, OwnerMap, OwnerSink, SquashedOwner};
use crate::reader::{Reader, Stream};
use crate::root::{Directory, Root, remove_all};
use crate::times::TimesLog;
use crate::whiteout::Whiteouts;
use crate::{ApplyOptions, ApplyTarget, xattrs};

/// What was written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) size: u64,
    pub(crate) entries: u64,
    pub(crate) skipped_devices: u64,
    pub(crate) skipped_xattrs: u64,
    pub(crate) squashed: u64,
}

/// What was written, and what remains to be known of it.
pub(crate) struct Unpacked {
    pub(crate) counts: Counts,
    pub(crate) implied: ImpliedDirectories,
}

/// Unpacks one layer.
pub(crate) struct Unpacker<'s> {
    root: Root,
    whiteouts: Whiteouts,
    owners: OwnerMap,
    /// Told the real owners of members whose owner is folded.
    squashed: &'s mut OwnerSink<'s>,
    in_user_namespace: bool,
    /// The owner that new files get by themselves.
    own_ids: (u32, u32),
    /// Times of directories in the order of the archive, set when everything is written.
    directory_times: TimesLog,
    /// Directories that the archive uses and does not describe.
    implied: ImpliedDirectories,
    /// A directory or symbolic link was removed: what `directory_times` names may be something else now.
    path_changed: bool,
    counts: Counts,
}

impl<'s> Unpacker<'s> {
    pub(crate) fn new(
        target: &ApplyTarget,
        options: &ApplyOptions,
        squashed: &'s mut OwnerSink<'s>,
    ) -> Result<Self> {
        Ok(Self {
            root: Root::open(&target.directory)?,
            whiteouts: Whiteouts::new(target.whiteouts),
            owners: OwnerMap::of_this_process(options.max_id, options.oversized_ids),
            squashed,
            in_user_namespace: skiff_sys::fsio::in_user_namespace(),
            own_ids: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
            directory_times: TimesLog::default(),
            implied: ImpliedDirectories::default(),
            path_changed: false,
            counts: Counts::default(),
        })
    }

    /// Writes all members of the archive in `stream`.
    pub(crate) fn run(mut self, stream: &mut impl Stream) -> Result<Unpacked> {
        let mut reader = Reader::new(stream);
        while let Some(entry) = reader.next()? {
            self.counts.entries += 1;
            let path = name::clean(&entry.path)?;
            match name::meaning(&path)? {
                // Docker (overlay2) and containerd leave the root's own metadata alone.
                Meaning::Root | Meaning::Metadata => {}
                Meaning::Opaque { parent } => {
                    let directory = self.parent(parent)?;
                    let gone = self.whiteouts.opaque(&directory)?;
                    self.removed(gone);
                }
                Meaning::Whiteout { parent, name } => {
                    let directory = self.parent(parent)?;
                    let gone = self.whiteouts.delete(&directory, name)?;
                    self.removed(gone);
                }
                Meaning::Member { parent, base } => {
                    let parent = self.parent(parent)?;
                    self.member(&entry, &mut reader, &parent, base, &path)?;
                }
            }
        }
        self.set_directory_times()?;
        Ok(Unpacked {
            counts: self.counts,
            implied: self.implied,
        })
    }

    /// The directory that a member lies in.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<Directory>> {
        let directory = self.root.directory(path)?;
        for made in self.root.take_implied() {
            self.whiteouts.written(made.parent, name::split(&made.path).1);
            self.implied.push(&made.path);
        }
        Ok(directory)
    }

    fn member<S: Stream>(
        &mut self,
        entry: &Entry,
        reader: &mut Reader<'_, S>,
        parent: &Directory,
        base: &[u8],
        path: &[u8],
    ) -> Result<()> {
        let owner = self.owner(entry, path)?;
        match entry.kind {
            Kind::Regular => self.regular(entry, owner, reader, parent, base, path)?,
            Kind::Directory => self.directory(entry, owner, parent, base, path)?,
            Kind::Symlink => self.symlink(entry, owner, parent, base, path)?,
            Kind::HardLink => self.hard_link(entry, owner, parent, base, path)?,
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => {
                self.node(entry, owner, parent, base, path)?;
            }
        }
        self.whiteouts.written(parent.inode, base);
        Ok(())
    }

    /// What owners are folded onto.
    pub(crate) fn folded(&self) -> (u32, u32) {
        self.owners.folded()
    }

    /// The owner on disk: its own, if this user namespace has it.
    fn owner(&mut self, entry: &Entry, path: &[u8]) -> Result<(u32, u32)> {
        match self.owners.owner(entry) {
            Owner::Real(uid, gid) => Ok((uid, gid)),
            Owner::Unknown => Err(id_range(entry, path)),
            Owner::Squashed(uid, gid) => {
                let real = SquashedOwner {
                    path,
                    uid: entry.uid,
                    gid: entry.gid,
                };
                (self.squashed)(real).map_err(|error| {
                    let kind = match error.kind() {
                        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
                        _ => ErrorKind::Io,
                    };
                    Error::new(kind, "keep the owner of a file").caused_by(error)
                })?;
                self.counts.squashed += 1;
                Ok((uid, gid))
            }
        }
    }

    fn regular<S: Stream>(
        &mut self,
        entry: &Entry,
        owner: (u32, u32),
        reader: &mut Reader<'_, S>,
        parent: &Directory,
        base: &[u8],
        path: &[u8],
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.create(parent, base, path, "create", || {
            fs::openat(parent, base, flags, Mode::from_raw_mode(0o600))
        })?;
        write_data(entry, reader, &file, path)?;
        self.counts.size += entry.size;
        self.own(entry, owner, parent, path, |uid, gid| {
            fs::fchown(&file, Some(uid), Some(gid))
        })?;
        fs::fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(|e| failed("chmod", path, e))?;
        self.counts.skipped_xattrs += xattrs::write(xattrs::Place::Open(file.as_fd()), entry, path)?;
        fs::futimens(&file, &times(entry)).map_err(|e| failed("set times of", path, e))
    }

    fn directory(
        &mut self,
        entry: &Entry,
        owner: (u32, u32),
        parent: &Directory,
        base: &[u8],
        path: &[u8],
    ) -> Result<()> {
        let made = match fs::mkdirat(parent, base, Mode::from_raw_mode(0o700)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(failed("mkdir", path, errno)),
        };
        let directory = match self.root.enter(parent, base, path) {
            Ok(existing) => existing,
            // A file or a symbolic link is in the way. What a lower layer has under this name stays hidden,
            // because the name was something else before.
            Err(Errno::NOTDIR | Errno::LOOP) if !made => {
                self.remove(parent, base, path)?;
                fs::mkdirat(parent, base, Mode::from_raw_mode(0o700))
                    .map_err(|e| failed("mkdir", path, e))?;
                let fresh = self
                    .root
                    .enter(parent, base, path)
                    .map_err(|e| failed("open", path, e))?;
                self.whiteouts.hide_lower(&fresh)?;
                fresh
            }
            Err(errno) => return Err(failed("open", path, errno)),
        };
        let fd = directory.as_fd();
        if !made || owner != self.own_ids || parent.setgid {
            chown(entry, path, || {
                fs::fchown(fd, Some(uid(owner.0)), Some(gid(owner.1)))
            })?;
        }
        fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(|e| failed("chmod", path, e))?;
        if !made {
            // The entry describes the directory as a whole; what a lower layer's had besides is gone.
            xattrs::remove_others(fd, entry, path)?;
        }
        self.counts.skipped_xattrs += xattrs::write(xattrs::Place::Open(fd), entry, path)?;
        if entry.mode & 0o2000 != 0 || directory.setgid {
            // The cached descriptor remembers the bit as it was before.
            self.root.forget();
        }
        let top = self.root.top();
        self.directory_times
            .push(top.as_fd(), path, &times(entry))
            .map_err(|e| failed("keep times of", path, e))
    }

    fn symlink(
        &mut self,
        entry: &Entry,
        owner: (u32, u32),
        parent: &Directory,
        base: &[u8],
        path: &[u8],
    ) -> Result<()> {
        if entry.link.is_empty() {
            return Err(Error::corrupt(format!(
                "symbolic link {:?} has no target",
                show(path)
            )));
        }
        self.create(parent, base, path, "symlink", || {
            fs::symlinkat(&entry.link[..], parent, base)
        })?;
        self.counts.size += entry.link.len() as u64;
        self.own(entry, owner, parent, path, |uid, gid| {
            chown_at(parent, base, uid, gid)
        })?;
        self.counts.skipped_xattrs += xattrs::write(xattrs::Place::Name(parent.as_fd(), base), entry, path)?;
        set_times(parent, base, &times(entry), path)
    }

    fn node(
        &mut self,
        entry: &Entry,
        owner: (u32, u32),
        parent: &Directory,
        base: &[u8],
        path: &[u8],
    ) -> Result<()> {
        // Character device 0:0 *is* overlayfs's whiteout; whoever packs an upper directory naively makes such members.
        if entry.kind == Kind::CharDevice && entry.device == (0, 0) {
            let gone = self.whiteouts.delete(parent, base)?;
            self.removed(gone);
            return Ok(());
        }
        let kind = match entry.kind {
            Kind::Fifo => FileType::Fifo,
            Kind::CharDevice => FileType::CharacterDevice,
            _ => FileType::BlockDevice,
        };
        if entry.kind != Kind::Fifo && self.in_user_namespace {
            // The kernel gives no device nodes to a user namespace; Docker leaves them out as well.
            self.remove(parent, base, path)?;
            tracing::debug!(
                path = show(path),
                "device node left out: running in a user namespace"
            );
            self.counts.skipped_devices += 1;
            return Ok(());
        }
        let device = fs::makedev(entry.device.0, entry.device.1);
        self.create(parent, base, path, "mknod", || {
            fs::mknodat(parent, base, kind, Mode::from_raw_mode(0o600), device)
        })?;
        self.own(entry, owner, parent, path, |uid, gid| {
            chown_at(parent, base, uid, gid)
        })?;
        fs::chmodat(parent, base, Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(|e| failed("chmod", path, e))?;
        self.counts.skipped_xattrs += xattrs::write(xattrs::Place::Name(parent.as_fd(), base), entry, path)?;
        set_times(parent, base, &times(entry), path)
    }

    /// A hard link gets the metadata of its own header, as with Docker. Owners are compared first: rewriting the same
    /// owner would drop the file capabilities that the link's target was given.
    fn hard_link(
        &mut self,
        entry: &Entry,
        owner: (u32, u32),
        parent: &Directory,
        base: &[u8],
        path: &[u8],
    ) -> Result<()> {
        let target = name::clean(&entry.link)?;
        let (target_parent, target_base) = name::split(&target);
        let missing = |errno| {
            let text = format!("hard link {:?} to {:?}", show(path), show(&entry.link));
            match errno {
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
                    Error::corrupt(format!("{text}: no such file or directory in this layer"))
                }
                errno => Error::os(text, errno),
            }
        };
        if target_base.is_empty() {
            return Err(missing(Errno::NOENT));
        }
        let source = self.root.existing(target_parent).map_err(missing)?;
        let found = fs::statat(&source, target_base, AtFlags::SYMLINK_NOFOLLOW).map_err(missing)?;
        if self.whiteouts.is_whiteout(&found) {
            return Err(missing(Errno::NOENT));
        }
        let link = || fs::linkat(&source, target_base, parent, base, AtFlags::empty());
        match link() {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = fs::statat(parent, base, AtFlags::SYMLINK_NOFOLLOW).map_err(missing)?;
                // A link to itself must not remove its only name.
                if (there.st_dev, there.st_ino) != (found.st_dev, found.st_ino) {
                    self.remove(parent, base, path)?;
                    link().map_err(missing)?;
                }
            }
            Err(errno) => return Err(missing(errno)),
        }
        if (found.st_uid, found.st_gid) != owner {
            chown(entry, path, || chown_at(parent, base, uid(owner.0), gid(owner.1)))?;
        }
        if FileType::from_raw_mode(found.st_mode) != FileType::Symlink && found.st_mode & 0o7777 != entry.mode
        {
            fs::chmodat(parent, base, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(|e| failed("chmod", path, e))?;
        }
        self.counts.skipped_xattrs += xattrs::write(xattrs::Place::Name(parent.as_fd(), base), entry, path)?;
        set_times(parent, base, &times(entry), path)
    }

    /// Runs `make`; when the name is taken, removes what is there and runs it again.
    fn create<T>(
        &mut self,
        parent: &Directory,
        base: &[u8],
        path: &[u8],
        operation: &str,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(parent, base, path)?;
                make()
            }
            other => other,
        }
        .map_err(|errno| failed(operation, path, errno))
    }

    fn remove(&mut self, parent: &Directory, base: &[u8], path: &[u8]) -> Result<()> {
        let removed = remove_all(parent, base).map_err(|errno| failed("replace", path, errno))?;
        self.removed(removed.path_changed);
        Ok(())
    }

    fn removed(&mut self, path_changed: bool) {
        if path_changed {
            self.root.forget();
            self.path_changed = true;
        }
    }

    fn own(
        &self,
        entry: &Entry,
        owner: (u32, u32),
        parent: &Directory,
        path: &[u8],
        call: impl FnOnce(fs::Uid, fs::Gid) -> Result<(), Errno>,
    ) -> Result<()> {
        if owner == self.own_ids && !parent.setgid {
            return Ok(());
        }
        chown(entry, path, || call(uid(owner.0), gid(owner.1)))
    }

    fn set_directory_times(&mut self) -> Result<()> {
        let log = std::mem::take(&mut self.directory_times);
        log.each(|path, times| self.set_directory_time(path, times))
    }

    fn set_directory_time(&mut self, path: &[u8], times: &Timestamps) -> Result<()> {
        let (parent, base) = name::split(path);
        let parent: Rc<Directory> = match self.root.existing(parent) {
            Ok(parent) => parent,
            // Removed or replaced by a later member.
            Err(_) if self.path_changed => return Ok(()),
            Err(errno) => return Err(failed("set times of", path, errno)),
        };
        if self.path_changed {
            match fs::statat(&parent, base, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
                _ => return Ok(()),
            }
        }
        set_times(&parent, base, times, path)
    }
}

fn write_data<S: Stream>(
    entry: &Entry,
    reader: &mut Reader<'_, S>,
    file: &OwnedFd,
    path: &[u8],
) -> Result<()> {
    let mut output = Output {
        file,
        path,
        at: 0,
        holes: entry.size >= HOLE,
        length: 0,
    };
    match &entry.sparse {
        None => output.copy(reader, u64::MAX)?,
        Some(map) => {
            for extent in map {
                output.at = extent.offset;
                output.copy(reader, extent.length)?;
            }
        }
    }
    if output.length < entry.size {
        fs::ftruncate(file, entry.size).map_err(|e| failed("truncate", path, e))?;
    }
    Ok(())
}

/// Zeros that are not worth being written, in bytes: runs of this length at multiples of it become holes. Layers have no
/// form for holes that all engines read, so what was one when the layer was made came as zeros.
const HOLE: u64 = 64 * 1024;

/// A file being written.
struct Output<'f> {
    file: &'f OwnedFd,
    path: &'f [u8],
    at: u64,
    /// Look for zeros.
    holes: bool,
    /// Where the file ends so far.
    length: u64,
}

impl Output<'_> {
    /// Writes at most `limit` bytes of the member's data, straight from the decoder's buffer.
    fn copy<S: Stream>(&mut self, reader: &mut Reader<'_, S>, limit: u64) -> Result<()> {
        let mut left = limit;
        while left > 0 {
            let piece = reader.data()?;
            if piece.is_empty() {
                break;
            }
            let wanted = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = if self.holes {
                self.step(&piece[..wanted])
            } else {
                self.write(&piece[..wanted])
            }?;
            reader.consume(n);
            left -= n as u64;
        }
        Ok(())
    }

    /// Writes or leaves out a beginning of `piece`, and says how much.
    fn step(&mut self, piece: &[u8]) -> Result<usize> {
        let mut data = 0;
        while data < piece.len() {
            let next = self.to_next_hole(data).min(piece.len() - data);
            let zeros = piece[data..data + next].iter().all(|&b| b == 0);
            match (zeros, data) {
                (true, 0) => {
                    self.at += next as u64;
                    return Ok(next);
                }
                (true, _) => break,
                (false, _) => data += next,
            }
        }
        self.write(&piece[..data])
    }

    /// Bytes from `ahead` of the present place to the next multiple of [`HOLE`].
    fn to_next_hole(&self, ahead: usize) -> usize {
        let at = self.at + ahead as u64;
        usize::try_from(HOLE - at % HOLE).unwrap_or(usize::MAX)
    }

    fn write(&mut self, piece: &[u8]) -> Result<usize> {
        loop {
            match rustix::io::pwrite(self.file, piece, self.at) {
                Ok(n) => {
                    self.at += n as u64;
                    self.length = self.length.max(self.at);
                    return Ok(n);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed("write", self.path, errno)),
            }
        }
    }
}

fn uid(id: u32) -> fs::Uid {
    fs::Uid::from_raw(id)
}

fn gid(id: u32) -> fs::Gid {
    fs::Gid::from_raw(id)
}

fn chown_at(parent: impl AsFd, base: &[u8], uid: fs::Uid, gid: fs::Gid) -> Result<(), Errno> {
    fs::chownat(parent, base, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

fn chown(entry: &Entry, path: &[u8], call: impl FnOnce() -> Result<(), Errno>) -> Result<()> {
    match call() {
        Ok(()) => Ok(()),
        Err(Errno::INVAL) => Err(id_range(entry, path)),
        Err(errno) => {
            let text = format!(
                "failed to Lchown {:?} for UID {}, GID {}",
                absolute(path),
                entry.uid,
                entry.gid
            );
            Err(Error::os(format!("{text}: lchown {}", absolute(path)), errno))
        }
    }
}

/// Docker's text, which people search the web for.
fn id_range(entry: &Entry, path: &[u8]) -> Error {
    let path = absolute(path);
    let text = format!(
        "failed to Lchown {path:?} for UID {}, GID {} (try increasing the number of subordinate IDs in /etc/subuid \
         and /etc/subgid): lchown {path}: invalid argument",
        entry.uid, entry.gid
    );
    Error::new(ErrorKind::IdRange, text)
}

fn absolute(path: &[u8]) -> String {
    format!("/{}", show(path))
}

fn failed(operation: &str, path: &[u8], errno: Errno) -> Error {
    Error::os(format!("{operation} {}", absolute(path)), errno)
}

/// Docker's rule: nothing before 1970, and the last access is never before the last change.
fn times(entry: &Entry) -> Timestamps {
    let bounded = |time: Time| {
        if time < Time::default() {
            Time::default()
        } else {
            time
        }
    };
    let mtime = bounded(entry.mtime);
    let atime = entry.atime.map_or(mtime, |atime| bounded(atime).max(mtime));
    let spec = |time: Time| Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds.into(),
    };
    Timestamps {
        last_access: spec(atime),
        last_modification: spec(mtime),
    }
}

fn set_times(parent: impl AsFd, base: &[u8], times: &Timestamps, path: &[u8]) -> Result<()> {
    let parent: BorrowedFd<'_> = parent.as_fd();
    fs::utimensat(parent, base, times, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed("set times of", path, e))
}
