//! An overlay of temporary directories, used by paths.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use skiff_fuse_overlay::overlay::{
    Attr, Caller, Config, Entry, Lookup, Opened, Overlay, ROOT, SetAttr, SetTime, Time,
};

pub(crate) type Result<T> = std::result::Result<T, Errno>;

pub(crate) struct Fs {
    pub(crate) overlay: Overlay,
    directory: tempfile::TempDir,
    lowers: usize,
}

/// A reference to an inode, given back in the end.
pub(crate) struct Held<'a> {
    fs: &'a Fs,
    pub(crate) node: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.node != ROOT {
            self.fs.overlay.forget(self.node, 1);
        }
    }
}

pub(crate) const NOBODY_SPECIAL: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
    umask: 0,
};

impl Fs {
    /// `lowers` lower layers, filled by `fill` (topmost first), and an upper directory.
    pub(crate) fn new(lowers: usize, fill: impl FnOnce(&[PathBuf])) -> Self {
        Self::with(lowers, fill, |_| {})
    }

    pub(crate) fn with(
        lowers: usize,
        fill: impl FnOnce(&[PathBuf]),
        configure: impl FnOnce(&mut Config),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..lowers)
            .map(|i| directory.path().join(format!("lower{i}")))
            .collect();
        for path in &paths {
            fs::create_dir(path).unwrap();
        }
        for name in ["upper", "work"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        fill(&paths);
        let mut config = Self::config(directory.path(), lowers);
        configure(&mut config);
        Self {
            overlay: Overlay::new(config).unwrap(),
            directory,
            lowers,
        }
    }

    fn config(directory: &Path, lowers: usize) -> Config {
        Config {
            lower: (0..lowers).map(|i| directory.join(format!("lower{i}"))).collect(),
            upper: Some((directory.join("upper"), directory.join("work"))),
            ..Config::default()
        }
    }

    /// The same directories in a new mount.
    pub(crate) fn again(self) -> Self {
        let Self {
            overlay,
            directory,
            lowers,
        } = self;
        drop(overlay);
        Self::reopen(directory, lowers)
    }

    /// A mount of directories that an earlier one left.
    pub(crate) fn reopen(directory: tempfile::TempDir, lowers: usize) -> Self {
        Self {
            overlay: Overlay::new(Self::config(directory.path(), lowers)).unwrap(),
            directory,
            lowers,
        }
    }

    /// The directories, when the overlay is not needed any more.
    pub(crate) fn into_directory(self) -> tempfile::TempDir {
        self.directory
    }

    pub(crate) fn upper(&self, path: &str) -> PathBuf {
        let upper = self.overlay.config().upper.as_ref();
        upper
            .map_or_else(|| self.directory.path().join("upper"), |(upper, _)| upper.clone())
            .join(path)
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.overlay.config().upper.as_ref().unwrap().1.join("work")
    }

