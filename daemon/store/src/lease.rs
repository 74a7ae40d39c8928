//! Leases: what a running pull or creation needs, kept from the garbage collector until the lease is dropped.
//! They live in memory only: after a crash nothing runs that could need them.

use std::collections::HashSet;
use std::sync::Arc;

use skiff_graphdrivers::LayerId;

use crate::digest::Digest;
use crate::error::Result;
use crate::{Holdings, LayerRecord, Store};

/// Holds blobs and layers. Take it before looking whether something is there, not after.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    id: u64,
}

/// What one lease holds.
#[derive(Default)]
pub(crate) struct LeaseSet {
    blobs: HashSet<Digest>,
    layers: HashSet<LayerId>,
}

impl Store {
    /// A lease that holds nothing yet.
    pub fn lease(&self) -> Lease {
        let mut holdings = self.holdings();
        let id = holdings.fresh_id();
        holdings.leases.insert(id, LeaseSet::default());
        Lease {
            store: self.clone(),
            id,
        }
    }
}

impl Lease {
    /// Holds a blob, present or to come. Returns its size in bytes when it is present.
    ///
    /// # Errors
    /// `Io`.
    pub fn blob(&self, digest: &Digest) -> Result<Option<u64>> {
        let mut holdings = self.store.holdings();
        if let Some(set) = holdings.leases.get_mut(&self.id) {
            set.blobs.insert(*digest);
        }
        // Looked up under the lock, under which blobs are removed.
        self.store.blob_size(digest)
    }

    /// Holds a layer, present or to come. Returns its record when it is present.
    pub fn layer(&self, layer: &LayerId) -> Option<Arc<LayerRecord>> {
        let mut holdings = self.store.holdings();
        if let Some(set) = holdings.leases.get_mut(&self.id) {
            set.layers.insert(layer.clone());
        }
        holdings.layers.get(layer).cloned()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.store.holdings().leases.remove(&self.id);
    }
}

impl Holdings {
    pub(crate) fn blob_is_held(&self, digest: &Digest) -> bool {
        self.ingesting.contains(digest) || self.leases.values().any(|set| set.blobs.contains(digest))
    }

    pub(crate) fn layer_is_held(&self, layer: &LayerId) -> bool {
        self.unpacking.contains(layer) || self.leases.values().any(|set| set.layers.contains(layer))
    }
}
