//! The byte stream between a client and hyper, with what Docker's protocol needs and hyper does not have.
//!
//! `serve` wraps every connection in a [`HijackIo`]; handlers meet its shared half, the [`Exchange`], in the
//! request's extensions. It does three things:
//!
//! 1. **Hijack without asking.** `POST …/attach` and `POST …/exec/ID/start` take over the connection even when
//!    the client sent no `Upgrade` header (docker-py, curl, old clients). hyper can only upgrade, so such a
//!    request's head is given `Upgrade: tcp` on its way in, and the `101` answer becomes a bare `200 OK` on its
//!    way out. Any other answer (404, 409, …) passes unchanged.
//! 2. **Half-close.** A client may send its input and close its sending side at once. While a request is being
//!    answered, hyper sees neither further bytes nor the end; after `101` the tunnel gets both, in order.
//! 3. **Who is still there?** The end of the client's bytes during an ordinary request cancels
//!    [`Exchange::gone`], so that streams (events, logs, wait, pull) stop for a client that left, while short
//!    answers are still written. That is what Go's HTTP server does with its request context.
//!
//! ```text
//!        ┌────────────────────── answered, not 101 ─────────────────────┐
//!        ▼                                                              │
//!      Head ──whole head──▶ Body ──last byte──▶ Busy (reads ahead, holds back) ──101 written──▶ Through
//!        └──HTTP/2, garbage, too long, end─────────────────────────────────────────────────────▶ Through
//! ```
//!
//! Invariants: bytes are never lost or reordered; at most [`READ_AHEAD`] bytes are held for a busy connection
//! (then the client waits); requests that are pipelined are served one after the other.

pub(crate) mod framing;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use framing::{BodyFraming, Head, Parsed, parse_head};

/// Longest request head; `X-Registry-Config` carries the credentials of all registries.
const MAX_HEAD: usize = 256 * 1024;

/// How much is read from a client whose request is still being answered.
const READ_AHEAD: usize = 64 * 1024;

/// What is added to the head of a request that takes over its connection without asking.
const UPGRADE_LINES: &[u8] = b"Connection: Upgrade\r\nUpgrade: tcp\r\n";

/// The half of a connection's state that its requests share with its byte stream.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// How many requests have their complete answer (or never will).
    answered: AtomicU64,
    /// The request in flight did not ask for its upgrade.
    bare: AtomicBool,
    /// Reader that waits for `answered`, for the answer to an upgrade, or for a flush.
    reader: AtomicWaker,
    /// The client has closed its side during an ordinary request, or the connection ended.
    gone: CancellationToken,
}

impl Exchange {
    /// Whether the request in flight takes over its connection without an `Upgrade` header.
    pub(crate) fn is_bare(&self) -> bool {
        self.bare.load(Ordering::Acquire)
    }

    /// Cancelled when the client has left.
    pub(crate) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// A guard that is dropped when the answer to the request in flight is complete or given up.
    pub(crate) fn answering(self: &Arc<Self>) -> Answering {
        Answering(Arc::clone(self))
    }
}

/// See [`Exchange::answering`].
#[derive(Debug)]
pub(crate) struct Answering(Arc<Exchange>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answered.fetch_add(1, Ordering::AcqRel);
        self.0.reader.wake();
    }
}

/// A connection as hyper sees it.
#[derive(Debug)]
pub(crate) struct HijackIo<T> {
    inner: T,
    exchange: Arc<Exchange>,
    reading: Reading,
    /// Bytes from the client that hyper has not got yet.
    received: BytesMut,
    /// How many of them it may have.
    released: usize,
    /// The client has closed its side.
    eof: bool,
    /// Requests given to hyper.
    requests: u64,
    /// The beginning of the answer to a request that may take over the connection.
    watched: Option<Watched>,
    /// Bytes for the client that the socket has not got yet.
    outgoing: BytesMut,
    /// Something was written since the last complete flush.
    unflushed: bool,
}

#[derive(Debug)]
enum Reading {
    Head,
    Body(BodyFraming),
    Busy,
    Through,
}

#[derive(Debug)]
struct Watched {
    head: BytesMut,
    bare: bool,
}

impl<T> HijackIo<T> {
    pub(crate) fn new(inner: T, exchange: Arc<Exchange>) -> Self {
        Self {
            inner,
            exchange,
            reading: Reading::Head,
            received: BytesMut::new(),
            released: 0,
            eof: false,
            requests: 0,
            watched: None,
            outgoing: BytesMut::new(),
            unflushed: false,
        }
    }

    /// A whole request head is in `received`: releases it, with upgrade lines if it needs them.
    fn begin(&mut self, head: Head) {
        let bare = head.takes_over && !head.upgrade;
        self.released = head.length;
        if bare {
            let rest = self.received.split_off(head.headers_at);
            self.received.extend_from_slice(UPGRADE_LINES);
            self.received.unsplit(rest);
            self.released += UPGRADE_LINES.len();
        }
        self.requests += 1;
        self.exchange.bare.store(bare, Ordering::Release);
        self.watched = (bare || head.upgrade).then(|| Watched {
            head: BytesMut::new(),
            bare,
        });
        self.reading = if head.body.is_done() {
            Reading::Busy
        } else {
            Reading::Body(head.body)
        };
    }

