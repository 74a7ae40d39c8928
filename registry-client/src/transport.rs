//! One request: scheme, redirects, limits on waiting, authorisation. Called by `client.rs`, `blob.rs`, `login.rs` and `auth/`.
//!
//! ```text
//!  get ─▶ authorisation known? ─▶ exchange ─▶ 401 ─▶ answer ─▶ exchange
//!                                    │
//!                                    └─ for each base (https, http where allowed): follow ─▶ at most 10 redirects
//! ```
//!
//! Invariants: an `Authorization` header goes to the origin (scheme, host, port) of the request and, once a redirect has left it,
//! nowhere else; plain HTTP is spoken only to registries that allow it, and to what they redirect to.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::Response;
use url::Url;

use crate::auth::{Access, Tokens, challenges};
use crate::config::ClientConfig;
use crate::credentials::{Credentials, look_up};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result, Transient};
use crate::response::failure;
use crate::rules::Rules;
use crate::tls;

/// Redirects followed for one request, as curl's and Go's.
const MAX_REDIRECTS: usize = 10;
/// How long an entry of the credential file is trusted without looking again.
const CREDENTIALS_KEPT: Duration = Duration::from_secs(60);

/// Sends requests.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) config: ClientConfig,
    pub(crate) rules: Rules,
    pub(crate) tokens: Tokens,
    looked_up: Mutex<HashMap<String, (Instant, Option<Credentials>)>>,
}

impl Transport {
    pub(crate) fn new(config: ClientConfig) -> Result<Self> {
        let rules = Rules::new(&config.insecure_registries)?;
        Ok(Self {
            config,
            rules,
            tokens: Tokens::default(),
            looked_up: Mutex::default(),
        })
    }

    /// Gets `path` below the endpoint's base. The answer is a success, or 416 for a range.
    ///
    /// # Errors
    /// The registry's, in Docker's words without naming the image; `Unavailable` and `Tls` from below.
    pub(crate) async fn get(
        &self,
        endpoint: &Endpoint,
        path: &str,
        headers: &HeaderMap,
        access: Access<'_>,
    ) -> Result<Response> {
        let response = self.get_authorised(endpoint, path, headers, access).await?;
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let elsewhere = Some(response.url().clone()).filter(|url| !is_of(endpoint, url));
        let error = failure(response, &self.config.timeouts).await;
        Err(match elsewhere.filter(|_| status.is_client_error()) {
            // A storage host's refusal (a signed address that has expired, say) says nothing about the image.
            Some(url) => error
                .with_kind(ErrorKind::Unavailable)
                .with_code("UNKNOWN")
                .context(format!("Get {:?}", printable(&url)))
                .retryable(Transient::Yes),
            None => error,
        })
    }

    async fn get_authorised(
        &self,
        endpoint: &Endpoint,
        path: &str,
        headers: &HeaderMap,
        access: Access<'_>,
    ) -> Result<Response> {
        let named = |error: Error| error.context(format!("Get {:?}", address(endpoint, path)));
        let remembered = endpoint.challenges();
        let authorization = match self.answer(endpoint, &remembered, access, None).await {
            Ok(authorization) => authorization,
            // What was asked for some other image may not be asked for this one.
            Err(error) if error.kind() == ErrorKind::Unauthorized => None,
            Err(error) => return Err(named(error)),
        };
        let response = self
            .exchange(endpoint, path, headers, authorization.as_ref())
            .await?;
        if response.status() != StatusCode::UNAUTHORIZED || !is_of(endpoint, response.url()) {
            return Ok(response);
        }
        let asked = challenges(response.headers());
        endpoint.asks_for(asked.clone());
        match self
            .answer(endpoint, &asked, access, authorization.as_ref())
            .await
            .map_err(named)?
        {
            Some(authorization) => self.exchange(endpoint, path, headers, Some(&authorization)).await,
            None => Ok(response),
        }
    }

