//! Each function is one promise of the contract.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};

use skiff_archive::{ApplyOptions, diff};
use skiff_graphdrivers::{
    Access, ActiveId, ErrorKind, GraphDriver, LayerId, Mounter, PrepareOptions, SnapshotKey, SnapshotRef,
    probe, select,
};

use crate::disks;
use crate::support::{tree, userns};

pub(crate) mod copies;
pub(crate) mod crash;
pub(crate) mod formats;
mod stacked;
pub(crate) mod steps;
pub(crate) mod subvolumes;
mod written;

pub(crate) use copies::what_lies_below_is_seen_as_it_is;
pub(crate) use crash::a_kill_at_any_instant_leaves_a_sound_state;
pub(crate) use stacked::layers_stacked_late_equal_layers_prepared_in_order;
pub(crate) use steps::a_kill_at_each_step_leaves_a_sound_state;
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

pub(crate) fn prepare_twice_with_one_key_already_exists(f: &Fixture) {
    let driver = f.open();
    prepare(&*driver, "a", None);
    fill(&*driver, "a", &[("x", "kept")]);
    let again = driver.prepare(&key("a"), None, &PrepareOptions::default());
    assert_eq!(kind(again), ErrorKind::AlreadyExists);
    assert!(
        driver
            .apply_target(&key("a"))
            .unwrap()
            .directory
            .join("x")
            .exists()
    );
    // A layer and an active snapshot never share a name, even if someone calls a container like a layer.
    commit(&*driver, &layer(1), None, &[]);
    prepare(&*driver, layer(1).hex(), None);
}

pub(crate) fn a_parent_must_be_a_committed_layer(f: &Fixture) {
    let driver = f.open();
    let outcome = driver.prepare(&key("a"), Some(&layer(1)), &PrepareOptions::default());
    assert_eq!(kind(outcome), ErrorKind::NotFound);
    // The refused key is free again.
    prepare(&*driver, "a", None);
    assert_eq!(list(&*driver).len(), 1);
}

pub(crate) fn commit_is_atomic_and_checked(f: &Fixture) {
    let driver = f.open();
    assert_eq!(
        kind(driver.commit(&key("missing"), &layer(1))),
        ErrorKind::NotFound
    );
    commit(&*driver, &layer(1), None, &[("x", "first")]);
    prepare(&*driver, "b", None);
    fill(&*driver, "b", &[("x", "second")]);
    assert_eq!(
        kind(driver.commit(&key("b"), &layer(1))),
        ErrorKind::AlreadyExists
    );
    // The active snapshot stays, and so does the layer.
    assert!(driver.stat(SnapshotRef::Active(&key("b"))).is_ok());
    let text = see(
        f,
        &*driver,
        SnapshotRef::Layer(&layer(1)),
        Access::ReadOnly,
        |p| fs::read_to_string(p.join("x")).unwrap(),
    );
    assert_eq!(text, "first");
    driver.commit(&key("b"), &layer(2)).unwrap();
    assert_eq!(
        kind(driver.stat(SnapshotRef::Active(&key("b")))),
        ErrorKind::NotFound
    );
}

