//! Performs the mounts that drivers describe, and counts who uses them.
//!
//! The count is in memory; what is mounted is the kernel's knowledge. So a daemon that was killed finds its mounts
//! again: the first [`Mounter::mount`] of a target that is mounted already takes it over, and [`Mounter::unmount`] of
//! one it never mounted still detaches it. Both may be called once too often. A FUSE mount whose server died is not kept:
//! the next [`Mounter::mount`] replaces it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, StatVfsMountFlags, StatxAttributes, StatxFlags, statvfs, statx};
use rustix::io::Errno;
use rustix::mount::{
    self, FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags,
};

use crate::error::{Error, ErrorKind, Result};
use crate::{Mount, OverlayMount};

mod fuse;
mod mountinfo;
mod watch;

pub use fuse::FuseServer;
pub(crate) use fuse::mount_fuse;
pub(crate) use mountinfo::unescape;
use watch::Watch;

/// Mounts snapshots and counts references; share one per daemon.
#[derive(Debug, Default)]
pub struct Mounter {
    /// One lock a target, so that containers start side by side.
    targets: Mutex<HashMap<PathBuf, Arc<Mutex<usize>>>>,
    server: FuseServer,
    watch: Watch,
}

impl Mounter {
    /// A mounter that knows of no mounts yet. What is served in user space is served by this process.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with another server of overlays in user space.
    pub fn with_fuse_server(server: FuseServer) -> Self {
        Self {
            server,
            ..Self::default()
        }
    }

    /// The directory where the snapshot can be used without any mount, if the driver needs none for this.
    pub fn direct(mounts: &[Mount]) -> Option<&Path> {
        match mounts {
            [Mount::Bind { source, .. }] => Some(source),
            _ => None,
        }
    }

    /// Mounts `mounts`, in order, onto the existing directory `target`, and adds a reference to it.
    ///
    /// # Errors
    /// `NotFound` when the target does not exist; `InvalidArgument` for an empty list; `Io` with the kernel's own
    /// explanation. On an error nothing stays mounted.
    pub fn mount(&self, mounts: &[Mount], target: &Path) -> Result<()> {
        let target = resolve(target)?;
        let slot = self.slot(&target);
        let mut count = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fuse = matches!(mounts.last(), Some(Mount::Fuse(_)));
        let kept = match *count {
            0 => adopt(mounts, &target)?,
            _ => !(is_fuse && self.replace_dead(&target)?),
        };
        if !kept {
            mount_all(mounts, &target, &self.server)?;
        }
        if is_fuse && (*count == 0 || !kept) {
            self.watch_server(&target);
        }
        *count += 1;
        Ok(())
    }

    /// Takes a reference away; the last one detaches the mount. Processes that still use it keep it until they end.
    /// Nothing happens when nothing is mounted.
    ///
    /// # Errors
    /// `Io`.
    pub fn unmount(&self, target: &Path) -> Result<()> {
        let target = match resolve(target) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let slot = self.slot(&target);
        let mut count = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if *count > 1 {
            *count -= 1;
            return Ok(());
        }
        self.watch.remove(&target);
        detach(&target)?;
        *count = 0;
        drop(count);
        self.forget(&target, &slot);
        Ok(())
    }

    /// Counts the use of a mount that somebody has had since before this mounter, and watches its server if it has one.
    /// Nothing happens when nothing is mounted.
    ///
    /// # Errors
    /// `Io`.
    pub fn take_over(&self, target: &Path) -> Result<()> {
        let target = match resolve(target) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let slot = self.slot(&target);
        let mut count = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if *count == 0
            && let Some(found) = mounted(&target)?
        {
            if found.starts_with("fuse") {
                self.watch_server(&target);
            }
            *count = 1;
        }
        Ok(())
    }