    /// Sends to the base that works, or finds out which does: TLS first, then plain HTTP where that is allowed.
    pub(crate) async fn exchange(
        &self,
        endpoint: &Endpoint,
        path: &str,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response> {
        let mut last = None;
        for base in endpoint.bases() {
            let url = base.join(path).map_err(|e| {
                Error::new(
                    ErrorKind::InvalidReference,
                    format!("invalid registry address {base}{path}: {e}"),
                )
            })?;
            match self.follow(endpoint, url, headers, authorization).await {
                Ok(response) => {
                    endpoint.works_at(&base);
                    return Ok(response);
                }
                Err(error) if error.kind() == ErrorKind::Tls || error.transient() == Transient::Connect => {
                    endpoint.forget_base();
                    tracing::debug!(%base, %error, "no connection");
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!("no address for {}", endpoint.authority),
            )
        }))
    }

    /// Sends a GET and follows redirects.
    pub(crate) async fn follow(
        &self,
        endpoint: &Endpoint,
        mut url: Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response> {
        let origin = url.origin();
        let mut at_home = true;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = endpoint.client.get(url.clone()).headers(headers.clone());
            at_home &= url.origin() == origin;
            if let Some(value) = authorization.filter(|_| at_home) {
                request = request.header(AUTHORIZATION, value.clone());
            }
            let response =
                self.send(request, &url, "Get")
                    .await
                    .map_err(|error| match error.transient() {
                        // A storage host out of order: the registry may name another one next time.
                        Transient::Connect if !at_home => error.retryable(Transient::Yes),
                        _ => error,
                    })?;
            let Some(location) = redirect(&response) else {
                return Ok(response);
            };
            let invalid = |why: String| {
                Error::new(
                    ErrorKind::Unavailable,
                    format!("Get {:?}: invalid redirect: {why}", printable(&url)),
                )
            };
            let location = location.to_str().map_err(|e| invalid(e.to_string()))?;
            let next = url.join(location).map_err(|e| invalid(e.to_string()))?;
            self.may_visit(endpoint, &next)?;
            tracing::debug!(from = printable(&url), to = printable(&next), "redirect");
            url = next;
        }
        let text = format!(
            "Get {:?}: stopped after {MAX_REDIRECTS} redirects",
            printable(&url)
        );
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// Posts a form, for token servers. A redirect is an error: the form holds a secret.
    pub(crate) async fn post_form(
        &self,
        endpoint: &Endpoint,
        url: Url,
        form: &[(&str, &str)],
    ) -> Result<Response> {
        let response = self
            .send(endpoint.client.post(url.clone()).form(form), &url, "Post")
            .await?;
        if redirect(&response).is_some() {
            let text = format!(
                "Post {:?}: the token server redirects; credentials are not sent on",
                printable(&url)
            );
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        Ok(response)
    }

    async fn send(&self, request: reqwest::RequestBuilder, url: &Url, method: &str) -> Result<Response> {
        let limit = self.config.timeouts.headers;
        match tokio::time::timeout(limit, request.send()).await {
            Ok(sent) => sent.map_err(|e| network_error(method, url, e)),
            Err(_) => {
                let text = format!("{method} {:?}: no answer within {limit:?}", printable(url));
                Err(Error::new(ErrorKind::Unavailable, text).retryable(Transient::Yes))
            }
        }
    }

    /// Whether `endpoint` may send us to `url`.
    ///
    /// # Errors
    /// `Unsupported` for plain HTTP from a registry that does not allow it, and for other schemes.
    pub(crate) fn may_visit(&self, endpoint: &Endpoint, url: &Url) -> Result<()> {
        let refused = |why: &str| {
            let text = format!("{} redirects to {}: {why}", endpoint.authority, printable(url));
            Err(Error::new(ErrorKind::Unsupported, text))
        };
        match url.scheme() {
            "https" => Ok(()),
            "http" if endpoint.plain_allowed || self.rules.is_declared(url) => Ok(()),
            "http" => refused("refusing to go from https to http"),
            _ => refused("neither http nor https"),
        }
    }

    /// The credential file's entry for the endpoint. A broken file or helper is logged and counts as no entry, so that
    /// public images can still be pulled.
    pub(crate) async fn credentials_for(&self, endpoint: &Endpoint) -> Option<Credentials> {
        let path = self.config.credential_file.as_deref()?;
        let server = &endpoint.server;
        let lock = || self.looked_up.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, found)) = lock().get(server)
            && at.elapsed() < CREDENTIALS_KEPT
        {
            return found.clone();
        }
        let found = look_up(path, server, self.config.timeouts.helper)
            .await
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "going on without credentials");
                None
            });
        let mut kept = lock();
        kept.retain(|_, (at, _)| at.elapsed() < CREDENTIALS_KEPT);
        kept.insert(server.clone(), (Instant::now(), found.clone()));
        found
    }
}

