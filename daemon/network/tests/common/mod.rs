//! Runs tests the way the daemon runs: as an ordinary user, root inside a user namespace with its own mount
//! namespace, while the network namespace stays the host's. The bridge's namespace (the keeper's, in the daemon)
//! is a fresh one.
//!
//! A test calls [`as_daemon`] with its own name; outside it runs itself again inside, inside the body runs.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test binary uses its part"
)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use skiff_core::network::{NetworkMode, Sandbox, SandboxRequest};
use skiff_network::{BridgeNetworks, NetworkConfig};
use skiff_sys::{netns, ns};

const STAGE: &str = "SKIFF_NETWORK_TEST_STAGE";

/// Runs `body` inside; see the module's text. `test` is the calling test's name.
pub fn as_daemon(test: &str, body: impl AsyncFnOnce()) {
    match std::env::var(STAGE).as_deref() {
        Ok("daemon") => block_on(body()),
        _ => run_again(
            ordinary_user(),
            &["--user", "--map-root-user", "--map-auto", "--mount"],
            "daemon",
            test,
        ),
    }
}

/// As [`as_daemon`], but as root of the host: the network namespace is the test's own.
pub fn as_root(test: &str, body: impl AsyncFnOnce()) {
    match std::env::var(STAGE).as_deref() {
        Ok("daemon") => block_on(body()),
        _ => {
            let namespaces = ["--user", "--map-root-user", "--map-auto", "--mount", "--net"];
            run_again(ordinary_user(), &namespaces, "daemon", test);
        }
    }
}

/// As [`as_daemon`], but the host is one made for the test: `host` runs as root of a network namespace that plays
/// the host's, then `body` runs as the daemon of an ordinary user on that host.
pub fn as_daemon_on_own_host(
    test: &str,
    host: impl FnOnce() -> Box<dyn std::any::Any>,
    body: impl AsyncFnOnce(),
) {
    match std::env::var(STAGE).as_deref() {
        Ok("daemon") => block_on(body()),
        Ok("host") => {
            let _services = host();
            run_again(
                Command::new("env"),
                &["--user", "--map-root-user", "--mount"],
                "daemon",
                test,
            );
        }
        _ => {
            let namespaces = ["--user", "--map-root-user", "--map-auto", "--mount", "--net"];
            run_again(ordinary_user(), &namespaces, "host", test);
        }
    }
}

fn block_on(body: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(body);
}

fn run_again(mut command: Command, namespaces: &[&str], stage: &str, test: &str) {
    let copy = tempfile::Builder::new()
        .prefix("skiff-network-")
        .tempdir()
        .unwrap();
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = copy.path().join("test");
    // The ordinary user may not be allowed to look into the build directory.
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    command.arg("unshare").args(namespaces).arg("--").arg(&program);
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(STAGE, stage)
        .current_dir("/");
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{test} failed inside ({stage}): {}",
        output.status
    );
    assert!(text.contains("1 passed"), "{test} did not run inside ({stage})");
}

/// A command prefix that changes to an ordinary user with subordinate ids, unless we are one.
fn ordinary_user() -> Command {
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = test_user();
        command.args([
            format!("--reuid={uid}"),
            format!("--regid={gid}"),
            "--init-groups".to_owned(),
        ]);
    }
    command
}

/// An existing test user, or a new one: `skiff-…` with an entry in /etc/subuid.
fn test_user() -> (u32, u32) {
    let find = || {
        let subuid = fs::read_to_string("/etc/subuid").unwrap_or_default();
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find_map(|fields| {
                let entry = format!("{}:", fields[0]);
                let usable =
                    fields[0].starts_with("skiff") && subuid.lines().any(|line| line.starts_with(&entry));
                usable.then(|| (fields[2].parse().unwrap(), fields[3].parse().unwrap()))
            })
    };
    find().unwrap_or_else(|| {
        // Another test process may have been faster; what counts is that there is one afterwards.
        let _ = Command::new("useradd").args(["-m", "skiff-test"]).status();
        find().expect("a test user with subordinate ids")
    })
}

