//! Owners that this user namespace has no number for.
//!
//! stat(2) shows them as the overflow id, usually 65534, which may be a real user of the namespace as well: nobody. A
//! copy would be nobody's and no longer theirs, so that such files are not copied up: EOVERFLOW, as in the kernel since
//! CVE-2023-0386.

use std::fs;

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use super::Result;
use super::at::At;
use super::config::OVERFLOW_ID;
use super::layer::kind_of;

/// What is to be known of a user namespace.
#[derive(Debug)]
pub(super) struct Unmapped {
    uid: Overflow,
    gid: Overflow,
}

/// The number that stands for all others.
#[derive(Debug)]
struct Overflow {
    id: u32,
    /// Somebody real has it, too.
    taken: bool,
}

impl Unmapped {
    /// Of the namespace of this process; `None` where every owner has a number.
    pub(super) fn here() -> Option<Self> {
        let (uids, gids) = (map_of("uid")?, map_of("gid")?);
        if is_whole(&uids) && is_whole(&gids) {
            return None;
        }
        Some(Self {
            uid: Overflow::new("uid", &uids),
            gid: Overflow::new("gid", &gids),
        })
    }

    /// Refuses a file whose owner or group has no number. Those that will not be kept are not looked at. A foreign group
    /// behind a known owner is not recognized where the namespace has a group of the overflow id: nothing tells them apart.
    pub(super) fn refuse(&self, at: &At<'_>, stat: &Stat, uid_kept: bool, gid_kept: bool) -> Result<()> {
        let uid = uid_kept && stat.st_uid == self.uid.id;
        let gid = gid_kept && stat.st_gid == self.gid.id;
        if (uid && (!self.uid.taken || is_foreign(at, stat))) || (gid && !self.gid.taken) {
            tracing::warn!(
                ?at,
                "a file's owner has no number in this user namespace: not copied up"
            );
            return Err(Errno::OVERFLOW);
        }
        Ok(())
    }
}

impl Overflow {
    fn new(kind: &str, map: &[[u32; 2]]) -> Self {
        let id = fs::read_to_string(format!("/proc/sys/kernel/overflow{kind}"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(OVERFLOW_ID);
        let taken = map.iter().any(|[start, count]| id.wrapping_sub(*start) < *count);
        Self { id, taken }
    }
}

/// Whether not even this namespace's root may do what a file's owner may: then it is nobody's root here. Of links and
/// devices this cannot be asked without side effects.
fn is_foreign(at: &At<'_>, stat: &Stat) -> bool {
    matches!(kind_of(stat), FileType::RegularFile | FileType::Directory)
        && matches!(
            at.open(OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK),
            Err(Errno::PERM | Errno::ACCESS)
        )
}

/// First ids inside, and how many.
fn map_of(kind: &str) -> Option<Vec<[u32; 2]>> {
    let text = fs::read_to_string(format!("/proc/thread-self/{kind}_map"))
        .or_else(|_| fs::read_to_string(format!("/proc/self/{kind}_map")))
        .ok()?;
    text.lines().map(parse).collect()
}

fn parse(line: &str) -> Option<[u32; 2]> {
    let mut fields = line.split_whitespace().map(str::parse);
    match (fields.next()?, fields.next()?, fields.next()?) {
        (Ok(inside), Ok(_), Ok(count)) => Some([inside, count]),
        _ => None,
    }
}

fn is_whole(map: &[[u32; 2]]) -> bool {
    map == [[0, u32::MAX]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read() {
        assert_eq!(parse("         0       1000          1"), Some([0, 1]));
        assert_eq!(parse("0 0"), None);
        assert!(is_whole(&[[0, u32::MAX]]) && !is_whole(&[[0, 65_536]]));
        let nobody = |map: &[[u32; 2]]| Overflow::new("uid", map).taken;
        assert!(nobody(&[[0, 1], [1, 65_536]]));
        assert!(!nobody(&[[0, 1000]]) && !nobody(&[]));
    }
}