pub(crate) fn a_parent_with_children_is_in_use(f: &Fixture) {
    let driver = f.open();
    commit(&*driver, &layer(1), None, &[]);
    commit(&*driver, &layer(2), Some(&layer(1)), &[]);
    prepare(&*driver, "rw", Some(&layer(2)));
    for id in [layer(1), layer(2)] {
        let error = driver.remove(SnapshotRef::Layer(&id)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(error.to_string().contains(id.hex()), "{error}");
    }
    // The same after a restart, when the index was read from the disk.
    drop(driver);
    let driver = f.open();
    assert_eq!(
        kind(driver.remove(SnapshotRef::Layer(&layer(2)))),
        ErrorKind::InUse
    );
    driver.remove(SnapshotRef::Active(&key("rw"))).unwrap();
    driver.remove(SnapshotRef::Layer(&layer(2))).unwrap();
    driver.remove(SnapshotRef::Layer(&layer(1))).unwrap();
    assert_eq!(
        kind(driver.remove(SnapshotRef::Layer(&layer(1)))),
        ErrorKind::NotFound
    );
    assert!(list(&*driver).is_empty());
}

pub(crate) fn siblings_prepare_concurrently(f: &Fixture) {
    let driver = f.open();
    commit(&*driver, &layer(0), None, &[("base", "base")]);
    let start = Barrier::new(8);
    let won = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|n| {
                let (driver, start) = (&driver, &start);
                scope.spawn(move || {
                    start.wait();
                    // All want this one; one gets it.
                    let shared = driver
                        .prepare(&key("shared"), Some(&layer(0)), &PrepareOptions::default())
                        .is_ok();
                    commit(
                        &**driver,
                        &layer(100 + n),
                        Some(&layer(0)),
                        &[("own", &n.to_string())],
                    );
                    shared
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|w| w.join().unwrap())
            .filter(|shared| *shared)
            .count()
    });
    assert_eq!(won, 1);
    for n in 0..8 {
        see(
            f,
            &*driver,
            SnapshotRef::Layer(&layer(100 + n)),
            Access::ReadOnly,
            |p| {
                assert_eq!(names(p), ["base", "own"]);
                assert_eq!(fs::read_to_string(p.join("own")).unwrap(), n.to_string());
            },
        );
    }
}

pub(crate) fn depth_beyond_the_limit_says_the_limit(f: &Fixture) {
    let driver = f.open();
    let max = driver.capabilities().max_depth;
    let depth = max.unwrap_or(20);
    let mut parent = None;
    for n in 0..depth {
        commit(
            &*driver,
            &layer(n),
            parent.as_ref(),
            &[(&format!("f{n}"), "x"), ("last", &n.to_string())],
        );
        parent = Some(layer(n));
    }
    // A container on the deepest image works, and sees all layers.
    prepare(&*driver, "rw", parent.as_ref());
    see(
        f,
        &*driver,
        SnapshotRef::Active(&key("rw")),
        Access::ReadWrite,
        |p| {
            assert_eq!(fs::read_dir(p).unwrap().count(), depth + 1);
            assert_eq!(
                fs::read_to_string(p.join("last")).unwrap(),
                (depth - 1).to_string()
            );
            fs::write(p.join("new"), "x").unwrap();
        },
    );
    let Some(max) = max else { return };
    commit(&*driver, &layer(depth), parent.as_ref(), &[]);
    let outcome = driver.prepare(&key("deeper"), Some(&layer(depth)), &PrepareOptions::default());
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooDeep);
    assert!(error.to_string().contains(&max.to_string()), "{error}");
}

pub(crate) fn a_layer_is_read_only(f: &Fixture) {
    let driver = f.open();
    commit(&*driver, &layer(1), None, &[("x", "1"), ("gone", "1")]);
    commit(
        &*driver,
        &layer(2),
        Some(&layer(1)),
        &[("y", "2"), (".wh.gone", "")],
    );
    for id in [layer(1), layer(2)] {
        let snapshot = SnapshotRef::Layer(&id);
        assert_eq!(
            kind(driver.mounts(snapshot, Access::ReadWrite)),
            ErrorKind::InvalidArgument
        );
        see(f, &*driver, snapshot, Access::ReadOnly, |p| {
            assert_eq!(names(p), if id == layer(1) { ["gone", "x"] } else { ["x", "y"] });
            let error = fs::write(p.join("new"), "x").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        });
    }
    // An active snapshot can be read as a whole too.
    prepare(&*driver, "rw", Some(&layer(2)));
    fill(&*driver, "rw", &[("z", "3")]);
    see(
        f,
        &*driver,
        SnapshotRef::Active(&key("rw")),
        Access::ReadOnly,
        |p| {
            assert_eq!(names(p), ["x", "y", "z"]);
            assert!(fs::write(p.join("new"), "x").is_err());
        },
    );
}

