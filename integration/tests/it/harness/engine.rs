//! One engine under test: a daemon of the test's own, started as an unprivileged user below a temporary directory, or
//! the one `SKIFF_TEST_SOCKET` names. Dropping the guard stops it and removes everything it left; when the test fails, the
//! daemon's log is shown.
//!
//! ```text
//! /tmp/skiff-it-XXXXXX/      owned by the test's user
//! ├── home/                  $HOME: .local/share/docker, .config/docker/daemon.json
//! ├── run/                   $XDG_RUNTIME_DIR: docker.sock, docker.pid, docker/
//! ├── cli/                   the docker CLI's configuration
//! └── log                    what the daemon wrote to stderr
//! ```

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::cli::{Docker, Finished, command_in_terminal};
use super::http::{Exchange, Response};
use super::owner::{Owner, is_root};
use super::{PATIENCE, Process, eventually, process, registry};

/// How to start a daemon.
#[derive(Debug, Default)]
pub(crate) struct Options {
    args: Vec<String>,
    config: Option<Value>,
    disk: Option<Disk>,
}

/// A file system of the data root's own.
#[derive(Debug, Clone, Copy)]
enum Disk {
    /// Of so many MiB, in memory.
    Small(u32),
    /// With room for so many files, in memory.
    FewInodes(u32),
    /// A btrfs in a file, on which its user may delete subvolumes.
    Btrfs,
}

impl Disk {
    /// Mounts it on `data`; what it needs lies in `base`.
    fn mount(self, base: &Path, data: &Path, owner: &Owner) {
        let mut mount = Command::new("mount");
        let mut memory = |limit: String| {
            let options = format!("{limit},mode=710,uid={},gid={}", owner.uid, owner.gid);
            mount.args(["-t", "tmpfs", "-o", &options, "skiff-test"]);
        };
        match self {
            Self::Small(size) => memory(format!("size={size}m")),
            Self::FewInodes(number) => memory(format!("size=64m,nr_inodes={number}")),
            Self::Btrfs => {
                let image = base.join("btrfs.img");
                fs::File::create(&image).unwrap().set_len(2 << 30).unwrap();
                let made = Command::new("mkfs.btrfs").arg("-q").arg(&image).output();
                assert!(made.unwrap().status.success(), "mkfs.btrfs");
                mount.args(["-o", "loop,user_subvol_rm_allowed"]).arg(&image);
            }
        }
        let status = mount.arg(data).status();
        assert!(status.unwrap().success(), "mount of {self:?}");
        chown(data, Some(owner.uid), Some(owner.gid)).unwrap();
        fs::set_permissions(data, Permissions::from_mode(0o710)).unwrap();
    }
}

impl Options {
    /// A storage driver, with the data root where it can work.
    pub(crate) fn driver(name: &str) -> Self {
        let disk = (name == "btrfs").then_some(Disk::Btrfs);
        Self {
            disk,
            ..Self::default()
        }
        .arg("--storage-driver")
        .arg(name)
    }

    /// Puts the data root on a btrfs of its own, where every driver works (needs root).
    pub(crate) fn on_btrfs(mut self) -> Self {
        self.disk = Some(Disk::Btrfs);
        self
    }

    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// The contents of `~/.config/docker/daemon.json`.
    pub(crate) fn config(mut self, config: Value) -> Self {
        self.config = Some(config);
        self
    }

    /// Puts the data root on a file system of so many MiB (needs root).
    pub(crate) fn data_root_of_mib(mut self, size: u32) -> Self {
        self.disk = Some(Disk::Small(size));
        self
    }

    /// Puts the data root on a file system with so many inodes (needs root).
    pub(crate) fn data_root_of_inodes(mut self, number: u32) -> Self {
        self.disk = Some(Disk::FewInodes(number));
        self
    }
}

/// An engine, stopped and swept when dropped.
#[derive(Debug)]
pub(crate) struct Engine {
    base: TempDir,
    socket: PathBuf,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    owner: Owner,
    options: Options,
    parent: Option<Child>,
    mounted: Option<PathBuf>,
}

impl Engine {
    /// A daemon with default options, or the one under `SKIFF_TEST_SOCKET`.
    pub(crate) fn start() -> Self {
        Self::start_with(Options::default())
    }

    /// A daemon with options. A foreign engine (`SKIFF_TEST_SOCKET`) has its own: a test that depends on them says
    /// `require!(Engine::own(), …)` first.
    pub(crate) fn start_with(options: Options) -> Self {
        let mut engine = Self::prepare(options);
        if let Ok(socket) = std::env::var("SKIFF_TEST_SOCKET") {
            engine.socket = PathBuf::from(socket.trim_start_matches("unix://"));
            engine.own = None;
            engine.remove_everything();
            return engine;
        }
        engine.launch();
        engine.wait_until_ready();
        engine
    }

