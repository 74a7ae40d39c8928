//! Blobs as streams that resume and verify.
//!
//! ```text
//!            ┌── cut, idle, 5xx: pause ──┐
//!            ▼                           │
//!  open ─▶ request from the offset ─▶ skip what is known ─▶ hash and hand out ─▶ last bytes ─▶ digest matches ─▶ end
//!            │   206: from there                                                      └─▶ it does not: error, end
//!            └─  200: the server ignores ranges; read up to the offset and drop that
//! ```
//!
//! Invariants: bytes are handed out once and in order; the chunk that completes the blob is handed out only when size and digest match;
//! attempts are counted between stretches of progress, so neither a server that always cuts nor one that sends a byte a connection
//! holds a pull for ever.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_util::Stream;
use http::header::{ACCEPT_ENCODING, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};
use oci_spec::image::{Descriptor, MediaType};
use reqwest::Response;
use url::Url;

use crate::auth::{Access, Scope};
use crate::client::{Shared, note_failure};
use crate::credentials::Credentials;
use crate::digest::Verifier;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result, Transient};
use crate::manifest::media_types::DOCKER_FOREIGN_LAYER;
use crate::reference::Reference;
use crate::response::failure;
use crate::retry::Backoff;
use crate::transport::network_error;

/// Bytes that count as progress: after so many the attempts are counted anew.
const PROGRESS: u64 = 256 << 10;

/// The bytes of a blob, in order. Dropping it ends the download.
pub struct BlobStream {
    chunks: Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>,
    size: u64,
    offset: u64,
}

impl BlobStream {
    /// Size of the whole blob, in bytes, as its descriptor says.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Position of the next chunk in the blob, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = self.chunks.as_mut().poll_next(context);
        if let Poll::Ready(Some(Ok(chunk))) = &item {
            self.offset += chunk.len() as u64;
        }
        item
    }
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream")
            .field("size", &self.size)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

