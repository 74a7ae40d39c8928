//! A registry that lies, stalls and hangs up, on a port of every address. It serves one image under any name; what goes wrong
//! is decided request by request, so that a second try can succeed.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::image::{Built, MANIFEST};
use super::{PATIENCE, eventually, this_machine};

/// How a request is answered.
#[derive(Debug, Clone)]
pub(crate) enum Behaviour {
    /// As it should be.
    Serve,
    /// With the bytes, one of them wrong.
    Corrupt,
    /// With other bytes altogether.
    Replace(Vec<u8>),
    /// Announces everything and hangs up after so many bytes.
    CutAfter(usize),
    /// Stops after so many bytes until the gate opens or the client has gone.
    StallAfter(usize, Gate),
    /// With a status; 403 comes with the error registries send.
    Status(u16),
    /// Sends the client elsewhere.
    Redirect(String),
}

/// Something to wait at, opened once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Whether it opened within the time.
    fn wait(&self, limit: Duration) -> bool {
        let guard = self.0.0.lock().unwrap();
        *self
            .0
            .1
            .wait_timeout_while(guard, limit, |open| !*open)
            .unwrap()
            .0
    }
}

/// A request that came in.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    fn is_blob(&self, digest: &str) -> bool {
        self.method == "GET" && self.path.ends_with(digest)
    }
}

type Choose = dyn Fn(&Seen) -> Behaviour + Send + Sync;

struct Shared {
    image: Built,
    choose: Box<Choose>,
    seen: Mutex<Vec<Seen>>,
    abandoned: AtomicUsize,
    closing: AtomicBool,
}

/// The registry; it stops listening when dropped.
pub(crate) struct HostileRegistry {
    /// `HOST:PORT`, as the engine sees it.
    pub(crate) address: String,
    shared: Arc<Shared>,
}

impl HostileRegistry {
    /// Serves `image`; `choose` says how each request is answered.
    pub(crate) fn serve(image: Built, choose: impl Fn(&Seen) -> Behaviour + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = format!("{}:{}", this_machine(), listener.local_addr().unwrap().port());
        let shared = Arc::new(Shared {
            image,
            choose: Box::new(choose),
            seen: Mutex::default(),
            abandoned: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
        });
        let for_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if for_thread.closing.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), shared) = (stream, Arc::clone(&for_thread)) else {
                    return;
                };
                std::thread::spawn(move || shared.converse(stream));
            }
        });
        Self { address, shared }
    }

    /// Serves `image`, with the first `times` requests for its last layer answered by `behaviour`.
    pub(crate) fn with_bad_layer(image: Built, times: usize, behaviour: Behaviour) -> Self {
        let last = image.layers.last().unwrap().digest.clone();
        let count = AtomicUsize::new(0);
        Self::serve(image, move |request| {
            if request.is_blob(&last) && count.fetch_add(1, Ordering::SeqCst) < times {
                behaviour.clone()
            } else {
                Behaviour::Serve
            }
        })
    }

    pub(crate) fn port(&self) -> &str {
        self.address.rsplit(':').next().unwrap()
    }

    /// A reference to its image.
    pub(crate) fn reference(&self) -> String {
        format!("{}/image:latest", self.address)
    }

    /// Everything that was asked.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Waits until somebody has asked for the last layer.
    pub(crate) fn wait_for_layer_request(&self) {
        let last = &self.shared.image.layers.last().unwrap().digest;
        eventually("the layer is asked for", PATIENCE, || {
            self.shared
                .seen
                .lock()
                .unwrap()
                .iter()
                .any(|request| request.is_blob(last))
                .then_some(())
        });
    }

    /// How often the last layer was asked for.
    pub(crate) fn layer_requests(&self) -> usize {
        let last = &self.shared.image.layers.last().unwrap().digest;
        self.seen().iter().filter(|request| request.is_blob(last)).count()
    }

    /// Waits until a client has gone away from a stalled answer.
    pub(crate) fn wait_for_abandoned(&self) {
        eventually("the client hangs up", PATIENCE, || {
            (self.shared.abandoned.load(Ordering::SeqCst) > 0).then_some(())
        });
    }
}

impl Drop for HostileRegistry {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is over.
        let _ = TcpStream::connect(format!("localhost:{}", self.port()));
    }
}

impl Shared {
    /// Serves one connection until either side has enough.
    fn converse(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        while let Some(request) = read_request(&mut reader) {
            self.seen.lock().unwrap().push(request.clone());
            if self.answer(&mut stream, &request).is_none() {
                return;
            }
        }
    }

