//! What the domain needs of a container runtime. `skiff-runtime` implements it with one shim process per
//! container (embedded libcontainer, or an external OCI runtime such as crun or runc).
//!
//! A *task* is the running side of a container. Its life: `create` (the shim is up, namespaces and mounts are made,
//! the command is not yet executed) → any number of `attach` → `start` → … → `wait` returns → `delete`.
//! The shim outlives the daemon: after a restart `adopt` finds the task again by the container's id.

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Ulimit;
use crate::error::Result;

/// The runtime as the domain sees it.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Starts the container's shim and lets it create the container up to, but not including, `execve`.
    ///
    /// # Errors
    /// `InvalidParameter` with the runtime's text when the command is missing (exit code 127) or not executable
    /// (126): [`LaunchFailure::exit_code`] tells which; `System` for everything else. Nothing is left behind.
    async fn create(&self, spec: &LaunchSpec) -> Result<TaskPid, LaunchFailure>;

    /// Executes the command of a created task.
    ///
    /// # Errors
    /// As [`Runtime::create`] (some runtimes find a missing command only here).
    async fn start(&self, id: &str) -> Result<(), LaunchFailure>;

    /// Connects to the task's standard streams. Output produced before the call is not delivered (that is what
    /// logs are for); a connection made between `create` and `start` misses nothing.
    async fn attach(&self, id: &str, streams: AttachStreams) -> Result<TaskIo>;

    /// Sets the pseudo-terminal's size, in character cells.
    async fn resize(&self, id: &str, size: TerminalSize) -> Result<()>;

    /// Sends a signal (its Linux number) to the task's first process.
    async fn signal(&self, id: &str, signal: i32) -> Result<()>;

    /// Waits for the task's end. May be called any number of times, also after the end and before `delete`.
    async fn wait(&self, id: &str) -> Result<TaskExit>;

    /// Forgets an ended task: the shim ends, the runtime's state directory goes. Kills a task that still runs.
    /// Deleting an unknown task is not an error.
    async fn delete(&self, id: &str) -> Result<()>;

    /// Looks for a task that an earlier daemon started.
    async fn adopt(&self, id: &str) -> Result<Adopted>;

    /// Reads a container's log.
    async fn logs(&self, request: LogRequest) -> Result<mpsc::Receiver<Result<LogEntry>>>;

    /// The runtimes that can be named in `HostConfig.Runtime`, with the path of their program
    /// (empty for the embedded one).
    fn runtimes(&self) -> Vec<(String, String)>;

    /// The name of the runtime used when a container names none.
    fn default_runtime(&self) -> String;
}

/// The host process id of a task's first process.
pub type TaskPid = u32;

/// Why a task could not be created or started.
#[derive(Debug)]
pub struct LaunchFailure {
    /// The error for the client.
    pub error: crate::Error,
    /// The exit code to record for the container: 127 command not found, 126 not executable, 128 anything else.
    pub exit_code: i32,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskExit {
    /// Exit code; 128 + signal number when a signal ended it.
    pub code: i32,
    /// When the shim reaped it.
    pub finished_at: Timestamp,
    /// Whether the kernel's out-of-memory killer was involved, where that is known.
    pub oom_killed: bool,
}

/// What became of a task while no daemon was watching.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adopted {
    /// It still runs; `wait`, `attach` and `signal` work again.
    Running(TaskPid),
    /// It was created, but its command was never executed.
    Created(TaskPid),
    /// It ended; the shim (or the file it left) says how.
    Exited(TaskExit),
    /// No trace: the machine was rebooted, or the shim was killed too.
    Gone,
}

/// Everything a runtime must know to create a container; all names are resolved except the user,
/// which is looked up inside the root filesystem.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The container's id, 64 hexadecimal digits.
    pub id: String,
    /// The mounted root filesystem.
    pub rootfs: PathBuf,
    /// `HostConfig.Runtime`; `None` for the default.
    pub runtime: Option<String>,
    /// The first process.
    pub process: ProcessSpec,
    /// Host name inside the container; `None` shares the host's UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name, may be empty.
    pub domainname: String,
    /// Mounts on top of the root filesystem, in the order to make them (the standard ones, /proc, /dev, /sys, are
    /// the runtime's business).
    pub mounts: Vec<MountSpec>,
    /// Mount the root filesystem read-only.
    pub readonly_rootfs: bool,
    /// The network namespace to run in.
    pub network: NetworkNamespace,
    /// Use the host's (the daemon's) process-id namespace.
    pub host_pid: bool,
    /// IPC namespace: own or the host's.
    pub host_ipc: bool,
    /// Size of /dev/shm in bytes.
    pub shm_size: u64,
    /// `--privileged`: all capabilities of the user namespace, no seccomp, no masked paths.
    pub privileged: bool,
    /// `--cap-add`, as given: with or without `CAP_`, any case, or `ALL`.
    pub cap_add: Vec<String>,
    /// `--cap-drop`, likewise.
    pub cap_drop: Vec<String>,
    /// System-call filter.
    pub seccomp: SeccompProfile,
    /// `--security-opt no-new-privileges`.
    pub no_new_privileges: bool,
    /// Paths hidden by a mask; `None` for Docker's default list.
    pub masked_paths: Option<Vec<String>>,
    /// Paths made read-only; `None` for Docker's default list.
    pub readonly_paths: Option<Vec<String>>,
    /// Resource limits of the process.
    pub ulimits: Vec<Ulimit>,
    /// Namespaced kernel parameters.
    pub sysctls: Vec<(String, String)>,
    /// `--device`: host path, path in the container, permissions such as `rwm`.
    pub devices: Vec<(PathBuf, PathBuf, String)>,
    /// `oom_score_adj` of the first process.
    pub oom_score_adj: i32,
    /// Run a minimal init as pid 1 (`--init`).
    pub init: bool,
    /// Where output goes besides attached clients.
    pub log: LogTarget,
    /// OCI annotations.
    pub annotations: Vec<(String, String)>,
}

