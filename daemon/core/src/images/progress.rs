//! What a pull tells its client, in Docker's words and order.
//!
//! ```text
//!   Pulling fs layer ─▶ Waiting ─▶ Downloading… ─▶ Verifying Checksum ─▶ Download complete ─▶ Extracting… ─▶ Pull complete
//!   Already exists
//! ```
//!
//! Unpacking overlaps with the download, but a client sees one after the other: terminals show one line a layer.
//! Numbers are sent at most ten times a second for each layer, changes of state always.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Progress;
use super::transfer::{Phase, Transfer, again};
use crate::error::{Error, Result};

/// The shortest time between two numbers of one layer.
const PERIOD: Duration = Duration::from_millis(100);

/// The client's end; cheap to clone.
#[derive(Clone)]
pub(super) struct Reporter {
    sender: mpsc::Sender<Progress>,
}

/// One layer's line.
pub(super) struct Line {
    reporter: Reporter,
    /// Short id of the blob.
    id: String,
    /// Size of the blob.
    total: u64,
}

/// How far a layer's unpacking is.
#[derive(Default)]
pub(super) struct Unpacking {
    /// Compressed bytes read.
    pub(super) read: AtomicU64,
    /// Becomes true at the end.
    pub(super) done: watch::Sender<bool>,
}

impl Reporter {
    pub(super) fn new(sender: mpsc::Sender<Progress>) -> Self {
        Self { sender }
    }

    /// A line about the whole, or about what `id` names.
    pub(super) async fn say(&self, status: impl Into<String>, id: Option<String>) {
        self.send(Progress::Status {
            status: status.into(),
            id,
        })
        .await;
    }

    /// An error only says that the client is gone; the pull learns that by itself.
    async fn send(&self, message: Progress) {
        let _ = self.sender.send(message).await;
    }
}

impl Line {
    pub(super) fn new(reporter: &Reporter, id: String, total: u64) -> Self {
        Self {
            reporter: reporter.clone(),
            id,
            total,
        }
    }

    /// A change of state.
    pub(super) async fn say(&self, status: &str) {
        self.reporter.say(status, Some(self.id.clone())).await;
    }

    /// Reports a download until its end.
    ///
    /// # Errors
    /// The download's.
    pub(super) async fn download(&self, transfer: &Transfer) -> Result<()> {
        let mut phases = transfer.phases();
        let mut ticks = ticks();
        let mut shown = 0;
        let mut said_waiting = false;
        loop {
            let waiting = match &*phases.borrow_and_update() {
                Phase::Waiting => true,
                Phase::Downloading(_) | Phase::Verifying => false,
                Phase::Done => break,
                Phase::Failed(error) => return Err(again(error)),
            };
            if waiting && !said_waiting {
                said_waiting = true;
                self.say("Waiting").await;
            }
            tokio::select! {
                changed = phases.changed() => changed.map_err(|_| Error::system("the download's task ended"))?,
                _ = ticks.tick() => self.numbers("Downloading", transfer.received(), &mut shown).await,
            }
        }
        self.say("Verifying Checksum").await;
        self.say("Download complete").await;
        Ok(())
    }

    /// Reports the unpacking until its end.
    pub(super) async fn unpack(&self, unpacking: &Unpacking) {
        let mut done = unpacking.done.subscribe();
        let mut ticks = ticks();
        let mut shown = 0;
        while !*done.borrow_and_update() {
            tokio::select! {
                changed = done.changed() => if changed.is_err() { return },
                _ = ticks.tick() => {
                    self.numbers("Extracting", unpacking.read.load(Ordering::Relaxed), &mut shown).await;
                }
            }
        }
        if shown < self.total {
            self.numbers("Extracting", self.total, &mut shown).await;
        }
    }

    async fn numbers(&self, status: &'static str, current: u64, shown: &mut u64) {
        if current > *shown {
            *shown = current;
            self.reporter
                .send(Progress::Layer {
                    id: self.id.clone(),
                    status,
                    current,
                    total: self.total,
                })
                .await;
        }
    }
}

impl Unpacking {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }
}

fn ticks() -> Interval {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
