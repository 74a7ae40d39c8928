//! Archives in and out: `docker save`, `load`, `import`, `export`. Bodies are streams; nothing is held in memory.
//!
//! ```text
//!   request body ─▶ task that pumps ─▶ ByteStream ─▶ engine ─▶ progress lines        (load, import)
//!   engine ─▶ ByteStream ─▶ first piece or error decides the status ─▶ answer body   (save, export)
//! ```

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use skiff_core::images::{ImportRequest, LoadRequest};
use skiff_core::{ByteStream, Error, Platform};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::App;
use crate::answer::{self, JSON};
use crate::error::{Answer, ApiError};
use crate::extract::{Gone, Params};
use crate::images::{PROGRESS_BACKLOG, Work};

const TAR: HeaderValue = HeaderValue::from_static("application/x-tar");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Pieces of a request's body that may wait.
const PIECES: usize = 4;
/// How long the rest of a body is read after its reader has given up. A client that is still sending would otherwise see
/// a broken connection instead of the error.
const DRAIN: Duration = Duration::from_secs(10);

/// `docker save NAME`.
pub(crate) async fn save_one(
    State(app): State<App>,
    Path(name): Path<String>,
    params: Params,
    Gone(gone): Gone,
) -> Answer {
    save(&app, vec![name], &params, gone).await
}

/// `docker save NAME…`.
pub(crate) async fn save_many(State(app): State<App>, params: Params, Gone(gone): Gone) -> Answer {
    save(&app, params.all("names"), &params, gone).await
}

async fn save(app: &App, names: Vec<String>, params: &Params, gone: CancellationToken) -> Answer {
    let archive = app.engine.images.save(names, platform(params)?).await?;
    archive_answer(TAR, archive, gone).await
}

/// `docker export`.
pub(crate) async fn export(State(app): State<App>, Path(id): Path<String>, Gone(gone): Gone) -> Answer {
    let archive = app.engine.containers.export(&id).await?;
    archive_answer(BYTES, archive, gone).await
}

/// `docker load`. Errors are lines of the stream, as dockerd's are.
pub(crate) async fn load(
    State(app): State<App>,
    params: Params,
    Gone(gone): Gone,
    request: Request,
) -> Answer {
    let load = LoadRequest {
        // The CLI says so when its output is no terminal.
        quiet: params.flag("quiet"),
        platform: platform(&params)?,
    };
    let (sender, progress) = mpsc::channel(PROGRESS_BACKLOG);
    let images = app.engine.images.clone();
    let body = pump(request.into_body());
    let mut work = Work::new(async move { images.load(load, body, sender).await }, progress);
    let first = tokio::select! {
        first = work.next() => first,
        // Nobody reads the answer, but dropping the work ends it.
        () = gone.cancelled() => return Err(Error::unavailable("the client has left").into()),
    };
    let lines = stream::iter(first.map(|step| step.line("load")))
        .chain(work.lines("load"))
        .take_until(Box::pin(gone.cancelled_owned()));
    Ok(answer::stream(JSON, lines))
}

/// `docker import`, the other half of `POST /images/create`.
pub(crate) async fn import(app: &App, params: &Params, gone: CancellationToken, body: Body) -> Answer {
    let import = ImportRequest {
        source: params.text("fromSrc").to_owned(),
        repository: params.text("repo").to_owned(),
        tag: params.text("tag").to_owned(),
        message: params.text("message").to_owned(),
        changes: params.all("changes"),
        platform: params.optional("platform"),
    };
    let (sender, progress) = mpsc::channel(PROGRESS_BACKLOG);
    let images = app.engine.images.clone();
    let body = pump(body);
    let work = Work::new(async move { images.import(import, body, sender).await }, progress);
    work.answer("import", gone).await
}

