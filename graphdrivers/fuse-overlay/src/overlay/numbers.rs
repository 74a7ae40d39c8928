//! Inode numbers that programs see.
//!
//! A file shows the inode number it has on disk, so that it keeps it from mount to mount. Layers on further devices
//! get the device's index in the upper bits. A file that was copied up goes on showing the number of the one below, as
//! long as the mount lives; the number of its copy is seen in no other place.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::HashMap;

use super::lock::{read, write};

/// Bits for the inode number on devices other than the first.
const BITS: u32 = 48;

/// The devices that layers lie on, in the order in which they were met.
#[derive(Debug)]
pub(super) struct Devices {
    first: u64,
    others: RwLock<Vec<u64>>,
}

impl Devices {
    pub(super) fn new(first: u64) -> Self {
        Self {
            first,
            others: RwLock::default(),
        }
    }

    pub(super) fn ino(&self, dev: u64, ino: u64) -> u64 {
        if dev == self.first {
            return ino;
        }
        let known = read(&self.others).iter().position(|&d| d == dev);
        let index = known.unwrap_or_else(|| {
            let mut others = write(&self.others);
            others.iter().position(|&d| d == dev).unwrap_or_else(|| {
                others.push(dev);
                others.len() - 1
            })
        });
        // Inode numbers beyond 2^48 do not occur in practice; they would still be distinct with all likelihood.
        ((index as u64 + 1) << BITS) ^ ino
    }
}

/// Inodes of the upper directory that are copies, and the numbers they show.
#[derive(Debug, Default)]
pub(super) struct Origins {
    shown: RwLock<HashMap<u64, u64>>,
    any: AtomicBool,
}

impl Origins {
    pub(super) fn get(&self, ino: u64) -> Option<u64> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        read(&self.shown).get(&ino).copied()
    }

    pub(super) fn set(&self, ino: u64, shown: u64) {
        self.any.store(true, Ordering::Relaxed);
        write(&self.shown).insert(ino, shown);
    }

    /// The inode is gone; its number may be used again.
    pub(super) fn remove(&self, ino: u64) {
        if self.any.load(Ordering::Relaxed) {
            write(&self.shown).remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_several_devices_differ() {
        let devices = Devices::new(7);
        let mut seen = std::collections::HashSet::new();
        for dev in [7, 9, 8, 1000] {
            for ino in 1..1000 {
                assert!(seen.insert(devices.ino(dev, ino)), "{dev}:{ino}");
            }
        }
        assert_eq!(devices.ino(7, 5), 5);
        assert_eq!(devices.ino(8, 5), devices.ino(8, 5));
    }

    #[test]
    fn a_number_is_shown_until_its_inode_is_gone() {
        let origins = Origins::default();
        assert_eq!(origins.get(5), None);
        origins.set(5, 3);
        assert_eq!(origins.get(5), Some(3));
        origins.remove(5);
        assert_eq!(origins.get(5), None);
    }
}