    /// How many references `target` has.
    pub fn references(&self, target: &Path) -> usize {
        let Ok(target) = resolve(target) else { return 0 };
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = targets.get(&target).cloned();
        drop(targets);
        slot.map_or(0, |slot| *slot.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why what is mounted on `target` answers with errors: the server of a FUSE mount died, which a watch has seen. A
    /// sentence for users; the mount itself is not asked, so that a server that hangs does not hold up the caller.
    pub fn trouble(&self, target: &Path) -> Option<String> {
        self.watch.obituary(&resolve(target).ok()?)
    }

    /// Takes a FUSE mount away that nobody serves any more; whoever uses it keeps getting errors.
    fn replace_dead(&self, target: &Path) -> Result<bool> {
        if fuse::is_alive(target) {
            return Ok(false);
        }
        tracing::warn!(target = %target.display(), "replacing a mount whose server died");
        self.watch.remove(target);
        detach(target)?;
        Ok(true)
    }

    /// From now on the death of the server is logged, and known to [`Mounter::trouble`].
    fn watch_server(&self, target: &Path) {
        let watched = match fuse::server_of(target) {
            Some((pid, process)) => self.watch.add(target, pid, process),
            None if !fuse::is_alive(target) => self.watch.found_dead(target),
            // Threads of this process.
            None => Ok(()),
        };
        if let Err(error) = watched {
            tracing::warn!(target = %target.display(), %error, "cannot watch the server of a FUSE mount");
        }
    }

    fn slot(&self, target: &Path) -> Arc<Mutex<usize>> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(targets.entry(target.to_owned()).or_default())
    }

    fn forget(&self, target: &Path, slot: &Arc<Mutex<usize>>) {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        // Two: the table's and ours. Anyone else is about to use it.
        if Arc::strong_count(slot) == 2 {
            targets.remove(target);
        }
    }
}

/// A mount that failed, with everything the kernel said.
#[derive(Debug)]
pub(crate) struct MountFailure {
    pub(crate) call: &'static str,
    pub(crate) errno: Errno,
    pub(crate) log: String,
}

impl MountFailure {
    fn new(call: &'static str, errno: Errno) -> Self {
        Self {
            call,
            errno,
            log: String::new(),
        }
    }

    /// The error number's name where people know it.
    pub(crate) fn symbol(&self) -> String {
        match self.errno {
            Errno::PERM => "EPERM".to_owned(),
            Errno::ACCESS => "EACCES".to_owned(),
            Errno::INVAL => "EINVAL".to_owned(),
            Errno::NODEV => "ENODEV".to_owned(),
            Errno::BUSY => "EBUSY".to_owned(),
            Errno::OPNOTSUPP => "EOPNOTSUPP".to_owned(),
            errno => io::Error::from(errno).to_string(),
        }
    }

    fn into_error(self, target: &Path) -> Error {
        let log = if self.log.is_empty() {
            String::new()
        } else {
            format!(" ({})", self.log)
        };
        Error::io(
            format!("{} overlay on {}{log}", self.call, target.display()),
            self.errno,
        )
    }
}

fn resolve(target: &Path) -> Result<PathBuf> {
    target
        .canonicalize()
        .map_err(|error| Error::io(format!("mount target {}", target.display()), error))
}

/// Whether the mount of an earlier daemon is still there and is of the right kind. Anything else in the way is detached.
fn adopt(mounts: &[Mount], target: &Path) -> Result<bool> {
    let Some(found) = mounted(target)? else {
        return Ok(false);
    };
    let same = match mounts.last() {
        Some(Mount::Overlay(_)) => found == "overlay",
        Some(Mount::Fuse(_)) => found.starts_with("fuse") && fuse::is_alive(target),
        // What is bound may be on anything; those two it is not, for nobody binds a mount of ours.
        _ => found != "overlay" && !found.starts_with("fuse."),
    };
    if same {
        tracing::debug!(target = %target.display(), "took over a mount of an earlier daemon");
        return Ok(true);
    }
    detach(target)?;
    Ok(false)
}

/// Type of the file system mounted on `target`, if it is a mount point.
pub(crate) fn mounted(target: &Path) -> Result<Option<String>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    // Linux 5.8 answers without reading the whole table.
    if let Ok(stat) = statx(CWD, target, flags, StatxFlags::TYPE)
        && stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
        && !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    {
        return Ok(None);
    }
    mountinfo::file_system_at(target).map_err(|error| Error::io("read /proc/self/mountinfo", error))
}