/// The first process of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// `NAME=value` entries, complete: image, request and the defaults (`PATH`, `HOSTNAME`, `TERM`, `HOME` excepted:
    /// `HOME` is added by the runtime from the image's /etc/passwd when absent).
    pub env: Vec<String>,
    /// Working directory, absolute; created when missing.
    pub cwd: String,
    /// `USER[:GROUP]`, names or numbers; empty for root.
    pub user: String,
    /// `--group-add`, names or numbers.
    pub additional_groups: Vec<String>,
    /// Give it a pseudo-terminal.
    pub tty: bool,
    /// Keep a writable standard input (`OpenStdin`).
    pub open_stdin: bool,
    /// Close standard input when the first attached client that sends input leaves (`StdinOnce`).
    pub stdin_once: bool,
    /// Initial terminal size.
    pub console_size: Option<TerminalSize>,
}

/// One mount on top of the root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Absolute path in the container, resolved inside the root filesystem.
    pub target: String,
    /// What is mounted.
    pub kind: MountKind,
    /// Mount read-only.
    pub read_only: bool,
}

/// What a [`MountSpec`] mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A file or directory of the host.
    Bind {
        /// Absolute path on the host; exists.
        source: PathBuf,
        /// `private`, `rprivate`, `shared`, `rshared`, `slave`, `rslave`.
        propagation: String,
        /// Bind the mounts below it, too.
        recursive: bool,
    },
    /// A memory file system.
    Tmpfs {
        /// Mount options such as `size=64m`, `mode=1777`, `exec`; Docker's defaults (`noexec,nosuid,nodev`)
        /// are already merged in.
        options: Vec<String>,
    },
}

/// Which network namespace a container runs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkNamespace {
    /// The one bound at this path (a sandbox made by the network layer).
    Path(PathBuf),
    /// The daemon's own, i.e. the host's.
    Host,
}

/// Which system calls a container may make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompProfile {
    /// The built-in profile, equal to Docker's default.
    Builtin,
    /// No filter.
    Unconfined,
    /// A profile in Docker's JSON format.
    Custom(String),
}

/// Where a container's output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogTarget {
    /// Docker's json-file format.
    JsonFile {
        /// The current file; rotated ones get `.1`, `.2` ….
        path: PathBuf,
        /// Rotate at this size in bytes; `None` never.
        max_size: Option<u64>,
        /// How many files to keep, the current one included; at least 1.
        max_files: u32,
    },
    /// Nowhere (`--log-driver none`).
    None,
}

/// A terminal's size in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// Which streams an attached client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachStreams {
    /// Send input.
    pub stdin: bool,
    /// Receive standard output (with a terminal: everything).
    pub stdout: bool,
    /// Receive standard error.
    pub stderr: bool,
}

/// A connection to a task's streams.
pub struct TaskIo {
    /// Output, in order; closed when the task's streams end. Back-pressure: a client that does not read slows the
    /// container, as with Docker. Dropping it detaches.
    pub output: mpsc::Receiver<OutputChunk>,
    /// Input; shutting it down closes the container's standard input (subject to `stdin_once`), dropping it
    /// without shutdown only detaches. `None` when input was not asked for or the container has no open stdin.
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChunk {
    /// Which stream it came from.
    pub stream: StdStream,
    /// The bytes as written.
    pub bytes: Bytes,
}

/// A standard stream. The numbers are those of Docker's stream framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum StdStream {
    /// Standard output, and all output of a terminal.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

/// What to read from a container's log.
#[derive(Debug, Clone)]
pub struct LogRequest {
    /// The log, as it was given in [`LaunchSpec::log`].
    pub target: LogTarget,
    /// Include standard output.
    pub stdout: bool,
    /// Include standard error.
    pub stderr: bool,
    /// Only entries at or after this time.
    pub since: Option<Timestamp>,
    /// Only entries before this time.
    pub until: Option<Timestamp>,
    /// Only the last so many entries; `None` for all.
    pub tail: Option<u64>,
    /// Go on with new entries until this token is cancelled (the container stopped), then drain and end.
    pub follow: Option<CancellationToken>,
}

/// One entry of a log: a line (with its newline) or a partial line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Which stream it came from.
    pub stream: StdStream,
    /// When the shim read it.
    pub time: Timestamp,
    /// The text as written; invalid UTF-8 was replaced when it was logged.
    pub line: Bytes,
}
