//! Names and inode numbers.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirEntryExt, MetadataExt};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Fixture;
use crate::mounts::Scratch;

/// Names may be as long as on the file system below, also when they are removed and leave a whiteout.
pub(crate) fn names_may_have_255_bytes() {
    let long = "n".repeat(255);
    let f = Fixture::new(|layers| fs::write(layers.bottom.join(&long), "lower").unwrap());
    let statistics = rustix::fs::statvfs(f.mount().path()).unwrap();
    assert_eq!(statistics.f_namemax, 255);
    assert_eq!(fs::read_to_string(f.at(&long)).unwrap(), "lower");
    fs::write(f.at(&long), "copied up").unwrap();
    fs::remove_file(f.at(&long)).unwrap();
    assert!(!f.at(&long).exists());
    fs::create_dir(f.at(&long)).unwrap();
    fs::rename(f.at(&long), f.at("m".repeat(255))).unwrap();
    let longer = fs::write(f.at("n".repeat(256)), "");
    assert_eq!(
        longer.unwrap_err().raw_os_error(),
        Some(Errno::NAMETOOLONG.raw_os_error())
    );
    let found = fs::metadata(f.at("n".repeat(256)));
    assert_eq!(
        found.unwrap_err().raw_os_error(),
        Some(Errno::NAMETOOLONG.raw_os_error())
    );
}

/// Any bytes but a slash and a zero make a name, and none of an overlay's own file names is reserved.
pub(crate) fn odd_names_are_names() {
    let odd: Vec<OsString> = [
        &b"\xff\xfe\x80"[..],
        b"new\nline",
        b"back\\slash",
        b"com,ma",
        b"co:lon",
        b" ",
        b"...",
        b".wh.visible",
        b"#1",
        "\u{1F980}".as_bytes(),
    ]
    .iter()
    .map(|bytes| OsString::from_vec(bytes.to_vec()))
    .collect();
    let f = Fixture::new(|layers| {
        for name in &odd {
            fs::write(layers.bottom.join(name), name.as_bytes()).unwrap();
        }
    });
    let listed: BTreeSet<_> = fs::read_dir(f.mount().path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(listed, odd.iter().cloned().collect());
    for name in &odd {
        assert_eq!(fs::read(f.at(name)).unwrap(), name.as_bytes());
        fs::write(f.at(name), "new").unwrap();
        assert_eq!(fs::read(f.at(name)).unwrap(), b"new");
        fs::remove_file(f.at(name)).unwrap();
    }
    assert_eq!(fs::read_dir(f.mount().path()).unwrap().count(), 0);
}

/// A directory of fifty thousand entries in two layers is listed whole, each name once, with types and inode numbers
/// that lookups confirm.
pub(crate) fn a_big_directory_is_listed_whole() {
    const ENTRIES: usize = 50_000;
    if !crate::userns::inside() {
        return;
    }
    let name = |n: usize| format!("entry-with-a-name-of-some-length-{n:06}");
    let f = Fixture::new(|layers| {
        for layer in [&layers.bottom, &layers.upper] {
            fs::create_dir(layer.join("big")).unwrap();
        }
        for n in 0..ENTRIES {
            // A tenth is in the upper layer, a hundredth in both.
            if n % 10 != 0 || n % 100 == 0 {
                fs::write(layers.bottom.join("big").join(name(n)), "").unwrap();
            }
            if n % 10 == 0 {
                fs::write(layers.upper.join("big").join(name(n)), "").unwrap();
            }
        }
    });
    let mut removed = 0;
    for n in (0..ENTRIES).step_by(1000) {
        fs::remove_file(f.at("big").join(name(n))).unwrap();
        removed += 1;
    }
    for round in 0..2 {
        let mut seen: HashMap<OsString, u64> = HashMap::new();
        for entry in fs::read_dir(f.at("big")).unwrap() {
            let entry = entry.unwrap();
            assert!(entry.file_type().unwrap().is_file());
            let twice = seen.insert(entry.file_name(), entry.ino());
            assert!(twice.is_none(), "{:?} is listed twice", entry.file_name());
        }
        assert_eq!(seen.len(), ENTRIES - removed, "round {round}");
        for (name, ino) in seen.iter().take(500) {
            assert_eq!(
                fs::symlink_metadata(f.at("big").join(name)).unwrap().ino(),
                *ino,
                "{name:?}"
            );
        }
        f.mount().forget();
    }
}

/// `telldir`, `seekdir` and a listing that goes on while its files are removed.
pub(crate) fn a_listing_survives_removals() {
    let f = Fixture::new(|layers| {
        fs::create_dir(layers.bottom.join("d")).unwrap();
        fs::create_dir(layers.upper.join("d")).unwrap();
        for n in 0..600 {
            let layer = if n % 2 == 0 { &layers.bottom } else { &layers.upper };
            fs::write(layer.join(format!("d/{n}")), "").unwrap();
        }
    });
    // `rm -r`: every listed entry is removed while the listing is open, and one listing finds them all.
    let open = || {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        Dir::new(rustix::fs::open(f.at("d"), flags, Mode::empty()).unwrap()).unwrap()
    };
    let mut listing = open();
    let mut positions = Vec::new();
    let mut names = Vec::new();
    for entry in listing.by_ref() {
        let entry = entry.unwrap();
        positions.push(entry.offset());
        names.push(entry.file_name().to_owned());
    }
    assert_eq!(names.len(), 602);
    // From any remembered position the rest follows.
    for from in [0, 5, 299, 600] {
        listing.seek(positions[from]).unwrap();
        let rest: Vec<_> = listing
            .by_ref()
            .map(|entry| entry.unwrap().file_name().to_owned())
            .collect();
        assert_eq!(rest, names[from + 1..], "from entry {from}");
    }
    let middle = positions[299];
    for name in names[..300]
        .iter()
        .filter(|name| !name.as_bytes().starts_with(b"."))
    {
        fs::remove_file(f.at("d").join(std::ffi::OsStr::from_bytes(name.as_bytes()))).unwrap();
    }
    listing.seek(middle).unwrap();
    let rest: Vec<_> = listing
        .by_ref()
        .map(|entry| entry.unwrap().file_name().to_owned())
        .collect();
    assert_eq!(rest, names[300..], "after half of them is gone");
    drop(listing);

    let mut listing = open();
    let mut removed = 0;
    for entry in listing.by_ref() {
        let entry = entry.unwrap();
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            fs::remove_file(
                f.at("d")
                    .join(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes())),
            )
            .unwrap();
            removed += 1;
        }
    }
    assert!(
        removed >= 302 - 2,
        "a listing that removes what it sees left entries: {removed}"
    );
    fs::remove_dir(f.at("d")).unwrap();
}

