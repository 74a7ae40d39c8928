//! Where an HTTP/1 request begins and ends: just enough of RFC 9112 for [`super::HijackIo`] to know which bytes
//! of a connection are a request's head. Everything it does not understand is [`Parsed::Foreign`], which hands
//! the connection to hyper untouched; hyper is the one that judges requests.

use std::mem;

/// Requests with more headers than hyper accepts are hyper's to refuse.
const MAX_HEADERS: usize = 100;

/// The beginning of HTTP/2 without negotiation (RFC 9113 §3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// What the bytes received so far are.
#[derive(Debug)]
pub(super) enum Parsed {
    /// More bytes are needed.
    Partial,
    /// A whole request head.
    Head(Head),
    /// HTTP/2, or nothing that parses.
    Foreign,
}

/// A request head.
#[derive(Debug)]
pub(super) struct Head {
    /// Its length in bytes, the empty line included.
    pub(super) length: usize,
    /// Where the first header line begins.
    pub(super) headers_at: usize,
    /// What follows.
    pub(super) body: BodyFraming,
    /// The client asks for another protocol (`Upgrade:`).
    pub(super) upgrade: bool,
    /// A request whose connection Docker takes over, whether the client asks for it or not.
    pub(super) takes_over: bool,
}

/// The extent of a request body.
#[derive(Debug)]
pub(super) enum BodyFraming {
    /// So many bytes are left.
    Length(u64),
    /// Chunked transfer coding.
    Chunked(Chunk),
}

/// A position in a chunked body (RFC 9112 §7.1).
#[derive(Debug, Clone, Copy)]
pub(super) enum Chunk {
    /// In the hexadecimal length.
    Size(u64),
    /// In the rest of that line.
    Extension(u64),
    /// In the data, so many bytes are left.
    Data(u64),
    /// In the line end after the data.
    DataEnd,
    /// At the beginning of a trailer line; an empty one ends the body.
    TrailerStart,
    /// In a trailer line.
    Trailer,
    /// Past the body.
    Done,
}

/// The framing is broken.
#[derive(Debug)]
pub(super) struct Malformed;

/// Parses a request head at the beginning of `bytes`.
pub(super) fn parse_head(bytes: &[u8]) -> Parsed {
    if bytes.starts_with(&H2_PREFACE[..bytes.len().min(H2_PREFACE.len())]) {
        return if bytes.len() < H2_PREFACE.len() {
            Parsed::Partial
        } else {
            Parsed::Foreign
        };
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Foreign,
    };
    let (Some(method), Some(path), Some(minor)) = (request.method, request.path, request.version) else {
        return Parsed::Foreign;
    };
    let Ok(body) = body_framing(request.headers) else {
        return Parsed::Foreign;
    };
    let upgrade = minor == 1
        && request
            .headers
            .iter()
            .any(|h| h.name.eq_ignore_ascii_case("upgrade"));
    let Some(headers_at) = after_request_line(bytes) else {
        return Parsed::Foreign;
    };
    Parsed::Head(Head {
        length,
        headers_at,
        body,
        upgrade,
        takes_over: minor == 1 && method == "POST" && takes_over(path),
    })
}

/// `POST [/vN.NN]/containers/ID/attach` and `…/exec/ID/start`.
fn takes_over(path: &str) -> bool {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let mut segments = path.split('/').skip(1).peekable();
    if segments.peek().is_some_and(|first| is_version(first)) {
        segments.next();
    }
    let segments: [Option<&str>; 4] = std::array::from_fn(|_| segments.next());
    matches!(
        segments,
        [Some("containers"), Some(_), Some("attach"), None] | [Some("exec"), Some(_), Some("start"), None]
    )
}

/// Whether a path segment is a version prefix (`v1.45`).
pub(crate) fn is_version(segment: &str) -> bool {
    segment
        .strip_prefix('v')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
}

fn body_framing(headers: &[httparse::Header<'_>]) -> Result<BodyFraming, Malformed> {
    let mut length = None;
    let mut chunked = false;
    for header in headers {
        let value = std::str::from_utf8(header.value)
            .map(str::trim)
            .unwrap_or_default();
        if header.name.eq_ignore_ascii_case("content-length") {
            let parsed: u64 = value.parse().map_err(|_| Malformed)?;
            if length.replace(parsed).is_some_and(|earlier| earlier != parsed) {
                return Err(Malformed);
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            let last = value.rsplit(',').next().unwrap_or_default().trim();
            chunked = last.eq_ignore_ascii_case("chunked");
            if !chunked {
                return Err(Malformed);
            }
        }
    }
    Ok(if chunked {
        BodyFraming::Chunked(Chunk::Size(0))
    } else {
        BodyFraming::Length(length.unwrap_or(0))
    })
}

fn after_request_line(bytes: &[u8]) -> Option<usize> {
    // Empty lines before the request line are allowed (RFC 9112 §2.2).
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n'))?;
    bytes[start..]
        .iter()
        .position(|&b| b == b'\n')
        .map(|at| start + at + 1)
}

impl BodyFraming {
    /// Whether nothing is left.
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Done))
    }

    /// How many of `bytes` belong to the body; advances past them.
    ///
    /// # Errors
    /// For a broken chunk length.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match self {
            Self::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(chunk) => chunk.take(bytes),
        }
    }
}

