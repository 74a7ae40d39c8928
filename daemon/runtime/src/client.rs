//! The daemon's side of a connection to a shim.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use rustix::fs::{Mode, OFlags};
use rustix::net::Shutdown;
use skiff_core::runtime::{AttachStreams, OutputChunk, StdStream, TaskIo};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::paths;
use crate::protocol::{self, Envelope, FrameType, HEADER, MAX_DATA, Request, Response, VERSION};

/// How many pieces of output may be on their way to a client; each is at most 64 KiB.
const OUTPUT_QUEUE: usize = 4;

/// A connection to a shim.
pub(crate) struct Connection {
    stream: UnixStream,
    received: BytesMut,
}

impl Connection {
    /// Connects to the shim of a container's folder.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused` when there is no shim.
    pub(crate) async fn open(folder: &Path) -> io::Result<Self> {
        // Longer than a socket's address can be: name the folder by a descriptor.
        let path = folder.join(paths::SOCKET);
        let stream = if path.as_os_str().len() < 100 {
            UnixStream::connect(path).await?
        } else {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(folder, flags, Mode::empty())?;
            let path = PathBuf::from(format!("/proc/self/fd/{}/{}", fd.as_raw_fd(), paths::SOCKET));
            UnixStream::connect(path).await?
        };
        Ok(Self::new(stream))
    }

    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            received: BytesMut::new(),
        }
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// `UnexpectedEof` when the shim ended instead of answering.
    pub(crate) async fn call(&mut self, request: Request) -> io::Result<Response> {
        let frame = protocol::encode(
            FrameType::Request,
            &Envelope {
                version: VERSION,
                request,
            },
        );
        self.stream.write_all(&frame).await?;
        loop {
            let frame = protocol::parse_frame(&self.received).map_err(io::Error::other)?;
            if let Some((kind, payload)) = frame {
                let length = payload.len();
                let response = (kind == FrameType::Response)
                    .then(|| serde_json::from_slice(payload))
                    .transpose()?;
                self.received.advance(HEADER + length);
                if let Some(response) = response {
                    return Ok(response);
                }
            } else if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Turns an attached connection into streams. Ends by itself when the task's streams end or both halves are dropped.
    pub(crate) fn into_streams(self, streams: AttachStreams) -> TaskIo {
        let (read, write) = self.stream.into_split();
        let (sender, output) = mpsc::channel(OUTPUT_QUEUE);
        tokio::spawn(forward(read, self.received, sender));
        let input = streams
            .stdin
            .then(|| Box::new(Input::new(write)) as Box<dyn AsyncWrite + Send + Unpin>);
        TaskIo { output, input }
    }
}

/// Passes output on until the shim closes the connection or nobody listens.
async fn forward(mut socket: OwnedReadHalf, mut received: BytesMut, sender: mpsc::Sender<OutputChunk>) {
    loop {
        match protocol::parse_header(&received) {
            Ok(Some((kind, length))) if received.len() >= HEADER + length => {
                received.advance(HEADER);
                let bytes = received.split_to(length).freeze();
                let stream = match kind {
                    FrameType::Stdout => StdStream::Stdout,
                    FrameType::Stderr => StdStream::Stderr,
                    _ => continue,
                };
                if sender.send(OutputChunk { stream, bytes }).await.is_err() {
                    break;
                }
                continue;
            }
            Ok(Some((_, length))) => received.reserve(HEADER + length - received.len()),
            Ok(None) => received.reserve(8 << 10),
            Err(error) => {
                tracing::warn!(%error, "unexpected bytes from a shim");
                break;
            }
        }
        let read = tokio::select! {
            biased;
            () = sender.closed() => break,
            read = socket.read_buf(&mut received) => read,
        };
        if !matches!(read, Ok(count) if count > 0) {
            return;
        }
    }
    // Tells the shim that output is no longer wanted, though the other half may go on sending input.
    let _ = rustix::net::shutdown(socket.as_ref(), Shutdown::Read);
}

/// Input for the container: what is written becomes `Stdin` frames.
struct Input {
    socket: OwnedWriteHalf,
    /// The frame being sent.
    frame: BytesMut,
    ended: bool,
}

impl Input {
    fn new(socket: OwnedWriteHalf) -> Self {
        Self {
            socket,
            frame: BytesMut::new(),
            ended: false,
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.frame.is_empty() {
            let count = ready!(Pin::new(&mut self.socket).poll_write(context, &self.frame))?;
            self.frame.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Input {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // The previous frame must be out before bytes of a new one are accepted: that is the back-pressure.
        ready!(self.poll_send(context))?;
        let bytes = &bytes[..bytes.len().min(MAX_DATA)];
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.frame
            .extend_from_slice(&protocol::header(FrameType::Stdin, bytes.len()));
        self.frame.extend_from_slice(bytes);
        // Accepted in any case; what the socket does not take now goes out with the next write, flush or shutdown.
        match self.poll_send(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            self.ended = true;
            self.frame
                .extend_from_slice(&protocol::header(FrameType::StdinEnd, 0));
        }
        self.poll_send(context)
    }
}
