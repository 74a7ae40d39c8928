//! What a container wrote is what its difference says: applied to a copy of the image, it gives the container's tree.

use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use skiff_archive::{ApplyOptions, ApplyTarget, WhiteoutFormat, apply, copy_tree, diff};
use skiff_graphdrivers::{Access, SnapshotRef};

use super::{Fixture, commit, key, layer, prepare, see};
use crate::support::tree;

pub(crate) fn bytes_written_through_a_mount_equal_the_difference(f: &Fixture) {
    let driver = f.open();
    let many: Vec<(String, String)> = (0..50).map(|n| (format!("many/f{n}"), "x".repeat(n))).collect();
    let mut files: Vec<(&str, &str)> = vec![
        ("etc/", ""),
        ("etc/passwd", "root"),
        ("etc/motd", "hello"),
        ("usr/", ""),
        ("usr/bin/", ""),
        ("usr/bin/tool", "tool"),
        ("usr/share/", ""),
        ("usr/share/doc", "doc"),
        ("var/", ""),
        ("var/log/", ""),
        ("var/log/old", "old"),
        ("tmp/", ""),
        ("many/", ""),
    ];
    files.extend(many.iter().map(|(path, text)| (&path[..], &text[..])));
    commit(&*driver, &layer(1), None, &files);
    commit(
        &*driver,
        &layer(2),
        Some(&layer(1)),
        &[("etc/motd", "second"), ("many/.wh.f7", "")],
    );
    prepare(&*driver, "rw", Some(&layer(2)));
    let rw = key("rw");
    let snapshot = SnapshotRef::Active(&rw);

    let image = f.target("image");
    see(
        f,
        &*driver,
        SnapshotRef::Layer(&layer(2)),
        Access::ReadOnly,
        |p| copy_tree(p, &image).map(drop),
    )
    .unwrap();
    let expected = see(f, &*driver, snapshot, Access::ReadWrite, |p| {
        change(p);
        tree::without_links(&tree::read_without_directory_times(p))
    });

    let mut packed = Vec::new();
    diff(&driver.diff_source(snapshot).unwrap().tree(), &mut packed).unwrap();
    let target = ApplyTarget {
        directory: image.clone(),
        whiteouts: WhiteoutFormat::Delete,
    };
    apply(&packed[..], &target, &ApplyOptions::default()).unwrap();
    let plain = |path: &Path| tree::without_links(&tree::read_without_directory_times(path));
    tree::assert_same(&expected, &plain(&image));
    // Links between files of one layer are kept.
    let linked = tree::read(&image);
    assert_eq!(
        linked[Path::new("var/hard")].what,
        tree::What::LinkTo("new".into())
    );

    // As a layer of the same driver it shows the same.
    prepare(&*driver, "again", Some(&layer(2)));
    let again = driver.apply_target(&key("again")).unwrap();
    apply(&packed[..], &again, &ApplyOptions::default()).unwrap();
    driver.commit(&key("again"), &layer(3)).unwrap();
    see(
        f,
        &*driver,
        SnapshotRef::Layer(&layer(3)),
        Access::ReadOnly,
        |p| tree::assert_same(&expected, &plain(p)),
    );
    // And so does the writable layer itself when it is committed.
    driver.commit(&rw, &layer(4)).unwrap();
    see(
        f,
        &*driver,
        SnapshotRef::Layer(&layer(4)),
        Access::ReadOnly,
        |p| tree::assert_same(&expected, &plain(p)),
    );
}

/// What programs in a container do to files.
fn change(p: &Path) {
    // New, appended, truncated, deleted.
    fs::write(p.join("new"), vec![7; 300_000]).unwrap();
    fs::write(p.join("etc/motd"), "third").unwrap();
    fs::remove_file(p.join("etc/passwd")).unwrap();
    fs::remove_file(p.join("many/f8")).unwrap();
    // A directory removed, one replaced by an empty one, one replaced by a file, a file by a directory.
    fs::remove_dir_all(p.join("usr/share")).unwrap();
    fs::remove_dir_all(p.join("var/log")).unwrap();
    fs::create_dir(p.join("var/log")).unwrap();
    fs::write(p.join("var/log/new"), "new").unwrap();
    fs::remove_dir(p.join("tmp")).unwrap();
    fs::write(p.join("tmp"), "file").unwrap();
    fs::remove_file(p.join("many/f9")).unwrap();
    fs::create_dir(p.join("many/f9")).unwrap();
    // Renames: a file of a lower layer, and a directory as mv(1) does it when rename(2) says EXDEV.
    fs::rename(p.join("many/f10"), p.join("many/renamed")).unwrap();
    if fs::rename(p.join("usr/bin"), p.join("usr/sbin")).is_err() {
        fs::create_dir(p.join("usr/sbin")).unwrap();
        fs::rename(p.join("usr/bin/tool"), p.join("usr/sbin/tool")).unwrap();
        fs::remove_dir(p.join("usr/bin")).unwrap();
    }
    // Metadata only.
    fs::set_permissions(p.join("many/f11"), fs::Permissions::from_mode(0o4711)).unwrap();
    lchown(p.join("many/f12"), Some(1000), Some(2000)).unwrap();
    fs::set_permissions(p.join("many"), fs::Permissions::from_mode(0o1777)).unwrap();
    xattr::set(p.join("many/f13"), "user.colour", b"blue\n\0").unwrap();
    // Everything that is not a plain file.
    symlink("../etc/motd", p.join("var/link")).unwrap();
    lchown(p.join("var/link"), Some(5), Some(6)).unwrap();
    fs::hard_link(p.join("new"), p.join("var/hard")).unwrap();
    fs::hard_link(p.join("many/f14"), p.join("many/f14-too")).unwrap();
    mknodat(
        CWD,
        p.join("var/fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    // Through a link, with a hole, unlinked while open.
    fs::write(p.join("var/link"), "through").unwrap();
    fs::File::create(p.join("var/sparse"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let open = fs::File::create(p.join("var/unlinked")).unwrap();
    fs::remove_file(p.join("var/unlinked")).unwrap();
    drop(open);
}
