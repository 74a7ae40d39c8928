//! Each function is one promise of the contract.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skiff_archive::ApplyOptions;
use skiff_graphdrivers::{
    Access, ActiveId, ErrorKind, GraphDriver, LayerId, Mounter, PrepareOptions, SnapshotKey, SnapshotRef,
    select,
};

use crate::disks;
use crate::support::userns;

pub(crate) mod copies;
pub(crate) mod crash;
pub(crate) mod formats;
mod stacked;
pub(crate) mod steps;
pub(crate) mod subvolumes;
mod transactions;
mod views;
mod written;

pub(crate) use copies::what_lies_below_is_seen_as_it_is;
pub(crate) use crash::a_kill_at_any_instant_leaves_a_sound_state;
pub(crate) use stacked::layers_stacked_late_equal_layers_prepared_in_order;
pub(crate) use steps::a_kill_at_each_step_leaves_a_sound_state;
pub(crate) use transactions::*;
pub(crate) use views::*;
pub(crate) use written::bytes_written_through_a_mount_equal_the_difference;

/// A data root with one driver in it.
pub(crate) struct Fixture {
    scratch: tempfile::TempDir,
    name: &'static str,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // A failed scenario may leave mounts; a temporary directory cannot be removed below them.
        let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else {
            return;
        };
        for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(point).starts_with(self.scratch.path()) {
                let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
            }
        }
    }
}

impl Fixture {
    /// A place where the driver must work; `None` in a run that is not meant to have one.
    pub(crate) fn find(name: &'static str) -> Option<Self> {
        match name {
            "btrfs" => Self::find_on(disks::BTRFS, name),
            _ => userns::powers().then(|| Self::below(&std::env::temp_dir(), name)),
        }
    }

    /// The same on a certain disk.
    pub(crate) fn find_on(disk: &str, name: &'static str) -> Option<Self> {
        (userns::powers() && disks::again()).then(|| Self::below(&disks::disk(disk), name))
    }

    fn below(place: &Path, name: &'static str) -> Self {
        Self {
            scratch: tempfile::Builder::new()
                .prefix("skiff-drivers-")
                .tempdir_in(place)
                .unwrap(),
            name,
        }
    }

    /// Opens the driver, as a daemon does at its start.
    fn open(&self) -> Arc<dyn GraphDriver> {
        select(&self.data_root(), Some(self.name), &[]).unwrap().driver
    }

    fn data_root(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    fn root(&self) -> PathBuf {
        self.data_root().join(self.name)
    }

    /// A new mount point.
    fn target(&self, name: &str) -> PathBuf {
        let path = self.scratch.path().join("mnt").join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

fn key(name: &str) -> ActiveId {
    ActiveId::new(name).unwrap()
}

fn layer(n: usize) -> LayerId {
    let digest = ring::digest::digest(&ring::digest::SHA256, n.to_string().as_bytes());
    LayerId::new(format!("sha256:{}", hex(digest.as_ref()))).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn prepare(driver: &dyn GraphDriver, name: &str, parent: Option<&LayerId>) {
    driver
        .prepare(&key(name), parent, &PrepareOptions::default())
        .unwrap();
}

/// Unpacks files into an active snapshot; a name ending in a slash is a directory.
fn fill(driver: &dyn GraphDriver, name: &str, files: &[(&str, &str)]) {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        let directory = path.ends_with('/');
        header.set_entry_type(if directory {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        header.set_mode(if directory { 0o755 } else { 0o644 });
        header.set_size(text.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    let bytes = builder.into_inner().unwrap();
    let target = driver.apply_target(&key(name)).unwrap();
    skiff_archive::apply(&bytes[..], &target, &ApplyOptions::default()).unwrap();
}

/// Makes a layer with these files.
fn commit(driver: &dyn GraphDriver, id: &LayerId, parent: Option<&LayerId>, files: &[(&str, &str)]) {
    let name = format!("build-{}", id.hex());
    prepare(driver, &name, parent);
    fill(driver, &name, files);
    driver.commit(&key(&name), id).unwrap();
}

/// Shows a snapshot as a whole while `look` runs.
fn see<T>(
    fixture: &Fixture,
    driver: &dyn GraphDriver,
    snapshot: SnapshotRef<'_>,
    access: Access,
    look: impl FnOnce(&Path) -> T,
) -> T {
    let mounter = Mounter::new();
    let target = fixture.target("see");
    mounter
        .mount(&driver.mounts(snapshot, access).unwrap(), &target)
        .unwrap();
    let seen = look(&target);
    mounter.unmount(&target).unwrap();
    seen
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn list(driver: &dyn GraphDriver) -> Vec<(SnapshotKey, Option<LayerId>)> {
    let mut found: Vec<_> = driver
        .list()
        .unwrap()
        .into_iter()
        .map(|info| (info.key, info.parent))
        .collect();
    found.sort();
    found
}

fn kind<T>(outcome: skiff_graphdrivers::Result<T>) -> ErrorKind {
    outcome.err().unwrap().kind()
}
