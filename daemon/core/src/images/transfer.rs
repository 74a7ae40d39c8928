//! Downloads of layers, shared by all pulls that need the same blob.
//!
//! ```text
//!   pull A ─┐                                            ┌─ writer thread ─▶ Ingest ─▶ blobs/
//!   pull B ─┴─▶ Transfer ◀─ phase ─ task ◀─ Remote::blob ─┘                    └─ Follower ─▶ unpackers
//! ```
//!
//! The task lives as long as some pull holds its [`Transfer`]; when the last one lets go it is cancelled and leaves a
//! partial blob, which the next transfer of that digest resumes. At most `--max-concurrent-downloads` run at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use futures_util::StreamExt;
use skiff_registry_client::{Credentials, Descriptor, Reference, Verifier};
use skiff_store::{Digest, Follower, Ingest, Store};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::convert::Lower;
use super::pull::blocking;
use super::remote::Remote;
use crate::error::{Error, ErrorKind, Result};

/// KiB on their way from the network to the writer: enough to ride out a slow write, and little memory. A piece has from
/// some bytes to 400 KiB, as the network gives them.
const QUEUE_KIB: u32 = 4096;

/// All running downloads.
pub(super) struct Transfers {
    store: Store,
    remote: Arc<dyn Remote>,
    slots: Semaphore,
    running: Mutex<HashMap<Digest, Weak<Transfer>>>,
}

/// One download. Dropping the last handle cancels it.
pub(super) struct Transfer {
    phase: watch::Receiver<Phase>,
    received: Arc<AtomicU64>,
    _cancel: DropGuard,
}

/// How far a download is.
#[derive(Clone)]
pub(super) enum Phase {
    /// Waits for its turn.
    Waiting,
    /// Runs. With a follower the blob can be read while it grows; a resumed one cannot, because its beginning is
    /// vouched for only by the digest at the end.
    Downloading(Option<Follower>),
    /// All bytes are there.
    Verifying,
    /// The blob is in the store.
    Done,
    /// It failed.
    Failed(Arc<Error>),
}

/// What to download, and with whose rights.
#[derive(Clone)]
pub(super) struct Order {
    pub(super) reference: Reference,
    pub(super) descriptor: Descriptor,
    pub(super) digest: Digest,
    pub(super) credentials: Option<Credentials>,
}

impl Transfers {
    pub(super) fn new(store: Store, remote: Arc<dyn Remote>, slots: usize) -> Arc<Self> {
        Arc::new(Self {
            store,
            remote,
            slots: Semaphore::new(slots.max(1)),
            running: Mutex::default(),
        })
    }

    /// Joins the running download of a blob, or starts one. `true` when it was running before.
    pub(super) fn join(self: &Arc<Self>, order: Order) -> (Arc<Transfer>, bool) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(transfer) = running.get(&order.digest).and_then(Weak::upgrade)
            && !matches!(*transfer.phase.borrow(), Phase::Failed(_))
        {
            return (transfer, true);
        }
        let (sender, phase) = watch::channel(Phase::Waiting);
        let received = Arc::new(AtomicU64::new(0));
        let cancel = CancellationToken::new();
        let transfer = Arc::new(Transfer {
            phase,
            received: Arc::clone(&received),
            _cancel: cancel.clone().drop_guard(),
        });
        running.retain(|_, other| other.strong_count() > 0);
        running.insert(order.digest, Arc::downgrade(&transfer));
        let transfers = Arc::clone(self);
        tokio::spawn(async move {
            let task = Task {
                transfers: &transfers,
                order: &order,
                phase: &sender,
                received: &received,
            };
            let outcome = tokio::select! {
                // First, so that a registry that always has a piece ready cannot keep a download alive that nobody wants.
                biased;
                () = cancel.cancelled() => Err(Error::system("download cancelled")),
                done = task.run() => done,
            };
            sender.send_replace(match outcome {
                Ok(()) => Phase::Done,
                Err(error) => Phase::Failed(Arc::new(error)),
            });
        });
        (transfer, false)
    }
}

impl Transfer {
    /// The phases, from the present one on.
    pub(super) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.clone()
    }

    /// Bytes received so far, with those of an earlier try.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Waits for the end.
    pub(super) async fn finished(&self) -> Result<()> {
        let mut phases = self.phases();
        loop {
            match &*phases.borrow_and_update() {
                Phase::Done => return Ok(()),
                Phase::Failed(error) => return Err(again(error)),
                Phase::Waiting | Phase::Downloading(_) | Phase::Verifying => {}
            }
            phases
                .changed()
                .await
                .map_err(|_| Error::system("the download's task ended"))?;
        }
    }
}

/// A shared error for one of those who share it.
pub(super) fn again(error: &Arc<Error>) -> Error {
    Error::new(error.kind(), error.to_string())
}

/// The running side of a transfer.
struct Task<'a> {
    transfers: &'a Arc<Transfers>,
    order: &'a Order,
    phase: &'a watch::Sender<Phase>,
    received: &'a Arc<AtomicU64>,
}

/// How an attempt failed.
enum Failure {
    /// For good.
    Final(Error),
    /// The partial blob of an earlier try does not fit: once more from the beginning.
    BadBeginning,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Final(error.into())
    }
}

