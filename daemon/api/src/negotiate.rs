//! The outermost layer of a request: version prefix, names with slashes, the headers by which clients know the
//! daemon, and the span of its log lines.

use std::borrow::Cow;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri, uri};
use skiff_core::system::{API_VERSION, MIN_API_VERSION};
use tower::ServiceExt;
use tracing::Instrument;

use crate::extract::ApiVersion;
use crate::hijack::framing::is_version;
use crate::routes::Unrouted;
use crate::{Api, answer, error};

const API_VERSION_HEADER: HeaderName = HeaderName::from_static("api-version");
const EXPERIMENTAL: HeaderName = HeaderName::from_static("docker-experimental");
const OSTYPE: HeaderName = HeaderName::from_static("ostype");

/// The headers that tell clients whom they talk to.
#[derive(Debug)]
pub(crate) struct Identity {
    server: HeaderValue,
    experimental: bool,
}

impl Identity {
    /// `Docker/VERSION (linux)` is a format, not a brand: Go clients up to API 1.47 find the daemon's operating
    /// system in it (`\ADocker/.+\s\((.+)\)\z`), for `stats` and `build`.
    pub(crate) fn new(version: &str, experimental: bool) -> Self {
        let server = HeaderValue::try_from(format!("Docker/{version}+skiff (linux)"))
            .unwrap_or(HeaderValue::from_static("Docker/0+skiff (linux)"));
        Self { server, experimental }
    }

    fn mark(&self, response: &mut Response, with_experimental: bool) {
        let headers = response.headers_mut();
        headers.insert(API_VERSION_HEADER, HeaderValue::from_static(API_VERSION));
        headers.insert(OSTYPE, HeaderValue::from_static("linux"));
        headers.insert(http::header::SERVER, self.server.clone());
        if with_experimental {
            let value = if self.experimental { "true" } else { "false" };
            headers.insert(EXPERIMENTAL, HeaderValue::from_static(value));
        }
    }
}

impl Api {
    /// Answers one request.
    pub(crate) async fn handle(&self, request: Request) -> Response {
        let span = tracing::info_span!("request", method = %request.method(), path = request.uri().path());
        async {
            let begun = Instant::now();
            let response = self.negotiate(request).await;
            tracing::debug!(status = response.status().as_u16(), elapsed = ?begun.elapsed(), "answered");
            response
        }
        .instrument(span)
        .await
    }

    async fn negotiate(&self, mut request: Request) -> Response {
        let (version, path) = split_version(request.uri().path());
        let minor = match version.map(check_version) {
            None => u32::MAX,
            Some(Ok(minor)) => minor,
            Some(Err(message)) => {
                let mut response =
                    answer::json(StatusCode::BAD_REQUEST, &error::Message { message: &message });
                self.identity.mark(&mut response, false);
                return response;
            }
        };
        if request.method() == Method::OPTIONS {
            // Docker answers this for any path; browsers ask it first.
            let mut response = Response::new(Body::empty());
            self.identity.mark(&mut response, true);
            return response;
        }
        let path = fold_name(request.method(), path);
        if path != request.uri().path()
            && let Some(uri) = with_path(request.uri(), &path)
        {
            *request.uri_mut() = uri;
        }
        request.extensions_mut().insert(ApiVersion(minor));
        let mut response = match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if response.extensions().get::<Unrouted>().is_none() {
            self.identity.mark(&mut response, true);
        }
        response
    }
}

/// Cuts `/vN.NN` off a path.
fn split_version(path: &str) -> (Option<&str>, &str) {
    let Some(rest) = path.strip_prefix('/') else {
        return (None, path);
    };
    match rest.split_once('/') {
        Some((first, _)) if is_version(first) => (Some(&first[1..]), &path[1 + first.len()..]),
        _ => (None, path),
    }
}

/// The minor version, or the text of the refusal.
fn check_version(version: &str) -> Result<u32, String> {
    let parse = |text: &str| {
        text.split('.')
            .map(|part| part.parse().unwrap_or(0))
            .collect::<Vec<u32>>()
    };
    let asked = parse(version);
    if asked > parse(API_VERSION) {
        return Err(format!(
            "client version {version} is too new. Maximum supported API version is {API_VERSION}"
        ));
    }
    if asked < parse(MIN_API_VERSION) {
        return Err(format!(
            "client version {version} is too old. Minimum supported API version is {MIN_API_VERSION}, \
             please upgrade your client to a newer version"
        ));
    }
    Ok(asked.get(1).copied().unwrap_or(0))
}

