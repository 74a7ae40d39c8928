//! What clients ask of containers and what they get back: plain data, one type a request.

use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::config::{ContainerConfig, HostConfig, NetworkingConfig};
use crate::error::Result;
use crate::filters::Filters;
use crate::runtime::{AttachStreams, LogEntry, TaskIo};

/// `POST /containers/create`.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    /// The wanted name; `None` for a generated one.
    pub name: Option<String>,
    /// `os[/arch[/variant]]` of the image; `None` for this machine's.
    pub platform: Option<String>,
    /// Portable part.
    pub config: ContainerConfig,
    /// Host part.
    pub host_config: HostConfig,
    /// Networks.
    pub networking: NetworkingConfig,
}

/// Answer to a create request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The new container's id.
    pub id: String,
    /// What was asked for and is not enforced.
    pub warnings: Vec<String>,
}

/// How to end a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOptions {
    /// Seconds until SIGKILL; negative waits without end; `None` for the container's own setting or 10.
    pub timeout: Option<i64>,
    /// Signal instead of the container's stop signal.
    pub signal: Option<String>,
}

/// `DELETE /containers/ID`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemoveOptions {
    /// Kill it first when it runs.
    pub force: bool,
    /// Remove its anonymous volumes.
    pub volumes: bool,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitCondition {
    /// Not running (now, or at the next end).
    NotRunning,
    /// The next end, also when it is not running now.
    NextExit,
    /// It is gone.
    Removed,
}

/// Result of a wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitOutcome {
    /// The exit code.
    pub status_code: i64,
    /// Why it could not be waited for or removed.
    pub error: Option<String>,
}

/// `POST /containers/ID/attach`.
#[derive(Debug, Clone)]
pub struct AttachOptions {
    /// Which streams.
    pub streams: AttachStreams,
    /// Begin with what was logged so far (`logs=1`).
    pub logs: bool,
    /// Go on with new output (`stream=1`).
    pub stream: bool,
}

/// An attached client.
pub struct Attachment {
    /// Whether output is a raw terminal stream (no framing).
    pub tty: bool,
    /// The streams.
    pub io: TaskIo,
}

/// `GET /containers/json`.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Also those that do not run.
    pub all: bool,
    /// Only the newest so many (implies `all`).
    pub limit: Option<usize>,
    /// Filters.
    pub filters: Filters,
}

/// `GET /containers/ID/logs`.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// From this time.
    pub since: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
    /// The last so many entries.
    pub tail: Option<u64>,
    /// Go on while it runs.
    pub follow: bool,
}

/// A log being read.
pub struct LogStream {
    /// Whether the container has a terminal (then entries are not framed).
    pub tty: bool,
    /// The entries.
    pub entries: mpsc::Receiver<Result<LogEntry>>,
}

/// Disk use of a container, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerSize {
    /// The writable layer.
    pub rw: u64,
    /// With the image's layers.
    pub root_fs: u64,
}
