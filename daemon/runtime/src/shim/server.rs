//! The shim's loop: who is ready, and what is done about it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use skiff_core::runtime::{AttachStreams, StdStream};

use super::connection::{Awaits, Connection};
use super::poll::{self, Flags, Poll};
use super::streams::{Chunk, Sink, Source};
use super::task::{DRAIN_LIMIT, Task};
use crate::logs::writer::LogWriter;
use crate::protocol::{Envelope, Failure, FailureKind, FrameType, Request, Response, VERSION};

/// How much is read of a stream at once: what a pipe holds.
const READ_SIZE: usize = 64 << 10;

/// How long an ended task's shim waits for someone to ask. After that `exit.json` speaks for it.
const LINGER: Duration = Duration::from_secs(60);

/// The shim's state.
pub(super) struct Shim {
    pub(super) folder: PathBuf,
    pub(super) poll: Poll,
    listener: OwnedFd,
    children: SignalFd,
    pub(super) connections: BTreeMap<u64, Connection>,
    next_token: u64,
    pub(super) task: Task,
    /// Standard output and error; a terminal is in the first place.
    pub(super) sources: [Option<Source>; 2],
    pub(super) stdin: Option<Sink>,
    pub(super) log: Option<LogWriter>,
    /// Read buffer; exists while there is something to read.
    buffer: Vec<u8>,
    /// When to report the end even though the streams have not ended.
    pub(super) drain_until: Option<Instant>,
    /// The latest `drain_until` may become.
    pub(super) drain_at_most: Option<Instant>,
    /// When to give up waiting for questions after the end.
    pub(super) linger_until: Option<Instant>,
    /// The loop ends.
    pub(super) finished: bool,
}

impl Shim {
    pub(super) fn new(
        folder: PathBuf,
        listener: OwnedFd,
        children: SignalFd,
        first: OwnedFd,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(&listener, poll::LISTENER, Flags::IN)?;
        poll.add(&children, poll::CHILDREN, Flags::IN)?;
        let mut shim = Self {
            folder,
            poll,
            listener,
            children,
            connections: BTreeMap::new(),
            next_token: poll::FIRST_CONNECTION,
            task: Task::default(),
            sources: [None, None],
            stdin: None,
            log: None,
            buffer: Vec::new(),
            drain_until: None,
            drain_at_most: None,
            linger_until: None,
            finished: false,
        };
        shim.add_connection(first);
        Ok(shim)
    }