pub(crate) fn layers_are_seen_through_each_other(f: &Fixture) {
    let driver = f.open();
    commit(
        &*driver,
        &layer(1),
        None,
        &[
            ("d/", ""),
            ("d/a", "1"),
            ("d/b", "1"),
            ("o/", ""),
            ("o/old", "1"),
            ("r/", ""),
            ("r/old", "1"),
            ("f", "1"),
        ],
    );
    commit(
        &*driver,
        &layer(2),
        Some(&layer(1)),
        &[
            ("d/", ""),
            ("d/.wh.a", ""),
            ("d/c", "2"),
            ("o/", ""),
            ("o/.wh..wh..opq", ""),
            ("o/new", "2"),
            // A directory becomes a file, a file becomes a directory.
            ("r", "file"),
            ("f/", ""),
            ("f/x", "2"),
        ],
    );
    commit(
        &*driver,
        &layer(3),
        Some(&layer(2)),
        &[("r/", ""), ("r/again", "3"), (".wh.f", ""), ("d/a", "3")],
    );
    let shown = |id: &LayerId| {
        see(f, &*driver, SnapshotRef::Layer(id), Access::ReadOnly, |p| {
            tree::read(p)
                .into_keys()
                .map(|path| path.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
                .join(" ")
        })
    };
    assert_eq!(shown(&layer(1)), "d d/a d/b f o o/old r r/old");
    assert_eq!(shown(&layer(2)), "d d/b d/c f f/x o o/new r");
    // The directory r of layer 3 lies on a file, so nothing of layer 1 comes back.
    assert_eq!(shown(&layer(3)), "d d/a d/b d/c o o/new r r/again");
}

pub(crate) fn a_restart_finds_everything_again(f: &Fixture) {
    let driver = f.open();
    commit(&*driver, &layer(1), None, &[("x", "1")]);
    commit(&*driver, &layer(2), Some(&layer(1)), &[("y", "2")]);
    prepare(&*driver, "rw", Some(&layer(2)));
    let before = list(&*driver);
    assert_eq!(before.len(), 3);
    drop(driver);
    let driver = f.open();
    assert_eq!(list(&*driver), before);
    let info = driver.stat(SnapshotRef::Active(&key("rw"))).unwrap();
    assert_eq!(info.parent, Some(layer(2)));
    see(
        f,
        &*driver,
        SnapshotRef::Active(&key("rw")),
        Access::ReadWrite,
        |p| assert_eq!(names(p), ["x", "y"]),
    );
}

pub(crate) fn half_made_snapshots_are_orphans(f: &Fixture) {
    let driver = f.open();
    commit(&*driver, &layer(1), None, &[("x", "1")]);
    drop(driver);
    // Killed while a snapshot was being made, and while the trash was being emptied.
    let rubbish = f.root().join("staging/0123456789abcdef/dir/sub");
    fs::create_dir_all(&rubbish).unwrap();
    fs::write(rubbish.join("file"), "12345").unwrap();
    let trash = f.root().join("trash/fedcba9876543210/diff");
    fs::create_dir_all(&trash).unwrap();
    fs::write(trash.join("file"), "1234567").unwrap();
    let driver = f.open();
    assert_eq!(list(&*driver), [(SnapshotKey::Layer(layer(1)), None)]);
    let live = HashSet::from([SnapshotKey::Layer(layer(1))]);
    let report = driver.cleanup(&live).unwrap();
    assert_eq!((report.removed.len(), report.freed), (0, 12));
    for place in ["staging", "trash"] {
        assert!(names(&f.root().join(place)).is_empty());
    }
}

pub(crate) fn clean_up_keeps_what_live_snapshots_need(f: &Fixture) {
    let driver = f.open();
    commit(&*driver, &layer(1), None, &[]);
    commit(&*driver, &layer(2), Some(&layer(1)), &[]);
    commit(&*driver, &layer(3), Some(&layer(2)), &[]);
    commit(&*driver, &layer(4), Some(&layer(1)), &[]);
    prepare(&*driver, "live", Some(&layer(2)));
    prepare(&*driver, "orphan", Some(&layer(4)));
    let live = HashSet::from([SnapshotKey::Active(key("live"))]);
    let mut removed = driver.cleanup(&live).unwrap().removed;
    removed.sort();
    let mut expected = vec![
        SnapshotKey::Active(key("orphan")),
        SnapshotKey::Layer(layer(3)),
        SnapshotKey::Layer(layer(4)),
    ];
    expected.sort();
    assert_eq!(removed, expected);
    assert_eq!(list(&*driver).len(), 3);
    assert!(driver.cleanup(&live).unwrap().removed.is_empty());
}

pub(crate) fn removal_is_immediate_and_space_is_freed_later(f: &Fixture) {
    let driver = f.open();
    commit(&*driver, &layer(1), None, &[("d/x", "12345678")]);
    driver.remove(SnapshotRef::Layer(&layer(1))).unwrap();
    assert_eq!(
        kind(driver.mounts(SnapshotRef::Layer(&layer(1)), Access::ReadOnly)),
        ErrorKind::NotFound
    );
    // The name is free at once, although the bytes are still there.
    commit(&*driver, &layer(1), None, &[("y", "1")]);
    // Bytes that others may share are nobody's to count.
    assert_eq!(driver.purge().unwrap(), if f.name == "btrfs" { 0 } else { 8 });
    assert!(names(&f.root().join("trash")).is_empty());
    assert_eq!(driver.purge().unwrap(), 0);
    see(
        f,
        &*driver,
        SnapshotRef::Layer(&layer(1)),
        Access::ReadOnly,
        |p| assert_eq!(names(p), ["y"]),
    );
    // Removing what is mounted does not disturb who uses it.
    prepare(&*driver, "rw", Some(&layer(1)));
    let mounter = Mounter::new();
    let target = f.target("busy");
    mounter
        .mount(
            &driver
                .mounts(SnapshotRef::Active(&key("rw")), Access::ReadWrite)
                .unwrap(),
            &target,
        )
        .unwrap();
    let open = fs::File::create(target.join("open")).unwrap();
    driver.remove(SnapshotRef::Active(&key("rw"))).unwrap();
    mounter.unmount(&target).unwrap();
    drop(open);
    driver.purge().unwrap();
    // Except when it is mounted where the driver itself wants it: the mount would be lost.
    prepare(&*driver, "own", Some(&layer(1)));
    let Some(target) = driver.mount_point(&key("own")).unwrap() else {
        return;
    };
    mounter
        .mount(
            &driver
                .mounts(SnapshotRef::Active(&key("own")), Access::ReadWrite)
                .unwrap(),
            &target,
        )
        .unwrap();
    assert_eq!(
        kind(driver.remove(SnapshotRef::Active(&key("own")))),
        ErrorKind::InUse
    );
    mounter.unmount(&target).unwrap();
    driver.remove(SnapshotRef::Active(&key("own"))).unwrap();
}

pub(crate) fn usage_counts_the_snapshot_alone(f: &Fixture) {
    let driver = f.open();
    commit(
        &*driver,
        &layer(1),
        None,
        &[("big", &"x".repeat(10_000)), ("d/small", "123")],
    );
    assert_eq!(driver.usage(SnapshotRef::Layer(&layer(1))).unwrap().size, 10_003);
    prepare(&*driver, "rw", Some(&layer(1)));
    assert_eq!(driver.usage(SnapshotRef::Active(&key("rw"))).unwrap().size, 0);
    see(
        f,
        &*driver,
        SnapshotRef::Active(&key("rw")),
        Access::ReadWrite,
        |p| {
            fs::write(p.join("new"), "12345").unwrap();
            fs::hard_link(p.join("new"), p.join("again")).unwrap();
        },
    );
    assert_eq!(driver.usage(SnapshotRef::Active(&key("rw"))).unwrap().size, 5);
}

pub(crate) fn another_engines_directory_is_refused(f: &Fixture) {
    let foreign = f.root().join(layer(7).hex()).join("diff");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("precious"), "data").unwrap();
    let error = select(&f.data_root(), Some(f.name), &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("another container engine"), "{error}");
    assert!(foreign.join("precious").exists());
    // Another version of ours.
    fs::write(f.root().join("format"), format!("skiff {} 99\n", f.name)).unwrap();
    let error = select(&f.data_root(), Some(f.name), &[]).unwrap_err();
    assert!(error.to_string().contains("another version"), "{error}");
}

