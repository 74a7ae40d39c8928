//! `POST /containers/ID/attach`: takes over the connection and copies between client and container.
//!
//! ```text
//!  client ──bytes──▶ [detach keys, if a terminal] ──▶ container's input      end of input: closes it (no terminal)
//!  client ◀─frames── container's output                                      end of output: closes the connection
//!         (a terminal's output is not framed)                                 client gone: detaches
//! ```

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use http::{StatusCode, header};
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use skiff_core::container::{AttachOptions, Attachment};
use skiff_core::runtime::{AttachStreams, OutputChunk};
use std::io;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::App;
use crate::answer::{self, MULTIPLEXED, RAW};
use crate::detach::DetachKeys;
use crate::error::Answer;
use crate::extract::{ApiVersion, Hijack, Params};

/// The first API version in which the content type tells whether a stream is framed.
pub(crate) const FRAMING_IN_CONTENT_TYPE: ApiVersion = ApiVersion(42);

/// How long a client may go on sending after the output has ended. Closing a socket with unread bytes in it
/// would reset the connection and lose output that the client has not read yet.
const LINGER: Duration = Duration::from_secs(1);

/// Size of the buffer for input.
const INPUT_BUFFER: usize = 16 * 1024;

/// `docker attach`, `docker run`, `docker start -a`.
pub(crate) async fn attach(
    State(app): State<App>,
    Path(id): Path<String>,
    params: Params,
    version: ApiVersion,
    hijack: Hijack,
) -> Answer {
    let keys = DetachKeys::parse(params.text("detachKeys"))?;
    let streams = AttachStreams {
        stdin: params.flag("stdin"),
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr"),
    };
    let options = AttachOptions {
        streams,
        logs: params.flag("logs"),
        stream: params.flag("stream"),
    };
    let attachment = app.engine.containers.attach(&id, options).await?;
    let framed = !attachment.tty && hijack.asked && version >= FRAMING_IN_CONTENT_TYPE;
    let content_type = if framed { MULTIPLEXED } else { RAW };
    take_over(&app, hijack, content_type, |client| {
        copy(client, attachment, keys)
    })
}

/// Answers `101` (which [`crate::hijack`] turns into `200` for clients that did not ask) and hands the bare
/// connection to `tunnel`.
fn take_over<F, T>(app: &App, hijack: Hijack, content_type: http::HeaderValue, tunnel: F) -> Answer
where
    F: FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> T + Send + 'static,
    T: Future<Output = ()> + Send,
{
    let cut = app.cut.clone();
    let task = async move {
        match hijack.connection.await {
            Ok(connection) => cut
                .run_until_cancelled(tunnel(TokioIo::new(connection)))
                .await
                .unwrap_or(()),
            Err(error) => tracing::debug!(%error, "the client left before its connection was taken over"),
        }
    };
    drop(app.tasks.spawn(task.in_current_span()));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .extensions_mut()
        .insert(ReasonPhrase::from_static(b"UPGRADED"));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CONNECTION, http::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, http::HeaderValue::from_static("tcp"));
    Ok(response)
}

type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// How the client's side ended.
#[derive(Debug, PartialEq, Eq)]
enum InputEnd {
    /// It has nothing more to send, but may still read.
    HalfClosed,
    /// It typed the detach keys, or a terminal's client closed its side.
    Detached,
}

/// Copies until the output ends, the client detaches, or the client is gone.
async fn copy<C>(client: C, attachment: Attachment, keys: DetachKeys)
where
    C: AsyncRead + AsyncWrite + Send,
{
    let (mut reader, mut writer) = tokio::io::split(client);
    let tty = attachment.tty;
    let mut output = attachment.io.output;
    let client_left = {
        let mut outward = pin!(copy_output(&mut output, &mut writer, tty));
        let mut inward = pin!(copy_input(&mut reader, attachment.io.input, tty.then_some(keys)));
        tokio::select! {
            written = &mut outward => written.is_err(),
            end = &mut inward => match end {
                InputEnd::HalfClosed => outward.await.is_err(),
                InputEnd::Detached => false,
            },
        }
    };
    // From here the container is left alone: its output and input ends are dropped.
    drop(output);
    if !client_left && writer.shutdown().await.is_ok() {
        let _ = tokio::time::timeout(LINGER, discard(&mut reader)).await;
    }
}

/// Fails when the client does not take output any more.
async fn copy_output<C: AsyncWrite>(
    output: &mut mpsc::Receiver<OutputChunk>,
    client: &mut WriteHalf<C>,
    tty: bool,
) -> io::Result<()> {
    while let Some(chunk) = output.recv().await {
        if tty {
            client.write_all(&chunk.bytes).await?;
        } else {
            client
                .write_all(&answer::frame(chunk.stream, &chunk.bytes))
                .await?;
        }
        if output.is_empty() {
            client.flush().await?;
        }
    }
    Ok(())
}