    /// Serves until the task is deleted or can never exist.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::new();
        while !self.finished {
            self.poll.wait(&mut events, self.timeout())?;
            for &(token, flags) in &events {
                self.handle(token, flags);
            }
            self.check_clock();
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        let next = [self.drain_until, self.linger_until]
            .into_iter()
            .flatten()
            .min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn check_clock(&mut self) {
        let now = Instant::now();
        if self.drain_until.is_some_and(|at| at <= now) {
            self.report_end();
        }
        if self.linger_until.is_some_and(|at| at <= now) {
            if self.connections.is_empty() {
                self.clean_up();
                self.finished = true;
            } else {
                self.linger_until = Some(now + LINGER);
            }
        }
    }

    /// Starts the clock of [`LINGER`].
    pub(super) fn linger(&mut self) {
        self.linger_until = Some(Instant::now() + LINGER);
    }

    fn handle(&mut self, token: u64, flags: Flags) {
        match token {
            poll::LISTENER => self.accept(),
            poll::CHILDREN => self.reap(),
            poll::CREATOR => self.read_creator(),
            poll::STDIN => self.write_stdin(),
            token if token == poll::SOURCES[0] => self.read_source(0),
            token if token == poll::SOURCES[1] => self.read_source(1),
            token => self.handle_connection(token, flags),
        }
    }

    /// Empties the signal descriptor; what it announced is found out by waiting.
    pub(super) fn forget_signals(&self) {
        while let Ok(Some(_)) = self.children.read_signal() {}
    }

    fn accept(&mut self) {
        loop {
            match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.add_connection(socket),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }

    fn add_connection(&mut self, socket: OwnedFd) {
        let token = self.next_token;
        self.next_token += 1;
        self.connections.insert(token, Connection::new(socket));
        self.rearm(token);
    }

    /// Makes epoll watch what the connection needs now; drops the connection when it is over.
    pub(super) fn rearm(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        if connection.is_over() {
            self.drop_connection(token);
            return;
        }
        let wanted = connection.wanted();
        // Input is stopped and the client has gone: epoll would report that without end.
        if connection.paused && !connection.output_open {
            self.poll.remove(&connection.socket);
            connection.watched = None;
            return;
        }
        let result = match connection.watched {
            Some(flags) if flags == wanted => Ok(()),
            Some(_) => self.poll.modify(&connection.socket, token, wanted),
            None => self.poll.add(&connection.socket, token, wanted),
        };
        connection.watched = Some(wanted);
        if result.is_err() {
            self.drop_connection(token);
        }
    }

    fn drop_connection(&mut self, token: u64) {
        let Some(connection) = self.connections.remove(&token) else {
            return;
        };
        self.poll.remove(&connection.socket);
        if connection.input_open && connection.attached.is_some_and(|streams| streams.stdin) {
            self.input_client_left();
        }
        self.resume_sources();
        self.requester_left(token);
    }

    fn handle_connection(&mut self, token: u64, flags: Flags) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        if flags.contains(Flags::OUT) {
            connection.flush();
        }
        let gone = flags.intersects(Flags::HUP | Flags::ERR);
        if connection.input_open
            && !connection.paused
            && flags.intersects(Flags::IN | Flags::HUP | Flags::ERR)
        {
            self.read_connection(token);
        } else if gone {
            connection.stop_output();
        }
        self.rearm(token);
        self.resume_sources();
    }

    fn read_connection(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        if connection.receive() {
            self.take_frames(token);
            return;
        }
        connection.input_open = false;
        match connection.attached {
            Some(streams) if streams.stdin => self.input_client_left(),
            Some(_) => {}
            // A control connection is used in both directions or not at all.
            None => connection.stop_output(),
        }
    }

    pub(super) fn take_frames(&mut self, token: u64) {
        while let Some(connection) = self.connections.get_mut(&token) {
            if connection.attached.is_some() && self.stdin.as_ref().is_some_and(Sink::is_full) {
                connection.paused = true;
                return;
            }
            match connection.next_frame() {
                Ok(Some((kind, payload))) => self.take_frame(token, kind, &payload),
                Ok(None) => return,
                Err(error) => {
                    connection.respond(&Response::Failed(Failure::new(
                        FailureKind::Invalid,
                        error.to_string(),
                    )));
                    connection.input_open = false;
                    connection.close_when_sent = true;
                    return;
                }
            }
        }
    }

    fn take_frame(&mut self, token: u64, kind: FrameType, payload: &[u8]) {
        let attached = self
            .connections
            .get(&token)
            .and_then(|connection| connection.attached);
        match (kind, attached) {
            (FrameType::Request, None) => {
                let response = match serde_json::from_slice::<Envelope>(payload) {
                    Ok(envelope) if envelope.version == VERSION => self.answer(token, envelope.request),
                    Ok(envelope) => Some(Response::Failed(Failure::system(format!(
                        "this container's shim speaks version {VERSION} of the protocol, not {}",
                        envelope.version
                    )))),
                    Err(error) => Some(Response::Failed(Failure::new(
                        FailureKind::Invalid,
                        error.to_string(),
                    ))),
                };
                if let (Some(response), Some(connection)) = (response, self.connections.get_mut(&token)) {
                    connection.respond(&response);
                }
            }
            (FrameType::Stdin, Some(streams)) if streams.stdin => self.push_stdin(payload),
            (FrameType::StdinEnd, Some(streams)) if streams.stdin => self.input_client_left(),
            // Not for us, or input that was not announced.
            _ => {}
        }
    }

    /// Carries out a request; `None` when the answer comes later.
    fn answer(&mut self, token: u64, request: Request) -> Option<Response> {
        let result = match request {
            Request::Create(request) => return self.create(token, *request).err().map(Response::Failed),
            Request::Wait => return self.await_end(token, Awaits::Exit),
            Request::Delete => {
                self.kill_for_deletion();
                return self.await_end(token, Awaits::Deletion);
            }
            Request::Status => return Some(self.status()),
            Request::Start => self.start(),
            Request::Signal(signal) => self.signal(signal),
            Request::Resize(size) => self.resize(size),
            Request::Attach(streams) => {
                return Some(self.attach(token, streams).unwrap_or_else(Response::Failed));
            }
        };
        Some(result.map_or_else(Response::Failed, |()| Response::Done))
    }

    fn attach(&mut self, token: u64, streams: AttachStreams) -> Result<Response, Failure> {
        if self.task.pid.is_none() {
            return Err(Failure::conflict("the container has not been created"));
        }
        let ended = self.sources.iter().all(Option::is_none);
        let stdin = streams.stdin && self.task.open_stdin;
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.attached = Some(AttachStreams { stdin, ..streams });
            connection.close_when_sent = ended;
        }
        Ok(Response::Attached { stdin })
    }

