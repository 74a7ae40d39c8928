//! The compressed stream as it comes: looked at, hashed if nobody else does, counted.

use std::io::{self, BufRead, Read};

use ring::digest::{Context, SHA256};

use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::{BUFFER_SIZE, Sender, digest_text};

/// How many first bytes tell the format.
const HEAD: usize = 16;

/// Digest, unless the bytes were not hashed, and length in bytes of what was read.
pub(crate) type Blob = (Option<String>, u64);

/// A source with a buffer. Its errors are told as [`ErrorKind::Source`].
pub(crate) struct Source<R> {
    inner: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    digest: Option<Context>,
    size: u64,
}

impl<R: Read> Source<R> {
    pub(crate) fn new(inner: R, hashed: bool) -> Self {
        Self {
            inner,
            buffer: vec![0; BUFFER_SIZE].into_boxed_slice(),
            start: 0,
            end: 0,
            digest: hashed.then(|| Context::new(&SHA256)),
            size: 0,
        }
    }

    /// The first bytes, as many as tell the format or as there are.
    pub(crate) fn head(&mut self) -> Result<&[u8]> {
        while self.end < HEAD {
            let n = read(&mut self.inner, &mut self.buffer[self.end..])?;
            if n == 0 {
                break;
            }
            self.end += n;
        }
        Ok(&self.buffer[..self.end])
    }

    /// Hashes what was not given out yet and all that follows.
    pub(crate) fn hash(&mut self) {
        self.digest.get_or_insert_with(|| Context::new(&SHA256));
    }

    pub(crate) fn is_hashed(&self) -> bool {
        self.digest.is_some()
    }

    /// Moves everything into the queue.
    pub(crate) fn pump(mut self, sender: Sender) -> Blob {
        // `Stopped` only says that the other side has gone; it knows why.
        let _ = sender.pump(|into| self.next(into));
        self.finish()
    }

    /// Digest and length of what was read.
    pub(crate) fn finish(self) -> Blob {
        (self.digest.map(digest_text), self.size)
    }

    fn next(&mut self, into: &mut [u8]) -> Result<usize> {
        let n = if self.start < self.end {
            let n = (self.end - self.start).min(into.len());
            into[..n].copy_from_slice(&self.buffer[self.start..self.start + n]);
            self.start += n;
            n
        } else {
            read(&mut self.inner, into)?
        };
        self.seen(n, |digest| digest.update(&into[..n]));
        Ok(n)
    }

    fn seen(&mut self, n: usize, update: impl FnOnce(&mut Context)) {
        self.size += n as u64;
        if let Some(digest) = &mut self.digest {
            update(digest);
        }
    }
}

fn read(source: &mut impl Read, into: &mut [u8]) -> Result<usize> {
    loop {
        match source.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => {
                return other.map_err(|error| Error::new(ErrorKind::Source, "read layer").caused_by(error));
            }
        }
    }
}

/// For decoders, which want standard traits; only for a source that is not hashed. An error of ours travels inside the
/// `io::Error`.
impl<R: Read> Read for &mut Source<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(into)?;
        self.consume(n);
        Ok(n)
    }
}

impl<R: Read> BufRead for &mut Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.end = read(&mut self.inner, &mut self.buffer).map_err(io::Error::other)?;
            self.start = 0;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, n: usize) {
        debug_assert!(!self.is_hashed());
        self.start += n;
        self.size += n as u64;
    }
}
