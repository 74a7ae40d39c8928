//! Listening and connections: accepts, wraps each connection in a [`HijackIo`], lets hyper speak HTTP on it,
//! and ends it all in an orderly way.
//!
//! Shutdown has two steps. `shutdown` is cancelled: nothing new is accepted, idle connections close, endless
//! streams (events, followed logs) end. Whatever is still open [`DRAIN`] later is cut.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use skiff_core::Engine;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Api;
use crate::hijack::{Answering, Exchange, HijackIo};

/// How long open requests and attached clients may go on after `shutdown`.
const DRAIN: Duration = Duration::from_secs(1);

/// How long to wait after a failed accept (out of descriptors) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket to serve the API on, already bound.
#[derive(Debug)]
pub enum Listener {
    /// `unix://`, `fd://`.
    Unix(UnixListener),
    /// `tcp://` without TLS. TLS is a third variant beside this one: accept, handshake in the connection's task,
    /// then the same [`connection`].
    Tcp(TcpListener),
}

/// Serves the Engine API on `listener` until `shutdown` is cancelled and the open requests have ended or were cut.
/// Several sockets are served by several calls with clones of the engine and the token.
pub async fn serve(listener: Listener, engine: Engine, shutdown: CancellationToken) {
    let cut = CancellationToken::new();
    let tasks = TaskTracker::new();
    let api = Api::new(engine, &shutdown, &cut, &tasks);
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &api, &shutdown, &cut) => accepted,
        };
        match accepted {
            Ok(connection) => drop(tasks.spawn(connection)),
            Err(error) => {
                tracing::warn!(%error, "cannot accept an API connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::info!(
            connections = tasks.len(),
            "closing API connections that are still busy"
        );
        cut.cancel();
        tasks.wait().await;
    }
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

async fn accept(
    listener: &Listener,
    api: &Api,
    shutdown: &CancellationToken,
    cut: &CancellationToken,
) -> io::Result<Task> {
    match listener {
        Listener::Unix(listener) => Ok(task(listener.accept().await?.0, api, shutdown, cut)),
        Listener::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            // Small answers and keystrokes must not wait for more.
            stream.set_nodelay(true)?;
            Ok(task(stream, api, shutdown, cut))
        }
    }
}

fn task<S>(stream: S, api: &Api, shutdown: &CancellationToken, cut: &CancellationToken) -> Task
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (connection, cut) = (connection(stream, api.clone(), shutdown.clone()), cut.clone());
    Box::pin(async move {
        cut.run_until_cancelled(connection).await;
    })
}

/// Serves one connection until it ends, is taken over, or (when idle) `shutdown` is cancelled.
pub(crate) async fn connection<S>(stream: S, api: Api, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let exchange = Arc::new(Exchange::default());
    let io = TokioIo::new(HijackIo::new(stream, Arc::clone(&exchange)));
    let gone = exchange.gone().clone();
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        let guard = exchange.answering();
        request.extensions_mut().insert(Arc::clone(&exchange));
        let api = api.clone();
        async move {
            let response = api.handle(request.map(Body::new)).await;
            Ok::<_, Infallible>(response.map(|body| Guarded::new(body, guard)))
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    // The wrapper watches for clients that leave; hyper's own detection would drop answers to half-closed clients.
    builder.http1().title_case_headers(true).half_close(false);
    let connection = builder.serve_connection_with_upgrades(io, service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    gone.cancel();
    if let Err(error) = ended {
        // A client that goes away is no event for the operator.
        tracing::debug!(%error, "API connection ended");
    }
}

/// An answer's body that reports when it is complete (or dropped).
#[derive(Debug)]
pub(crate) struct Guarded {
    body: Body,
    _answering: Answering,
}

impl Guarded {
    pub(crate) fn new(body: Body, answering: Answering) -> Self {
        Self {
            body,
            _answering: answering,
        }
    }
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
