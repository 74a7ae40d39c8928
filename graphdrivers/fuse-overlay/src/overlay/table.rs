//! The inodes that the kernel, an open handle or a known child knows, by their number and by what they are on disk.
//!
//! Both maps are sharded; no system call is made under a shard's lock. A node enters with its first reference and
//! leaves with its last; its number is never used again.
//!
//! ```text
//!   numbers: node id → node            keys: (layer, device, inode) on disk → node
//! ```
//!
//! A reference is counted up only under the lock of the shard that has the node's key, and the node is removed only
//! under it: so a node that is found is not on its way out.

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use hashbrown::{DefaultHashBuilder, HashMap};

use super::lock::{lock, read, write};
use super::node::Node;
use super::types::ROOT;

const SHARDS: usize = 64;

type Map<K> = HashMap<K, Arc<Node>>;

/// What a file is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    ino: u64,
    /// Layer and device; for one name of several of a file in a lower layer, a hash of the name too. Such names become
    /// different files when one of them is copied up, so they are different inodes from the start.
    tag: u64,
}

#[derive(Debug)]
pub(super) struct Table {
    this: Weak<Self>,
    numbers: Box<[RwLock<Map<u64>>]>,
    keys: Box<[Mutex<Map<Key>>]>,
    next: AtomicU64,
    /// Files without a name that nobody knows any more, whose room on the disk is about to be free.
    ending: AtomicUsize,
    /// How many have gone that way.
    ended: AtomicU64,
    hasher: DefaultHashBuilder,
}

/// The last thing that a node without a name drops: its descriptors are closed by then.
#[derive(Debug)]
pub(super) struct Ending(Weak<Table>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(table) = self.0.upgrade() {
            table.ended.fetch_add(1, Ordering::AcqRel);
            table.ending.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Table {
    pub(super) fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            numbers: (0..SHARDS).map(|_| RwLock::default()).collect(),
            keys: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next: AtomicU64::new(ROOT),
            ending: AtomicUsize::new(0),
            ended: AtomicU64::new(0),
            hasher: DefaultHashBuilder::default(),
        })
    }

    pub(super) fn hash(&self, of: impl Hash) -> u64 {
        self.hasher.hash_one(of)
    }

    pub(super) fn key(&self, layer: u16, dev: u64, ino: u64) -> Key {
        Key {
            ino,
            tag: dev << 16 ^ u64::from(layer),
        }
    }

    /// The key of one name among several of a file in a lower layer.
    pub(super) fn key_of_name(&self, layer: u16, dev: u64, ino: u64, parent: u64, name: &[u8]) -> Key {
        Key {
            ino,
            tag: self.hash((dev, layer, parent, name)),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "only the low bits choose a shard")]
    fn shard(&self, key: &Key) -> &Mutex<Map<Key>> {
        &self.keys[self.hash(key) as usize >> 8 & (SHARDS - 1)]
    }

    #[expect(clippy::cast_possible_truncation, reason = "only the low bits choose a shard")]
    fn numbered(&self, id: u64) -> &RwLock<Map<u64>> {
        &self.numbers[id as usize & (SHARDS - 1)]
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<Node>> {
        read(self.numbered(id)).get(&id).cloned()
    }

    /// The node with this key, if the kernel knows it. Without a reference.
    pub(super) fn find(&self, key: &Key) -> Option<Arc<Node>> {
        lock(self.shard(key)).get(key).cloned()
    }

    /// The node with this key, made if need be, with one reference more. A node that `fits` not is a leftover of an
    /// inode number that was used again; it keeps its number and loses its key.
    pub(super) fn acquire(
        &self,
        key: Key,
        fits: impl FnOnce(&Node) -> bool,
        make: impl FnOnce((u64, &Weak<Self>)) -> Node,
    ) -> (Arc<Node>, bool) {
        let mut shard = lock(self.shard(&key));
        if let Some(node) = shard.get(&key)
            && fits(node)
        {
            node.lookups.fetch_add(1, Ordering::Relaxed);
            return (Arc::clone(node), false);
        }
        let node = self.number(make);
        *lock(&node.key) = Some(key);
        let stale = shard.insert(key, Arc::clone(&node));
        // A node that ends gives its parent back, which takes shards' locks.
        drop(shard);
        drop(stale);
        (node, true)
    }

    /// A new node without a key (a file without a name), with one reference.
    pub(super) fn number(&self, make: impl FnOnce((u64, &Weak<Self>)) -> Node) -> Arc<Node> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let node = Arc::new(make((id, &self.this)));
        node.lookups.store(1, Ordering::Relaxed);
        write(self.numbered(id)).insert(id, Arc::clone(&node));
        node
    }

    /// The node is another file on disk now, or (`None`) one that no name leads to.
    pub(super) fn rekey(&self, node: &Arc<Node>, key: Option<Key>) {
        let mut current = lock(&node.key);
        if let Some(old) = current.take() {
            let mut shard = lock(self.shard(&old));
            if shard.get(&old).is_some_and(|there| Arc::ptr_eq(there, node)) {
                shard.remove(&old);
            }
        }
        // A node on its way out stays out.
        if let Some(key) = key
            && node.lookups.load(Ordering::Relaxed) > 0
        {
            let stale = lock(self.shard(&key)).insert(key, Arc::clone(node));
            *current = Some(key);
            drop(current);
            drop(stale);
        }
    }

    /// Takes `count` references back.
    pub(super) fn forget(&self, node: &Arc<Node>, count: u64) {
        if node.id == ROOT {
            return;
        }
        let before = node
            .lookups
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| {
                Some(n.saturating_sub(count))
            })
            .unwrap_or_default();
        if before > count {
            return;
        }
        let mut key = lock(&node.key);
        let gone = match &*key {
            None => node.lookups.load(Ordering::Acquire) == 0,
            Some(old) => {
                let mut shard = lock(self.shard(old));
                let gone = node.lookups.load(Ordering::Acquire) == 0;
                if gone && shard.get(old).is_some_and(|there| Arc::ptr_eq(there, node)) {
                    shard.remove(old);
                }
                gone
            }
        };
        if gone {
            *key = None;
            drop(key);
            if node.is_removed() && node.ending.set(Ending(Weak::clone(&self.this))).is_ok() {
                self.ending.fetch_add(1, Ordering::AcqRel);
            }
            write(self.numbered(node.id)).remove(&node.id);
        }
    }

    /// Whether there is a file without a name, or one that is just being given up.
    pub(super) fn has_removed(&self) -> bool {
        let removed = |shard: &RwLock<Map<u64>>| read(shard).values().any(|node| node.is_removed());
        self.numbers.iter().any(removed) || self.ending.load(Ordering::Acquire) > 0
    }

    /// Grows with each file without a name that is given up.
    pub(super) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.numbers.iter().map(|shard| read(shard).len()).sum()
    }
}
