//! Reading directories.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

use skiff_fuse_overlay::overlay::ROOT;

use crate::fs::{Fs, fill, whiteout};

pub(crate) fn offsets_are_stable_and_complete() {
    let fs = Fs::new(3, |lower| {
        for i in 0..300 {
            let layer = &lower[i % 3];
            fill(layer, &[&format!("d/name{i}={i}")]);
            if i % 5 == 0 {
                fill(&lower[2], &[&format!("d/name{i}=again")]);
            }
            if i % 7 == 0 && i % 3 == 2 {
                whiteout(&lower[0], &format!("d/name{i}"));
            }
        }
    });
    let node = fs.find("d").unwrap();
    let handle = fs.overlay.opendir(node.node).unwrap();
    let mut all: Vec<(OsString, u64)> = Vec::new();
    fs.overlay
        .readdir(handle, 0, &mut |entry| {
            all.push((entry.name.to_owned(), entry.offset));
            true
        })
        .unwrap();
    let expected: BTreeSet<OsString> = (0..300)
        .filter(|i| !(i % 7 == 0 && i % 3 == 2))
        .map(|i| format!("name{i}").into())
        .chain([".".into(), "..".into()])
        .collect();
    assert_eq!(
        all.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>(),
        expected
    );
    assert_eq!(all.len(), expected.len());
    // In pieces of any size, from any offset, and although files go meanwhile.
    for size in [1, 3, 64] {
        let mut offset = 0;
        let mut pieces = Vec::new();
        loop {
            let mut taken = 0;
            fs.overlay
                .readdir(handle, offset, &mut |entry| {
                    if taken == size {
                        return false;
                    }
                    taken += 1;
                    pieces.push((entry.name.to_owned(), entry.offset));
                    true
                })
                .unwrap();
            match pieces.last() {
                Some((_, last)) if taken > 0 => offset = *last,
                _ => break,
            }
        }
        assert_eq!(pieces, all, "pieces of {size}");
    }
    let (_, middle) = all[150];
    fs.unlink("d/name0").unwrap();
    let mut rest = Vec::new();
    fs.overlay
        .readdir(handle, middle, &mut |entry| {
            rest.push((entry.name.to_owned(), entry.offset));
            true
        })
        .unwrap();
    let mut expected = all[151..].to_vec();
    expected.retain(|(name, _)| name != "name0");
    assert_eq!(rest, expected);
    fs.overlay.releasedir(handle);
}

pub(crate) fn readdirplus_owes_one_forget_an_entry() {
    let fs = Fs::new(2, |lower| {
        fill(&lower[0], &["d/a=1", "d/s/x=1"]);
        fill(&lower[1], &["d/b=1", "d/s/y=1"]);
    });
    let before = fs.overlay.inodes();
    let node = fs.find("d").unwrap();
    let handle = fs.overlay.opendir(node.node).unwrap();
    let mut given = Vec::new();
    let mut room = 4;
    fs.overlay
        .readdirplus(handle, 0, &mut |_, entry| {
            if room == 0 {
                return false;
            }
            room -= 1;
            given.extend(entry.map(|entry| entry.node));
            true
        })
        .unwrap();
    // The one that had no room is not known.
    assert_eq!(given.len(), 2);
    assert_eq!(fs.overlay.inodes(), before + 3);
    for node in given {
        fs.overlay.forget(node, 1);
    }
    fs.overlay.releasedir(handle);
    drop(node);
    assert_eq!(fs.overlay.inodes(), before);
}

pub(crate) fn a_listing_is_renewed_when_read_from_the_start() {
    let fs = Fs::new(1, |lower| fill(&lower[0], &["a=1", "b=1"]));
    let handle = fs.overlay.opendir(ROOT).unwrap();
    let read = || {
        let mut names = BTreeSet::new();
        fs.overlay
            .readdir(handle, 0, &mut |entry| names.insert(entry.name.to_owned()))
            .unwrap();
        names
    };
    assert!(read().contains(OsStr::new("b")));
    fs.unlink("b").unwrap();
    fs.write("c", "1").unwrap();
    let after = read();
    assert!(!after.contains(OsStr::new("b")) && after.contains(OsStr::new("c")));
    fs.rename("c", "d").unwrap();
    assert!(read().contains(OsStr::new("d")));
    // A name that was listed and copied up since leads to the copy.
    let listed = fs.find("a").unwrap();
    fs.overwrite("a", "2").unwrap();
    fs.overlay
        .readdirplus(handle, 2, &mut |name, entry| {
            if let Some(entry) = entry {
                if name.name == "a" {
                    assert_eq!(entry.node, listed.node);
                }
                fs.overlay.forget(entry.node, 1);
            }
            true
        })
        .unwrap();
    fs.overlay.releasedir(handle);
}

/// The kernel puts its own listing together from pieces that several readers asked for.
pub(crate) fn each_piece_of_a_listing_is_of_its_own_moment() {
    let fs = Fs::new(1, |lower| {
        for i in 0..200 {
            fill(&lower[0], &[&format!("f{i}=")]);
        }
    });
    let behind = |handle: u64, offset: u64, most: usize| {
        let mut names = Vec::new();
        fs.overlay
            .readdir(handle, offset, &mut |entry| {
                let room = names.len() < most;
                if room {
                    names.push((entry.offset, entry.name.to_owned()));
                }
                room
            })
            .unwrap();
        names
    };
    let early = fs.overlay.opendir(ROOT).unwrap();
    let (offset, _) = behind(early, 0, 100).pop().unwrap();
    for i in 0..100 {
        fs.write(&format!("new{i}"), "").unwrap();
        fs.unlink(&format!("f{i}")).unwrap();
    }
    for gone in 0..3 {
        let late = fs.overlay.opendir(ROOT).unwrap();
        let now = behind(late, offset, usize::MAX);
        assert!(now.len() > 50, "{}", now.len());
        assert_eq!(behind(early, offset, usize::MAX), now);
        fs.overlay.releasedir(late);
        // Nothing but removals from here on.
        let name = now[gone].1.to_str().unwrap();
        fs.unlink(name).unwrap();
    }
    fs.overlay.releasedir(early);
}

pub(crate) fn listed_numbers_are_those_of_stat() {
    let fs = Fs::new(2, |lower| {
        fill(&lower[0], &["d/a=1", "d/s/x=1", "e/x=1"]);
        fill(&lower[1], &["d/b=1", "d/s/y=1", "f=1"]);
    });
    fs.overwrite("d/a", "2").unwrap();
    fs.chmod("d/s", 0o700).unwrap();
    fs.chmod("e", 0o700).unwrap();
    fs.write("d/new", "1").unwrap();
    fs.mkdir("d/newdir").unwrap();
    for path in ["", "d", "d/s", "e"] {
        let node = fs.find(path).unwrap();
        let handle = fs.overlay.opendir(node.node).unwrap();
        let mut listed = BTreeMap::new();
        fs.overlay
            .readdir(handle, 0, &mut |entry| {
                listed.insert(entry.name.to_str().unwrap().to_owned(), entry.ino);
                true
            })
            .unwrap();
        fs.overlay.releasedir(handle);
        assert_eq!(listed.remove("."), Some(fs.stat(path).unwrap().ino));
        listed.remove("..");
        assert!(!listed.is_empty());
        for (name, ino) in listed {
            assert_eq!(
                fs.stat(&format!("{path}/{name}")).unwrap().ino,
                ino,
                "{path}/{name}"
            );
        }
    }
}