impl Task<'_> {
    async fn run(&self) -> Result<()> {
        let _slot = self
            .transfers
            .slots
            .acquire()
            .await
            .map_err(|e| Error::unavailable("shutting down").caused_by(e))?;
        loop {
            match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::BadBeginning) => {
                    tracing::warn!(blob = %self.order.digest, "the partial blob is damaged, downloading it afresh");
                }
            }
        }
    }

    async fn attempt(&self) -> Result<(), Failure> {
        self.phase.send_replace(Phase::Downloading(None));
        let Some((ingest, verifier)) = self.open().await? else {
            return Ok(());
        };
        let resumed = ingest.offset() > 0;
        if !resumed {
            self.phase
                .send_replace(Phase::Downloading(Some(ingest.follower())));
        }
        let ingest = match self.download(ingest, verifier).await {
            (Some(ingest), Ok(())) => ingest,
            (ingest, Err(error)) => {
                let corrupt = error.corrupt;
                if corrupt && let Some(ingest) = ingest {
                    ingest.discard();
                }
                return Err(if corrupt && resumed {
                    Failure::BadBeginning
                } else {
                    Failure::Final(error.error)
                });
            }
            (None, Ok(())) => return Err(Failure::Final(Error::system("the writer of a blob ended early"))),
        };
        self.phase.send_replace(Phase::Verifying);
        blocking(move || Ok(ingest.commit()?)).await?;
        Ok(())
    }

    /// Opens the partial blob and hashes what an earlier try left; `None` when the blob is there already.
    async fn open(&self) -> Result<Option<(Ingest, Verifier)>> {
        let store = self.transfers.store.clone();
        let Order {
            descriptor, digest, ..
        } = self.order.clone();
        let received = Arc::clone(self.received);
        blocking(move || {
            let mut verifier = Verifier::new(&descriptor)?;
            // Waits for the thread of a cancelled transfer of the same blob, if there is one.
            let ingest = store.ingest_verified(&digest, descriptor.size(), |bytes| verifier.update(bytes))?;
            received.store(ingest.offset(), Ordering::Relaxed);
            if store.blob_size(&digest)? == Some(descriptor.size()) {
                ingest.discard();
                return Ok(None);
            }
            Ok(Some((ingest, verifier)))
        })
        .await
    }

    /// Moves the blob from the network to the disk. Gives the ingest back, complete and verified with `Ok`.
    async fn download(&self, ingest: Ingest, verifier: Verifier) -> (Option<Ingest>, Result<(), Broken>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let writer = tokio::task::spawn_blocking(move || write(ingest, receiver));
        let fetched = self.fetch(verifier, &sender).await;
        drop(sender);
        match (writer.await, fetched) {
            // A full disk stops the network, so its error comes first.
            (Ok((ingest, Err(error))), _) => (Some(ingest), Err(error.into())),
            (Ok((ingest, Ok(()))), fetched) => (Some(ingest), fetched),
            (Err(error), _) => (
                None,
                Err(Error::system("the writer of a blob died").caused_by(error).into()),
            ),
        }
    }

    async fn fetch(&self, verifier: Verifier, writer: &mpsc::UnboundedSender<Piece>) -> Result<(), Broken> {
        let Order {
            reference,
            descriptor,
            credentials,
            ..
        } = self.order;
        let mut stream = self
            .transfers
            .remote
            .blob(reference, descriptor, verifier, credentials.as_ref())
            .await?;
        let room = Arc::new(Semaphore::new(QUEUE_KIB as usize));
        while let Some(bytes) = stream.next().await {
            let bytes = bytes?;
            self.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            let kib = u32::try_from(bytes.len().div_ceil(1024)).map_or(QUEUE_KIB, |kib| kib.min(QUEUE_KIB));
            // The semaphore is never closed.
            let Ok(room) = Arc::clone(&room).acquire_many_owned(kib).await else {
                return Ok(());
            };
            if writer.send(Piece { bytes, _room: room }).is_err() {
                // The writer failed and says why itself.
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Bytes on their way to the disk.
struct Piece {
    bytes: Bytes,
    /// Gives its share of the queue back when it is written.
    _room: OwnedSemaphorePermit,
}

/// A failed download, and whether what was written is worthless.
struct Broken {
    error: Error,
    corrupt: bool,
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        let corrupt = error.kind() == ErrorKind::System && is_corrupt(&error);
        Self { error, corrupt }
    }
}

impl From<skiff_store::Error> for Broken {
    fn from(error: skiff_store::Error) -> Self {
        Self::from(Error::from(error))
    }
}

/// Whether the lower error says that bytes do not have their digest.
fn is_corrupt(error: &Error) -> bool {
    let cause = std::error::Error::source(error);
    let registry = cause.and_then(|c| c.downcast_ref::<Lower<skiff_registry_client::Error>>());
    let store = cause.and_then(|c| c.downcast_ref::<Lower<skiff_store::Error>>());
    registry.is_some_and(|e| e.0.kind() == skiff_registry_client::ErrorKind::Corrupt)
        || store.is_some_and(|e| e.0.kind() == skiff_store::ErrorKind::Corrupt)
}

/// The writer thread: ends when the channel is closed. What is waiting is written before readers are woken.
fn write(
    mut ingest: Ingest,
    mut pieces: mpsc::UnboundedReceiver<Piece>,
) -> (Ingest, skiff_store::Result<()>) {
    while let Some(piece) = pieces.blocking_recv() {
        if let Err(error) = ingest.write(&piece.bytes) {
            return (ingest, Err(error));
        }
    }
    (ingest, Ok(()))
}