impl Chunk {
    fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() {
            if let Self::Done = self {
                break;
            }
            if let Self::Data(left) = self {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                *left -= taken as u64;
                at += taken;
                if *left == 0 {
                    *self = Self::DataEnd;
                }
                continue;
            }
            *self = mem::replace(self, Self::Done).step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    /// One byte outside the data.
    fn step(self, byte: u8) -> Result<Self, Malformed> {
        Ok(match (self, byte) {
            (Self::Size(0) | Self::Extension(0), b'\n') => Self::TrailerStart,
            (Self::Size(size) | Self::Extension(size), b'\n') => Self::Data(size),
            (Self::Size(size), b'\r') => Self::Extension(size),
            (Self::Size(size), b';' | b' ' | b'\t') => Self::Extension(size),
            (Self::Size(size), digit) => {
                let digit = char::from(digit).to_digit(16).ok_or(Malformed)?;
                let size = size
                    .checked_mul(16)
                    .and_then(|size| size.checked_add(u64::from(digit)));
                Self::Size(size.ok_or(Malformed)?)
            }
            (Self::DataEnd, b'\n') => Self::Size(0),
            (Self::DataEnd, b'\r') => Self::DataEnd,
            (Self::DataEnd, _) => return Err(Malformed),
            (Self::TrailerStart, b'\n') => Self::Done,
            (Self::TrailerStart, b'\r') => Self::TrailerStart,
            (Self::TrailerStart, _) => Self::Trailer,
            (Self::Trailer, b'\n') => Self::TrailerStart,
            (other, _) => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        match parse_head(text.as_bytes()) {
            Parsed::Head(head) => head,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn only_attach_and_exec_start_take_the_connection_over() {
        for (path, expected) in [
            ("/containers/x/attach", true),
            ("/v1.45/containers/x/attach?stream=1&stdin=1", true),
            ("/v1.45/exec/abc/start", true),
            ("/containers/x/attach/ws", false),
            ("/containers/attach", false),
            ("/vx/containers/x/attach", false),
            ("/exec/x/json", false),
            ("/containers/exec/start", false),
        ] {
            assert_eq!(
                head(&format!("POST {path} HTTP/1.1\r\nHost: d\r\n\r\n")).takes_over,
                expected,
                "{path}"
            );
            assert!(
                !head(&format!("GET {path} HTTP/1.1\r\nHost: d\r\n\r\n")).takes_over,
                "GET {path}"
            );
            assert!(
                !head(&format!("POST {path} HTTP/1.0\r\n\r\n")).takes_over,
                "HTTP/1.0 {path}"
            );
        }
    }

    #[test]
    fn heads_are_measured_and_lengths_read() {
        let text = "\r\nPOST /x HTTP/1.1\r\ncontent-length: 12\r\nUpgrade: tcp\r\n\r\n";
        let head = head(&format!("{text}body"));
        assert_eq!(head.length, text.len());
        assert_eq!(&text[head.headers_at..head.headers_at + 7], "content");
        assert!(head.upgrade);
        assert!(matches!(head.body, BodyFraming::Length(12)));
    }

    #[test]
    fn what_is_no_http_1_request_is_foreign() {
        assert!(matches!(
            parse_head(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            Parsed::Foreign
        ));
        assert!(matches!(parse_head(b"PRI * H"), Parsed::Partial));
        assert!(matches!(parse_head(b"\x16\x03\x01\x02"), Parsed::Foreign));
        assert!(matches!(
            parse_head(b"POST /x HTTP/1.1\r\nContent-Length: x\r\n\r\n"),
            Parsed::Foreign
        ));
        assert!(matches!(
            parse_head(b"POST /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            Parsed::Foreign
        ));
        assert!(matches!(parse_head(b"GET /x HTTP/1.1\r\n"), Parsed::Partial));
        assert!(matches!(parse_head(b""), Parsed::Partial));
    }

    #[test]
    fn chunked_bodies_end_where_they_end_however_they_are_split() {
        let body = b"5;ext=1\r\nhello\r\n1A\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nTrailer: x\r\n\r\n";
        let mut bytes = body.to_vec();
        bytes.extend_from_slice(b"GET / HTTP/1.1");
        for step in 1..bytes.len() {
            let mut framing = BodyFraming::Chunked(Chunk::Size(0));
            let mut taken = 0;
            for piece in bytes.chunks(step) {
                let n = framing.take(piece).unwrap();
                taken += n;
                if n < piece.len() {
                    break;
                }
            }
            assert_eq!(
                (taken, framing.is_done()),
                (body.len(), true),
                "in steps of {step}"
            );
        }
        for bad in [&b"x\r\n"[..], b"ffffffffffffffffff\r\n", b"1\r\nab"] {
            assert!(BodyFraming::Chunked(Chunk::Size(0)).take(bad).is_err(), "{bad:?}");
        }
    }
}