    /// A daemon with a storage driver, and the busybox image pulled.
    pub(crate) fn with_busybox(driver: &str) -> Self {
        let engine = Self::start_with(Options::driver(driver));
        engine.docker(["pull", "-q", &registry().busybox()]).ok();
        engine
    }

    /// Whether daemons here are started by the tests.
    pub(crate) fn own() -> bool {
        std::env::var_os("SKIFF_TEST_SOCKET").is_none()
    }

    /// Directories and configuration, and no daemon yet.
    pub(crate) fn prepare(options: Options) -> Self {
        Self::prepare_below(Self::own().then(Owner::next_free), options)
    }

    /// The same for a certain account.
    pub(crate) fn prepare_for(owner: Owner, options: Options) -> Self {
        Self::prepare_below(Some(owner), options)
    }

    fn prepare_below(owner: Option<Owner>, options: Options) -> Self {
        let base = tempfile::Builder::new().prefix("skiff-it-").tempdir().unwrap();
        fs::set_permissions(base.path(), Permissions::from_mode(0o755)).unwrap();
        let make = |path: PathBuf, mode| {
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            if let (Some(owner), true) = (&owner, is_root()) {
                chown(&path, Some(owner.uid), Some(owner.gid)).unwrap();
            }
            path
        };
        make(base.path().to_owned(), 0o755);
        fs::create_dir(base.path().join("cli")).unwrap();
        let run = make(base.path().join("run"), 0o700);
        for dir in [
            "home",
            "home/.config",
            "home/.config/docker",
            "home/.local",
            "home/.local/share",
        ] {
            make(base.path().join(dir), 0o755);
        }
        let data = make(base.path().join("home/.local/share/docker"), 0o710);
        if let Some(config) = &options.config {
            let file = base.path().join("home/.config/docker/daemon.json");
            fs::write(&file, config.to_string()).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        }
        let mounted = options.disk.map(|disk| {
            disk.mount(base.path(), &data, owner.as_ref().unwrap());
            data.clone()
        });
        let own = owner.map(|owner| Own {
            owner,
            options,
            parent: None,
            mounted,
        });
        Self {
            socket: run.join("docker.sock"),
            base,
            own,
        }
    }

    /// Other arguments for the next start.
    pub(crate) fn set_args(&mut self, args: &[&str]) {
        self.mine_mut().options.args = args.iter().map(|arg| (*arg).to_owned()).collect();
    }

    /// Runs the daemon's program to its end, for starts that are expected to fail and for `--version`.
    pub(crate) fn run_daemon(&self, change: impl FnOnce(&mut Command)) -> Finished {
        let mut command = self.daemon_command();
        change(&mut command);
        Docker::new(command, "the daemon".to_owned()).run()
    }

    fn daemon_command(&self) -> Command {
        let mut command = self.program();
        command.args(&self.mine().options.args);
        command
    }

    /// `skiffd WORDS…` as the daemon's user: one of the commands besides the daemon.
    pub(crate) fn skiffd(&self, words: &[&str]) -> Docker {
        let mut command = self.program();
        command.args(words);
        Docker::new(command, format!("skiffd {}", words.join(" ")))
    }

    pub(crate) fn program(&self) -> Command {
        let own = self.mine();
        let program = std::env::var("SKIFF_TEST_DAEMON")
            .expect("SKIFF_TEST_DAEMON names the program: `make integration`");
        let mut command = own.owner.command(&program);
        command
            .env("HOME", self.home())
            .env("USER", &own.owner.name)
            .env("XDG_RUNTIME_DIR", self.runtime_dir());
        command
    }

