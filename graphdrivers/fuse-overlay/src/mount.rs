//! Mounting: `/dev/fuse`, mount(2), and taking exactly this mount away again.
//!
//! No fusermount: who may mount here (root, also of a user namespace, Linux 4.18) needs none, and who may not is told so.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

/// What `/proc/mounts` shows as source.
const SOURCE: &str = "fuse-overlayfs";
/// What it shows as type; the kernel takes the part behind the dot as a name only.
const TYPE: &str = "fuse.fuse-overlayfs";
const DEVICE: &str = "/dev/fuse";

/// Why something could not be mounted, with the evidence.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}{remedy}")]
pub(crate) struct MountError {
    what: String,
    why: String,
    remedy: &'static str,
}

impl MountError {
    fn new(what: impl Into<String>, source: impl Into<io::Error>, remedy: &'static str) -> Self {
        Self {
            what: what.into(),
            why: describe(&source.into()),
            remedy,
        }
    }
}

/// The name of an error that people look for, else its text.
fn describe(error: &io::Error) -> String {
    let name = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM) => "EPERM",
        Some(Errno::ACCESS) => "EACCES",
        Some(Errno::NOENT) => "ENOENT",
        Some(Errno::NODEV) => "ENODEV",
        Some(Errno::NXIO) => "ENXIO",
        Some(Errno::INVAL) => "EINVAL",
        Some(Errno::NOTDIR) => "ENOTDIR",
        _ => return error.to_string(),
    };
    name.to_owned()
}

/// A mount of ours.
#[derive(Debug)]
pub(crate) struct Mounted {
    target: PathBuf,
    /// Device number of the file system; no other has it while we serve.
    device: (u32, u32),
}

/// Opens `/dev/fuse`.
///
/// # Errors
/// It is missing, or this user may not open it.
pub(crate) fn open_device() -> Result<File, MountError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|error| {
            let remedy = match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::ACCESS | Errno::PERM) => "; needs mode 0666 (as root: chmod 666 /dev/fuse)",
                Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
                    "; the kernel module is not loaded (as root: modprobe fuse)"
                }
                _ => "",
            };
            MountError::new(format!("open {DEVICE}"), error, remedy)
        })
}

/// Mounts what `device` will serve on the directory `target`.
///
/// # Errors
/// `target` is no directory; the kernel refuses.
pub(crate) fn mount(
    device: &File,
    target: &Path,
    flags: MountFlags,
    allow_other: bool,
) -> Result<Mounted, MountError> {
    let failed = |error: io::Error| MountError::new(format!("mount point {}", target.display()), error, "");
    let target = target.canonicalize().map_err(failed)?;
    if !target.is_dir() {
        return Err(failed(Errno::NOTDIR.into()));
    }
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{}",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
        if allow_other { ",allow_other" } else { "" }
    );
    let data = std::ffi::CString::new(data).map_err(|error| failed(error.into()))?;
    rustix::mount::mount(SOURCE, &target, TYPE, flags, data.as_c_str()).map_err(|errno| {
        let remedy = match errno {
            Errno::PERM => "; needs CAP_SYS_ADMIN in a user namespace, and there Linux 4.18",
            Errno::NODEV => "; the kernel has no FUSE",
            _ => "",
        };
        MountError::new(format!("mount {TYPE} on {}", target.display()), errno, remedy)
    })?;
    let device = open_root(&target)
        .and_then(|root| device_of(&root))
        .map_err(|error| MountError::new(format!("look at {}", target.display()), error, ""))?;
    Ok(Mounted { target, device })
}

impl Mounted {
    /// Writes what the kernel has cached, then detaches this mount, whatever else may be mounted on the directory by
    /// now; only if it is gone from there nothing happens. Programs that use it keep it as long as it is served.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let root = match open_root(&self.target) {
            Ok(root) if device_of(&root).is_ok_and(|device| device == self.device) => root,
            _ => return Ok(()),
        };
        let exactly = format!("/proc/thread-self/fd/{}", root.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(files) = rustix::fs::open(exactly.as_str(), flags, Mode::empty()) {
            // What a full disk does not take is lost now or later.
            let _ = rustix::fs::syncfs(&files);
        }
        // The magic link leads to the mount itself, not to its name.
        match rustix::mount::unmount(exactly.as_str(), UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Mounted {
    /// Leaves the mount namespace: moves this process, which has one thread, to a new one that holds nothing but
    /// `/proc`. What is open stays open.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN; on a kernel that refuses one of the steps the process must not go on, because it may hold
    /// copies of all mounts.
    pub(crate) fn leave_namespace(&self) -> io::Result<()> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
        // Nothing of what follows may reach the namespace left behind.
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private)?;
        // Over the copy of our own mount, whose server does not answer yet: nothing may look inside.
        rustix::mount::unmount(&self.target, UnmountFlags::DETACH)?;
        rustix::mount::mount("tmpfs", &self.target, "tmpfs", MountFlags::empty(), None)?;
        std::env::set_current_dir(&self.target)?;
        std::fs::create_dir("proc")?;
        rustix::mount::mount_bind_recursive("/proc", "proc")?;
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        std::env::set_current_dir("/")
    }
}

/// The root of whatever is mounted on `target`, without asking its server anything.
fn open_root(target: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, target, flags, Mode::empty())?)
}

fn device_of(root: &OwnedFd) -> io::Result<(u32, u32)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(root, "", flags, StatxFlags::empty())?;
    Ok((found.stx_dev_major, found.stx_dev_minor))
}
