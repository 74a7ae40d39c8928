//! The namespaces of a rootless daemon: making them, joining them, and the few things that must be set up inside.
//!
//! Called by `skiffd`'s keeper (makes or joins all four) and daemon (joins all but the network). All of it needs a
//! single-threaded caller: unshare(2) and setns(2) refuse user namespaces to a process with threads.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, MountPropagationFlags};

/// The kinds of namespace used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ids and capabilities.
    User,
    /// Mounts.
    Mount,
    /// Network devices, addresses, firewall.
    Network,
    /// The root of the control group tree.
    Cgroup,
}

impl Kind {
    /// Name in `/proc/PID/ns`.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mnt",
            Self::Network => "net",
            Self::Cgroup => "cgroup",
        }
    }

    fn flag(self) -> CloneFlags {
        match self {
            Self::User => CloneFlags::CLONE_NEWUSER,
            Self::Mount => CloneFlags::CLONE_NEWNS,
            Self::Network => CloneFlags::CLONE_NEWNET,
            Self::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        }
    }
}

/// Descriptors of one process's namespaces. They keep the namespaces alive when the process ends.
#[derive(Debug)]
pub struct Namespaces {
    /// User namespace.
    pub user: OwnedFd,
    /// Mount namespace.
    pub mount: OwnedFd,
    /// Network namespace.
    pub network: OwnedFd,
    /// Control group namespace.
    pub cgroup: OwnedFd,
}

/// What tells one namespace from another: device and inode number of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NamespaceId {
    /// Device of nsfs.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

impl Namespaces {
    /// Opens the namespaces of a process.
    ///
    /// # Errors
    /// `NotFound` when it is gone; `PermissionDenied` when it is not ours (ptrace(2) access is needed).
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let open = |kind: Kind| File::open(format!("/proc/{pid}/ns/{}", kind.name())).map(OwnedFd::from);
        Ok(Self {
            user: open(Kind::User)?,
            mount: open(Kind::Mount)?,
            network: open(Kind::Network)?,
            cgroup: open(Kind::Cgroup)?,
        })
    }

    /// The descriptors, in the order of the fields: the form in which they travel over a socket.
    pub fn as_fds(&self) -> [BorrowedFd<'_>; 4] {
        [
            self.user.as_fd(),
            self.mount.as_fd(),
            self.network.as_fd(),
            self.cgroup.as_fd(),
        ]
    }

    /// The counterpart of [`Namespaces::as_fds`].
    pub fn from_fds([user, mount, network, cgroup]: [OwnedFd; 4]) -> Self {
        Self {
            user,
            mount,
            network,
            cgroup,
        }
    }

    /// Copies the descriptors. # Errors: EMFILE.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            user: self.user.try_clone()?,
            mount: self.mount.try_clone()?,
            network: self.network.try_clone()?,
            cgroup: self.cgroup.try_clone()?,
        })
    }
}

/// Identifies a namespace by one of its descriptors. # Errors: fstat(2)'s.
pub fn id(namespace: impl AsFd) -> io::Result<NamespaceId> {
    let stat = rustix::fs::fstat(namespace)?;
    Ok(NamespaceId {
        dev: stat.st_dev,
        ino: stat.st_ino,
    })
}

/// Identifies a namespace the caller is in. # Errors: when `/proc` is not mounted.
pub fn current(kind: Kind) -> io::Result<NamespaceId> {
    let meta = std::fs::metadata(format!("/proc/self/ns/{}", kind.name()))?;
    Ok(NamespaceId {
        dev: meta.dev(),
        ino: meta.ino(),
    })
}

/// The user (as seen from the caller's user namespace) who made a user namespace.
///
/// # Errors
/// `EINVAL` when the descriptor is not that of a user namespace.
pub fn owner_uid(user_namespace: impl AsFd) -> io::Result<u32> {
    /// `_IO(0xb7, 4)` of linux/nsfs.h.
    const NS_GET_OWNER_UID: libc::Ioctl = 0xb704;
    let mut uid: libc::uid_t = 0;
    // SAFETY: the descriptor is open (AsFd), and this request writes one uid_t to the pointer, which is valid for it.
    let result = unsafe { libc::ioctl(user_namespace.as_fd().as_raw_fd(), NS_GET_OWNER_UID, &raw mut uid) };
    if result == 0 {
        Ok(uid)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Moves the caller into a namespace, unless it is there already (which setns(2) refuses for user namespaces).
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN over it; `EINVAL` from a process with threads.
pub fn join(namespace: impl AsFd, kind: Kind) -> io::Result<()> {
    if id(&namespace)? == current(kind)? {
        return Ok(());
    }
    Ok(nix::sched::setns(namespace, kind.flag())?)
}

/// Moves the caller into new namespaces.
///
/// # Errors
/// `EPERM` and `ENOSPC` when the system's settings forbid it, `EINVAL` when the kernel lacks it or the caller has threads.
pub fn unshare(kinds: &[Kind]) -> io::Result<()> {
    let flags = kinds
        .iter()
        .fold(CloneFlags::empty(), |flags, kind| flags | kind.flag());
    Ok(nix::sched::unshare(flags)?)
}

/// Lets mounts of the original namespace propagate in and none of ours propagate out. # Errors: mount(2)'s.
pub fn receive_mounts_only() -> io::Result<()> {
    Ok(rustix::mount::mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM,
    )?)
}

/// Mounts the unified control group tree, rooted at the caller's cgroup namespace, over `/sys/fs/cgroup`.
/// Without this the runtimes try to make directories in hierarchies that belong to the machine's root.
///
/// # Errors
/// mount(2)'s; `EPERM` when the caller's cgroup namespace is not its own.
pub fn mount_own_cgroup_tree() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RELATIME;
    Ok(rustix::mount::mount(
        c"cgroup2",
        c"/sys/fs/cgroup",
        c"cgroup2",
        flags,
        None,
    )?)
}

/// Brings up `lo` in the caller's network namespace. # Errors: socket(2)'s and ioctl(2)'s.
pub fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed() as libc::c_char;
    }
    // SAFETY: the descriptor is open, and the request reads and writes one ifreq, which the pointer is valid for.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFFLAGS has just filled in this member of the union.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: as above.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_namespaces_are_recognised() {
        let mine = Namespaces::of_process(std::process::id()).unwrap();
        for (fd, kind) in
            mine.as_fds()
                .into_iter()
                .zip([Kind::User, Kind::Mount, Kind::Network, Kind::Cgroup])
        {
            assert_eq!(id(fd).unwrap(), current(kind).unwrap());
            // Joining where one is already does nothing, also in this multi-threaded test process.
            join(fd, kind).unwrap();
        }
    }

    #[test]
    fn only_user_namespaces_have_an_owner() {
        let mine = Namespaces::of_process(std::process::id()).unwrap();
        assert_eq!(
            owner_uid(&mine.network).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }

    #[test]
    fn threads_cannot_make_user_namespaces() {
        std::thread::spawn(|| {
            assert_eq!(
                unshare(&[Kind::User]).unwrap_err().raw_os_error(),
                Some(libc::EINVAL)
            );
        })
        .join()
        .unwrap();
    }
}