    /// `None` ends the connection.
    fn answer(&self, stream: &mut TcpStream, request: &Seen) -> Option<()> {
        let (media_type, body) = if request.path == "/v2/" {
            ("application/json", b"{}".to_vec())
        } else if request.path.contains("/manifests/") {
            (MANIFEST, self.image.manifest.clone())
        } else if let Some(blob) = self
            .image
            .blobs()
            .find(|blob| request.path.ends_with(&blob.digest))
        {
            ("application/octet-stream", blob.bytes.clone())
        } else {
            return send(stream, 404, &[], b"{\"errors\":[{\"code\":\"BLOB_UNKNOWN\"}]}");
        };
        let mut body = body;
        let mut stop = None;
        match (self.choose)(request) {
            Behaviour::Serve => {}
            Behaviour::Corrupt => {
                let middle = body.len() / 2;
                body[middle] ^= 0x55;
            }
            Behaviour::Replace(other) => body = other,
            Behaviour::CutAfter(n) => stop = Some((n, None)),
            Behaviour::StallAfter(n, gate) => stop = Some((n, Some(gate))),
            Behaviour::Status(403) => return send(stream, 403, &[], DENIED),
            Behaviour::Status(code) => return send(stream, code, &[], b"{}"),
            Behaviour::Redirect(to) => return send(stream, 307, &[("Location", &to)], b""),
        }
        let from = request.header("range").and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .split('-')
                .next()?
                .parse::<usize>()
                .ok()
                .filter(|from| *from < body.len())
        });
        let total = body.len();
        let body = &body[from.unwrap_or(0)..];
        let range = format!("bytes {}-{}/{total}", from.unwrap_or(0), total.saturating_sub(1));
        let length = body.len().to_string();
        let digest = super::image::digest(&self.image.manifest);
        let mut headers = vec![
            ("Content-Type", media_type),
            ("Content-Length", &length),
            ("Accept-Ranges", "bytes"),
        ];
        if media_type == MANIFEST {
            headers.push(("Docker-Content-Digest", &digest));
        }
        if from.is_some() {
            headers.push(("Content-Range", &range));
        }
        if head(stream, if from.is_some() { 206 } else { 200 }, &headers).is_none() {
            // A client may leave between its request and the first byte of the answer.
            if matches!(stop, Some((_, Some(_)))) {
                self.abandoned.fetch_add(1, Ordering::SeqCst);
            }
            return None;
        }
        if request.method == "HEAD" {
            return Some(());
        }
        let Some((n, gate)) = stop else {
            return stream.write_all(body).ok();
        };
        let n = n.min(body.len());
        let gone = stream.write_all(&body[..n]).is_err();
        if gone || !self.hold(stream, &gate?) {
            self.abandoned.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        stream.write_all(&body[n..]).ok()
    }

    /// Waits at the gate; false when the client has gone meanwhile.
    fn hold(&self, stream: &mut TcpStream, gate: &Gate) -> bool {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
        loop {
            if gate.wait(Duration::from_millis(20)) {
                let _ = stream.set_read_timeout(None);
                return true;
            }
            match stream.read(&mut [0]) {
                Ok(_) => return false,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
            if self.closing.load(Ordering::SeqCst) {
                return false;
            }
        }
    }
}

const DENIED: &[u8] =
    br#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#;

/// `None` when the connection is over; what is no HTTP (a TLS greeting) gets the answer any server gives.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Seen> {
    let seen = parse_request(reader);
    if let Err(error) = &seen
        && error.kind() == std::io::ErrorKind::InvalidData
    {
        let _ = send(reader.get_mut(), 400, &[], b"{}");
    }
    seen.ok()
}

fn parse_request(reader: &mut BufReader<TcpStream>) -> std::io::Result<Seen> {
    let mut line = String::new();
    let mut next = |line: &mut String| {
        line.clear();
        match reader.read_line(line) {
            Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            other => other,
        }
    };
    next(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (Some(method), Some(path), Some(_)) = (words.next(), words.next(), words.next()) else {
        return Err(std::io::ErrorKind::InvalidData.into());
    };
    let mut seen = Seen {
        method,
        path,
        headers: Vec::new(),
    };
    loop {
        next(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Ok(seen);
        };
        seen.headers.push((name.to_owned(), value.trim().to_owned()));
    }
}

fn head(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)]) -> Option<()> {
    let mut text = format!("HTTP/1.1 {status} Status\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all((text + "\r\n").as_bytes()).ok()
}

fn send(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)], body: &[u8]) -> Option<()> {
    let length = body.len().to_string();
    let mut all = vec![
        ("Content-Type", "application/json"),
        ("Content-Length", length.as_str()),
    ];
    all.extend_from_slice(headers);
    head(stream, status, &all)?;
    stream.write_all(body).ok()
}
