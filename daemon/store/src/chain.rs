//! The layers of one image, several at a time.
//!
//! ```text
//!   worker ─ open(0) ─ claim ─ prepare ─ unpack ─┐
//!   worker ─ open(1) ─ claim ─ prepare ─ unpack ─┼─▶ ready ─▶ (stack, commit) 0, 1, 2, … by whoever comes to it
//!   worker ─ open(2) ─ …                         ─┘
//! ```
//!
//! Workers take layers from the bottom up. A layer whose parent is not there yet is unpacked into a snapshot without
//! parent, where the driver can ([`skiff_graphdrivers::Capabilities::parallel_apply`]); with other drivers there is one
//! worker. No worker ever waits for the layer below: what is unpacked too early is put aside, and the worker takes the
//! next. Layers become known in order, so after a crash an image's layers are there up to some height and the rest are
//! snapshots that nobody owns, which [`Store::gc`] takes.
//!
//! Why two runs over the same layers cannot wait for each other for ever: a run waits only for claims; a claim is held
//! until its layer and all those below are committed or its run fails; and each run begins its layers in order, so the
//! lowest layer that is not committed is always being worked on by whoever has its claim.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use skiff_graphdrivers::LayerId;

use crate::Store;
use crate::digest::{Descriptor, Digest, chain_ids};
use crate::error::{Error, ErrorKind, Result};
use crate::follow::StopToken;
use crate::layers::LayerRecord;
use crate::unpack::{Draft, NewLayer};

/// A layer of an image.
#[derive(Debug, Clone)]
pub struct ChainLayer {
    /// What the image's configuration says the tar stream's digest is.
    pub diff_id: Digest,
    /// The compressed blob; may be missing for a layer that is unpacked already.
    pub blob: Option<Descriptor>,
}

/// Why the layers of an image could not be unpacked.
#[derive(Debug)]
pub struct ChainFailed {
    /// Which layer, from the bottom.
    pub index: usize,
    /// What happened to it.
    pub error: Error,
}

impl Store {
    /// Unpacks those layers of an image that are not there, each from what `open` gives for its index, and returns the
    /// top one. `open` may wait until the stream can be read; it is called from several threads, for lower layers first,
    /// and not at all for a layer that is there. `done` is called for each layer from the bottom up, as soon as it is
    /// there.
    ///
    /// The first failure stops `stop`, and with it readers that were made with it; layers that were finished stay.
    ///
    /// # Errors
    /// As [`Store::unpack`].
    pub fn unpack_chain<R: Read + Send>(
        &self,
        layers: &[ChainLayer],
        stop: &StopToken,
        open: impl Fn(usize) -> Result<R> + Sync,
        done: impl Fn(usize, &LayerRecord) + Sync,
    ) -> Result<Option<LayerId>, ChainFailed> {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        let ids = chain_ids(&diff_ids)
            .into_iter()
            .map(Digest::to_layer_id)
            .collect::<Result<Vec<LayerId>>>();
        let ids = ids.map_err(|error| ChainFailed { index: 0, error })?;
        let lease = self.lease();
        let missing = ids.iter().filter(|id| lease.layer(id).is_none()).count();
        self.check_depth(layers.len())?;
        let run = Run {
            store: self,
            layers,
            ids: &ids,
            stop,
            open: &open,
            done: &done,
            failed: AtomicBool::new(false),
            state: Mutex::default(),
        };
        let workers = self.unpackers().min(missing).max(1);
        thread::scope(|scope| {
            for number in 1..workers {
                let spawned = thread::Builder::new()
                    .name(format!("unpack-{number}"))
                    .spawn_scoped(scope, || run.work());
                if let Err(error) = spawned {
                    // Slower, but right.
                    tracing::warn!(%error, "cannot start a thread to unpack layers");
                }
            }
            run.work();
        });
        let state = run.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        match state.failure {
            Some(failed) => Err(failed),
            None => Ok(ids.last().cloned()),
        }
    }

    /// How many layers of an image are unpacked at a time.
    fn unpackers(&self) -> usize {
        if self.inner.driver.capabilities().parallel_apply {
            self.inner.parallel_unpacks.max(1)
        } else {
            1
        }
    }

    /// Said before the first layer is unpacked, not when the last one is to be put on the others.
    pub(crate) fn check_depth(&self, layers: usize) -> Result<(), ChainFailed> {
        match self.inner.driver.capabilities().max_depth {
            Some(max) if layers > max => Err(ChainFailed {
                index: max,
                error: Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "max depth exceeded: {} mounts at most {max} layers, this image has {layers}",
                        self.inner.driver.name()
                    ),
                ),
            }),
            _ => Ok(()),
        }
    }
}

