//! The owner of one container: an actor task that takes clients' commands and the reports of its own effects,
//! lets [`step`] decide, then persists, publishes the new view, and carries the effects out as child tasks.
//!
//! Reports come before commands. A command that is not possible *now* ([`Denied::Later`]) waits for the next
//! transition. Nothing here takes long: a stop of ten seconds is a child task, so kill, inspect and list go on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::attach::Waiting;
use super::disk::{FORMAT, StateFile};
use super::launch;
use super::registry::Handle;
use super::state::{Denied, Effect, Event, Failure, State, step};
use super::view::{ContainerView, Record};
use super::{Shared, signal};
use crate::error::{Error, Result};
use crate::network::Sandbox;
use crate::runtime::TaskExit;

/// Commands that may wait in a container's queue.
const QUEUE: usize = 64;

type Reply = oneshot::Sender<Result<()>>;

/// What a client asks of a container.
pub(super) enum Command {
    /// Run it; answered when it runs.
    Start(Reply),
    /// End it; answered when the signal is on its way.
    Stop {
        signal: i32,
        timeout: Option<Duration>,
        reply: Reply,
    },
    /// Send a signal; answered when it is sent.
    Kill { signal: i32, reply: Reply },
    /// Remove it; answered when it is gone.
    Remove { force: bool, reply: Reply },
    /// Change the name.
    Rename { name: String, reply: Reply },
}

enum Report {
    Launched {
        pid: u32,
        sandbox: Sandbox,
    },
    LaunchFailed {
        failure: Failure,
        error: Error,
    },
    Exited {
        exit: TaskExit,
        /// What had befallen the root file system.
        trouble: Option<String>,
    },
    CleanedUp,
    Removed,
    RemoveFailed(Error),
}

/// Where an owner begins: a new container, or one found on disk.
pub(super) struct Beginning {
    pub(super) record: Arc<Record>,
    pub(super) state: State,
    pub(super) sandbox: Option<Sandbox>,
    pub(super) restart_count: u64,
}

struct Actor {
    shared: Arc<Shared>,
    record: Arc<Record>,
    state: State,
    sandbox: Option<Sandbox>,
    restart_count: u64,
    exits: u64,
    last_exit: i64,
    waiting: Arc<Waiting>,
    view: watch::Sender<Arc<ContainerView>>,
    reports: mpsc::UnboundedSender<Report>,
    deferred: VecDeque<Command>,
    starters: Vec<Reply>,
    removers: Vec<Reply>,
}

/// Starts the owner of a container and returns how to reach it. A container found running is watched, one whose
/// clean-up or removal was interrupted goes on with it.
pub(super) fn spawn(shared: &Arc<Shared>, beginning: Beginning) -> Handle {
    let Beginning {
        record,
        state,
        sandbox,
        restart_count,
    } = beginning;
    let last_exit = i64::from(state.status().exit_code);
    let view = Arc::new(ContainerView {
        record: Arc::clone(&record),
        state: state.clone(),
        restart_count,
        sandbox: sandbox.clone(),
        exits: 0,
        last_exit,
    });
    let (view, view_receiver) = watch::channel(view);
    let (commands, command_receiver) = mpsc::channel(QUEUE);
    let (reports, report_receiver) = mpsc::unbounded_channel();
    let waiting = Arc::new(Waiting::default());
    let mut actor = Actor {
        shared: Arc::clone(shared),
        record,
        state,
        sandbox,
        restart_count,
        exits: 0,
        last_exit,
        waiting: Arc::clone(&waiting),
        view,
        reports,
        deferred: VecDeque::new(),
        starters: Vec::new(),
        removers: Vec::new(),
    };
    actor.resume();
    tokio::spawn(actor.run(command_receiver, report_receiver));
    Handle {
        view: view_receiver,
        commands,
        waiting,
    }
}

impl Actor {
    /// Takes up what the state says is under way.
    fn resume(&mut self) {
        match &self.state {
            State::Running { .. } => self.carry_out(Effect::Watch),
            State::Exited { cleaned: false, .. } => self.carry_out(Effect::CleanUp),
            State::Removing { .. } => self.carry_out(Effect::Delete),
            // Found again after a daemon's death; nobody else will remove it.
            State::Created { .. } | State::Exited { .. } if self.interrupted_auto_removal() => {
                self.apply(&Event::Remove { force: false }).ok();
            }
            _ => {}
        }
    }

