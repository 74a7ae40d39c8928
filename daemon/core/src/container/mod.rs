//! Containers: the registry of all of them, and the commands clients give.
//!
//! Each container has one owner (an actor task, `actor`); this facade finds it by name or id and sends commands.
//! Reads (`inspect`, `list`) take the published [`ContainerView`].

pub mod state;
pub mod view;

use std::sync::Arc;
use std::time::Duration;

use crate::config::{ContainerConfig, HostConfig, NetworkingConfig};
use crate::error::Result;
use crate::filters::Filters;
use crate::runtime::{AttachStreams, LogEntry, TaskIo, TerminalSize};
use jiff::Timestamp;
use tokio::sync::mpsc;

pub use view::ContainerView;

/// All containers.
#[derive(Clone)]
pub struct Containers {
    _private: (),
}

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

#[expect(clippy::todo, clippy::unused_async, unused_variables, reason = "contract first; bodies follow in this issue")]
impl Containers {
    /// Makes a container.
    ///
    /// # Errors
    /// `NotFound` "No such image: …", `InvalidParameter`, `Conflict` for a name in use, `NotImplemented`.
    pub async fn create(&self, request: CreateRequest) -> Result<Created> {
        todo!()
    }
    /// Starts a container. # Errors `NotModified` when it runs; `InvalidParameter` for a bad command.
    pub async fn start(&self, reference: &str) -> Result<()> {
        todo!()
    }
    /// Ends a container. # Errors `NotModified` when it does not run.
    pub async fn stop(&self, reference: &str, options: StopOptions) -> Result<()> {
        todo!()
    }
    /// Stops (when running) and starts.
    pub async fn restart(&self, reference: &str, options: StopOptions) -> Result<()> {
        todo!()
    }
    /// Sends a signal: a name with or without SIG, or a number; `None` is SIGKILL. # Errors `Conflict` when it does not run.
    pub async fn kill(&self, reference: &str, signal: Option<&str>) -> Result<()> {
        todo!()
    }
    /// Removes a container. # Errors `Conflict` when it runs and `force` is off.
    pub async fn remove(&self, reference: &str, options: RemoveOptions) -> Result<()> {
        todo!()
    }
    /// Resolves the container at once (so that errors come before the answer's head) and returns the wait itself.
    pub fn wait(&self, reference: &str, condition: WaitCondition) -> Result<impl Future<Output = WaitOutcome> + Send + 'static> {
        let result: Result<std::future::Ready<WaitOutcome>> = todo!();
        result
    }
    /// Attaches to a container that runs or is about to.
    pub async fn attach(&self, reference: &str, options: AttachOptions) -> Result<Attachment> {
        todo!()
    }
    /// Sets the terminal's size. # Errors `Conflict` when it does not run.
    pub async fn resize(&self, reference: &str, size: TerminalSize) -> Result<()> {
        todo!()
    }
    /// Gives it another name.
    pub async fn rename(&self, reference: &str, name: &str) -> Result<()> {
        todo!()
    }
    /// Finds a container by name, id or unambiguous beginning of an id.
    pub fn find(&self, reference: &str) -> Result<Arc<ContainerView>> {
        todo!()
    }
    /// Lists containers, newest first.
    pub fn list(&self, options: &ListOptions) -> Result<Vec<Arc<ContainerView>>> {
        todo!()
    }
    /// Measures its disk use.
    pub async fn size(&self, reference: &str) -> Result<ContainerSize> {
        todo!()
    }
    /// Reads its log.
    pub async fn logs(&self, reference: &str, options: LogOptions) -> Result<LogStream> {
        todo!()
    }
    /// Removes all stopped containers that pass the filters; returns their ids and the bytes freed.
    pub async fn prune(&self, filters: &Filters) -> Result<(Vec<String>, u64)> {
        todo!()
    }
    /// Takes over what an earlier daemon left: adopts running tasks, records ended ones, finishes removals.
    pub async fn recover(&self) -> Result<()> {
        todo!()
    }
    /// Stops all containers, each with its own stop signal, within `timeout`.
    pub async fn shutdown(&self, timeout: Duration) {
        todo!()
    }
}
