//! Clients that attach before the container runs (`docker run` always does): they are kept here until the launch has a
//! task to connect them to, so that not a byte of output is lost.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::sync::{mpsc, oneshot};

use crate::error::Result;
use crate::runtime::{AttachStreams, OutputChunk, Runtime, TaskIo};

type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// Chunks buffered between the runtime's stream and an early client.
const DEPTH: usize = 16;

/// The clients waiting for a container to start.
#[derive(Default)]
pub(super) struct Waiting(Mutex<Vec<Client>>);

struct Client {
    streams: AttachStreams,
    output: mpsc::Sender<OutputChunk>,
    input: oneshot::Sender<Option<Input>>,
}

impl Waiting {
    /// Adds a client; what it is given works as soon as the container runs.
    pub(super) fn add(&self, streams: AttachStreams) -> TaskIo {
        let (output, receiver) = mpsc::channel(DEPTH);
        let (input, arrives) = oneshot::channel();
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that left without a start must not pile up.
        clients.retain(|client| !client.output.is_closed());
        clients.push(Client {
            streams,
            output,
            input,
        });
        let input = streams
            .stdin
            .then(|| Box::new(LateInput::Expected(arrives)) as Input);
        TaskIo {
            output: receiver,
            input,
        }
    }

    /// Connects all waiting clients to the created task `id`.
    pub(super) async fn connect(&self, runtime: &dyn Runtime, id: &str) -> Result<()> {
        let clients = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for client in clients.into_iter().filter(|client| !client.output.is_closed()) {
            let io = runtime.attach(id, client.streams).await?;
            // The client may be gone; then the runtime's side is dropped here, which detaches.
            let _ = client.input.send(io.input);
            tokio::spawn(forward(io.output, client.output));
        }
        Ok(())
    }

    /// Lets all waiting clients go (the start failed, or the container is removed): their streams end.
    pub(super) fn dismiss(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

async fn forward(mut from: mpsc::Receiver<OutputChunk>, to: mpsc::Sender<OutputChunk>) {
    loop {
        tokio::select! {
            () = to.closed() => return,
            chunk = from.recv() => {
                let Some(chunk) = chunk else { return };
                if to.send(chunk).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Input of a container that may not run yet: writes wait for it.
enum LateInput {
    Expected(oneshot::Receiver<Option<Input>>),
    Here(Input),
    /// The container never came, or has no open standard input.
    Absent,
}

impl LateInput {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<&mut Input>> {
        if let Self::Expected(arrives) = self {
            *self = match ready!(Pin::new(arrives).poll(context)) {
                Ok(Some(input)) => Self::Here(input),
                Ok(None) | Err(_) => Self::Absent,
            };
        }
        Poll::Ready(match self {
            Self::Here(input) => Ok(input),
            _ => Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the container has no standard input",
            )),
        })
    }
}

impl AsyncWrite for LateInput {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let input = ready!(self.poll_ready(context))?;
        Pin::new(input).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Here(input) => Pin::new(input).poll_flush(context),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.poll_ready(context)) {
            Ok(input) => Pin::new(input).poll_shutdown(context),
            Err(_) => Poll::Ready(Ok(())),
        }
    }
}
