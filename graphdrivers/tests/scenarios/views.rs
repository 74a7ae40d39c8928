//! What a snapshot shows, and what is said of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use skiff_archive::diff;
use skiff_graphdrivers::{Access, ErrorKind, LayerId, Mounter, PrepareOptions, SnapshotRef, probe, select};

use super::{Fixture, commit, fill, key, kind, layer, list, names, prepare, see};
use crate::support::tree;

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
