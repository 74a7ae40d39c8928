//! What a container sees of its image: everything as it is, however the driver brings it there.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use skiff_graphdrivers::{Access, SnapshotRef};

use super::{Fixture, key, layer, prepare, see};

pub(crate) fn what_lies_below_is_seen_as_it_is(f: &Fixture) {
    let driver = f.open();
    prepare(&*driver, "image", None);
    let directory = driver.apply_target(&key("image")).unwrap().directory;
    // Two megabytes of hole around one block of data.
    let mut sparse = fs::File::create(directory.join("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(1 << 20)).unwrap();
    sparse.write_all(&[7; 4096]).unwrap();
    sparse.set_len(2 << 20).unwrap();
    drop(sparse);
    fs::write(directory.join("one"), "one").unwrap();
    fs::create_dir(directory.join("d")).unwrap();
    fs::hard_link(directory.join("one"), directory.join("d/two")).unwrap();
    xattr::set(directory.join("one"), "user.colour", b"blue\0\n").unwrap();
    symlink("../one", directory.join("d/link")).unwrap();
    mknodat(
        CWD,
        directory.join("fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    driver.commit(&key("image"), &layer(1)).unwrap();

    prepare(&*driver, "rw", Some(&layer(1)));
    let active = key("rw");
    see(
        f,
        &*driver,
        SnapshotRef::Active(&active),
        Access::ReadWrite,
        |p| {
            check(p);
            // A name of a file that has several: only what was written through changes, and the image does not.
            fs::write(p.join("d/new"), "new").unwrap();
            fs::OpenOptions::new()
                .append(true)
                .open(p.join("sparse"))
                .unwrap()
                .write_all(b"end")
                .unwrap();
            assert_eq!(fs::metadata(p.join("sparse")).unwrap().len(), (2 << 20) + 3);
        },
    );
    prepare(&*driver, "other", Some(&layer(1)));
    let other = key("other");
    see(f, &*driver, SnapshotRef::Active(&other), Access::ReadWrite, check);
}

fn check(p: &Path) {
    let meta = |name: &str| fs::symlink_metadata(p.join(name)).unwrap();
    let sparse = meta("sparse");
    assert_eq!(sparse.len(), 2 << 20);
    assert!(sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
    let bytes = fs::read(p.join("sparse")).unwrap();
    assert_eq!(
        bytes.iter().position(|b| *b != 0),
        Some(1 << 20),
        "the block is where it was"
    );
    assert_eq!(bytes.iter().filter(|b| **b == 7).count(), 4096);
    assert_eq!(meta("one").ino(), meta("d/two").ino());
    assert_eq!(meta("one").nlink(), 2);
    let colour = xattr::get(p.join("d/two"), "user.colour").unwrap();
    assert_eq!(colour.as_deref(), Some(&b"blue\0\n"[..]));
    assert_eq!(fs::read_link(p.join("d/link")).unwrap(), Path::new("../one"));
    assert!(meta("fifo").file_type().is_fifo() && meta("fifo").mode() & 0o7777 == 0o640);
}

/// Where the file system can: ten containers of a 16 MiB image take less than two would.
pub(crate) fn copies_share_blocks(f: &Fixture) {
    let driver = f.open();
    let row = |name: &str| driver.status().into_iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(
        (row("Backing Filesystem"), row("Reflinks")),
        ("btrfs".to_owned(), "true".to_owned())
    );
    prepare(&*driver, "image", None);
    let directory = driver.apply_target(&key("image")).unwrap().directory;
    // Bytes that do not compress, whatever the mount options are.
    let mut state = 1u64;
    let noise: Vec<u8> = (0..16 << 20)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect();
    fs::write(directory.join("big"), &noise).unwrap();
    driver.commit(&key("image"), &layer(1)).unwrap();
    let free = || {
        driver.sync().unwrap();
        rustix::fs::statvfs(f.scratch.path()).unwrap().f_bavail * 4096
    };
    let before = free();
    for n in 0..10 {
        prepare(&*driver, &format!("rw{n}"), Some(&layer(1)));
    }
    // Nothing else writes so much here: the runs have a disk of their own.
    let used = before.saturating_sub(free());
    assert!(used < 32 << 20, "{used} bytes for ten copies");
    let active = key("rw9");
    see(
        f,
        &*driver,
        SnapshotRef::Active(&active),
        Access::ReadWrite,
        |p| {
            assert!(fs::read(p.join("big")).unwrap() == noise);
        },
    );
}
