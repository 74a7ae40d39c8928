//! A directory tree as a value that can be compared.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Everything that can be seen of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) what: What,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Seconds and nanoseconds; `None` where the comparison leaves it out.
    pub(crate) mtime: Option<(i64, i64)>,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Directory,
    File(Vec<u8>),
    Symlink(PathBuf),
    Fifo,
    Device(u64),
    Socket,
    /// The same inode as this path, which sorts before.
    LinkTo(PathBuf),
}

pub(crate) type Tree = BTreeMap<PathBuf, Seen>;

/// Reads the tree below `root`, without `root` itself.
pub(crate) fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut paths = Vec::new();
    collect(root, Path::new(""), &mut paths);
    paths.sort();
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    for path in paths {
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full).unwrap();
        let kind = meta.file_type();
        let known = (!kind.is_dir() && meta.nlink() > 1)
            .then(|| links.insert((meta.dev(), meta.ino()), path.clone()))
            .flatten();
        let what = match known {
            Some(first) => {
                links.insert((meta.dev(), meta.ino()), first.clone());
                What::LinkTo(first)
            }
            None if kind.is_dir() => What::Directory,
            None if kind.is_file() => What::File(fs::read(&full).unwrap()),
            None if kind.is_symlink() => What::Symlink(fs::read_link(&full).unwrap()),
            None if kind.is_fifo() => What::Fifo,
            None if kind.is_socket() => What::Socket,
            None => What::Device(meta.rdev()),
        };
        let seen = Seen {
            what,
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: Some((meta.mtime(), meta.mtime_nsec())),
            xattrs: xattrs(&full),
        };
        tree.insert(path, seen);
    }
    tree
}

/// The same without times of directories, which change with every name made in them.
pub(crate) fn read_without_directory_times(root: &Path) -> Tree {
    let mut tree = read(root);
    for seen in tree.values_mut().filter(|seen| seen.what == What::Directory) {
        seen.mtime = None;
    }
    tree
}

/// The same with hard links shown as the files they are.
///
/// A link between a file of a lower layer and a new name cannot be told in a layer, and an overlay shows it or not
/// depending on how it was mounted.
pub(crate) fn without_links(tree: &Tree) -> Tree {
    let mut plain = tree.clone();
    for seen in plain.values_mut() {
        if let What::LinkTo(first) = &seen.what {
            seen.what = tree[first].what.clone();
        }
    }
    plain
}

/// Compares two trees and shows what differs, and nothing else.
pub(crate) fn assert_same(a: &Tree, b: &Tree) {
    for path in a.keys().chain(b.keys()) {
        assert_eq!(a.get(path), b.get(path), "{path:?}");
    }
}

fn collect(root: &Path, below: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            collect(root, &path, paths);
        }
        paths.push(path);
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = xattr::list(path).unwrap();
    names
        // Security modules of the host put theirs on every file.
        .filter(|name| {
            name.as_bytes() == b"security.capability" || !name.as_bytes().starts_with(b"security.")
        })
        .map(|name| {
            let value = xattr::get(path, &name).unwrap().unwrap_or_default();
            (name.into_string().unwrap(), value)
        })
        .collect()
}
