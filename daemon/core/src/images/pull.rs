//! `POST /images/create?fromImage=…`: from a reference to a registered image.
//!
//! ```text
//!   resolve ─▶ lease everything ─▶ join transfers of missing blobs ─▶ configuration ─▶ chain ids
//!                                          │                                              │
//!                                          └───▶ unpack, each layer while it comes ───▶ register ─▶ events
//! ```
//!
//! A blob is downloaded when it is not in the store, also when its layer is already unpacked (from another compression):
//! an image's own bytes are kept. Until `register` nothing refers to anything: a pull that fails or is dropped
//! at any point leaves orphans that the next try uses and the collector takes an hour later or two.

use std::io::{self, Read};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::try_join_all;
use skiff_graphdrivers::LayerId;
use skiff_registry_client::{Credentials, Platform, Reference};
use skiff_store::{
    ChainFailed, ChainLayer, Descriptor, Digest, Follower, Image, LayerRecord, Lease, ReferenceKey,
    Registration, Selector, Squashed, StopToken, Store,
};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::progress::{Line, Reporter, Unpacking};
use super::remote::Resolved;
use super::transfer::{Order, Phase, Transfer};
use super::{Progress, PullRequest, Shared, convert};
use crate::error::{Error, ErrorKind, Result};

/// Runs blocking work on a thread for it.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::system("a storage call panicked").caused_by(e))?
}

/// Pulls an image. Dropping the future cancels it.
pub(super) async fn pull(
    shared: &Arc<Shared>,
    request: PullRequest,
    progress: &mpsc::Sender<Progress>,
) -> Result<()> {
    let reference = Reference::parse(&request.reference)?;
    let platform = request
        .platform
        .as_deref()
        .map(str::parse::<Platform>)
        .transpose()?;
    let reporter = Reporter::new(progress.clone());
    let resolved = shared
        .remote
        .resolve(&reference, platform.as_ref(), request.credentials.as_ref())
        .await?;
    let from = format!("Pulling from {}", reference.path());
    reporter.say(from, Some(reference.identifier().to_owned())).await;
    let pull = Pull {
        shared,
        reference: &reference,
        credentials: request.credentials,
        reporter: &reporter,
    };
    let changed = match pull.fetch_and_register(&resolved).await {
        // Another client's download failed; its rights or its mirror may be to blame, so try with our own.
        Err(Failed {
            shared_download: true,
            ..
        }) => pull.fetch_and_register(&resolved).await,
        other => other,
    }
    .map_err(|failed| failed.error)?;
    reporter
        .say(format!("Digest: {}", resolved.target.digest), None)
        .await;
    let familiar = reference.familiar();
    let status = if changed {
        "Downloaded newer image for"
    } else {
        "Image is up to date for"
    };
    reporter.say(format!("Status: {status} {familiar}"), None).await;
    Ok(())
}

struct Pull<'a> {
    shared: &'a Arc<Shared>,
    reference: &'a Reference,
    credentials: Option<Credentials>,
    reporter: &'a Reporter,
}

/// Why a pull failed, and whether in a download that another client had started.
struct Failed {
    error: Error,
    shared_download: bool,
}

impl<E: Into<Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            shared_download: false,
        }
    }
}

/// A layer of the image on its way.
struct Layer {
    blob: Descriptor,
    diff_id: Digest,
    /// Missing blobs are downloaded; `true` when another pull had begun it.
    transfer: Option<(Arc<Transfer>, bool)>,
    /// It is unpacked already.
    unpacked: bool,
    unpacking: Arc<Unpacking>,
}

