//! Reading answers: bounded bodies, and a registry's errors in Docker's words.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use crate::auth::{Challenge, challenges};
use crate::config::Timeouts;
use crate::error::{Error, ErrorKind, Result, Transient};
use crate::reference::Reference;
use crate::transport::network_error;

/// The largest error document read, in bytes.
const MAX_ERROR_BODY: usize = 64 << 10;
/// How much of an unexpected body is quoted, in characters.
const QUOTED: usize = 200;

/// Reads a whole body of at most `limit` bytes within the limits on waiting. `what` names it in errors.
pub(crate) async fn read_bounded(
    mut response: reqwest::Response,
    limit: usize,
    timeouts: &Timeouts,
    what: &str,
) -> Result<Bytes> {
    let too_large = || {
        Error::new(
            ErrorKind::TooLarge,
            format!("{what} is larger than the limit of {limit} bytes"),
        )
    };
    if response
        .content_length()
        .is_some_and(|length| length > limit as u64)
    {
        return Err(too_large());
    }
    let url = response.url().clone();
    let slow = || {
        Error::new(
            ErrorKind::Unavailable,
            format!("{what}: the registry sends too slowly"),
        )
        .retryable(Transient::Yes)
    };
    let read = async {
        let mut body = BytesMut::new();
        loop {
            let chunk = tokio::time::timeout(timeouts.idle, response.chunk())
                .await
                .map_err(|_| slow())?;
            let Some(chunk) = chunk.map_err(|e| network_error("Get", &url, e))? else {
                return Ok(body.freeze());
            };
            if body.len() + chunk.len() > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
    };
    tokio::time::timeout(timeouts.document, read)
        .await
        .map_err(|_| slow())?
}

/// The `Content-Type` without parameters, lower-case; empty when there is none.
pub(crate) fn content_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// `{"errors":[{"code":…,"message":…}]}`, or Docker Hub's token server's `{"details":…}`.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    errors: Vec<Entry>,
    details: Option<String>,
    message: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    code: serde_json::Value,
    #[serde(default)]
    message: String,
}

/// The error a failed answer stands for. Reads its body.
pub(crate) async fn failure(response: reqwest::Response, timeouts: &Timeouts) -> Error {
    let (status, headers) = (response.status(), response.headers().clone());
    let transient = transient(status, &headers);
    if status.is_server_error() || status.as_u16() < 400 {
        let text = format!("received unexpected HTTP status: {status}");
        return Error::new(ErrorKind::Unavailable, text).retryable(transient);
    }
    let is_html = content_type(&headers) == "text/html";
    // An error document that cannot be read does not hide the error: the status remains.
    let body = read_bounded(response, MAX_ERROR_BODY, timeouts, "the registry's error")
        .await
        .unwrap_or_default();
    from_parts(status, &headers, if is_html { &[] } else { &body }).retryable(transient)
}

fn transient(status: StatusCode, headers: &HeaderMap) -> Transient {
    let repeat = matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504);
    match retry_after(headers) {
        _ if !repeat => Transient::No,
        Some(pause) => Transient::After(pause),
        None => Transient::Yes,
    }
}

/// `Retry-After` in seconds. Its other form, a date, counts as absent: no registry is known to send it.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

fn from_parts(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    let mut entries: Vec<(String, String)> = Vec::new();
    for challenge in challenges(headers) {
        let Challenge::Bearer(bearer) = challenge else {
            continue;
        };
        let (code, default) = match bearer.error.as_deref() {
            Some("invalid_token") => ("UNAUTHORIZED", "authentication required"),
            Some("insufficient_scope") => ("DENIED", "requested access to the resource is denied"),
            _ => continue,
        };
        entries.push((
            code.to_owned(),
            bearer.error_description.unwrap_or_else(|| default.to_owned()),
        ));
    }
    if entries.is_empty() {
        entries = listed(status, body);
    }
    if entries.is_empty() {
        entries.push(by_status(status, body));
    }
    let text: Vec<String> = entries
        .iter()
        .map(|(code, message)| words(code, message))
        .collect();
    let text = match text.as_slice() {
        [one] => one.clone(),
        many => format!("errors:\n{}", many.join("\n")),
    };
    let code = &entries[0].0;
    Error::new(kind(code, status), text).with_code(code)
}

/// The errors of the body's document.
fn listed(status: StatusCode, body: &[u8]) -> Vec<(String, String)> {
    let Ok(document) = serde_json::from_slice::<Document>(body) else {
        return Vec::new();
    };
    let entries = document.errors.into_iter().map(|entry| {
        let code = match entry.code {
            serde_json::Value::String(code) => code,
            _ => by_status(status, b"").0,
        };
        (code, entry.message)
    });
    let mut entries: Vec<_> = entries.take(16).collect();
    if let (true, Some(text)) = (entries.is_empty(), document.details.or(document.message)) {
        entries.push((by_status(status, b"").0, text));
    }
    entries
}

/// Code and text for an answer that explains nothing.
fn by_status(status: StatusCode, body: &[u8]) -> (String, String) {
    let (code, text) = match status.as_u16() {
        401 => ("UNAUTHORIZED", "authentication required"),
        403 => ("DENIED", "requested access to the resource is denied"),
        429 => ("TOOMANYREQUESTS", "too many requests"),
        404 => ("NOT_FOUND", "no such resource"),
        _ => {
            let body: String = String::from_utf8_lossy(body)
                .chars()
                .filter(|c| !c.is_control())
                .take(QUOTED)
                .collect();
            let text = format!("received unexpected HTTP status: {status}");
            return (
                "UNKNOWN".to_owned(),
                if body.is_empty() {
                    text
                } else {
                    format!("{text}: {body}")
                },
            );
        }
    };
    (code.to_owned(), text.to_owned())
}