    /// Starts the daemon, without waiting.
    pub(crate) fn launch(&mut self) {
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.log_file())
            .unwrap();
        let mut command = self.daemon_command();
        command
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = command.spawn().unwrap();
        self.mine_mut().parent = Some(child);
    }

    /// Waits until the daemon answers `/_ping`.
    pub(crate) fn wait_until_ready(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            if self
                .try_request("GET", "/_ping", &[])
                .is_ok_and(|answer| answer.status == 200)
            {
                return;
            }
            let ended = self
                .mine_mut()
                .parent
                .as_mut()
                .and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "the daemon ended before it was ready: {ended:?}");
            assert!(Instant::now() < end, "the daemon is not ready after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn mine(&self) -> &Own {
        self.own
            .as_ref()
            .expect("this scenario needs a daemon of its own: say require!(Engine::own(), …)")
    }

    fn mine_mut(&mut self) -> &mut Own {
        self.own
            .as_mut()
            .expect("this scenario needs a daemon of its own: say require!(Engine::own(), …)")
    }

    // ── where things are ─────────────────────────────────────────────────────────────────────────────────────────

    pub(crate) fn path(&self) -> &Path {
        self.base.path()
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.path().join("home")
    }

    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.path().join("run")
    }

    pub(crate) fn data_root(&self) -> PathBuf {
        self.home().join(".local/share/docker")
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.mine().owner
    }

    fn log_file(&self) -> PathBuf {
        self.path().join("log")
    }

    /// What the daemon has written so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// A directory every user may read and write, for bind mounts.
    pub(crate) fn shared_dir(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        if let (Some(own), true) = (&self.own, is_root()) {
            chown(&path, Some(own.owner.uid), Some(own.owner.gid)).unwrap();
        }
        path
    }

    // ── talking to it ────────────────────────────────────────────────────────────────────────────────────────────

    /// `docker WORDS…` against this engine.
    pub(crate) fn docker<W: AsRef<str>>(&self, words: impl IntoIterator<Item = W>) -> Docker {
        let words: Vec<String> = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let mut command = Command::new("docker");
        command.args(&words);
        self.client_environment(&mut command);
        Docker::new(command, format!("docker {}", words.join(" ")))
    }

    /// The same in a terminal.
    pub(crate) fn docker_in_terminal(&self, words: &[&str]) -> Docker {
        let all: Vec<&str> = ["docker"].into_iter().chain(words.iter().copied()).collect();
        let line = command_in_terminal(&all);
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).env("TERM", "xterm");
        self.client_environment(&mut command);
        Docker::new(command, format!("docker {} (in a terminal)", words.join(" ")))
    }

    fn client_environment(&self, command: &mut Command) {
        command
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .env("DOCKER_CONFIG", self.path().join("cli"))
            .env("HOME", self.path().join("cli"))
            .env_remove("DOCKER_CONTEXT")
            .env_remove("DOCKER_API_VERSION")
            .env_remove("DOCKER_CLI_EXPERIMENTAL");
    }

    /// `docker run --rm` of busybox with options and a command.
    pub(crate) fn busybox(&self, options: &[&str], command: &[&str]) -> Docker {
        let image = registry().busybox();
        let words = ["run", "--rm"]
            .iter()
            .chain(options)
            .copied()
            .chain([image.as_str()])
            .chain(command.iter().copied());
        self.docker(words.map(str::to_owned).collect::<Vec<_>>())
    }

    /// `docker run -d` of busybox; gives the id.
    pub(crate) fn detached(&self, options: &[&str], command: &[&str]) -> String {
        let image = registry().busybox();
        let words = ["run", "-d"]
            .iter()
            .chain(options)
            .copied()
            .chain([image.as_str()])
            .chain(command.iter().copied());
        self.docker(words.map(str::to_owned).collect::<Vec<_>>()).ok()
    }

    /// A field of `docker inspect`.
    pub(crate) fn inspect(&self, name: &str, template: &str) -> String {
        self.docker(["inspect", "--format", template, name]).ok()
    }

    /// Everything `GET /containers/NAME/json` says.
    pub(crate) fn container(&self, name: &str) -> Value {
        self.get(&format!("/containers/{name}/json"))
            .expect_status(200)
            .json()
    }

    /// Waits until the container's log contains the text.
    pub(crate) fn wait_for_output(&self, container: &str, text: &str) {
        let mut logs = self.open(
            "GET",
            &format!("/containers/{container}/logs?stdout=1&stderr=1&follow=1"),
            &[],
            b"",
        );
        let mut seen = String::new();
        while !seen.contains(text) {
            let (_, data) = logs
                .frame()
                .unwrap()
                .unwrap_or_else(|| panic!("the log ended without {text:?}: {seen}"));
            seen.push_str(&String::from_utf8_lossy(&data));
        }
    }

    /// A connection to the socket, with time-outs.
    pub(crate) fn connect(&self) -> std::io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Sends a request and gives the connection back after the answer's head.
    pub(crate) fn open(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Exchange<UnixStream> {
        Exchange::begin(self.connect().unwrap(), method, target, headers, body)
            .unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    fn try_request(&self, method: &str, target: &str, body: &[u8]) -> std::io::Result<Response> {
        Exchange::begin(
            self.connect()?,
            method,
            target,
            &[("Content-Type", "application/json")],
            body,
        )?
        .finish()
    }

    pub(crate) fn get(&self, target: &str) -> Response {
        self.try_request("GET", target, b"")
            .unwrap_or_else(|error| panic!("GET {target}: {error}"))
    }

    pub(crate) fn delete(&self, target: &str) -> Response {
        self.try_request("DELETE", target, b"")
            .unwrap_or_else(|error| panic!("DELETE {target}: {error}"))
    }

    /// POST with a JSON body; `Value::Null` sends none.
    pub(crate) fn post(&self, target: &str, body: &Value) -> Response {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.try_request("POST", target, body.as_bytes())
            .unwrap_or_else(|error| panic!("POST {target}: {error}"))
    }

    /// Creates a container of busybox by the API; gives its id.
    pub(crate) fn create(&self, name: &str, mut config: Value) -> String {
        config["Image"] = registry().busybox().into();
        let answer = self
            .post(&format!("/containers/create?name={name}"), &config)
            .expect_status(201);
        answer.json()["Id"].as_str().unwrap().to_owned()
    }

    fn remove_everything(&self) {
        let containers = self.docker(["ps", "-aq"]).run().stdout;
        for id in containers.split_whitespace() {
            self.docker(["rm", "-f", id]).run();
        }
        let images = self.docker(["images", "-aq"]).run().stdout;
        for id in images.split_whitespace() {
            self.docker(["rmi", "-f", id]).run();
        }
    }

    // ── its processes ────────────────────────────────────────────────────────────────────────────────────────────

    /// Pid of the parent, the process we started.
    pub(crate) fn parent_pid(&self) -> i32 {
        i32::try_from(self.mine().parent.as_ref().expect("running").id()).unwrap()
    }

    /// Pid of the keeper of the namespaces, from the pid file.
    pub(crate) fn keeper_pid(&self) -> i32 {
        let file = self.runtime_dir().join("docker.pid");
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        text.trim().parse().unwrap()
    }

    /// Pid of the daemon: the parent's child that answers, which is the one that is not the keeper.
    pub(crate) fn daemon_pid(&self) -> i32 {
        let (parent, keeper) = (self.parent_pid(), self.keeper_pid());
        // Another child, such as the way out, looks like its parent until it has executed its own program.
        let what = format!("the parent {parent} has one child besides the keeper {keeper} and the way out");
        eventually(&what, PATIENCE, || {
            let mut daemons = self.owner().processes();
            daemons.retain(|p| p.parent == parent && p.pid != keeper && !p.zombie);
            daemons.retain(|p| !p.command.contains("slirp4netns") && !p.command.contains("pasta"));
            (daemons.len() == 1).then(|| daemons[0].pid)
        })
    }

    /// The engine's and its containers' processes.
    pub(crate) fn processes(&self) -> Vec<Process> {
        self.owner().processes()
    }

    /// kill -9 of one of its processes. It may have gone already, with another that was killed before it.
    pub(crate) fn kill_9(&self, pid: i32) {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => panic!("kill -9 {pid}: {error}"),
        }
    }

    /// Waits for the parent to end.
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let mut child = self.mine_mut().parent.take().expect("running");
        eventually("the parent ends", PATIENCE, || child.try_wait().unwrap())
    }

    /// Waits until a process is gone, reaped by whoever has to.
    pub(crate) fn wait_until_gone(&self, pid: i32) {
        eventually(&format!("process {pid} is gone"), PATIENCE, || {
            process(pid).is_none_or(|p| p.zombie).then_some(())
        });
    }

    /// Orderly end, as by Ctrl-C or a service manager.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        kill(Pid::from_raw(self.parent_pid()), Signal::SIGTERM).unwrap();
        self.wait_for_exit()
    }

    /// Starts it again after its end.
    pub(crate) fn start_again(&mut self) {
        self.launch();
        self.wait_until_ready();
    }

    /// As root everything of the account is simply killed, which also spares the ten seconds that a container without a
    /// SIGTERM handler has. One's own account has other processes, so there the engine ends in an orderly way.
    fn sweep(&mut self) {
        if self.own.is_none() || !is_root() {
            self.remove_everything();
        }
        let Some(own) = &mut self.own else { return };
        let parent = own.parent.take();
        if let (Some(child), false) = (&parent, is_root()) {
            let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM);
        }
        own.owner.kill_all();
        parent.map(|mut child| child.wait());
        if let Some(path) = &own.mounted {
            let _ = Command::new("umount").arg(path).status();
        }
        if !is_root() {
            // Files of containers belong to subordinate ids.
            let command = ["--map-auto", "--map-root-user", "rm", "-rf"];
            let _ = Command::new("unshare")
                .args(command)
                .arg(self.base.path().join("home"))
                .status();
        }
    }

    fn show_log(&self) {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        eprintln!(
            "── daemon's log, last {} of {} lines",
            lines.len().min(80),
            lines.len()
        );
        for line in lines.iter().skip(lines.len().saturating_sub(80)) {
            eprintln!("{line}");
        }
        if let Some(own) = &self.own {
            eprintln!("── its processes");
            for process in own.owner.processes() {
                eprintln!("{process:?}");
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_log();
        }
        self.sweep();
    }
}
