//! What lies below the drivers: the file system of a directory, by the names Docker prints (`Backing Filesystem`), and
//! the kernel.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Name of the file system; the magic number in hexadecimal when it is not in the table.
pub(crate) fn name(path: &Path) -> String {
    match rustix::fs::statfs(path) {
        Ok(statfs) => {
            // The field is signed on some architectures; the magic numbers are 32 bits.
            let magic = statfs.f_type as u64 & 0xffff_ffff;
            MAGIC
                .iter()
                .find(|(number, _)| *number == magic)
                .map_or_else(|| format!("{magic:#x}"), |(_, n)| (*n).to_owned())
        }
        Err(_) => "<unknown>".to_owned(),
    }
}

/// The kernel's release, as uname(1) prints it.
pub(crate) fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Major and minor number of a kernel's release.
pub(crate) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Where the file system that holds `path` is mounted; `path` itself when that cannot be told. For texts only.
pub(crate) fn mount_point(path: &Path) -> PathBuf {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    deepest(&table, &whole).unwrap_or(whole)
}

fn deepest(table: &[u8], path: &Path) -> Option<PathBuf> {
    table
        .split(|&b| b == b'\n')
        .filter_map(|line| line.split(|&b| b == b' ').nth(4))
        .map(|point| PathBuf::from(OsStr::from_bytes(&crate::mounter::unescape(point))))
        .filter(|point| path.starts_with(point))
        .max_by_key(|point| point.as_os_str().len())
}

/// From statfs(2) and the kernel's `magic.h`.
const MAGIC: [(u64, &str); 19] = [
    (0xef53, "extfs"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x794c_7630, "overlayfs"),
    (0x2fc1_2fc1, "zfs"),
    (0x6969, "nfs"),
    (0x6573_5546, "fuse"),
    (0x6165_676c, "pstorefs"),
    (0xf15f, "ecryptfs"),
    (0x6176_7566, "aufs"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0x4750_4653, "gpfs"),
    (0x0bd0_0bd0, "lustre"),
    (0x1980_0202, "beegfs"),
    (0xff53_4d42, "cifs"),
    (0x7371_7368, "squashfs"),
    (0x8584_58f6, "ramfs"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_point_above_is_found() {
        let table = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n30 22 0:5 / /a\\040b rw - tmpfs tmpfs rw\n";
        assert_eq!(deepest(table, Path::new("/a b/c")).unwrap(), Path::new("/a b"));
        assert_eq!(deepest(table, Path::new("/a bc")).unwrap(), Path::new("/"));
        assert_eq!(deepest(b"", Path::new("/x")), None);
        assert_eq!(mount_point(Path::new("/proc/self")), Path::new("/proc"));
    }

    #[test]
    fn proc_is_not_in_the_table_and_gives_its_number() {
        assert_eq!(name(Path::new("/proc")), "0x9fa0");
        assert_eq!(name(Path::new("/nonexistent")), "<unknown>");
    }
}
