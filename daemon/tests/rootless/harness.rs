//! A place of its own for each test: home, runtime directory, data root, a copy of the program; and daemons that end
//! with the test.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use skiff_sys::identity::ProcessIdentity;

/// Far more than anything here takes, for machines that do something else, too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this test can run; says why not.
pub(crate) fn possible() -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "not root, cannot run the daemon as other users"
    } else if !Path::new("/usr/bin/newuidmap").exists() {
        "newuidmap is missing (package uidmap)"
    } else if fs::read_to_string("/proc/sys/user/max_user_namespaces").is_ok_and(|max| max.trim() == "0") {
        "user namespaces are switched off"
    } else {
        return true;
    };
    eprintln!("SKIPPED: {reason}");
    false
}

/// An ordinary user with subordinate ids.
pub(crate) fn ordinary_user() -> User {
    static USER: OnceLock<User> = OnceLock::new();
    USER.get_or_init(|| user("skiff-test-subids", &[])).clone()
}

/// A user without.
pub(crate) fn user_without_subids() -> User {
    static USER: OnceLock<User> = OnceLock::new();
    // useradd gives subordinate ids to none of the system's own accounts.
    USER.get_or_init(|| user("skiff-test-plain", &["--system"]))
        .clone()
}

fn user(name: &str, options: &[&str]) -> User {
    if User::from_name(name).unwrap().is_none() {
        let status = Command::new("useradd")
            .args(options)
            .args(["--no-create-home", name])
            .status()
            .unwrap();
        // Another test process may have been faster.
        assert!(
            status.success() || User::from_name(name).unwrap().is_some(),
            "useradd {name}: {status}"
        );
    }
    User::from_name(name).unwrap().expect("just made")
}

/// A test's place.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    pub(crate) user: User,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self::of(ordinary_user())
    }

    pub(crate) fn of(user: User) -> Self {
        let dir = tempfile::Builder::new().prefix("skiffd-").tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let place = Self { dir, user };
        for name in ["home", "run"] {
            let path = place.path(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
            place.give(&path);
        }
        // By another process: were the copy open for writing here, a test that forks now would keep it open in its
        // child for a moment, and nobody could execute it (ETXTBSY).
        let copied = Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_skiffd"))
            .arg(place.program())
            .status()
            .unwrap();
        assert!(copied.success());
        fs::set_permissions(place.program(), Permissions::from_mode(0o755)).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn give(&self, path: &Path) {
        chown(path, Some(self.user.uid.as_raw()), Some(self.user.gid.as_raw())).unwrap();
    }

    /// A directory of the user.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        self.give(&path);
        path
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.path("skiffd")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/docker.sock")
    }

    pub(crate) fn pidfile(&self) -> PathBuf {
        self.path("run/docker.pid")
    }

    /// The pid that docker.pid names.
    pub(crate) fn keeper(&self) -> u32 {
        fs::read_to_string(self.pidfile()).unwrap().parse().unwrap()
    }

    /// A command as the user, in a clean environment.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .uid(self.user.uid.as_raw())
            .gid(self.user.gid.as_raw())
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.path("home"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn skiffd(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(self.program());
        command.args(arguments);
        command
    }

    /// Runs to the end, which must come.
    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.skiffd(arguments).stdout(Stdio::piped()).output().unwrap()
    }

    /// Starts a daemon with vfs (which needs nothing of the system) and waits until it is ready.
    pub(crate) fn start(&self) -> Daemon {
        Daemon::spawn(self.skiffd(&["--storage-driver", "vfs"]), self).ready()
    }

    /// A request to the API; the answer's body.
    pub(crate) fn ping(&self) -> std::io::Result<String> {
        ping(&self.socket())
    }
}

/// Asks a socket for `/_ping`.
pub(crate) fn ping(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned())
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whatever holds this test's namespaces ends with it.
        if let Ok(pid) = fs::read_to_string(self.pidfile()).unwrap_or_default().parse() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// A daemon that was started; its parent process, that is.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    place: PathBuf,
}

impl Daemon {
    pub(crate) fn spawn(mut command: Command, place: &Place) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self {
            child,
            lines,
            seen: Vec::new(),
            place: place.path("run"),
        }
    }

    /// Waits until it says that it listens.
    pub(crate) fn ready(mut self) -> Self {
        self.until("API listen on ");
        self
    }

    /// Waits for a line with this text.
    pub(crate) fn until(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(error) => panic!(
                    "{text:?} was not said ({error}); this was:\n{}",
                    self.seen.join("\n")
                ),
            }
        }
    }

    pub(crate) fn said(&mut self, text: &str) -> bool {
        self.seen.extend(self.lines.try_iter());
        self.seen.iter().any(|line| line.contains(text))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal_pid(self.pid(), signal);
    }

    /// The process that serves the API.
    pub(crate) fn server(&self) -> u32 {
        let children = children(self.pid());
        *children
            .iter()
            .find(|pid| has_argument(**pid, "daemon"))
            .expect("a daemon process")
    }

    /// Waits for its end, and for the last line that it or its server wrote.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_for_end(&ProcessIdentity::of(self.pid()).ok());
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self
            .lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            self.seen.push(line);
        }
        self.child.wait().unwrap()
    }

    /// Ends it in an orderly way.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            self.seen.extend(self.lines.try_iter());
            eprintln!(
                "--- daemon of {}:\n{}",
                self.place.display(),
                self.seen.join("\n")
            );
        }
    }
}

pub(crate) fn signal_pid(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

pub(crate) fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

pub(crate) fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

fn has_argument(pid: u32, word: &str) -> bool {
    arguments(pid).get(1).is_some_and(|argument| argument == word)
}

/// Which namespace a process is in.
pub(crate) fn namespace(pid: u32, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// Waits until a process has ended.
pub(crate) fn wait_for_end(process: &Option<ProcessIdentity>) {
    let Some(pidfd) = process.as_ref().and_then(|process| process.open().unwrap()) else {
        return;
    };
    let limit = Timespec::try_from(PATIENCE).unwrap();
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ended, 1, "{process:?} did not end");
}

/// Looks again and again until it is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        thread::yield_now();
    }
}
