//! The daemon's side: `skiff_core::runtime::Runtime`, carried out by shims.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use rustix::process::{Signal, pidfd_send_signal};
use skiff_core::runtime::{
    Adopted, AttachStreams, LaunchFailure, LaunchSpec, LogEntry, LogRequest, Runtime, TaskExit, TaskIo,
    TaskPid, TerminalSize,
};
use skiff_core::{Error, Result};
use skiff_sys::identity::ProcessIdentity;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use crate::client::Connection;
use crate::protocol::{CreateRequest, Failure, Phase, Request, Response};
use crate::{launch, paths};

/// The name of the embedded runtime. Docker's default is called `runc`, and clients and compose files name it, so that name is
/// accepted for the embedded one, too, unless an external one was given it.
const EMBEDDED: &str = "skiff";

/// Settings of a [`ShimRuntime`].
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Folder for sockets and run-time state; on tmpfs, ours alone.
    pub exec_root: PathBuf,
    /// How to start a shim: program and leading arguments, e.g. `/proc/self/exe shim`. The container's folder is appended.
    pub shim_command: Vec<OsString>,
    /// Our own program as a file to be mounted into containers (`--init`).
    pub init_program: PathBuf,
    /// The keeper's network namespace, which shims move to, so that they keep it alive; `None` as root.
    pub keeper_netns: Option<PathBuf>,
    /// Whether this is the daemon of an unprivileged user.
    pub rootless: bool,
    /// External runtimes by name (`--add-runtime`).
    pub runtimes: BTreeMap<String, PathBuf>,
    /// The runtime of containers that name none (`--default-runtime`); empty for the embedded one.
    pub default_runtime: String,
}

/// Runs containers in shims.
#[derive(Debug)]
pub struct ShimRuntime {
    config: RuntimeConfig,
}

impl ShimRuntime {
    /// A runtime with these settings.
    ///
    /// # Errors
    /// `InvalidParameter` when the default runtime is not among the known ones.
    pub fn new(mut config: RuntimeConfig) -> Result<Self> {
        if config.default_runtime.is_empty() {
            EMBEDDED.clone_into(&mut config.default_runtime);
        }
        let runtime = Self { config };
        runtime.resolve(None)?;
        Ok(runtime)
    }

    /// The program of a runtime; `None` for the embedded one.
    fn resolve(&self, name: Option<&str>) -> Result<Option<PathBuf>> {
        let name = name
            .filter(|name| !name.is_empty())
            .unwrap_or(&self.config.default_runtime);
        match self.config.runtimes.get(name) {
            Some(path) => Ok(Some(path.clone())),
            None if matches!(name, EMBEDDED | "runc" | "io.containerd.runc.v2") => Ok(None),
            None => Err(Error::invalid(format!("unknown or invalid runtime name: {name}"))),
        }
    }

    fn folder(&self, id: &str) -> Result<PathBuf> {
        if paths::is_valid_id(id) {
            Ok(paths::containers(&self.config.exec_root).join(id))
        } else {
            Err(Error::invalid(format!("invalid container id {id:?}")))
        }
    }

    /// Asks the shim of a container.
    async fn call(&self, id: &str, request: Request) -> Result<Response> {
        let mut connection = self.connect(id).await?;
        let response = connection.call(request).await.map_err(|error| gone(id, error))?;
        into_result(response)
    }

    async fn connect(&self, id: &str) -> Result<Connection> {
        Connection::open(&self.folder(id)?)
            .await
            .map_err(|error| gone(id, error))
    }

