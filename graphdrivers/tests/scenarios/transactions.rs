//! How snapshots come, become layers, and go.

use std::collections::HashSet;
use std::fs;
use std::sync::Barrier;

use skiff_graphdrivers::{
    Access, ErrorKind, GraphDriver, Mounter, PrepareOptions, SnapshotKey, SnapshotRef, select,
};

use super::{Fixture, commit, fill, key, kind, layer, list, names, prepare, see};

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

pub(crate) fn a_damaged_layer_is_replaced_below_what_stands_on_it(f: &Fixture) {
    let driver = f.open();
    commit(&*driver, &layer(1), None, &[("base", "base")]);
    commit(
        &*driver,
        &layer(2),
        Some(&layer(1)),
        &[("x", "damaged"), ("surplus", "")],
    );
    commit(&*driver, &layer(3), Some(&layer(2)), &[("top", "top")]);
    prepare(&*driver, "rw", Some(&layer(3)));
    let read = |driver: &dyn GraphDriver, name: &str| {
        let top = SnapshotRef::Layer(&layer(2));
        see(f, driver, top, Access::ReadOnly, |p| {
            fs::read_to_string(p.join(name)).ok()
        })
    };
    prepare(&*driver, "new", Some(&layer(1)));
    fill(&*driver, "new", &[("x", "good")]);
    assert_eq!(
        kind(driver.replace(&key("missing"), &layer(2))),
        ErrorKind::NotFound
    );
    assert_eq!(kind(driver.replace(&key("new"), &layer(9))), ErrorKind::NotFound);
    assert_eq!(
        kind(driver.replace(&key("new"), &layer(1))),
        ErrorKind::InvalidArgument
    );
    // Not below a mount.
    let rw = SnapshotRef::Active(&key("rw"));
    if let Some(target) = driver.mount_point(&key("rw")).unwrap() {
        let mounter = Mounter::new();
        fs::create_dir_all(&target).unwrap();
        mounter
            .mount(&driver.mounts(rw, Access::ReadWrite).unwrap(), &target)
            .unwrap();
        assert_eq!(kind(driver.replace(&key("new"), &layer(2))), ErrorKind::InUse);
        assert_eq!(read(&*driver, "x").as_deref(), Some("damaged"));
        mounter.unmount(&target).unwrap();
    }
    driver.replace(&key("new"), &layer(2)).unwrap();
    let before = list(&*driver);
    drop(driver);
    let driver = f.open();
    assert_eq!(list(&*driver), before);
    assert_eq!(before.len(), 4);
    assert_eq!(read(&*driver, "x").as_deref(), Some("good"));
    assert_eq!(read(&*driver, "surplus"), None);
    assert_eq!(read(&*driver, "base").as_deref(), Some("base"));
    if driver.capabilities().native_diff {
        let seen = see(f, &*driver, rw, Access::ReadWrite, |p| {
            (fs::read_to_string(p.join("x")).unwrap(), names(p))
        });
        assert_eq!(seen.0, "good");
        assert_eq!(seen.1, ["base", "top", "x"]);
    }
    // What stands on it keeps it, and the last to go sets it free.
    assert_eq!(
        kind(driver.remove(SnapshotRef::Layer(&layer(2)))),
        ErrorKind::InUse
    );
    driver.remove(rw).unwrap();
    for n in [3, 2, 1] {
        driver.remove(SnapshotRef::Layer(&layer(n))).unwrap();
    }
    assert_eq!(list(&*driver), []);
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
