//! Containers: the registry of all of them, and the commands clients give.
//!
//! Each container has one owner (an actor task, `actor`); this facade finds it by name or id and sends commands.
//! Reads (`inspect`, `list`) take the published [`ContainerView`].

mod actor;
mod attach;
mod changes;
mod commit;
mod create;
mod disk;
mod export;
mod filesystems;
mod janitor;
mod launch;
mod list;
mod mounts;
mod names;
mod offline;
mod ports;
mod recover;
mod registry;
mod requests;
mod signal;
mod spec;
pub mod state;
#[cfg(test)]
mod tests;
pub mod view;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::config::HostConfig;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::filters::Filters;
use crate::network::{NetworkMode, Networks};
use crate::runtime::{LogEntry, LogRequest, OutputChunk, Runtime, TaskIo, TerminalSize};

use actor::{Beginning, Command, publish_event};
use disk::Disk;
use registry::{Handle, Registry};
pub(crate) use signal::parse as check_signal;
use state::State;
use view::Record;

pub use changes::{Change, ChangeKind};
pub use commit::CommitRequest;
pub use filesystems::StoredFilesystems;
pub use offline::OfflineRecords;
pub use ports::{Export, ImageSource, RootFilesystems};
pub use requests::{
    AttachOptions, Attachment, ContainerSize, CreateRequest, Created, ListOptions, LogOptions, LogStream,
    RemoveOptions, StopOptions, WaitCondition, WaitOutcome,
};
pub use view::ContainerView;

/// Docker's time between the stop signal and SIGKILL, in seconds.
const STOP_TIMEOUT: i64 = 10;
/// How long a shutdown waits beyond the containers' own time, for clean-up and for starts under way.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How long a `kill` with SIGKILL waits for the end.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// All containers.
#[derive(Clone)]
pub struct Containers {
    shared: Arc<Shared>,
}

/// What containers are made with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory of all containers, in the data root.
    pub directory: PathBuf,
    /// The host's /etc/hosts, for containers in the host's network.
    pub hosts_file: PathBuf,
    /// This daemon's own socket, for containers that ask for /var/run/docker.sock.
    pub own_socket: Option<PathBuf>,
}

/// The neighbours that containers need.
pub struct Neighbours {
    /// Where images are found.
    pub images: Arc<dyn ImageSource>,
    /// Writable layers.
    pub filesystems: Arc<dyn RootFilesystems>,
    /// Networks.
    pub networks: Arc<dyn Networks>,
    /// The runtime.
    pub runtime: Arc<dyn Runtime>,
    /// The event bus.
    pub events: Events,
}

/// What all owners share.
struct Shared {
    settings: Settings,
    disk: Disk,
    registry: Registry,
    images: Arc<dyn ImageSource>,
    filesystems: Arc<dyn RootFilesystems>,
    networks: Arc<dyn Networks>,
    runtime: Arc<dyn Runtime>,
    events: Events,
    janitor: janitor::Bell,
}

impl Shared {
    /// A container whose writable layer another storage driver holds is known, but there is nothing to work on.
    fn require_own_driver(&self, record: &Record) -> Result<()> {
        let ours = self.filesystems.driver();
        if record.driver == ours {
            return Ok(());
        }
        let theirs = &record.driver;
        Err(Error::conflict(format!(
            "container {} was made with the storage driver {theirs} and its files are there, but this daemon uses {ours}: \
             start the daemon with --storage-driver {theirs}, or stop it and move everything with \
             `skiffd storage migrate --to {ours}`",
            record.name
        )))
    }
}

impl Containers {
    /// Opens (and makes) the directory of containers; [`Containers::recover`] then takes over what is in it.
    ///
    /// # Errors
    /// `System`.
    pub fn open(settings: Settings, neighbours: Neighbours) -> Result<Self> {
        let disk = Disk::open(settings.directory.clone())?;
        let Neighbours {
            images,
            filesystems,
            networks,
            runtime,
            events,
        } = neighbours;
        let registry = Registry::default();
        Ok(Self {
            shared: Arc::new(Shared {
                settings,
                disk,
                registry,
                images,
                filesystems,
                networks,
                runtime,
                events,
                janitor: janitor::Bell::default(),
            }),
        })
    }

