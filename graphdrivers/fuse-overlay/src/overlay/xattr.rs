//! Extended attributes: the users' own, without what overlay file systems keep beside them.
//!
//! As in the kernel, a user's `user.overlay.NAME` is kept as `user.overlay.overlay.NAME`, so that an overlay inside a
//! container works and no user can write our marks.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, Stat, XattrFlags};
use rustix::io::Errno;

use super::at::At;
use super::config::IdMap;
use super::copy_up::Purpose;
use super::node::{Node, UNKNOWN};
use super::{Overlay, Result};

/// Attributes that hold owner and mode: `xattr_permissions=1`, `=2`, and an older form.
pub(super) const OVERRIDES: [&str; 3] = [
    "security.fuseoverlayfs.override_stat",
    "user.containers.override_stat",
    "user.fuseoverlayfs.override_stat",
];
pub(super) const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
const CAPABILITY: &[u8] = b"security.capability";
/// The kernel's limit of an attribute's value and of the list of names.
const LARGEST: usize = 1 << 16;

impl Overlay {
    pub(super) fn do_getxattr(&self, node: u64, name: &OsStr) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        let name = self.stored_name(name.as_bytes())?;
        let capability = *name == *CAPABILITY;
        if capability && node.no_capability.load(Ordering::Relaxed) {
            return Err(Errno::NODATA);
        }
        let value = self.with(&node, |at, _| grow(|buffer| at.get_xattr(&name, buffer)));
        if capability && value == Err(Errno::NODATA) {
            node.no_capability.store(true, Ordering::Relaxed);
        }
        let mut value = value?;
        if is_acl(&name) {
            self.map_acl(&mut value, |map, id| Some(map.shown(id)))?;
        }
        Ok(value)
    }

    pub(super) fn do_setxattr(&self, node: u64, name: &OsStr, value: &[u8], flags: u32) -> Result<()> {
        let node = self.node(node)?;
        let name = self.stored_name(name.as_bytes())?;
        let mut value = Cow::Borrowed(value);
        if is_acl(&name) {
            self.map_acl(value.to_mut(), IdMap::stored)?;
        }
        self.copy_up(&node, Purpose::Keep)?;
        self.forget_what_is_known(&node, &name);
        let flags = XattrFlags::from_bits_retain(flags);
        let outcome = self.with(&node, |at, _| at.set_xattr(&name, &value, flags));
        self.forget_what_is_known(&node, &name);
        outcome
    }

    pub(super) fn do_removexattr(&self, node: u64, name: &OsStr) -> Result<()> {
        let node = self.node(node)?;
        let name = self.stored_name(name.as_bytes())?;
        // Nothing is copied up only to find that there is nothing to remove.
        self.with(&node, |at, _| at.get_xattr(&name, &mut []))?;
        self.copy_up(&node, Purpose::Keep)?;
        let outcome = self.with(&node, |at, _| at.remove_xattr(&name));
        self.forget_what_is_known(&node, &name);
        outcome
    }

    pub(super) fn do_listxattr(&self, node: u64) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        let stored = match self.with(&node, |at, _| grow(|buffer| at.list_xattrs(buffer))) {
            Err(Errno::OPNOTSUPP) => Vec::new(),
            outcome => outcome?,
        };
        let mut shown = Vec::with_capacity(stored.len());
        for name in stored.split(|&b| b == 0).filter(|name| !name.is_empty()) {
            if self.marks.is_private(name) || (self.config.noacl && is_acl(name)) {
                continue;
            }
            if let Some(rest) = name.strip_prefix(self.marks.escaped) {
                shown.extend(self.marks.prefix);
                shown.extend(rest);
            } else {
                shown.extend(name);
            }
            shown.push(0);
        }
        Ok(shown)
    }

    /// The name on disk of a user's attribute.
    fn stored_name<'a>(&self, name: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        if self.config.noacl && is_acl(name) {
            return Err(Errno::OPNOTSUPP);
        }
        match name.strip_prefix(self.marks.prefix) {
            Some(rest) => Ok(Cow::Owned([self.marks.escaped, rest].concat())),
            None if self.marks.is_private(name) => Err(Errno::OPNOTSUPP),
            None => Ok(Cow::Borrowed(name)),
        }
    }

    fn forget_what_is_known(&self, node: &Node, name: &[u8]) {
        if name == CAPABILITY {
            node.no_capability.store(false, Ordering::Relaxed);
        }
        if let Some(directory) = &node.directory
            && name == ACL_DEFAULT
        {
            directory.default_acl.store(UNKNOWN, Ordering::Relaxed);
        }
    }

    /// Whether files made in an upper directory inherit an access control list.
    pub(super) fn has_default_acl(&self, node: &Arc<Node>) -> Result<bool> {
        if self.config.noacl {
            return Ok(false);
        }
        let memory = &self.directory_of(node)?.default_acl;
        match memory.load(Ordering::Relaxed) {
            UNKNOWN => {
                let found = match self.with(node, |at, _| at.get_xattr(ACL_DEFAULT, &mut [])) {
                    Ok(_) => true,
                    Err(Errno::NODATA | Errno::OPNOTSUPP) => false,
                    Err(errno) => return Err(errno),
                };
                memory.store(u8::from(found), Ordering::Relaxed);
                Ok(found)
            }
            known => Ok(known == 1),
        }
    }

    /// Translates the ids in an access control list (`struct posix_acl_xattr_entry`: tag, permissions, id).
    fn map_acl(&self, value: &mut [u8], map: impl Fn(&IdMap, u32) -> Option<u32>) -> Result<()> {
        const USER: u16 = 2;
        const GROUP: u16 = 8;
        if self.config.uid_map.is_identity() && self.config.gid_map.is_identity() {
            return Ok(());
        }
        for entry in value.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
            let ids = match u16::from_le_bytes([entry[0], entry[1]]) {
                USER => &self.config.uid_map,
                GROUP => &self.config.gid_map,
                _ => continue,
            };
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            entry[4..].copy_from_slice(&map(ids, id).ok_or(Errno::OVERFLOW)?.to_le_bytes());
        }
        Ok(())
    }
}

