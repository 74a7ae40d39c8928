//! The shim's task: from its creation to its end.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use skiff_core::runtime::{TaskExit, TerminalSize};

use super::connection::Awaits;
use super::server::Shim;
use super::streams;
use super::{embedded, external};
use crate::paths;
use crate::protocol::{Failure, FailureKind, Phase, Response};

/// How long the end is held back for output that a slow client keeps from being read; Docker waits as long. It begins
/// anew with each piece that is read, so that a busy machine loses nothing.
pub(super) const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// How long it is held back in all: a process outside of the container's namespace may hold its output and write on.
const DRAIN_AT_MOST: Duration = Duration::from_secs(60);

/// What the shim knows of its task.
#[derive(Default)]
pub(super) struct Task {
    pub(super) id: String,
    /// Program of an external runtime.
    pub(super) runtime: Option<PathBuf>,
    pub(super) args: Vec<String>,
    pub(super) tty: bool,
    pub(super) open_stdin: bool,
    pub(super) stdin_once: bool,
    pub(super) size: Option<TerminalSize>,
    /// The creation under way.
    pub(super) creating: Option<Creating>,
    /// The first process, from its creation on.
    pub(super) pid: Option<u32>,
    pub(super) started: bool,
    /// How the first process ended; not yet told to anyone.
    pub(super) ended: Option<TaskExit>,
    /// The same, once it is on disk.
    pub(super) exit: Option<TaskExit>,
    /// Children that ended before we knew which of them is the task.
    pub(super) early: Vec<(u32, i32)>,
}

/// A creation under way.
pub(super) struct Creating {
    /// The creator's process id.
    pub(super) pid: u32,
    pub(super) report: File,
    pub(super) received: Vec<u8>,
    /// The connection that asked for it.
    pub(super) requester: u64,
    /// Where the runtime connects to hand over the terminal.
    pub(super) console: Option<OwnedFd>,
}

impl Shim {
    /// Undoes a creation: kills what there is, ends the shim.
    pub(super) fn abandon(&mut self) {
        if self.task.exit.is_none()
            && let Some(pid) = self.task.pid
        {
            let _ = kill(pid, nix::libc::SIGKILL);
            // It is our child and has just been killed: this wait is short.
            let _ = waitpid(raw(pid), None);
        }
        self.clean_up();
        for connection in self
            .connections
            .values_mut()
            .filter(|connection| connection.awaits == Awaits::Deletion)
        {
            connection.respond(&Response::Done);
        }
        self.finished = true;
    }

    /// The client that asked for the creation has gone before it was told the outcome, or has never asked.
    pub(super) fn requester_left(&mut self, _token: u64) {
        if self.task.pid.is_none() && self.task.creating.is_none() && self.connections.is_empty() {
            self.finished = true;
        }
    }

