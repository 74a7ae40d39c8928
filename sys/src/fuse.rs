//! The one request of `/dev/fuse` that is neither a read nor a write.
//!
//! Called by `skiff-fuse-overlay`, once a thread that reads requests.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, uint32_t)` of `linux/fuse.h`.
const CLONE: libc::c_ulong = 0x8004_e500;

/// Opens the device once more (through `/proc`, for `/dev` may be out of sight) and connects the new descriptor to the file system that `device` serves (Linux 4.2).
/// Requests read through one descriptor are answered through the same one; each has its own queue of requests under
/// way, so that threads with a descriptor each do not wait for one another.
///
/// # Errors
/// Those of opening; `EINVAL` when `device` is not mounted; `ENOTTY` on kernels without it.
pub fn clone_device(device: BorrowedFd<'_>) -> io::Result<File> {
    let other = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(format!("/proc/self/fd/{}", device.as_raw_fd()))?;
    let source = device.as_raw_fd().unsigned_abs();
    // SAFETY: the request reads one u32, which `source` is and which outlives the call; both descriptors are open.
    let result = unsafe { libc::ioctl(other.as_raw_fd(), CLONE as _, &raw const source) };
    if result == 0 {
        Ok(other)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn only_a_mounted_device_is_cloned() {
        let null = File::open("/dev/null").unwrap();
        let error = clone_device(null.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