/// A layer that waits for its turn.
enum Ready<'s> {
    /// It was there, or another run made it.
    There(Arc<LayerRecord>),
    Unpacked(Box<Draft<'s>>),
}

#[derive(Default)]
struct State<'s> {
    /// The next layer to begin.
    next: usize,
    /// Finished before its turn.
    ready: BTreeMap<usize, Ready<'s>>,
    /// So many layers from the bottom are there.
    committed: usize,
    /// Somebody commits.
    committing: bool,
    failure: Option<ChainFailed>,
}

struct Run<'r, O, D> {
    store: &'r Store,
    layers: &'r [ChainLayer],
    ids: &'r [LayerId],
    stop: &'r StopToken,
    open: &'r O,
    done: &'r D,
    /// Ends streams between two reads.
    failed: AtomicBool,
    state: Mutex<State<'r>>,
}

impl<'r, R, O, D> Run<'r, O, D>
where
    R: Read + Send,
    O: Fn(usize) -> Result<R> + Sync,
    D: Fn(usize, &LayerRecord) + Sync,
{
    fn state(&self) -> MutexGuard<'_, State<'r>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(index) = self.begin() {
            match self.unpack(index) {
                Ok(ready) => {
                    self.state().ready.insert(index, ready);
                    self.commit_ready();
                }
                Err(error) => self.fail(index, error),
            }
        }
    }

    fn begin(&self) -> Option<usize> {
        let mut state = self.state();
        if state.failure.is_some() || state.next == self.layers.len() {
            return None;
        }
        state.next += 1;
        Some(state.next - 1)
    }

    fn fail(&self, index: usize, error: Error) {
        let mut state = self.state();
        // What follows are consequences.
        state.failure.get_or_insert(ChainFailed { index, error });
        let ready = std::mem::take(&mut state.ready);
        drop(state);
        self.failed.store(true, Ordering::Relaxed);
        self.stop.stop();
        // Snapshots go without the lock.
        drop(ready);
    }

    fn new_layer(&self, index: usize) -> Result<NewLayer<'_>> {
        let layer = &self.layers[index];
        let blob = layer.blob.as_ref();
        Ok(NewLayer {
            parent: index.checked_sub(1).map(|below| &self.ids[below]),
            diff_id: layer.diff_id,
            blob: blob.ok_or_else(|| {
                Error::not_found(format!(
                    "layer {} is gone, and its blob is not known",
                    self.ids[index]
                ))
            })?,
        })
    }

    fn unpack(&self, index: usize) -> Result<Ready<'r>> {
        let id = &self.ids[index];
        if let Some(record) = self.store.layer(id) {
            return Ok(Ready::There(record));
        }
        let layer = self.new_layer(index)?;
        let source = Guarded {
            source: (self.open)(index)?,
            failed: &self.failed,
        };
        let Some(claim) = self.store.claim_layer(id)? else {
            let record = self.store.layer(id);
            return record
                .map(Ready::There)
                .ok_or_else(|| Error::not_found(format!("layer {id} vanished")));
        };
        let parent = layer.parent.filter(|parent| self.store.layer(parent).is_some());
        let mut draft = Draft::begin(claim, parent)?;
        draft.fill(source, &layer)?;
        Ok(Ready::Unpacked(Box::new(draft)))
    }

    /// Commits what is ready and has its turn, unless another worker is at it: that one goes on until nothing is.
    fn commit_ready(&self) {
        loop {
            let mut state = self.state();
            let index = state.committed;
            if state.committing || state.failure.is_some() {
                return;
            }
            let Some(ready) = state.ready.remove(&index) else {
                return;
            };
            state.committing = true;
            drop(state);
            let outcome = self.commit(index, ready);
            let mut state = self.state();
            state.committing = false;
            match outcome {
                Ok(record) => {
                    state.committed += 1;
                    drop(state);
                    (self.done)(index, &record);
                }
                Err(error) => {
                    drop(state);
                    return self.fail(index, error);
                }
            }
        }
    }

    fn commit(&self, index: usize, ready: Ready<'r>) -> Result<Arc<LayerRecord>> {
        match ready {
            Ready::There(record) => Ok(record),
            Ready::Unpacked(draft) => draft.commit(&self.new_layer(index)?),
        }
    }
}

/// A stream that ends with an error once the run has failed.
struct Guarded<'f, R> {
    source: R,
    failed: &'f AtomicBool,
}

impl<R: Read> Read for Guarded<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("cancelled: another layer of the image failed"));
        }
        self.source.read(into)
    }
}