/// `keys` are given for a terminal only.
async fn copy_input<C: AsyncRead>(
    client: &mut ReadHalf<C>,
    input: Option<Input>,
    mut keys: Option<DetachKeys>,
) -> InputEnd {
    let Some(mut input) = input else {
        discard(client).await;
        return InputEnd::HalfClosed;
    };
    let mut buffer = vec![0; INPUT_BUFFER];
    let mut passed = Vec::new();
    loop {
        let count = match client.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => count,
            // Broken, not closed: whatever is missing must not look like the end of the input.
            Err(_) => return InputEnd::Detached,
        };
        let (bytes, detached) = match &mut keys {
            None => (&buffer[..count], false),
            Some(keys) => {
                passed.clear();
                let detached = keys.feed(&buffer[..count], &mut passed);
                (&passed[..], detached)
            }
        };
        if input.write_all(bytes).await.is_err() || input.flush().await.is_err() {
            // The container has closed its input; its output goes on.
            discard(client).await;
            return InputEnd::HalfClosed;
        }
        if detached {
            return InputEnd::Detached;
        }
    }
    if keys.is_some() {
        // A terminal has no end of input besides ^D; a client that closes its side has left.
        return InputEnd::Detached;
    }
    // An error means that it is closed already.
    let _ = input.shutdown().await;
    InputEnd::HalfClosed
}

async fn discard<C: AsyncRead>(client: &mut ReadHalf<C>) {
    let _ = tokio::io::copy(client, &mut tokio::io::sink()).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use skiff_core::runtime::{StdStream, TaskIo};
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::JoinHandle;

    struct Container {
        output: mpsc::Sender<OutputChunk>,
        input: DuplexStream,
    }

    impl Container {
        async fn say(&self, stream: StdStream, text: &'static str) {
            self.output
                .send(OutputChunk {
                    stream,
                    bytes: Bytes::from_static(text.as_bytes()),
                })
                .await
                .unwrap();
        }
    }

    /// A client, a container, and the copying between them.
    fn attached(tty: bool, with_input: bool) -> (DuplexStream, Container, JoinHandle<()>) {
        let (client, server) = duplex(4096);
        let (sender, output) = mpsc::channel(4);
        let (near, far) = duplex(4096);
        let input: Option<Input> = with_input.then(|| Box::new(near) as Input);
        let attachment = Attachment {
            tty,
            io: TaskIo { output, input },
        };
        let task = tokio::spawn(copy(server, attachment, DetachKeys::parse("").unwrap()));
        (
            client,
            Container {
                output: sender,
                input: far,
            },
            task,
        )
    }

    #[tokio::test]
    async fn output_is_framed_and_its_end_closes_the_connection() {
        let (mut client, container, task) = attached(false, false);
        container.say(StdStream::Stdout, "out\n").await;
        container.say(StdStream::Stderr, "err\n").await;
        drop(container);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"\x01\0\0\0\0\0\0\x04out\n\x02\0\0\0\0\0\0\x04err\n");
        drop(client);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn half_close_ends_the_input_while_output_continues() {
        let (mut client, mut container, task) = attached(false, true);
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = String::new();
        container.input.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "hello");
        container.say(StdStream::Stdout, "late").await;
        drop(container);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"\x01\0\0\0\0\0\0\x04late");
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_terminal_is_raw_and_its_detach_keys_leave_the_container_running() {
        let (mut client, mut container, task) = attached(true, true);
        container.say(StdStream::Stdout, "$ ").await;
        let mut prompt = [0; 2];
        client.read_exact(&mut prompt).await.unwrap();
        assert_eq!(&prompt, b"$ ");
        client.write_all(b"ls\r\x10\x11").await.unwrap();
        let mut got = [0; 3];
        container.input.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ls\r");
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "the connection is closed");
        drop(client);
        task.await.unwrap();
        assert!(container.output.is_closed(), "detached");
    }

    #[tokio::test]
    async fn detach_keys_mean_nothing_without_a_terminal() {
        let (mut client, mut container, _task) = attached(false, true);
        client.write_all(b"\x10\x11").await.unwrap();
        let mut got = [0; 2];
        container.input.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"\x10\x11");
    }

    #[tokio::test]
    async fn a_client_that_vanishes_detaches() {
        let (client, container, task) = attached(false, false);
        drop(client);
        // The first write after that finds out.
        let chunk = OutputChunk {
            stream: StdStream::Stdout,
            bytes: Bytes::from_static(b"x"),
        };
        let _ = container.output.send(chunk).await;
        task.await.unwrap();
        assert!(container.output.is_closed());
    }

    #[tokio::test]
    async fn a_container_that_closes_its_input_does_not_block_the_client() {
        let (mut client, container, task) = attached(false, true);
        drop(container.input);
        client.write_all(&vec![b'x'; 100_000]).await.unwrap();
        container
            .output
            .send(OutputChunk {
                stream: StdStream::Stdout,
                bytes: Bytes::from_static(b"y"),
            })
            .await
            .unwrap();
        drop(container.output);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.last(), Some(&b'y'));
        drop(client);
        task.await.unwrap();
    }
}
