//! Random operations on the overlay and on a plain directory that begins with the same contents: the same outcomes,
//! and the same tree in the end, also seen by a new mount.
//!
//! Known differences are left out by construction: directories of lower layers are not renamed (`EXDEV`), and no lower
//! file has several names.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::io::Errno;
use skiff_fuse_overlay::overlay::SetAttr;

use crate::fs::{Fs, fill};

#[derive(Debug, Clone)]
enum Op {
    Write(String, u8),
    Overwrite(String, u8),
    Mkdir(String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String),
    Link(String, String),
    Symlink(String),
    Chmod(String, u32),
    Truncate(String, u64),
    SetXattr(String, u8),
}

/// Few names, so that operations meet.
fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d"]), 1..4)
        .prop_map(|names| names.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (path(), any::<u8>()).prop_map(|(p, n)| Op::Write(p, n)),
        2 => (path(), any::<u8>()).prop_map(|(p, n)| Op::Overwrite(p, n)),
        3 => path().prop_map(Op::Mkdir),
        3 => path().prop_map(Op::Unlink),
        3 => path().prop_map(Op::Rmdir),
        5 => (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => path().prop_map(Op::Symlink),
        2 => (path(), 0u32..0o1000).prop_map(|(p, mode)| Op::Chmod(p, mode)),
        1 => (path(), 0u64..20).prop_map(|(p, size)| Op::Truncate(p, size)),
        1 => (path(), any::<u8>()).prop_map(|(p, n)| Op::SetXattr(p, n)),
    ]
}

/// What lies where in the beginning: (layer, entry).
fn seed() -> impl Strategy<Value = Vec<(usize, String)>> {
    let entry = (0..2usize, path(), prop::bool::ANY, any::<u8>());
    prop::collection::vec(entry, 0..12).prop_map(|entries| {
        entries
            .into_iter()
            .map(|(layer, path, directory, n)| {
                let entry = if directory { path } else { format!("{path}={n}") };
                (layer, entry)
            })
            .collect()
    })
}

/// Fills a layer as far as entries do not contradict those that are there.
fn sow(layer: &Path, entry: &str) -> bool {
    let path = entry.split('=').next().unwrap();
    let mut here = layer.to_owned();
    let mut names = path.split('/').peekable();
    while let Some(name) = names.next() {
        here.push(name);
        let last = names.peek().is_none();
        if here.is_file() || (last && here.is_dir() && entry.contains('=')) {
            return false;
        }
    }
    fill(layer, &[entry]);
    true
}

/// Copies what a user sees of the layers to a plain directory.
fn harvest(fs: &Fs, path: &str, to: &Path) {
    for (name, kind) in fs.list(path).unwrap() {
        let (child, to) = (format!("{path}/{name}"), to.join(&name));
        if kind == rustix::fs::FileType::Directory {
            fs::create_dir(&to).unwrap();
            harvest(fs, &child, &to);
        } else {
            fs::write(&to, fs.read(&child).unwrap()).unwrap();
        }
        let mode = fs.stat(&child).unwrap().mode & 0o7777;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn errno(outcome: io::Result<()>) -> Result<(), Errno> {
    outcome.map_err(|error| Errno::from_io_error(&error).unwrap())
}

/// Paths are walked by name here and by the kernel there: both must not follow links in between.
fn passes_a_link(root: &Path, path: &str) -> bool {
    let mut here = root.to_owned();
    path.split('/').any(|name| {
        here.push(name);
        here.is_symlink()
    })
}

fn on_plain(root: &Path, op: &Op) -> Result<(), Errno> {
    let at = |path: &str| -> PathBuf { root.join(path) };
    let existing = |path: &str| fs::symlink_metadata(at(path)).map(drop);
    errno(match op {
        Op::Write(path, n) => fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(at(path))
            .and_then(|file| {
                std::os::unix::fs::FileExt::write_all_at(&file, &vec![b'x'; usize::from(*n)], 0)
            }),
        Op::Overwrite(path, n) => fs::OpenOptions::new()
            .write(true)
            .open(at(path))
            .and_then(|file| std::os::unix::fs::FileExt::write_all_at(&file, &[b'o'; 3], u64::from(*n % 16))),
        Op::Mkdir(path) => fs::DirBuilder::new().mode(0o755).create(at(path)),
        Op::Unlink(path) => fs::remove_file(at(path)),
        Op::Rmdir(path) => fs::remove_dir(at(path)),
        Op::Rename(from, to) => fs::rename(at(from), at(to)),
        Op::Link(from, to) => fs::hard_link(at(from), at(to)),
        Op::Symlink(path) => std::os::unix::fs::symlink("target", at(path)),
        Op::Chmod(path, mode) => {
            existing(path).and_then(|()| fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)))
        }
        Op::Truncate(path, size) => fs::OpenOptions::new()
            .write(true)
            .open(at(path))
            .and_then(|file| file.set_len(*size)),
        Op::SetXattr(path, n) => xattr::set(at(path), "user.n", &[*n]),
    })
}

