//! An inode the kernel knows: where it lies in the layers, and what is open of it.
//!
//! A directory has one [`Slot`] for each layer that has it; upper ones come by copy-up, lower ones never change. Any
//! other file lies in one layer, found by a name in a directory ([`Place`]) and not by a descriptor, of which there
//! would be too many. Once it has no name (unlinked, or made without one) a descriptor keeps it.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};

use rustix::fs::{FileType, Stat};

use super::descriptors::Kept;
use super::file::FileHandle;
use super::layer::UPPER;
use super::lock::{lock, read, write};
use super::table::{Ending, Key, Table};

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u64,
    /// To leave it when nobody knows the node any more.
    table: Weak<Table>,
    pub(super) kind: FileType,
    /// `st_ino`.
    pub(super) shown_ino: AtomicU64,
    /// References that the kernel, children and handles hold; see `table`.
    pub(super) lookups: AtomicU64,
    pub(super) key: Mutex<Option<Key>>,
    pub(super) place: RwLock<Place>,
    /// It has no name any more.
    pub(super) removed: AtomicBool,
    /// Held by the one thread that copies it up.
    pub(super) copying: Mutex<()>,
    /// Open handles, so that a copy-up can exchange their descriptors.
    pub(super) handles: Mutex<Vec<Weak<FileHandle>>>,
    /// Descriptor for requests that name no handle; lies where the file lies.
    pub(super) kept: OnceLock<Arc<Kept>>,
    /// It is known to have no `security.capability`, which the kernel asks for at each write.
    pub(super) no_capability: AtomicBool,
    /// Its mode became another one, and nobody was told.
    pub(super) lost_privileges: AtomicBool,
    pub(super) directory: Option<Box<Directory>>,
    /// Set when a file without a name is given up. Dropped after all else: keep it last.
    pub(super) ending: OnceLock<Ending>,
}

/// Where a file is.
#[derive(Debug)]
pub(super) struct Place {
    /// `None` for the root, and for a file that never had a name.
    pub(super) parent: Option<Known>,
    pub(super) name: Box<OsStr>,
    /// The layer it lies in (not used for directories).
    pub(super) layer: u16,
    /// Keeps a file of the upper directory that has no (known) name; used instead of the name.
    pub(super) fd: Option<Arc<OwnedFd>>,
    /// Further names of a file in the upper directory that are known.
    pub(super) aliases: Vec<(Known, Box<OsStr>)>,
}

/// What a directory has besides.
#[derive(Debug)]
pub(super) struct Directory {
    /// Read: names are looked up; write: names are made and removed.
    pub(super) names: RwLock<()>,
    /// Grows with each change of a name, so that cached listings know.
    version: AtomicU64,
    /// Grows when a name may have come.
    additions: AtomicU64,
    pub(super) upper: OnceLock<Slot>,
    /// Topmost first.
    pub(super) lower: Box<[Slot]>,
    /// Mode and group as last seen: new files may inherit them.
    pub(super) mode: AtomicU32,
    pub(super) gid: AtomicU32,
    /// Whether new files inherit an access control list; [`UNKNOWN`], 0 or 1.
    pub(super) default_acl: AtomicU8,
    /// How many subdirectories a merged directory has; [`UNCOUNTED`] before somebody asked.
    pub(super) subdirectories: AtomicU32,
}

pub(super) const UNKNOWN: u8 = 2;
pub(super) const UNCOUNTED: u32 = u32::MAX;

/// A directory in one layer.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) layer: u16,
    pub(super) dev: u64,
    pub(super) ino: u64,
    /// Whether it has files `.wh.*`; found out when it first matters.
    pub(super) dot_whiteouts: AtomicU8,
    /// Whether it may have whiteouts that are attributes; the same.
    pub(super) xattr_whiteouts: AtomicU8,
    pub(super) kept: Arc<Kept>,
}

impl Slot {
    pub(super) fn new(layer: u16, stat: &Stat) -> Self {
        Self {
            layer,
            dev: stat.st_dev,
            ino: stat.st_ino,
            dot_whiteouts: AtomicU8::new(UNKNOWN),
            xattr_whiteouts: AtomicU8::new(UNKNOWN),
            kept: Arc::default(),
        }
    }

