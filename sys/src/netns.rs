//! Network namespaces: working inside one on a thread of its own, and giving one a path.
//!
//! Called by `skiff-network`. A thread of a daemon without privileges on the host that has entered another network
//! namespace ([`ns::join`], [`ns::unshare`]) cannot come back, because the host's namespace belongs to another user
//! namespace; so this is done on threads made for the purpose ([`run_in`]). What a thread opens inside (a socket, a
//! file in `/proc/sys/net`) keeps belonging to that namespace when it is handed to other threads.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::ns::{self, Kind};

/// `NSFS_MAGIC`, the file system type of namespace files.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The calling thread's network namespace.
///
/// # Errors
/// That of open(2), for example when /proc is not mounted.
pub fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// Runs `work` on a new thread inside `namespace` (in the caller's own namespace for `None`) and returns its result.
///
/// # Errors
/// Those of [`ns::join`] and of thread creation; a panic in `work` is an error, too.
pub fn run_in<T: Send>(namespace: Option<BorrowedFd<'_>>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let inside = move || -> io::Result<T> {
            if let Some(namespace) = namespace {
                ns::join(namespace, Kind::Network)?;
            }
            Ok(work())
        };
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, inside)?;
        thread
            .join()
            .map_err(|_| io::Error::other("a thread inside a network namespace panicked"))?
    })
}

/// Binds `namespace` to `path`, which must not exist: the namespace then lives until [`unbind`], without any process.
///
/// # Errors
/// `EEXIST` when `path` exists; those of open(2) and mount(2). After an error `path` does not exist.
pub fn bind(namespace: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    // The magic link leads to the namespace file itself; no name is looked up that somebody could have replaced.
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    mount_bind(source.as_str(), path).map_err(|errno| {
        // The mount's error is the one worth reporting.
        let _ = fs::remove_file(path);
        io::Error::from(errno)
    })
}

/// Undoes [`bind`], also after a half-done one: unmounts `path` as often as something is mounted there, and
/// removes it. A path that does not exist is not an error.
///
/// # Errors
/// Those of umount(2) and unlink(2).
pub fn unbind(path: &Path) -> io::Result<()> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point (any more).
            Err(Errno::INVAL) => break,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a namespace is bound at `path`.
///
/// # Errors
/// Those of statfs(2), except that a missing path is just not bound.
pub fn is_bound(path: &Path) -> io::Result<bool> {
    match rustix::fs::statfs(path) {
        Ok(status) => Ok(u64::try_from(status.f_type).is_ok_and(|kind| kind == NSFS_MAGIC)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Asks the kernel to explain failures on the netlink socket `socket` in words (`NETLINK_EXT_ACK`) and not to
/// send requests back with their acknowledgement (`NETLINK_CAP_ACK`).
///
/// # Errors
/// `ENOPROTOOPT` on kernels before 4.12, which merely leave the explanations out.
pub fn extended_acknowledgements(socket: impl AsFd) -> io::Result<()> {
    const NETLINK_CAP_ACK: libc::c_int = 10;
    const NETLINK_EXT_ACK: libc::c_int = 11;
    let on: libc::c_int = 1;
    for option in [NETLINK_CAP_ACK, NETLINK_EXT_ACK] {
        // SAFETY: the descriptor is open while it is borrowed; the kernel reads one c_int from the pointer.
        let result = unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                std::ptr::from_ref(&on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_in_without_a_namespace_stays_in_the_callers() {
        use std::os::unix::fs::MetadataExt;
        let here = File::from(current().unwrap()).metadata().unwrap();
        let there = run_in(None, || File::from(current().unwrap()).metadata().unwrap()).unwrap();
        assert_eq!((here.dev(), here.ino()), (there.dev(), there.ino()));
    }

    #[test]
    fn a_panic_inside_is_an_error() {
        let error = run_in(None, || panic!("on purpose")).unwrap_err();
        assert!(error.to_string().contains("panicked"));
    }

    #[test]
    fn unbind_removes_a_file_that_was_never_mounted_on_and_tolerates_its_absence() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("half-done");
        File::create(&path).unwrap();
        assert!(!is_bound(&path).unwrap());
        unbind(&path).unwrap_or_else(|error| {
            // Without CAP_SYS_ADMIN umount(2) is refused before it looks at the path.
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
            fs::remove_file(&path).unwrap();
        });
        assert!(!path.exists());
        assert!(!is_bound(&path).unwrap());
    }

    #[test]
    fn entering_something_else_than_a_network_namespace_is_refused() {
        let file = File::open("/proc/self/ns/mnt").unwrap();
        assert!(run_in(Some(file.as_fd()), || ()).is_err());
    }
}