fn mount_all(mounts: &[Mount], target: &Path, server: &FuseServer) -> Result<()> {
    if mounts.is_empty() {
        return Err(Error::invalid("nothing to mount"));
    }
    for (done, step) in mounts.iter().enumerate() {
        let outcome = match step {
            Mount::Bind { source, read_only } => bind(source, target, *read_only),
            Mount::Overlay(overlay) => {
                mount_overlay(overlay, target).map_err(|failure| failure.into_error(target))
            }
            Mount::Fuse(fuse) => mount_fuse(server, fuse, target),
        };
        let (outcome, on_it) = match outcome {
            Ok(()) => (make_private(target), done + 1),
            Err(error) => (Err(error), done),
        };
        if let Err(error) = outcome {
            for _ in 0..on_it {
                detach(target)?;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Mounts of the host must not reach in, nor ours out to other mount namespaces.
fn make_private(target: &Path) -> Result<()> {
    mount::mount_change(target, MountPropagationFlags::PRIVATE)
        .map_err(|errno| Error::io(format!("make {} private", target.display()), errno))
}

/// Detaches whatever is mounted on `target`; nothing happens when nothing is.
pub(crate) fn detach(target: &Path) -> Result<()> {
    match mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // EINVAL: not a mount point. EPERM: a process without privilege that never mounted anything.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(Errno::PERM) if mounted(target)?.is_none() => Ok(()),
        Err(errno) => Err(Error::io(format!("unmount {}", target.display()), errno)),
    }
}

fn bind(source: &Path, target: &Path, read_only: bool) -> Result<()> {
    let failed = |errno| {
        Error::io(
            format!("bind {} on {}", source.display(), target.display()),
            errno,
        )
    };
    mount::mount_bind(source, target).map_err(failed)?;
    if !read_only {
        return Ok(());
    }
    let flags = locked_flags(target).map_err(failed)? | MountFlags::BIND | MountFlags::RDONLY;
    mount::mount_remount(target, flags, "").map_err(|errno| {
        // The half-made mount would be writable.
        let _ = mount::unmount(target, UnmountFlags::DETACH);
        failed(errno)
    })
}

/// Flags that a user namespace may not take away from a mount; a remount has to repeat them.
fn locked_flags(target: &Path) -> Result<MountFlags, Errno> {
    let found = statvfs(target)?.f_flag;
    let pairs = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    Ok(pairs
        .iter()
        .filter(|(has, _)| found.contains(*has))
        .map(|(_, set)| *set)
        .collect())
}

/// Mounts an overlay on an absolute path.
///
/// All directories are named relative to the deepest directory they share, so that a long data root costs nothing:
/// fsconfig(2) takes 255 bytes a value, mount(2) one page for everything.
pub(crate) fn mount_overlay(overlay: &OverlayMount, target: &Path) -> Result<(), MountFailure> {
    let base = common_directory(overlay);
    let relative = |path: &Path| path.strip_prefix(&base).unwrap_or(path).to_owned();
    let short = OverlayMount {
        lower: overlay.lower.iter().map(|path| relative(path)).collect(),
        upper: overlay
            .upper
            .as_ref()
            .map(|(upper, work)| (relative(upper), relative(work))),
        userxattr: overlay.userxattr,
        options: overlay.options.clone(),
    };
    forget_volatile(overlay);
    skiff_sys::fsio::in_directory(&base, || match mount_by_fsopen(&short, target) {
        // Before 6.8 there is no `lowerdir+`, before 5.2 no fsopen; a seccomp filter may refuse it.
        Err(failure) if failure.errno == Errno::NOSYS || failure.call == UNKNOWN_LOWERDIR => {
            mount_by_options(&short, target)
        }
        other => other,
    })
    .unwrap_or_else(|error| Err(MountFailure::new("enter the data root", errno_of(&error))))
}

/// A volatile mount leaves a mark that forbids the next mount, because the system may have crashed in between and what
/// was written may be half there. Who asks for `volatile` again says that this does not matter.
fn forget_volatile(overlay: &OverlayMount) {
    if let Some((_, work)) = &overlay.upper
        && overlay.options.iter().any(|option| option == "volatile")
    {
        // Usually it is not there; if it cannot be removed, the mount itself says so.
        let _ = skiff_archive::remove_tree(&work.join("work/incompat/volatile"));
    }
}

const UNKNOWN_LOWERDIR: &str = "fsconfig(2) lowerdir+";

fn mount_by_fsopen(overlay: &OverlayMount, target: &Path) -> Result<(), MountFailure> {
    let context = mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
        // What an unprivileged process gets is mount(2)'s business to say.
        Errno::PERM => MountFailure::new("fsopen(2)", Errno::NOSYS),
        errno => MountFailure::new("fsopen(2)", errno),
    })?;
    let context = context.as_fd();
    let fail = |call, errno| MountFailure {
        call,
        errno,
        log: read_log(context),
    };
    mount::fsconfig_set_string(context, "source", "overlay").map_err(|e| fail("fsconfig(2) source", e))?;
    if overlay.userxattr {
        mount::fsconfig_set_flag(context, "userxattr").map_err(|e| fail("fsconfig(2) userxattr", e))?;
    }
    for option in &overlay.options {
        match option.split_once('=') {
            Some((key, value)) => mount::fsconfig_set_string(context, key, value),
            None => mount::fsconfig_set_flag(context, option.as_str()),
        }
        .map_err(|e| fail("fsconfig(2)", e))?;
    }
    for lower in &overlay.lower {
        mount::fsconfig_set_string(context, "lowerdir+", lower).map_err(|e| fail(UNKNOWN_LOWERDIR, e))?;
    }
    if let Some((upper, work)) = &overlay.upper {
        mount::fsconfig_set_string(context, "upperdir", upper)
            .map_err(|e| fail("fsconfig(2) upperdir", e))?;
        mount::fsconfig_set_string(context, "workdir", work).map_err(|e| fail("fsconfig(2) workdir", e))?;
    }
    mount::fsconfig_create(context).map_err(|e| fail("mount(2)", e))?;
    let made = mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(|e| fail("fsmount(2)", e))?;
    mount::move_mount(&made, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| fail("move_mount(2)", e))
}

/// What the kernel wrote into the context: lines such as `e overlay: …`.
fn read_log(context: BorrowedFd<'_>) -> String {
    let mut lines = Vec::new();
    let mut buffer = [0u8; 1024];
    while let Ok(n @ 1..) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..n]);
        lines.push(
            line.trim_end()
                .trim_start_matches(['e', 'w', 'i', ' '])
                .to_owned(),
        );
    }
    lines.join("; ")
}