    async fn try_create(&self, spec: &LaunchSpec) -> Result<TaskPid, LaunchFailure> {
        let runtime = self.resolve(spec.runtime.as_deref()).map_err(launch_failure)?;
        let folder = self.folder(&spec.id).map_err(launch_failure)?;
        self.make_folder(&spec.id, &folder)
            .await
            .map_err(launch_failure)?;
        let request = CreateRequest {
            launch: spec.clone(),
            runtime,
            keeper_netns: self.config.keeper_netns.clone(),
            rootless: self.config.rootless,
            init_program: self.config.init_program.clone(),
        };
        let started = launch::spawn(&self.config.shim_command, &folder);
        let (mut child, mut connection) = match started {
            Ok(started) => started,
            Err(error) => {
                paths::note(
                    "removing a container's run-time folder",
                    paths::remove_folder(&folder),
                );
                return Err(launch_failure(
                    Error::system("starting the container's shim").caused_by(error),
                ));
            }
        };
        let answer = connection.call(Request::Create(Box::new(request))).await;
        if let Ok(Response::Created { pid }) = answer {
            // Reaped when it ends; should this daemon end first, init does it.
            tokio::spawn(async move { child.wait().await });
            return Ok(pid);
        }
        drop(connection);
        let status = child.wait().await;
        let failure = match answer {
            Ok(Response::Failed(failure)) => {
                let exit_code = failure.exit_code;
                LaunchFailure {
                    error: failure.into(),
                    exit_code,
                }
            }
            Ok(other) => launch_failure(Error::system(format!(
                "unexpected answer of the container's shim: {other:?}"
            ))),
            Err(error) => {
                let said = std::fs::read_to_string(folder.join(paths::SHIM_LOG)).unwrap_or_default();
                let text = format!(
                    "the container's shim ended ({}): {}",
                    describe(status),
                    said.trim()
                );
                launch_failure(Error::system(text).caused_by(error))
            }
        };
        end_leftover(&folder).await;
        paths::note(
            "removing a container's run-time folder",
            paths::remove_folder(&folder),
        );
        Err(failure)
    }

    /// Makes the folder, after what an earlier task of that name left behind is gone.
    async fn make_folder(&self, id: &str, folder: &Path) -> Result<()> {
        let failed = |error: io::Error| {
            Error::system(format!("run-time folder {}", folder.display())).caused_by(error)
        };
        match launch::make_folder(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
        if let Some(shim) = paths::read_identity(&folder.join(paths::SHIM_PID))
            && shim.is_alive().map_err(failed)?
            && paths::read_exit(folder).is_none()
        {
            return Err(Error::conflict(format!("container {id} has a task already")));
        }
        self.delete(id).await?;
        launch::make_folder(folder).map_err(failed)
    }
}

#[async_trait]
impl Runtime for ShimRuntime {
    async fn create(&self, spec: &LaunchSpec) -> Result<TaskPid, LaunchFailure> {
        self.try_create(spec).await
    }

    async fn start(&self, id: &str) -> Result<(), LaunchFailure> {
        let mut connection = self.connect(id).await.map_err(launch_failure)?;
        match connection.call(Request::Start).await {
            Ok(Response::Failed(failure)) => {
                let exit_code = failure.exit_code;
                Err(LaunchFailure {
                    error: failure.into(),
                    exit_code,
                })
            }
            Ok(_) => Ok(()),
            Err(error) => Err(launch_failure(gone(id, error))),
        }
    }

    async fn attach(&self, id: &str, streams: AttachStreams) -> Result<TaskIo> {
        let mut connection = self.connect(id).await?;
        let response = connection
            .call(Request::Attach(streams))
            .await
            .map_err(|error| gone(id, error))?;
        match into_result(response)? {
            Response::Attached { stdin } => Ok(connection.into_streams(AttachStreams { stdin, ..streams })),
            other => Err(Error::system(format!(
                "unexpected answer of the container's shim: {other:?}"
            ))),
        }
    }

    async fn resize(&self, id: &str, size: TerminalSize) -> Result<()> {
        self.call(id, Request::Resize(size)).await.map(drop)
    }

    async fn signal(&self, id: &str, signal: i32) -> Result<()> {
        self.call(id, Request::Signal(signal)).await.map(drop)
    }

    async fn wait(&self, id: &str) -> Result<TaskExit> {
        let folder = self.folder(id)?;
        let answer = match Connection::open(&folder).await {
            Ok(mut connection) => connection.call(Request::Wait).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(response) => match into_result(response)? {
                Response::Exited(exit) => Ok(exit),
                other => Err(Error::system(format!(
                    "unexpected answer of the container's shim: {other:?}"
                ))),
            },
            Err(_) if paths::read_exit(&folder).is_some() => {
                paths::read_exit(&folder).ok_or_else(|| Error::not_found(format!("no task {id}")))
            }
            Err(error) if !folder.exists() => Err(gone(id, error)),
            Err(error) => {
                // The shim was killed. Its container dies with it; make sure, and say how it ended.
                tracing::warn!(container = id, %error, "the container's shim is gone");
                end_leftover(&folder).await;
                let exit = TaskExit {
                    code: 137,
                    finished_at: Timestamp::now(),
                    oom_killed: false,
                };
                let json = serde_json::to_vec(&exit).unwrap_or_default();
                paths::note("writing exit.json", paths::replace(&folder, paths::EXIT, &json));
                Ok(exit)
            }
        }
    }

