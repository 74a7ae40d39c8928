//! Open handles by number. Numbers are not used again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use hashbrown::HashMap;

use super::lock::{read, write};

const SHARDS: usize = 16;

#[derive(Debug)]
pub(super) struct Handles<T> {
    shards: [RwLock<HashMap<u64, Arc<T>>>; SHARDS],
    next: AtomicU64,
}

impl<T> Handles<T> {
    pub(super) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| RwLock::default()),
            next: AtomicU64::new(1),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "only the low bits choose a shard")]
    fn shard(&self, id: u64) -> &RwLock<HashMap<u64, Arc<T>>> {
        &self.shards[id as usize & (SHARDS - 1)]
    }

    pub(super) fn insert(&self, handle: Arc<T>) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        write(self.shard(id)).insert(id, handle);
        id
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<T>> {
        read(self.shard(id)).get(&id).cloned()
    }

    pub(super) fn remove(&self, id: u64) -> Option<Arc<T>> {
        write(self.shard(id)).remove(&id)
    }
}
