//! Walks over directory trees: what a layer changed, and how much room a tree takes.
//!
//! Changes come in one canonical order, so that the same tree always gives the same archive: depth first, a
//! directory before its contents, an opaque marker first in its directory, then by the bytes of the name as it will
//! stand in the archive (a deletion of `x` sorts as `.wh.x`).

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::WhiteoutFormat;
use crate::differ::DiffTree;
use crate::error::{Error, ErrorKind, Result, show};
use crate::name::{OPAQUE_NAME, WHITEOUT_PREFIX};
use crate::root::{directory_flags, names};
use crate::whiteout::{is_mark, is_opaque, is_whiteout_device, stat_at};
use crate::xattrs::{self, Place};

/// Room that a tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes of regular files (apparent size) and of symbolic links' targets, each inode once: what Docker counts.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// One difference between a tree and what lies below it.
pub(crate) enum Change<'a> {
    /// `name` in the open directory `parent` is new or changed.
    Present {
        path: &'a [u8],
        parent: BorrowedFd<'a>,
        name: &'a [u8],
        stat: &'a Stat,
    },
    /// `path` is a whiteout or an opaque marker.
    Marker { path: &'a [u8] },
}

/// What a visitor did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visit {
    /// The change was taken.
    Done,
    /// The name is gone, or stands for something else than the walk saw. Nothing was taken.
    Outdated,
}

/// Takes the changes of a walk.
pub(crate) trait Visitor {
    fn change(&mut self, change: Change<'_>) -> Result<Visit>;

    /// Whether a new or changed name is of interest; when nothing in an unchanged directory is, neither is the directory.
    fn wants(&self, _path: &[u8]) -> bool {
        true
    }
}

/// The room `directory` takes, itself included.
///
/// # Errors
/// `Io`.
pub fn usage(directory: &Path) -> Result<DiskUsage> {
    let top = open_top(directory)?;
    let mut sum = Sum::default();
    sum.disk.inodes = 1;
    walk_all(&top, &mut Vec::new(), &mut sum)?;
    Ok(sum.disk)
}

/// The room of what [`crate::diff`] would write; whiteouts take none.
///
/// # Errors
/// `Io`.
pub fn diff_usage(tree: &DiffTree<'_>) -> Result<DiskUsage> {
    let mut sum = Sum::default();
    changes(tree, &mut sum)?;
    Ok(sum.disk)
}

#[derive(Default)]
struct Sum {
    disk: DiskUsage,
    linked: HashSet<(u64, u64)>,
}

impl Sum {
    fn add(&mut self, stat: &Stat) {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !directory && stat.st_nlink > 1 && !self.linked.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        self.disk.inodes += 1;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if matches!(kind, FileType::RegularFile | FileType::Symlink) {
            self.disk.bytes += u64::try_from(stat.st_size).unwrap_or_default();
        }
    }
}

impl Visitor for Sum {
    fn change(&mut self, change: Change<'_>) -> Result<Visit> {
        if let Change::Present { stat, .. } = change {
            self.add(stat);
        }
        Ok(Visit::Done)
    }
}

/// Visits everything in which `tree` differs from what is below it.
pub(crate) fn changes(tree: &DiffTree<'_>, visitor: &mut dyn Visitor) -> Result<()> {
    let mut path = Vec::new();
    match tree {
        DiffTree::Native { directory, whiteouts } => {
            let top = open_top(directory)?;
            // No container makes its root opaque, but a layer can say so.
            if is_opaque(&top, *whiteouts).map_err(|e| failed("read attributes of", &path, e))? {
                visitor.change(Change::Marker { path: OPAQUE_NAME })?;
            }
            Native {
                format: *whiteouts,
                visitor,
            }
            .directory(&top, &mut path)
        }
        DiffTree::Compare { directory, parent } => {
            let old = parent.map(open_top).transpose()?.map(Rc::new);
            Compare {
                visitor,
                pending: Vec::new(),
            }
            .directory(&Rc::new(open_top(directory)?), old.as_ref(), &mut path)
        }
    }
}

fn failed(operation: &str, path: &[u8], errno: Errno) -> Error {
    Error::os(format!("{operation} {:?}", show(path)), errno)
}

fn open_top(path: &Path) -> Result<OwnedFd> {
    fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| Error::os(format!("open directory {}", path.display()), errno))
}

