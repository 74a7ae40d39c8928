//! The overlay file system itself: several read-only layers and one writable directory shown as one tree.
//!
//! Called by `adapter`, one call a FUSE request, from as many threads as it likes: every method takes `&self` and
//! blocks only on system calls of its own inode. Knows no FUSE library.

mod at;
mod attr;
mod config;
mod copy_up;
mod create;
mod descriptors;
mod dir;
mod file;
mod handles;
mod layer;
mod listing;
mod lock;
mod node;
mod numbers;
mod proc;
mod remove;
mod rename;
mod resolve;
mod table;
mod types;
mod unmapped;
mod work;
mod xattr;

use std::ffi::OsStr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, RwLock, Weak};

use rustix::fs::{self, FileType, Mode};
use rustix::io::Errno;

pub use config::{Config, IdMap, OVERFLOW_ID, XattrNamespace, XattrPermissions};
pub use file::FileHandle;
pub use types::{Attr, Caller, DirEntry, Entry, Lookup, Opened, ROOT, SetAttr, SetTime, StatFs, Time};

use descriptors::{Descriptors, Kept};
use dir::DirectoryHandle;
use handles::Handles;
use layer::{Layer, Marks, UPPER};
use node::{Directory, Node, Place, Slot};
use numbers::{Devices, Origins};
use table::Table;
use unmapped::Unmapped;
use work::Work;

/// Outcome of a request.
pub type Result<T> = std::result::Result<T, Errno>;

/// A mounted overlay.
#[derive(Debug)]
pub struct Overlay {
    config: Config,
    marks: Marks,
    /// Topmost first; the first is the upper directory if there is a work directory.
    layers: Vec<Layer>,
    work: Option<Work>,
    /// Whose files are that we make.
    own: (u32, u32),
    /// `None` where every owner has a number.
    unmapped: Option<Unmapped>,
    table: Arc<Table>,
    files: Handles<FileHandle>,
    directories: Handles<DirectoryHandle>,
    descriptors: Descriptors,
    devices: Devices,
    origins: Origins,
    /// Held in writing while a directory of the upper layer gets another path.
    tree: RwLock<()>,
    renames: Mutex<()>,
    /// Nodes whose mode became another one, and nobody was told.
    lost_privileges: AtomicUsize,
}

/// Why an overlay could not be put together.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {errno}")]
pub struct NewError {
    what: String,
    /// What the system call said.
    pub errno: Errno,
}

impl NewError {
    fn new(what: impl Into<String>, errno: Errno) -> Self {
        Self {
            what: what.into(),
            errno,
        }
    }
}

impl Overlay {
    /// Opens the layers and empties the work directory.
    ///
    /// Sets the process's umask to 0 and needs it to stay so: files get the mode that a request says.
    ///
    /// # Errors
    /// A directory cannot be opened; upper and work directory lie on different file systems (`XDEV`) or one in the other
    /// (`INVAL`); another mount uses one of them (`AGAIN`).
    pub fn new(config: Config) -> std::result::Result<Self, NewError> {
        let marks = Marks::of(config.xattr_namespace);
        let upper = config.upper.iter().map(|(upper, _)| upper);
        let layers = upper
            .chain(&config.lower)
            .map(|path| Layer::open(path, &marks))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        if layers.len() > usize::from(u16::MAX) {
            return Err(NewError::new("too many layers", Errno::INVAL));
        }
        let top = layers
            .first()
            .ok_or_else(|| NewError::new("no layer", Errno::INVAL))?;
        let device = top.root_stat.st_dev;
        let work = match &config.upper {
            Some((_, work)) => Some(Work::open(work, &layers)?),
            None => None,
        };
        rustix::process::umask(Mode::empty());
        let overlay = Self {
            marks,
            own: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
            unmapped: Unmapped::here(),
            table: Table::new(),
            files: Handles::new(),
            directories: Handles::new(),
            descriptors: Descriptors::new(config.directory_descriptors),
            devices: Devices::new(device),
            origins: Origins::default(),
            tree: RwLock::default(),
            renames: Mutex::default(),
            lost_privileges: AtomicUsize::new(0),
            work,
            layers,
            config,
        };
        overlay.make_root();
        // Learns mode and group, which new files may inherit.
        let root = overlay.getattr(ROOT, None);
        root.map_err(|errno| NewError::new("attributes of the root directory", errno))?;
        Ok(overlay)
    }

    fn make_root(&self) {
        let slot = |(index, layer): (usize, &Layer)| Slot {
            kept: Kept::permanent(Arc::clone(&layer.root)),
            ..Slot::new(u16::try_from(index).unwrap_or(u16::MAX), &layer.root_stat)
        };
        let mut slots: Vec<Slot> = self.layers.iter().enumerate().map(slot).collect();
        let stat = &self.layers[0].root_stat;
        let upper = self.work.is_some().then(|| slots.remove(0));
        let shown = slots
            .first()
            .or(upper.as_ref())
            .map_or((0, 0), |slot| (slot.dev, slot.ino));
        let directory = Directory::new(upper, slots, stat);
        let key = self.table.key(UPPER, stat.st_dev, stat.st_ino);
        let ino = self.devices.ino(shown.0, shown.1);
        let make = |id: (u64, &Weak<Table>)| {
            Node::new(
                id,
                FileType::Directory,
                ino,
                Place::nameless(None),
                Some(directory),
            )
        };
        self.table.acquire(key, |_| true, make);
    }

