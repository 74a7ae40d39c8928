//! The overlay's core behind the crate `fuse3`: what is measured against our own connection. Complete enough for the
//! work loads of this benchmark; what `fuse3` 0.10 cannot express is listed in ADR 11.

use std::ffi::OsStr;
use std::io;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use fuse3::raw::prelude::*;
use fuse3::raw::reply::ReplyXAttr;
use fuse3::{Errno, FileType, Inode, MountOptions, Result, SetAttr, Timestamp};
use futures_util::stream::{self, Stream};
use skiff_fuse_overlay::overlay::{self, Attr, Caller, Entry, Lookup, Overlay, SetTime, Time};

const FOPEN_KEEP_CACHE: u32 = 2;
const FOPEN_CACHE_DIR: u32 = 8;
/// Room for the names of one answer; the library cuts at what the kernel asked for.
const NAMES_AT_ONCE: usize = 128;

/// Mounts `overlay` on `target` and serves it until it is unmounted.
pub(crate) fn serve(overlay: Overlay, target: &Path) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut options = MountOptions::default();
        options
            .fs_name("fuse3")
            .allow_other(true)
            .default_permissions(true)
            .dont_mask(true)
            .write_back(true);
        Session::new(options)
            .mount_with_unprivileged(Adapter(overlay), target)
            .await?
            .await
    })
}

struct Adapter(Overlay);

fn failed(errno: rustix::io::Errno) -> Errno {
    Errno::from(errno.raw_os_error())
}

fn caller(request: Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid,
        gid: request.gid,
        pid: request.pid,
        umask,
    }
}

