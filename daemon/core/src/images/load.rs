//! `POST /images/load`: images from an archive, an OCI layout or what `docker save` ever wrote.
//!
//! ```text
//!   body ─▶ decode ─▶ members ─▶ staged (docker_archive) ─▶ for each image: unpack its layers ─▶ register ─▶ "Loaded image: …"
//!           one pass, bounded memory                         side by side, from blobs            one rename
//! ```
//!
//! The members come in any order, so nothing is unpacked before the last one is there. An image is known when all of it is
//! there and not before; when the load fails, what came with it and nobody else needs goes away at once, layers that were
//! unpacked already included. What `kill -9` leaves is taken by the collector once it is an hour old.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use skiff_graphdrivers::LayerId;
use skiff_registry_client::{Platform, Reference};
use skiff_store::{ChainLayer, Descriptor, Digest, Image, Registration, StopToken, Store};
use tokio::sync::mpsc;

use super::docker_archive::{ArchivedImage, Staged};
use super::pull::{StopOnDrop, blocking, note_squashed, settle, squashed_warning};
use super::{Progress, Shared, convert};
use crate::error::{Error, Result};
use crate::pipe::{ByteSource, ByteStream};

/// The shortest time between two numbers of one layer.
const PERIOD: Duration = Duration::from_millis(100);

/// `POST /images/load`.
#[derive(Debug, Clone, Default)]
pub struct LoadRequest {
    /// No numbers about layers.
    pub quiet: bool,
    /// Only images for this platform; of an index, the one for it.
    pub platform: Option<Platform>,
}

/// Loads images. Dropping the future cancels it.
pub(super) async fn load(
    shared: &Arc<Shared>,
    request: LoadRequest,
    body: ByteStream,
    progress: mpsc::Sender<Progress>,
) -> Result<()> {
    let stop = StopOnDrop(StopToken::default());
    let loading = Loading {
        shared: Arc::clone(shared),
        request,
        progress,
        stop: stop.0.clone(),
    };
    blocking(move || loading.run(body)).await?;
    settle(shared);
    Ok(())
}

struct Loading {
    shared: Arc<Shared>,
    request: LoadRequest,
    progress: mpsc::Sender<Progress>,
    stop: StopToken,
}

impl Loading {
    fn run(self, body: ByteStream) -> Result<()> {
        let store = &self.shared.store;
        let mut staged = Staged::new(store.clone());
        let source = Stoppable {
            source: ByteSource::new(body),
            stop: self.stop.clone(),
        };
        let outcome = skiff_archive::read_bundle(source, |member, data| staged.take(member, data))
            .and_then(|()| self.images(&mut staged));
        let brought = std::mem::take(&mut staged.brought);
        let unpacked = std::mem::take(&mut staged.unpacked);
        // Its lease would hold all of that.
        drop(staged);
        // Members that no image needs, and all of them when it went wrong.
        match discard(store, brought, &unpacked) {
            Ok(false) => {}
            Ok(true) => super::removal::free_space(&self.shared),
            Err(error) => tracing::warn!(%error, "cannot remove what a load left over"),
        }
        outcome
    }

    fn images(&self, staged: &mut Staged) -> Result<()> {
        let images = staged.images(self.request.platform.as_ref(), &self.stop)?;
        let mut nameless = Vec::new();
        for image in &images {
            self.stop
                .check()
                .map_err(|error| Error::system("load").caused_by(error))?;
            let known = self.image(staged, image)?;
            let mut named = false;
            for (manifest, names) in &image.manifests {
                named |= !names.is_empty();
                self.register(&known, *manifest, names)?;
            }
            if !named {
                nameless.push(known.id);
            }
            self.shared.event("load", &known.id, &known.id.to_string());
        }
        for id in nameless {
            self.say(format!("Loaded image ID: {id}\n"));
        }
        Ok(())
    }