fn is_acl(name: &[u8]) -> bool {
    name == ACL_ACCESS || name == ACL_DEFAULT
}

/// Calls `get` with a buffer that fits.
pub(super) fn grow(get: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match get(&mut buffer) {
            Ok(n) => {
                buffer.truncate(n);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < LARGEST => buffer.resize(LARGEST, 0),
            Err(errno) => return Err(errno),
        }
    }
}

/// Copies all attributes of `from` that are its users' to `to`, a fresh file.
///
/// What cannot be written in this namespace (`trusted.*`, other security modules') or on this file system is left out,
/// as the kernel does. Access lists and capabilities are not: without them the copy would be another file to its users.
pub(super) fn copy(overlay: &Overlay, from: &At<'_>, to: &At<'_>) -> Result<()> {
    let mut small = [0u8; 512];
    let list = match from.list_xattrs(&mut small) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(n) => small[..n].to_vec(),
        Err(Errno::RANGE) => grow(|buffer| from.list_xattrs(buffer))?,
        Err(errno) => return Err(errno),
    };
    for name in list.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let owner_kept = OVERRIDES.iter().any(|o| o.as_bytes() == name);
        if (overlay.marks.is_private(name) && !owner_kept) || (overlay.config.noacl && is_acl(name)) {
            continue;
        }
        let must = is_acl(name) || name == CAPABILITY;
        let value = match grow(|buffer| from.get_xattr(name, buffer)) {
            Ok(value) => value,
            Err(Errno::NODATA) => continue,
            Err(Errno::PERM | Errno::OPNOTSUPP) if !must => continue,
            Err(errno) => return Err(errno),
        };
        match to.set_xattr(name, &value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(errno @ (Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL)) if !must => {
                tracing::debug!(attribute = %String::from_utf8_lossy(name), %errno, "attribute left out at copy-up");
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// What the owning group may by a file's access list; `None` without one.
pub(super) fn group_of_acl(at: &At<'_>) -> Result<Option<u32>> {
    match grow(|buffer| at.get_xattr(ACL_ACCESS, buffer)) {
        Ok(list) => Ok(group_in(&list)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn group_in(list: &[u8]) -> Option<u32> {
    const OWNING_GROUP: u16 = 4;
    const MASK: u16 = 16;
    let entries = list.get(4..).unwrap_or_default().chunks_exact(8);
    let permissions = |wanted| {
        let mut found = entries
            .clone()
            .filter(|entry| u16::from_le_bytes([entry[0], entry[1]]) == wanted)
            .map(|entry| u32::from(u16::from_le_bytes([entry[2], entry[3]])) & 0o7);
        found.next()
    };
    Some(permissions(OWNING_GROUP)? & permissions(MASK).unwrap_or(0o7))
}

/// Owner and mode kept in an attribute: `UID:GID:MODE[:TYPE]`, the mode in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OverrideStat {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
}

impl OverrideStat {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
        }
    }

    pub(super) fn read(at: &At<'_>, name: &str) -> Result<Option<Self>> {
        let mut buffer = [0u8; 64];
        match at.get_xattr(name.as_bytes(), &mut buffer) {
            Ok(n) => Ok(Self::parse(&buffer[..n])),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut fields = std::str::from_utf8(text).ok()?.trim_end_matches('\0').split(':');
        Some(Self {
            uid: fields.next()?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
            mode: u32::from_str_radix(fields.next()?, 8).ok()? & 0o7777,
        })
    }

    /// A symbolic link cannot carry attributes of users; its owner is then not kept.
    pub(super) fn write(self, at: &At<'_>, name: &str, kind: FileType) -> Result<()> {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write!(text, "{}:{}:{:o}", self.uid, self.gid, self.mode);
        match at.set_xattr(name.as_bytes(), text.as_bytes(), XattrFlags::empty()) {
            Err(Errno::PERM) if !matches!(kind, FileType::RegularFile | FileType::Directory) => Ok(()),
            outcome => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_owners_are_read_in_all_their_forms() {
        let expected = OverrideStat {
            uid: 0,
            gid: 42,
            mode: 0o4755,
        };
        for text in ["0:42:4755", "0:42:04755", "0:42:4755:dir", "0:42:4755\0"] {
            assert_eq!(OverrideStat::parse(text.as_bytes()), Some(expected), "{text:?}");
        }
        for text in ["", "0:42", "x:1:755", "0:1:9"] {
            assert_eq!(OverrideStat::parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