    fn read_source(&mut self, index: usize) {
        let Some(source) = &self.sources[index] else {
            return;
        };
        let stream = source.stream;
        if self.buffer.is_empty() {
            self.buffer = vec![0; READ_SIZE];
        }
        match source.read(&mut self.buffer) {
            Chunk::NothingNow => {}
            Chunk::Bytes(count) => self.deliver(stream, count),
            Chunk::End => {
                self.poll.remove(&source.fd);
                self.sources[index] = None;
                if let Some(log) = &mut self.log {
                    log.end(stream);
                }
                if self.sources.iter().all(Option::is_none) {
                    self.streams_ended();
                }
            }
        }
    }

    /// Gives the first `count` bytes of the buffer to the log and to whoever is attached.
    fn deliver(&mut self, stream: StdStream, count: usize) {
        if self.drain_until.is_some() {
            let later = Instant::now() + DRAIN_LIMIT;
            self.drain_until = Some(self.drain_at_most.map_or(later, |most| later.min(most)));
        }
        let bytes = &self.buffer[..count];
        if let Some(log) = &mut self.log {
            log.write(stream, bytes);
        }
        let mut touched = Vec::new();
        let mut full = false;
        for (&token, connection) in &mut self.connections {
            if connection.wants(stream) {
                connection.send_stream(stream, bytes);
                full |= connection.is_full();
                touched.push(token);
            }
        }
        for token in touched {
            self.rearm(token);
        }
        if full {
            for source in self.sources.iter_mut().flatten().filter(|source| !source.paused) {
                self.poll.remove(&source.fd);
                source.paused = true;
            }
        }
    }

    /// Reads the container's output again when no client lags behind.
    fn resume_sources(&mut self) {
        if self.connections.values().any(Connection::is_full) {
            return;
        }
        for (index, source) in self.sources.iter_mut().enumerate() {
            if let Some(source) = source.as_mut().filter(|source| source.paused) {
                source.paused = self
                    .poll
                    .add(&source.fd, poll::SOURCES[index], Flags::IN)
                    .is_err();
            }
        }
    }

    fn streams_ended(&mut self) {
        self.buffer = Vec::new();
        if let Some(log) = &mut self.log {
            log.trim();
        }
        let tokens: Vec<u64> = self.connections.keys().copied().collect();
        for token in tokens {
            if let Some(connection) = self
                .connections
                .get_mut(&token)
                .filter(|connection| connection.attached.is_some())
            {
                connection.close_when_sent = true;
                self.rearm(token);
            }
        }
        if self.drain_until.is_some() {
            self.report_end();
        }
    }
}