    /// Unpacks what is not unpacked.
    fn image(&self, staged: &mut Staged, image: &ArchivedImage) -> Result<Image> {
        let store = &self.shared.store;
        let known = Image::parse(image.config, &store.read_blob(&image.config)?)?;
        let mut missing = known.chain.clone();
        missing.retain(|id| staged.lease().layer(id).is_none());
        staged.unpacked.push(missing);
        let chain: Vec<ChainLayer> = known
            .diff_ids
            .iter()
            .zip(&image.layers)
            .map(|(diff_id, blob)| ChainLayer {
                diff_id: *diff_id,
                blob: Some(blob.clone()),
            })
            .collect();
        let lines: Vec<Line> = known
            .diff_ids
            .iter()
            .zip(&image.layers)
            .map(|(diff_id, blob)| Line::new(self, *diff_id, blob))
            .collect();
        let open = |index: usize| lines[index].open(store, &self.stop);
        let squashed = Mutex::new(None);
        let done = |index: usize, record: &skiff_store::LayerRecord| {
            lines[index].finish();
            note_squashed(&squashed, record);
        };
        store
            .unpack_chain(&chain, &self.stop, open, done)
            .map_err(|failed| Error::from(failed.error))?;
        if let Some(squashed) = squashed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            self.say(squashed_warning(&squashed) + "\n");
        }
        Ok(known)
    }

    fn register(&self, image: &Image, manifest: Digest, names: &[Reference]) -> Result<()> {
        let store = &self.shared.store;
        let catalog = store.catalog();
        let keys = names.iter().map(convert::key).collect::<Result<Vec<_>>>()?;
        for (name, key) in names.iter().zip(&keys) {
            if let Some(old) = catalog.references.get(key)
                && old.image != image.id
            {
                self.say(format!(
                    "The image {} already exists, renaming the old one with ID {} to empty string\n",
                    name.familiar(),
                    old.image
                ));
            }
        }
        store.register(&Registration {
            image: image.id,
            manifest,
            target: manifest,
            names: keys,
        })?;
        for name in names {
            self.say(format!("Loaded image: {}\n", name.familiar()));
        }
        Ok(())
    }

    fn say(&self, text: String) {
        // An error only says that the client has left; what was loaded stays.
        let _ = self.progress.blocking_send(Progress::Text(text));
    }
}

/// Removes what a load brought and nobody needs; whether there was anything.
fn discard(store: &Store, blobs: BTreeSet<Digest>, chains: &[Vec<LayerId>]) -> skiff_store::Result<bool> {
    let mut gone = 0;
    // What came last may stand on what came before.
    for chain in chains.iter().rev() {
        gone += store.discard_unneeded_layers(chain)?.len();
    }
    gone += store.discard_unneeded(blobs)?;
    Ok(gone > 0)
}

/// Reports one layer.
struct Line<'l> {
    progress: Option<&'l mpsc::Sender<Progress>>,
    /// Short diff id.
    id: String,
    blob: &'l Descriptor,
    /// Bytes read of the blob.
    read: Arc<AtomicU64>,
}

impl<'l> Line<'l> {
    fn new(loading: &'l Loading, diff_id: Digest, blob: &'l Descriptor) -> Self {
        Self {
            progress: (!loading.request.quiet).then_some(&loading.progress),
            id: diff_id.short(),
            blob,
            read: Arc::default(),
        }
    }

    fn open(
        &self,
        store: &Store,
        stop: &StopToken,
    ) -> skiff_store::Result<Metered<impl Read + Send + use<>>> {
        let source = Stoppable {
            source: store.open_blob(&self.blob.digest)?,
            stop: stop.clone(),
        };
        Ok(Metered {
            source,
            read: Arc::clone(&self.read),
            progress: self.progress.cloned(),
            id: self.id.clone(),
            total: self.blob.size,
            shown: Instant::now(),
        })
    }

    /// The last number; none for a layer that was there.
    fn finish(&self) {
        if self.read.load(Ordering::Relaxed) > 0
            && let Some(progress) = self.progress
        {
            let _ = progress.blocking_send(numbers(&self.id, self.blob.size, self.blob.size));
        }
    }
}

fn numbers(id: &str, current: u64, total: u64) -> Progress {
    Progress::Layer {
        id: id.to_owned(),
        status: "Loading layer",
        current,
        total,
    }
}

/// Counts and reports what is read of a layer.
struct Metered<R> {
    source: R,
    read: Arc<AtomicU64>,
    progress: Option<mpsc::Sender<Progress>>,
    id: String,
    total: u64,
    shown: Instant,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(into)?;
        let before = self.read.fetch_add(count as u64, Ordering::Relaxed);
        let current = before + count as u64;
        if let Some(progress) = &self.progress
            && (before == 0 || self.shown.elapsed() >= PERIOD)
            && current < self.total
        {
            self.shown = Instant::now();
            // A client that reads slowly misses numbers, it does not slow the load down.
            let _ = progress.try_send(numbers(&self.id, current, self.total));
        }
        Ok(count)
    }
}

/// Fails once the load was cancelled.
pub(super) struct Stoppable<R> {
    pub(super) source: R,
    pub(super) stop: StopToken,
}

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        self.source.read(into)
    }
}
