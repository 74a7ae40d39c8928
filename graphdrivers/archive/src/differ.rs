//! Writing a layer: the changes of a tree as a tar stream.
//!
//! The stream is canonical (order of `walk`, ustar with PAX records only where needed, no user names), so the same
//! tree gives the same bytes, and `diff → apply → diff` is the identity.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::WhiteoutFormat;
use crate::entry::{Entry, Kind, Time};
use crate::error::{Error, Result, show};
use crate::owner::Owners;
use crate::pipeline::BUFFER_SIZE;
use crate::walk::{Change, Visit, Visitor, changes, is_outdated};
use crate::writer::{Writer, blank};
use crate::xattrs::{self, Place};

/// Where the changes of a layer can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiffTree<'a> {
    /// The directory holds exactly the changes.
    Native {
        /// The directory.
        directory: &'a Path,
        /// How deletions are marked in it.
        whiteouts: WhiteoutFormat,
    },
    /// Two whole trees are to be compared.
    Compare {
        /// The tree.
        directory: &'a Path,
        /// What it was before; `None` for nothing.
        parent: Option<&'a Path>,
    },
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Diffed {
    /// Members of the archive.
    pub entries: u64,
    /// Bytes of regular files, each inode once.
    pub size: u64,
    /// Length of the tar stream in bytes.
    pub stream_size: u64,
}

/// How a layer is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiffOptions<'a> {
    /// Real owners of files that were unpacked with folded ones.
    pub owners: Option<&'a Owners>,
    /// Names that are left out, without a leading slash.
    pub without: Option<&'a BTreeSet<Vec<u8>>>,
}

/// Writes the changes of `tree` as an uncompressed layer. Sockets are left out; a tar stream has no form for them.
///
/// The tree may change meanwhile. Each file is as it was at some instant: one that goes before it is reached is left out,
/// one that another takes the place of is the other, and one that becomes shorter while it is read is filled with zeros.
///
/// # Errors
/// `Io` when a file cannot be read; whatever `out` gives; `NoSpace`.
pub fn diff(tree: &DiffTree<'_>, out: impl Write) -> Result<Diffed> {
    diff_with(tree, &DiffOptions::default(), out)
}

/// As [`diff`], with options.
///
/// # Errors
/// As [`diff`].
pub fn diff_with(tree: &DiffTree<'_>, options: &DiffOptions<'_>, out: impl Write) -> Result<Diffed> {
    let mut pack = Pack {
        owners: options.owners,
        without: options.without,
        writer: Writer::new(out),
        links: HashMap::new(),
        buffer: vec![0; BUFFER_SIZE],
        diffed: Diffed::default(),
    };
    changes(tree, &mut pack)?;
    pack.diffed.stream_size = pack.writer.finish()?;
    Ok(pack.diffed)
}

struct Pack<'o, W> {
    owners: Option<&'o Owners>,
    without: Option<&'o BTreeSet<Vec<u8>>>,
    writer: Writer<W>,
    /// First name of each inode that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    diffed: Diffed,
}

impl<W: Write> Visitor for Pack<'_, W> {
    fn change(&mut self, change: Change<'_>) -> Result<Visit> {
        match change {
            Change::Marker { path } => {
                self.diffed.entries += 1;
                self.writer.header(&Entry {
                    path: path.to_vec(),
                    ..blank()
                })?;
                Ok(Visit::Done)
            }
            Change::Present {
                path,
                parent,
                name,
                stat,
            } => self.present(path, parent, name, stat),
        }
    }

    fn wants(&self, path: &[u8]) -> bool {
        !self.without.is_some_and(|without| without.contains(path))
    }
}

/// A member about to be written: all that can fail because a name is gone has been done.
struct Member {
    entry: Entry,
    /// What it was when it was opened, for a file with data.
    data: Option<(OwnedFd, Stat)>,
    /// Its inode, when other names may follow.
    inode: Option<(u64, u64)>,
}

