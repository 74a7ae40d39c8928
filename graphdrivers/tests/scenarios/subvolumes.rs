//! What only `btrfs` has.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use skiff_graphdrivers::{Access, SnapshotRef, select};
use skiff_sys::btrfs as ioctl;

use super::{Fixture, commit, fill, key, layer, names, prepare, see};

fn directory(path: &Path) -> File {
    File::open(path).unwrap()
}

fn make_subvolume(path: &Path) {
    let parent = directory(path.parent().unwrap());
    ioctl::create_subvolume(parent.as_fd(), path.file_name().unwrap()).unwrap();
}

fn is_subvolume(path: &Path) -> bool {
    fs::metadata(path).unwrap().ino() == ioctl::ROOT_INODE
}

/// What systemd does in a container, and worse.
fn nest(p: &Path) {
    for name in ["var", "var/lib"] {
        fs::create_dir_all(p.join(name)).unwrap();
    }
    make_subvolume(&p.join("var/lib/machines"));
    fs::write(p.join("var/lib/machines/file"), "nested").unwrap();
    make_subvolume(&p.join("var/lib/machines/deeper"));
    fs::create_dir(p.join("var/lib/machines/deeper/dir")).unwrap();
    make_subvolume(&p.join("var/lib/machines/deeper/dir/deepest"));
    fs::write(p.join("var/lib/machines/deeper/dir/deepest/file"), "deepest").unwrap();
    // A read-only snapshot of a part of it.
    let (source, parent) = (directory(&p.join("var/lib/machines")), directory(p));
    ioctl::snapshot(source.as_fd(), parent.as_fd(), OsStr::new("backup"), true).unwrap();
    assert!(fs::write(p.join("backup/file"), "x").is_err());
    // More than one request tells.
    fs::create_dir(p.join("many")).unwrap();
    for n in 0..300 {
        make_subvolume(&p.join(format!("many/{n}")));
    }
}

/// Subvolumes left on the file system below a directory.
fn count(path: &Path) -> usize {
    let mut found = 0;
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found += usize::from(is_subvolume(&path)) + count(&path);
        }
    }
    found
}

pub(crate) fn nested_ones_go_with_their_snapshot(f: &Fixture) {
    let driver = f.open();
    commit(&*driver, &layer(1), None, &[("x", "1")]);
    prepare(&*driver, "rw", Some(&layer(1)));
    let active = key("rw");
    see(f, &*driver, SnapshotRef::Active(&active), Access::ReadWrite, nest);
    // They belong to the container's difference.
    assert_eq!(
        driver.usage(SnapshotRef::Active(&active)).unwrap().size,
        6 + 7 + 6
    );
    driver.remove(SnapshotRef::Active(&active)).unwrap();
    assert_eq!(count(&f.root()), 1 + 1 + 4 + 300, "removal is a rename");
    driver.purge().unwrap();
    assert_eq!(count(&f.root()), 1, "only the layer is left");
    assert!(names(&f.root().join("trash")).is_empty());
    // A nesting deeper than any path.
    prepare(&*driver, "deep", Some(&layer(1)));
    let mut below = directory(&driver.apply_target(&key("deep")).unwrap().directory);
    for _ in 0..40 {
        let name = OsStr::new("n");
        ioctl::create_subvolume(below.as_fd(), name).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        let next = rustix::fs::openat(&below, name, flags, rustix::fs::Mode::empty()).unwrap();
        let long = "d".repeat(250);
        rustix::fs::mkdirat(&next, long.as_str(), rustix::fs::Mode::RWXU).unwrap();
        below = rustix::fs::openat(&next, long.as_str(), flags, rustix::fs::Mode::empty())
            .unwrap()
            .into();
    }
    drop(below);
    driver.remove(SnapshotRef::Active(&key("deep"))).unwrap();
    driver.purge().unwrap();
    assert_eq!(count(&f.root()), 1);
}

pub(crate) fn a_layer_is_one_read_only_subvolume(f: &Fixture) {
    let driver = f.open();
    prepare(&*driver, "a", None);
    fill(&*driver, "a", &[("x", "1")]);
    let place = driver.apply_target(&key("a")).unwrap().directory;
    nest(&place);
    driver.commit(&key("a"), &layer(1)).unwrap();
    let place = f.root().join(layer(1).hex()).join("subvolume");
    assert!(ioctl::is_read_only(directory(&place).as_fd()).unwrap());
    assert_eq!(
        fs::write(place.join("x"), "2").unwrap_err().kind(),
        std::io::ErrorKind::ReadOnlyFilesystem
    );
    assert_eq!(count(&f.root()), 1);
    assert_eq!(
        names(&f.root().join(layer(1).hex())),
        ["subvolume"],
        "nothing is left beside it"
    );
    // A container on it finds what was in the nested ones, and can change it.
    prepare(&*driver, "rw", Some(&layer(1)));
    let active = key("rw");
    see(
        f,
        &*driver,
        SnapshotRef::Active(&active),
        Access::ReadWrite,
        |p| {
            let deepest = p.join("var/lib/machines/deeper/dir/deepest/file");
            assert_eq!(fs::read_to_string(&deepest).unwrap(), "deepest");
            assert_eq!(fs::read_to_string(p.join("backup/file")).unwrap(), "nested");
            fs::write(p.join("backup/file"), "changed").unwrap();
            assert_eq!(names(&p.join("many")).len(), 300);
        },
    );
    // A commit that cannot be leaves a writable snapshot.
    assert!(driver.commit(&active, &layer(1)).is_err());
    let place = driver.apply_target(&active).unwrap().directory;
    fs::write(place.join("still"), "writable").unwrap();
    // So does one that was killed right before its last step.
    ioctl::set_read_only(directory(&place).as_fd(), true).unwrap();
    drop(driver);
    let driver = f.open();
    fs::write(place.join("again"), "writable").unwrap();
    driver.commit(&active, &layer(2)).unwrap();
}