pub(crate) fn mounts_are_counted_and_survive_a_restart(f: &Fixture) {
    let driver = f.open();
    commit(&*driver, &layer(1), None, &[("x", "1")]);
    prepare(&*driver, "rw", Some(&layer(1)));
    let mounts = driver
        .mounts(SnapshotRef::Active(&key("rw")), Access::ReadWrite)
        .unwrap();
    let target = f.target("rootfs");
    let mounted = || {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table
            .lines()
            .filter(|line| line.split(' ').nth(4) == target.to_str())
            .count()
    };
    let first = Mounter::new();
    first.mount(&mounts, &target).unwrap();
    first.mount(&mounts, &target).unwrap();
    assert_eq!((first.references(&target), mounted()), (2, 1));
    first.unmount(&target).unwrap();
    assert_eq!((first.references(&target), mounted()), (1, 1));
    fs::write(target.join("written"), "before").unwrap();
    // The daemon is killed; its successor mounts the same again, and nothing is lost.
    let second = Mounter::new();
    second.mount(&mounts, &target).unwrap();
    assert_eq!((second.references(&target), mounted()), (1, 1));
    assert_eq!(fs::read_to_string(target.join("written")).unwrap(), "before");
    second.unmount(&target).unwrap();
    assert_eq!((second.references(&target), mounted()), (0, 0));
    second.unmount(&target).unwrap();
    // A successor that only wants to get rid of it.
    first.mount(&mounts, &f.target("other")).unwrap();
    Mounter::new().unmount(&f.target("other")).unwrap();
    assert!(names(&f.target("other")).is_empty());
    second.unmount(&f.scratch.path().join("missing")).unwrap();
    assert_eq!(
        kind(second.mount(&mounts, &f.scratch.path().join("missing"))),
        ErrorKind::NotFound
    );
    assert_eq!(kind(second.mount(&[], &target)), ErrorKind::InvalidArgument);
}

