//! Attributes: what is on disk, as it is shown; and how they are changed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{self, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::at::At;
use super::config::XattrPermissions;
use super::copy_up::Purpose;
use super::node::{Node, UNCOUNTED};
use super::types::{Attr, Caller, SetAttr, SetTime, Time};
use super::xattr::OverrideStat;
use super::{Overlay, Result};

const KIND: u32 = 0o170_000;
const UTIME_NOW: i64 = (1 << 30) - 1;
const UTIME_OMIT: i64 = (1 << 30) - 2;

impl Overlay {
    /// Attributes of `node` as shown, from what `at`, its place in `layer`, is on disk.
    pub(super) fn shown(&self, node: &Arc<Node>, stat: &Stat, layer: u16, at: &At<'_>) -> Result<Attr> {
        let mut attr = plain(stat);
        attr.ino = node.ino();
        if let Some(name) = self.override_in(layer)
            && let Some(stored) = OverrideStat::read(at, name)?
        {
            (attr.uid, attr.gid) = (stored.uid, stored.gid);
            attr.mode = attr.mode & KIND | stored.mode;
        }
        if let Some(directory) = &node.directory {
            directory.mode.store(attr.mode, Ordering::Relaxed);
            directory.gid.store(attr.gid, Ordering::Relaxed);
            attr.nlink = self.links_of_directory(node, stat)?;
            attr.rdev = 0;
        } else if node.is_removed() {
            // A file of a lower layer has all its names for ever.
            attr.nlink = if self.is_upper(layer) { attr.nlink } else { 0 };
        }
        attr.uid = self
            .config
            .squash_to_uid
            .unwrap_or_else(|| self.config.uid_map.shown(attr.uid));
        attr.gid = self
            .config
            .squash_to_gid
            .unwrap_or_else(|| self.config.gid_map.shown(attr.gid));
        Ok(attr)
    }

    /// Two, and one for each subdirectory; 1 if the file system below does not count (or nobody wants to know).
    fn links_of_directory(&self, node: &Arc<Node>, stat: &Stat) -> Result<u32> {
        let Some(directory) = &node.directory else {
            return Ok(1);
        };
        let on_disk = u32::try_from(stat.st_nlink).unwrap_or(u32::MAX);
        if node.is_removed() {
            return Ok(0);
        }
        if self.config.static_nlink || on_disk < 2 {
            return Ok(1);
        }
        if !directory.is_merged() {
            return Ok(on_disk);
        }
        match directory.subdirectories.load(Ordering::Relaxed) {
            UNCOUNTED => {
                let _names = super::lock::read(&directory.names);
                let count = self.count_subdirectories(node)?;
                directory.subdirectories.store(count, Ordering::Relaxed);
                Ok(count.saturating_add(2))
            }
            count => Ok(count.saturating_add(2)),
        }
    }

    pub(super) fn do_getattr(&self, node: u64, handle: Option<u64>) -> Result<Attr> {
        let node = self.node(node)?;
        if let Some(handle) = handle.and_then(|id| self.files.get(id))
            && handle.is_of(&node)
        {
            let fd = handle.fd();
            let at = At::Fd(std::os::fd::AsFd::as_fd(&*fd));
            return self.shown(&node, &at.stat()?, handle.layer(), &at);
        }
        self.with(&node, |at, layer| self.shown(&node, &at.stat()?, layer, &at))
    }

    pub(super) fn do_setattr(&self, node: u64, handle: Option<u64>, change: &SetAttr) -> Result<Attr> {
        let node = self.node(node)?;
        if *change == SetAttr::default() {
            return self.with(&node, |at, layer| self.shown(&node, &at.stat()?, layer, &at));
        }
        if node.is_removed() && change.is_times_only() {
            let lower = !self.is_upper(super::lock::read(&node.place).layer);
            if lower || !node.may_be_open() {
                return self.pretend_times(&node, change);
            }
        }
        self.copy_up(
            &node,
            match change.size {
                Some(_) => Purpose::Write(change.size),
                None => Purpose::Keep,
            },
        )?;
        let handle = handle
            .and_then(|id| self.files.get(id))
            .filter(|h| h.is_of(&node));
        if let Some(handle) = &handle {
            let fd = handle.fd();
            let at = At::Fd(std::os::fd::AsFd::as_fd(&*fd));
            if let Some(size) = change.size.filter(|_| handle.is_writable()) {
                fs::ftruncate(&*fd, size)?;
                return self.change(
                    &node,
                    &at,
                    &SetAttr {
                        size: None,
                        ..*change
                    },
                );
            }
            if change.size.is_none() {
                return self.change(&node, &at, change);
            }
        }
        self.with(&node, |at, _| self.change(&node, &at, change))
    }

