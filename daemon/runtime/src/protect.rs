//! Our program, where no container can write to it.
//!
//! A process in a container may execute `/proc/self/exe` while that is still ours, or reach ours through `/proc/PID/exe`, and
//! then open that file for writing (CVE-2019-5736). Started through a read-only mount, the program's file cannot be opened
//! for writing by anyone who is not already able to change that mount.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

/// The program's name below the execution root.
const NAME: &str = "skiffd";

/// Mounts the running program read-only at `EXEC_ROOT/skiffd` and gives that path, for [`crate::RuntimeConfig::shim_command`] and
/// [`crate::RuntimeConfig::init_program`]. An earlier daemon's mount is used if it is of the same program, and replaced if not;
/// who runs the old one keeps it.
///
/// # Errors
/// Those of mount(2); the caller may then do without, and should say so.
pub fn protected_program(exec_root: &Path) -> io::Result<PathBuf> {
    let own = std::fs::metadata("/proc/self/exe")?;
    let path = exec_root.join(NAME);
    match std::fs::metadata(&path) {
        Ok(there) if is_read_only(&path)? => {
            if (there.dev(), there.ino()) == (own.dev(), own.ino()) {
                return Ok(path);
            }
            rustix::mount::unmount(&path, UnmountFlags::DETACH)?;
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            OpenOptions::new()
                .create_new(true)
                .write(true)
                .mode(0o700)
                .open(&path)?;
        }
        Err(error) => return Err(error),
    }
    rustix::mount::mount_bind(reachable_program((own.dev(), own.ino()))?, &path)?;
    rustix::mount::mount_change(&path, MountPropagationFlags::PRIVATE)?;
    if let Err(error) = make_read_only(&path) {
        let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH);
        return Err(error);
    }
    Ok(path)
}

/// The program's path in *this* mount namespace: `/proc/self/exe` leads to the mount it was executed from, which a daemon
/// that has entered the keeper's namespace since cannot bind (EINVAL).
fn reachable_program(identity: (u64, u64)) -> io::Result<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe")?;
    let there = std::fs::metadata(&path)?;
    if (there.dev(), there.ino()) == identity {
        return Ok(path);
    }
    let text = format!("{} is not the running program any more", path.display());
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}

fn is_read_only(path: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statvfs(path)?
        .f_flag
        .contains(StatVfsMountFlags::RDONLY))
}

fn make_read_only(path: &Path) -> io::Result<()> {
    // In a user namespace the flags that came with the mount are locked: a remount must repeat them.
    let present = rustix::fs::statvfs(path)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (has, flag) in [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        flags.set(flag, present.contains(has));
    }
    Ok(rustix::mount::mount_remount(path, flags, c"")?)
}