    /// A directory that we make: it has nothing but what we put into it.
    pub(super) fn of_ours(stat: &Stat) -> Self {
        Self {
            dot_whiteouts: AtomicU8::new(0),
            xattr_whiteouts: AtomicU8::new(0),
            ..Self::new(UPPER, stat)
        }
    }
}

impl Directory {
    pub(super) fn new(upper: Option<Slot>, lower: Vec<Slot>, stat: &Stat) -> Box<Self> {
        Box::new(Self {
            names: RwLock::default(),
            version: AtomicU64::new(0),
            additions: AtomicU64::new(0),
            upper: upper.map_or_else(OnceLock::new, OnceLock::from),
            lower: lower.into_boxed_slice(),
            mode: AtomicU32::new(stat.st_mode),
            gid: AtomicU32::new(stat.st_gid),
            default_acl: AtomicU8::new(UNKNOWN),
            subdirectories: AtomicU32::new(UNCOUNTED),
        })
    }

    /// Topmost first.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.upper.get().into_iter().chain(&self.lower)
    }

    pub(super) fn slot(&self, layer: u16) -> Option<&Slot> {
        self.slots().find(|slot| slot.layer == layer)
    }

    /// Whether no lower layer has this directory.
    pub(super) fn is_pure_upper(&self) -> bool {
        self.lower.is_empty()
    }

    pub(super) fn is_merged(&self) -> bool {
        usize::from(self.upper.get().is_some()) + self.lower.len() > 1
    }

    /// A name went, or leads to another file.
    pub(super) fn changed(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }

    /// A name came.
    pub(super) fn gained(&self) {
        self.additions.fetch_add(1, Ordering::Release);
        self.changed();
    }

    pub(super) fn additions(&self) -> u64 {
        self.additions.load(Ordering::Acquire)
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// A subdirectory came (1) or went (-1).
    pub(super) fn count(&self, change: i32) {
        let _ = self
            .subdirectories
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n != UNCOUNTED).then(|| n.saturating_add_signed(change))
            });
    }
}

impl Node {
    pub(super) fn new(
        (id, table): (u64, &Weak<Table>),
        kind: FileType,
        shown_ino: u64,
        place: Place,
        directory: Option<Box<Directory>>,
    ) -> Self {
        Self {
            id,
            table: Weak::clone(table),
            kind,
            shown_ino: AtomicU64::new(shown_ino),
            lookups: AtomicU64::new(0),
            key: Mutex::default(),
            place: RwLock::new(place),
            removed: AtomicBool::new(false),
            copying: Mutex::default(),
            handles: Mutex::default(),
            kept: OnceLock::new(),
            no_capability: AtomicBool::new(false),
            lost_privileges: AtomicBool::new(false),
            directory,
            ending: OnceLock::new(),
        }
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.directory.is_some()
    }

    pub(super) fn ino(&self) -> u64 {
        self.shown_ino.load(Ordering::Relaxed)
    }

    /// An open handle, if there is one.
    pub(super) fn some_handle(&self) -> Option<Arc<FileHandle>> {
        lock(&self.handles).iter().find_map(Weak::upgrade)
    }

    pub(super) fn parent(&self) -> Option<Arc<Self>> {
        read(&self.place)
            .parent
            .as_ref()
            .map(|parent| Arc::clone(parent.node()))
    }

    /// Whether somebody has it open, as far as that can be known.
    pub(super) fn may_be_open(&self) -> bool {
        self.kept.get().is_some() || self.some_handle().is_some()
    }

    /// Whether `self` is `other` or lies below it.
    pub(super) fn is_within(self: &Arc<Self>, other: &Arc<Self>) -> bool {
        let mut here = Arc::clone(self);
        loop {
            if Arc::ptr_eq(&here, other) {
                return true;
            }
            match here.parent() {
                Some(parent) => here = parent,
                None => return false,
            }
        }
    }

    /// The file has the name `name` in `parent` now, and no other that mattered.
    pub(super) fn move_to(&self, parent: &Arc<Self>, name: &OsStr) {
        let old = write(&self.place).set_name(parent, name);
        drop(old);
    }
}