    /// Executes the command of the created container.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        if self.task.pid.is_none() {
            return Err(Failure::conflict("the container has not been created"));
        }
        if self.task.started {
            return Err(Failure::conflict("the container has been started already"));
        }
        if self.task.ended.is_some() || self.task.exit.is_some() {
            return Err(Failure::conflict("the container has ended before it was started"));
        }
        match &self.task.runtime {
            None => embedded::start(&self.folder, &self.task.id)?,
            Some(program) => external::start(&self.folder, &self.task.args, &self.task.id, program)?,
        }
        self.task.started = true;
        skiff_sys::heap::trim();
        Ok(())
    }

    pub(super) fn signal(&mut self, signal: i32) -> Result<(), Failure> {
        match self.task.pid {
            Some(pid) if self.task.ended.is_none() && self.task.exit.is_none() => {
                kill(pid, signal).map_err(|error| Failure::system(format!("kill: {error}")))
            }
            Some(_) => Err(Failure::new(FailureKind::Conflict, "process already finished")),
            None => Err(Failure::conflict("the container has not been created")),
        }
    }

    pub(super) fn resize(&mut self, size: TerminalSize) -> Result<(), Failure> {
        match &self.sources[0] {
            Some(source) if self.task.tty => streams::resize(&source.fd, size)
                .map_err(|error| Failure::system(format!("resizing the terminal: {error}"))),
            Some(_) => Err(Failure::conflict("the container has no terminal")),
            None => Err(Failure::conflict("the container is not running")),
        }
    }

    pub(super) fn status(&self) -> Response {
        let phase = match &self.task.exit {
            Some(exit) => Phase::Exited(exit.clone()),
            None if self.task.started => Phase::Running,
            None if self.task.pid.is_some() => Phase::Created,
            None => Phase::New,
        };
        Response::Status {
            phase,
            pid: self.task.pid.unwrap_or(0),
        }
    }

    /// Reaps all children that have ended.
    pub(super) fn reap(&mut self) {
        self.forget_signals();
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let pid = pid.as_raw().unsigned_abs();
            if self.task.pid == Some(pid) {
                self.first_process_ended(code);
            } else if self
                .task
                .creating
                .as_ref()
                .is_some_and(|creating| creating.pid == pid)
            {
                // Normally it has reported before; if not now, it never will.
                self.read_creator();
                self.creator_reported();
            } else if self.task.creating.is_some() {
                self.task.early.push((pid, code));
            }
        }
    }

    pub(super) fn first_process_ended(&mut self, code: i32) {
        self.task.ended = Some(TaskExit {
            code,
            finished_at: Timestamp::now(),
            oom_killed: false,
        });
        self.close_stdin();
        if self.sources.iter().all(Option::is_none) {
            self.report_end();
        } else {
            // What it wrote last is still in the pipes; in the usual case they end at once.
            let now = Instant::now();
            self.drain_until = Some(now + DRAIN_LIMIT);
            self.drain_at_most = Some(now + DRAIN_AT_MOST);
        }
    }

    /// Writes the exit status down and tells who waits for it.
    pub(super) fn report_end(&mut self) {
        self.drain_until = None;
        let Some(exit) = self.task.ended.take() else {
            return;
        };
        if let Ok(json) = serde_json::to_vec(&exit) {
            // On a full disk only this shim knows; it stays as long as it is asked.
            let _ = paths::replace(&self.folder, paths::EXIT, &json);
        }
        self.task.exit = Some(exit.clone());
        self.linger();
        let waiting: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| c.awaits == Awaits::Exit)
            .map(|(token, _)| *token)
            .collect();
        for token in waiting {
            if let Some(connection) = self.connections.get_mut(&token) {
                connection.awaits = Awaits::Nothing;
                connection.respond(&Response::Exited(exit.clone()));
            }
            self.rearm(token);
        }
        if self
            .connections
            .values()
            .any(|connection| connection.awaits == Awaits::Deletion)
        {
            self.delete();
        }
    }

    /// Answers now when the task has ended, else later.
    pub(super) fn await_end(&mut self, token: u64, awaits: Awaits) -> Option<Response> {
        let ended = self.task.exit.clone();
        match (awaits, ended) {
            (Awaits::Exit, Some(exit)) => return Some(Response::Exited(exit)),
            (Awaits::Exit, None) if self.task.pid.is_none() => {
                return Some(Response::Failed(Failure::conflict(
                    "the container has not been created",
                )));
            }
            (Awaits::Deletion, None) if self.task.pid.is_none() && self.task.creating.is_none() => {
                self.finished = true;
                return Some(Response::Done);
            }
            // A creation under way is completed, then undone.
            _ => {}
        }
        let connection = self.connections.get_mut(&token)?;
        connection.awaits = awaits;
        if awaits == Awaits::Deletion && self.task.exit.is_some() {
            self.delete();
        }
        None
    }

    pub(super) fn kill_for_deletion(&mut self) {
        if let Some(pid) = self
            .task
            .pid
            .filter(|_| self.task.ended.is_none() && self.task.exit.is_none())
        {
            let _ = kill(pid, nix::libc::SIGKILL);
        }
        // Nobody will look at what is still in the pipes.
        if self.drain_until.is_some() {
            self.report_end();
        }
    }

    /// Deletes the ended task and ends the shim.
    fn delete(&mut self) {
        let result = self.runtime_delete();
        self.clean_up();
        let response = result.map_or_else(Response::Failed, |()| Response::Done);
        for connection in self
            .connections
            .values_mut()
            .filter(|connection| connection.awaits == Awaits::Deletion)
        {
            connection.respond(&response);
        }
        self.finished = true;
    }

    fn runtime_delete(&self) -> Result<(), Failure> {
        match &self.task.runtime {
            _ if self.task.id.is_empty() => Ok(()),
            None => embedded::delete(&self.folder, &self.task.id),
            Some(program) => external::delete(&self.folder, &self.task.id, program),
        }
    }

    /// Removes what only a living task needs; `exit.json` stays for the daemon, who removes the folder.
    pub(super) fn clean_up(&mut self) {
        let _ = self.runtime_delete();
        for name in [paths::SOCKET, paths::CONSOLE] {
            let _ = std::fs::remove_file(self.folder.join(name));
        }
        for name in [paths::OCI_STATE, paths::BUNDLE] {
            let _ = paths::remove_folder(&self.folder.join(name));
        }
    }
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}

/// Signals a child that has not been reaped: its id cannot belong to anyone else.
fn kill(pid: u32, signal: i32) -> io::Result<()> {
    skiff_sys::process::kill(pid, signal)
}
