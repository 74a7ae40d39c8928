//! Files that survive `kill -9` and power loss: write to a temporary name, fsync, rename, fsync the directory (ADR 0002).
//!
//! [`Steps`] names the instants between the system calls; tests hang a hook on it to look at (or copy) what a crash
//! at that instant would leave. Outside tests it is nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind as IoKind, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Marks the instants at which a crash is worth a test.
#[derive(Clone, Default)]
pub(crate) struct Steps {
    #[cfg(test)]
    pub(crate) hook: Option<std::sync::Arc<dyn Fn(&'static str) + Send + Sync>>,
}

impl Steps {
    /// The moment right after the step called `name`.
    #[cfg_attr(
        not(test),
        expect(clippy::unused_self, reason = "the hook exists in tests only")
    )]
    pub(crate) fn after(&self, name: &'static str) {
        #[cfg(test)]
        if let Some(hook) = &self.hook {
            hook(name);
        }
        #[cfg(not(test))]
        let _ = name;
    }
}

/// Replaces `directory/name` by `value` as JSON; all or nothing, also when power fails. Callers serialise writers of
/// one name.
pub(crate) fn write_json<T: Serialize>(directory: &Path, name: &str, value: &T, steps: &Steps) -> Result<()> {
    let temporary = directory.join(format!(".{name}.tmp"));
    stage(&temporary, value, Flush::Now)?;
    steps.after("metadata written");
    publish(&temporary, &directory.join(name))?;
    steps.after("metadata renamed");
    sync_directory(directory)
}

/// As [`write_json`], but only a kill is survived: after a power failure the file may be the old one, missing, or
/// unreadable. For records that are not trusted then.
pub(crate) fn write_json_lightly<T: Serialize>(
    directory: &Path,
    name: &str,
    value: &T,
    steps: &Steps,
) -> Result<()> {
    let temporary = directory.join(format!(".{name}.tmp"));
    stage(&temporary, value, Flush::Later)?;
    steps.after("layer record written");
    publish(&temporary, &directory.join(name))
}

/// Whether to wait for the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// fsync(2).
    Now,
    /// Leave it to the kernel.
    Later,
}

/// Writes `value` to a temporary file.
pub(crate) fn stage<T: Serialize>(temporary: &Path, value: &T, flush: Flush) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::invalid(format!("encode {}", temporary.display())).caused_by(e))?;
    let written = File::create(temporary).and_then(|mut file| {
        file.write_all(&text)?;
        if flush == Flush::Now {
            file.sync_all()
        } else {
            Ok(())
        }
    });
    written.map_err(|error| {
        // Most likely the disk is full: give the space back, keep the first error.
        let _ = fs::remove_file(temporary);
        Error::io(format!("write {}", temporary.display()), error)
    })
}

/// Gives a staged file its name.
pub(crate) fn publish(temporary: &Path, target: &Path) -> Result<()> {
    fs::rename(temporary, target).map_err(|e| Error::io(format!("rename to {}", target.display()), e))
}

/// Reads JSON; `None` when the file does not exist.
///
/// # Errors
/// `Corrupt` when it cannot be parsed, `Io`.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::corrupt(format!("{} is damaged", path.display())).caused_by(e))
}

/// Makes renames in `directory` durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|d| d.sync_all())
        .map_err(|e| Error::io(format!("fsync {}", directory.display()), e))
}

/// Makes a directory (and those above it), open to its owner only.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| Error::io(format!("mkdir {}", path.display()), e))
}

/// Takes the lock file that keeps a second daemon out; held as long as the file is open.
///
/// # Errors
/// `Conflict` when another process holds it.
pub(crate) fn lock(path: &Path) -> Result<File> {
    use rustix::fs::{FlockOperation, flock};
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| Error::io(format!("open {}", path.display()), e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::new(
            crate::ErrorKind::Conflict,
            format!(
                "{} is held by another daemon: two daemons cannot share a data root",
                path.display()
            ),
        )),
        Err(error) => Err(Error::io(format!("flock {}", path.display()), error)),
    }
}
