//! Locks that do not care whether a thread panicked: what they guard is changed in one assignment each.
//!
//! The order in which they are taken, first to last; whoever holds one takes only later ones:
//!
//! ```text
//!   Overlay::renames      two renames between different directories never cross
//!   Node::copying         of a file, then those of its ancestors
//!   Directory::names      ancestors before descendants, unrelated ones by node id
//!   Node::place           of files, by node id; held over the system calls that use the name
//!   Overlay::tree         read: a directory's descriptor is opened again by its path; write: a directory moves
//!   Node::place           of directories; the table's shards; the rest. Nothing is taken and no call made under them
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
