//! The work directory: where files become complete before they get their names.
//!
//! ```text
//!   workdir/work/        emptied at each start; the kernel's overlayfs does the same with it
//!     #1, #2, …          files and directories on their way into the upper directory, or out of it
//!     #w1                a whiteout; those in the upper directory are further links to it, which cost no inode
//! ```
//!
//! The directory is locked (flock(2)) while the overlay lives, and so is the upper directory: two writers would destroy
//! it. Neither may lie in the other, nor a layer in the work directory: emptying it would destroy that.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::layer::{Layer, kind_of, stat_at};
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

fn take(directory: impl AsFd) -> rustix::io::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            // No lock can be waited for with a limit.
            Err(Errno::AGAIN) if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
            other => return other,
        }
    }
}

impl Work {
    /// `layers` are all of the overlay, the first is its upper directory.
    pub(super) fn open(path: &Path, layers: &[Layer]) -> std::result::Result<Self, NewError> {
        let upper = layers
            .first()
            .ok_or_else(|| NewError::new("no upper directory", Errno::INVAL))?;
        let failed = |what: &str| {
            let what = format!("{what} {}", path.display());
            move |errno| NewError::new(what, errno)
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let workdir = fs::open(path, flags, Mode::empty()).map_err(failed("open work directory"))?;
        let stat = fs::fstat(&workdir).map_err(failed("stat work directory"))?;
        if stat.st_dev != upper.root_stat.st_dev {
            return Err(failed(
                "upper directory lies on another file system than work directory",
            )(Errno::XDEV));
        }
        let above_layers = Self::stay_apart(&workdir, layers)?;
        take(&workdir).map_err(failed("another mount uses work directory"))?;
        take(&*upper.root).map_err(|errno| NewError::new("another mount uses the upper directory", errno))?;
        match fs::mkdirat(&workdir, "work", Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("mkdir in work directory")(errno)),
        }
        let fd = fs::openat(&workdir, "work", flags | OFlags::NOFOLLOW, Mode::empty())
            .map_err(failed("open work in"))?;
        // Something else may be mounted there.
        let inner = fs::fstat(&fd).map_err(failed("stat work in"))?;
        if inner.st_dev != stat.st_dev || above_layers.contains(&(inner.st_dev, inner.st_ino)) {
            return Err(failed("not a directory of its own: work in")(Errno::INVAL));
        }
        empty(&fd).map_err(failed("empty work directory"))?;
        Ok(Self {
            fd,
            _workdir: workdir,
            next: AtomicU64::new(1),
            whiteout: Mutex::default(),
            whiteouts: RwLock::default(),
        })
    }

    /// Refuses directories that lie in one another, with the kernel's words for it, before anything is written. Gives
    /// the layers' roots and all directories above them.
    fn stay_apart(workdir: &OwnedFd, layers: &[Layer]) -> std::result::Result<HashSet<(u64, u64)>, NewError> {
        let failed = |errno| NewError::new("look for the parents of a layer", errno);
        let mut above = HashSet::new();
        walk_up(workdir.as_fd(), &mut above).map_err(failed)?;
        let id = |stat: &fs::Stat| (stat.st_dev, stat.st_ino);
        let own = id(&fs::fstat(workdir).map_err(failed)?);
        let upper = layers.first().map(|upper| id(&upper.root_stat));
        let mut apart = upper.is_none_or(|upper| !above.contains(&upper));
        above.clear();
        for (index, layer) in layers.iter().enumerate() {
            walk_up(layer.root.as_fd(), &mut above).map_err(failed)?;
            apart &= !above.contains(&own);
            if !apart {
                let what = match index {
                    0 => "workdir and upperdir must be separate subtrees",
                    _ => "a lowerdir lies in workdir",
                };
                return Err(NewError::new(what, Errno::INVAL));
            }
        }
        Ok(above)
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

/// Notes a directory and those above it, as far as nobody has noted them. Inodes and not paths: a link or a bind mount
/// on the way makes no difference.
fn walk_up(directory: std::os::fd::BorrowedFd<'_>, seen: &mut HashSet<(u64, u64)>) -> Result<()> {
    let mut here = directory.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    loop {
        let stat = fs::fstat(&here)?;
        if !seen.insert((stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        here = match fs::openat(&here, c"..", flags, Mode::empty()) {
            Ok(parent) => parent,
            // Nobody may go there: neither can anything of ours lie between.
            Err(Errno::ACCESS) => return Ok(()),
            Err(errno) => return Err(errno),
        };
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
