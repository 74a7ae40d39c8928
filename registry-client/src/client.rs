//! The client: manifests and configurations whole, blobs as streams.
//!
//! Sources of an image: the mirrors of Docker Hub (for its images only), then the origin. A mirror's failure, of whatever sort, is
//! logged and the next source is asked; the origin's failure is the caller's. Docker Hub's credentials never reach a mirror.

use std::sync::Arc;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue};
use oci_spec::image::{Descriptor, Digest, ImageManifest};

use crate::auth::{Access, Scope};
use crate::blob::{self, BlobStream};
use crate::config::{ClientConfig, RetryPolicy};
use crate::credentials::Credentials;
use crate::digest::{Verifier, sha256, verify};
use crate::endpoint::{self, Endpoint, Endpoints};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{self, Body, Manifest};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::response::{content_type, for_manifest, read_bounded};
use crate::retry::Backoff;
use crate::transport::Transport;

/// The largest manifest, in bytes (the distribution specification's recommendation).
const MAX_MANIFEST: usize = 4 << 20;
/// The largest image configuration, in bytes.
const MAX_CONFIG: usize = 8 << 20;
/// An index may hold indexes; nobody is known to nest deeper than two.
const MAX_INDEX_DEPTH: usize = 4;

/// A client for all registries. Cheap to clone; clones share connections, tokens and what was learned.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) transport: Transport,
    pub(crate) endpoints: Endpoints,
}

/// The image of a reference for one platform.
#[derive(Debug, Clone)]
pub struct PlatformImage {
    /// What the reference names: an index, or the image's own manifest. Its digest is the repository digest Docker shows.
    pub top: Manifest,
    /// The image's manifest.
    pub manifest: Manifest,
    /// The same, read.
    pub image: ImageManifest,
}

/// A small document below a registry's base.
struct Document<'a> {
    path: String,
    headers: HeaderMap,
    limit: usize,
    what: &'a str,
}

impl Client {
    /// A client. Opens no connection and reads no file.
    ///
    /// # Errors
    /// `Configuration` for malformed insecure registries, mirrors or proxies.
    pub fn new(config: ClientConfig) -> Result<Self> {
        endpoint::check(&config)?;
        let transport = Transport::new(config)?;
        Ok(Self {
            shared: Arc::new(Shared {
                transport,
                endpoints: Endpoints::default(),
            }),
        })
    }

    /// Fetches the manifest or index that `reference` names.
    ///
    /// `credentials` are the caller's for the reference's domain; without them the credential file is asked when the registry wants some.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Unauthorized`, `RateLimited` as the registry says, in Docker's words; `Corrupt` when the bytes are not those of
    /// the digest or no manifest; `Unsupported` for schema 1; `TooLarge` over 4 MiB; `Unavailable`, `Tls`.
    pub async fn fetch_manifest(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Manifest> {
        let mut headers = HeaderMap::new();
        for accepted in manifest::ACCEPTED {
            headers.append(ACCEPT, HeaderValue::from_static(accepted));
        }
        let name = reference.familiar();
        let document = Document {
            path: format!("v2/{}/manifests/{}", reference.path(), reference.identifier()),
            headers,
            limit: MAX_MANIFEST,
            what: &format!("the manifest of {name}"),
        };
        let check = |headers: &HeaderMap, bytes: Bytes| {
            let digest = check_manifest(reference, headers, &bytes)?;
            Manifest::identify(&content_type(headers), digest, bytes, &name)
        };
        let fetched = self
            .shared
            .document(reference, &document, credentials, check)
            .await;
        fetched.map_err(|error| for_manifest(error, reference))
    }

    /// Fetches the image for `platform` that `reference` names, through an index if there is one.
    ///
    /// # Errors
    /// As [`Client::fetch_manifest`]; `NotFound` "no matching manifest for …".
    pub async fn fetch_image(
        &self,
        reference: &Reference,
        platform: &Platform,
        credentials: Option<&Credentials>,
    ) -> Result<PlatformImage> {
        let top = self.fetch_manifest(reference, credentials).await?;
        let mut manifest = top.clone();
        for _ in 0..MAX_INDEX_DEPTH {
            let index = match manifest.parse()? {
                Body::Image(image) => {
                    return Ok(PlatformImage {
                        top,
                        manifest,
                        image: *image,
                    });
                }
                Body::Index(index) => index,
            };
            let entry = manifest::select(&index, platform)?;
            let by_digest = reference.with_digest(entry.digest().as_ref())?;
            manifest = self.fetch_manifest(&by_digest, credentials).await?;
            if manifest.size != entry.size() {
                let text = format!(
                    "manifest {} has {} bytes, its index says {}",
                    manifest.digest,
                    manifest.size,
                    entry.size()
                );
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
        }
        let text = format!(
            "the index of {} is nested deeper than {MAX_INDEX_DEPTH} levels",
            reference.familiar()
        );
        Err(Error::new(ErrorKind::Unsupported, text))
    }

    /// Fetches an image's configuration, verified.
    ///
    /// # Errors
    /// As [`Client::fetch_manifest`]; `TooLarge` over 8 MiB.
    pub async fn fetch_config(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        credentials: Option<&Credentials>,
    ) -> Result<Bytes> {
        let digest = descriptor.digest();
        Verifier::new(descriptor)?;
        let limit = usize::try_from(descriptor.size())
            .ok()
            .filter(|size| *size <= MAX_CONFIG);
        let Some(limit) = limit else {
            let text = format!(
                "image configuration {digest} has {} bytes, the limit is {MAX_CONFIG}",
                descriptor.size()
            );
            return Err(Error::new(ErrorKind::TooLarge, text));
        };
        let document = Document {
            path: format!("v2/{}/blobs/{digest}", reference.path()),
            headers: HeaderMap::new(),
            limit,
            what: &format!("image configuration {digest}"),
        };
        let check = |_: &HeaderMap, bytes: Bytes| {
            if bytes.len() == limit && verify(digest, &bytes)? {
                return Ok(bytes);
            }
            let text = format!("image config verification failed for digest {digest}");
            Err(Error::new(ErrorKind::Corrupt, text))
        };
        self.shared
            .document(reference, &document, credentials, check)
            .await
    }

    /// Opens a blob: a layer, or anything else too large to hold.
    ///
    /// `prefix` is a fresh [`Verifier`] for the whole blob, or one that has taken in the bytes of an earlier, cut download; the stream goes on
    /// behind them. The stream resumes by itself after cut connections. Its last item comes only after the whole blob's digest matched;
    /// until then nothing of it may be trusted.
    ///
    /// # Errors
    /// As [`Client::fetch_manifest`], for opening; the stream's items for the rest, `Corrupt` when the digest does not match.
    pub async fn fetch_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        prefix: Verifier,
        credentials: Option<&Credentials>,
    ) -> Result<BlobStream> {
        blob::open(
            Arc::clone(&self.shared),
            reference,
            descriptor,
            prefix,
            credentials,
        )
        .await
    }
}

/// The manifest's digest: the reference's, or the registry's header, both verified; the bytes' own otherwise.
fn check_manifest(reference: &Reference, headers: &HeaderMap, bytes: &Bytes) -> Result<Digest> {
    let header = headers
        .get("docker-content-digest")
        .and_then(|value| value.to_str().ok());
    let claimed = match reference.digest() {
        Some(digest) => Some(digest),
        None => header.filter(|text| text.starts_with("sha256:")),
    };
    let Some(text) = claimed else {
        return Ok(sha256(bytes));
    };
    let malformed = || Error::new(ErrorKind::Corrupt, format!("malformed digest {text:?}"));
    let digest: Digest = text.parse().map_err(|_| malformed())?;
    if verify(&digest, bytes)? {
        return Ok(digest);
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        format!("manifest verification failed for digest {digest}"),
    ))
}

