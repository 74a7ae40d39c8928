//! Trees that change while they are packed: a container that runs goes on.

use std::collections::BTreeMap;
use std::fs as disk;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::*;
use crate::reader::Reader;

/// Does something when the first bytes come: the header of the first member, by when the names beside it are known.
struct Meanwhile<F> {
    out: Vec<u8>,
    event: Option<F>,
}

impl<F: FnOnce()> Write for Meanwhile<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(event) = self.event.take() {
            event();
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Trees {
    scratch: tempfile::TempDir,
}

impl Trees {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        for name in ["new", "old", "aside"] {
            disk::create_dir(scratch.path().join(name)).unwrap();
        }
        Self { scratch }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.scratch.path().join(path)
    }

    fn put(&self, path: &str, content: &str) {
        disk::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        disk::write(self.path(path), content).unwrap();
    }

    /// Packs `new` in both ways while `event` happens, and gives the members: `name`, `name = contents`, `name -> link`.
    fn during(&self, native: bool, event: impl FnOnce()) -> Vec<String> {
        let (directory, parent) = (self.path("new"), self.path("old"));
        let tree = if native {
            DiffTree::Native {
                directory: &directory,
                whiteouts: WhiteoutFormat::OverlayUser,
            }
        } else {
            DiffTree::Compare {
                directory: &directory,
                parent: Some(&parent),
            }
        };
        let mut out = Meanwhile {
            out: Vec::new(),
            event: Some(event),
        };
        let diffed = diff(&tree, &mut out).unwrap();
        assert!(out.event.is_none(), "nothing happened");
        let found = members(&out.out);
        assert_eq!(diffed.entries, found.len() as u64);
        assert_eq!(diffed.stream_size, out.out.len() as u64);
        let shown = |(path, (kind, link, data)): (&String, &(Kind, String, Vec<u8>))| match kind {
            Kind::Regular => format!("{path} = {}", String::from_utf8_lossy(data)),
            Kind::HardLink | Kind::Symlink => format!("{path} -> {link}"),
            _ => path.clone(),
        };
        found.iter().map(shown).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A well-formed archive's members.
fn members(mut bytes: &[u8]) -> BTreeMap<String, (Kind, String, Vec<u8>)> {
    let mut reader = Reader::new(&mut bytes);
    let mut found = BTreeMap::new();
    while let Some(entry) = reader.next().unwrap() {
        let mut data = Vec::new();
        loop {
            let piece = reader.data().unwrap().to_vec();
            if piece.is_empty() {
                break;
            }
            reader.consume(piece.len());
            data.extend_from_slice(&piece);
        }
        let known = found.insert(text(&entry.path), (entry.kind, text(&entry.link), data));
        assert!(known.is_none(), "{} stands there twice", text(&entry.path));
    }
    found
}

#[test]
fn what_goes_before_it_is_reached_is_left_out() {
    for native in [true, false] {
        let trees = Trees::new();
        trees.put("new/0", "first");
        trees.put("new/file", "x");
        trees.put("new/directory/in it", "x");
        trees.put("new/z", "last");
        symlink("x", trees.path("new/link")).unwrap();
        let shown = trees.during(native, || {
            disk::remove_file(trees.path("new/file")).unwrap();
            disk::remove_dir_all(trees.path("new/directory")).unwrap();
            disk::remove_file(trees.path("new/link")).unwrap();
        });
        assert_eq!(shown, ["0 = first", "z = last"], "native: {native}");
    }
}

#[test]
fn a_directory_that_goes_while_it_is_told_is_empty() {
    for native in [true, false] {
        let trees = Trees::new();
        trees.put("new/d/deep/in it", "x");
        // Its own header is the first.
        let shown = trees.during(native, || disk::remove_dir_all(trees.path("new/d")).unwrap());
        assert_eq!(shown, ["d/"], "native: {native}");
    }
}

#[test]
fn what_is_gone_and_was_there_before_is_deleted() {
    let trees = Trees::new();
    trees.put("new/0", "first");
    trees.put("old/file", "old");
    trees.put("new/file", "changed");
    trees.put("old/same/inside", "old");
    trees.put("new/same/inside", "changed");
    let shown = trees.during(false, || {
        disk::remove_file(trees.path("new/file")).unwrap();
        disk::remove_dir_all(trees.path("new/same")).unwrap();
    });
    assert_eq!(shown, [".wh.file = ", ".wh.same = ", "0 = first"]);
}

#[test]
fn what_another_file_takes_the_place_of_is_the_other() {
    for native in [true, false] {
        let trees = Trees::new();
        trees.put("new/0", "first");
        trees.put("new/longer", "1");
        trees.put("new/shorter", "12345");
        trees.put("new/to directory", "x");
        trees.put("new/to link", "x");
        trees.put("new/from directory/in it", "x");
        trees.put("aside/longer", "now longer");
        trees.put("aside/shorter", "s");
        let shown = trees.during(native, || {
            for name in ["longer", "shorter"] {
                disk::rename(
                    trees.path(&format!("aside/{name}")),
                    trees.path(&format!("new/{name}")),
                )
                .unwrap();
            }
            disk::remove_file(trees.path("new/to directory")).unwrap();
            trees.put("new/to directory/in it", "y");
            disk::remove_file(trees.path("new/to link")).unwrap();
            symlink("target", trees.path("new/to link")).unwrap();
            disk::remove_dir_all(trees.path("new/from directory")).unwrap();
            trees.put("new/from directory", "file");
        });
        assert_eq!(
            shown,
            [
                "0 = first",
                "from directory = file",
                "longer = now longer",
                "shorter = s",
                "to directory/",
                "to directory/in it = y",
                "to link -> target",
            ],
            "native: {native}"
        );
    }
}

#[test]
fn a_link_whose_first_name_goes_is_the_file() {
    for native in [true, false] {
        let trees = Trees::new();
        trees.put("new/0", "first");
        trees.put("new/a", "shared");
        for name in ["b", "c"] {
            disk::hard_link(trees.path("new/a"), trees.path(&format!("new/{name}"))).unwrap();
        }
        let shown = trees.during(native, || disk::remove_file(trees.path("new/a")).unwrap());
        assert_eq!(shown, ["0 = first", "b = shared", "c -> b"], "native: {native}");
    }
}

#[test]
fn a_file_that_becomes_shorter_is_filled_with_zeros() {
    for (native, sparse) in [(true, false), (false, false), (true, true)] {
        let trees = Trees::new();
        let size = 3 * BUFFER_SIZE + 100;
        let path = trees.path("new/file");
        let file = disk::File::create(&path).unwrap();
        if sparse {
            file.set_len(size as u64).unwrap();
            file.write_all_at(b"0123456789abcdef", 0).unwrap();
            file.write_all_at(b"end", size as u64 - 3).unwrap();
        } else {
            file.write_all_at(&[b'x'; 3 * BUFFER_SIZE + 100], 0).unwrap();
            file.write_all_at(b"0123456789abcdef", 0).unwrap();
        }
        trees.put("new/next", "whole");
        // The first bytes are its header.
        let shown = trees.during(native, || file.set_len(10).unwrap());
        let expected = format!("file = 0123456789{}", "\0".repeat(size - 10));
        assert!(shown[0] == expected, "native: {native}, sparse: {sparse}");
        assert_eq!(shown[1], "next = whole");
    }
}

/// Nothing is arranged here: files, directories and links come and go as fast as they can.
#[test]
fn trees_are_packed_while_everything_in_them_comes_and_goes() {
    const ROUNDS: u64 = 60;
    let trees = Trees::new();
    trees.put("new/stays", "whole");
    trees.put("new/many/stays", "whole");
    trees.put("old/many/stays", "old");
    let (done, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    let change = |n: u64| {
        let place = trees.path("new/many").join((n % 40).to_string());
        let other = trees.path("aside/other");
        // Each takes the place of what another one made; what does not fit fails.
        match n % 7 {
            0 | 1 => drop(disk::write(
                &place,
                "x".repeat(usize::try_from(n % 5000).unwrap()),
            )),
            2 => drop(disk::remove_file(&place)),
            3 => drop(disk::create_dir_all(place.join("a/b"))),
            4 => drop(disk::remove_dir_all(&place)),
            5 => drop(symlink("nowhere", &place)),
            _ => {
                drop(disk::write(&other, "other"));
                drop(disk::hard_link(&other, &place));
                drop(disk::rename(
                    &other,
                    trees.path("new/many").join((n % 13).to_string()),
                ));
            }
        }
        changes.fetch_add(1, Ordering::Relaxed);
    };
    thread::scope(|scope| {
        let workers = [0, 1].map(|worker| {
            let (done, change) = (&done, &change);
            scope.spawn(move || {
                let mut n = worker;
                // In odd steps, so that the two meet everywhere.
                while !done.load(Ordering::Relaxed) {
                    change(n);
                    n += 3;
                }
            })
        });
        let (directory, parent) = (trees.path("new"), trees.path("old"));
        let native = DiffTree::Native {
            directory: &directory,
            whiteouts: WhiteoutFormat::OverlayUser,
        };
        let compare = DiffTree::Compare {
            directory: &directory,
            parent: Some(&parent),
        };
        let whole = DiffTree::Compare {
            directory: &directory,
            parent: None,
        };
        // However it ends, the others end.
        let outcome = std::panic::catch_unwind(|| {
            for round in 0..ROUNDS {
                let before = changes.load(Ordering::Relaxed);
                for tree in [&native, &compare, &whole] {
                    let mut out = Vec::new();
                    diff(tree, &mut out).unwrap_or_else(|e| panic!("round {round}, {tree:?}: {e}"));
                    let found = members(&out);
                    assert_eq!(found["many/stays"].2, b"whole");
                    assert_eq!(found["stays"].2, b"whole");
                    crate::diff_usage(tree).unwrap();
                }
                crate::usage(&directory).unwrap();
                let lower = crate::LowerLayers {
                    directories: vec![parent.clone()],
                    whiteouts: WhiteoutFormat::OverlayUser,
                };
                crate::changed_paths(&native, &lower, &BTreeSet::new()).unwrap();
                let candidates = ["many/0", "many/1", "many/2", "many/3", "many"];
                crate::placeholders(&native, &lower, &candidates).unwrap();
                // Something was changed in each round, also where threads wait for each other.
                while changes.load(Ordering::Relaxed) == before {
                    thread::yield_now();
                }
            }
        });
        done.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().unwrap();
        }
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(disk::metadata(trees.path("new/stays")).unwrap().ino() > 0);
}
