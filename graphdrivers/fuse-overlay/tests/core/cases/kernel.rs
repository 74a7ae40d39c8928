//! What we write the kernel's overlayfs reads, and the other way round.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use skiff_fuse_overlay::overlay::Attr;

use crate::fs::{Fs, fill, is_whiteout};

/// The kernel's overlay on the directories of a test.
struct Mounted {
    point: tempfile::TempDir,
}

impl Mounted {
    fn new(root: &Path, lowers: usize) -> Self {
        let point = tempfile::tempdir().unwrap();
        let show = |name: &str| root.join(name).display().to_string();
        let lower: Vec<String> = (0..lowers).map(|i| show(&format!("lower{i}"))).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},userxattr",
            lower.join(":"),
            show("upper"),
            show("work")
        );
        let options = std::ffi::CString::new(options).unwrap();
        mount(
            "overlay",
            point.path(),
            "overlay",
            MountFlags::empty(),
            Some(&*options),
        )
        .unwrap();
        Self { point }
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.point.path().join(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(self.point.path(), UnmountFlags::DETACH).unwrap();
    }
}

/// What is seen of one file.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    contents: Vec<u8>,
    xattrs: Vec<String>,
}

fn seen_by_us(fs: &Fs, path: &str, into: &mut BTreeMap<String, Seen>) {
    let attr: Attr = fs.stat(path).unwrap();
    let contents = match attr.mode & 0o170_000 {
        0o100_000 => fs.read(path).unwrap(),
        0o120_000 => fs.readlink(path).unwrap().into_bytes(),
        _ => Vec::new(),
    };
    if attr.mode & 0o170_000 == 0o040_000 {
        for name in fs.names(path) {
            seen_by_us(fs, format!("{path}/{name}").trim_start_matches('/'), into);
        }
    }
    let seen = Seen {
        mode: attr.mode,
        owner: (attr.uid, attr.gid),
        mtime: (attr.mtime.seconds, attr.mtime.nanoseconds.into()),
        contents,
        xattrs: fs.xattrs(path).unwrap(),
    };
    into.insert(path.to_owned(), seen);
}

fn seen_by_the_kernel(mounted: &Mounted, path: &str, into: &mut BTreeMap<String, Seen>) {
    let full = mounted.path(path);
    let stat = fs::symlink_metadata(&full).unwrap();
    let contents = if stat.is_file() {
        fs::read(&full).unwrap()
    } else if stat.is_symlink() {
        fs::read_link(&full)
            .unwrap()
            .into_os_string()
            .into_encoded_bytes()
    } else {
        Vec::new()
    };
    let mut xattrs: Vec<String> = match xattr::list(&full) {
        Ok(names) => names.map(|name| name.into_string().unwrap()).collect(),
        Err(error) => panic!("{}: {error}", full.display()),
    };
    xattrs.sort();
    if stat.is_dir() {
        for entry in fs::read_dir(&full).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            seen_by_the_kernel(mounted, format!("{path}/{name}").trim_start_matches('/'), into);
        }
    }
    let seen = Seen {
        mode: stat.mode(),
        owner: (stat.uid(), stat.gid()),
        mtime: (stat.mtime(), stat.mtime_nsec()),
        contents,
        xattrs,
    };
    into.insert(path.to_owned(), seen);
}

fn layers(lower: &[std::path::PathBuf]) {
    fill(
        &lower[0],
        &[
            "etc/passwd=root",
            "etc/group=root",
            "usr/bin/a=a",
            "usr/share/doc/x=x",
            "link->etc",
            "tmp",
        ],
    );
    fill(
        &lower[1],
        &[
            "etc/hosts=below",
            "usr/lib/l=l",
            "usr/share/doc/y=y",
            "var/log/old=old",
            "var/cache/c=c",
            "opt/o/p=p",
        ],
    );
}

pub(crate) fn the_kernel_mounts_what_we_wrote() {
    let fs = Fs::new(2, layers);
    fs.overwrite("etc/passwd", "ROOT").unwrap();
    fs.unlink("etc/group").unwrap();
    fs.unlink("var/log/old").unwrap();
    fs.rmdir("var/log").unwrap();
    fs.mkdir("var/log").unwrap();
    fs.write("var/log/new", "new").unwrap();
    fs.unlink("var/cache/c").unwrap();
    fs.rename("etc/hosts", "usr/hosts").unwrap();
    fs.mkdir("made").unwrap();
    fs.write("made/f", "f").unwrap();
    fs.link("made/f", "made/g").unwrap();
    fs.unlink("opt/o/p").unwrap();
    fs.rename("made", "opt/o").unwrap();
    fs.unlink("link").unwrap();
    fs.symlink("usr", "link").unwrap();
    fs.set_xattr("usr/share", "user.note", b"n").unwrap();
    fs.set_xattr("usr/share", "user.overlay.opaque", b"y").unwrap();
    fs.chmod("usr/lib/l", 0o4711).unwrap();
    fs.set_mtime("tmp", 1_234_567).unwrap();
    let mut ours = BTreeMap::new();
    seen_by_us(&fs, "", &mut ours);
    let directory = fs.into_directory();
    let mounted = Mounted::new(directory.path(), 2);
    let mut kernels = BTreeMap::new();
    seen_by_the_kernel(&mounted, "", &mut kernels);
    assert!(ours.contains_key("opt/o/f") && ours.contains_key("var/log/new"));
    assert_eq!(ours, kernels);
}

pub(crate) fn we_read_what_the_kernel_wrote() {
    let fs = Fs::new(2, layers);
    let root = fs.upper("").parent().unwrap().to_owned();
    let directory = fs.into_directory();
    let mounted = Mounted::new(directory.path(), 2);
    let at = |path: &str| mounted.path(path);
    fs::write(at("etc/passwd"), "ROOT").unwrap();
    fs::remove_file(at("etc/group")).unwrap();
    fs::remove_dir_all(at("var/log")).unwrap();
    fs::create_dir(at("var/log")).unwrap();
    fs::write(at("var/log/new"), "new").unwrap();
    fs::rename(at("etc/hosts"), at("usr/hosts")).unwrap();
    fs::create_dir(at("made")).unwrap();
    fs::write(at("made/f"), "f").unwrap();
    fs::hard_link(at("made/f"), at("made/g")).unwrap();
    fs::remove_file(at("opt/o/p")).unwrap();
    fs::rename(at("made"), at("opt/o")).unwrap();
    fs::remove_file(at("link")).unwrap();
    std::os::unix::fs::symlink("usr", at("link")).unwrap();
    xattr::set(at("usr/share"), "user.note", b"n").unwrap();
    xattr::set(at("usr/share"), "user.overlay.opaque", b"y").unwrap();
    let mut kernels = BTreeMap::new();
    seen_by_the_kernel(&mounted, "", &mut kernels);
    drop(mounted);
    assert!(is_whiteout(&root.join("upper/etc/group")));
    let fs = Fs::reopen(directory, 2);
    let mut ours = BTreeMap::new();
    seen_by_us(&fs, "", &mut ours);
    assert_eq!(ours, kernels);
    // And goes on with it.
    fs.write("etc/group", "again").unwrap();
    fs.unlink("opt/o/f").unwrap();
    assert_eq!(fs.stat("opt/o/g").unwrap().nlink, 1);
}