    fn node(&self, id: u64) -> Result<Arc<Node>> {
        self.table.get(id).ok_or(Errno::STALE)
    }

    fn directory_node(&self, id: u64) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        if node.is_directory() {
            Ok(node)
        } else {
            Err(Errno::NOTDIR)
        }
    }

    #[expect(clippy::unused_self, reason = "reads as a question to the overlay")]
    fn directory_of<'a>(&self, node: &'a Node) -> Result<&'a Directory> {
        node.directory.as_deref().ok_or(Errno::NOTDIR)
    }

    /// How many inodes the kernel knows at this moment.
    pub fn inodes(&self) -> usize {
        self.table.len()
    }

    /// Whether files that have lost their names are still held, and with them their room on the disk.
    pub fn holds_removed_files(&self) -> bool {
        self.table.has_removed()
    }

    /// Grows with each such file that is held no more.
    pub fn removed_files_let_go(&self) -> u64 {
        self.table.ended()
    }

    /// What it was made of.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Finds `name` in `parent`; `Found` is owed one `forget`.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Lookup> {
        self.do_lookup(parent, name)
    }

    /// The kernel dropped `count` references to an inode.
    pub fn forget(&self, node: u64, count: u64) {
        // Dropped after the table let it go: it may be the last of its ancestors' children.
        if let Some(node) = self.table.get(node) {
            self.table.forget(&node, count);
        }
    }

    /// Attributes; `handle` is preferred when given.
    pub fn getattr(&self, node: u64, handle: Option<u64>) -> Result<Attr> {
        self.do_getattr(node, handle)
    }

    /// Changes attributes and gives the new ones.
    pub fn setattr(&self, node: u64, handle: Option<u64>, change: &SetAttr) -> Result<Attr> {
        self.do_setattr(node, handle, change)
    }

    /// Target of a symbolic link.
    pub fn readlink(&self, node: u64) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        if node.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        self.with(&node, |at, _| at.read_link())
    }

    /// Makes a file, device, pipe or socket; `mode` as `st_mode`, `rdev` in the kernel's 32-bit form.
    pub fn mknod(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32, rdev: u32) -> Result<Entry> {
        self.do_mknod(caller, parent, name, mode, rdev)
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32) -> Result<Entry> {
        self.do_mkdir(caller, parent, name, mode)
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, caller: &Caller, parent: u64, name: &OsStr, target: &OsStr) -> Result<Entry> {
        self.do_symlink(caller, parent, name, target)
    }

    /// Gives `node` another name.
    pub fn link(&self, node: u64, parent: u64, name: &OsStr) -> Result<Entry> {
        self.do_link(node, parent, name)
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        self.do_unlink(parent, name)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        self.do_rmdir(parent, name)
    }

    /// Renames; `flags` as in renameat2(2).
    pub fn rename(
        &self,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        self.do_rename(parent, name, new_parent, new_name, flags)
    }

    /// Opens a file; `flags` as in open(2).
    pub fn open(&self, node: u64, flags: u32) -> Result<Opened> {
        self.do_open(node, flags)
    }

    /// Makes and opens a regular file. An existing one is `EXIST` if `flags` say so, else opened.
    pub fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        self.do_create(caller, parent, name, mode, flags)
    }

    /// The same for a kernel that opens by itself and so never releases: nothing stays open but what the node may keep.
    pub fn create_handleless(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: u32,
    ) -> Result<Entry> {
        self.do_create_handleless(caller, parent, name, mode, flags)
    }

    /// The same without a name.
    pub fn tmpfile_handleless(&self, caller: &Caller, parent: u64, mode: u32, flags: u32) -> Result<Entry> {
        self.do_tmpfile_handleless(caller, parent, mode, flags)
    }

    /// Makes and opens a regular file without a name.
    pub fn tmpfile(&self, caller: &Caller, parent: u64, mode: u32, flags: u32) -> Result<(Entry, Opened)> {
        self.do_tmpfile(caller, parent, mode, flags)
    }

    /// The number that stands for the file of `node` where a request names no handle, in all calls that take the handle
    /// of a file. The file is copied up by the first call that writes, and needs no release.
    ///
    /// For a kernel that was told (by `ENOSYS`) not to ask for opens; it then must truncate by `setattr` itself. Its
    /// copy-ups are seen late, so [`Opened::attributes_changed`] is told by nobody: a file of a lower layer with several
    /// names keeps its old number of links in the kernel's cache until that is renewed.
    pub fn handle_of_node(node: u64) -> u64 {
        node | file::HANDLE_OF_NODE
    }

    /// An open file, to read and write at its descriptor directly.
    pub fn handle(&self, handle: u64) -> Result<Arc<FileHandle>> {
        self.file(handle)
    }

    /// Reads.
    pub fn read(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.do_read(handle, offset, buffer)
    }

    /// Writes; `kill_privileges` as FUSE's write flag of that name.
    pub fn write(&self, handle: u64, offset: u64, data: &[u8], kill_privileges: bool) -> Result<usize> {
        self.do_write(handle, offset, data, kill_privileges)
    }

    /// To be called before the adapter writes to a descriptor itself with FUSE's flag to kill privileges.
    pub fn kill_privileges(&self, handle: u64) -> Result<()> {
        self.do_kill_privileges(handle)
    }

    /// Whether a write, allocation or copy since the last such question took set-user-id or set-group-id away from the
    /// file. The kernel keeps the old mode, and starts programs by it, until it is told.
    pub fn lost_privileges(&self, node: u64) -> bool {
        self.was_privileged(node)
    }

    /// A descriptor of the file was closed. There is nothing to do: the adapter may tell the kernel not to ask.
    pub fn flush(&self, handle: u64) -> Result<()> {
        self.file(handle).map(drop)
    }

    /// Makes the file durable.
    pub fn fsync(&self, handle: u64, data_only: bool) -> Result<()> {
        self.do_fsync(handle, data_only)
    }

    /// The last descriptor of the handle was closed.
    pub fn release(&self, handle: u64) {
        self.do_release(handle);
    }

    /// Opens a directory.
    pub fn opendir(&self, node: u64) -> Result<u64> {
        self.do_opendir(node)
    }

    /// Lists names after `offset` (0: from the start) until `fill` says `false`: that entry was not taken.
    /// Begins with `.` and `..`.
    pub fn readdir(
        &self,
        handle: u64,
        offset: u64,
        fill: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<()> {
        self.do_readdir(handle, offset, fill)
    }

    /// The same with attributes. An entry given with `Some` and taken is owed one `forget`; `.` and `..` have none
    /// (FUSE's node id 0).
    pub fn readdirplus(
        &self,
        handle: u64,
        offset: u64,
        fill: &mut dyn FnMut(&DirEntry<'_>, Option<&Entry>) -> bool,
    ) -> Result<()> {
        self.do_readdirplus(handle, offset, fill)
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: u64) {
        self.directories.remove(handle);
    }

    /// Makes a directory durable.
    pub fn fsyncdir(&self, handle: u64, data_only: bool) -> Result<()> {
        self.do_fsyncdir(handle, data_only)
    }

    /// Makes everything durable.
    pub fn syncfs(&self) -> Result<()> {
        if self.config.volatile || self.work.is_none() {
            return Ok(());
        }
        fs::syncfs(&self.layers[0].root)
    }

    /// Numbers about the file system that holds the upper directory.
    pub fn statfs(&self) -> Result<StatFs> {
        let numbers = fs::fstatvfs(&self.layers[0].root)?;
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(StatFs {
            blocks: numbers.f_blocks,
            bfree: numbers.f_bfree,
            bavail: numbers.f_bavail,
            files: numbers.f_files,
            ffree: numbers.f_ffree,
            bsize: small(numbers.f_bsize),
            frsize: small(numbers.f_frsize),
            namelen: small(numbers.f_namemax),
        })
    }

    /// Value of an extended attribute.
    pub fn getxattr(&self, node: u64, name: &OsStr) -> Result<Vec<u8>> {
        self.do_getxattr(node, name)
    }

    /// Sets an extended attribute; `flags` as in setxattr(2).
    pub fn setxattr(&self, node: u64, name: &OsStr, value: &[u8], flags: u32) -> Result<()> {
        self.do_setxattr(node, name, value, flags)
    }

    /// Names of extended attributes, each followed by a zero byte.
    pub fn listxattr(&self, node: u64) -> Result<Vec<u8>> {
        self.do_listxattr(node)
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, node: u64, name: &OsStr) -> Result<()> {
        self.do_removexattr(node, name)
    }

    /// Whether `caller` may do `mask` (as in access(2)) by the mode bits; only asked without `default_permissions`.
    pub fn access(&self, caller: &Caller, node: u64, mask: u32) -> Result<()> {
        self.do_access(caller, node, mask)
    }

    /// Allocates or frees room in a file; `mode` as in fallocate(2).
    pub fn fallocate(&self, handle: u64, offset: u64, length: u64, mode: u32) -> Result<()> {
        self.do_fallocate(handle, offset, length, mode)
    }

    /// Seeks data or a hole (`whence` as in lseek(2)).
    pub fn lseek(&self, handle: u64, offset: u64, whence: u32) -> Result<u64> {
        self.do_lseek(handle, offset, whence)
    }

    /// Copies between open files.
    pub fn copy_file_range(
        &self,
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        self.do_copy_file_range(from, from_offset, to, to_offset, length)
    }
}