pub(crate) fn the_root_directory_is_as_the_parents(f: &Fixture) {
    let driver = f.open();
    let options = PrepareOptions {
        root_owner: Some((12, 34)),
    };
    driver.prepare(&key("a"), None, &options).unwrap();
    let directory = driver.apply_target(&key("a")).unwrap().directory;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o1751)).unwrap();
    driver.commit(&key("a"), &layer(1)).unwrap();
    prepare(&*driver, "b", Some(&layer(1)));
    see(
        f,
        &*driver,
        SnapshotRef::Active(&key("b")),
        Access::ReadWrite,
        |p| {
            let meta = fs::metadata(p).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o1751, 12, 34));
        },
    );
    prepare(&*driver, "plain", None);
    let plain = fs::metadata(driver.apply_target(&key("plain")).unwrap().directory).unwrap();
    assert_eq!((plain.mode() & 0o7777, plain.uid()), (0o755, 0));
}

pub(crate) fn long_data_roots_and_odd_names_work(f: &Fixture) {
    // Longer than fsconfig(2) takes in one value, and with every character that mount options treat specially.
    let root = f
        .scratch
        .path()
        .join("a,b:c\\d e=f")
        .join("x".repeat(200))
        .join("y".repeat(200));
    let driver = select(&root, Some(f.name), &[]).unwrap().driver;
    let depth = driver.capabilities().max_depth.unwrap_or(10);
    let mut parent = None;
    for n in 0..depth {
        commit(&*driver, &layer(n), parent.as_ref(), &[(&format!("f{n}"), "x")]);
        parent = Some(layer(n));
    }
    let name = "n".repeat(128);
    prepare(&*driver, &name, parent.as_ref());
    see(
        f,
        &*driver,
        SnapshotRef::Active(&key(&name)),
        Access::ReadWrite,
        |p| {
            assert_eq!(names(p).len(), depth);
            fs::write(p.join("new"), "x").unwrap();
        },
    );
    let mut out = Vec::new();
    let source = driver.diff_source(SnapshotRef::Active(&key(&name))).unwrap();
    assert_eq!(diff(&source.tree(), &mut out).unwrap().entries, 1);
}

