//! Bytes between tasks and threads that block: archives come in and go out as streams of pieces, never as a whole.
//!
//! ```text
//!   api ─▶ ByteStream ─▶ ByteSource: Read   on a blocking thread      (load, import)
//!   api ◀─ ByteStream ◀─ ByteSink: Write    on a blocking thread      (save, export)
//! ```
//!
//! A slow reader stops the writer: at most [`PIECES`] pieces wait. When one end goes, the other learns it at its next step.

use std::io::{self, Read, Write};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

/// Pieces of a stream; an error ends it. The end without an error is the end of the stream.
pub type ByteStream = mpsc::Receiver<io::Result<Bytes>>;

/// Pieces that may wait.
const PIECES: usize = 4;
/// Bytes in a piece.
const PIECE: usize = 256 * 1024;

/// Reads a stream; to be used where blocking is allowed.
pub(crate) struct ByteSource {
    stream: ByteStream,
    piece: Bytes,
}

impl ByteSource {
    pub(crate) fn new(stream: ByteStream) -> Self {
        Self {
            stream,
            piece: Bytes::new(),
        }
    }
}

impl Read for ByteSource {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.stream.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(into.len());
        into[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

/// Writes a stream; to be used where blocking is allowed.
pub(crate) struct ByteSink {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: BytesMut,
}

/// A stream and the end to write to.
pub(crate) fn byte_stream() -> (ByteSink, ByteStream) {
    let (sender, stream) = mpsc::channel(PIECES);
    let sink = ByteSink {
        sender,
        piece: BytesMut::new(),
    };
    (sink, stream)
}

impl ByteSink {
    /// Ends the stream with an error.
    pub(crate) fn fail(self, error: impl Into<io::Error>) {
        // Without a reader nobody needs to know.
        let _ = self.sender.blocking_send(Err(error.into()));
    }

    /// A way to end the stream with an error when the sink itself is out of reach.
    pub(crate) fn errors(&self) -> mpsc::Sender<io::Result<Bytes>> {
        self.sender.clone()
    }

    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.piece).freeze();
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has left");
        self.sender.blocking_send(Ok(piece)).map_err(gone)
    }
}

impl Write for ByteSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.capacity() == 0 {
            self.piece.reserve(PIECE);
        }
        let count = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        if self.piece.len() == PIECE {
            self.send()?;
        }
        Ok(count)
    }

    /// Sends what was gathered, so that a slow archive is seen to move, and its last piece goes out.
    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            Ok(())
        } else {
            self.send()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_goes_in_comes_out() {
        let (mut sink, stream) = byte_stream();
        let bytes: Vec<u8> = (0..=250).cycle().take(3 * PIECE + 17).collect();
        let sent = bytes.clone();
        let writer = tokio::task::spawn_blocking(move || sink.write_all(&sent).and_then(|()| sink.flush()));
        let read = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            ByteSource::new(stream).read_to_end(&mut all).map(|_| all)
        });
        assert!(read.await.unwrap().unwrap() == bytes);
        writer.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_error_arrives_and_a_reader_that_left_is_noticed() {
        let (mut sink, stream) = byte_stream();
        let failing = tokio::task::spawn_blocking(move || {
            sink.write_all(b"begin")?;
            sink.flush()?;
            sink.fail(io::Error::other("the disk"));
            Ok::<(), io::Error>(())
        });
        let read = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            let outcome = ByteSource::new(stream).read_to_end(&mut all);
            (all, outcome)
        });
        let (all, outcome) = read.await.unwrap();
        assert_eq!(all, b"begin");
        assert_eq!(outcome.unwrap_err().to_string(), "the disk");
        failing.await.unwrap().unwrap();

        let (mut sink, stream) = byte_stream();
        drop(stream);
        let written = tokio::task::spawn_blocking(move || sink.write_all(&vec![0; 2 * PIECE]));
        assert_eq!(
            written.await.unwrap().unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }
}