fn mount_by_options(overlay: &OverlayMount, target: &Path) -> Result<(), MountFailure> {
    let data = option_string(overlay).map_err(|errno| MountFailure::new("mount(2)", errno))?;
    let data = std::ffi::CString::new(data).map_err(|_| MountFailure::new("mount(2)", Errno::INVAL))?;
    mount::mount("overlay", target, "overlay", MountFlags::empty(), data.as_c_str())
        .map_err(|errno| MountFailure::new("mount(2)", errno))
}

/// The options in one string of less than a page.
fn option_string(overlay: &OverlayMount) -> Result<Vec<u8>, Errno> {
    let lower: Vec<Vec<u8>> = overlay.lower.iter().map(|path| escaped(path)).collect();
    let mut options = vec![[b"lowerdir=".to_vec(), lower.join(&b':')].concat()];
    if let Some((upper, work)) = &overlay.upper {
        options.push([b"upperdir=".to_vec(), escaped(upper)].concat());
        options.push([b"workdir=".to_vec(), escaped(work)].concat());
    }
    if overlay.userxattr {
        options.push(b"userxattr".to_vec());
    }
    options.extend(overlay.options.iter().map(|option| option.as_bytes().to_vec()));
    let data = options.join(&b',');
    if data.len() >= rustix::param::page_size() {
        return Err(Errno::TOOBIG);
    }
    Ok(data)
}

/// A path in a list of options: a colon separates lower directories and a comma options; a backslash keeps either.
fn escaped(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let special = |b: &u8| matches!(b, b':' | b',' | b'\\');
    path.as_os_str()
        .as_bytes()
        .iter()
        .flat_map(|b| special(b).then_some(b'\\').into_iter().chain([*b]))
        .collect()
}

/// The deepest directory above all directories of a mount.
fn common_directory(overlay: &OverlayMount) -> PathBuf {
    let upper = overlay.upper.iter().flat_map(|(upper, work)| [upper, work]);
    let mut parents = overlay
        .lower
        .iter()
        .chain(upper)
        .map(|path| path.parent().unwrap_or(path));
    let mut common = parents.next().unwrap_or(Path::new("/")).to_owned();
    for parent in parents {
        while !parent.starts_with(&common) && common.pop() {}
    }
    common
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(lower: &[&str], upper: Option<(&str, &str)>) -> OverlayMount {
        OverlayMount {
            lower: lower.iter().map(PathBuf::from).collect(),
            upper: upper.map(|(a, b)| (a.into(), b.into())),
            userxattr: true,
            options: vec!["index=off".to_owned()],
        }
    }

    #[test]
    fn names_are_relative_to_what_they_share() {
        let o = overlay(&["/d/l/A", "/d/l/B"], Some(("/d/x/diff", "/d/x/work")));
        assert_eq!(common_directory(&o), Path::new("/d"));
        assert_eq!(
            common_directory(&overlay(&["/a/b", "/c/d"], None)),
            Path::new("/")
        );
    }

    #[test]
    fn option_strings_are_escaped_and_bounded() {
        let o = overlay(&["l/A", "a:b,c"], Some(("u", "w")));
        let text = String::from_utf8(option_string(&o).unwrap()).unwrap();
        assert_eq!(
            text,
            "lowerdir=l/A:a\\:b\\,c,upperdir=u,workdir=w,userxattr,index=off"
        );
        let short = "l/ABCDEFGHIJKLMNOPQRSTUVWXYZ";
        assert!(option_string(&overlay(&[short; 128], Some(("active-x/diff", "active-x/work")))).is_ok());
        assert_eq!(
            option_string(&overlay(&[short; 150], None)).unwrap_err(),
            Errno::TOOBIG
        );
    }
}