pub(crate) fn a_volatile_mount_can_be_made_again(f: &Fixture) {
    let driver = f.open();
    commit(&*driver, &layer(1), None, &[("x", "1")]);
    prepare(&*driver, "rm", Some(&layer(1)));
    let active = key("rm");
    for round in 1..4 {
        see(f, &*driver, SnapshotRef::Active(&active), Access::Volatile, |p| {
            fs::write(p.join(round.to_string()), "x").unwrap();
            assert_eq!(names(p).len(), round + 1);
        });
    }
    assert_eq!(
        kind(driver.mounts(SnapshotRef::Layer(&layer(1)), Access::Volatile)),
        ErrorKind::InvalidArgument
    );
    driver.remove(SnapshotRef::Active(&active)).unwrap();
    driver.purge().unwrap();
}

pub(crate) fn a_probe_says_what_it_found_and_leaves_nothing(f: &Fixture) {
    let before = names(f.scratch.path());
    // A data root that is not there is not made.
    let evidence = probe(&f.scratch.path().join("not/there"), f.name).unwrap();
    assert_eq!(evidence.driver, f.name);
    assert!(evidence.finding.contains("kernel "), "{evidence:?}");
    assert_eq!(names(f.scratch.path()), before);
    // Beside a daemon that uses the driver, nothing is disturbed.
    let driver = f.open();
    commit(&*driver, &layer(1), None, &[("x", "1")]);
    let inside = names(&f.data_root());
    probe(&f.data_root(), f.name).unwrap();
    assert_eq!(names(&f.data_root()), inside);
    assert_eq!(list(&*driver).len(), 1);
    assert_eq!(driver.name(), f.name);
    assert!(!driver.status().is_empty());
}

pub(crate) fn rows_for_inspect_name_directories_that_exist(f: &Fixture) {
    let driver = f.open();
    commit(&*driver, &layer(1), None, &[("x", "1")]);
    commit(&*driver, &layer(2), Some(&layer(1)), &[("y", "1")]);
    prepare(&*driver, "rw", Some(&layer(2)));
    let active = key("rw");
    let rows = |snapshot: SnapshotRef<'_>| driver.inspect(snapshot).unwrap();
    let container = rows(SnapshotRef::Active(&active));
    if driver.capabilities().direct_path {
        // As Docker: there is nothing to put together.
        assert!(container.is_empty());
        assert!(rows(SnapshotRef::Layer(&layer(2))).is_empty());
        return;
    }
    let titles = |rows: &[(String, String)]| rows.iter().map(|(title, _)| title.clone()).collect::<Vec<_>>();
    let all = ["LowerDir", "MergedDir", "UpperDir", "WorkDir"];
    assert_eq!(titles(&container), all);
    for (title, value) in &container {
        for path in value.split(':') {
            assert!(Path::new(path).is_dir(), "{title}: {path}");
        }
    }
    let lower: Vec<_> = container[0].1.split(':').map(Path::new).collect();
    assert!(lower.len() == 2 && lower[0].join("y").exists() && lower[1].join("x").exists());
    assert_eq!(titles(&rows(SnapshotRef::Layer(&layer(2)))), all);
    // Nothing lies below the first layer.
    assert_eq!(titles(&rows(SnapshotRef::Layer(&layer(1)))), all[1..]);
    assert_eq!(
        kind(driver.inspect(SnapshotRef::Layer(&layer(9)))),
        ErrorKind::NotFound
    );
}
