//! The work directory: where files become complete before they get their names.
//!
//! ```text
//!   workdir/work/        emptied at each start; the kernel's overlayfs does the same with it
//!     #1, #2, …          files and directories on their way into the upper directory, or out of it
//!     #w1                a whiteout; those in the upper directory are further links to it, which cost no inode
//! ```
//!
//! The directory is locked (flock(2)) while the overlay lives: two writers of one upper directory would destroy it.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::layer::{kind_of, stat_at};
use super::lock::{lock, read, write};
use super::{NewError, Result, listing};

#[derive(Debug)]
pub(super) struct Work {
    pub(super) fd: OwnedFd,
    /// Holds the lock.
    _workdir: OwnedFd,
    next: AtomicU64,
    whiteout: Mutex<Option<OsString>>,
    /// Inodes of the whiteouts that this mount made and still has a link to.
    whiteouts: RwLock<Vec<u64>>,
}

/// How long a mount waits for the server of one that was just taken down: unmounting returns before that has ended.
const PATIENCE: Duration = Duration::from_secs(3);

fn take(workdir: &OwnedFd) -> rustix::io::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match fs::flock(workdir, FlockOperation::NonBlockingLockExclusive) {
            // No lock can be waited for with a limit.
            Err(Errno::AGAIN) if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
            other => return other,
        }
    }
}

impl Work {
    pub(super) fn open(path: &Path, upper_device: u64) -> std::result::Result<Self, NewError> {
        let failed = |what: &str| {
            let what = format!("{what} {}", path.display());
            move |errno| NewError::new(what, errno)
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let workdir = fs::open(path, flags, Mode::empty()).map_err(failed("open work directory"))?;
        let stat = fs::fstat(&workdir).map_err(failed("stat work directory"))?;
        if stat.st_dev != upper_device {
            return Err(failed(
                "upper directory lies on another file system than work directory",
            )(Errno::XDEV));
        }
        take(&workdir).map_err(failed("another mount uses work directory"))?;
        match fs::mkdirat(&workdir, "work", Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("mkdir in work directory")(errno)),
        }
        let fd = fs::openat(&workdir, "work", flags | OFlags::NOFOLLOW, Mode::empty())
            .map_err(failed("open work in"))?;
        empty(&fd).map_err(failed("empty work directory"))?;
        Ok(Self {
            fd,
            _workdir: workdir,
            next: AtomicU64::new(1),
            whiteout: Mutex::default(),
            whiteouts: RwLock::default(),
        })
    }

    /// A name that nothing has yet.
    pub(super) fn name(&self) -> OsString {
        let mut name = String::with_capacity(20);
        // Writing to a String cannot fail.
        let _ = write!(name, "#{:x}", self.next.fetch_add(1, Ordering::Relaxed));
        name.into()
    }

    /// Puts a whiteout at a free name.
    pub(super) fn whiteout(&self, directory: impl AsFd, name: &OsStr) -> Result<()> {
        let directory = directory.as_fd();
        let shared = lock(&self.whiteout).clone();
        if let Some(shared) = shared {
            match fs::linkat(&self.fd, &*shared, directory, name, AtFlags::empty()) {
                // As many links as the file system can have, or no links at all: another one.
                Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP | Errno::XDEV) => {}
                outcome => return outcome,
            }
        }
        device(directory, name)?;
        let fresh = OsString::from(format!("#w{:x}", self.next.fetch_add(1, Ordering::Relaxed)));
        if fs::linkat(directory, name, &self.fd, &*fresh, AtFlags::empty()).is_ok()
            && let Ok(Some(stat)) = stat_at(&self.fd, &fresh)
        {
            write(&self.whiteouts).push(stat.st_ino);
            *lock(&self.whiteout) = Some(fresh);
        }
        Ok(())
    }

    /// Puts a whiteout in the place of what is there, anything but a directory.
    pub(super) fn whiteout_over(&self, directory: impl AsFd, name: &OsStr) -> Result<()> {
        let staged = self.name();
        self.whiteout(&self.fd, &staged)?;
        fs::renameat(&self.fd, &*staged, directory, name).inspect_err(|_| self.discard(&staged))
    }

    /// Whether a character device of the upper directory is one of our whiteouts, known without a look at it.
    pub(super) fn is_own_whiteout(&self, ino: u64) -> bool {
        read(&self.whiteouts).contains(&ino)
    }

    /// Removes something that did not get its place, or lost it. What cannot be removed now is at the next start.
    pub(super) fn discard(&self, name: &OsStr) {
        if let Err(errno) = remove_all(&self.fd, name) {
            tracing::warn!(?name, %errno, "left in the work directory");
        }
    }
}

fn device(directory: impl AsFd, name: &OsStr) -> Result<()> {
    fs::mknodat(directory, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Removes all that is in a directory.
pub(super) fn empty(directory: &OwnedFd) -> Result<()> {
    for name in listing::names(directory)? {
        remove_all(directory, &name)?;
    }
    Ok(())
}

/// Removes a file, or a directory with all that is in it; links are not followed.
///
/// Not recursive: directories are emptied by moving the subdirectories they hold up to the first one.
pub(super) fn remove_all(directory: &OwnedFd, name: &OsStr) -> Result<()> {
    match fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        outcome => return outcome,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut left = vec![name.to_owned()];
    while let Some(name) = left.pop() {
        match fs::unlinkat(directory, &*name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(Errno::NOENT) => continue,
            outcome => {
                outcome?;
                continue;
            }
        }
        let fd = fs::openat(directory, &*name, flags, Mode::empty())?;
        left.push(name);
        for child in listing::names(&fd)? {
            let stat = stat_at(&fd, &child)?;
            if stat.is_some_and(|stat| kind_of(&stat) == FileType::Directory) {
                if fs::unlinkat(&fd, &*child, AtFlags::REMOVEDIR).is_ok() {
                    continue;
                }
                left.push(move_up(&fd, &child, directory)?);
            } else {
                fs::unlinkat(&fd, &*child, AtFlags::empty())?;
            }
        }
    }
    Ok(())
}

/// Moves a directory to a free name in `to`.
fn move_up(from: &OwnedFd, name: &OsStr, to: &OwnedFd) -> Result<OsString> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    loop {
        let up = OsString::from(format!("#d{:x}", NEXT.fetch_add(1, Ordering::Relaxed)));
        match fs::renameat(from, name, to, &*up) {
            Ok(()) => return Ok(up),
            // Left by an earlier run.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
