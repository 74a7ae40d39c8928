//! The docker command line, as people use it.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{PATIENCE, eventually};

/// A `docker` command before it runs.
#[derive(Debug)]
pub(crate) struct Docker {
    command: Command,
    stdin: Option<Vec<u8>>,
    limit: Duration,
    /// For messages.
    shown: String,
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    shown: String,
}

/// A command under way.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    shown: String,
    limit: Duration,
}

impl Docker {
    pub(super) fn new(command: Command, shown: String) -> Self {
        Self {
            command,
            stdin: None,
            limit: PATIENCE,
            shown,
        }
    }

    /// Text for its standard input, which is closed afterwards. Without it, standard input is /dev/null.
    pub(crate) fn stdin(mut self, text: &str) -> Self {
        self.stdin = Some(text.as_bytes().to_vec());
        self
    }

    /// Runs to the end, whatever it is.
    pub(crate) fn run(self) -> Finished {
        self.start().finish()
    }

    /// Runs to the end, which must be success, and gives the standard output without blanks around it.
    pub(crate) fn ok(self) -> String {
        let done = self.run();
        assert!(done.status.success(), "{done}");
        done.stdout.trim().to_owned()
    }

    /// Starts it.
    pub(crate) fn start(mut self) -> Running {
        self.command.stdin(if self.stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.shown));
        if let (Some(text), Some(mut pipe)) = (self.stdin, child.stdin.take()) {
            // The command may end without reading everything.
            std::thread::spawn(move || drop(pipe.write_all(&text)));
        }
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Running {
            child,
            stdout,
            stderr,
            shown: self.shown,
            limit: self.limit,
        }
    }

    /// Starts it with its standard output left to the caller.
    pub(crate) fn start_reading(mut self) -> (Running, std::process::ChildStdout) {
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.shown));
        let output = child.stdout.take().unwrap();
        let stderr = child.stderr.take().map(collect);
        (
            Running {
                child,
                stdout: None,
                stderr,
                shown: self.shown,
                limit: self.limit,
            },
            output,
        )
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

impl Running {
    /// Waits for the end.
    ///
    /// # Panics
    /// When it takes longer than a minute; the command is killed then.
    pub(crate) fn finish(mut self) -> Finished {
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&format!("`{}` ends", self.shown), self.limit, || {
                self.child.try_wait().unwrap()
            })
        }));
        if waited.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let text = |thread: Option<JoinHandle<Vec<u8>>>| {
            thread.map_or_else(String::new, |t| {
                String::from_utf8_lossy(&t.join().unwrap()).into_owned()
            })
        };
        let (stdout, stderr) = (text(self.stdout.take()), text(self.stderr.take()));
        match waited {
            Ok(status) => Finished {
                status,
                stdout,
                stderr,
                shown: self.shown,
            },
            Err(_) => panic!("`{}` did not end\nstdout: {stdout}\nstderr: {stderr}", self.shown),
        }
    }

    /// Ends it as Ctrl-C would.
    pub(crate) fn interrupt(&self) {
        self.signal(nix::sys::signal::Signal::SIGINT);
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&self) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Finished {
    /// The exit code must be this one.
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// Standard error must contain the text.
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "expected {text:?} from {self}");
        self
    }

    /// Standard output must be exactly the text.
    pub(crate) fn prints(self, text: &str) -> Self {
        assert_eq!(self.stdout, text, "{self}");
        self
    }

    /// It must have failed.
    pub(crate) fn fails(self) -> Self {
        assert!(!self.status.success(), "{self}");
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}`: {}\nstdout: {}\nstderr: {}",
            self.shown, self.status, self.stdout, self.stderr
        )
    }
}

/// The words of a command line that runs `words` in a terminal of its own (util-linux' script).
pub(super) fn command_in_terminal(words: &[&str]) -> Vec<OsString> {
    let quoted: Vec<_> = words
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect();
    ["script", "-qec", &quoted.join(" "), "/dev/null"]
        .into_iter()
        .map(OsString::from)
        .collect()
}