    /// The kernel, when it caches writes, tells the last change of a file that it has just unlinked. Nobody will see it,
    /// and a file of a lower layer would be copied for it.
    fn pretend_times(&self, node: &Arc<Node>, change: &SetAttr) -> Result<Attr> {
        let mut attr = self.with(node, |at, layer| self.shown(node, &at.stat()?, layer, &at))?;
        for (time, new) in [(&mut attr.atime, change.atime), (&mut attr.mtime, change.mtime)] {
            if let Some(SetTime::At(new)) = new {
                *time = new;
            }
        }
        Ok(attr)
    }

    /// Changes a file of the upper directory.
    fn change(&self, node: &Arc<Node>, at: &At<'_>, change: &SetAttr) -> Result<Attr> {
        if let Some(size) = change.size {
            if node.kind != FileType::RegularFile {
                return Err(if node.is_directory() {
                    Errno::ISDIR
                } else {
                    Errno::INVAL
                });
            }
            let open = || at.open(OFlags::WRONLY | OFlags::NONBLOCK);
            fs::ftruncate(self.descriptors.with_room(open)?, size)?;
        }
        if change.kill_privileges && node.kind == FileType::RegularFile {
            self.drop_privileges(node, at)?;
        }
        self.change_owner_and_mode(node, at, change)?;
        if change.atime.is_some() || change.mtime.is_some() {
            at.set_times(&Timestamps {
                last_access: timespec(change.atime),
                last_modification: timespec(change.mtime),
            })?;
        }
        self.shown(node, &at.stat()?, super::layer::UPPER, at)
    }

    fn change_owner_and_mode(&self, node: &Arc<Node>, at: &At<'_>, change: &SetAttr) -> Result<()> {
        let uid = self.stored_uid(change.uid)?;
        let gid = self.stored_gid(change.gid)?;
        if let Some(name) = self.override_in(super::layer::UPPER) {
            if uid.is_none() && gid.is_none() && change.mode.is_none() {
                return Ok(());
            }
            let mut stored = match OverrideStat::read(at, name)? {
                Some(stored) => stored,
                None => OverrideStat::of(&at.stat()?),
            };
            stored.uid = uid.unwrap_or(stored.uid);
            stored.gid = gid.unwrap_or(stored.gid);
            let given = uid.is_some() || gid.is_some();
            stored.mode = match change.mode {
                Some(mode) => mode & 0o7777,
                // What chown(2) does to an inode.
                None if given && !node.is_directory() => unprivileged(stored.mode),
                None => stored.mode,
            };
            stored.write(at, name, node.kind)?;
            if given && !node.is_directory() {
                drop_capability(node, at)?;
            }
            return Ok(());
        }
        if uid.is_some() || gid.is_some() {
            at.chown(uid.map(Uid::from_raw), gid.map(Gid::from_raw))?;
            node.no_capability.store(true, Ordering::Relaxed);
        }
        match change.mode {
            Some(_) if node.kind == FileType::Symlink => Err(Errno::OPNOTSUPP),
            Some(mode) => at.chmod(mode),
            None => Ok(()),
        }
    }

    /// The id on disk for one that a request names; nothing if owners are not kept.
    pub(super) fn stored_uid(&self, uid: Option<u32>) -> Result<Option<u32>> {
        match uid {
            Some(uid) if self.config.squash_to_uid.is_none() => {
                self.config.uid_map.stored(uid).ok_or(Errno::OVERFLOW).map(Some)
            }
            _ => Ok(None),
        }
    }

