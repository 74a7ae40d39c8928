//! Paths through `/proc/thread-self/fd`, for system calls that know no directory descriptor (attributes) or none with
//! `O_PATH`. The thread's and not the process's: serving threads may have a table of their own (`serve_here`).

use std::ffi::{CString, OsStr};
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// The open file itself.
pub(super) fn itself(fd: BorrowedFd<'_>) -> CString {
    path(fd, None)
}

/// A name in an open directory. To be used with calls that do not follow links.
pub(super) fn child(directory: BorrowedFd<'_>, name: &OsStr) -> CString {
    path(directory, Some(name))
}

fn path(fd: BorrowedFd<'_>, name: Option<&OsStr>) -> CString {
    let mut path = Vec::with_capacity(32 + name.map_or(0, OsStr::len));
    // Writing to a Vec cannot fail.
    let _ = write!(path, "/proc/thread-self/fd/{}", fd.as_raw_fd());
    if let Some(name) = name {
        path.push(b'/');
        // Names come from the kernel without zero bytes; one with would only be cut.
        path.extend(name.as_bytes().iter().take_while(|&&b| b != 0));
    }
    CString::new(path).unwrap_or_default()
}