    /// Decides what of `received` may be released; `false` when more bytes are needed first.
    fn advance(&mut self) -> bool {
        match &mut self.reading {
            Reading::Through => {
                self.released = self.received.len();
                self.released > 0
            }
            _ if self.received.is_empty() => false,
            Reading::Head => match parse_head(&self.received) {
                Parsed::Head(head) => {
                    self.begin(head);
                    true
                }
                Parsed::Partial if self.received.len() < MAX_HEAD => false,
                Parsed::Partial | Parsed::Foreign => {
                    self.reading = Reading::Through;
                    true
                }
            },
            Reading::Body(framing) => {
                // The head is still in front of the body until hyper has taken it: `released` is 0 here.
                match framing.take(&self.received) {
                    Ok(taken) => {
                        self.released = taken;
                        if framing.is_done() {
                            self.reading = Reading::Busy;
                        }
                    }
                    Err(framing::Malformed) => self.reading = Reading::Through,
                }
                true
            }
            Reading::Busy => false,
        }
    }

    fn may_read_next(&self) -> bool {
        self.watched.is_none() && self.exchange.answered.load(Ordering::Acquire) >= self.requests
    }

    /// Takes in bytes of an answer's head until it says whether the connection is taken over.
    fn watch(&mut self, mut watched: Watched, data: &[u8]) {
        watched.head.extend_from_slice(data);
        loop {
            let Some(end) = head_end(&watched.head) else {
                if watched.head.len() < MAX_HEAD {
                    self.watched = Some(watched);
                    return;
                }
                break;
            };
            match status_of(&watched.head) {
                Some(101) => {
                    let head = watched.head.split_to(end);
                    self.outgoing.extend_from_slice(&if watched.bare {
                        bare_head(&head)
                    } else {
                        head.to_vec()
                    });
                    self.reading = Reading::Through;
                    break;
                }
                // `100 Continue`: the answer itself is still to come.
                Some(100..=199) => self.outgoing.extend_from_slice(&watched.head.split_to(end)),
                _ => break,
            }
        }
        self.outgoing.extend_from_slice(&watched.head);
        self.exchange.reader.wake();
    }
}

/// Length of the head at the beginning of `bytes`, if it is complete.
fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

fn status_of(head: &[u8]) -> Option<u16> {
    std::str::from_utf8(head.get(9..12)?).ok()?.parse().ok()
}

/// Turns a `101` head into the `200 OK` that a client expects who did not ask for an upgrade.
fn bare_head(head: &[u8]) -> Vec<u8> {
    let mut out = b"HTTP/1.1 200 OK\r\n".to_vec();
    for line in head.split_inclusive(|&b| b == b'\n').skip(1) {
        let name = line.split(|&b| b == b':').next().unwrap_or_default();
        if !name.eq_ignore_ascii_case(b"connection") && !name.eq_ignore_ascii_case(b"upgrade") {
            out.extend_from_slice(line);
        }
    }
    out
}

impl<T: AsyncRead + Unpin> HijackIo<T> {
    /// Reads from the client into `received`; sets `eof` at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.received.reserve(8 * 1024);
        let count = ready!(tokio_util::io::poll_read_buf(
            Pin::new(&mut self.inner),
            cx,
            &mut self.received
        ))?;
        self.eof = count == 0;
        Poll::Ready(Ok(()))
    }

    /// Busy: watches the client without letting hyper see anything of it.
    fn poll_busy(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.exchange.reader.register(cx.waker());
        while !self.may_read_next() {
            if self.eof || self.received.len() >= READ_AHEAD {
                return Poll::Pending;
            }
            // A broken connection is an ended one; writing to it tells hyper.
            self.eof = ready!(self.poll_fill(cx)).is_err() || self.eof;
            if self.eof && self.watched.is_none() {
                self.exchange.gone.cancel();
            }
        }
        Poll::Ready(())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for HijackIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.released > 0 {
                let count = this.released.min(buf.remaining());
                buf.put_slice(&this.received[..count]);
                this.received.advance(count);
                this.released -= count;
                return Poll::Ready(Ok(()));
            }
            if let Reading::Busy = this.reading {
                ready!(this.poll_busy(cx));
                this.reading = Reading::Head;
            }
            if this.advance() {
                continue;
            }
            match this.reading {
                Reading::Through if this.eof => return Poll::Ready(Ok(())),
                Reading::Through => return Pin::new(&mut this.inner).poll_read(cx, buf),
                // hyper drops what it has not written yet when it reads the end, so it must not see it before.
                Reading::Head if this.eof && this.unflushed => {
                    this.exchange.reader.register(cx.waker());
                    return Poll::Pending;
                }
                // The end inside a head or body: hyper gets what there is and decides.
                _ if this.eof => this.reading = Reading::Through,
                _ => ready!(this.poll_fill(cx))?,
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> HijackIo<T> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.outgoing))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for HijackIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        this.unflushed = true;
        match this.watched.take() {
            Some(watched) => {
                this.watch(watched, data);
                Poll::Ready(Ok(data.len()))
            }
            None => Pin::new(&mut this.inner).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.watched.is_some() {
            let first = data
                .iter()
                .find(|slice| !slice.is_empty())
                .map_or(&[][..], |slice| slice);
            return Pin::new(this).poll_write(cx, first);
        }
        ready!(this.poll_drain(cx))?;
        this.unflushed = true;
        Pin::new(&mut this.inner).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        ready!(Pin::new(&mut this.inner).poll_flush(cx))?;
        this.unflushed = false;
        if this.eof {
            this.exchange.reader.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
