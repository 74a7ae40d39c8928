//! Subvolumes of btrfs: the ioctls that an unprivileged process may use, too.
//!
//! Called by the `btrfs` storage driver. All names are single components below an open directory, so that no path is
//! ever resolved here. Numbers and layouts are those of `linux/btrfs.h`; a test compares them with the header.

use std::ffi::{CStr, OsStr, OsString, c_char};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Inode number of every subvolume's root directory (`BTRFS_FIRST_FREE_OBJECTID`).
pub const ROOT_INODE: u64 = 256;

const SNAP_DESTROY: libc::c_ulong = 0x5000_940f;
const SNAP_CREATE_V2: libc::c_ulong = 0x5000_9417;
const SUBVOL_CREATE_V2: libc::c_ulong = 0x5000_9418;
const SUBVOL_GETFLAGS: libc::c_ulong = 0x8008_9419;
const SUBVOL_SETFLAGS: libc::c_ulong = 0x4008_941a;
const GET_SUBVOL_ROOTREF: libc::c_ulong = 0xd000_943d;
const INO_LOOKUP_USER: libc::c_ulong = 0xd000_943e;

/// `BTRFS_SUBVOL_RDONLY`.
const READ_ONLY: u64 = 1 << 1;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_get_subvol_rootref_args`.
#[repr(C)]
struct RootRefArgs {
    min_treeid: u64,
    rootref: [RootRef; 255],
    num_items: u8,
    align: [u8; 7],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RootRef {
    treeid: u64,
    dirid: u64,
}

/// `struct btrfs_ioctl_ino_lookup_user_args`.
#[repr(C)]
struct LookupArgs {
    dirid: u64,
    treeid: u64,
    name: [c_char; 256],
    path: [c_char; 3824],
}

// All of them fill a page, and their size is part of their request's number.
const _: () = assert!(
    size_of::<VolArgs>() == 4096
        && size_of::<VolArgsV2>() == 4096
        && size_of::<RootRefArgs>() == 4096
        && size_of::<LookupArgs>() == 4096
);

/// A subvolume directly below another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// The directory it lies in, relative to the root of the outer subvolume; empty for the root itself.
    pub directory: PathBuf,
    /// Its name in there.
    pub name: OsString,
}

/// Makes an empty subvolume `name` in `parent`. It belongs to the caller and has mode 0777 without the umask's bits.
///
/// # Errors
/// `ENOTTY` when the file system is not btrfs; `EEXIST`; `EACCES`; `ENOSPC`; `ENAMETOOLONG`.
pub fn create_subvolume(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let args = vol_args_v2(0, 0, name)?;
    // SAFETY: the request reads one `VolArgsV2`, whose size is asserted above and which outlives the call.
    check(unsafe { libc::ioctl(parent.as_raw_fd(), SUBVOL_CREATE_V2 as _, &raw const *args) })
}

/// Makes `name` in `parent` a snapshot of the subvolume whose root directory `source` is. Subvolumes nested in the
/// source are empty directories in the snapshot. Blocks until what was written to the source is on disk.
///
/// # Errors
/// `EPERM` when the caller neither owns the source nor has power over its owner; `EXDEV` for another file system; `EINVAL`
/// when `source` is no subvolume's root; those of [`create_subvolume`].
pub fn snapshot(
    source: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &OsStr,
    read_only: bool,
) -> io::Result<()> {
    let flags = if read_only { READ_ONLY } else { 0 };
    let args = vol_args_v2(i64::from(source.as_raw_fd()), flags, name)?;
    // SAFETY: the request reads one `VolArgsV2`, whose size is asserted above and which outlives the call.
    check(unsafe { libc::ioctl(parent.as_raw_fd(), SNAP_CREATE_V2 as _, &raw const *args) })
}

/// Deletes the subvolume `name` in `parent` with everything in it; the kernel frees the space in the background.
///
/// # Errors
/// `EPERM` for a process without privilege in the initial user namespace unless the file system is mounted with
/// `user_subvol_rm_allowed`; `EROFS` for a read-only subvolume in that case; `ENOTEMPTY` when other subvolumes are nested
/// in it; `EINVAL` when it is no subvolume; `EBUSY` when something is mounted in it.
pub fn destroy_subvolume(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let mut args = Box::new(VolArgs {
        fd: 0,
        name: [0; 4088],
    });
    put_name(&mut args.name, name)?;
    // SAFETY: the request reads one `VolArgs`, whose size is asserted above and which outlives the call.
    check(unsafe { libc::ioctl(parent.as_raw_fd(), SNAP_DESTROY as _, &raw const *args) })
}

/// Whether the subvolume that `directory` is the root of is read-only.
///
/// # Errors
/// `EINVAL` when it is no subvolume's root; `ENOTTY`.
pub fn is_read_only(directory: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(flags(directory)? & READ_ONLY != 0)
}

/// Makes the subvolume that `directory` is the root of read-only or writable.
///
/// # Errors
/// `EACCES` or `EPERM` when the caller neither owns it nor has power over its owner; `EINVAL` when it is no subvolume's
/// root.
pub fn set_read_only(directory: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let before = flags(directory)?;
    let after = if read_only {
        before | READ_ONLY
    } else {
        before & !READ_ONLY
    };
    if after == before {
        return Ok(());
    }
    // SAFETY: the request reads one u64, which outlives the call.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), SUBVOL_SETFLAGS as _, &raw const after) })
}

fn flags(directory: BorrowedFd<'_>) -> io::Result<u64> {
    let mut flags = 0u64;
    // SAFETY: the request writes one u64, which outlives the call.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), SUBVOL_GETFLAGS as _, &raw mut flags) })?;
    Ok(flags)
}

/// Some of the subvolumes directly below the one that `directory` is the root of, at most 255: empty only when there
/// are none. Needs Linux 4.18.
///
/// # Errors
/// `ENAMETOOLONG` when one lies too deep for its path to be told; `EACCES`; `ENOTTY` on old kernels.
pub fn children(directory: BorrowedFd<'_>) -> io::Result<Vec<Child>> {
    let mut args = Box::new(RootRefArgs {
        min_treeid: 0,
        rootref: [RootRef { treeid: 0, dirid: 0 }; 255],
        num_items: 0,
        align: [0; 7],
    });
    // SAFETY: the request reads and writes one `RootRefArgs`, whose size is asserted above and which outlives the call.
    let outcome =
        check(unsafe { libc::ioctl(directory.as_raw_fd(), GET_SUBVOL_ROOTREF as _, &raw mut *args) });
    match outcome {
        // There are more than fit.
        Err(error) if error.raw_os_error() == Some(libc::EOVERFLOW) => {}
        other => other?,
    }
    args.rootref[..usize::from(args.num_items)]
        .iter()
        .map(|reference| lookup(directory, *reference))
        .collect()
}

fn lookup(directory: BorrowedFd<'_>, reference: RootRef) -> io::Result<Child> {
    let mut args = Box::new(LookupArgs {
        dirid: reference.dirid,
        treeid: reference.treeid,
        name: [0; 256],
        path: [0; 3824],
    });
    // SAFETY: the request reads and writes one `LookupArgs`, whose size is asserted above and which outlives the call.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), INO_LOOKUP_USER as _, &raw mut *args) })?;
    Ok(Child {
        directory: PathBuf::from(text(&args.path)?),
        name: text(&args.name)?,
    })
}

/// Text up to the first zero.
fn text(field: &[c_char]) -> io::Result<OsString> {
    let bytes: Vec<u8> = field.iter().map(|c| c.to_ne_bytes()[0]).collect();
    let text = CStr::from_bytes_until_nul(&bytes).map_err(io::Error::other)?;
    Ok(OsString::from_vec(text.to_bytes().to_vec()))
}

fn vol_args_v2(fd: i64, flags: u64, name: &OsStr) -> io::Result<Box<VolArgsV2>> {
    let mut args = Box::new(VolArgsV2 {
        fd,
        transid: 0,
        flags,
        unused: [0; 4],
        name: [0; 4040],
    });
    put_name(&mut args.name, name)?;
    Ok(args)
}

/// Copies one component of a path; the field is zeroed, so what follows ends it.
fn put_name(field: &mut [u8], name: &OsStr) -> io::Result<()> {
    let bytes = name.as_bytes();
    if bytes.len() > 255 {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    if bytes.is_empty() || bytes.iter().any(|b| matches!(b, 0 | b'/')) || bytes == b"." || bytes == b".." {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    field[..bytes.len()].copy_from_slice(bytes);
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::process::Command;

    /// The header is the kernel's promise; the C compiler that every Rust toolchain links with can read it.
    #[test]
    fn numbers_and_layouts_are_the_kernel_headers() {
        let scratch = tempfile::tempdir().unwrap();
        let source = scratch.path().join("check.c");
        let numbers = [
            ("BTRFS_IOC_SNAP_DESTROY", SNAP_DESTROY),
            ("BTRFS_IOC_SNAP_CREATE_V2", SNAP_CREATE_V2),
            ("BTRFS_IOC_SUBVOL_CREATE_V2", SUBVOL_CREATE_V2),
            ("BTRFS_IOC_SUBVOL_GETFLAGS", SUBVOL_GETFLAGS),
            ("BTRFS_IOC_SUBVOL_SETFLAGS", SUBVOL_SETFLAGS),
            ("BTRFS_IOC_GET_SUBVOL_ROOTREF", GET_SUBVOL_ROOTREF),
            ("BTRFS_IOC_INO_LOOKUP_USER", INO_LOOKUP_USER),
            ("BTRFS_SUBVOL_RDONLY", READ_ONLY),
            ("BTRFS_FIRST_FREE_OBJECTID", ROOT_INODE),
            (
                "offsetof(struct btrfs_ioctl_vol_args, name)",
                std::mem::offset_of!(VolArgs, name) as u64,
            ),
            (
                "offsetof(struct btrfs_ioctl_vol_args_v2, flags)",
                std::mem::offset_of!(VolArgsV2, flags) as u64,
            ),
            (
                "offsetof(struct btrfs_ioctl_vol_args_v2, name)",
                std::mem::offset_of!(VolArgsV2, name) as u64,
            ),
            (
                "offsetof(struct btrfs_ioctl_get_subvol_rootref_args, num_items)",
                std::mem::offset_of!(RootRefArgs, num_items) as u64,
            ),
            (
                "offsetof(struct btrfs_ioctl_ino_lookup_user_args, path)",
                std::mem::offset_of!(LookupArgs, path) as u64,
            ),
        ];
        let asserts: String = numbers
            .iter()
            .map(|(name, number)| format!("_Static_assert({name} == {number}u, \"{name}\");\n"))
            .collect();
        let text = format!(
            "#include <stddef.h>\n#include <sys/ioctl.h>\n#include <linux/btrfs.h>\n#include <linux/btrfs_tree.h>\n{asserts}"
        );
        std::fs::write(&source, text).unwrap();
        let output = Command::new("cc")
            .args(["-fsyntax-only", "-x", "c"])
            .arg(&source)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    #[test]
    fn other_file_systems_and_bad_names_are_refused() {
        let proc = File::open("/proc").unwrap();
        let error = create_subvolume(proc.as_fd(), OsStr::new("x")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(
            children(proc.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ENOTTY)
        );
        assert_eq!(
            is_read_only(proc.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ENOTTY)
        );
        for (name, errno) in [
            ("", libc::EINVAL),
            ("a/b", libc::EINVAL),
            ("..", libc::EINVAL),
            (&"x".repeat(256), libc::ENAMETOOLONG),
        ] {
            let error = destroy_subvolume(proc.as_fd(), OsStr::new(name)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(errno), "{name:?}");
        }
    }
}
