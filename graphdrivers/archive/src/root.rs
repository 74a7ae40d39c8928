//! A directory tree that names cannot leave.
//!
//! Every access is relative to a descriptor of the parent directory and touches one name without following it.
//! Parents are found by `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`: symbolic links among them are resolved as
//! if the root were `/`, which is what a chroot (Docker) and `fs.RootPath` (containerd) give. Where the kernel has no
//! openat2 (before 5.6, or a seccomp filter), and where directories are missing, a walk does the same one part at a
//! time.
//!
//! Descriptors of directories are cached, because members of one directory come together. Whoever removes a
//! directory or a symbolic link calls [`Root::forget`].

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result, show};

/// Directories whose descriptors are kept. Far below the usual limit of 1024 open files.
const CACHE_MAX: usize = 128;
/// Symbolic links followed for one name; the kernel's own limit is 40.
const LINKS_MAX: usize = 40;
/// Mode of directories that the archive uses and does not describe (Docker's `ImpliedDirectoryMode`).
const IMPLIED_MODE: u32 = 0o755;

/// How deep a removal descends before it moves directories up.
const REMOVE_DEPTH: usize = 64;

/// An open directory of the tree.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    /// Files made here inherit the group.
    pub(crate) setgid: bool,
    pub(crate) inode: u64,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Directory {
    fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let stat = fs::fstat(&fd)?;
        Ok(Self {
            setgid: stat.st_mode & 0o2000 != 0,
            inode: stat.st_ino,
            fd,
        })
    }
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Root {
    top: Rc<Directory>,
    cache: HashMap<Box<[u8]>, Rc<Directory>>,
    /// The directory used last: most members are in the same one as the member before.
    last: Option<(Vec<u8>, Rc<Directory>)>,
    openat2_works: bool,
    /// Directories made because the archive did not describe them, until somebody takes note.
    implied: Vec<Implied>,
}

/// A directory that a member lies in and that the archive did not describe before.
#[derive(Debug)]
pub(crate) struct Implied {
    /// Inode of its parent.
    pub(crate) parent: u64,
    /// Where it really is, without symbolic links.
    pub(crate) path: Vec<u8>,
}

pub(crate) fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

impl Root {
    /// Opens the tree below `path`; `path` itself is the caller's and may be a symbolic link.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let error = |errno| Error::os(format!("open directory {}", path.display()), errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(path, flags, Mode::empty()).map_err(error)?;
        let top = Rc::new(Directory::new(fd).map_err(error)?);
        Ok(Self {
            top,
            cache: HashMap::new(),
            last: None,
            openat2_works: true,
            implied: Vec::new(),
        })
    }

    /// The root itself.
    pub(crate) fn top(&self) -> &Rc<Directory> {
        &self.top
    }

    /// The directories that were made since the last call.
    pub(crate) fn take_implied(&mut self) -> Vec<Implied> {
        std::mem::take(&mut self.implied)
    }

    /// Opens the directory `path` (cleaned); missing ones are made, see [`Root::take_implied`].
    pub(crate) fn directory(&mut self, path: &[u8]) -> Result<Rc<Directory>> {
        if let Some(found) = self.cached(path) {
            return Ok(found);
        }
        let found = match self.resolve(path) {
            Err(Errno::NOENT | Errno::NOSYS | Errno::PERM) => self.walk(path, true),
            other => other,
        };
        let found =
            Rc::new(found.map_err(|errno| Error::os(format!("open directory {:?}", show(path)), errno))?);
        self.remember(path, Rc::clone(&found));
        Ok(found)
    }

    /// Opens the directory `path` (cleaned) if there is one; gives the kernel's error number otherwise.
    pub(crate) fn existing(&mut self, path: &[u8]) -> Result<Rc<Directory>, Errno> {
        if let Some(found) = self.cached(path) {
            return Ok(found);
        }
        let found = match self.resolve(path) {
            Err(Errno::NOSYS | Errno::PERM) => self.walk(path, false),
            other => other,
        };
        let found = Rc::new(found?);
        self.remember(path, Rc::clone(&found));
        Ok(found)
    }

    /// Opens the directory `base` of `parent`, which is `path`, and keeps it for the members that follow.
    pub(crate) fn enter(
        &mut self,
        parent: &Directory,
        base: &[u8],
        path: &[u8],
    ) -> Result<Rc<Directory>, Errno> {
        let fd = fs::openat(parent, base, directory_flags(), Mode::empty())?;
        let found = Rc::new(Directory::new(fd)?);
        self.remember(path, Rc::clone(&found));
        Ok(found)
    }

    /// Drops all cached descriptors; to be called when a directory or a symbolic link was removed.
    pub(crate) fn forget(&mut self) {
        self.cache.clear();
        self.last = None;
    }

    fn cached(&mut self, path: &[u8]) -> Option<Rc<Directory>> {
        if path.is_empty() {
            return Some(Rc::clone(&self.top));
        }
        match &self.last {
            Some((known, directory)) if known == path => return Some(Rc::clone(directory)),
            _ => {}
        }
        let found = Rc::clone(self.cache.get(path)?);
        self.last = Some((path.to_vec(), Rc::clone(&found)));
        Some(found)
    }

    fn remember(&mut self, path: &[u8], directory: Rc<Directory>) {
        if self.cache.len() >= CACHE_MAX {
            self.cache.clear();
        }
        self.cache.insert(path.into(), Rc::clone(&directory));
        self.last = Some((path.to_vec(), directory));
    }

    fn resolve(&mut self, path: &[u8]) -> Result<Directory, Errno> {
        if !self.openat2_works {
            return Err(Errno::NOSYS);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match fs::openat2(&self.top, path, flags, Mode::empty(), resolve) {
                Ok(fd) => return Directory::new(fd),
                // Something was renamed elsewhere meanwhile; the kernel asks for another try.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno @ Errno::NOSYS) => {
                    self.openat2_works = false;
                    return Err(errno);
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Resolves one part at a time, links inside the root, and makes missing directories if `create`.
    fn walk(&mut self, path: &[u8], create: bool) -> Result<Directory, Errno> {
        let mut open: Vec<Directory> = Vec::new();
        // Names of those in `open`.
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut todo: Vec<Vec<u8>> = parts_reversed(path);
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    open.pop();
                    real.pop();
                    continue;
                }
                _ => {}
            }
            let here: &Directory = open.last().unwrap_or(&self.top);
            match fs::openat(here, &part[..], directory_flags(), Mode::empty()) {
                Ok(fd) => {
                    open.push(Directory::new(fd)?);
                    real.push(part);
                }
                Err(Errno::NOENT) if create => {
                    let made = make_directory(here, &part)?;
                    let parent = here.inode;
                    real.push(part);
                    self.implied.push(Implied {
                        parent,
                        path: real.join(&b'/'),
                    });
                    open.push(made);
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let target = match fs::readlinkat(here, &part[..], Vec::new()) {
                        Ok(target) => target.into_bytes(),
                        Err(Errno::INVAL) => return Err(Errno::NOTDIR),
                        Err(errno) => return Err(errno),
                    };
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP);
                    }
                    if target.starts_with(b"/") {
                        open.clear();
                        real.clear();
                    }
                    todo.extend(parts_reversed(&target));
                }
                Err(errno) => return Err(errno),
            }
        }
        match open.pop() {
            Some(directory) => Ok(directory),
            None => Directory::new(fs::openat(&self.top, ".", directory_flags(), Mode::empty())?),
        }
    }
}