/// Opens the blob. See [`Client::fetch_blob`](crate::Client::fetch_blob).
pub(crate) async fn open(
    shared: Arc<Shared>,
    reference: &Reference,
    descriptor: &Descriptor,
    prefix: Verifier,
    credentials: Option<&Credentials>,
) -> Result<BlobStream> {
    let (size, offset) = (descriptor.size(), prefix.offset());
    if prefix.size() != size || offset > size {
        let text = format!(
            "{offset} bytes of blob {} are there already, it has {size}",
            descriptor.digest()
        );
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    let backoff = Backoff::new(&shared.transport.config.retry);
    let mut download = Download {
        shared,
        reference: reference.clone(),
        descriptor: descriptor.clone(),
        credentials: credentials.cloned(),
        verifier: prefix,
        body: None,
        backoff,
        ranges: true,
        since_failure: 0,
    };
    if offset == size {
        download.finish()?;
    } else {
        download.body = Some(download.connect().await?);
    }
    download.backoff.persist();
    let chunks = futures_util::stream::try_unfold(download, |mut download| async move {
        Ok(download.next().await?.map(|chunk| (chunk, download)))
    });
    Ok(BlobStream {
        chunks: Box::pin(chunks),
        size,
        offset,
    })
}

struct Download {
    shared: Arc<Shared>,
    reference: Reference,
    descriptor: Descriptor,
    credentials: Option<Credentials>,
    verifier: Verifier,
    body: Option<Body>,
    backoff: Backoff,
    /// Whether the server is still believed to understand `Range`.
    ranges: bool,
    since_failure: u64,
}

/// An answer under way.
struct Body {
    response: Response,
    source: Arc<Endpoint>,
    /// Bytes to drop: the server began at the beginning.
    skip: u64,
}

impl Download {
    /// The next chunk; `None` after the last.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.verifier.offset() < self.verifier.size() {
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.connect().await?,
            };
            match body.chunk(&self.shared).await {
                Ok(mut chunk) => {
                    let skipped = usize::try_from(body.skip).unwrap_or(usize::MAX).min(chunk.len());
                    chunk.advance(skipped);
                    body.skip -= skipped as u64;
                    let source = Arc::clone(&body.source);
                    self.body = Some(body);
                    if !chunk.is_empty() {
                        return self.take_in(chunk, &source).map(Some);
                    }
                }
                Err(error) => {
                    // Of several sources, the next connection asks another one first.
                    let error = note_failure(
                        &body.source,
                        error.context(format!("blob {}", self.descriptor.digest())),
                    );
                    self.since_failure = 0;
                    self.backoff.pause(error).await?;
                }
            }
        }
        Ok(None)
    }

    fn take_in(&mut self, chunk: Bytes, source: &Endpoint) -> Result<Bytes> {
        let length = chunk.len() as u64;
        if length > self.verifier.size() - self.verifier.offset() {
            let text = format!(
                "blob {} is longer than its size of {} bytes",
                self.descriptor.digest(),
                self.verifier.size()
            );
            return Err(note_failure(source, Error::new(ErrorKind::Corrupt, text)));
        }
        self.verifier.update(&chunk);
        self.since_failure += length;
        if self.since_failure >= PROGRESS {
            self.backoff.progressed();
        }
        if self.verifier.offset() == self.verifier.size() {
            self.finish().map_err(|error| note_failure(source, error))?;
            self.body = None;
        }
        Ok(chunk)
    }

    fn finish(&self) -> Result<()> {
        if self.verifier.matches() {
            return Ok(());
        }
        let text = format!(
            "filesystem layer verification failed for digest {}",
            self.descriptor.digest()
        );
        Err(Error::new(ErrorKind::Corrupt, text))
    }

    /// Requests the rest, repeating what can pass.
    async fn connect(&mut self) -> Result<Body> {
        loop {
            match self.request_any().await {
                Ok(body) => return Ok(body),
                Err(error) => self.backoff.pause(error).await?,
            }
        }
    }

    /// Requests the rest from the first source that has it.
    async fn request_any(&mut self) -> Result<Body> {
        let path = format!("v2/{}/blobs/{}", self.reference.path(), self.descriptor.digest());
        let sources = self.shared.sources(&self.reference).await?;
        let origin = sources.last().cloned();
        let mut failure = Error::new(ErrorKind::Unavailable, "no source for the blob");
        for source in sources {
            match self.request(&source, &path).await {
                Ok(response) => return self.accept(response, source),
                Err(error) => failure = note_failure(&source, error),
            }
        }
        // Foreign layers may live elsewhere than in the registry.
        if let Some(origin) = origin.filter(|_| failure.kind() == ErrorKind::NotFound) {
            for url in self.foreign_urls() {
                match self.request_foreign(&origin, &url).await {
                    Ok(response) => return self.accept(response, origin),
                    Err(error) => {
                        tracing::warn!(%url, %error, "a foreign layer's address failed");
                        failure = error;
                    }
                }
            }
        }
        Err(failure)
    }

    async fn request(&self, source: &Endpoint, path: &str) -> Result<Response> {
        let scope = Scope::pull(self.reference.path());
        let credentials = self.credentials.as_ref().filter(|_| !source.is_mirror);
        let access = Access {
            scope: Some(&scope),
            credentials,
        };
        self.shared
            .transport
            .get(source, path, &self.headers()?, access)
            .await
    }

    async fn request_foreign(&self, origin: &Endpoint, url: &Url) -> Result<Response> {
        let transport = &self.shared.transport;
        transport.may_visit(origin, url)?;
        let response = transport
            .follow(origin, url.clone(), &self.headers()?, None)
            .await?;
        if response.status().is_success() || response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        Err(failure(response, &transport.config.timeouts)
            .await
            .context(format!("Get {url:?}")))
    }

    fn foreign_urls(&self) -> Vec<Url> {
        let foreign = match self.descriptor.media_type() {
            MediaType::ImageLayerNonDistributable
            | MediaType::ImageLayerNonDistributableGzip
            | MediaType::ImageLayerNonDistributableZstd => true,
            other => other.to_string() == DOCKER_FOREIGN_LAYER,
        };
        let urls = self.descriptor.urls().iter().flatten().filter(|_| foreign);
        urls.filter_map(|url| Url::parse(url).ok()).collect()
    }

    fn headers(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        // A proxy that compresses on the way would change the bytes.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let offset = self.verifier.offset();
        if offset > 0 && self.ranges {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            headers.insert(
                RANGE,
                range.map_err(|e| Error::new(ErrorKind::InvalidArgument, e.to_string()))?,
            );
        }
        Ok(headers)
    }

    /// Where the answer begins. One that begins elsewhere than asked is repeated without a range.
    fn accept(&mut self, response: Response, source: Arc<Endpoint>) -> Result<Body> {
        let offset = self.verifier.offset();
        let skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if self.ranges && range_start(response.headers()) == Some(offset) => {
                0
            }
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                self.ranges = false;
                let text = format!(
                    "blob {}: the registry mishandles ranges",
                    self.descriptor.digest()
                );
                return Err(Error::new(ErrorKind::Unavailable, text).retryable(Transient::Yes));
            }
            _ => offset,
        };
        Ok(Body {
            response,
            source,
            skip,
        })
    }
}

impl Body {
    /// The next bytes; the end is an error, because the blob is not complete while somebody asks.
    async fn chunk(&mut self, shared: &Shared) -> Result<Bytes> {
        let idle = shared.transport.config.timeouts.idle;
        let failed = |text: String| Error::new(ErrorKind::Unavailable, text).retryable(Transient::Yes);
        match tokio::time::timeout(idle, self.response.chunk()).await {
            Ok(Ok(Some(chunk))) => Ok(chunk),
            Ok(Ok(None)) => Err(failed("unexpected EOF".to_owned())),
            Ok(Err(error)) => Err(network_error("Get", self.response.url(), error)),
            Err(_) => Err(failed(format!("nothing received for {idle:?}"))),
        }
    }
}

/// The first position of `Content-Range: bytes FIRST-LAST/SIZE`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (first, _) = value.trim().strip_prefix("bytes ")?.split_once('-')?;
    first.trim().parse().ok()
}