/// A package manager writes a file anew and gives it the time that the package says.
pub(crate) fn changes_that_keep_size_and_time_are_found(f: &Fixture) {
    let driver = f.open();
    commit(
        &*driver,
        &layer(1),
        None,
        &[
            ("rewritten", "old"),
            ("replaced", "old"),
            ("touched", "old"),
            ("left", "old"),
        ],
    );
    prepare(&*driver, "rw", Some(&layer(1)));
    let place = driver.apply_target(&key("rw")).unwrap().directory;
    let time = fs::metadata(place.join("left")).unwrap().modified().unwrap();
    let dated = |path: &Path| {
        File::options()
            .append(true)
            .open(path)
            .unwrap()
            .set_modified(time)
            .unwrap();
    };
    fs::write(place.join("rewritten"), "new").unwrap();
    fs::write(place.join("temporary"), "new").unwrap();
    fs::rename(place.join("temporary"), place.join("replaced")).unwrap();
    for name in ["rewritten", "replaced", "touched"] {
        dated(&place.join(name));
    }
    let mut out = Vec::new();
    let active = key("rw");
    let source = driver.diff_source(SnapshotRef::Active(&active)).unwrap();
    skiff_archive::diff(&source.tree(), &mut out).unwrap();
    let mut found: Vec<String> = tar::Archive::new(&out[..])
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    found.sort();
    found.retain(|name| name != "./");
    // The mode of a replaced file is another, so it would be found anyway; a touched one is as it was.
    assert_eq!(found, ["replaced", "rewritten"]);
}

/// An unprivileged user on a file system that somebody else mounted in the ordinary way.
pub(crate) fn removal_without_the_mount_option(f: &Fixture) {
    let driver = f.open();
    let row = driver
        .status()
        .into_iter()
        .find(|(name, _)| name == "Subvolume Removal")
        .unwrap()
        .1;
    if crate::support::userns::inside() {
        assert!(row.contains("user_subvol_rm_allowed"), "{row}");
        let evidence = skiff_graphdrivers::probe(&f.data_root(), "btrfs").unwrap();
        assert!(
            evidence.notes[0].contains("mount -o remount,user_subvol_rm_allowed /"),
            "{evidence:?}"
        );
    } else {
        assert_eq!(row, "at once", "root always may");
    }
    commit(&*driver, &layer(1), None, &[("x", "12345")]);
    commit(&*driver, &layer(2), Some(&layer(1)), &[("d/y", "1")]);
    prepare(&*driver, "rw", Some(&layer(2)));
    nest(&driver.apply_target(&key("rw")).unwrap().directory);
    driver.remove(SnapshotRef::Active(&key("rw"))).unwrap();
    driver.remove(SnapshotRef::Layer(&layer(2))).unwrap();
    driver.purge().unwrap();
    assert_eq!(count(&f.root()), 1);
    assert!(names(&f.root().join("trash")).is_empty());
}

/// btrfs is only tried where the data root is on it, and only when overlay2 refuses.
pub(crate) fn chosen_where_overlay2_is_not(f: &Fixture) {
    let root = f.scratch.path().join("first");
    assert_eq!(select(&root, None, &[]).unwrap().driver.name(), "overlay2");
    // What was used before is used again, also where a better one works.
    let root = f.scratch.path().join("prior");
    drop(select(&root, Some("btrfs"), &[]).unwrap());
    let again = select(&root, None, &[]).unwrap();
    assert_eq!(again.driver.name(), "btrfs");
    assert_eq!(again.reason, "[graphdriver] using prior storage driver: btrfs");
    assert_eq!(again.driver.status()[0], ("Btrfs".to_owned(), String::new()));
    // An option of a driver that is not used is no reason to fail, unless the driver was asked for.
    let option = [("overlay2.mountopt", "volatile")];
    assert!(select(&root, None, &option).is_ok());
    assert!(select(&root, Some("btrfs"), &option).is_err());
    let error = select(&root, Some("btrfs"), &[("btrfs.min_space", "1G")]).unwrap_err();
    assert!(error.to_string().contains("quotas"), "{error}");
    assert_eq!(names(&root), ["btrfs"]);
    // Elsewhere the refusal says where the data root is.
    let error = select(Path::new("/proc/nowhere"), Some("btrfs"), &[]).unwrap_err();
    assert!(
        error.to_string().contains("/proc/nowhere/btrfs") || error.to_string().contains("is on"),
        "{error}"
    );
}