impl Pull<'_> {
    /// Fetches what is missing and makes the image known; `true` when the name is new or stood for something else.
    async fn fetch_and_register(&self, resolved: &Resolved) -> Result<bool, Failed> {
        let lease = Arc::new(self.shared.store.lease());
        let blobs = descriptors(resolved)?;
        let transfers = self.start_transfers(resolved, &blobs, &lease).await?;
        let config = self.configuration(resolved, &lease).await?;
        let layers = layers(&lease, &config, blobs, transfers)?;
        self.transport(&layers, &lease).await?;
        Ok(self.register(resolved, config.id, lease).await?)
    }

    /// Joins or starts the downloads of the blobs that are not in the store.
    async fn start_transfers(
        &self,
        resolved: &Resolved,
        blobs: &[Descriptor],
        lease: &Arc<Lease>,
    ) -> Result<Vec<Option<(Arc<Transfer>, bool)>>> {
        let digests: Vec<(Digest, u64)> = blobs.iter().map(|blob| (blob.digest, blob.size)).collect();
        let lease = Arc::clone(lease);
        let present: Vec<bool> = blocking(move || {
            let present = digests
                .iter()
                .map(|(digest, size)| Ok(lease.blob(digest)? == Some(*size)));
            present.collect::<Result<_>>()
        })
        .await?;
        let join =
            |((present, blob), descriptor): ((bool, &Descriptor), &skiff_registry_client::Descriptor)| {
                let order = Order {
                    reference: self.reference.clone(),
                    descriptor: descriptor.clone(),
                    digest: blob.digest,
                    credentials: self.credentials.clone(),
                };
                (!present).then(|| self.shared.transfers.join(order))
            };
        Ok(present
            .into_iter()
            .zip(blobs)
            .zip(resolved.image.layers())
            .map(join)
            .collect())
    }

    /// The configuration, from the store when it is whole there, or the registry; manifests are stored on the way.
    async fn configuration(&self, resolved: &Resolved, lease: &Arc<Lease>) -> Result<Image> {
        let descriptor = resolved.image.config();
        let id: Digest = digest(descriptor.digest().as_ref())?;
        let (store, lease) = (self.shared.store.clone(), Arc::clone(lease));
        let documents = [
            (
                digest(resolved.target.digest.as_ref())?,
                resolved.target.bytes.clone(),
            ),
            (
                digest(resolved.manifest.digest.as_ref())?,
                resolved.manifest.bytes.clone(),
            ),
        ];
        let kept = blocking(move || {
            for (digest, bytes) in documents {
                lease.blob(&digest)?;
                store.put_blob(&digest, &bytes)?;
            }
            lease.blob(&id)?;
            match store.read_blob(&id) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) => {
                    if error.kind() != skiff_store::ErrorKind::NotFound {
                        tracing::warn!(image = %id, %error, "the configuration is damaged; fetching it again");
                    }
                    Ok(None)
                }
            }
        })
        .await?;
        let bytes = match kept {
            Some(bytes) => bytes.into(),
            None => {
                let fetched = self
                    .shared
                    .remote
                    .document(self.reference, descriptor, self.credentials.as_ref())
                    .await?;
                let (store, bytes) = (self.shared.store.clone(), fetched.clone());
                blocking(move || Ok(store.put_blob(&id, &bytes)?)).await?;
                fetched
            }
        };
        let image = Image::parse(id, &bytes)?;
        runs_here(&image)?;
        Ok(image)
    }

    /// Downloads and unpacks, side by side; reports each layer.
    async fn transport(&self, layers: &[Layer], lease: &Arc<Lease>) -> Result<(), Failed> {
        let lines: Vec<Line> = layers
            .iter()
            .map(|layer| Line::new(self.reporter, layer.blob.digest.short(), layer.blob.size))
            .collect();
        for (layer, line) in layers.iter().zip(&lines) {
            line.say(if layer.is_there() {
                "Already exists"
            } else {
                "Pulling fs layer"
            })
            .await;
        }
        let stop = StopOnDrop(StopToken::default());
        let unpack = self.unpack(layers, lease, &stop.0);
        let report = layers
            .iter()
            .zip(&lines)
            .filter(|(layer, _)| !layer.is_there())
            .map(|(layer, line)| async move {
                match &layer.transfer {
                    Some((transfer, joined)) => {
                        let done = line.download(transfer).await;
                        done.map_err(|error| Failed {
                            error,
                            shared_download: *joined,
                        })?;
                    }
                    None => line.say("Download complete").await,
                }
                if !layer.unpacked {
                    line.unpack(&layer.unpacking).await;
                }
                line.say("Pull complete").await;
                Ok::<(), Failed>(())
            });
        tokio::try_join!(unpack, try_join_all(report))?;
        Ok(())
    }

    /// Unpacks the layers, each as soon as its bytes can be read.
    async fn unpack(&self, layers: &[Layer], lease: &Arc<Lease>, stop: &StopToken) -> Result<(), Failed> {
        let (store, lease, stop) = (self.shared.store.clone(), Arc::clone(lease), stop.clone());
        let sources: Vec<Source> = layers.iter().map(Source::new).collect();
        let chain: Vec<ChainLayer> = layers
            .iter()
            .map(|layer| ChainLayer {
                diff_id: layer.diff_id,
                blob: Some(layer.blob.clone()),
            })
            .collect();
        let runtime = Handle::current();
        let squashed = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&squashed);
        let unpacked = blocking(move || {
            let cancelled = CancellationToken::new();
            let told = cancelled.clone();
            stop.on_stop(move || told.cancel());
            let open = |index: usize| sources[index].open(&store, &runtime, &cancelled, &stop);
            let done = |index: usize, record: &LayerRecord| {
                sources[index].unpacking.done.send_replace(true);
                note_squashed(&seen, record);
            };
            let unpacked = store.unpack_chain(&chain, &stop, open, done);
            // Held until here even if the pull was dropped in the meantime.
            drop(lease);
            Ok(unpacked)
        })
        .await?;
        if let Err(failed) = unpacked {
            return Err(self.explain(failed, layers).await);
        }
        let squashed = squashed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(squashed) = squashed {
            self.reporter.say(squashed_warning(&squashed), None).await;
        }
        Ok(())
    }

    /// Says why the unpacking failed: a bad download shows first as a damaged stream.
    async fn explain(&self, failed: ChainFailed, layers: &[Layer]) -> Failed {
        if let Some(Layer {
            transfer: Some((transfer, joined)),
            ..
        }) = layers.get(failed.index)
            && blames_the_bytes(&failed.error)
            && let Err(error) = transfer.finished().await
        {
            return Failed {
                error,
                shared_download: *joined,
            };
        }
        Error::from(failed.error)
            .context("failed to register layer")
            .into()
    }

    async fn register(&self, resolved: &Resolved, image: Digest, lease: Arc<Lease>) -> Result<bool> {
        let target = digest(resolved.target.digest.as_ref())?;
        let by_digest = ReferenceKey {
            repository: self.reference.name(),
            selector: Selector::Digest(target),
        };
        let mut names = vec![by_digest];
        if self.reference.digest().is_none() {
            names.push(convert::key(self.reference)?);
        }
        let registration = Registration {
            image,
            manifest: digest(resolved.manifest.digest.as_ref())?,
            target,
            names,
        };
        let store = self.shared.store.clone();
        let changed = blocking(move || {
            let (_, changed) = store.register(&registration)?;
            drop(lease);
            Ok(changed)
        })
        .await?;
        self.tell(&image);
        settle(self.shared);
        Ok(changed)
    }

    fn tell(&self, image: &Digest) {
        let mut attributes = self.shared.labels(image);
        attributes.insert("name".to_owned(), self.reference.familiar_name());
        self.shared
            .events
            .publish("image", "pull", self.reference.familiar(), attributes);
    }
}

