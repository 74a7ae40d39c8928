//! What a name can be before something is done with it: every way a file, directory or nothing comes about in an
//! overlay of two lower layers and an upper one.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// Time of everything the fixture makes, in seconds since 1970.
pub(crate) const OLD: i64 = 1_000_000_000;

/// The scenario's directory in each layer. That in `upper` appears only when something is put there.
pub(crate) struct Place {
    pub(crate) bottom: PathBuf,
    pub(crate) top: PathBuf,
    pub(crate) upper: PathBuf,
}

type Object = (&'static str, fn(&Place));

/// All of them; each puts something at the name `n` (and a few neighbours).
pub(crate) const OBJECTS: &[Object] = &[
    ("nothing", |_| ()),
    ("bottom-file", |p| file(&p.bottom, "n", "bottom")),
    ("top-file", |p| file(&p.top, "n", "top")),
    ("upper-file", |p| file(&p.upper, "n", "upper")),
    ("file-on-file", |p| {
        file(&p.bottom, "n", "bottom");
        file(&p.upper, "n", "upper");
    }),
    ("top-file-on-bottom-file", |p| {
        file(&p.bottom, "n", "bottom");
        file(&p.top, "n", "top");
    }),
    ("empty-bottom-file", |p| file(&p.bottom, "n", "")),
    ("bottom-file-of-another", |p| {
        file(&p.bottom, "n", "bottom");
        special(&p.bottom, "n", 1000, 0o4751);
    }),
    ("bottom-file-without-permissions", |p| {
        file(&p.bottom, "n", "bottom");
        special(&p.bottom, "n", 0, 0);
    }),
    ("bottom-file-with-attributes", |p| {
        file(&p.bottom, "n", "bottom");
        attribute(&p.bottom, "user.colour", "green");
    }),
    ("empty-bottom-directory", |p| directory(&p.bottom, "n")),
    ("bottom-tree", |p| tree(&p.bottom)),
    ("top-tree", |p| tree(&p.top)),
    ("empty-upper-directory", |p| directory(&p.upper, "n")),
    ("upper-tree", |p| tree(&p.upper)),
    ("merged-tree", |p| {
        tree(&p.bottom);
        directory(&p.upper, "n");
        file(&p.upper, "n/g", "upper");
    }),
    ("merged-lower-tree", |p| {
        tree(&p.bottom);
        directory(&p.top, "n");
        file(&p.top, "n/g", "top");
    }),
    ("emptied-tree", |p| {
        tree(&p.bottom);
        directory(&p.upper, "n");
        whiteout(&p.upper, "n/f");
        whiteout(&p.upper, "n/sub");
    }),
    ("opaque-upper-tree", |p| {
        tree(&p.bottom);
        directory(&p.upper, "n");
        file(&p.upper, "n/g", "upper");
        attribute(&p.upper, "user.overlay.opaque", "y");
    }),
    ("opaque-top-tree", |p| {
        tree(&p.bottom);
        directory(&p.top, "n");
        file(&p.top, "n/g", "top");
        attribute(&p.top, "user.overlay.opaque", "y");
    }),
    ("directory-of-another", |p| {
        directory(&p.bottom, "n");
        special(&p.bottom, "n", 1000, 0o3775);
        attribute(&p.bottom, "user.colour", "green");
    }),
    ("whiteout-of-file", |p| {
        file(&p.bottom, "n", "bottom");
        whiteout(&p.upper, "n");
    }),
    ("whiteout-of-tree", |p| {
        tree(&p.bottom);
        whiteout(&p.upper, "n");
    }),
    ("top-whiteout-of-file", |p| {
        file(&p.bottom, "n", "bottom");
        whiteout(&p.top, "n");
    }),
    ("top-whiteout-of-tree", |p| {
        tree(&p.bottom);
        whiteout(&p.top, "n");
    }),
    ("file-on-tree", |p| {
        tree(&p.bottom);
        file(&p.upper, "n", "upper");
    }),
    ("tree-on-file", |p| {
        file(&p.bottom, "n", "bottom");
        tree(&p.upper);
    }),
    ("tree-on-file-on-tree", |p| {
        tree(&p.bottom);
        file(&p.top, "n", "top");
        directory(&p.upper, "n");
        file(&p.upper, "n/g", "upper");
    }),
    ("bottom-link-to-file", |p| {
        file(&p.bottom, "target", "target");
        link(&p.bottom, "target");
    }),
    ("bottom-link-to-directory", |p| {
        directory(&p.bottom, "target");
        file(&p.bottom, "target/f", "target");
        link(&p.bottom, "target");
    }),
    ("bottom-link-to-nothing", |p| link(&p.bottom, "target")),
    ("bottom-link-to-itself", |p| link(&p.bottom, "n")),
    ("upper-link-to-file", |p| {
        file(&p.upper, "target", "target");
        link(&p.upper, "target");
    }),
    ("upper-link-to-bottom-file", |p| {
        file(&p.bottom, "target", "target");
        link(&p.upper, "target");
    }),
    ("bottom-hard-links", |p| {
        file(&p.bottom, "n", "bottom");
        fs::hard_link(p.bottom.join("n"), p.bottom.join("other-name")).unwrap();
    }),
    ("upper-hard-links", |p| {
        file(&p.upper, "n", "upper");
        fs::hard_link(p.upper.join("n"), p.upper.join("other-name")).unwrap();
    }),
    ("bottom-fifo", |p| {
        rustix::fs::mknodat(
            CWD,
            p.bottom.join("n"),
            FileType::Fifo,
            Mode::from_raw_mode(0o640),
            0,
        )
        .unwrap();
    }),
    ("upper-socket", |p| {
        make_directory(&p.upper);
        rustix::fs::mknodat(
            CWD,
            p.upper.join("n"),
            FileType::Socket,
            Mode::from_raw_mode(0o640),
            0,
        )
        .unwrap();
    }),
];

/// A file of the fixture.
pub(crate) fn file(layer: &Path, name: &str, text: &str) {
    make_directory(layer);
    fs::write(layer.join(name), text).unwrap();
    special(layer, name, 0, 0o644);
}

/// An empty directory of the fixture.
pub(crate) fn directory(layer: &Path, name: &str) {
    make_directory(layer);
    fs::create_dir(layer.join(name)).unwrap();
    special(layer, name, 0, 0o755);
}

/// A symbolic link at the name `n`.
pub(crate) fn link(layer: &Path, target: &str) {
    make_directory(layer);
    symlink(target, layer.join("n")).unwrap();
}

fn tree(layer: &Path) {
    directory(layer, "n");
    file(layer, "n/f", "f");
    directory(layer, "n/sub");
    file(layer, "n/sub/h", "h");
}

fn special(layer: &Path, name: &str, owner: u32, mode: u32) {
    let path = layer.join(name);
    std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
}

fn attribute(layer: &Path, name: &str, value: &str) {
    rustix::fs::lsetxattr(layer.join("n"), name, value.as_bytes(), XattrFlags::empty()).unwrap();
}

/// As the kernel writes it: a character device 0:0.
fn whiteout(layer: &Path, name: &str) {
    make_directory(layer);
    rustix::fs::mknodat(CWD, layer.join(name), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

fn make_directory(layer: &Path) {
    if !layer.exists() {
        fs::create_dir(layer).unwrap();
        fs::set_permissions(layer, PermissionsExt::from_mode(0o755)).unwrap();
    }
}

/// Sets the times of everything below `root`, and its own, to [`OLD`].
pub(crate) fn age(root: &Path) {
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            age(&entry.path());
        } else {
            set_old(&entry.path());
        }
    }
    set_old(root);
}

fn set_old(path: &Path) {
    let old = Timespec {
        tv_sec: OLD,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: old,
        last_modification: old,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
