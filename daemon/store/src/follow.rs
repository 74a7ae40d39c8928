//! Reading a blob while it is still being written, so that a layer is unpacked while it is downloaded.
//!
//! ```text
//!   Ingest ── write ──▶ partial file ◀── pread ── FollowingReader, FollowingReader, …
//!      └── grown(n) / finished(outcome) ──▶ Flow ──wakes──▲
//! ```
//!
//! A reader sees the end of the file only after the writer has verified the digest of the whole; before that it waits,
//! and when the writer fails it fails. The reader keeps the inode, so the final rename does not disturb it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

/// How far a writer has got.
#[derive(Default)]
pub(crate) struct Flow {
    state: Mutex<FlowState>,
    changed: Condvar,
}

#[derive(Default)]
struct FlowState {
    written: u64,
    outcome: Option<Result<(), String>>,
}

/// Makes readers of one blob that is being written; cheap to clone.
#[derive(Clone)]
pub struct Follower {
    file: Arc<File>,
    flow: Arc<Flow>,
}

/// A reader that waits for the writer.
pub struct FollowingReader {
    file: Arc<File>,
    flow: Arc<Flow>,
    stop: StopToken,
    position: u64,
}

/// Stops readers from another thread: a read that waits, and each read after it, fails.
#[derive(Clone, Default)]
pub struct StopToken(Arc<Stop>);

#[derive(Default)]
struct Stop {
    stopped: AtomicBool,
    waiting: Mutex<Vec<Weak<Flow>>>,
    told: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

impl Flow {
    fn state(&self) -> MutexGuard<'_, FlowState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `written` bytes can be read now.
    pub(crate) fn grown(&self, written: u64) {
        self.state().written = written;
        self.changed.notify_all();
    }

    /// The writer is done; only its first word counts.
    pub(crate) fn finished(&self, outcome: Result<(), String>) {
        self.state().outcome.get_or_insert(outcome);
        self.changed.notify_all();
    }
}

impl Follower {
    pub(crate) fn new(file: Arc<File>, flow: Arc<Flow>) -> Self {
        Self { file, flow }
    }

    /// A reader from the beginning of the blob, which `stop` can end.
    pub fn reader(&self, stop: &StopToken) -> FollowingReader {
        stop.waiting().push(Arc::downgrade(&self.flow));
        FollowingReader {
            file: Arc::clone(&self.file),
            flow: Arc::clone(&self.flow),
            stop: stop.clone(),
            position: 0,
        }
    }
}

impl FollowingReader {
    /// Waits until there are bytes after `position`; `false` at the verified end.
    fn wait(&self) -> io::Result<bool> {
        let mut state = self.flow.state();
        loop {
            self.stop.check()?;
            match &state.outcome {
                Some(Err(reason)) => return Err(io::Error::other(reason.clone())),
                _ if self.position < state.written => return Ok(true),
                Some(Ok(())) => return Ok(false),
                None => {
                    let woken = self.flow.changed.wait(state);
                    state = woken.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

impl Read for FollowingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || !self.wait()? {
            return Ok(0);
        }
        // Bytes after `written` may be there already; they are the writer's to announce, but reading them early is
        // harmless: nothing is believed before the end.
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the blob was truncated while it was read",
            ));
        }
        Ok(count)
    }
}

impl StopToken {
    /// Calls `told` when the token is stopped, or now if it is; for those who wait for something else than bytes.
    pub fn on_stop(&self, told: impl FnOnce() + Send + 'static) {
        self.told().push(Box::new(told));
        if self.is_stopped() {
            self.tell();
        }
    }

    fn told(&self) -> MutexGuard<'_, Vec<Box<dyn FnOnce() + Send>>> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        let told = std::mem::take(&mut *self.told());
        told.into_iter().for_each(|told| told());
    }

    /// Ends all readers made with this token, now and later.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        self.tell();
        for flow in self.waiting().drain(..).filter_map(|flow| flow.upgrade()) {
            // Taken and released so that a reader is either before its check or already waiting.
            drop(flow.state());
            flow.changed.notify_all();
        }
    }

    /// Fails once [`StopToken::stop`] was called.
    ///
    /// # Errors
    /// `Other` "cancelled". (Not `Interrupted`: standard readers retry that.)
    pub fn check(&self) -> io::Result<()> {
        if self.is_stopped() {
            Err(io::Error::other("cancelled"))
        } else {
            Ok(())
        }
    }

    /// Whether [`StopToken::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Weak<Flow>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