/// Opens the directory that `stat` was; `None` when the name is gone or stands for something else.
pub(crate) fn open_child(
    parent: impl AsFd,
    name: &[u8],
    stat: &Stat,
    path: &[u8],
) -> Result<Option<OwnedFd>> {
    match fs::openat(&parent, name, directory_flags(), Mode::empty()) {
        Ok(child) => Ok(Some(child)),
        Err(errno) if is_outdated(&parent, name, stat, errno) => Ok(None),
        Err(errno) => Err(failed("open directory", path, errno)),
    }
}

/// Whether a system call failed because a name is gone, or stands for something else than `stat` says. A running container
/// changes its files while they are packed; that is no error.
pub(crate) fn is_outdated(parent: impl AsFd, name: &[u8], stat: &Stat, errno: Errno) -> bool {
    // Even if there is something again by now, and be it under the same inode number.
    if matches!(
        errno,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::STALE
    ) {
        return true;
    }
    let identity = |stat: &Stat| (stat.st_dev, stat.st_ino, FileType::from_raw_mode(stat.st_mode));
    match stat_at(parent, name) {
        Ok(now) => identity(&now) != identity(stat),
        Err(errno) => errno == Errno::NOENT,
    }
}

/// The names in a directory below the top. One that was removed since it was opened has none.
pub(crate) fn listed(directory: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>> {
    match names(directory) {
        Err(Errno::NOENT) if !path.is_empty() => Ok(Vec::new()),
        other => other.map_err(|e| failed("read directory", path, e)),
    }
}

/// How often a name is looked at again that stands for something else each time. A container that goes on for longer
/// has its way: the name is left out.
const ATTEMPTS: usize = 8;

/// Deepest nesting that is walked: far beyond any real tree, and safe for the stack of a thread. A container can make
/// deeper ones, but no archive could name them.
const DEPTH_MAX: usize = 512;

/// Puts `name` behind `path` while `work` runs.
pub(crate) fn below<T>(
    path: &mut Vec<u8>,
    name: &[u8],
    work: impl FnOnce(&mut Vec<u8>) -> Result<T>,
) -> Result<T> {
    let length = path.len();
    if length > 0 {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    // Counting costs less than carrying the number along: paths are short.
    if path.len() > 2 * DEPTH_MAX && path.iter().filter(|&&b| b == b'/').count() >= DEPTH_MAX {
        let text = format!(
            "directories are nested more than {DEPTH_MAX} deep: {:.60?}…",
            show(path)
        );
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let outcome = work(path);
    path.truncate(length);
    outcome
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Visits a whole tree without order, for sums.
fn walk_all(directory: &OwnedFd, path: &mut Vec<u8>, sum: &mut Sum) -> Result<()> {
    for name in listed(directory, path)? {
        below(path, &name, |path| match add(directory, &name, path, sum)? {
            Some(child) => walk_all(&child, path, sum),
            None => Ok(()),
        })?;
    }
    Ok(())
}

/// Adds a name; gives the directory to look into.
fn add(directory: &OwnedFd, name: &[u8], path: &[u8], sum: &mut Sum) -> Result<Option<OwnedFd>> {
    let stat = match stat_at(directory, name) {
        Ok(stat) => stat,
        // A running container may remove files while we look.
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed("stat", path, errno)),
    };
    sum.add(&stat);
    match is_directory(&stat) {
        true => open_child(directory, name, &stat, path),
        false => Ok(None),
    }
}

/// A name in a directory, and how it sorts.
struct Item {
    sort: Vec<u8>,
    name: Vec<u8>,
    what: What,
}

enum What {
    Deleted,
    Present(Stat),
    /// Compare: in both trees, unchanged unless something below is.
    Same(Stat),
}

impl Item {
    fn deleted(name: Vec<u8>) -> Self {
        Self {
            sort: [WHITEOUT_PREFIX, &name].concat(),
            name,
            what: What::Deleted,
        }
    }

    fn present(name: Vec<u8>, stat: Stat) -> Self {
        Self {
            sort: name.clone(),
            name,
            what: What::Present(stat),
        }
    }
}

/// A file whose name is a whiteout's cannot be told in a layer.
fn cannot_be_named(path: &[u8], name: &[u8]) -> bool {
    let reserved = name.starts_with(WHITEOUT_PREFIX);
    if reserved {
        tracing::warn!(
            directory = show(path),
            name = show(name),
            "name is reserved for whiteouts: left out"
        );
    }
    reserved
}

/// What telling the visitor of a name came to.
enum Told<D> {
    Done,
    /// As [`Visit::Outdated`].
    Outdated,
    /// It is a directory to look into.
    Into(D),
}

/// A directory that holds exactly the changes.
struct Native<'v> {
    format: WhiteoutFormat,
    visitor: &'v mut dyn Visitor,
}

impl Native<'_> {
    // Only this function calls itself, and has little on the stack.
    fn directory(&mut self, directory: &OwnedFd, path: &mut Vec<u8>) -> Result<()> {
        for item in self.items(directory, path)? {
            if let Some((name, child)) = self.tell(directory, item, path)? {
                below(path, &name, |path| self.directory(&child, path))?;
            }
        }
        Ok(())
    }

    fn items(&self, directory: &OwnedFd, path: &[u8]) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        for name in listed(directory, path)? {
            if !is_mark(&name, self.format) && !cannot_be_named(path, &name) {
                items.extend(self.item(directory, name)?);
            }
        }
        items.sort_unstable_by(|a, b| a.sort.cmp(&b.sort));
        Ok(items)
    }

    /// Tells the visitor what a name is, until that is still so. Gives the directory to look into.
    fn tell(
        &mut self,
        directory: &OwnedFd,
        mut item: Item,
        path: &mut Vec<u8>,
    ) -> Result<Option<(Vec<u8>, OwnedFd)>> {
        for _ in 0..ATTEMPTS {
            match self.visit(directory, &item, path)? {
                Told::Done => return Ok(None),
                Told::Into(child) => return Ok(Some((item.name, child))),
                Told::Outdated => {}
            }
            match self.item(directory, item.name)? {
                Some(now) => item = now,
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    /// What a name is now; `None` when it is gone. A deletion of something below is a name, too, so that nothing is missed.
    fn item(&self, directory: &OwnedFd, name: Vec<u8>) -> Result<Option<Item>> {
        let stat = match stat_at(directory, &name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed("stat", &name, errno)),
        };
        let deleted = self.format != WhiteoutFormat::Delete && is_whiteout_device(&stat);
        Ok(Some(if deleted {
            Item::deleted(name)
        } else {
            Item::present(name, stat)
        }))
    }

    fn visit(&mut self, directory: &OwnedFd, item: &Item, path: &mut Vec<u8>) -> Result<Told<OwnedFd>> {
        let What::Present(stat) = &item.what else {
            let marker = below(path, &item.sort, |path| {
                self.visitor.change(Change::Marker { path })
            });
            return marker.map(|_| Told::Done);
        };
        below(path, &item.name, |path| {
            // Before it is told, so that what is told can be looked into.
            let child = match is_directory(stat) {
                true => open_child(directory, &item.name, stat, path)?,
                false => None,
            };
            if is_directory(stat) && child.is_none() {
                return Ok(Told::Outdated);
            }
            let visit = self.visitor.change(Change::Present {
                path,
                parent: directory.as_fd(),
                name: &item.name,
                stat,
            })?;
            Ok(match (visit, child) {
                (Visit::Outdated, _) => Told::Outdated,
                (Visit::Done, None) => Told::Done,
                (Visit::Done, Some(child)) => {
                    if is_opaque(&child, self.format).map_err(|e| failed("read attributes of", path, e))? {
                        below(path, OPAQUE_NAME, |path| {
                            self.visitor.change(Change::Marker { path })
                        })?;
                    }
                    Told::Into(child)
                }
            })
        })
    }
}

/// Two trees side by side.
struct Compare<'v> {
    visitor: &'v mut dyn Visitor,
    /// Unchanged directories above the current place that were not visited yet; they are when something below is.
    pending: Vec<Pending>,
}

struct Pending {
    path: Vec<u8>,
    parent: Rc<OwnedFd>,
    name: Vec<u8>,
    stat: Stat,
}

/// A directory of two trees that is to be looked into.
struct Inside {
    name: Vec<u8>,
    new: Rc<OwnedFd>,
    old: Option<Rc<OwnedFd>>,
    /// How many directories were pending above it.
    pending: usize,
}

impl Compare<'_> {
    // Only this function calls itself, and has little on the stack.
    fn directory(&mut self, new: &Rc<OwnedFd>, old: Option<&Rc<OwnedFd>>, path: &mut Vec<u8>) -> Result<()> {
        for item in items(new, old, path)? {
            if let Some(inside) = self.tell(new, old, item, path)? {
                below(path, &inside.name, |path| {
                    self.directory(&inside.new, inside.old.as_ref(), path)
                })?;
                self.pending.truncate(inside.pending);
            }
        }
        Ok(())
    }

    /// Tells the visitor what a name is, until that is still so. Gives the directory to look into.
    fn tell(
        &mut self,
        new: &Rc<OwnedFd>,
        old: Option<&Rc<OwnedFd>>,
        mut item: Item,
        path: &mut Vec<u8>,
    ) -> Result<Option<Inside>> {
        for _ in 0..ATTEMPTS {
            match self.visit(new, old, &item, path)? {
                Told::Done => return Ok(None),
                Told::Into(inside) => return Ok(Some(inside)),
                Told::Outdated => {}
            }
            let known = match old.map(|old| stat_at(old, &item.name)) {
                None | Some(Err(Errno::NOENT)) => false,
                Some(Ok(_)) => true,
                Some(Err(errno)) => return Err(failed("stat", &item.name, errno)),
            };
            match look(new, old, known, item.name)? {
                Some(now) => item = now,
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    fn visit(
        &mut self,
        new: &Rc<OwnedFd>,
        old: Option<&Rc<OwnedFd>>,
        item: &Item,
        path: &mut Vec<u8>,
    ) -> Result<Told<Inside>> {
        match &item.what {
            What::Deleted => {
                self.flush()?;
                below(path, &item.sort, |path| {
                    self.visitor.change(Change::Marker { path })
                })
                .map(|_| Told::Done)
            }
            What::Present(stat) | What::Same(stat) => {
                let same = matches!(item.what, What::Same(_));
                below(path, &item.name, |path| {
                    self.present(new, old, path, &item.name, stat, same)
                })
            }
        }
    }

    fn present(
        &mut self,
        new: &Rc<OwnedFd>,
        old: Option<&Rc<OwnedFd>>,
        path: &[u8],
        name: &[u8],
        stat: &Stat,
        same: bool,
    ) -> Result<Told<Inside>> {
        // Before it is told, so that what is told can be looked into.
        let child = match is_directory(stat) {
            true => open_child(new, name, stat, path)?,
            false => None,
        };
        if is_directory(stat) && child.is_none() {
            return Ok(Told::Outdated);
        }
        if !same && self.visitor.wants(path) {
            self.flush()?;
            let visit = self.visitor.change(Change::Present {
                path,
                parent: new.as_fd(),
                name,
                stat,
            })?;
            if visit == Visit::Outdated {
                return Ok(Told::Outdated);
            }
        }
        let Some(child) = child else {
            return Ok(Told::Done);
        };
        let pending = self.pending.len();
        if same {
            self.pending.push(Pending {
                path: path.to_vec(),
                parent: Rc::clone(new),
                name: name.to_vec(),
                stat: *stat,
            });
        }
        let old = match old.map(|old| fs::openat(old, name, directory_flags(), Mode::empty())) {
            None | Some(Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO)) => None,
            Some(Ok(fd)) => Some(Rc::new(fd)),
            Some(Err(errno)) => return Err(failed("open directory", path, errno)),
        };
        Ok(Told::Into(Inside {
            name: name.to_vec(),
            new: Rc::new(child),
            old,
            pending,
        }))
    }

    fn flush(&mut self) -> Result<()> {
        for above in self.pending.drain(..) {
            // One that is gone by now is made by what is in it.
            self.visitor.change(Change::Present {
                path: &above.path,
                parent: above.parent.as_fd(),
                name: &above.name,
                stat: &above.stat,
            })?;
        }
        Ok(())
    }
}

/// The union of two directories, sorted, with what is of interest: changed names and directories to look into.
fn items(new: &OwnedFd, old: Option<&Rc<OwnedFd>>, path: &[u8]) -> Result<Vec<Item>> {
    let mut gone: HashSet<Vec<u8>> = match old {
        Some(old) => listed(old, path)?.into_iter().collect(),
        None => HashSet::new(),
    };
    let mut items = Vec::new();
    for name in listed(new, path)? {
        let known = gone.remove(&name);
        if !cannot_be_named(path, &name) {
            items.extend(look(new, old, known, name)?);
        }
    }
    items.extend(
        gone.into_iter()
            .filter(|name| !cannot_be_named(path, name))
            .map(Item::deleted),
    );
    items.sort_unstable_by(|a, b| a.sort.cmp(&b.sort));
    Ok(items)
}

/// What there is to say of a name in `new`; `known` says that `old` has it, too.
fn look(new: &OwnedFd, old: Option<&Rc<OwnedFd>>, known: bool, name: Vec<u8>) -> Result<Option<Item>> {
    let old = old.filter(|_| known);
    for _ in 0..ATTEMPTS {
        let stat = match stat_at(new, &name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(known.then(|| Item::deleted(name))),
            Err(errno) => return Err(failed("stat", &name, errno)),
        };
        let same = match old.map(|old| is_same(new, old, &name, &stat)) {
            None => false,
            Some(Ok(same)) => same,
            Some(Err(errno)) if is_outdated(new, &name, &stat, errno) => continue,
            Some(Err(errno)) => return Err(failed("compare", &name, errno)),
        };
        return Ok(match (same, is_directory(&stat)) {
            (true, false) => None,
            (true, true) => Some(Item {
                sort: name.clone(),
                name,
                what: What::Same(stat),
            }),
            (false, _) => Some(Item::present(name, stat)),
        });
    }
    Ok(None)
}

/// Whether a name stands for the same thing in both trees. Contents are taken as equal when size and time of change
/// are; a directory's size and time say nothing about itself. A file that got another name counts as changed, so that
/// both names stand in one archive and stay one file; an overlay, which copies it up to link it, says the same.
///
/// Trees on different devices are subvolumes, one a snapshot of the other: there a file that was never touched keeps its
/// inode number and the time of its inode's change, which nobody can set, so that most are told by one stat(2). The few
/// others are read when size and time are equal: a package manager sets times as it likes.
pub(crate) fn is_same(new: &OwnedFd, old: &OwnedFd, name: &[u8], stat: &Stat) -> Result<bool, Errno> {
    let before = stat_at(old, name)?;
    if (stat.st_dev, stat.st_ino) == (before.st_dev, before.st_ino) {
        return Ok(true);
    }
    let snapshot = stat.st_dev != before.st_dev;
    let inode = |stat: &Stat| {
        (
            stat.st_ino,
            stat.st_ctime,
            stat.st_ctime_nsec,
            stat.st_mode,
            stat.st_size,
        )
    };
    if snapshot && inode(stat) == inode(&before) {
        return Ok(true);
    }
    if (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev)
        != (before.st_mode, before.st_uid, before.st_gid, before.st_rdev)
    {
        return Ok(false);
    }
    let kind = FileType::from_raw_mode(stat.st_mode);
    let stamp = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec, stat.st_size);
    let linked = stat.st_nlink > before.st_nlink;
    if kind != FileType::Directory && (linked || stamp(stat) != stamp(&before)) {
        return Ok(false);
    }
    if kind == FileType::Symlink
        && fs::readlinkat(new, name, Vec::new())? != fs::readlinkat(old, name, Vec::new())?
    {
        return Ok(false);
    }
    if xattrs::read(Place::Name(new.as_fd(), name))? != xattrs::read(Place::Name(old.as_fd(), name))? {
        return Ok(false);
    }
    Ok(!snapshot || kind != FileType::RegularFile || same_bytes(new, old, name)?)
}

/// Whether two files of one size hold the same.
fn same_bytes(new: &OwnedFd, old: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = |directory| fs::openat(directory, name, flags, Mode::empty()).map(std::fs::File::from);
    let (new, old) = (open(new)?, open(old)?);
    let mut buffers = [vec![0; COMPARED], vec![0; COMPARED]];
    let [ours, theirs] = &mut buffers;
    let mut at = 0;
    loop {
        let read =
            |file, buffer: &mut [u8]| rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *buffer, at));
        let (n, m) = (read(&new, ours)?, read(&old, theirs)?);
        if n != m || ours[..n] != theirs[..m] {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
        at += n as u64;
    }
}

/// Bytes compared at once.
const COMPARED: usize = 64 * 1024;