/// A new network namespace with its loopback up.
pub fn new_namespace() -> OwnedFd {
    std::thread::spawn(|| {
        ns::unshare(&[ns::Kind::Network]).unwrap();
        run("ip link set lo up");
        netns::current().unwrap()
    })
    .join()
    .unwrap()
}

/// Runs `work` inside `namespace`.
pub fn inside<T: Send>(namespace: impl AsFd, work: impl FnOnce() -> T + Send) -> T {
    netns::run_in(Some(namespace.as_fd()), work).unwrap()
}

/// Runs a command line in the calling thread's namespace and returns its output.
pub fn run(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the interfaces in the calling thread's namespace, except fallback tunnels.
pub fn interfaces() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = text
        .lines()
        .skip(2)
        .map(|line| line.split(':').next().unwrap().trim().to_owned());
    let mut names: Vec<String> = names
        .filter(|name| !name.contains("tnl") && !name.contains("sit"))
        .collect();
    names.sort();
    names
}

/// The interfaces of `namespace` whose name starts with veth.
pub fn veths(namespace: impl AsFd) -> Vec<String> {
    inside(namespace, interfaces)
        .into_iter()
        .filter(|name| name.starts_with("veth"))
        .collect()
}

/// A daemon's directories and bridge namespace.
pub struct Host {
    pub directory: tempfile::TempDir,
    pub namespace: OwnedFd,
}

impl Host {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            namespace: new_namespace(),
        }
    }

    pub fn exec_root(&self) -> PathBuf {
        self.directory.path().join("exec")
    }

    pub fn config(&self) -> NetworkConfig {
        let mut config = NetworkConfig::new(self.exec_root(), self.directory.path().join("state"));
        config.netns = Some(self.namespace.try_clone().unwrap());
        config
    }

    pub fn networks(&self) -> BridgeNetworks {
        BridgeNetworks::new(self.config()).unwrap()
    }

    /// Asserts that no sandbox is left anywhere.
    pub fn assert_clean(&self) {
        assert_eq!(veths(&self.namespace), Vec::<String>::new());
        let directory = self.exec_root().join("netns");
        let files: Vec<_> = fs::read_dir(&directory)
            .map(|entries| entries.flatten().map(|e| e.file_name()).collect())
            .unwrap_or_default();
        assert!(files.is_empty(), "{files:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(directory.to_str().unwrap()), "{mounts}");
    }
}

impl Drop for Host {
    /// What is still mounted would keep the directory from being removed.
    fn drop(&mut self) {
        let sandboxes = fs::read_dir(self.exec_root().join("netns"))
            .into_iter()
            .flatten()
            .flatten();
        let bound = sandboxes.map(|entry| entry.path());
        for path in bound.chain([self.exec_root().join("uplink.netns")]) {
            let _ = netns::unbind(&path);
        }
    }
}

pub fn request(id: &str, mode: NetworkMode) -> SandboxRequest {
    SandboxRequest {
        container_id: id.to_owned(),
        mode,
        dns: Vec::new(),
        dns_search: Vec::new(),
        dns_options: Vec::new(),
        mac_address: None,
    }
}

pub fn open(sandbox: &Sandbox) -> OwnedFd {
    File::open(sandbox.key.as_ref().unwrap()).unwrap().into()
}

pub fn address(sandbox: &Sandbox) -> Ipv4Addr {
    sandbox.endpoints[0].address.unwrap()
}

/// A listener in `namespace` that answers every connection with the client's address, until the process ends.
pub fn serve(namespace: BorrowedFd<'_>, address: Ipv4Addr) -> SocketAddr {
    let listener = inside(namespace, || TcpListener::bind((address, 0)).unwrap());
    let bound = listener.local_addr().unwrap();
    answer(listener);
    bound
}

pub fn answer(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_string();
            stream.write_all(peer.as_bytes()).unwrap();
        }
    });
}

/// Connects from `namespace` to `to` and returns what [`serve`] answers.
pub fn ask(namespace: impl AsFd, to: SocketAddr) -> std::io::Result<String> {
    ask_within(namespace, to, Duration::from_secs(10))
}

pub fn ask_within(namespace: impl AsFd, to: SocketAddr, patience: Duration) -> std::io::Result<String> {
    inside(namespace, || {
        let mut stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