/// Brings new layers to the disk while the client goes on.
pub(super) fn settle(shared: &Shared) {
    let store = shared.store.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = store.settle() {
            tracing::warn!(%error, "new layers may not survive a power failure; they would be unpacked again");
        }
    });
}

impl Layer {
    /// Nothing is to be done for it.
    fn is_there(&self) -> bool {
        self.unpacked && self.transfer.is_none()
    }
}

/// The layers' blobs as the store describes them.
fn descriptors(resolved: &Resolved) -> Result<Vec<Descriptor>> {
    let convert = |layer: &skiff_registry_client::Descriptor| {
        Ok(Descriptor {
            media_type: layer.media_type().to_string(),
            digest: digest(layer.digest().as_ref())?,
            size: layer.size(),
        })
    };
    resolved.image.layers().iter().map(convert).collect()
}

/// Joins manifest and configuration.
fn layers(
    lease: &Lease,
    image: &Image,
    blobs: Vec<Descriptor>,
    transfers: Vec<Option<(Arc<Transfer>, bool)>>,
) -> Result<Vec<Layer>> {
    if blobs.len() != image.diff_ids.len() {
        return Err(Error::system(
            "layers from manifest don't match image configuration",
        ));
    }
    let names = image.diff_ids.iter().zip(&image.chain);
    let layer = |((blob, transfer), (diff_id, chain)): ((Descriptor, _), (&Digest, &LayerId))| Layer {
        blob,
        diff_id: *diff_id,
        transfer,
        unpacked: lease.layer(chain).is_some(),
        unpacking: Unpacking::new(),
    };
    Ok(blobs.into_iter().zip(transfers).zip(names).map(layer).collect())
}

