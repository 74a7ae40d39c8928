//! One daemon per data root and one per exec root.
//!
//! The lock is held by parent and daemon together. A start that comes right after a `kill -9` finds it still held by
//! the half that is about to end, and waits for that; a start beside a living daemon is refused.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use skiff_sys::identity::ProcessIdentity;
use skiff_sys::lock::{Attempt, FileLock};

/// File name of the lock in either directory.
const NAME: &str = "skiffd.lock";
/// How long a holder may take that looks alive: its other half was killed a moment ago and it is about to notice.
const PATIENCE_WITH_THE_LIVING: Duration = Duration::from_millis(700);
/// How long one may take whose parent is dead: it ends on its own.
const PATIENCE_WITH_THE_DYING: Duration = Duration::from_secs(10);
/// flock(2) cannot wait with a limit.
const INTERVAL: Duration = Duration::from_millis(5);

/// Makes both directories and locks them.
///
/// # Errors
/// The text for the user: dockerd's `process with PID N is still running`, or why a directory cannot be used.
pub(crate) fn acquire(data_root: &Path, exec_root: &Path) -> Result<[FileLock; 2], String> {
    let data = acquire_one("data root", data_root)?;
    // One directory for both would be strange, but is no reason to wait for ourselves.
    if same(data_root, exec_root) {
        return Err(format!(
            "--data-root and --exec-root are the same directory: {}",
            data_root.display()
        ));
    }
    Ok([data, acquire_one("exec root", exec_root)?])
}

/// Makes a directory with its parents, only for us and, as far as passing through goes, for containers' users.
///
/// # Errors
/// The text for the user.
pub(crate) fn make_directory(what: &str, path: &Path) -> Result<PathBuf, String> {
    let fail = |error: io::Error| format!("cannot use {what} {}: {error}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    match DirBuilder::new().mode(0o710).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail(error)),
        _ => {}
    }
    let path = fs::canonicalize(path).map_err(fail)?;
    if path.is_dir() {
        Ok(path)
    } else {
        Err(format!("cannot use {what} {}: not a directory", path.display()))
    }
}

fn same(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

fn acquire_one(what: &str, directory: &Path) -> Result<FileLock, String> {
    match take(what, directory)? {
        Taken::Ours(lock) => Ok(lock),
        Taken::Theirs(holder) => {
            let pid = holder.map_or_else(|| "unknown".to_owned(), |holder| holder.pid.to_string());
            Err(format!(
                "failed to start daemon, {what} {} is in use: process with PID {pid} is still running",
                directory.display()
            ))
        }
    }
}

/// What came of an attempt at one lock.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is ours.
    Ours(FileLock),
    /// A daemon (its parent, rootless) has it; `None` when the file does not say which.
    Theirs(Option<ProcessIdentity>),
}

/// Locks one directory, for a daemon or for a command that no daemon may disturb. Patience as above.
///
/// # Errors
/// The text for the user.
pub(crate) fn take(what: &str, directory: &Path) -> Result<Taken, String> {
    let path = directory.join(NAME);
    let fail = |error: io::Error| format!("cannot lock {what} {}: {error}", directory.display());
    let begin = Instant::now();
    loop {
        let text = match FileLock::try_acquire(&path).map_err(fail)? {
            Attempt::Acquired(mut lock) => {
                let me = ProcessIdentity::current().map_err(fail)?;
                lock.write(&format!("{me}\n")).map_err(fail)?;
                return Ok(Taken::Ours(lock));
            }
            Attempt::Held(text) => text,
        };
        let holder: Option<ProcessIdentity> = text.parse().ok();
        let alive = holder
            .as_ref()
            .is_some_and(|holder| holder.is_alive().unwrap_or(true));
        let patience = if alive {
            PATIENCE_WITH_THE_LIVING
        } else {
            PATIENCE_WITH_THE_DYING
        };
        if begin.elapsed() > patience {
            return Ok(Taken::Theirs(holder));
        }
        thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_holder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let roots = ["data", "exec"].map(|name| make_directory(name, &dir.path().join(name)).unwrap());
        let held = acquire(&roots[0], &roots[1]).unwrap();
        let text = acquire(&roots[0], &roots[1]).unwrap_err();
        assert!(
            text.contains(&format!(
                "process with PID {} is still running",
                std::process::id()
            )),
            "{text}"
        );
        drop(held);
        acquire(&roots[0], &roots[1]).unwrap();
    }

    #[test]
    fn a_dying_holder_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let Attempt::Acquired(mut lock) = FileLock::try_acquire(&path).unwrap() else {
            panic!("free")
        };
        // The parent named in the file is dead; the descriptor is still held by its daemon.
        lock.write("1 0 another-boot").unwrap();
        let begin = Instant::now();
        let holder = thread::spawn(move || {
            thread::sleep(PATIENCE_WITH_THE_LIVING * 2);
            drop(lock);
        });
        acquire_one("data root", dir.path()).unwrap();
        assert!(begin.elapsed() > PATIENCE_WITH_THE_LIVING);
        holder.join().unwrap();
    }
}