/// A system call that failed, and how.
type Failed = (&'static str, Errno);

impl<W: Write> Pack<'_, W> {
    fn present(&mut self, path: &[u8], parent: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<Visit> {
        if !self.wants(path) {
            return Ok(Visit::Done);
        }
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::Regular,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            _ => {
                tracing::debug!(path = show(path), "socket left out of a layer");
                return Ok(Visit::Done);
            }
        };
        match self.member(path, kind, parent, name, stat) {
            Ok(member) => self.write(&member, path).map(|()| Visit::Done),
            Err((_, errno)) if is_outdated(parent, name, stat, errno) => Ok(Visit::Outdated),
            Err((operation, errno)) => Err(Error::os(format!("{operation} /{}", show(path)), errno)),
        }
    }

    /// Looks at a name closely.
    fn member(
        &self,
        path: &[u8],
        kind: Kind,
        parent: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
    ) -> Result<Member, Failed> {
        let inode = |stat: &Stat| {
            (kind != Kind::Directory && stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino))
        };
        let first = |stat: &Stat| inode(stat).and_then(|inode| self.links.get(&inode));
        let data = match kind {
            Kind::Regular if first(stat).is_none() => Some(open(parent, name)?),
            _ => None,
        };
        // Another file may have got the name meanwhile: what is told is about the one that will be read.
        let stat = data.as_ref().map_or(stat, |(_, stat)| stat);
        let mut entry = describe(path, kind, stat);
        if let Some(owners) = self.owners {
            (entry.uid, entry.gid) = owners.real(path, stat.st_uid, stat.st_gid);
        }
        let place = match &data {
            Some((file, _)) => Place::Open(file.as_fd()),
            None => Place::Name(parent, name),
        };
        entry.xattrs = xattrs::read(place).map_err(|e| ("read attributes of", e))?;
        if let Some(first) = first(stat) {
            entry.kind = Kind::HardLink;
            entry.link.clone_from(first);
            entry.size = 0;
            return Ok(Member {
                entry,
                data: None,
                inode: None,
            });
        }
        if kind == Kind::Symlink {
            let target = fs::readlinkat(parent, name, Vec::new()).map_err(|e| ("readlink", e))?;
            entry.link = target.into_bytes();
        }
        let inode = inode(stat);
        Ok(Member { entry, data, inode })
    }

    fn write(&mut self, member: &Member, path: &[u8]) -> Result<()> {
        if let Some(inode) = member.inode {
            self.links.insert(inode, path.to_vec());
        }
        self.diffed.entries += 1;
        self.writer.header(&member.entry)?;
        match &member.data {
            Some((file, stat)) => self.contents(&member.entry, file, stat),
            None => Ok(()),
        }
    }

    fn contents(&mut self, entry: &Entry, file: &OwnedFd, stat: &Stat) -> Result<()> {
        let failed = |operation: &str, errno| Error::os(format!("{operation} /{}", show(&entry.path)), errno);
        self.diffed.size += entry.size;
        let sparse = u64::try_from(stat.st_blocks).unwrap_or_default() * 512 < entry.size;
        let mut at = 0;
        while at < entry.size {
            if sparse {
                // Holes are not read; in the stream they are zeros, which every engine understands.
                let data = next_data(file, at, entry.size).map_err(|e| failed("look for data in", e))?;
                self.zeros(data - at)?;
                at = data;
            }
            let end = match sparse {
                true => fs::seek(file, fs::SeekFrom::Hole(at)).map_or(entry.size, |end| end.min(entry.size)),
                false => entry.size,
            };
            at = self.extent(file, at, end, &entry.path)?;
        }
        Ok(())
    }

    /// Writes the bytes from `at` to `end`. A file that has become shorter since its header was written goes on with zeros,
    /// as with GNU tar: the header cannot be taken back, and what is here is still worth something.
    fn extent(&mut self, file: &OwnedFd, mut at: u64, end: u64, path: &[u8]) -> Result<u64> {
        while at < end {
            let wanted = self
                .buffer
                .len()
                .min(usize::try_from(end - at).unwrap_or(usize::MAX));
            match rustix::io::pread(file, &mut self.buffer[..wanted], at) {
                Ok(0) => {
                    tracing::warn!(
                        path = show(path),
                        missing = end - at,
                        "a file became shorter while it was read: filled with zeros"
                    );
                    self.zeros(end - at)?;
                    return Ok(end);
                }
                Ok(n) => {
                    self.writer.data(&self.buffer[..n])?;
                    at += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::os(format!("read /{}", show(path)), errno)),
            }
        }
        Ok(at)
    }

    fn zeros(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            let n = ZEROS.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            self.writer.data(&ZEROS[..n])?;
            count -= n as u64;
        }
        Ok(())
    }
}

/// Opens a file for reading. What is none any more gives the error that opening it gives.
fn open(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(OwnedFd, Stat), Failed> {
    // Should it have become a FIFO meanwhile, NONBLOCK keeps us from waiting for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::openat(parent, name, flags, Mode::empty()).map_err(|e| ("open", e))?;
    let stat = fs::fstat(&file).map_err(|e| ("stat", e))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((file, stat)),
        _ => Err(("open", Errno::NXIO)),
    }
}

/// What a hole is made of.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Where the next data of a sparse file begins; `size` when only a hole is left.
fn next_data(file: &OwnedFd, at: u64, size: u64) -> Result<u64, Errno> {
    match fs::seek(file, fs::SeekFrom::Data(at)) {
        Ok(data) => Ok(data.min(size)),
        Err(Errno::NXIO) => Ok(size),
        // This file system does not tell.
        Err(Errno::INVAL) => Ok(at),
        Err(errno) => Err(errno),
    }
}

fn describe(path: &[u8], kind: Kind, stat: &Stat) -> Entry {
    let slash: &[u8] = if kind == Kind::Directory { b"/" } else { b"" };
    let device = match kind {
        Kind::CharDevice | Kind::BlockDevice => (fs::major(stat.st_rdev), fs::minor(stat.st_rdev)),
        _ => (0, 0),
    };
    Entry {
        path: [path, slash].concat(),
        kind,
        // The permission bits of a symbolic link mean nothing and differ between file systems.
        mode: if kind == Kind::Symlink {
            0o777
        } else {
            stat.st_mode & 0o7777
        },
        uid: stat.st_uid.into(),
        gid: stat.st_gid.into(),
        mtime: Time {
            seconds: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        },
        device,
        size: if kind == Kind::Regular {
            u64::try_from(stat.st_size).unwrap_or_default()
        } else {
            0
        },
        ..blank()
    }
}

#[cfg(test)]
mod tests;