fn parts_reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&b| b == b'/').rev().map(<[u8]>::to_vec).collect()
}

fn make_directory(parent: &Directory, name: &[u8]) -> Result<Directory, Errno> {
    fs::mkdirat(parent, name, Mode::from_raw_mode(IMPLIED_MODE))?;
    let fd = fs::openat(parent, name, directory_flags(), Mode::empty())?;
    // The process's umask and the parent's set-group-id bit have no say.
    fs::fchown(
        &fd,
        Some(rustix::process::geteuid()),
        Some(rustix::process::getegid()),
    )?;
    fs::fchmod(&fd, Mode::from_raw_mode(IMPLIED_MODE))?;
    Directory::new(fd)
}

/// What a removal gave back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// Bytes of regular files whose last name is gone.
    pub(crate) bytes: u64,
    /// Whether a directory or a symbolic link was among it.
    pub(crate) path_changed: bool,
}

/// Removes `name` and everything below; nothing is followed. A missing name is no error.
pub(crate) fn remove_all(parent: impl AsFd, name: &[u8]) -> Result<Removed, Errno> {
    let parent = parent.as_fd();
    let stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Removed::default()),
        Err(errno) => return Err(errno),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {}
        kind => {
            fs::unlinkat(parent, name, AtFlags::empty())?;
            let last = kind == FileType::RegularFile && stat.st_nlink == 1;
            let bytes = if last {
                u64::try_from(stat.st_size).unwrap_or_default()
            } else {
                0
            };
            return Ok(Removed {
                bytes,
                path_changed: kind == FileType::Symlink,
            });
        }
    }
    let top = fs::openat(parent, name, directory_flags(), Mode::empty())?;
    let bytes = Emptying {
        top: top.as_fd(),
        moved: 0,
    }
    .empty(top.as_fd(), 0)?;
    drop(top);
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(Removed {
        bytes,
        path_changed: true,
    })
}

/// Removal of everything in a directory.
struct Emptying<'t> {
    top: BorrowedFd<'t>,
    moved: u64,
}

