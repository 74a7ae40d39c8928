//! Errors as clients see them: one table from kind to status, one shape `{"message": "…"}`.

use std::error::Error as StdError;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use skiff_core::{Error, ErrorKind};

use crate::answer;

/// A failed request. Made from the domain's errors with `?`; this crate's own (bad query, bad body) are the
/// domain's kinds, too.
#[derive(Debug)]
pub(crate) struct ApiError(Error);

/// What a handler returns.
pub(crate) type Answer = Result<Response, ApiError>;

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl ApiError {
    /// 400 with `message`.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self(Error::invalid(message))
    }

    #[cfg(test)]
    pub(crate) fn into_inner(self) -> Error {
        self.0
    }
}

/// The one place where a kind becomes a status (design §5).
fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::NotModified => StatusCode::NOT_MODIFIED,
        ErrorKind::InvalidParameter => StatusCode::BAD_REQUEST,
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        // `System`, and kinds added later until they get a line of their own.
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The body of an error.
#[derive(Serialize)]
pub(crate) struct Message<'a> {
    pub(crate) message: &'a str,
}

/// The answer for a path or method that does not exist.
pub(crate) async fn page_not_found() -> Response {
    answer::json(
        StatusCode::NOT_FOUND,
        &Message {
            message: "page not found",
        },
    )
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = status(self.0.kind());
        let message = self.0.to_string();
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = %chain(&self.0), "request failed");
        } else if status.is_server_error() {
            tracing::warn!(status = status.as_u16(), error = %chain(&self.0), "request refused");
        }
        if status == StatusCode::NOT_MODIFIED {
            return status.into_response();
        }
        answer::json(status, &Message { message: &message })
    }
}

/// An error with all its causes, each once, even where a cause's text is also in its parent's.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = StdError::source(error);
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn kinds_become_statuses_and_messages_one_json_line() {
        for (kind, expected) in [
            (ErrorKind::InvalidParameter, 400),
            (ErrorKind::Unauthorized, 401),
            (ErrorKind::Forbidden, 403),
            (ErrorKind::NotFound, 404),
            (ErrorKind::Conflict, 409),
            (ErrorKind::System, 500),
            (ErrorKind::NotImplemented, 501),
            (ErrorKind::Unavailable, 503),
        ] {
            let response = ApiError(Error::new(kind, "No such container: \"x\"")).into_response();
            assert_eq!(response.status(), expected);
            assert_eq!(response.headers()["content-type"], "application/json");
            let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
            assert_eq!(&body[..], b"{\"message\":\"No such container: \\\"x\\\"\"}\n");
        }
    }

    #[tokio::test]
    async fn not_modified_has_no_body_and_no_type() {
        let response = ApiError(Error::not_modified("already running")).into_response();
        assert_eq!(response.status(), 304);
        assert!(response.headers().get("content-type").is_none());
        assert!(
            axum::body::to_bytes(response.into_body(), 1024)
                .await
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn the_log_names_every_cause_once() {
        let io = std::io::Error::other("disk on fire");
        let error = Error::system("write config.json").caused_by(io);
        assert_eq!(chain(&error), "write config.json: disk on fire");
    }
}