    pub(crate) fn find(&self, path: &str) -> Result<Held<'_>> {
        let mut here = Held { fs: self, node: ROOT };
        for name in path.split('/').filter(|name| !name.is_empty()) {
            match self.overlay.lookup(here.node, OsStr::new(name))? {
                Lookup::Found(entry) => {
                    here = Held {
                        fs: self,
                        node: entry.node,
                    }
                }
                Lookup::Negative(_) => return Err(Errno::NOENT),
            }
        }
        Ok(here)
    }

    /// The parent of a path, and its last name.
    pub(crate) fn parent<'p>(&self, path: &'p str) -> Result<(Held<'_>, &'p OsStr)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.find(parent)?, OsStr::new(name)))
    }

    fn known(&self, entry: Result<Entry>) -> Result<Attr> {
        let entry = entry?;
        self.overlay.forget(entry.node, 1);
        Ok(entry.attr)
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        match self.find(path) {
            Ok(_) => true,
            Err(Errno::NOENT | Errno::NOTDIR) => false,
            Err(errno) => panic!("{path}: {errno}"),
        }
    }

    pub(crate) fn stat(&self, path: &str) -> Result<Attr> {
        self.overlay.getattr(self.find(path)?.node, None)
    }

    pub(crate) fn open(&self, path: &str, flags: OFlags) -> Result<Opened> {
        self.overlay.open(self.find(path)?.node, flags.bits())
    }

    pub(crate) fn read_handle(&self, handle: u64) -> Result<Vec<u8>> {
        let mut data = vec![0; 1 << 20];
        let n = self.overlay.read(handle, 0, &mut data)?;
        data.truncate(n);
        Ok(data)
    }

    pub(crate) fn read(&self, path: &str) -> Result<Vec<u8>> {
        let handle = self.open(path, OFlags::RDONLY)?.handle;
        let data = self.read_handle(handle);
        self.overlay.release(handle);
        data
    }

    pub(crate) fn text(&self, path: &str) -> String {
        String::from_utf8(self.read(path).unwrap()).unwrap()
    }

    pub(crate) fn create_as(&self, caller: &Caller, path: &str, mode: u32) -> Result<Attr> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::RDWR | OFlags::EXCL;
        let (entry, opened) = self
            .overlay
            .create(caller, parent.node, name, mode, flags.bits())?;
        self.overlay.release(opened.handle);
        self.known(Ok(entry))
    }

    /// Makes the file or replaces its contents.
    pub(crate) fn write(&self, path: &str, data: impl AsRef<[u8]>) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::WRONLY | OFlags::TRUNC;
        let (entry, opened) = self
            .overlay
            .create(&NOBODY_SPECIAL, parent.node, name, 0o644, flags.bits())?;
        let written = self.overlay.write(opened.handle, 0, data.as_ref(), false);
        self.overlay.release(opened.handle);
        self.overlay.forget(entry.node, 1);
        assert_eq!(written?, data.as_ref().len());
        Ok(())
    }

    /// Overwrites the beginning.
    pub(crate) fn overwrite(&self, path: &str, data: &str) -> Result<()> {
        let handle = self.open(path, OFlags::WRONLY)?.handle;
        let written = self.overlay.write(handle, 0, data.as_bytes(), false);
        self.overlay.release(handle);
        written.map(drop)
    }

    pub(crate) fn mkdir(&self, path: &str) -> Result<Attr> {
        self.mkdir_as(&NOBODY_SPECIAL, path, 0o755)
    }

    pub(crate) fn mkdir_as(&self, caller: &Caller, path: &str, mode: u32) -> Result<Attr> {
        let (parent, name) = self.parent(path)?;
        self.known(self.overlay.mkdir(caller, parent.node, name, mode))
    }

    pub(crate) fn mknod(&self, path: &str, kind: FileType) -> Result<Attr> {
        let (parent, name) = self.parent(path)?;
        let mode = kind.as_raw_mode() | 0o644;
        self.known(self.overlay.mknod(&NOBODY_SPECIAL, parent.node, name, mode, 0))
    }

    pub(crate) fn symlink(&self, target: &str, path: &str) -> Result<Attr> {
        let (parent, name) = self.parent(path)?;
        self.known(
            self.overlay
                .symlink(&NOBODY_SPECIAL, parent.node, name, OsStr::new(target)),
        )
    }

    pub(crate) fn readlink(&self, path: &str) -> Result<String> {
        let target = self.overlay.readlink(self.find(path)?.node)?;
        Ok(String::from_utf8(target).unwrap())
    }

    pub(crate) fn link(&self, old: &str, new: &str) -> Result<Attr> {
        let old = self.find(old)?;
        let (parent, name) = self.parent(new)?;
        self.known(self.overlay.link(old.node, parent.node, name))
    }

    pub(crate) fn unlink(&self, path: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        self.overlay.unlink(parent.node, name)
    }

    pub(crate) fn rmdir(&self, path: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        self.overlay.rmdir(parent.node, name)
    }

    pub(crate) fn rename(&self, old: &str, new: &str) -> Result<()> {
        self.rename_with(old, new, 0)
    }

    pub(crate) fn rename_with(&self, old: &str, new: &str, flags: u32) -> Result<()> {
        let (old_parent, old) = self.parent(old)?;
        let (new_parent, new) = self.parent(new)?;
        self.overlay
            .rename(old_parent.node, old, new_parent.node, new, flags)
    }

    pub(crate) fn setattr(&self, path: &str, change: SetAttr) -> Result<Attr> {
        self.overlay.setattr(self.find(path)?.node, None, &change)
    }

    pub(crate) fn chmod(&self, path: &str, mode: u32) -> Result<Attr> {
        self.setattr(
            path,
            SetAttr {
                mode: Some(mode),
                ..SetAttr::default()
            },
        )
    }

    pub(crate) fn set_mtime(&self, path: &str, seconds: i64) -> Result<Attr> {
        let mtime = SetTime::At(Time {
            seconds,
            nanoseconds: 5,
        });
        self.setattr(
            path,
            SetAttr {
                mtime: Some(mtime),
                ..SetAttr::default()
            },
        )
    }

    pub(crate) fn xattr(&self, path: &str, name: &str) -> Result<Vec<u8>> {
        self.overlay.getxattr(self.find(path)?.node, OsStr::new(name))
    }

    pub(crate) fn set_xattr(&self, path: &str, name: &str, value: &[u8]) -> Result<()> {
        self.overlay
            .setxattr(self.find(path)?.node, OsStr::new(name), value, 0)
    }

    pub(crate) fn xattrs(&self, path: &str) -> Result<Vec<String>> {
        let list = self.overlay.listxattr(self.find(path)?.node)?;
        let names = list.split(|&b| b == 0).filter(|name| !name.is_empty());
        let mut names: Vec<String> = names.map(|n| String::from_utf8(n.to_vec()).unwrap()).collect();
        names.sort();
        Ok(names)
    }

    /// The names in a directory, without dots; read in two ways that must agree.
    pub(crate) fn list(&self, path: &str) -> Result<BTreeMap<String, FileType>> {
        let node = self.find(path)?;
        let handle = self.overlay.opendir(node.node)?;
        let mut plain = BTreeMap::new();
        let outcome = self.overlay.readdir(handle, 0, &mut |entry| {
            let name = entry.name.to_str().unwrap().to_owned();
            assert!(plain.insert(name, entry.kind).is_none(), "{:?} twice", entry.name);
            true
        });
        self.overlay.releasedir(handle);
        outcome?;
        assert!(plain.remove(".").is_some() && plain.remove("..").is_some());
        assert_eq!(plain, self.list_plus(path)?, "readdir and readdirplus differ");
        Ok(plain)
    }

    pub(crate) fn list_plus(&self, path: &str) -> Result<BTreeMap<String, FileType>> {
        let node = self.find(path)?;
        let handle = self.overlay.opendir(node.node)?;
        let mut names = BTreeMap::new();
        let outcome = self.overlay.readdirplus(handle, 0, &mut |listed, entry| {
            let name = listed.name.to_str().unwrap().to_owned();
            if let Some(entry) = entry {
                assert_eq!(FileType::from_raw_mode(entry.attr.mode), listed.kind);
                self.overlay.forget(entry.node, 1);
            }
            assert_eq!(entry.is_none(), name == "." || name == "..");
            names.insert(name, listed.kind);
            true
        });
        self.overlay.releasedir(handle);
        outcome?;
        assert!(names.remove(".").is_some() && names.remove("..").is_some());
        Ok(names)
    }

    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        self.list(path).unwrap().into_keys().collect()
    }

    /// Nothing may be left there when no request is under way, but the whiteout that others are links to.
    pub(crate) fn assert_work_is_empty(&self) {
        let left: Vec<_> = fs::read_dir(self.work())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| !name.as_bytes().starts_with(b"#w"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A file system in memory, with an upper and a work directory.
pub(crate) struct Memory(tempfile::TempDir);

impl Memory {
    pub(crate) fn new(kind: &str, options: &std::ffi::CStr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        mount(kind, directory.path(), kind, MountFlags::empty(), Some(options)).unwrap();
        let this = Self(directory);
        for path in [this.upper(""), this.work()] {
            fs::create_dir(path).unwrap();
        }
        this
    }

    pub(crate) fn upper(&self, path: &str) -> PathBuf {
        self.0.path().join("upper").join(path)
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.0.path().join("work")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

/// Fills a layer: `dir/`, `file=contents`, `link->target`.
pub(crate) fn fill(layer: &Path, entries: &[&str]) {
    for entry in entries {
        if let Some((path, target)) = entry.split_once("->") {
            std::os::unix::fs::symlink(target, prepare(layer, path)).unwrap();
        } else if let Some((path, contents)) = entry.split_once('=') {
            fs::write(prepare(layer, path), contents).unwrap();
        } else {
            fs::create_dir_all(layer.join(entry)).unwrap();
        }
    }
}

fn prepare(layer: &Path, path: &str) -> PathBuf {
    let path = layer.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    path
}

/// Puts a whiteout as the kernel does.
pub(crate) fn whiteout(layer: &Path, path: &str) {
    let path = prepare(layer, path);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        FileType::CharacterDevice,
        Mode::empty(),
        0,
    )
    .unwrap();
}

pub(crate) fn is_whiteout(path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    match fs::symlink_metadata(path) {
        Ok(stat) => stat.file_type().is_char_device() && stat.rdev() == 0,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// Whether the file system of the temporary directory knows access control lists.
pub(crate) fn has_acls(directory: &Path) -> bool {
    xattr::get(directory, "system.posix_acl_default").is_ok()
}
