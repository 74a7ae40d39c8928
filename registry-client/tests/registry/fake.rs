//! A registry that misbehaves as told: raw HTTP/1.1 on a loopback socket, one request a connection.
//!
//! Nothing here uses the client's code, so that it cannot share the client's mistakes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
    /// How many requests for the same target came before.
    pub(crate) nth: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }
}

/// What happens on the wire, in order.
#[derive(Debug, Clone)]
enum Step {
    Send(Vec<u8>),
    Pause(Duration),
    /// Sends the bytes again and again until the peer is gone.
    Forever(Vec<u8>),
    /// Says nothing until the peer is gone.
    Hang,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    steps: Vec<Step>,
    headless: bool,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            steps: Vec::new(),
            headless: false,
        }
    }

    /// 200 with the body and its right length.
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200).body(body)
    }

    pub(crate) fn json(body: serde_json::Value) -> Self {
        Self::ok(body.to_string()).header("content-type", "application/json")
    }

    pub(crate) fn redirect(to: impl Into<String>) -> Self {
        Self::status(307).header("location", to).body("")
    }

    /// Not even a status line.
    pub(crate) fn raw() -> Self {
        Self {
            headless: true,
            ..Self::status(0)
        }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn body(self, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let length = body.len().to_string();
        self.header("content-length", length).send(body)
    }

    /// Sends bytes without saying how many; the end of the connection ends them, unless a length was declared.
    pub(crate) fn send(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.then(Step::Send(bytes.into()))
    }

    pub(crate) fn pause(self, pause: Duration) -> Self {
        self.then(Step::Pause(pause))
    }

    pub(crate) fn then_hang(self) -> Self {
        self.then(Step::Hang)
    }

    pub(crate) fn forever(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.then(Step::Forever(bytes.into()))
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    async fn write(self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<()> {
        if !self.headless {
            let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", self.status);
            for (name, value) in &self.headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            stream.write_all(format!("{head}\r\n").as_bytes()).await?;
        }
        for step in self.steps {
            match step {
                Step::Send(bytes) => stream.write_all(&bytes).await?,
                Step::Pause(pause) => {
                    stream.flush().await?;
                    tokio::time::sleep(pause).await;
                }
                Step::Forever(bytes) => loop {
                    stream.write_all(&bytes).await?;
                },
                Step::Hang => {
                    stream.flush().await?;
                    let mut rest = Vec::new();
                    stream.read_to_end(&mut rest).await?;
                }
            }
        }
        stream.flush().await?;
        stream.shutdown().await
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A running fake; stops when dropped.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    gone: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(crate) async fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, handler).await
    }

    pub(crate) async fn start_tls(
        tls: Arc<rustls::ServerConfig>,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(Some(TlsAcceptor::from(tls)), handler).await
    }

    async fn start_with(
        tls: Option<TlsAcceptor>,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let gone = Arc::new(Notify::new());
        let handler: Arc<Handler> = Arc::new(handler);
        let (kept, left) = (Arc::clone(&log), Arc::clone(&gone));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, handler, gone, tls) = (
                    Arc::clone(&kept),
                    Arc::clone(&handler),
                    Arc::clone(&left),
                    tls.clone(),
                );
                tokio::spawn(async move {
                    // Peers that break off are part of the tests; what they did is judged on their side.
                    let _ = match tls {
                        Some(tls) => match tls.accept(stream).await {
                            Ok(mut stream) => serve(&mut stream, &log, &*handler).await,
                            Err(error) => Err(error),
                        },
                        None => serve_plain(stream, &log, &*handler).await,
                    };
                    gone.notify_one();
                });
            }
        });
        Self {
            address,
            log,
            gone,
            task,
        }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// Requests whose path contains `part`.
    pub(crate) fn requests_for(&self, part: &str) -> Vec<Request> {
        self.requests()
            .into_iter()
            .filter(|request| request.path().contains(part))
            .collect()
    }

    /// Waits until some connection has ended.
    pub(crate) async fn connection_gone(&self) {
        self.gone.notified().await;
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A TLS client hello is answered as an HTTP server does: with an error in plain text.
async fn serve_plain(
    mut stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    handler: &Handler,
) -> std::io::Result<()> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    if first[0] == 0x16 {
        return Reply::status(400)
            .body("client sent TLS")
            .write(&mut stream)
            .await;
    }
    serve(&mut stream, log, handler).await
}

async fn serve(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    log: &Mutex<Vec<Request>>,
    handler: &Handler,
) -> std::io::Result<()> {
    let Some(mut request) = read(stream).await? else {
        return Ok(());
    };
    let reply = {
        let mut log = log.lock().unwrap();
        request.nth = log.iter().filter(|other| other.target == request.target).count();
        log.push(request.clone());
        handler(&request)
    };
    reply.write(stream).await
}

/// Reads a request's head and, when it has a length, its body. `None` at the end of the stream.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Request>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, target) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let mut headers = BTreeMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Request {
        method,
        target,
        headers,
        body: String::from_utf8(body).unwrap(),
        nth: 0,
    }))
}

/// A proxy that sends every CONNECT, wherever it wants to go, to one address. Gives registries names that are not loopback.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let Ok(Some(request)) = read(&mut client).await else {
                        return;
                    };
                    let mut server = TcpStream::connect(target).await.unwrap();
                    if request.method == "CONNECT" {
                        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                    } else {
                        // A plain request through a proxy names the whole address; the fake wants the path.
                        let path = request.target.splitn(4, '/').nth(3).unwrap_or_default();
                        let mut head = format!("{} /{path} HTTP/1.1\r\n", request.method);
                        for (name, value) in &request.headers {
                            head.push_str(&format!("{name}: {value}\r\n"));
                        }
                        server
                            .write_all(format!("{head}\r\n{}", request.body).as_bytes())
                            .await
                            .unwrap();
                    }
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { address, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