    /// Makes a container.
    ///
    /// # Errors
    /// `NotFound` "No such image: …", `InvalidParameter`, `Conflict` for a name in use, `NotImplemented`.
    pub async fn create(&self, request: CreateRequest) -> Result<Created> {
        let id = names::new_id()?;
        let name = self.shared.registry.reserve(request.name.as_deref(), &id)?;
        let created = self.create_named(request, &id, &name).await;
        if created.is_err() {
            self.shared.registry.release(&name);
        }
        created
    }

    async fn create_named(&self, request: CreateRequest, id: &str, name: &str) -> Result<Created> {
        let shared = &self.shared;
        let image = shared.images.find(&request.config.image)?;
        let runtimes: Vec<String> = shared
            .runtime
            .runtimes()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let merged = create::merge(&request, &image, id, &shared.runtime.default_runtime(), &runtimes)?;
        shared
            .networks
            .check(&NetworkMode::parse(&merged.host.network_mode))?;
        dns_servers(&merged.host)?;
        let mounts = mounts::resolve(&merged.host, shared.settings.own_socket.as_deref())?;
        let mut command = merged.command.into_iter();
        let record = Record {
            version: disk::FORMAT,
            id: id.to_owned(),
            name: name.to_owned(),
            created: Timestamp::now(),
            image: image.id,
            image_top_layer: image.top_layer,
            os: image.os,
            driver: shared.filesystems.driver(),
            path: command.next().unwrap_or_default(),
            args: command.collect(),
            config: merged.config,
            host_config: merged.host,
            networking: request.networking,
            mounts,
            directory: shared.disk.directory(id),
        };
        self.put_on_disk(&record).await?;
        let record = Arc::new(record);
        let beginning = Beginning {
            record: Arc::clone(&record),
            state: State::Created { last_failure: None },
            sandbox: None,
            restart_count: 0,
        };
        shared
            .registry
            .insert(id.to_owned(), actor::spawn(shared, beginning));
        publish_event(shared, &record, "create", []);
        Ok(Created {
            id: id.to_owned(),
            warnings: merged.warnings,
        })
    }

    /// On a disk that is full, the space of a container that was removed just now may not be free yet.
    async fn put_on_disk(&self, record: &Record) -> Result<()> {
        match self.try_on_disk(record).await {
            Err(error)
                if error.kind() == crate::ErrorKind::System && self.shared.filesystems.free_space().await =>
            {
                tracing::debug!(%error, "trying again after freeing space");
                self.try_on_disk(record).await
            }
            other => other,
        }
    }

    /// The writable layer first, the record last: only the record makes the container exist.
    async fn try_on_disk(&self, record: &Record) -> Result<()> {
        let shared = &self.shared;
        shared.disk.make_directory(&record.id)?;
        let made = async {
            shared
                .filesystems
                .create(&record.id, record.image_top_layer.as_deref())
                .await?;
            let (shared, record) = (Arc::clone(shared), record.clone());
            tokio::task::spawn_blocking(move || shared.disk.write_record(&record))
                .await
                .map_err(|e| Error::system("write the container's record").caused_by(e))?
        }
        .await;
        if let Err(error) = made {
            if let Err(undo) = launch::delete(shared, &record.id).await {
                return Err(error.caused_by(undo));
            }
            return Err(error);
        }
        Ok(())
    }

    /// Starts a container.
    ///
    /// # Errors
    /// `NotModified` when it runs; `InvalidParameter` for a command that cannot be executed; `Conflict`, also when another
    /// storage driver has its files; `System`.
    pub async fn start(&self, reference: &str) -> Result<()> {
        let handle = self.shared.registry.find(reference)?;
        self.shared.require_own_driver(&handle.snapshot().record)?;
        command(&handle, reference, Command::Start).await
    }

    /// Ends a container; returns when it has ended.
    ///
    /// # Errors
    /// `NotModified` when it does not run, `InvalidParameter` for a bad signal.
    pub async fn stop(&self, reference: &str, options: StopOptions) -> Result<()> {
        let handle = self.shared.registry.find(reference)?;
        let view = handle.snapshot();
        let config = &view.record.config;
        let signal = match options
            .signal
            .as_ref()
            .or(config.stop_signal.as_ref())
            .filter(|text| !text.is_empty())
        {
            Some(text) => signal::parse(text)?,
            None => signal::TERM,
        };
        let seconds = options.timeout.or(config.stop_timeout).unwrap_or(STOP_TIMEOUT);
        let timeout = u64::try_from(seconds).ok().map(Duration::from_secs);
        command(&handle, reference, |reply| Command::Stop {
            signal,
            timeout,
            reply,
        })
        .await?;
        until_ended(&handle).await;
        publish_event(&self.shared, &view.record, "stop", []);
        Ok(())
    }

