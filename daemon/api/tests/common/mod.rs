//! An engine whose neighbours are fakes (no process, no mount, no network), served on a real Unix socket, and a
//! client that sees raw bytes. Every container is a `cat` that first says `out` and `err`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on panics"
)]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use skiff_api::Listener;
use skiff_core::config::ContainerConfig;
use skiff_core::container::{Containers, ImageSource, Neighbours, RootFilesystems, Settings};
use skiff_core::events::Events;
use skiff_core::images::{ImageView, Images, ImagesConfig};
use skiff_core::network::{Endpoint, NetworkInfo, NetworkMode, Networks, Sandbox, SandboxRequest};
use skiff_core::runtime::{
    Adopted, AttachStreams, LaunchFailure, LaunchSpec, LogEntry, LogRequest, NetworkNamespace, OutputChunk,
    Runtime, StdStream, TaskExit, TaskIo, TaskPid, TerminalSize,
};
use skiff_core::system::SystemFacts;
use skiff_core::{Engine, Error, Result};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest time any step may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct World {
    tasks: Mutex<HashMap<String, Task>>,
}

struct Task {
    exit: watch::Sender<Option<TaskExit>>,
    tty: bool,
}

fn busybox() -> ImageView {
    ImageView {
        id: "sha256:1111".into(),
        tags: vec!["busybox:latest".into()],
        digests: Vec::new(),
        created: None,
        last_tagged: None,
        size: 0,
        architecture: "amd64".into(),
        variant: String::new(),
        os: "linux".into(),
        author: String::new(),
        comment: String::new(),
        config: ContainerConfig {
            cmd: Some(vec!["cat".into()]),
            ..ContainerConfig::default()
        },
        layers: Vec::new(),
        top_layer: None,
        raw_config: serde_json::Value::Null,
        parent: None,
    }
}

impl ImageSource for World {
    fn find(&self, reference: &str) -> Result<ImageView> {
        match reference {
            "busybox" => Ok(busybox()),
            other => Err(Error::not_found(format!("No such image: {other}:latest"))),
        }
    }
}