    async fn delete(&self, id: &str) -> Result<()> {
        let folder = self.folder(id)?;
        if !folder.exists() {
            return Ok(());
        }
        let shim = paths::read_identity(&folder.join(paths::SHIM_PID));
        let answer = match Connection::open(&folder).await {
            Ok(mut connection) => connection.call(Request::Delete).await,
            Err(error) => Err(error),
        };
        // A shim that was asked ends on its own. One that could not be asked (it is just starting, or of another
        // version) is killed, and its container with it.
        if let Some(shim) = shim
            && let Ok(Some(pidfd)) = shim.open()
        {
            if !matches!(answer, Ok(Response::Done)) {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
            wait_for_end(pidfd).await;
        }
        end_leftover(&folder).await;
        paths::remove_folder(&folder)
            .map_err(|error| Error::system(format!("removing {}", folder.display())).caused_by(error))?;
        match answer {
            Ok(Response::Failed(failure)) => Err(failure.into()),
            _ => Ok(()),
        }
    }

    async fn adopt(&self, id: &str) -> Result<Adopted> {
        let folder = self.folder(id)?;
        if let Ok(mut connection) = Connection::open(&folder).await
            && let Ok(Response::Status { phase, pid }) = connection.call(Request::Status).await
        {
            return Ok(match phase {
                Phase::Running => Adopted::Running(pid),
                Phase::Created => Adopted::Created(pid),
                Phase::Exited(exit) => Adopted::Exited(exit),
                Phase::New => {
                    drop(connection);
                    self.delete(id).await?;
                    Adopted::Gone
                }
            });
        }
        if let Some(exit) = paths::read_exit(&folder) {
            return Ok(Adopted::Exited(exit));
        }
        end_leftover(&folder).await;
        paths::note(
            "removing a container's run-time folder",
            paths::remove_folder(&folder),
        );
        Ok(Adopted::Gone)
    }

    async fn logs(&self, request: LogRequest) -> Result<mpsc::Receiver<Result<LogEntry>>> {
        crate::logs::read(request)
    }

    fn runtimes(&self) -> Vec<(String, String)> {
        let mut all = vec![(EMBEDDED.to_owned(), String::new())];
        if !self.config.runtimes.contains_key("runc") {
            all.push(("runc".to_owned(), String::new()));
        }
        all.extend(
            self.config
                .runtimes
                .iter()
                .map(|(name, path)| (name.clone(), path.display().to_string())),
        );
        all
    }

    fn default_runtime(&self) -> String {
        self.config.default_runtime.clone()
    }
}

fn launch_failure(error: Error) -> LaunchFailure {
    LaunchFailure {
        error,
        exit_code: 128,
    }
}

/// There is no shim to talk to.
fn gone(id: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset => Error::not_found(format!("container {id} has no running task")),
        _ => Error::system(format!("talking to the shim of container {id}")).caused_by(error),
    }
}

fn into_result(response: Response) -> Result<Response> {
    match response {
        Response::Failed(failure) => Err(Failure::into(failure)),
        other => Ok(other),
    }
}

fn describe(status: io::Result<std::process::ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// Kills the container's first process if it is still the one that was recorded, and waits for its end.
async fn end_leftover(folder: &Path) {
    let Some(task) = paths::read_identity(&folder.join(paths::TASK_PID)) else {
        return;
    };
    end(&task).await;
}

async fn end(process: &ProcessIdentity) {
    if let Ok(Some(pidfd)) = process.open() {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        wait_for_end(pidfd).await;
    }
}

/// Waits until the process behind a pidfd has ended: then the pidfd is readable.
async fn wait_for_end(pidfd: OwnedFd) {
    // Not a pipe, but tokio's type for one is its only safe way to wait until a descriptor can be read.
    if let Ok(pidfd) = pipe::Receiver::from_owned_fd_unchecked(pidfd) {
        let _ = pidfd.readable().await;
    }
}