    /// Stops (when running) and starts.
    ///
    /// # Errors
    /// As [`Containers::start`].
    pub async fn restart(&self, reference: &str, options: StopOptions) -> Result<()> {
        match self.stop(reference, options).await {
            Err(error) if error.kind() != crate::ErrorKind::NotModified => return Err(error),
            _ => {}
        }
        self.start(reference).await?;
        let view = self.find(reference)?;
        publish_event(&self.shared, &view.record, "restart", []);
        Ok(())
    }

    /// Sends a signal: a name with or without SIG, or a number; `None` is SIGKILL, which also waits for the end.
    ///
    /// # Errors
    /// `Conflict` when it does not run, `InvalidParameter` for a bad signal.
    pub async fn kill(&self, reference: &str, signal: Option<&str>) -> Result<()> {
        let handle = self.shared.registry.find(reference)?;
        let signal = signal
            .filter(|text| !text.is_empty())
            .map_or(Ok(signal::KILL), signal::parse)?;
        command(&handle, reference, |reply| Command::Kill { signal, reply }).await?;
        if signal == signal::KILL {
            // The answer is right either way; a process stuck in the kernel must not hold the client.
            let _ = tokio::time::timeout(KILL_PATIENCE, until_ended(&handle)).await;
        }
        Ok(())
    }

    /// Removes a container; returns when it is gone.
    ///
    /// # Errors
    /// `Conflict` when it runs and `force` is off, or when it is being removed.
    pub async fn remove(&self, reference: &str, options: RemoveOptions) -> Result<()> {
        let handle = self.shared.registry.find(reference)?;
        command(&handle, reference, |reply| Command::Remove {
            force: options.force,
            reply,
        })
        .await
    }