/// Refuses images of another operating system. (Another architecture may run by emulation.)
fn runs_here(image: &Image) -> Result<()> {
    match image.config["os"].as_str() {
        None | Some("" | "linux") => Ok(()),
        Some(os) => Err(Error::new(
            ErrorKind::InvalidParameter,
            format!(
                "image operating system {os:?} cannot be used on this platform: operating system is not supported"
            ),
        )),
    }
}

fn digest(text: &str) -> Result<Digest> {
    Ok(text.parse()?)
}

/// Where the unpacker gets a layer from. Holds no transfer: a download that nobody wants any more must end.
struct Source {
    blob: Digest,
    phases: Option<watch::Receiver<Phase>>,
    unpacking: Arc<Unpacking>,
}

impl Source {
    fn new(layer: &Layer) -> Self {
        Self {
            blob: layer.blob.digest,
            phases: layer.transfer.as_ref().map(|(transfer, _)| transfer.phases()),
            unpacking: Arc::clone(&layer.unpacking),
        }
    }

    /// Opens the compressed stream, metered and stoppable, as soon as it can be read. Called on a thread that may block.
    fn open(
        &self,
        store: &Store,
        runtime: &Handle,
        cancelled: &CancellationToken,
        stop: &StopToken,
    ) -> skiff_store::Result<Metered> {
        let follower = match self.phases.clone() {
            Some(phases) => runtime.block_on(async {
                tokio::select! {
                    () = cancelled.cancelled() => Err(cancelled_error()),
                    follower = readable(phases) => follower,
                }
            })?,
            None => None,
        };
        let source: Box<dyn Read + Send> = match follower {
            Some(follower) => Box::new(follower.reader(stop)),
            None => Box::new(store.open_blob(&self.blob)?),
        };
        Ok(Metered {
            source,
            stop: stop.clone(),
            unpacking: Arc::clone(&self.unpacking),
        })
    }
}

fn cancelled_error() -> skiff_store::Error {
    skiff_store::Error::new(skiff_store::ErrorKind::Io, "cancelled")
}

/// Waits until a blob can be read: a follower while it comes, `None` when it is complete.
async fn readable(mut phases: watch::Receiver<Phase>) -> skiff_store::Result<Option<Follower>> {
    loop {
        match &*phases.borrow_and_update() {
            Phase::Downloading(Some(follower)) => return Ok(Some(follower.clone())),
            Phase::Done => return Ok(None),
            // The caller asks the download itself for what happened.
            Phase::Failed(_) => break,
            Phase::Waiting | Phase::Downloading(None) | Phase::Verifying => {}
        }
        if phases.changed().await.is_err() {
            break;
        }
    }
    let text = "the download of the layer failed";
    Err(skiff_store::Error::new(skiff_store::ErrorKind::Io, text))
}

/// The one line about owners that do not exist here.
pub(super) fn squashed_warning(squashed: &Squashed) -> String {
    let Squashed { files, uid, gid } = squashed;
    format!(
        "Warning: {files} files have owners outside of the user namespace; they belong to {uid}:{gid} here \
         (--storage-opt oversized-ids=squash)"
    )
}

/// Adds up what was folded.
pub(super) fn note_squashed(sum: &Mutex<Option<Squashed>>, record: &LayerRecord) {
    let Some(squashed) = &record.squashed else { return };
    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
    match &mut *sum {
        Some(sum) => sum.files += squashed.files,
        none => *none = Some(squashed.clone()),
    }
}

/// Whether an unpacker's error may come from a bad or broken download. Then the digest at the download's end tells, and
/// says it better.
fn blames_the_bytes(error: &skiff_store::Error) -> bool {
    use skiff_store::ErrorKind as K;
    matches!(error.kind(), K::Corrupt | K::Unsupported | K::Io)
}

/// Counts what is read and fails once the pull is gone.
struct Metered {
    source: Box<dyn Read + Send>,
    stop: StopToken,
    unpacking: Arc<Unpacking>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        let count = self.source.read(buffer)?;
        self.unpacking.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Stops the unpacker threads of a pull that fails or is dropped.
pub(super) struct StopOnDrop(pub(super) StopToken);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}
