//! HTTP/1.1 by hand over a Unix socket or TCP, because the tests must see what a client library hides: framing, hijacked
//! connections, headers that come before the body, half-closed streams.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// A connection whose answer's head has been read; the body (or the hijacked stream) is still to come.
#[derive(Debug)]
pub(crate) struct Exchange<S> {
    pub(crate) status: u16,
    /// The words after the status.
    pub(crate) reason: String,
    headers: Vec<(String, String)>,
    reader: BufReader<S>,
    /// Left of the current chunk.
    chunk: usize,
    ended: bool,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The `message` of an error.
    pub(crate) fn message(&self) -> String {
        self.json()["message"]
            .as_str()
            .unwrap_or_else(|| panic!("no message in {}", self.text()))
            .to_owned()
    }

    /// This answer, if it has the status.
    pub(crate) fn expect_status(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

impl<S: Read + Write> Exchange<S> {
    /// Sends a request and reads the head of the answer. `Content-Length` is added when there is a body or the method
    /// is POST or PUT; give `Transfer-Encoding` or a length yourself to do otherwise.
    pub(crate) fn begin(
        mut stream: S,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Self> {
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str("Host: engine\r\n");
        }
        for (name, value) in headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let own_length = headers.iter().any(|(name, _)| {
            name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding")
        });
        if !own_length && (!body.is_empty() || matches!(method, "POST" | "PUT")) {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        stream.flush()?;

        let mut reader = BufReader::new(stream);
        let first = line(&mut reader)?;
        let mut words = first.splitn(3, ' ');
        let status = words.nth(1).and_then(|code| code.parse().ok());
        let Some(status) = status else {
            return Err(std::io::Error::other(format!("not an HTTP answer: {first:?}")));
        };
        let reason = words.next().unwrap_or_default().to_owned();
        let mut answer = Self {
            status,
            reason,
            headers: Vec::new(),
            reader,
            chunk: 0,
            ended: false,
        };
        loop {
            let text = line(&mut answer.reader)?;
            let Some((name, value)) = text.split_once(':') else {
                break;
            };
            answer.headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let no_body = method == "HEAD" || matches!(status, 204 | 304);
        answer.ended = no_body || answer.header("content-length") == Some("0");
        Ok(answer)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The rest of the answer.
    pub(crate) fn finish(mut self) -> std::io::Result<Response> {
        let mut body = Vec::new();
        match self
            .header("content-length")
            .and_then(|value| value.parse::<u64>().ok())
        {
            _ if self.ended => {}
            Some(length) => {
                (&mut self.reader).take(length).read_to_end(&mut body)?;
            }
            None => {
                self.read_to_end(&mut body)?;
            }
        }
        Ok(Response {
            status: self.status,
            headers: self.headers,
            body,
        })
    }

    /// The next frame of a multiplexed stream: 1 is stdout, 2 stderr. `None` at the end.
    pub(crate) fn frame(&mut self) -> std::io::Result<Option<(u8, Vec<u8>)>> {
        let mut head = [0; 8];
        match self.read_exact(&mut head) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let mut data = vec![0; u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize];
        self.read_exact(&mut data)?;
        Ok(Some((head[0], data)))
    }

    /// All frames to the end, joined by stream: stdout, stderr.
    pub(crate) fn frames(mut self) -> std::io::Result<(String, String)> {
        let mut joined = (Vec::new(), Vec::new());
        while let Some((stream, data)) = self.frame()? {
            match stream {
                1 => joined.0.extend(data),
                2 => joined.1.extend(data),
                other => panic!("stream {other} in a frame"),
            }
        }
        Ok((
            String::from_utf8_lossy(&joined.0).into_owned(),
            String::from_utf8_lossy(&joined.1).into_owned(),
        ))
    }

    /// Reads until the collected text contains `wanted`; returns the text.
    pub(crate) fn until(&mut self, wanted: &str) -> String {
        let mut text = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let n = self
                .read(&mut piece)
                .unwrap_or_else(|e| panic!("{e}; so far {:?}", String::from_utf8_lossy(&text)));
            text.extend_from_slice(&piece[..n]);
            let shown = String::from_utf8_lossy(&text);
            if shown.contains(wanted) {
                return shown.into_owned();
            }
            assert!(n > 0, "the stream ended before {wanted:?} came: {shown:?}");
        }
    }

    /// The next line of a streamed body, without its end; `None` at the end of the stream.
    pub(crate) fn line(&mut self) -> std::io::Result<Option<String>> {
        let mut text = Vec::new();
        let mut byte = [0];
        while self.read(&mut byte)? == 1 {
            if byte[0] == b'\n' {
                return Ok(Some(String::from_utf8_lossy(&text).trim_end().to_owned()));
            }
            text.push(byte[0]);
        }
        Ok((!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned()))
    }

    /// The connection, to write to a hijacked stream or to close half of it.
    pub(crate) fn stream(&mut self) -> &mut S {
        self.reader.get_mut()
    }
}

impl<S: Read> Read for Exchange<S> {
    /// The body without its chunk framing; a hijacked stream as it is.
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let chunked = find(&self.headers, "transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        if self.ended {
            return Ok(0);
        }
        if !chunked {
            return self.reader.read(into);
        }
        if self.chunk == 0 {
            let size = line(&mut self.reader)?;
            self.chunk = usize::from_str_radix(size.trim(), 16).map_err(|_| {
                std::io::Error::new(std::io::ErrorKind::UnexpectedEof, format!("chunk size {size:?}"))
            })?;
            if self.chunk == 0 {
                self.ended = true;
                return Ok(0);
            }
        }
        let n = self.chunk.min(into.len());
        let n = self.reader.read(&mut into[..n])?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.chunk -= n;
        if self.chunk == 0 {
            line(&mut self.reader)?;
        }
        Ok(n)
    }
}

fn line(reader: &mut impl BufRead) -> std::io::Result<String> {
    let mut text = String::new();
    if reader.read_line(&mut text)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Escapes a value for a query string.
pub(crate) fn query(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}