/// Names of images and plugins contain slashes. Within the router a name is one segment: its slashes are encoded
/// here (the path extractor decodes them), everything up to a known last word.
fn fold_name<'a>(method: &Method, path: &'a str) -> Cow<'a, str> {
    const FOLDED: &[(&str, &[&str], &[&str])] = &[
        (
            "/images/",
            &["json", "history", "get", "attestations"],
            &["push", "tag"],
        ),
        ("/distribution/", &["json"], &[]),
        (
            "/plugins/",
            &["json"],
            &["enable", "disable", "upgrade", "push", "set"],
        ),
    ];
    let Some((prefix, gets, posts)) = FOLDED.iter().find(|(prefix, ..)| path.starts_with(prefix)) else {
        return Cow::Borrowed(path);
    };
    let words = match *method {
        Method::GET | Method::HEAD => *gets,
        Method::POST => *posts,
        _ => &[],
    };
    let rest = &path[prefix.len()..];
    let (name, word) = match rest.rsplit_once('/') {
        Some((name, word)) if words.contains(&word) => (name, &rest[name.len()..]),
        _ => (rest, ""),
    };
    if name.contains('/') {
        Cow::Owned(format!("{prefix}{}{word}", name.replace('/', "%2F")))
    } else {
        Cow::Borrowed(path)
    }
}

fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let path_and_query = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = uri::Parts::default();
    parts.path_and_query = Some(path_and_query.parse().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_prefix_is_optional_and_bounded() {
        assert_eq!(
            split_version("/v1.45/containers/json"),
            (Some("1.45"), "/containers/json")
        );
        assert_eq!(split_version("/_ping"), (None, "/_ping"));
        assert_eq!(split_version("/volumes/x"), (None, "/volumes/x"));
        assert_eq!(split_version("/v1.45"), (None, "/v1.45"));
        assert_eq!(split_version("/v/x"), (None, "/v/x"));
        assert_eq!(check_version("1.24"), Ok(24));
        assert_eq!(check_version("1.51"), Ok(51));
        assert_eq!(
            check_version("9.99").unwrap_err(),
            "client version 9.99 is too new. Maximum supported API version is 1.51"
        );
        assert_eq!(
            check_version("1.10").unwrap_err(),
            "client version 1.10 is too old. Minimum supported API version is 1.24, please upgrade your client \
             to a newer version"
        );
        assert!(
            check_version("1.52").is_err() && check_version("1").is_err() && check_version("2.0").is_err()
        );
    }

    #[test]
    fn names_with_slashes_become_one_segment() {
        for (method, path, expected) in [
            ("GET", "/images/a/b/json", "/images/a%2Fb/json"),
            (
                "GET",
                "/images/localhost:5000/a/b:1/json",
                "/images/localhost:5000%2Fa%2Fb:1/json",
            ),
            ("GET", "/images/busybox/json", "/images/busybox/json"),
            ("GET", "/images/json", "/images/json"),
            ("DELETE", "/images/a/json", "/images/a%2Fjson"),
            ("DELETE", "/images/a/b:1", "/images/a%2Fb:1"),
            ("POST", "/images/a/b/tag", "/images/a%2Fb/tag"),
            ("POST", "/images/a/b/push", "/images/a%2Fb/push"),
            (
                "GET",
                "/distribution/r.io/a/b/json",
                "/distribution/r.io%2Fa%2Fb/json",
            ),
            ("POST", "/plugins/a/b/enable", "/plugins/a%2Fb/enable"),
            ("GET", "/containers/a/json", "/containers/a/json"),
        ] {
            assert_eq!(
                fold_name(&method.parse().unwrap(), path),
                expected,
                "{method} {path}"
            );
        }
    }

    #[test]
    fn the_server_header_has_the_form_that_go_clients_parse() {
        let identity = Identity::new("0.1.0", false);
        assert_eq!(identity.server, "Docker/0.1.0+skiff (linux)");
        assert_eq!(
            Identity::new("bad\nversion", false).server,
            "Docker/0+skiff (linux)"
        );
    }
}
