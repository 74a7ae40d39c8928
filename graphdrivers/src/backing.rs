//! The file system that a directory lies on, by the names Docker prints (`Backing Filesystem`).

use std::path::Path;

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
    fn proc_is_not_in_the_table_and_gives_its_number() {
        assert_eq!(name(Path::new("/proc")), "0x9fa0");
        assert_eq!(name(Path::new("/nonexistent")), "<unknown>");
    }
}
