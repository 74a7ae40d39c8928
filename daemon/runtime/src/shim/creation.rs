//! How the task comes to be: a forked creator makes it, the shim takes over its streams.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags};
use rustix::pipe::PipeFlags;
use skiff_sys::identity::ProcessIdentity;
use skiff_sys::process::{Fork, exit_now, fork_single_threaded};

use super::connection::Awaits;
use super::creator::{self, Outcome};
use super::listen;
use super::poll::{self, Flags};
use super::server::Shim;
use super::streams::{self, ContainerEnds};
use super::task::{Creating, Task};
use crate::logs::writer::LogWriter;
use crate::paths;
use crate::protocol::{CreateRequest, Failure, Response};

impl Shim {
    /// Begins the creation; the answer comes when the creator has reported.
    pub(super) fn create(&mut self, requester: u64, request: CreateRequest) -> Result<(), Failure> {
        if self.task.creating.is_some() || self.task.pid.is_some() {
            return Err(Failure::conflict("the container has been created already"));
        }
        let launch = &request.launch;
        let process = &launch.process;
        self.log = LogWriter::open(&launch.log)
            .map_err(|error| Failure::system(format!("opening the container's log: {error}")))?;
        self.task = Task {
            id: launch.id.clone(),
            runtime: request.runtime.clone(),
            args: process.args.clone(),
            tty: process.tty,
            open_stdin: process.open_stdin,
            stdin_once: process.stdin_once,
            size: process.console_size,
            ..Task::default()
        };
        let failed = |what: &'static str| move |error: io::Error| Failure::system(format!("{what}: {error}"));
        let (mut ends, mut console) = (None, None);
        if process.tty {
            console = Some(listen(paths::CONSOLE).map_err(failed("console socket"))?);
        } else {
            ends = Some(self.make_pipes(process.open_stdin).map_err(failed("pipes"))?);
        }
        let (pid, report) = self
            .fork_creator(&request, ends)
            .map_err(failed("starting the creator"))?;
        self.poll
            .add(&report, poll::CREATOR, Flags::IN)
            .map_err(failed("epoll"))?;
        self.task.creating = Some(Creating {
            pid,
            report,
            received: Vec::new(),
            requester,
            console,
        });
        // Only now: a container in the host's network is made by a creator that never left it.
        if let Some(path) = &request.keeper_netns {
            enter_network(path).map_err(failed("entering the keeper's network namespace"))?;
        }
        Ok(())
    }

    fn make_pipes(&mut self, with_stdin: bool) -> io::Result<ContainerEnds> {
        let (ends, sources, sink) = streams::pipes(with_stdin)?;
        for (source, token) in sources.iter().zip(poll::SOURCES) {
            self.poll.add(&source.fd, token, Flags::IN)?;
        }
        self.sources = sources.map(Some);
        self.stdin = sink;
        Ok(ends)
    }

    fn fork_creator(&self, request: &CreateRequest, ends: Option<ContainerEnds>) -> io::Result<(u32, File)> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        match fork_single_threaded()? {
            Fork::Parent(pid) => Ok((pid, File::from(read))),
            Fork::Child => {
                let folder = self.folder.clone();
                let work = || creator::run(&folder, request, ends, write);
                // A panic must not run the parent's loop in the child.
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                exit_now(i32::from(done.is_err()))
            }
        }
    }

    /// Reads the creator's report.
    pub(super) fn read_creator(&mut self) {
        let Some(creating) = &mut self.task.creating else {
            return;
        };
        // An error means "not all yet"; what was read until then is kept.
        let _ = creating.report.read_to_end(&mut creating.received);
        if creating.received.ends_with(b"\n") {
            self.creator_reported();
        }
    }

    pub(super) fn creator_reported(&mut self) {
        let Some(creating) = self.task.creating.take() else {
            return;
        };
        self.poll.remove(&creating.report);
        let result = match serde_json::from_slice(&creating.received) {
            Ok(Outcome::Created { pid }) => self.created(pid, creating.console),
            Ok(Outcome::Failed(failure)) => Err(failure),
            Err(_) => Err(Failure::system(
                "the process that creates the container died; see shim.log in the container's run-time folder",
            )),
        };
        // What the creator made must not outlive us.
        skiff_sys::heap::trim();
        let response = match result {
            Ok(_)
                if self
                    .connections
                    .values()
                    .any(|connection| connection.awaits == Awaits::Deletion) =>
            {
                self.kill_for_deletion();
                return;
            }
            Ok(pid) => Response::Created { pid },
            Err(failure) => {
                self.abandon();
                Response::Failed(failure)
            }
        };
        match self.connections.get_mut(&creating.requester) {
            Some(connection) => {
                connection.respond(&response);
                self.rearm(creating.requester);
            }
            // Who asked has gone, and nobody else knows of this container.
            None => self.abandon(),
        }
    }

    fn created(&mut self, pid: u32, console: Option<OwnedFd>) -> Result<u32, Failure> {
        self.task.pid = Some(pid);
        if let Some(index) = self.task.early.iter().position(|(early, _)| *early == pid) {
            let (_, code) = self.task.early.remove(index);
            self.first_process_ended(code);
        }
        self.task.early = Vec::new();
        if let Some(console) = console {
            self.take_terminal(&console)
                .map_err(|error| Failure::system(format!("receiving the terminal: {error}")))?;
        }
        let _ = std::fs::remove_file(paths::CONSOLE);
        // For the next daemon, should this shim be killed: which process to end. (It may have ended already.)
        if let Ok(identity) = ProcessIdentity::of(pid) {
            paths::replace(&self.folder, paths::TASK_PID, identity.to_string().as_bytes())
                .map_err(|error| Failure::system(format!("{}: {error}", paths::TASK_PID)))?;
        }
        Ok(pid)
    }

    fn take_terminal(&mut self, console: &OwnedFd) -> io::Result<()> {
        let socket = rustix::net::accept_with(console, SocketFlags::CLOEXEC)?;
        let master = receive_descriptor(&socket)?;
        if let Some(size) = self.task.size {
            streams::resize(&master, size)?;
        }
        let (source, sink) = streams::terminal(master, self.task.open_stdin)?;
        self.poll.add(&source.fd, poll::SOURCES[0], Flags::IN)?;
        self.sources = [Some(source), None];
        self.stdin = sink;
        Ok(())
    }
}

fn enter_network(path: &std::path::Path) -> io::Result<()> {
    let namespace = File::open(path)?;
    skiff_sys::ns::join(&namespace, skiff_sys::ns::Kind::Network)
}

/// Receives one descriptor.
fn receive_descriptor(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    let mut slices = [io::IoSliceMut::new(&mut name)];
    rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.ok_or_else(|| io::Error::other("the runtime sent no descriptor"))
}