    /// Resolves the container at once (so that errors come before the answer's head) and returns the wait itself.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn wait(
        &self,
        reference: &str,
        condition: WaitCondition,
    ) -> Result<impl Future<Output = WaitOutcome> + Send + 'static> {
        let handle = self.shared.registry.find(reference)?;
        let exits_before = handle.snapshot().exits;
        Ok(async move {
            let mut view = handle.view;
            let waited = view
                .wait_for(|view| match condition {
                    WaitCondition::NotRunning => {
                        !view.state.status().running && !matches!(view.state, State::Starting { .. })
                    }
                    WaitCondition::NextExit => view.exits > exits_before && !view.state.status().running,
                    WaitCondition::Removed => matches!(view.state, State::Dead { .. }),
                })
                .await
                .map(|view| Arc::clone(&view));
            let error = match &waited {
                Ok(view) => match &view.state {
                    State::Dead { reason } if condition == WaitCondition::Removed => Some(reason.clone()),
                    _ => None,
                },
                // Its owner has ended: the container is gone.
                Err(_) => None,
            };
            let status_code = waited.map_or_else(|_| view.borrow().last_exit, |view| view.last_exit);
            WaitOutcome { status_code, error }
        })
    }

    /// Attaches to a container that runs or is about to.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` while it is being removed, `System`.
    pub async fn attach(&self, reference: &str, options: AttachOptions) -> Result<Attachment> {
        let handle = self.shared.registry.find(reference)?;
        let view = handle.snapshot();
        let tty = view.record.config.tty;
        let mut streams = options.streams;
        streams.stdin &= view.record.config.open_stdin;
        let io = match view.state {
            _ if !options.stream => TaskIo {
                output: mpsc::channel(1).1,
                input: None,
            },
            State::Running { .. } => self.shared.runtime.attach(&view.record.id, streams).await?,
            State::Removing { .. } | State::Dead { .. } => {
                return Err(Error::conflict(
                    "You cannot attach to a container that is being removed",
                ));
            }
            _ => handle.waiting.add(streams),
        };
        publish_event(&self.shared, &view.record, "attach", []);
        if !options.logs {
            return Ok(Attachment { tty, io });
        }
        let log = LogOptions {
            stdout: streams.stdout,
            stderr: streams.stderr,
            ..LogOptions::default()
        };
        let entries = self.logs(reference, log).await?.entries;
        Ok(Attachment {
            tty,
            io: after_log(entries, io),
        })
    }

    /// Sets the terminal's size.
    ///
    /// # Errors
    /// `Conflict` when it does not run.
    pub async fn resize(&self, reference: &str, size: TerminalSize) -> Result<()> {
        let view = self.find(reference)?;
        let id = &view.record.id;
        if !view.state.status().running {
            return Err(Error::conflict(format!("container {id} is not running")));
        }
        self.shared.runtime.resize(id, size).await?;
        let extra = [
            ("height", size.height.to_string()),
            ("width", size.width.to_string()),
        ];
        publish_event(&self.shared, &view.record, "resize", extra);
        Ok(())
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// `InvalidParameter` for a bad name, `Conflict` for a name in use.
    pub async fn rename(&self, reference: &str, name: &str) -> Result<()> {
        if reference.is_empty() || name.is_empty() {
            return Err(Error::invalid("Neither old nor new names may be empty"));
        }
        let handle = self.shared.registry.find(reference)?;
        let name = names::check(name)?.to_owned();
        if handle.snapshot().record.name == name {
            return Err(Error::invalid(
                "Renaming a container with the same name as its current name",
            ));
        }
        command(&handle, reference, |reply| Command::Rename { name, reply }).await
    }

    /// Finds a container by id, name, or unambiguous beginning of an id.
    ///
    /// # Errors
    /// `NotFound` "No such container: …"; `InvalidParameter` for an ambiguous beginning.
    pub fn find(&self, reference: &str) -> Result<Arc<ContainerView>> {
        Ok(self.shared.registry.find(reference)?.snapshot())
    }

    /// Lists containers, newest first.
    ///
    /// # Errors
    /// `InvalidParameter` for a bad filter, `NotFound` for a filter that names a missing container.
    pub fn list(&self, options: &ListOptions) -> Result<Vec<Arc<ContainerView>>> {
        list::list(self, options)
    }

    /// Measures its disk use.
    ///
    /// # Errors
    /// `NotFound`, `System`.
    pub async fn size(&self, reference: &str) -> Result<ContainerSize> {
        let view = self.find(reference)?;
        let record = &view.record;
        self.shared.require_own_driver(record)?;
        let (rw, root_fs) = self
            .shared
            .filesystems
            .size(&record.id, record.image_top_layer.as_deref())
            .await?;
        Ok(ContainerSize { rw, root_fs })
    }

    /// Where the storage driver keeps its root file system, in Docker's words. Empty when the driver has nothing to say,
    /// and for a container of another driver than the one in use.
    pub async fn graph_data(&self, record: &Record) -> Vec<(String, String)> {
        if self.shared.require_own_driver(record).is_err() {
            return Vec::new();
        }
        match self.shared.filesystems.graph_data(&record.id).await {
            Ok(rows) => rows,
            // Being removed, or damaged: no reason to show nothing at all.
            Err(error) => {
                tracing::debug!(container = record.id, %error, "the storage driver does not know a container");
                Vec::new()
            }
        }
    }

    /// What has befallen a running container without ending it, as a sentence for `State.Error`.
    pub async fn trouble(&self, view: &ContainerView) -> Option<String> {
        if !view.state.status().running {
            return None;
        }
        self.shared.filesystems.trouble(&view.record.id).await
    }

    /// Reads its log.
    ///
    /// # Errors
    /// `NotFound`; `NotImplemented` for a log driver that cannot be read; `System`.
    pub async fn logs(&self, reference: &str, options: LogOptions) -> Result<LogStream> {
        let handle = self.shared.registry.find(reference)?;
        let view = handle.snapshot();
        let follow = options.follow.then(|| ended_token(&handle));
        let request = LogRequest {
            target: spec::log_target(&view.record)?,
            stdout: options.stdout,
            stderr: options.stderr,
            since: options.since,
            until: options.until,
            tail: options.tail,
            follow,
        };
        let entries = self.shared.runtime.logs(request).await?;
        Ok(LogStream {
            tty: view.record.config.tty,
            entries,
        })
    }

    /// Removes all stopped containers that pass the filters; returns their ids and the bytes freed.
    ///
    /// # Errors
    /// `InvalidParameter` for a bad filter.
    pub async fn prune(&self, filters: &Filters) -> Result<(Vec<String>, u64)> {
        let (mut ids, mut freed) = (Vec::new(), 0);
        for id in list::prunable(self, filters)? {
            let size = self.size(&id).await.map_or(0, |size| size.rw);
            match self.remove(&id, RemoveOptions::default()).await {
                Ok(()) => {
                    freed += size;
                    ids.push(id);
                }
                // Started or removed in the meantime.
                Err(error) => tracing::debug!(container = %id, %error, "not pruned"),
            }
        }
        Ok((ids, freed))
    }

    /// Ids of the containers that use an image, those that run marked as such.
    pub fn using_image(&self, image_id: &str) -> Vec<(String, bool)> {
        let views = self.shared.registry.all();
        let views = views
            .iter()
            .map(Handle::snapshot)
            .filter(|view| view.record.image == image_id);
        views
            .map(|view| (view.record.id.clone(), view.state.status().running))
            .collect()
    }

    /// Takes over what an earlier daemon left: adopts running tasks, records ended ones, finishes removals.
    ///
    /// # Errors
    /// `System` when the directory of containers cannot be read.
    pub async fn recover(&self) -> Result<()> {
        recover::recover(&self.shared).await?;
        janitor::spawn(&self.shared);
        Ok(())
    }

    /// Stops all containers, also those being started, each with its own signal and patience, but none longer than
    /// `timeout`. Gives up a few seconds after that: a start or an end that hangs must not hold the daemon, and what is
    /// left then is taken over by the next one.
    pub async fn shutdown(&self, timeout: Duration) {
        let patience = timeout.saturating_add(SHUTDOWN_GRACE);
        if tokio::time::timeout(patience, self.stop_all(timeout))
            .await
            .is_err()
        {
            tracing::error!("not all containers have ended; they are left to the next daemon");
        }
    }

    async fn stop_all(&self, timeout: Duration) {
        let limit = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let mut stops = tokio::task::JoinSet::new();
        for handle in self.shared.registry.all() {
            let view = handle.snapshot();
            if !view.state.status().running && !matches!(view.state, State::Starting { .. }) {
                continue;
            }
            let own = view
                .record
                .config
                .stop_timeout
                .filter(|&seconds| seconds >= 0)
                .unwrap_or(STOP_TIMEOUT);
            let options = StopOptions {
                timeout: Some(own.min(limit)),
                signal: None,
            };
            let (containers, id) = (self.clone(), view.record.id.clone());
            stops.spawn(async move {
                if let Err(error) = containers.stop(&id, options).await {
                    tracing::debug!(container = %id, %error, "not stopped");
                }
                // Its mounts and network go with it, so that the next daemon finds a clean house.
                containers.until_cleaned(&id).await;
            });
        }
        while stops.join_next().await.is_some() {}
    }

    async fn until_cleaned(&self, id: &str) {
        if let Ok(mut handle) = self.shared.registry.find(id) {
            let cleaned =
                |view: &Arc<ContainerView>| !matches!(view.state, State::Exited { cleaned: false, .. });
            let _ = handle.view.wait_for(cleaned).await;
        }
    }
}