/// A listing opened before a file is made shows it after `rewinddir`.
pub(crate) fn rewinding_a_listing_shows_new_names() {
    let f = Fixture::with_file("");
    let mut listing = Dir::new(
        rustix::fs::open(
            f.mount().path(),
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        )
        .unwrap(),
    )
    .unwrap();
    let count = |listing: &mut Dir| {
        listing.rewind();
        listing
            .by_ref()
            .map(|entry| entry.unwrap().file_name().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(count(&mut listing).len(), 3);
    fs::write(f.at("g"), "").unwrap();
    assert!(count(&mut listing).iter().any(|name| name.as_bytes() == b"g"));
    fs::remove_file(f.at("f")).unwrap();
    assert!(!count(&mut listing).iter().any(|name| name.as_bytes() == b"f"));
}

/// A file has one inode number as long as the mount lives: over lookups, copy-up, renames, links and when the kernel
/// has forgotten it in between. Directories list the same number.
pub(crate) fn inode_numbers_are_stable() {
    let f = Fixture::new(|layers| {
        fs::create_dir_all(layers.bottom.join("d/e")).unwrap();
        fs::create_dir(layers.upper.join("u")).unwrap();
        for name in ["f", "g", "h", "d/f", "d/e/f"] {
            fs::write(layers.bottom.join(name), "lower").unwrap();
        }
        fs::hard_link(layers.bottom.join("f"), layers.bottom.join("linked")).unwrap();
        std::os::unix::fs::symlink("f", layers.bottom.join("l")).unwrap();
        fs::write(layers.upper.join("u/f"), "upper").unwrap();
    });
    fs::write(f.at("new"), "new").unwrap();
    let names = ["h", "g", "l", "d", "d/f", "d/e", "d/e/f", "u", "u/f", "new"];
    let number = |name: &str| fs::symlink_metadata(f.at(name)).unwrap().ino();
    let numbers = || names.map(number);
    let first = numbers();
    let distinct: BTreeSet<_> = first.iter().collect();
    assert_eq!(
        distinct.len(),
        names.len(),
        "different files have different numbers"
    );
    assert_eq!(
        number("f"),
        number("linked"),
        "hard links of a lower layer are one file"
    );
    assert_eq!(numbers(), first);
    f.mount().forget();
    assert_eq!(numbers(), first, "after the kernel forgot them");
    for name in names.iter().filter(|name| **name != "l") {
        let mode = fs::metadata(f.at(name)).unwrap().permissions();
        fs::set_permissions(f.at(name), mode).unwrap();
    }
    assert_eq!(numbers(), first, "after copy-up");
    f.mount().forget();
    assert_eq!(numbers(), first, "after copy-up, when the kernel forgot them");
    fs::rename(f.at("g"), f.at("d/e/g")).unwrap();
    f.mount().forget();
    assert_eq!(
        fs::metadata(f.at("d/e/g")).unwrap().ino(),
        first[1],
        "after rename"
    );
    for directory in ["", "d", "d/e", "u"] {
        for entry in fs::read_dir(f.at(directory)).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(
                entry.ino(),
                entry.path().symlink_metadata().unwrap().ino(),
                "{:?}",
                entry.path()
            );
        }
    }
}

/// The overlay's own attributes can neither be seen nor forged through the mount.
pub(crate) fn the_overlay_s_attributes_are_hidden() {
    let f = Fixture::new(|layers| {
        fs::create_dir(layers.bottom.join("d")).unwrap();
        fs::write(layers.bottom.join("d/hidden"), "").unwrap();
        fs::create_dir(layers.upper.join("d")).unwrap();
        for (name, value) in [("user.overlay.opaque", "y"), ("user.visible", "1")] {
            xattr::set(layers.upper.join("d"), name, value.as_bytes()).unwrap();
        }
        fs::create_dir(layers.bottom.join("e")).unwrap();
        fs::write(layers.bottom.join("e/f"), "").unwrap();
    });
    let names: Vec<_> = xattr::list(f.at("d")).unwrap().collect();
    assert!(names.iter().any(|name| name == "user.visible"), "{names:?}");
    assert!(
        !names
            .iter()
            .any(|name| name.as_bytes().starts_with(b"user.overlay.")),
        "{names:?}"
    );
    assert_eq!(xattr::get(f.at("d"), "user.overlay.opaque").unwrap(), None);
    assert_eq!(
        fs::read_dir(f.at("d")).unwrap().count(),
        0,
        "the directory is opaque"
    );
    let removed = xattr::remove(f.at("d"), "user.overlay.opaque");
    assert!(removed.is_err(), "an opaque directory cannot be opened up");

    // Forging one may fail or keep it under another name; it never becomes the overlay's own.
    for name in [
        "user.overlay.opaque",
        "user.overlay.redirect",
        "user.overlay.metacopy",
        "user.overlay.whiteout",
    ] {
        let _ = xattr::set(f.at("e"), name, b"y");
        let _ = xattr::set(f.at("e/f"), name, b"y");
        for path in ["e", "e/f"] {
            let below = f.layers.upper.join(path);
            let raw = below
                .exists()
                .then(|| xattr::get(&below, name).unwrap())
                .flatten();
            assert_eq!(raw, None, "{name} on {path} reached the disk");
        }
    }
    let mut f = f;
    f.remount();
    assert_eq!(fs::read_dir(f.at("d")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(f.at("e")).unwrap().count(), 1);
}

/// What says that it is another file's contents or another directory's upper part would lead anywhere: the kernel's
/// overlay refuses it in this format, and so do we. What surrounds it can be used.
pub(crate) fn redirections_are_refused_as_by_the_kernel() {
    let scratch = Scratch::new();
    let ours = scratch.layers("ours");
    let kernel = ours.with_upper(&scratch.path().join("kernel"));
    for name in ["d", "secret"] {
        fs::create_dir(ours.bottom.join(name)).unwrap();
        fs::write(ours.bottom.join(name).join("below"), "below").unwrap();
    }
    fs::write(ours.bottom.join("f"), "bottom").unwrap();
    fs::write(ours.top.join("plain"), "top").unwrap();
    fs::create_dir(ours.top.join("d")).unwrap();
    xattr::set(ours.top.join("d"), "user.overlay.redirect", b"/secret").unwrap();
    fs::File::create(ours.top.join("f")).unwrap().set_len(6).unwrap();
    xattr::set(ours.top.join("f"), "user.overlay.metacopy", b"").unwrap();
    for (who, mount) in [("kernel", kernel.kernel()), ("ours", ours.ours())] {
        for name in ["d", "d/below", "f"] {
            let error = fs::metadata(mount.join(name)).unwrap_err();
            assert_eq!(
                error.raw_os_error(),
                Some(Errno::PERM.raw_os_error()),
                "{who}: {name}"
            );
        }
        assert_eq!(fs::read_to_string(mount.join("plain")).unwrap(), "top", "{who}");
        let listed = fs::read_dir(mount.path()).unwrap();
        let names: BTreeSet<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
        let expected = ["d", "f", "plain", "secret"].map(OsString::from);
        assert_eq!(names, expected.into(), "{who}");
        mount.unmount();
    }
}

/// A device node 0:0 is how layers say "removed"; a container must not make one, and other special files work.
pub(crate) fn whiteouts_cannot_be_forged() {
    let f = Fixture::with_file("");
    let mode = Mode::from_raw_mode(0o600);
    let made = rustix::fs::mknodat(CWD, f.at("forged"), FileType::CharacterDevice, mode, 0);
    assert_eq!(made, Err(Errno::PERM));
    assert!(!f.layers.upper.join("forged").exists());
    rustix::fs::mknodat(CWD, f.at("fifo"), FileType::Fifo, mode, 0).unwrap();
    rustix::fs::mknodat(CWD, f.at("socket"), FileType::Socket, mode, 0).unwrap();
    rustix::fs::mknodat(CWD, f.at("file"), FileType::RegularFile, mode, 0).unwrap();
    let kinds: BTreeSet<_> = ["fifo", "socket", "file"]
        .map(|name| fs::symlink_metadata(f.at(name)).unwrap().mode() & 0o170_000)
        .into();
    assert_eq!(kinds.len(), 3);
    let served = std::os::unix::net::UnixListener::bind(f.at("bound")).unwrap();
    std::os::unix::net::UnixStream::connect(f.at("bound")).unwrap();
    drop(served);
}