#[async_trait]
impl RootFilesystems for World {
    fn driver(&self) -> String {
        "fake".into()
    }
    async fn create(&self, _: &str, _: Option<&str>) -> Result<()> {
        Ok(())
    }
    async fn mount(&self, _: &str, _: bool) -> Result<PathBuf> {
        Ok("/rootfs".into())
    }
    async fn unmount(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn remove(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn size(&self, _: &str, _: Option<&str>) -> Result<(u64, u64)> {
        Ok((1, 2))
    }
    async fn keep_only(&self, _: &[String]) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Networks for World {
    fn check(&self, _: &NetworkMode) -> Result<()> {
        Ok(())
    }
    async fn connect(&self, _: &SandboxRequest) -> Result<Sandbox> {
        let endpoint = Endpoint {
            network: "bridge".into(),
            network_id: "b1".repeat(32),
            endpoint_id: "e1".repeat(32),
            address: Some([172, 17, 0, 2].into()),
            prefix_len: 16,
            gateway: Some([172, 17, 0, 1].into()),
            mac_address: "02:42:ac:11:00:02".into(),
            host_interface: "veth0".into(),
        };
        Ok(Sandbox {
            namespace: NetworkNamespace::Host,
            key: None,
            resolv_conf: String::new(),
            endpoints: vec![endpoint],
        })
    }
    async fn disconnect(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn recover(&self, _: &[(String, Sandbox)]) -> Result<()> {
        Ok(())
    }
    fn list(&self) -> Vec<NetworkInfo> {
        let network = |name: &str, id: &str, driver: &str| NetworkInfo {
            name: name.into(),
            id: id.repeat(32),
            driver: driver.into(),
            subnets: Vec::new(),
            options: Vec::new(),
        };
        let mut bridge = network("bridge", "b1", "bridge");
        bridge
            .subnets
            .push(("172.17.0.0/16".into(), Some([172, 17, 0, 1].into())));
        vec![
            bridge,
            network("host", "c1", "host"),
            network("none", "d1", "null"),
        ]
    }
}

#[async_trait]
impl Runtime for World {
    async fn create(&self, spec: &LaunchSpec) -> Result<TaskPid, LaunchFailure> {
        if spec.process.args.first().is_some_and(|arg| arg == "nosuchcmd") {
            let error = Error::invalid("exec: \"nosuchcmd\": executable file not found in $PATH: unknown");
            return Err(LaunchFailure {
                error,
                exit_code: 127,
            });
        }
        let task = Task {
            exit: watch::channel(None).0,
            tty: spec.process.tty,
        };
        self.tasks.lock().unwrap().insert(spec.id.clone(), task);
        Ok(4711)
    }
    async fn start(&self, _: &str) -> Result<(), LaunchFailure> {
        Ok(())
    }
    async fn attach(&self, id: &str, streams: AttachStreams) -> Result<TaskIo> {
        let (sender, output) = mpsc::channel(16);
        let (near, mut far) = tokio::io::duplex(64);
        let (exit, tty) = {
            let tasks = self.tasks.lock().unwrap();
            (tasks[id].exit.clone(), tasks[id].tty)
        };
        tokio::spawn(async move {
            let say = async |stream, bytes: &[u8]| {
                let _ = sender
                    .send(OutputChunk {
                        stream,
                        bytes: Bytes::copy_from_slice(bytes),
                    })
                    .await;
            };
            say(StdStream::Stdout, b"out\n").await;
            if !tty {
                say(StdStream::Stderr, b"err\n").await;
            }
            if streams.stdin {
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = far.read(&mut buffer).await {
                    say(StdStream::Stdout, &buffer[..count]).await;
                }
                exit.send_replace(Some(ended(0)));
            }
            let _ = exit.subscribe().wait_for(Option::is_some).await;
        });
        let input = streams
            .stdin
            .then(|| Box::new(near) as Box<dyn AsyncWrite + Send + Unpin>);
        Ok(TaskIo { output, input })
    }
    async fn resize(&self, _: &str, _: TerminalSize) -> Result<()> {
        Ok(())
    }
    async fn signal(&self, id: &str, signal: i32) -> Result<()> {
        self.tasks.lock().unwrap()[id]
            .exit
            .send_replace(Some(ended(128 + signal)));
        Ok(())
    }
    async fn wait(&self, id: &str) -> Result<TaskExit> {
        let mut exit = self.tasks.lock().unwrap()[id].exit.subscribe();
        let exit = exit
            .wait_for(Option::is_some)
            .await
            .map_err(|_| Error::system("gone"))?;
        Ok(exit.clone().unwrap())
    }
    async fn delete(&self, id: &str) -> Result<()> {
        self.tasks.lock().unwrap().remove(id);
        Ok(())
    }
    async fn adopt(&self, _: &str) -> Result<Adopted> {
        Ok(Adopted::Gone)
    }
    async fn logs(&self, request: LogRequest) -> Result<mpsc::Receiver<Result<LogEntry>>> {
        let (sender, entries) = mpsc::channel(4);
        for (stream, wanted, line) in [
            (StdStream::Stdout, request.stdout, "out\n"),
            (StdStream::Stderr, request.stderr, "err\n"),
        ] {
            if wanted {
                let time = "2026-11-21T10:00:00Z".parse().unwrap();
                sender
                    .send(Ok(LogEntry {
                        stream,
                        time,
                        line: Bytes::from_static(line.as_bytes()),
                    }))
                    .await
                    .unwrap();
            }
        }
        Ok(entries)
    }
    fn runtimes(&self) -> Vec<(String, String)> {
        vec![("fake".into(), String::new())]
    }
    fn default_runtime(&self) -> String {
        "fake".into()
    }
}

fn ended(code: i32) -> TaskExit {
    TaskExit {
        code,
        finished_at: jiff::Timestamp::now(),
        oom_killed: false,
    }
}

fn facts(root: &Path) -> SystemFacts {
    SystemFacts {
        id: "id".into(),
        version: "1.2.3".into(),
        git_commit: String::new(),
        build_time: String::new(),
        compiler: "rustc".into(),
        kernel_version: "6.1".into(),
        operating_system: "Test".into(),
        os_version: String::new(),
        architecture: "x86_64".into(),
        cpus: 2,
        memory: 1 << 30,
        hostname: "test".into(),
        data_root: root.into(),
        exec_root: root.into(),
        rootless: true,
        security_options: vec!["name=rootless".into()],
        cgroup_driver: "none".into(),
        cgroup_version: "2".into(),
        storage_driver: "vfs".into(),
        storage_status: vec![("Backing".into(), "dir".into())],
        insecure_registries: vec!["10.0.0.0/8".into(), "r:5000".into()],
        registry_mirrors: Vec::new(),
        debug: false,
        experimental: false,
        live_restore: false,
        warnings: Vec::new(),
        components: Vec::new(),
        labels: Vec::new(),
        proxies: Default::default(),
    }
}

/// A served engine; its files go when it is dropped.
pub(crate) struct Daemon {
    directory: tempfile::TempDir,
    pub(crate) events: Events,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Daemon {
    /// Serves a fresh engine.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let world = Arc::new(World::default());
        let events = Events::default();
        let driver = skiff_graphdrivers::Vfs::open(&root.join("vfs"), &[]).unwrap();
        let store = skiff_store::Store::open(&root.join("image"), Arc::new(driver)).unwrap();
        let client = skiff_registry_client::Client::new(Default::default()).unwrap();
        let images = Images::new(ImagesConfig {
            store,
            client,
            events: events.clone(),
            max_concurrent_downloads: 3,
        });
        let settings = Settings {
            directory: root.join("containers"),
            hosts_file: "/etc/hosts".into(),
            own_socket: None,
        };
        let neighbours = Neighbours {
            images: world.clone(),
            filesystems: world.clone(),
            networks: world.clone(),
            runtime: world.clone(),
            events: events.clone(),
        };
        let engine = Engine {
            containers: Containers::open(settings, neighbours).unwrap(),
            images,
            events: events.clone(),
            networks: world.clone(),
            runtime: world,
            facts: Arc::new(facts(root)),
        };
        let listener = UnixListener::bind(root.join("sock")).unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(skiff_api::serve(
            Listener::Unix(listener),
            engine,
            shutdown.clone(),
        ));
        Self {
            directory,
            events,
            shutdown,
            server,
        }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    /// A connection to it.
    pub(crate) async fn connect(&self) -> Client {
        Client {
            stream: UnixStream::connect(self.socket()).await.unwrap(),
            unread: Vec::new(),
        }
    }

    /// One request on a connection of its own.
    pub(crate) async fn call(&self, request: &str, body: &str) -> Response {
        let mut client = self.connect().await;
        client
            .request(request, "Content-Type: application/json\r\n", body)
            .await;
        client.response().await
    }

    /// Makes a container.
    pub(crate) async fn create(&self, name: &str, config: &str) -> String {
        let response = self
            .call(&format!("POST /containers/create?name={name}"), config)
            .await;
        assert_eq!(response.status, 201, "{response:?}");
        response.json()["Id"].as_str().unwrap().to_owned()
    }

    /// Asks the server to end and waits for it.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.server)
            .await
            .expect("the server ends")
            .unwrap();
    }

    pub(crate) fn publish(&self, action: &str) {
        self.events.publish("container", action, "abc", BTreeMap::new());
    }
}

/// One side of a connection.
pub(crate) struct Client {
    stream: UnixStream,
    unread: Vec<u8>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    pub(crate) async fn request(&mut self, request: &str, headers: &str, body: &str) {
        let text = format!(
            "{request} HTTP/1.1\r\nHost: d\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.send(text.as_bytes()).await;
    }

    async fn fill(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer)).await;
        let count = read
            .unwrap_or_else(|_| panic!("no more bytes after {:?}", String::from_utf8_lossy(&self.unread)));
        let count = count.unwrap();
        self.unread.extend_from_slice(&buffer[..count]);
        count > 0
    }

    /// Bytes up to and including `end`.
    pub(crate) async fn until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.unread.windows(end.len()).position(|window| window == end) {
                return self.unread.drain(..at + end.len()).collect();
            }
            assert!(
                self.fill().await,
                "the connection ended in {:?}",
                String::from_utf8_lossy(&self.unread)
            );
        }
    }

    pub(crate) async fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            assert!(
                self.fill().await,
                "the connection ended in {:?}",
                String::from_utf8_lossy(&self.unread)
            );
        }
        self.unread.drain(..count).collect()
    }

    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.unread)
    }

    /// The head of an answer; its body is empty here.
    pub(crate) async fn head(&mut self) -> Response {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let (version, rest) = lines.next().unwrap().split_once(' ').unwrap();
        assert_eq!(version, "HTTP/1.1");
        let (status, reason) = rest.split_once(' ').unwrap();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        });
        Response {
            status: status.parse().unwrap(),
            reason: reason.to_owned(),
            headers: headers.collect(),
            body: String::new(),
        }
    }

    /// One chunk of a chunked body; empty at its end.
    pub(crate) async fn chunk(&mut self) -> Vec<u8> {
        let line = String::from_utf8(self.until(b"\r\n").await).unwrap();
        let length = usize::from_str_radix(line.trim(), 16).unwrap();
        let chunk = self.exactly(length).await;
        assert_eq!(self.exactly(2).await, b"\r\n");
        chunk
    }

    /// A whole answer.
    pub(crate) async fn response(&mut self) -> Response {
        let mut response = self.head().await;
        let body = if response.header("transfer-encoding") == "chunked" {
            let mut body = Vec::new();
            loop {
                let chunk = self.chunk().await;
                if chunk.is_empty() {
                    break body;
                }
                body.extend(chunk);
            }
        } else {
            let length = response.header("content-length").parse().unwrap_or(0);
            self.exactly(length).await
        };
        response.body = String::from_utf8(body).unwrap();
        response
    }
}
