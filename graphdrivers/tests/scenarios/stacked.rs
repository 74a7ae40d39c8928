//! Layers unpacked side by side and stacked afterwards are the layers that unpacking in order gives.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use skiff_graphdrivers::{Access, ErrorKind, GraphDriver, LayerId, SnapshotRef};

use super::{Fixture, commit, fill, key, kind, layer, prepare, see};
use crate::support::tree;

const LAYERS: [&[(&str, &str)]; 4] = [
    &[
        ("d/", ""),
        ("d/a", "1"),
        ("d/b", "1"),
        ("o/", ""),
        ("o/old", "1"),
        ("r", "file"),
    ],
    &[("d/.wh.a", ""), ("d/c", "2"), ("r/", ""), ("r/x", "2")],
    &[
        ("o/", ""),
        ("o/.wh..wh..opq", ""),
        ("o/new", "3"),
        (".wh.missing", ""),
    ],
    &[("d/a", "4"), (".wh.r", ""), ("top", "4")],
];

pub(crate) fn layers_stacked_late_equal_layers_prepared_in_order(f: &Fixture) {
    let driver = f.open();
    if !driver.capabilities().parallel_apply {
        commit(&*driver, &layer(0), None, &[]);
        prepare(&*driver, "a", None);
        let error = driver.stack(&key("a"), &layer(0), true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(f.name), "{error}");
        return;
    }
    // In order, as the measure of all things.
    for (n, files) in LAYERS.iter().enumerate() {
        let below = n.checked_sub(1).map(layer);
        prepare(&*driver, "in-order", below.as_ref());
        fill(&*driver, "in-order", files);
        driver.commit(&key("in-order"), &layer(n)).unwrap();
    }
    // All at once, then stacked.
    std::thread::scope(|scope| {
        for (n, files) in LAYERS.iter().enumerate() {
            let driver = &driver;
            scope.spawn(move || {
                prepare(&**driver, &format!("side-{n}"), None);
                fill(&**driver, &format!("side-{n}"), files);
            });
        }
    });
    for n in 0..LAYERS.len() {
        let active = key(&format!("side-{n}"));
        if n > 0 {
            driver.stack(&active, &layer(99 + n), false).unwrap();
        }
        driver.commit(&active, &layer(100 + n)).unwrap();
    }
    let seen = |driver: &dyn GraphDriver, id: &LayerId| {
        see(f, driver, SnapshotRef::Layer(id), Access::ReadOnly, |p| {
            tree::read_without_directory_times(p)
        })
    };
    for n in 0..LAYERS.len() {
        tree::assert_same(&seen(&*driver, &layer(n)), &seen(&*driver, &layer(100 + n)));
    }
    refusals(&*driver);
    // The same from the disk.
    drop(driver);
    let driver = f.open();
    let top = LAYERS.len() - 1;
    tree::assert_same(&seen(&*driver, &layer(top)), &seen(&*driver, &layer(100 + top)));
    assert_eq!(
        kind(driver.remove(SnapshotRef::Layer(&layer(100)))),
        ErrorKind::InUse
    );
    root_metadata(f, &*driver);
    limit(&*driver);
}

fn refusals(driver: &dyn GraphDriver) {
    prepare(driver, "based", Some(&layer(0)));
    let on_top = driver.stack(&key("based"), &layer(1), true);
    assert_eq!(kind(on_top), ErrorKind::InvalidArgument);
    prepare(driver, "free", None);
    assert_eq!(
        kind(driver.stack(&key("free"), &layer(77), true)),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(driver.stack(&key("missing"), &layer(1), true)),
        ErrorKind::NotFound
    );
    // Nothing was counted for the refused: the top layers can go.
    for key in ["based", "free"] {
        driver.remove(SnapshotRef::Active(&super::key(key))).unwrap();
    }
    // A stacked snapshot holds its parent.
    let top = layer(LAYERS.len() - 1);
    prepare(driver, "holds", None);
    driver.stack(&key("holds"), &top, true).unwrap();
    let info = driver.stat(SnapshotRef::Active(&key("holds"))).unwrap();
    assert_eq!(info.parent.as_ref(), Some(&top));
    assert_eq!(kind(driver.remove(SnapshotRef::Layer(&top))), ErrorKind::InUse);
    driver.remove(SnapshotRef::Active(&key("holds"))).unwrap();
}

/// A layer that says nothing about its root directory shows its parent's.
fn root_metadata(f: &Fixture, driver: &dyn GraphDriver) {
    let change = |name: &str, mode, owner| {
        let directory = driver.apply_target(&key(name)).unwrap().directory;
        chown(&directory, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
        xattr::set(&directory, "user.whose", owner.to_string().as_bytes()).unwrap();
    };
    let shown = |p: &Path| {
        let meta = fs::metadata(p).unwrap();
        let whose = xattr::get(p, "user.whose")
            .unwrap()
            .map(|v| String::from_utf8(v).unwrap());
        (meta.mode() & 0o7777, meta.uid(), meta.gid(), whose)
    };
    prepare(driver, "base", None);
    change("base", 0o1751, 12);
    driver.commit(&key("base"), &layer(200)).unwrap();
    for (n, in_layer) in [(201, true), (202, false)] {
        let name = format!("root-{n}");
        prepare(driver, &name, None);
        change(&name, 0o700, 34);
        driver.stack(&key(&name), &layer(200), in_layer).unwrap();
        driver.commit(&key(&name), &layer(n)).unwrap();
        let expected = if in_layer {
            (0o700, 34, 34, Some("34".to_owned()))
        } else {
            (0o1751, 12, 12, Some("12".to_owned()))
        };
        // In the layer itself and in a container on it.
        let seen = see(f, driver, SnapshotRef::Layer(&layer(n)), Access::ReadOnly, shown);
        assert_eq!(seen, expected);
        let container = format!("rw-{n}");
        prepare(driver, &container, Some(&layer(n)));
        let active = key(&container);
        let seen = see(f, driver, SnapshotRef::Active(&active), Access::ReadWrite, shown);
        assert_eq!(seen, expected);
    }
}

fn limit(driver: &dyn GraphDriver) {
    let Some(max) = driver.capabilities().max_depth else {
        return;
    };
    let mut below = None;
    // One more can be made than can be mounted below a container.
    for n in 0..=max {
        prepare(driver, "deep", None);
        if let Some(below) = &below {
            driver.stack(&key("deep"), below, true).unwrap();
        }
        driver.commit(&key("deep"), &layer(1000 + n)).unwrap();
        below = Some(layer(1000 + n));
    }
    prepare(driver, "too-deep", None);
    let error = driver
        .stack(&key("too-deep"), &layer(1000 + max), true)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooDeep);
    assert!(error.to_string().contains(&max.to_string()), "{error}");
}
