//! The place where everything happens, and its end.
//!
//! ```text
//!  <data root>/bench/              locked (flock) while a benchmark runs: one at a time
//!  <data root>/bench/storage.json  the last result
//!  <data root>/bench/scratch/      the drivers' roots and mount points; gone when nothing runs
//! ```
//!
//! Whoever holds the lock owns `scratch`: what is found there was left by a run that was killed, and is swept first.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use skiff_graphdrivers::remove_roots;

use crate::error::{Error, ErrorKind, Result};
use crate::report::Report;

/// The last result, relative to the data root.
pub const RESULT: &str = "bench/storage.json";

const SCRATCH: &str = "scratch";

/// The scratch directory; dropping it removes everything.
#[derive(Debug)]
pub struct Scratch {
    /// `<data root>/bench`.
    home: PathBuf,
    /// Holds the lock.
    _lock: File,
    swept: bool,
}

impl Scratch {
    /// Takes the place below the existing directory `data_root`, and removes what an earlier run left.
    ///
    /// # Errors
    /// `Busy` while another benchmark runs there; `Failed` when the directory cannot be made or swept.
    pub fn open(data_root: &Path) -> Result<Self> {
        let home = data_root.join("bench");
        make(&home, 0o711)?;
        let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed();
        let lock = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&home)
            .map_err(|error| Error::io(format!("open {}", home.display()), error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let text = format!("another benchmark is running in {}", home.display());
                return Err(Error::new(ErrorKind::Busy, text));
            }
            Err(errno) => return Err(Error::io(format!("lock {}", home.display()), errno)),
        }
        let this = Self {
            home,
            _lock: lock,
            swept: false,
        };
        let path = this.path();
        if path.symlink_metadata().is_ok() {
            tracing::info!(path = %path.display(), "removing what an interrupted benchmark left");
            sweep(&path)?;
        }
        // Passable, like a driver's root: containers' users are other ids.
        make(&path, 0o711)?;
        Ok(this)
    }

    /// The directory.
    pub fn path(&self) -> PathBuf {
        self.home.join(SCRATCH)
    }

    /// Keeps `report` as the last result.
    ///
    /// # Errors
    /// `NoSpace`, `Failed`: the old result stays.
    pub fn store(&self, report: &Report) -> Result<()> {
        let name = Path::new(RESULT).file_name().unwrap_or_default();
        let (path, new) = (self.home.join(name), self.path().join(name));
        let failed = |error: io::Error| Error::io(format!("write {}", path.display()), error);
        let mut file = File::create(&new).map_err(failed)?;
        file.write_all(report.to_json()?.as_bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&new, &path).map_err(failed)
    }

    /// Removes everything but the stored result.
    ///
    /// # Errors
    /// `Failed`, with what could not be removed.
    pub fn close(mut self) -> Result<()> {
        self.swept = true;
        sweep(&self.path())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.swept
            && let Err(error) = sweep(&self.path())
        {
            tracing::warn!(%error, "the benchmark's files could not be removed; the next run tries again");
        }
    }
}

fn make(path: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::io(format!("mkdir {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Detaches what is mounted below `directory` and removes it.
fn sweep(directory: &Path) -> Result<()> {
    let table =
        fs::read("/proc/self/mountinfo").map_err(|error| Error::io("read /proc/self/mountinfo", error))?;
    let real = directory
        .canonicalize()
        .map_err(|error| Error::io(format!("resolve {}", directory.display()), error))?;
    for point in String::from_utf8_lossy(&table)
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4))
        .map(crate::disk::unescape)
        .filter(|point| point.starts_with(&real) && *point != real)
    {
        unmount(&point, UnmountFlags::DETACH)
            .map_err(|errno| Error::io(format!("unmount {}", point.display()), errno))?;
    }
    remove_roots(directory).map(drop).map_err(Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_swept_and_one_runs_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let left = root.path().join("bench/scratch/overlay2/active-x/diff");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("file"), "x").unwrap();
        let scratch = Scratch::open(root.path()).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        assert_eq!(Scratch::open(root.path()).unwrap_err().kind(), ErrorKind::Busy);
        fs::write(scratch.path().join("y"), "y").unwrap();
        drop(scratch);
        assert!(!root.path().join("bench/scratch").exists());
        let scratch = Scratch::open(root.path()).unwrap();
        scratch.close().unwrap();
        assert_eq!(fs::read_dir(root.path().join("bench")).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_the_place_of_the_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::create_dir(elsewhere.path().join("scratch")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), root.path().join("bench")).unwrap();
        assert!(Scratch::open(root.path()).is_err());
        assert!(elsewhere.path().join("scratch").exists());
    }
}