fn kind(mode: u32) -> FileType {
    match mode & 0o170_000 {
        0o040_000 => FileType::Directory,
        0o120_000 => FileType::Symlink,
        0o060_000 => FileType::BlockDevice,
        0o020_000 => FileType::CharDevice,
        0o010_000 => FileType::NamedPipe,
        0o140_000 => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

/// `fuse3` takes `st_ino` for the number by which requests name an inode, so programs see that one here.
fn attributes(node: u64, attr: &Attr) -> FileAttr {
    let time = |time: Time| Timestamp::new(time.seconds, time.nanoseconds);
    FileAttr {
        ino: node,
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        kind: kind(attr.mode),
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or(0),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
    }
}

fn entry(entry: &Entry) -> ReplyEntry {
    ReplyEntry {
        ttl: entry.ttl,
        attr: attributes(entry.node, &entry.attr),
        generation: entry.generation,
    }
}

impl Adapter {
    fn attr(&self, node: u64, attr: &Attr) -> ReplyAttr {
        ReplyAttr {
            ttl: self.0.config().ttl,
            attr: attributes(node, attr),
        }
    }
}

impl Filesystem for Adapter {
    async fn init(&self, _: Request) -> Result<ReplyInit> {
        let mut answer = ReplyInit::new(NonZeroU32::new(1 << 20).unwrap_or(NonZeroU32::MIN));
        answer.max_background = Some(128);
        answer.congestion_threshold = Some(96);
        Ok(answer)
    }

    async fn destroy(&self, _: Request) {}

    async fn lookup(&self, _: Request, parent: Inode, name: &OsStr) -> Result<ReplyEntry> {
        match self.0.lookup(parent, name).map_err(failed)? {
            Lookup::Found(found) => Ok(entry(&found)),
            Lookup::Negative(ttl) if ttl > Duration::ZERO => {
                let nothing = attributes(0, &NOTHING);
                Ok(ReplyEntry {
                    ttl,
                    attr: nothing,
                    generation: 0,
                })
            }
            Lookup::Negative(_) => Err(Errno::new_not_exist()),
        }
    }

    async fn forget(&self, _: Request, inode: Inode, nlookup: u64) {
        self.0.forget(inode, nlookup);
    }

    async fn batch_forget(&self, _: Request, inodes: &[(Inode, u64)]) {
        for (inode, count) in inodes {
            self.0.forget(*inode, *count);
        }
    }

    async fn getattr(&self, _: Request, inode: Inode, fh: Option<u64>, _: u32) -> Result<ReplyAttr> {
        let attr = self.0.getattr(inode, fh).map_err(failed)?;
        Ok(self.attr(inode, &attr))
    }

    async fn setattr(&self, _: Request, inode: Inode, fh: Option<u64>, set: SetAttr) -> Result<ReplyAttr> {
        let time = |time: Timestamp| {
            SetTime::At(Time {
                seconds: time.sec,
                nanoseconds: time.nsec,
            })
        };
        let change = overlay::SetAttr {
            mode: set.mode,
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: set.atime.map(time),
            mtime: set.mtime.map(time),
            kill_privileges: false,
        };
        let attr = self.0.setattr(inode, fh, &change).map_err(failed)?;
        Ok(self.attr(inode, &attr))
    }

    async fn mkdir(
        &self,
        request: Request,
        parent: Inode,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> Result<ReplyEntry> {
        let made = self.0.mkdir(&caller(request, umask), parent, name, mode);
        Ok(entry(&made.map_err(failed)?))
    }

    async fn unlink(&self, _: Request, parent: Inode, name: &OsStr) -> Result<()> {
        self.0.unlink(parent, name).map_err(failed)
    }

    async fn rmdir(&self, _: Request, parent: Inode, name: &OsStr) -> Result<()> {
        self.0.rmdir(parent, name).map_err(failed)
    }

    async fn open(&self, _: Request, inode: Inode, flags: u32) -> Result<ReplyOpen> {
        let opened = self.0.open(inode, flags).map_err(failed)?;
        Ok(ReplyOpen {
            fh: opened.handle,
            flags: FOPEN_KEEP_CACHE,
        })
    }

    async fn create(
        &self,
        request: Request,
        parent: Inode,
        name: &OsStr,
        mode: u32,
        flags: u32,
    ) -> Result<ReplyCreated> {
        // The library does not hand the umask on.
        let made = self.0.create(&caller(request, 0o022), parent, name, mode, flags);
        let (made, opened) = made.map_err(failed)?;
        Ok(ReplyCreated {
            ttl: made.ttl,
            attr: attributes(made.node, &made.attr),
            generation: made.generation,
            fh: opened.handle,
            flags: FOPEN_KEEP_CACHE,
        })
    }

    async fn read(&self, _: Request, _: Inode, fh: u64, offset: u64, size: u32) -> Result<ReplyData> {
        let mut buffer = vec![0; usize::try_from(size).unwrap_or(0)];
        let length = self.0.read(fh, offset, &mut buffer).map_err(failed)?;
        buffer.truncate(length);
        Ok(ReplyData { data: buffer.into() })
    }

    async fn write(
        &self,
        _: Request,
        _: Inode,
        fh: u64,
        offset: u64,
        data: &[u8],
        _: u32,
        _: u32,
    ) -> Result<ReplyWrite> {
        let written = self.0.write(fh, offset, data, false).map_err(failed)?;
        Ok(ReplyWrite {
            written: u32::try_from(written).unwrap_or(0),
        })
    }

    async fn release(&self, _: Request, _: Inode, fh: u64, _: u32, _: u64, _: bool) -> Result<()> {
        self.0.release(fh);
        Ok(())
    }

    async fn getxattr(&self, _: Request, inode: Inode, name: &OsStr, size: u32) -> Result<ReplyXAttr> {
        let value = self.0.getxattr(inode, name).map_err(failed)?;
        match size {
            0 => Ok(ReplyXAttr::Size(u32::try_from(value.len()).unwrap_or(0))),
            _ => Ok(ReplyXAttr::Data(value.into())),
        }
    }

    async fn opendir(&self, _: Request, inode: Inode, _: u32) -> Result<ReplyOpen> {
        Ok(ReplyOpen {
            fh: self.0.opendir(inode).map_err(failed)?,
            flags: FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR,
        })
    }

    async fn releasedir(&self, _: Request, _: Inode, fh: u64, _: u32) -> Result<()> {
        self.0.releasedir(fh);
        Ok(())
    }

    async fn readdir<'a>(
        &'a self,
        _: Request,
        _: Inode,
        fh: u64,
        offset: i64,
    ) -> Result<ReplyDirectory<impl Stream<Item = Result<DirectoryEntry>> + Send + 'a>> {
        let mut entries = Vec::new();
        let list = self.0.readdir(fh, offset.cast_unsigned(), &mut |found| {
            entries.push(Ok(DirectoryEntry {
                inode: found.ino,
                kind: kind(found.kind.as_raw_mode()),
                name: found.name.to_owned(),
                offset: found.offset.cast_signed(),
            }));
            entries.len() < NAMES_AT_ONCE
        });
        list.map_err(failed)?;
        Ok(ReplyDirectory {
            entries: stream::iter(entries),
        })
    }

    async fn readdirplus<'a>(
        &'a self,
        _: Request,
        _: Inode,
        fh: u64,
        offset: u64,
        _: u64,
    ) -> Result<ReplyDirectoryPlus<impl Stream<Item = Result<DirectoryEntryPlus>> + Send + 'a>> {
        let mut entries = Vec::new();
        let list = self.0.readdirplus(fh, offset, &mut |found, with| {
            // A stream cannot give back what did not fit: the kernel asks again, and the count of lookups is too high.
            let node = with.map_or(0, |entry| entry.node);
            let attr = with.map_or(&NOTHING, |entry| &entry.attr);
            let ttl = with.map_or(Duration::ZERO, |entry| entry.ttl);
            entries.push(Ok(DirectoryEntryPlus {
                inode: found.ino,
                generation: 0,
                kind: kind(found.kind.as_raw_mode()),
                name: found.name.to_owned(),
                offset: found.offset.cast_signed(),
                attr: attributes(node, attr),
                entry_ttl: ttl,
                attr_ttl: ttl,
            }));
            entries.len() < NAMES_AT_ONCE
        });
        list.map_err(failed)?;
        Ok(ReplyDirectoryPlus {
            entries: stream::iter(entries),
        })
    }
}

const NOTHING: Attr = Attr {
    ino: 0,
    size: 0,
    blocks: 0,
    atime: ZERO,
    mtime: ZERO,
    ctime: ZERO,
    mode: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
};
const ZERO: Time = Time {
    seconds: 0,
    nanoseconds: 0,
};
