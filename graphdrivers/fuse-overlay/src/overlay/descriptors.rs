//! Descriptors of directories, and of files without handles: opened when first used, kept while there is room, opened
//! again when needed.
//!
//! A tree may have more of them than a process may have descriptors, so each is kept in its place ([`Kept`]) only for
//! as long as it is in use or has been used lately (second chance). Whoever uses one holds an [`Arc`] to it: taking a
//! descriptor out of its slot never closes it under somebody's hands.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use super::Result;
use super::lock::lock;

/// Fewest descriptors that are kept, however small the limit.
const FEWEST: usize = 64;
/// Most that are kept when nobody says otherwise.
const MOST: usize = 1 << 15;

/// An open directory or file that is counted as long as it lives.
#[derive(Debug)]
pub(super) struct KeptFd {
    fd: OwnedFd,
    open: Option<Arc<AtomicUsize>>,
}

impl KeptFd {
    /// One that is never given up, such as a layer's root.
    pub(super) fn permanent(fd: OwnedFd) -> Arc<Self> {
        Arc::new(Self { fd, open: None })
    }
}

impl AsFd for KeptFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for KeptFd {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A directory's.
pub(super) type DirectoryFd = KeptFd;

/// Where a descriptor is kept.
#[derive(Debug, Default)]
pub(super) struct Kept {
    fd: Mutex<Option<Arc<KeptFd>>>,
    used: AtomicBool,
    pinned: AtomicBool,
}

impl Kept {
    pub(super) fn permanent(fd: Arc<KeptFd>) -> Arc<Self> {
        Arc::new(Self {
            fd: Mutex::new(Some(fd)),
            used: AtomicBool::new(true),
            pinned: AtomicBool::new(true),
        })
    }

    pub(super) fn get(&self) -> Option<Arc<KeptFd>> {
        let fd = lock(&self.fd).clone();
        if fd.is_some() {
            self.used.store(true, Ordering::Relaxed);
        }
        fd
    }

    /// Keeps `fd` as long as this slot lives: its directory has no name any more by which it could be opened.
    pub(super) fn pin(&self, fd: Arc<KeptFd>) {
        self.pinned.store(true, Ordering::Relaxed);
        *lock(&self.fd) = Some(fd);
    }

    /// It can be given up and opened again.
    pub(super) fn unpin(&self) {
        self.pinned.store(false, Ordering::Relaxed);
    }

    /// It leads to the wrong file from now on.
    pub(super) fn clear(&self) {
        let old = lock(&self.fd).take();
        drop(old);
    }

    /// Gives the descriptor up unless it was used since the last call.
    fn give_up(&self, force: bool) -> Option<Arc<KeptFd>> {
        if self.pinned.load(Ordering::Relaxed) || (self.used.swap(false, Ordering::Relaxed) && !force) {
            return None;
        }
        let mut fd = lock(&self.fd);
        // Pinned meanwhile?
        if self.pinned.load(Ordering::Relaxed) {
            None
        } else {
            fd.take()
        }
    }
}

/// All kept descriptors of an overlay, oldest first.
#[derive(Debug)]
pub(super) struct Descriptors {
    limit: usize,
    open: Arc<AtomicUsize>,
    queue: Mutex<VecDeque<Weak<Kept>>>,
    /// The length of the queue at which it is looked through for what was forgotten meanwhile.
    look_at: AtomicUsize,
}

impl Descriptors {
    pub(super) fn new(limit: Option<usize>) -> Self {
        let limit = limit.unwrap_or_else(|| {
            let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
            // The other half is for open files.
            let half = files.map_or(MOST, |n| usize::try_from(n / 2).unwrap_or(MOST));
            half.clamp(FEWEST, MOST)
        });
        Self {
            limit,
            open: Arc::default(),
            queue: Mutex::default(),
            look_at: AtomicUsize::new(FEWEST),
        }
    }

    /// Puts a fresh descriptor into its slot; another thread's is used instead if it was faster.
    pub(super) fn keep(&self, kept: &Arc<Kept>, fd: OwnedFd) -> Arc<KeptFd> {
        self.open.fetch_add(1, Ordering::Relaxed);
        let fresh = Arc::new(KeptFd {
            fd,
            open: Some(Arc::clone(&self.open)),
        });
        {
            let mut slot = lock(&kept.fd);
            if let Some(there) = &*slot {
                return Arc::clone(there);
            }
            *slot = Some(Arc::clone(&fresh));
        }
        kept.used.store(true, Ordering::Relaxed);
        let mut queue = lock(&self.queue);
        queue.push_back(Arc::downgrade(kept));
        // What was forgotten leaves its place in the queue behind, and with it a bit of memory between others'.
        if queue.len() >= self.look_at.load(Ordering::Relaxed) {
            queue.retain(|weak| weak.strong_count() > 0);
            let room = 2 * queue.len() + FEWEST;
            queue.shrink_to(room);
            self.look_at.store(room, Ordering::Relaxed);
        }
        let mut given_up = Vec::new();
        let mut looked_at = 0;
        let most = 2 * queue.len();
        while self.open.load(Ordering::Relaxed).saturating_sub(given_up.len()) > self.limit
            && looked_at < most
        {
            let Some(weak) = queue.pop_front() else { break };
            looked_at += 1;
            let Some(old) = weak.upgrade() else { continue };
            match old.give_up(false) {
                Some(fd) => given_up.push(fd),
                None => queue.push_back(weak),
            }
        }
        drop(queue);
        drop(given_up);
        fresh
    }

    /// The process has no descriptors left: gives up half of what is kept. Whether that freed any.
    pub(super) fn shrink(&self) -> bool {
        let mut given_up = Vec::new();
        let mut queue = lock(&self.queue);
        for _ in 0..queue.len().div_ceil(2) {
            let Some(weak) = queue.pop_front() else { break };
            let Some(old) = weak.upgrade() else { continue };
            match old.give_up(true) {
                Some(fd) => given_up.push(fd),
                None => queue.push_back(weak),
            }
        }
        drop(queue);
        !given_up.is_empty()
    }

    /// Opens something; once more after making room if the process has no descriptors left.
    pub(super) fn with_room<T>(&self, open: impl Fn() -> Result<T>) -> Result<T> {
        match open() {
            Err(Errno::MFILE | Errno::NFILE) if self.shrink() => open(),
            outcome => outcome,
        }
    }

    /// Opens a directory without following links.
    pub(super) fn open(&self, parent: impl AsFd, name: impl rustix::path::Arg + Copy) -> Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.with_room(
            || match fs::openat(&parent, name, flags | OFlags::RDONLY, Mode::empty()) {
                // Its owner has no id in this namespace. It can be passed through all the same.
                Err(Errno::ACCESS) => fs::openat(&parent, name, flags | OFlags::PATH, Mode::empty()),
                outcome => outcome,
            },
        )
    }

    /// Opens an open directory once more, to read it without a trace: it may belong to a layer that others share.
    pub(super) fn open_quietly(&self, directory: impl AsFd) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.with_room(
            || match fs::openat(&directory, c".", flags | OFlags::NOATIME, Mode::empty()) {
                Err(Errno::PERM) => fs::openat(&directory, c".", flags, Mode::empty()),
                outcome => outcome,
            },
        )
    }
}