/// Sends a command to a container's owner and waits for the answer.
async fn command(
    handle: &Handle,
    reference: &str,
    make: impl FnOnce(oneshot::Sender<Result<()>>) -> Command,
) -> Result<()> {
    let gone = || Error::not_found(format!("No such container: {reference}"));
    let (reply, answer) = oneshot::channel();
    handle.commands.send(make(reply)).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

/// Waits until the container does not run (or is gone).
async fn until_ended(handle: &Handle) {
    let mut view = handle.view.clone();
    let _ = view.wait_for(|view| !view.state.status().running).await;
}

/// A token that is cancelled when the container does not run.
fn ended_token(handle: &Handle) -> CancellationToken {
    let token = CancellationToken::new();
    let (handle, ended) = (handle.clone(), token.clone());
    tokio::spawn(async move {
        until_ended(&handle).await;
        ended.cancel();
    });
    token
}

/// The log so far, then the live streams.
fn after_log(mut entries: mpsc::Receiver<Result<LogEntry>>, io: TaskIo) -> TaskIo {
    let (sender, output) = mpsc::channel(16);
    let TaskIo {
        output: mut live,
        input,
    } = io;
    tokio::spawn(async move {
        while let Some(Ok(entry)) = entries.recv().await {
            let chunk = OutputChunk {
                stream: entry.stream,
                bytes: entry.line,
            };
            if sender.send(chunk).await.is_err() {
                return;
            }
        }
        while let Some(chunk) = live.recv().await {
            if sender.send(chunk).await.is_err() {
                return;
            }
        }
    });
    TaskIo { output, input }
}

/// `--dns`, parsed.
fn dns_servers(host: &HostConfig) -> Result<Vec<IpAddr>> {
    let parse = |text: &String| {
        text.parse()
            .map_err(|_| Error::invalid(format!("bad dns address: {text}")))
    };
    host.dns.iter().map(parse).collect()
}