    fn interrupted_auto_removal(&self) -> bool {
        self.record.host_config.auto_remove && !matches!(self.state, State::Created { last_failure: None })
    }

    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut reports: mpsc::UnboundedReceiver<Report>,
    ) {
        loop {
            tokio::select! {
                biased;
                Some(report) = reports.recv() => {
                    if self.on_report(report) {
                        return;
                    }
                }
                Some(command) = commands.recv() => self.on_command(command),
                else => return,
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Rename { name, reply } => {
                let _ = reply.send(self.rename(name));
            }
            Command::Start(reply) => match self.apply(&Event::Start) {
                Ok(()) => self.starters.push(reply),
                Err(Denied::Later) => self.deferred.push_back(Command::Start(reply)),
                Err(denied) => self.refuse(denied, reply, "start"),
            },
            Command::Stop {
                signal,
                timeout,
                reply,
            } => match self.apply(&Event::Stop) {
                Ok(()) => {
                    self.begin_stop(signal, timeout);
                    let _ = reply.send(Ok(()));
                }
                Err(Denied::Later) => self.deferred.push_back(Command::Stop {
                    signal,
                    timeout,
                    reply,
                }),
                Err(denied) => self.refuse(denied, reply, "stop"),
            },
            Command::Kill { signal, reply } => match self.apply(&Event::Kill) {
                Ok(()) => self.send_signal(signal, reply),
                Err(Denied::Later) => self.deferred.push_back(Command::Kill { signal, reply }),
                Err(denied) => self.refuse(denied, reply, "kill"),
            },
            Command::Remove { force, reply } => match self.apply(&Event::Remove { force }) {
                Ok(()) if matches!(self.state, State::Removing { .. }) => self.removers.push(reply),
                // Killed for the removal: asked again when it has ended.
                Ok(()) | Err(Denied::Later) => self.deferred.push_back(Command::Remove { force, reply }),
                // An automatic removal is under way: the client gets what it wants.
                Err(Denied::Removing) if force || self.record.host_config.auto_remove => {
                    self.removers.push(reply);
                }
                Err(denied) => self.refuse(denied, reply, "remove"),
            },
        }
    }

    /// Takes a report; true when the container is gone.
    fn on_report(&mut self, report: Report) -> bool {
        match report {
            Report::Launched { pid, sandbox } => {
                self.sandbox = Some(sandbox);
                self.accept(&Event::Launched {
                    pid,
                    at: Timestamp::now(),
                });
                self.publish_event("start", []);
                self.starters.drain(..).for_each(|reply| drop(reply.send(Ok(()))));
            }
            Report::LaunchFailed { failure, error } => self.on_launch_failed(failure, error),
            Report::Exited { exit, trouble } => {
                self.count_exit(exit.code);
                self.accept(&Event::Exited {
                    code: exit.code,
                    at: exit.finished_at,
                    oom_killed: exit.oom_killed,
                    trouble,
                });
                self.publish_event("die", [("exitCode", exit.code.to_string())]);
            }
            Report::CleanedUp => {
                self.sandbox = None;
                self.accept(&Event::CleanedUp);
                self.remove_automatically();
            }
            Report::Removed => {
                self.accept(&Event::Removed);
                self.shared.registry.remove(&self.record.id, &self.record.name);
                self.shared.janitor.notify_one();
                self.publish_event("destroy", []);
                self.removers.drain(..).for_each(|reply| drop(reply.send(Ok(()))));
                return true;
            }
            Report::RemoveFailed(error) => {
                let reason = error.to_string();
                tracing::error!(container = %self.record.id, %error, "cannot remove the container");
                self.accept(&Event::RemoveFailed(reason.clone()));
                for reply in self.removers.drain(..) {
                    let _ = reply.send(Err(Error::system(reason.clone())));
                }
            }
        }
        self.retry_deferred();
        false
    }

    fn on_launch_failed(&mut self, failure: Failure, error: Error) {
        self.count_exit(failure.code);
        self.accept(&Event::LaunchFailed(failure));
        let mut error = Some(error);
        for reply in self.starters.drain(..) {
            let error = error
                .take()
                .unwrap_or_else(|| Error::system("the start failed; see the first answer"));
            let _ = reply.send(Err(error));
        }
        self.remove_automatically();
    }

    fn remove_automatically(&mut self) {
        if self.record.host_config.auto_remove {
            // Denied only when a client's removal came first.
            self.apply(&Event::Remove { force: false }).ok();
        }
    }

    fn retry_deferred(&mut self) {
        for command in std::mem::take(&mut self.deferred) {
            self.on_command(command);
        }
    }

    fn accept(&mut self, event: &Event) {
        if let Err(denied) = self.apply(event) {
            tracing::error!(container = %self.record.id, ?event, ?denied, state = ?self.state, "report out of place");
        }
    }

    /// One transition: decide, persist, publish, act.
    fn apply(&mut self, event: &Event) -> Result<(), Denied> {
        let (next, effects) = step(&self.state, event)?;
        if next != self.state {
            self.state = next;
            self.persist();
            self.publish_view();
        }
        for effect in effects {
            self.carry_out(effect);
        }
        Ok(())
    }

    fn persist(&self) {
        // The launch itself writes the starting state, together with the network it made; an ended container that
        // removes itself leaves the running state behind, which recovery resolves by asking the runtime.
        let skip = matches!(self.state, State::Starting { .. })
            || (self.record.host_config.auto_remove && !matches!(self.state, State::Running { .. }));
        if skip {
            return;
        }
        let file = StateFile {
            version: FORMAT,
            state: self.state.clone(),
            sandbox: self.sandbox.clone(),
            restart_count: self.restart_count,
        };
        if let Err(error) = self.shared.disk.write_state(&self.record.id, &file) {
            // The container goes on; a restarted daemon asks the runtime for the truth.
            tracing::error!(container = %self.record.id, %error, "cannot write the container's state");
        }
    }

    fn publish_view(&self) {
        self.view.send_replace(Arc::new(ContainerView {
            record: Arc::clone(&self.record),
            state: self.state.clone(),
            restart_count: self.restart_count,
            sandbox: self.sandbox.clone(),
            exits: self.exits,
            last_exit: self.last_exit,
        }));
    }

    fn count_exit(&mut self, code: i32) {
        self.exits += 1;
        self.last_exit = i64::from(code);
    }

    fn carry_out(&self, effect: Effect) {
        let (shared, record) = (Arc::clone(&self.shared), Arc::clone(&self.record));
        let reports = self.reports.clone();
        match effect {
            Effect::Launch => {
                let (waiting, state) = (Arc::clone(&self.waiting), self.state.clone());
                tokio::spawn(async move {
                    let report = match launch::launch(&shared, &record, &waiting, state).await {
                        Ok((pid, sandbox)) => Report::Launched { pid, sandbox },
                        Err(failed) => Report::LaunchFailed {
                            failure: Failure {
                                code: failed.exit_code,
                                message: failed.error.to_string(),
                            },
                            error: failed.error,
                        },
                    };
                    let _ = reports.send(report);
                });
            }
            Effect::Watch => {
                tokio::spawn(async move {
                    let exit = shared.runtime.wait(&record.id).await.unwrap_or_else(|error| {
                        tracing::error!(container = %record.id, %error, "lost the task");
                        TaskExit {
                            code: LOST,
                            finished_at: Timestamp::now(),
                            oom_killed: false,
                        }
                    });
                    // Asked before the clean-up, which forgets it with the mount.
                    let trouble = shared.filesystems.trouble(&record.id).await;
                    let _ = reports.send(Report::Exited { exit, trouble });
                });
            }
            Effect::CleanUp => {
                tokio::spawn(async move {
                    launch::clean_up(&shared, &record.id).await;
                    let _ = reports.send(Report::CleanedUp);
                });
            }
            Effect::Delete => {
                self.waiting.dismiss();
                tokio::spawn(async move {
                    let report = match launch::delete(&shared, &record.id).await {
                        Ok(()) => Report::Removed,
                        Err(error) => Report::RemoveFailed(error),
                    };
                    let _ = reports.send(report);
                });
            }
            Effect::KillForRemoval => {
                self.publish_event("kill", [("signal", signal::KILL.to_string())]);
                tokio::spawn(async move {
                    if let Err(error) = shared.runtime.signal(&record.id, signal::KILL).await {
                        tracing::warn!(container = %record.id, %error, "cannot kill the container");
                    }
                });
            }
            // The command that brought these about carries the signal: see `begin_stop` and `send_signal`.
            Effect::Stop | Effect::Signal => {}
        }
    }

    fn begin_stop(&self, stop_signal: i32, timeout: Option<Duration>) {
        self.publish_event("kill", [("signal", stop_signal.to_string())]);
        let (shared, record) = (Arc::clone(&self.shared), Arc::clone(&self.record));
        let mut view = self.view.subscribe();
        tokio::spawn(async move {
            if let Err(error) = shared.runtime.signal(&record.id, stop_signal).await {
                tracing::debug!(container = %record.id, %error, "stop signal not delivered");
            }
            let ended = async {
                // An error says that the container is gone.
                let _ = view.wait_for(|view| !view.state.status().running).await;
            };
            let Some(timeout) = timeout else { return };
            if tokio::time::timeout(timeout, ended).await.is_err() {
                tracing::info!(container = %record.id, "did not stop in time, sending SIGKILL");
                if let Err(error) = shared.runtime.signal(&record.id, signal::KILL).await {
                    tracing::warn!(container = %record.id, %error, "cannot kill the container");
                }
            }
        });
    }

    fn send_signal(&self, signal: i32, reply: Reply) {
        self.publish_event("kill", [("signal", signal.to_string())]);
        let (shared, record) = (Arc::clone(&self.shared), Arc::clone(&self.record));
        tokio::spawn(async move {
            let _ = reply.send(shared.runtime.signal(&record.id, signal).await);
        });
    }

    fn rename(&mut self, name: String) -> Result<()> {
        let mut record = (*self.record).clone();
        let old = std::mem::replace(&mut record.name, name);
        self.shared.registry.rename(&record.id, &old, &record.name)?;
        if let Err(error) = self.shared.disk.write_record(&record) {
            // Give the new name back and keep the old one; it cannot have been taken in between without us.
            self.shared.registry.rename(&record.id, &record.name, &old)?;
            return Err(error);
        }
        self.record = Arc::new(record);
        self.publish_view();
        self.publish_event("rename", [("oldName", format!("/{old}"))]);
        Ok(())
    }

    fn refuse(&self, denied: Denied, reply: Reply, operation: &str) {
        let (id, name) = (&self.record.id, &self.record.name);
        let error = match denied {
            Denied::NotModified => Error::not_modified(format!("container {id}: nothing to {operation}")),
            Denied::NotRunning => Error::conflict(format!(
                "cannot {operation} container: {name}: container {id} is not running"
            )),
            Denied::Running => Error::conflict(format!(
                "cannot {operation} container \"/{name}\": container is running: stop the container before removing \
                 or force remove"
            )),
            Denied::Removing if operation == "remove" => {
                Error::conflict(format!("removal of container {name} is already in progress"))
            }
            Denied::Removing | Denied::Dead => Error::conflict(format!(
                "container is marked for removal and cannot be {operation}ed"
            )),
            Denied::Later | Denied::Impossible => Error::system(format!(
                "{operation} is not possible in state {}",
                self.state.status().word
            )),
        };
        let _ = reply.send(Err(error));
    }

    fn publish_event<const N: usize>(&self, action: &str, extra: [(&str, String); N]) {
        publish_event(&self.shared, &self.record, action, extra);
    }
}

/// Exit code of a container whose end nobody saw (Docker's, too).
pub(super) const LOST: i32 = 255;

/// Publishes an event of a container with the attributes all of them have: image, name, labels.
pub(super) fn publish_event<const N: usize>(
    shared: &Shared,
    record: &Record,
    action: &str,
    extra: [(&str, String); N],
) {
    let mut attributes: BTreeMap<String, String> = record.config.labels.clone().unwrap_or_default();
    attributes.insert("image".to_owned(), record.config.image.clone());
    attributes.insert("name".to_owned(), record.name.clone());
    attributes.extend(extra.into_iter().map(|(key, value)| (key.to_owned(), value)));
    shared
        .events
        .publish("container", action, record.id.as_str(), attributes);
}