    pub(super) fn stored_gid(&self, gid: Option<u32>) -> Result<Option<u32>> {
        match gid {
            Some(gid) if self.config.squash_to_gid.is_none() => {
                self.config.gid_map.stored(gid).ok_or(Errno::OVERFLOW).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The attribute that holds owners and modes in a layer.
    pub(super) fn override_in(&self, layer: u16) -> Option<&'static str> {
        let asked = match self.config.xattr_permissions {
            XattrPermissions::Off => None,
            XattrPermissions::Privileged => Some(super::xattr::OVERRIDES[0]),
            XattrPermissions::Containers => Some(super::xattr::OVERRIDES[1]),
        };
        if self.is_upper(layer) && asked.is_some() {
            return asked;
        }
        self.layers[usize::from(layer)].override_stat
    }

    /// Set-user-id, set-group-id (if the group may execute) and capabilities go when others than their owner write.
    /// Whether the mode is another one now.
    pub(super) fn drop_privileges(&self, node: &Arc<Node>, at: &At<'_>) -> Result<bool> {
        let stat = at.stat()?;
        let mode = match self.override_in(super::layer::UPPER) {
            Some(name) => OverrideStat::read(at, name)?.map_or(stat.st_mode, |stored| stored.mode),
            None => stat.st_mode,
        };
        let kept = unprivileged(mode);
        if kept != mode & 0o7777 {
            let change = SetAttr {
                mode: Some(kept),
                ..SetAttr::default()
            };
            self.change_owner_and_mode(node, at, &change)?;
        }
        drop_capability(node, at)?;
        Ok(kept != mode & 0o7777)
    }

    pub(super) fn do_access(&self, caller: &Caller, node: u64, mask: u32) -> Result<()> {
        let attr = self.do_getattr(node, None)?;
        let wanted = mask & 0o7;
        if wanted & 0o2 != 0
            && self.work.is_none()
            && matches!(attr.mode & KIND, 0o100_000 | 0o040_000 | 0o120_000)
        {
            return Err(Errno::ROFS);
        }
        let shift = match caller {
            Caller { uid, .. } if *uid == attr.uid => 6,
            Caller { gid, .. } if *gid == attr.gid => 3,
            _ => 0,
        };
        let executable = attr.mode & 0o111 != 0 || attr.mode & KIND == 0o040_000;
        let granted = if caller.uid == 0 {
            if executable { 0o7 } else { 0o6 }
        } else {
            attr.mode >> shift & 0o7
        };
        if wanted & !granted == 0 {
            Ok(())
        } else {
            Err(Errno::ACCESS)
        }
    }
}

/// The mode that is left when others than its owner write a file, or it gets another owner.
fn unprivileged(mode: u32) -> u32 {
    let group = if mode & 0o2010 == 0o2010 { 0o2000 } else { 0 };
    mode & 0o7777 & !(0o4000 | group)
}

fn drop_capability(node: &Node, at: &At<'_>) -> Result<()> {
    if !node.no_capability.load(Ordering::Relaxed) {
        match at.remove_xattr(b"security.capability") {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
        node.no_capability.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// As on disk.
fn plain(stat: &Stat) -> Attr {
    let time = |seconds, nanoseconds: u64| Time {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or_default(),
    };
    Attr {
        ino: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        blocks: u64::try_from(stat.st_blocks).unwrap_or_default(),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        mode: stat.st_mode,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: small_device(stat.st_rdev),
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
    }
}

/// A device number in the kernel's 32-bit form.
fn small_device(dev: u64) -> u32 {
    let (major, minor) = (fs::major(dev), fs::minor(dev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// And back.
pub(super) fn large_device(dev: u32) -> u64 {
    fs::makedev(dev >> 8 & 0xfff, dev & 0xff | dev >> 12 & 0xf_ff00)
}

fn timespec(time: Option<SetTime>) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, UTIME_OMIT),
        Some(SetTime::Now) => (0, UTIME_NOW),
        Some(SetTime::At(time)) => (time.seconds, i64::from(time.nanoseconds)),
    };
    Timespec { tv_sec, tv_nsec }
}

/// Both times of a file, to be set on its copy.
pub(super) fn times_of(stat: &Stat) -> Timestamps {
    let spec = |tv_sec, nanoseconds: u64| Timespec {
        tv_sec,
        tv_nsec: nanoseconds.try_into().unwrap_or_default(),
    };
    Timestamps {
        last_access: spec(stat.st_atime, stat.st_atime_nsec),
        last_modification: spec(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Permission bits for a file that is about to be made: special ones come after its owner, whose change clears them.
pub(super) fn first_mode(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o777)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_come_back() {
        for (major, minor) in [(0, 0), (1, 3), (8, 17), (259, 1_000), (4095, 0xf_ffff)] {
            let small = small_device(fs::makedev(major, minor));
            assert_eq!(large_device(small), fs::makedev(major, minor), "{major}:{minor}");
        }
    }
}
