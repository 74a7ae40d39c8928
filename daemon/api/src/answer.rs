//! Building answers: JSON as Go's encoder ends it (with a newline), empty ones, and streams.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use skiff_core::runtime::StdStream;

/// `application/json`.
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Frames of [`frame`].
pub(crate) const MULTIPLEXED: HeaderValue =
    HeaderValue::from_static("application/vnd.docker.multiplexed-stream");
/// A terminal's bytes, and what everything was called before API 1.42.
pub(crate) const RAW: HeaderValue = HeaderValue::from_static("application/vnd.docker.raw-stream");

/// The number of the stream that carries the daemon's own errors in a framed log.
const SYSTEM_ERROR: u8 = 3;

/// A JSON document.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    (status, [(header::CONTENT_TYPE, JSON)], json_line(value)).into_response()
}

/// `200 OK` with a JSON document.
pub(crate) fn ok(value: &impl Serialize) -> Response {
    json(StatusCode::OK, value)
}

/// `204 No Content`.
pub(crate) fn no_content() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// One JSON value and a newline.
pub(crate) fn json_line(value: &impl Serialize) -> Bytes {
    json_line_ending_in(value, b"\n")
}

/// One JSON value and `end`.
pub(crate) fn json_line_ending_in(value: &impl Serialize, end: &[u8]) -> Bytes {
    match serde_json::to_vec(value) {
        Ok(mut line) => {
            line.extend_from_slice(end);
            line.into()
        }
        // Our wire types have string keys and no failing serialisers; if one ever does, say so instead of dying.
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            Bytes::from_static(b"{\"message\":\"internal error: the answer is not valid JSON\"}\n")
        }
    }
}

/// `200 OK` with a body that is sent as it comes; the head goes out at once.
pub(crate) fn stream(
    content_type: HeaderValue,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
) -> Response {
    (
        [(header::CONTENT_TYPE, content_type)],
        Body::from_stream(chunks.map(Ok::<_, Infallible>)),
    )
        .into_response()
}

/// Docker's stream framing: one byte of stream number, three zeros, the length as a big-endian u32, the bytes.
///
/// ```text
///   0      1  2  3   4        8
///   stream 0  0  0   length   bytes…
/// ```
pub(crate) fn frame(stream: StdStream, bytes: &[u8]) -> Bytes {
    frame_number(stream as u8, bytes)
}

/// A message of the daemon itself in a framed stream; clients print it and fail.
pub(crate) fn system_error_frame(message: &str) -> Bytes {
    frame_number(SYSTEM_ERROR, message.as_bytes())
}

fn frame_number(stream: u8, bytes: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(8 + bytes.len());
    // A length that does not fit is cut into frames that do.
    for piece in bytes.chunks(u32::MAX as usize) {
        out.extend_from_slice(&[stream, 0, 0, 0]);
        out.extend_from_slice(&u32::try_from(piece.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(piece);
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_stream_and_length() {
        assert_eq!(
            &frame(StdStream::Stdout, b"out\n")[..],
            b"\x01\0\0\0\0\0\0\x04out\n"
        );
        assert_eq!(
            &frame(StdStream::Stderr, &[b'x'; 258])[..8],
            b"\x02\0\0\0\0\0\x01\x02"
        );
        assert_eq!(&system_error_frame("e")[..], b"\x03\0\0\0\0\0\0\x01e");
        assert!(
            frame(StdStream::Stdout, b"").is_empty(),
            "an empty frame says nothing"
        );
    }
}