/// Moves a request's body into a stream that a blocking thread can read.
fn pump(mut body: Body) -> ByteStream {
    let (sender, stream) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        while let Some(frame) = body.frame().await {
            let piece = match frame {
                Ok(frame) => frame.into_data().unwrap_or_default(),
                Err(error) => {
                    // A client that left in the middle: without this the beginning would be taken for the whole.
                    let _ = sender.send(Err(io::Error::other(error))).await;
                    return;
                }
            };
            if !piece.is_empty() && sender.send(Ok(piece)).await.is_err() {
                break;
            }
        }
        drop(sender);
        let rest = async { while body.frame().await.is_some_and(|frame| frame.is_ok()) {} };
        // Whoever sends for longer finds the connection closed.
        let _ = tokio::time::timeout(DRAIN, rest).await;
    });
    stream
}

/// An archive as the answer. What fails before its first piece has a status of its own; after it, the connection is cut:
/// an archive has no place for an error.
async fn archive_answer(
    content_type: HeaderValue,
    mut archive: ByteStream,
    gone: CancellationToken,
) -> Answer {
    let first = tokio::select! {
        first = archive.recv() => first,
        () = gone.cancelled() => return Err(Error::unavailable("the client has left").into()),
    };
    let first = first
        .transpose()
        .map_err(|error| ApiError::from(Error::system(error.to_string())))?;
    let pieces = stream::iter(first.map(Ok::<Bytes, io::Error>))
        .chain(ReceiverStream::new(archive))
        .take_until(Box::pin(gone.cancelled_owned()));
    let response: Response =
        ([(header::CONTENT_TYPE, content_type)], Body::from_stream(pieces)).into_response();
    Ok(response)
}

/// The `platform` parameter: a JSON object since API 1.48; a text from clients that write one.
fn platform(params: &Params) -> Result<Option<Platform>, ApiError> {
    #[derive(Deserialize)]
    struct Object {
        os: String,
        architecture: String,
        #[serde(default)]
        variant: String,
    }
    let text = params.text("platform");
    if text.is_empty() {
        return Ok(None);
    }
    if !text.starts_with('{') {
        let parsed: Result<Platform, _> = text.parse();
        return parsed.map(Some).map_err(|error| Error::from(error).into());
    }
    let object: Object = serde_json::from_str(text)
        .map_err(|error| ApiError::invalid(format!("failed to parse platform: {error}")))?;
    if object.os.is_empty() || object.architecture.is_empty() {
        return Err(ApiError::invalid("both OS and Architecture must be provided"));
    }
    Ok(Some(Platform::new(
        &object.os,
        &object.architecture,
        &object.variant,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_objects_or_texts() {
        let parsed = |query: &str| platform(&Params::parse(query)).map(|p| p.map(|p| p.to_string()));
        assert_eq!(parsed("").unwrap(), None);
        assert_eq!(parsed("platform=linux/arm64").unwrap().unwrap(), "linux/arm64/v8");
        let query = "platform=%7B%22os%22%3A%22linux%22%2C%22architecture%22%3A%22amd64%22%7D";
        assert_eq!(parsed(query).unwrap().unwrap(), "linux/amd64");
        for bad in [
            "platform=%7B",
            "platform=%7B%22os%22%3A%22linux%22%7D",
            "platform=a/b/c/d",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn an_archive_that_fails_at_once_is_an_error_and_later_a_cut_connection() {
        let (sender, archive) = mpsc::channel(2);
        sender.send(Err(io::Error::other("no such blob"))).await.unwrap();
        let error = archive_answer(TAR, archive, CancellationToken::new())
            .await
            .unwrap_err();
        assert_eq!(error.into_inner().to_string(), "no such blob");

        let (sender, archive) = mpsc::channel(2);
        sender.send(Ok(Bytes::from_static(b"beginning"))).await.unwrap();
        sender.send(Err(io::Error::other("the disk"))).await.unwrap();
        let response = archive_answer(TAR, archive, CancellationToken::new())
            .await
            .unwrap();
        assert_eq!(response.headers()["content-type"], "application/x-tar");
        assert!(axum::body::to_bytes(response.into_body(), 1024).await.is_err());
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error_for_its_reader() {
        let pieces = [Ok(Bytes::from_static(b"a")), Err(io::Error::other("reset"))];
        let mut stream = pump(Body::from_stream(stream::iter(pieces)));
        assert_eq!(stream.recv().await.unwrap().unwrap(), "a");
        assert!(stream.recv().await.unwrap().is_err());
        assert!(stream.recv().await.is_none());
    }
}
