//! What a disk has and what is taken of it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{statvfs, syncfs};
use walkdir::WalkDir;

use crate::error::{Error, Result};
use crate::size::Room;

/// What is free for an ordinary user; inodes are unlimited where the file system makes them as needed (btrfs says 0).
pub(crate) fn free(path: &Path) -> Result<Room> {
    let stat = statvfs(path).map_err(|errno| Error::io(format!("statvfs {}", path.display()), errno))?;
    Ok(Room {
        bytes: stat.f_bavail * stat.f_frsize,
        inodes: if stat.f_files == 0 {
            u64::MAX
        } else {
            stat.f_favail
        },
    })
}

/// Writes everything to the disk: nothing that one measurement left may be written during the next.
pub(crate) fn sync(path: &Path) -> Result<()> {
    let failed = |error| Error::io(format!("syncfs {}", path.display()), error);
    let directory = File::open(path).map_err(failed)?;
    syncfs(&directory).map_err(|errno| failed(errno.into()))
}

/// Bytes of the blocks below `root`, each inode once. Blocks that several files share (reflinks, subvolumes) count for each.
pub(crate) fn blocks(root: &Path) -> Result<u64> {
    let mut seen = HashSet::new();
    let mut bytes = 0;
    for entry in WalkDir::new(root) {
        let failed = |error: walkdir::Error| Error::io(format!("walk {}", root.display()), error);
        let entry = entry.map_err(failed)?;
        let meta = entry.metadata().map_err(failed)?;
        if meta.nlink() <= 1 || meta.is_dir() || seen.insert((meta.dev(), meta.ino())) {
            bytes += meta.blocks() * 512;
        }
    }
    Ok(bytes)
}

/// Type and mount options of the file system that holds `path`, from the table of mounts; the longest mount point that
/// is above `path` wins, the later one of two equals lies on top.
pub(crate) fn file_system(path: &Path) -> Option<FileSystem> {
    let path = path.canonicalize().ok()?;
    parse(&fs::read_to_string("/proc/self/mountinfo").ok()?, &path)
}

/// A file system, as the table of mounts calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileSystem {
    /// `ext4`.
    pub(crate) kind: String,
}

impl FileSystem {
    /// Whether several files can share blocks, so that the sum of their blocks is more than what they take.
    pub(crate) fn shares_blocks(&self) -> bool {
        matches!(self.kind.as_str(), "btrfs" | "xfs" | "bcachefs" | "ocfs2" | "zfs")
    }
}

fn parse(table: &str, path: &Path) -> Option<FileSystem> {
    table
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let point = unescape(left.split(' ').nth(4)?);
            let kind = right.split(' ').next()?.to_owned();
            path.starts_with(&point)
                .then(|| (point.components().count(), FileSystem { kind }))
        })
        .fold(
            None,
            |best: Option<(usize, FileSystem)>, (depth, found)| match best {
                Some((deepest, _)) if deepest > depth => best,
                _ => Some((depth, found)),
            },
        )
        .map(|(_, found)| found)
}

/// `\040` and its like, as the kernel writes blanks in names.
pub(crate) fn unescape(field: &str) -> PathBuf {
    let mut text = field.to_owned();
    for (code, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(code, plain);
    }
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_and_latest_mount_wins() {
        let table = "\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
30 21 0:30 / /home rw,nosuid shared:3 - xfs /dev/sdb rw
31 30 0:31 / /home/a\\040b rw - tmpfs tmpfs rw
32 30 0:32 / /home/a\\040b rw - btrfs /dev/sdc rw
33 21 0:33 / /homestead rw - nfs server:/x rw
";
        let kind = |path: &str| parse(table, Path::new(path)).unwrap().kind;
        assert_eq!(kind("/etc"), "ext4");
        assert_eq!(kind("/home/x"), "xfs");
        assert_eq!(kind("/home/a b/c"), "btrfs");
        assert!(parse(table, Path::new("/home/a b")).unwrap().shares_blocks());
        assert!(parse("", Path::new("/")).is_none());
    }

    #[test]
    fn hard_links_count_once() {
        let directory = tempfile::tempdir().unwrap();
        let before = blocks(directory.path()).unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&a, vec![1; 100_000]).unwrap();
        fs::hard_link(&a, &b).unwrap();
        sync(directory.path()).unwrap();
        let taken = blocks(directory.path()).unwrap() - before;
        assert!((98_000..150_000).contains(&taken), "{taken}");
        assert!(free(directory.path()).unwrap().inodes > 0);
        assert!(file_system(directory.path()).is_some());
    }
}