/// Whether `url` is the endpoint itself and no host it redirected to.
fn is_of(endpoint: &Endpoint, url: &Url) -> bool {
    endpoint.bases().iter().any(|base| base.origin() == url.origin())
}

fn redirect(response: &Response) -> Option<&HeaderValue> {
    let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    response.headers().get(LOCATION).filter(|_| moved)
}

/// The full address of `path`, for messages.
pub(crate) fn address(endpoint: &Endpoint, path: &str) -> String {
    let base = endpoint.base().map(|base| base.to_string()).unwrap_or_default();
    format!("{base}{path}")
}

/// An address without what may be secret in it: signatures in the query, a user.
pub(crate) fn printable(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Neither can fail for http addresses, and others are never printed with a user.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

/// A failure below HTTP, in the words Go's net/http uses for it.
pub(crate) fn network_error(method: &str, url: &Url, error: reqwest::Error) -> Error {
    let error = error.without_url();
    let what = format!("{method} {:?}", printable(url));
    let host = url.host_str().unwrap_or_default();
    let peer = format!("{host}:{}", url.port_or_known_default().unwrap_or_default());
    let (kind, transient, why) = classify(&error, host, &peer);
    Error::new(kind, format!("{what}: {why}"))
        .retryable(transient)
        .caused_by(error)
}

fn classify(error: &reqwest::Error, host: &str, peer: &str) -> (ErrorKind, Transient, String) {
    let causes = causes(error);
    let tls = causes
        .iter()
        .find_map(|cause| cause.downcast_ref::<rustls::Error>());
    let io = causes
        .iter()
        .find_map(|cause| cause.downcast_ref::<std::io::Error>());
    let deepest = causes.last().map(ToString::to_string).unwrap_or_default();
    if let Some(alert @ rustls::Error::AlertReceived(_)) = tls {
        // With TLS 1.3 a refused client certificate shows after the handshake.
        return (ErrorKind::Tls, Transient::No, tls::describe(alert));
    }
    if !error.is_connect() {
        let why = match io.map(std::io::Error::kind) {
            Some(std::io::ErrorKind::UnexpectedEof) => "unexpected EOF".to_owned(),
            Some(std::io::ErrorKind::ConnectionReset) => "read: connection reset by peer".to_owned(),
            _ => deepest,
        };
        return (ErrorKind::Unavailable, Transient::Yes, why);
    }
    if let Some(tls) = tls {
        return (ErrorKind::Tls, Transient::No, tls::describe(tls));
    }
    let is_lookup = causes
        .iter()
        .any(|cause| cause.to_string().starts_with("dns error"));
    let why = match io.map(std::io::Error::kind) {
        _ if error.is_timeout() => format!("dial tcp {peer}: i/o timeout"),
        Some(std::io::ErrorKind::ConnectionRefused) => {
            format!("dial tcp {peer}: connect: connection refused")
        }
        _ if is_lookup && deepest.contains("not known") => format!("dial tcp: lookup {host}: no such host"),
        _ if is_lookup => format!("dial tcp: lookup {host}: {deepest}"),
        Some(std::io::ErrorKind::UnexpectedEof) => "EOF".to_owned(),
        _ => format!("dial tcp {peer}: {deepest}"),
    };
    (ErrorKind::Unavailable, Transient::Connect, why)
}

/// The chain of causes, with what `io::Error` wraps (its `source` leaves that out).
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> Vec<&'a (dyn StdError + 'static)> {
    let mut chain: Vec<&'a (dyn StdError + 'static)> = Vec::new();
    let mut next = Some(error);
    while let Some(cause) = next.filter(|_| chain.len() < 16) {
        chain.push(cause);
        next = match cause
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    chain
}
