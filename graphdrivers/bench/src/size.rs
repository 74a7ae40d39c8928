//! How much is measured: the numbers of files and bytes, and the room they take.

use serde::{Deserialize, Serialize};

use crate::seed;

/// Sizes of the workloads, the same for all drivers of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// `quick`, `normal` or `large`.
    pub name: String,
    /// Small files of the image.
    pub small_files: u32,
    /// Length of the image's big file in bytes.
    pub big_file: u64,
    /// Files that a container creates and deletes.
    pub created_files: u32,
    /// Layers of the image.
    pub layers: u32,
    /// Containers of the disk-use row.
    pub containers: u32,
    /// Containers started for one sample.
    pub starts: u32,
}

/// Room that stays free whatever happens.
const RESERVE: u64 = 64 << 20;

impl Size {
    /// A few seconds a driver: to see whether everything works. The figures are noisy.
    pub fn quick() -> Self {
        Self::new("quick", 1_000, 8 << 20, 300, 3)
    }

    /// About a minute a driver and disk of today.
    pub fn normal() -> Self {
        Self::new("normal", 20_000, 256 << 20, 4_000, 5)
    }

    /// Several minutes: the 98,304 files and the GiB of the engine's own benchmarks.
    pub fn large() -> Self {
        Self::new("large", 98_304, 1 << 30, 20_000, 5)
    }

    /// By name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::quick(), Self::normal(), Self::large()]
            .into_iter()
            .find(|size| size.name == name)
    }

    fn new(name: &str, small_files: u32, big_file: u64, created_files: u32, few: u32) -> Self {
        Self {
            name: name.to_owned(),
            small_files,
            big_file,
            created_files,
            layers: few.max(3),
            containers: few,
            starts: 2 * few,
        }
    }

    /// Bytes and inodes that a driver takes at most: `copies` for one that keeps a whole tree for each snapshot.
    pub(crate) fn room(&self, copies: bool) -> Room {
        let tree = Room {
            bytes: u64::from(self.small_files) * seed::ALLOCATED_PER_FILE + self.big_file,
            inodes: u64::from(self.small_files) * 11 / 10,
        };
        let created = Room {
            bytes: u64::from(self.created_files) * 4096,
            inodes: u64::from(self.created_files) * 11 / 10,
        };
        // The layers, one more unpacked, one container at work, the containers of the disk-use row, one committed.
        let trees = if copies {
            u64::from(self.layers) + u64::from(self.containers) + 3
        } else {
            3
        };
        Room {
            bytes: tree.bytes * trees + created.bytes,
            inodes: tree.inodes * trees + created.inodes + 1_000,
        }
    }
}

/// Room on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl Room {
    /// What is to be free before several drivers are measured side by side.
    pub(crate) fn needed(each: impl IntoIterator<Item = Self>) -> Self {
        each.into_iter().fold(
            Self {
                bytes: RESERVE,
                inodes: 1_000,
            },
            |sum, one| Self {
                bytes: sum.bytes + one.bytes,
                inodes: sum.inodes + one.inodes,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_names_and_grow() {
        let sizes = ["quick", "normal", "large"].map(|name| Size::named(name).unwrap());
        assert!(Size::named("huge").is_none());
        for pair in sizes.windows(2) {
            assert!(pair[0].small_files < pair[1].small_files && pair[0].big_file < pair[1].big_file);
            assert!(pair[0].room(true).bytes < pair[1].room(true).bytes);
        }
        assert!(
            sizes[0].room(false).bytes < 60 << 20,
            "{:?}",
            sizes[0].room(false)
        );
        assert!(sizes[1].room(false).bytes < sizes[1].room(true).bytes);
    }
}
