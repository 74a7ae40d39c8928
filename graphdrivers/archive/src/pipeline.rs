//! Queues of reused buffers between the threads of an unpack.
//!
//! ```text
//!  source ─▶ read + SHA-256 ──▶ decode ──▶ SHA-256 ──▶ parse + write
//!                          ◀─ empty ─┘  ◀──────────── empty ─┘
//! ```
//!
//! A queue owns at most [`BUFFERS`] buffers of [`BUFFER_SIZE`] bytes: a slow writer stops the reader. A new one is made
//! only when none is free, and the one that was used last is used next, so that threads that keep pace pass a few hot
//! buffers round, and one that is kept waiting by the scheduler does not at once hold up the others. The end of the stream
//! is a message of its own, so a thread that dies is not taken for it. When the receiver is dropped the sender learns it
//! at its next step and stops.

use std::io::{self, BufRead, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};

use ring::digest::{Context, SHA256};

use crate::error::{Error, ErrorKind, Result};

/// Bytes in a buffer: large enough that handing over costs nothing, small enough for the second-level cache.
pub(crate) const BUFFER_SIZE: usize = 256 * 1024;
/// Buffers in a queue: one with each thread, and some to ride out the time slice of somebody else's thread.
const BUFFERS: usize = 16;

enum Message {
    Data(Box<[u8]>, usize),
    End,
    Failed(Error),
}

/// The receiver is gone: nobody wants the rest.
pub(crate) struct Stopped;

/// The writing end.
pub(crate) struct Sender {
    full: mpsc::Sender<Message>,
    pool: Arc<Pool>,
}

/// The reading end.
pub(crate) struct Receiver {
    full: mpsc::Receiver<Message>,
    pool: Arc<Pool>,
    current: Option<(Box<[u8]>, usize)>,
    position: usize,
    ended: bool,
}

/// A place between the ends that sees every byte.
pub(crate) struct Hashing {
    from: mpsc::Receiver<Message>,
    to: mpsc::Sender<Message>,
}

/// Buffers that nobody uses at the moment.
#[derive(Default)]
struct Pool {
    state: Mutex<Free>,
    returned: Condvar,
}

#[derive(Default)]
struct Free {
    buffers: Vec<Box<[u8]>>,
    made: usize,
    /// The receiver is gone.
    closed: bool,
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, Free> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer; waits for one when all are in use.
    fn take(&self) -> Result<Box<[u8]>, Stopped> {
        let mut free = self.state();
        loop {
            if free.closed {
                return Err(Stopped);
            }
            if let Some(buffer) = free.buffers.pop() {
                return Ok(buffer);
            }
            if free.made < BUFFERS {
                free.made += 1;
                drop(free);
                return Ok(vec![0; BUFFER_SIZE].into_boxed_slice());
            }
            free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, buffer: Box<[u8]>) {
        self.state().buffers.push(buffer);
        self.returned.notify_one();
    }

    fn close(&self) {
        self.state().closed = true;
        self.returned.notify_one();
    }
}

/// A queue.
pub(crate) fn queue() -> (Sender, Receiver) {
    let (full_in, full_out) = mpsc::channel();
    let pool = Arc::new(Pool::default());
    let sender = Sender {
        full: full_in,
        pool: Arc::clone(&pool),
    };
    let receiver = Receiver {
        full: full_out,
        pool,
        current: None,
        position: 0,
        ended: false,
    };
    (sender, receiver)
}

/// A queue with somebody in the middle who hashes.
pub(crate) fn hashed_queue() -> (Sender, Hashing, Receiver) {
    let (sender, mut receiver) = queue();
    let (to, full) = mpsc::channel();
    let from = std::mem::replace(&mut receiver.full, full);
    (sender, Hashing { from, to }, receiver)
}

impl Hashing {
    /// Hashes and hands on until the end; `None` when it was not reached.
    pub(crate) fn run(self) -> Option<String> {
        let mut digest = Context::new(&SHA256);
        for message in self.from {
            match &message {
                Message::Data(buffer, len) => digest.update(&buffer[..*len]),
                Message::End => {
                    self.to.send(message).ok()?;
                    return Some(digest_text(digest));
                }
                Message::Failed(_) => {}
            }
            self.to.send(message).ok()?;
        }
        None
    }
}

/// `sha256:` and the hexadecimal digest.
pub(crate) fn digest_text(context: Context) -> String {
    format!("sha256:{}", hex::encode(context.finish()))
}

impl Sender {
    fn send(&self, message: Message) -> Result<(), Stopped> {
        self.full.send(message).map_err(|_| Stopped)
    }

