//! Lock files: one daemon per data root and exec root.
//!
//! flock(2), not fcntl: the lock belongs to the open file, so that parent and daemon can hold it together (the parent
//! hands the descriptor over) and it is free only when both are gone, however they died. The file is never unlinked:
//! a name that can vanish lets two processes lock two files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// A lock that is held until the last copy of its descriptor is closed.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

/// What became of a try.
#[derive(Debug)]
pub enum Attempt {
    /// We hold it.
    Acquired(FileLock),
    /// Somebody else does; what they wrote into the file with [`FileLock::write`].
    Held(String),
}

impl FileLock {
    /// Tries to take the lock without waiting. Makes the file (mode 0600) when it is missing.
    ///
    /// # Errors
    /// When the file cannot be made or opened (a symbolic link is refused).
    pub fn try_acquire(path: &Path) -> io::Result<Attempt> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Attempt::Acquired(Self { file })),
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // Bounded: the file is ours, but nothing stops others of our user from writing to it.
                (&mut file)
                    .take(4096)
                    .read_to_string(&mut text)
                    .or_else(|error| match error.kind() {
                        io::ErrorKind::InvalidData => Ok(0),
                        _ => Err(error),
                    })?;
                Ok(Attempt::Held(text))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Replaces what others read when they find the lock taken. # Errors: the disk's.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())
    }
}

impl AsFd for FileLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Takes over a descriptor that came from the process that made the lock.
impl From<OwnedFd> for FileLock {
    fn from(fd: OwnedFd) -> Self {
        Self { file: File::from(fd) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_lives_as_long_as_any_copy_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let Attempt::Acquired(mut first) = FileLock::try_acquire(&path).unwrap() else {
            panic!("free")
        };
        first.write("a longer text").unwrap();
        first.write("4711").unwrap();
        let copy = FileLock::from(first.as_fd().try_clone_to_owned().unwrap());
        drop(first);
        assert!(matches!(FileLock::try_acquire(&path).unwrap(), Attempt::Held(text) if text == "4711"));
        drop(copy);
        assert!(matches!(
            FileLock::try_acquire(&path).unwrap(),
            Attempt::Acquired(_)
        ));
    }

    #[test]
    fn a_symbolic_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert_eq!(
            FileLock::try_acquire(&path).unwrap_err().raw_os_error(),
            Some(libc::ELOOP)
        );
    }
}