impl Emptying<'_> {
    fn empty(&mut self, directory: BorrowedFd<'_>, depth: usize) -> Result<u64, Errno> {
        let mut bytes = 0;
        // Names are read before anything is removed, for readdir over a changing directory may skip some; and once
        // more afterwards, because deep directories were moved to the top meanwhile.
        loop {
            let names = names(directory)?;
            if names.is_empty() {
                return Ok(bytes);
            }
            for name in names {
                bytes += self.remove(directory, &name, depth)?;
            }
        }
    }

    fn remove(&mut self, directory: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<u64, Errno> {
        let stat = fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory {
            fs::unlinkat(directory, name, AtFlags::empty())?;
            let last = kind == FileType::RegularFile && stat.st_nlink == 1;
            return Ok(if last {
                u64::try_from(stat.st_size).unwrap_or_default()
            } else {
                0
            });
        }
        // A container can nest directories without end, but descriptors and the stack have one.
        if depth >= REMOVE_DEPTH {
            return self.move_up(directory, name);
        }
        let child = fs::openat(directory, name, directory_flags(), Mode::empty())?;
        let bytes = self.empty(child.as_fd(), depth + 1)?;
        drop(child);
        fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?;
        Ok(bytes)
    }

    /// Moves a directory to the top, where it is found again.
    fn move_up(&mut self, directory: BorrowedFd<'_>, name: &[u8]) -> Result<u64, Errno> {
        loop {
            self.moved += 1;
            let place = format!(".deep-{}", self.moved);
            match fs::renameat_with(
                directory,
                name,
                self.top,
                place.as_bytes(),
                RenameFlags::NOREPLACE,
            ) {
                Ok(()) => return Ok(0),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// The names in a directory, without `.` and `..`, in the directory's order.
pub(crate) fn names(directory: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut found = Vec::new();
    for entry in fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            found.push(name.to_vec());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// The walk and openat2 must agree, so every case runs both ways.
    fn both(check: impl Fn(&mut Root, &Path)) {
        for openat2_works in [true, false] {
            let scratch = tempfile::tempdir().unwrap();
            std::fs::create_dir(scratch.path().join("outside")).unwrap();
            let inside = scratch.path().join("inside");
            std::fs::create_dir_all(inside.join("real/deep")).unwrap();
            let mut root = Root::open(&inside).unwrap();
            root.openat2_works = openat2_works;
            check(&mut root, &inside);
            assert_eq!(
                std::fs::read_dir(scratch.path().join("outside")).unwrap().count(),
                0
            );
        }
    }

    #[test]
    fn links_are_resolved_inside_the_root() {
        both(|root, inside| {
            symlink("/real", inside.join("absolute")).unwrap();
            symlink("../../../../real/deep", inside.join("above")).unwrap();
            let real = root.directory(b"real").unwrap().inode;
            assert_eq!(root.directory(b"absolute").unwrap().inode, real);
            assert_eq!(
                root.directory(b"above").unwrap().inode,
                root.directory(b"real/deep").unwrap().inode
            );
            assert_eq!(root.directory(b"").unwrap().inode, root.top().inode);
        });
    }

    #[test]
    fn a_link_that_leads_out_makes_directories_inside() {
        both(|root, inside| {
            symlink("../outside/new", inside.join("link")).unwrap();
            root.directory(b"link/sub").unwrap();
            assert!(inside.join("outside/new/sub").is_dir());
        });
    }

    #[test]
    fn loops_and_files_as_parents_are_errors() {
        both(|root, inside| {
            symlink("b", inside.join("a")).unwrap();
            symlink("a", inside.join("b")).unwrap();
            std::fs::write(inside.join("file"), "").unwrap();
            assert!(root.directory(b"a/x").is_err());
            assert!(root.directory(b"file/x").is_err());
            assert_eq!(root.existing(b"missing").unwrap_err(), Errno::NOENT);
            assert!(!inside.join("missing").exists());
        });
    }

    #[test]
    fn remove_all_reaches_any_depth() {
        let scratch = tempfile::tempdir().unwrap();
        let root = Root::open(scratch.path()).unwrap();
        // More levels than the usual limit of open files.
        let mut deepest = fs::openat(root.top(), ".", directory_flags(), Mode::empty()).unwrap();
        for _ in 0..1100 {
            fs::mkdirat(&deepest, "d", Mode::from_raw_mode(0o700)).unwrap();
            deepest = fs::openat(&deepest, "d", directory_flags(), Mode::empty()).unwrap();
        }
        fs::symlinkat("/", &deepest, "link").unwrap();
        drop(deepest);
        assert!(remove_all(root.top(), b"d").unwrap().path_changed);
        assert_eq!(names(root.top()).unwrap(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn remove_all_does_not_follow() {
        let scratch = tempfile::tempdir().unwrap();
        let keep = scratch.path().join("keep");
        std::fs::create_dir(&keep).unwrap();
        std::fs::write(keep.join("x"), "x").unwrap();
        let tree = scratch.path().join("tree/sub");
        std::fs::create_dir_all(&tree).unwrap();
        symlink(&keep, tree.join("link")).unwrap();
        std::fs::write(tree.join("file"), "12345").unwrap();
        let root = Root::open(scratch.path()).unwrap();
        assert_eq!(
            remove_all(root.top(), b"tree").unwrap(),
            Removed {
                bytes: 5,
                path_changed: true
            }
        );
        assert_eq!(remove_all(root.top(), b"tree").unwrap(), Removed::default());
        assert!(keep.join("x").exists());
    }
}