impl Place {
    pub(super) fn new(parent: &Arc<Node>, name: &OsStr, layer: u16) -> Self {
        Self {
            parent: Some(Known::new(parent)),
            name: name.into(),
            layer,
            fd: None,
            aliases: Vec::new(),
        }
    }

    pub(super) fn nameless(fd: Option<Arc<OwnedFd>>) -> Self {
        Self {
            parent: None,
            name: OsStr::new("").into(),
            layer: UPPER,
            fd,
            aliases: Vec::new(),
        }
    }

    pub(super) fn is(&self, parent: &Arc<Node>, name: &OsStr) -> bool {
        self.fd.is_none() && *self.name == *name && self.parent.as_ref().is_some_and(|known| known.is(parent))
    }

    /// The file has this name now. Gives the old parent, to be let go without a lock.
    #[must_use = "to be dropped when no lock is held"]
    fn set_name(&mut self, parent: &Arc<Node>, name: &OsStr) -> Option<Known> {
        self.name = name.into();
        self.parent.replace(Known::new(parent))
    }

    /// Notes a further name.
    pub(super) fn learn(&mut self, parent: &Arc<Node>, name: &OsStr) {
        if self.fd.take().is_some() {
            let _none = self.set_name(parent, name);
        } else if !self.is(parent, name)
            && !self
                .aliases
                .iter()
                .any(|(known, n)| known.is(parent) && **n == *name)
        {
            self.aliases.push((Known::new(parent), name.into()));
        }
    }

    /// One name is gone. Whether none is left that is known.
    pub(super) fn unlearn(&mut self, parent: &Arc<Node>, name: &OsStr) -> bool {
        if self.is(parent, name) {
            match self.aliases.pop() {
                Some((parent, name)) => {
                    self.parent = Some(parent);
                    self.name = name;
                }
                None => return true,
            }
        } else {
            self.aliases
                .retain(|(known, n)| !(known.is(parent) && **n == *name));
        }
        false
    }

    /// One name became another.
    pub(super) fn renamed(&mut self, from: (&Arc<Node>, &OsStr), to: (&Arc<Node>, &OsStr)) {
        if self.is(from.0, from.1) {
            let _old = self.set_name(to.0, to.1);
        } else {
            self.unlearn(from.0, from.1);
            self.learn(to.0, to.1);
        }
    }
}

/// A counted reference: its node stays in the table, as if the kernel knew it. Held by children and open handles, so
/// that there is never a second node for a directory that one of them uses.
#[derive(Debug)]
pub(super) struct Known {
    node: Option<Arc<Node>>,
}

impl Known {
    /// One reference more to a node that is known at this moment.
    pub(super) fn new(node: &Arc<Node>) -> Self {
        node.lookups.fetch_add(1, Ordering::Relaxed);
        Self::taken(Arc::clone(node))
    }

    /// Takes over a reference that was counted already.
    pub(super) fn taken(node: Arc<Node>) -> Self {
        Self { node: Some(node) }
    }

    #[expect(clippy::expect_used, reason = "empty only while it is dropped")]
    pub(super) fn node(&self) -> &Arc<Node> {
        self.node
            .as_ref()
            .expect("a reference is empty only while it is dropped")
    }

    fn is(&self, node: &Arc<Node>) -> bool {
        Arc::ptr_eq(self.node(), node)
    }
}

/// The last reference to a deep tree ends it from below, one ancestor after the other, not by recursion.
impl Drop for Known {
    fn drop(&mut self) {
        thread_local! {
            static PENDING: RefCell<Option<Vec<Arc<Node>>>> = const { RefCell::new(None) };
        }
        let Some(node) = self.node.take() else { return };
        let first = PENDING.with_borrow_mut(|pending| match pending {
            Some(pending) => {
                pending.push(node);
                None
            }
            None => {
                *pending = Some(Vec::new());
                Some(node)
            }
        });
        let mut next = first;
        if next.is_none() {
            return;
        }
        while let Some(node) = next {
            if let Some(table) = node.table.upgrade() {
                table.forget(&node, 1);
            }
            drop(node);
            next = PENDING.with_borrow_mut(|pending| pending.as_mut().and_then(Vec::pop));
        }
        PENDING.with_borrow_mut(|pending| *pending = None);
    }
}