fn on_overlay(fs: &Fs, op: &Op) -> Result<(), Errno> {
    match op {
        Op::Write(path, n) => fs.write(path, vec![b'x'; usize::from(*n)]),
        Op::Overwrite(path, n) => {
            let handle = fs.open(path, rustix::fs::OFlags::WRONLY)?.handle;
            let written = fs.overlay.write(handle, u64::from(*n % 16), &[b'o'; 3], false);
            fs.overlay.release(handle);
            written.map(drop)
        }
        Op::Mkdir(path) => fs.mkdir(path).map(drop),
        Op::Unlink(path) => fs.unlink(path),
        Op::Rmdir(path) => fs.rmdir(path),
        Op::Rename(from, to) => fs.rename(from, to),
        Op::Link(from, to) => fs.link(from, to).map(drop),
        Op::Symlink(path) => fs.symlink("target", path).map(drop),
        Op::Chmod(path, mode) => fs.chmod(path, *mode).map(drop),
        Op::Truncate(path, size) => {
            let size = Some(*size);
            fs.setattr(
                path,
                SetAttr {
                    size,
                    ..SetAttr::default()
                },
            )
            .map(drop)
        }
        Op::SetXattr(path, n) => fs.set_xattr(path, "user.n", &[*n]),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    nlink: u64,
    contents: Vec<u8>,
    xattr: Option<Vec<u8>>,
}

fn seen_plain(root: &Path, path: &str, into: &mut BTreeMap<String, Seen>) {
    for entry in fs::read_dir(root.join(path)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let child = format!("{path}/{name}").trim_start_matches('/').to_owned();
        let full = root.join(&child);
        let stat = fs::symlink_metadata(&full).unwrap();
        let contents = if stat.is_file() {
            fs::read(&full).unwrap()
        } else if stat.is_symlink() {
            fs::read_link(&full)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes()
        } else {
            seen_plain(root, &child, into);
            Vec::new()
        };
        let seen = Seen {
            mode: stat.mode(),
            nlink: stat.nlink(),
            contents,
            xattr: if stat.is_symlink() {
                None
            } else {
                xattr::get(&full, "user.n").unwrap()
            },
        };
        into.insert(child, seen);
    }
}

fn seen_overlay(fs: &Fs, path: &str, into: &mut BTreeMap<String, Seen>) {
    for name in fs.names(path) {
        let child = format!("{path}/{name}").trim_start_matches('/').to_owned();
        let attr = fs.stat(&child).unwrap();
        let contents = match attr.mode & 0o170_000 {
            0o100_000 => fs.read(&child).unwrap(),
            0o120_000 => fs.readlink(&child).unwrap().into_bytes(),
            _ => {
                seen_overlay(fs, &child, into);
                Vec::new()
            }
        };
        let seen = Seen {
            mode: attr.mode,
            nlink: attr.nlink.into(),
            contents,
            xattr: fs.xattr(&child, "user.n").ok(),
        };
        into.insert(child, seen);
    }
}

fn compare(seed: &[(usize, String)], ops: &[Op]) {
    let fs = Fs::new(2, |lower| {
        for (layer, entry) in seed {
            sow(&lower[*layer], entry);
        }
    });
    let plain = tempfile::tempdir().unwrap();
    harvest(&fs, "", plain.path());
    for op in ops {
        let paths = match op {
            Op::Rename(a, b) | Op::Link(a, b) => vec![a, b],
            Op::Write(a, _)
            | Op::Overwrite(a, _)
            | Op::Mkdir(a)
            | Op::Unlink(a)
            | Op::Rmdir(a)
            | Op::Symlink(a)
            | Op::Chmod(a, _)
            | Op::Truncate(a, _)
            | Op::SetXattr(a, _) => vec![a],
        };
        let follows = !matches!(
            op,
            Op::Unlink(_) | Op::Rename(..) | Op::Symlink(_) | Op::Mkdir(_) | Op::Rmdir(_)
        );
        if paths.iter().any(|path| {
            let path = if follows {
                path.as_str()
            } else {
                path.rsplit_once('/').map_or("", |(p, _)| p)
            };
            passes_a_link(plain.path(), path)
        }) {
            continue;
        }
        let overlay = on_overlay(&fs, op);
        if overlay == Err(Errno::XDEV) {
            // A lower or merged directory; nothing may have happened.
            assert!(
                matches!(op, Op::Rename(from, _) if plain.path().join(from).is_dir()),
                "{op:?}"
            );
            continue;
        }
        let plain = on_plain(plain.path(), op);
        if overlay.is_err() && plain.is_err() && matches!(op, Op::Rename(..) | Op::Link(..)) {
            // Which of several faults is named is the kernel's business, which looks first.
            continue;
        }
        assert_eq!(overlay, plain, "{op:?}");
    }
    let mut expected = BTreeMap::new();
    seen_plain(plain.path(), "", &mut expected);
    let check = |fs: &Fs| {
        let mut seen = BTreeMap::new();
        seen_overlay(fs, "", &mut seen);
        assert_eq!(seen, expected);
    };
    check(&fs);
    assert_eq!(fs.overlay.inodes(), 1);
    fs.assert_work_is_empty();
    check(&fs.again());
}

pub(crate) fn the_overlay_behaves_like_a_plain_directory() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&(seed(), prop::collection::vec(op(), 1..40)), |(seed, ops)| {
            compare(&seed, &ops);
            Ok(())
        })
        .unwrap();
}