/// `MANIFEST_UNKNOWN` and a message as Docker prints them: `manifest unknown: …`.
fn words(code: &str, message: &str) -> String {
    let code = code.to_ascii_lowercase().replace('_', " ");
    let message = if message.is_empty() { &code } else { message };
    format!("{code}: {message}")
}

fn kind(code: &str, status: StatusCode) -> ErrorKind {
    match (code, status.as_u16()) {
        ("UNAUTHORIZED", _) => ErrorKind::Unauthorized,
        ("DENIED", _) => ErrorKind::Denied,
        ("MANIFEST_UNKNOWN" | "NAME_UNKNOWN" | "BLOB_UNKNOWN" | "TAG_INVALID" | "NOT_FOUND", _) => {
            ErrorKind::NotFound
        }
        ("TOOMANYREQUESTS", _) | (_, 429) => ErrorKind::RateLimited,
        ("NAME_INVALID" | "DIGEST_INVALID", _) => ErrorKind::InvalidReference,
        ("UNSUPPORTED", _) => ErrorKind::Unsupported,
        (_, 401) => ErrorKind::Unauthorized,
        (_, 403) => ErrorKind::Denied,
        (_, 404) => ErrorKind::NotFound,
        _ => ErrorKind::Unavailable,
    }
}

/// Adds the sentence dockerd puts before a registry's refusal of a manifest.
pub(crate) fn for_manifest(error: Error, reference: &Reference) -> Error {
    match (error.code(), error.kind()) {
        (Some("NAME_UNKNOWN"), _) => {
            error.context(format!("repository {} not found", reference.familiar_name()))
        }
        (_, ErrorKind::Denied) => error.context(format!(
            "pull access denied for {}, repository does not exist or may require 'docker login'",
            reference.familiar_name()
        )),
        (Some("NOT_FOUND"), _) => {
            let text = format!(
                "manifest for {} not found: manifest unknown: manifest unknown",
                reference.familiar()
            );
            Error::new(ErrorKind::NotFound, text).with_code("MANIFEST_UNKNOWN")
        }
        (_, ErrorKind::NotFound) => error.context(format!("manifest for {} not found", reference.familiar())),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, body: &str) -> Error {
        let error = from_parts(
            StatusCode::from_u16(status).unwrap(),
            &HeaderMap::new(),
            body.as_bytes(),
        );
        for_manifest(error, &"busybox:nope".parse().unwrap())
    }

    #[test]
    fn docker_s_words() {
        let table = [
            (
                404,
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"nope"}}]}"#,
                ErrorKind::NotFound,
                "manifest for busybox:nope not found: manifest unknown: manifest unknown",
            ),
            (
                404,
                "",
                ErrorKind::NotFound,
                "manifest for busybox:nope not found: manifest unknown: manifest unknown",
            ),
            (
                404,
                r#"{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}"#,
                ErrorKind::NotFound,
                "repository busybox not found: name unknown: repository name not known to registry",
            ),
            (
                403,
                r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#,
                ErrorKind::Denied,
                "pull access denied for busybox, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
            ),
            (
                403,
                "nope",
                ErrorKind::Denied,
                "pull access denied for busybox, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
            ),
            (
                401,
                "",
                ErrorKind::Unauthorized,
                "unauthorized: authentication required",
            ),
            (
                401,
                r#"{"details":"incorrect username or password"}"#,
                ErrorKind::Unauthorized,
                "unauthorized: incorrect username or password",
            ),
            (
                429,
                r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#,
                ErrorKind::RateLimited,
                "toomanyrequests: You have reached your pull rate limit.",
            ),
            (
                400,
                r#"{"errors":[{"code":"X_Y","message":"a"},{"code":"UNKNOWN","message":""}]}"#,
                ErrorKind::Unavailable,
                "errors:\nx y: a\nunknown: unknown",
            ),
            (
                418,
                "short\u{7} and stout",
                ErrorKind::Unavailable,
                "unknown: received unexpected HTTP status: 418 I'm a teapot: short and stout",
            ),
        ];
        for (status, body, kind, text) in table {
            let error = error(status, body);
            assert_eq!(
                (error.kind(), error.to_string().as_str()),
                (kind, text),
                "{status} {body}"
            );
        }
    }

    #[test]
    fn bearer_errors_come_first() {
        let mut headers = HeaderMap::new();
        headers.insert(
            http::header::WWW_AUTHENTICATE,
            r#"Bearer realm="https://x",error="insufficient_scope""#.parse().unwrap(),
        );
        let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        let error = from_parts(StatusCode::UNAUTHORIZED, &headers, body);
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert_eq!(error.code(), Some("DENIED"));
    }

    #[test]
    fn which_failures_pass() {
        let mut headers = HeaderMap::new();
        assert_eq!(transient(StatusCode::BAD_GATEWAY, &headers), Transient::Yes);
        assert_eq!(transient(StatusCode::NOT_FOUND, &headers), Transient::No);
        headers.insert(RETRY_AFTER, "7".parse().unwrap());
        assert_eq!(
            transient(StatusCode::TOO_MANY_REQUESTS, &headers),
            Transient::After(Duration::from_secs(7))
        );
        headers.insert(RETRY_AFTER, "Wed, 21 Oct 2026 07:28:00 GMT".parse().unwrap());
        assert_eq!(transient(StatusCode::TOO_MANY_REQUESTS, &headers), Transient::Yes);
    }
}