    /// Moves everything that `read` gives into the queue, then the end or the error.
    ///
    /// `read` is called with a free buffer and returns how much it put there; 0 is the end.
    pub(crate) fn pump(self, mut read: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<(), Stopped> {
        loop {
            let mut buffer = self.pool.take()?;
            let mut filled = 0;
            let outcome = loop {
                match read(&mut buffer[filled..]) {
                    Ok(0) => break Some(Message::End),
                    Ok(n) => filled += n,
                    Err(error) => break Some(Message::Failed(error)),
                }
                if filled == buffer.len() {
                    break None;
                }
            };
            if filled > 0 {
                self.send(Message::Data(buffer, filled))?;
            }
            if let Some(last) = outcome {
                return self.send(last);
            }
        }
    }
}

impl Receiver {
    /// The bytes that were received and not yet consumed; empty at the end of the stream.
    pub(crate) fn fill(&mut self) -> Result<&[u8]> {
        while !self.ended && self.current.as_ref().is_none_or(|(_, len)| self.position == *len) {
            self.receive()?;
        }
        Ok(match &self.current {
            Some((bytes, len)) => &bytes[self.position..*len],
            None => &[],
        })
    }

    fn receive(&mut self) -> Result<()> {
        if let Some((buffer, _)) = self.current.take() {
            self.pool.give_back(buffer);
        }
        self.position = 0;
        match self.full.recv() {
            Ok(Message::Data(buffer, len)) => self.current = Some((buffer, len)),
            Ok(Message::End) => self.ended = true,
            Ok(Message::Failed(error)) => return Err(error),
            Err(mpsc::RecvError) => return Err(Error::new(ErrorKind::Io, "a thread of the unpacker died")),
        }
        Ok(())
    }

    /// Marks `n` bytes of what [`Receiver::fill`] gave as used.
    pub(crate) fn consume_bytes(&mut self, n: usize) {
        self.position += n;
    }

    /// Receives the rest, so that damage there is seen.
    pub(crate) fn finish(mut self) -> Result<()> {
        loop {
            let n = self.fill()?.len();
            if n == 0 {
                return Ok(());
            }
            self.consume_bytes(n);
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.pool.close();
    }
}

/// For decoders that want standard traits; an error of ours travels inside the `io::Error`.
impl Read for Receiver {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(into.len());
        into[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Receiver {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill().map_err(io::Error::other)
    }

    fn consume(&mut self, n: usize) {
        self.consume_bytes(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn bytes_arrive_in_order_and_are_hashed() {
        let (sender, hashing, mut receiver) = hashed_queue();
        let hashing = thread::spawn(|| hashing.run());
        let data: Vec<u8> = (0..251).cycle().take(BUFFER_SIZE * 9 + 17).collect();
        let copy = data.clone();
        let worker = thread::spawn(move || {
            let mut rest = &copy[..];
            // Small and odd pieces, as a network gives them.
            sender
                .pump(|into| {
                    let n = into.len().min(77_777);
                    Ok(rest.read(&mut into[..n]).unwrap_or(0))
                })
                .map_err(|_| "stopped")
        });
        let mut got = Vec::new();
        loop {
            let piece = receiver.fill().unwrap().to_vec();
            if piece.is_empty() {
                break;
            }
            receiver.consume_bytes(piece.len());
            got.extend_from_slice(&piece);
        }
        assert!(got == data);
        worker.join().unwrap().unwrap();
        let expected = hex::encode(ring::digest::digest(&SHA256, &data));
        receiver.finish().unwrap();
        assert_eq!(hashing.join().unwrap().unwrap(), format!("sha256:{expected}"));
    }

    #[test]
    fn a_dropped_receiver_stops_the_sender_and_a_dead_sender_is_an_error() {
        let (sender, receiver) = queue();
        drop(receiver);
        assert!(sender.pump(|into| Ok(into.len())).is_err());

        let (sender, mut receiver) = queue();
        drop(sender);
        assert_eq!(receiver.fill().unwrap_err().kind(), ErrorKind::Io);

        // The same with somebody in the middle.
        let (sender, hashing, receiver) = hashed_queue();
        drop(receiver);
        let hashing = thread::spawn(|| hashing.run());
        assert!(sender.pump(|into| Ok(into.len())).is_err());
        assert_eq!(hashing.join().unwrap(), None);

        let (sender, hashing, mut receiver) = hashed_queue();
        drop(sender);
        assert_eq!(hashing.run(), None);
        assert_eq!(receiver.fill().unwrap_err().kind(), ErrorKind::Io);
    }
}