impl Shared {
    /// Where to ask for `reference`, in order. The origin is the last.
    pub(crate) async fn sources(&self, reference: &Reference) -> Result<Vec<Arc<Endpoint>>> {
        let config = &self.transport.config;
        let rules = &self.transport.rules;
        let mut sources = Vec::new();
        for mirror in config.mirrors.iter().filter(|_| reference.is_docker_hub()) {
            match self.endpoints.mirror(mirror, config, rules).await {
                Ok(endpoint) if endpoint.is_penalised() => {
                    tracing::debug!(%mirror, "left out, it failed a moment ago");
                }
                Ok(endpoint) => sources.push(endpoint),
                Err(error) => tracing::warn!(%mirror, %error, "the mirror cannot be used"),
            }
        }
        sources.push(self.endpoints.origin(reference.domain(), config, rules).await?);
        Ok(sources)
    }

    async fn document<T>(
        &self,
        reference: &Reference,
        document: &Document<'_>,
        credentials: Option<&Credentials>,
        check: impl Fn(&HeaderMap, Bytes) -> Result<T>,
    ) -> Result<T> {
        let scope = Scope::pull(reference.path());
        let mut failure = None;
        for endpoint in self.sources(reference).await? {
            let access = Access {
                scope: Some(&scope),
                credentials: credentials.filter(|_| !endpoint.is_mirror),
            };
            match self.document_from(&endpoint, document, access, &check).await {
                Ok(checked) => return Ok(checked),
                Err(error) => failure = Some(note_failure(&endpoint, error)),
            }
        }
        Err(failure.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "no source for the image")))
    }

    async fn document_from<T>(
        &self,
        endpoint: &Endpoint,
        document: &Document<'_>,
        access: Access<'_>,
        check: &impl Fn(&HeaderMap, Bytes) -> Result<T>,
    ) -> Result<T> {
        let mut backoff = Backoff::new(&policy(endpoint, &self.transport.config.retry));
        loop {
            let attempt = async {
                let response = self
                    .transport
                    .get(endpoint, &document.path, &document.headers, access)
                    .await?;
                let headers = response.headers().clone();
                let timeouts = &self.transport.config.timeouts;
                let bytes = read_bounded(response, document.limit, timeouts, document.what).await?;
                Ok((headers, bytes))
            };
            match attempt.await {
                Ok((headers, bytes)) => return check(&headers, bytes),
                Err(error) => backoff.pause(error).await?,
            }
        }
    }
}

/// A mirror is not waited for: the origin is there.
fn policy(endpoint: &Endpoint, policy: &RetryPolicy) -> RetryPolicy {
    let attempts = if endpoint.is_mirror { 1 } else { policy.attempts };
    RetryPolicy {
        attempts,
        ..policy.clone()
    }
}

/// Logs a mirror's failure and leaves the mirror out for a while, unless it merely lacks the image.
pub(crate) fn note_failure(endpoint: &Endpoint, error: Error) -> Error {
    if endpoint.is_mirror {
        tracing::warn!(mirror = endpoint.authority, %error, "the mirror failed, going on with the next source");
        if !matches!(
            error.kind(),
            ErrorKind::NotFound | ErrorKind::Unauthorized | ErrorKind::Denied
        ) {
            endpoint.penalise();
        }
    }
    error
}
