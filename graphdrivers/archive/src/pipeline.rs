//! Queues of reused buffers between the threads of an unpack.
//!
//! ```text
//!  source ─▶ read + SHA-256 ──▶ decode ──▶ SHA-256 + parse + write
//!                          ◀─ empty ─┘  ◀─ empty ─┘
//! ```
//!
//! A queue owns [`BUFFERS`] buffers of [`BUFFER_SIZE`] bytes and never allocates more: a slow writer stops the reader.
//! The end of the stream is a message of its own, so a thread that dies is not taken for it. When the receiver is
//! dropped the sender learns it at its next step and stops.

use std::io::{self, BufRead, Read};
use std::sync::mpsc;

use ring::digest::{Context, SHA256};

use crate::error::{Error, ErrorKind, Result};

/// Bytes in a buffer: large enough that handing over costs nothing, small enough for the second-level cache.
pub(crate) const BUFFER_SIZE: usize = 256 * 1024;
/// Buffers in a queue.
const BUFFERS: usize = 4;

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
    empty: mpsc::Receiver<Box<[u8]>>,
    made: usize,
}

/// The reading end.
pub(crate) struct Receiver {
    full: mpsc::Receiver<Message>,
    empty: mpsc::Sender<Box<[u8]>>,
    current: Option<(Box<[u8]>, usize)>,
    position: usize,
    ended: bool,
    digest: Option<Context>,
}

/// A queue. With `hashed`, the receiver computes the SHA-256 of what it receives.
pub(crate) fn queue(hashed: bool) -> (Sender, Receiver) {
    let (full_in, full_out) = mpsc::channel();
    let (empty_in, empty_out) = mpsc::channel();
    let receiver = Receiver {
        full: full_out,
        empty: empty_in,
        current: None,
        position: 0,
        ended: false,
        digest: hashed.then(|| Context::new(&SHA256)),
    };
    (
        Sender {
            full: full_in,
            empty: empty_out,
            made: 0,
        },
        receiver,
    )
}

/// `sha256:` and the hexadecimal digest.
pub(crate) fn digest_text(context: Context) -> String {
    format!("sha256:{}", hex::encode(context.finish()))
}

impl Sender {
    fn buffer(&mut self) -> Result<Box<[u8]>, Stopped> {
        if self.made < BUFFERS {
            self.made += 1;
            return Ok(vec![0; BUFFER_SIZE].into_boxed_slice());
        }
        self.empty.recv().map_err(|_| Stopped)
    }

    fn send(&self, message: Message) -> Result<(), Stopped> {
        self.full.send(message).map_err(|_| Stopped)
    }

    /// Moves everything that `read` gives into the queue, then the end or the error.
    ///
    /// `read` is called with a free buffer and returns how much it put there; 0 is the end.
    pub(crate) fn pump(mut self, mut read: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<(), Stopped> {
        loop {
            let mut buffer = self.buffer()?;
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
            // The sender may have finished; then nobody needs the buffer.
            let _ = self.empty.send(buffer);
        }
        self.position = 0;
        match self.full.recv() {
            Ok(Message::Data(buffer, len)) => {
                if let Some(digest) = &mut self.digest {
                    digest.update(&buffer[..len]);
                }
                self.current = Some((buffer, len));
            }
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

    /// Receives the rest and gives the digest of everything, if this queue is hashed.
    pub(crate) fn finish(mut self) -> Result<Option<String>> {
        loop {
            let n = self.fill()?.len();
            if n == 0 {
                return Ok(self.digest.take().map(digest_text));
            }
            self.consume_bytes(n);
        }
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
        let (sender, mut receiver) = queue(true);
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
        assert_eq!(receiver.finish().unwrap().unwrap(), format!("sha256:{expected}"));
    }

    #[test]
    fn a_dropped_receiver_stops_the_sender_and_a_dead_sender_is_an_error() {
        let (sender, receiver) = queue(false);
        drop(receiver);
        assert!(sender.pump(|into| Ok(into.len())).is_err());

        let (sender, mut receiver) = queue(false);
        drop(sender);
        assert_eq!(receiver.fill().unwrap_err().kind(), ErrorKind::Io);
    }
}
