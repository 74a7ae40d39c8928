//! One client of the shim: buffered, non-blocking, never waited for.

use std::io::IoSlice;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use skiff_core::runtime::{AttachStreams, StdStream};

use super::poll::Flags;
use crate::protocol::{self, FrameError, FrameType, Response};

/// How much may wait for a client before its container is held back.
const HIGH_WATER: usize = 256 << 10;

/// What a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaits {
    Nothing,
    Exit,
    Deletion,
}

/// A client.
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    received: Vec<u8>,
    queued: Vec<u8>,
    /// How much of `queued` is sent.
    sent: usize,
    pub(super) awaits: Awaits,
    pub(super) attached: Option<AttachStreams>,
    /// The client may still send.
    pub(super) input_open: bool,
    /// The client may still receive.
    pub(super) output_open: bool,
    /// Nothing is read from it until the container has taken its input.
    pub(super) paused: bool,
    pub(super) close_when_sent: bool,
    /// What epoll watches; `None` when it does not.
    pub(super) watched: Option<Flags>,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            received: Vec::new(),
            queued: Vec::new(),
            sent: 0,
            awaits: Awaits::Nothing,
            attached: None,
            input_open: true,
            output_open: true,
            paused: false,
            close_when_sent: false,
            watched: None,
        }
    }

    /// What epoll should watch. Without any flag it still reports that the client is gone.
    pub(super) fn wanted(&self) -> Flags {
        let mut flags = Flags::empty();
        flags.set(Flags::IN, self.input_open && !self.paused);
        flags.set(Flags::OUT, self.has_queued());
        flags
    }

    pub(super) fn has_queued(&self) -> bool {
        self.sent < self.queued.len()
    }

    /// Whether it is of no further use.
    pub(super) fn is_over(&self) -> bool {
        if self.close_when_sent && !self.has_queued() {
            return true;
        }
        match self.attached {
            None => !(self.input_open && self.output_open),
            Some(streams) => {
                let receives = self.output_open && (streams.stdout || streams.stderr);
                let sends = self.input_open && streams.stdin;
                !receives && !sends
            }
        }
    }

    /// Whether it wants this stream.
    pub(super) fn wants(&self, stream: StdStream) -> bool {
        self.output_open
            && !self.close_when_sent
            && self.attached.is_some_and(|streams| match stream {
                StdStream::Stdout => streams.stdout,
                StdStream::Stderr => streams.stderr,
            })
    }

    /// Whether its container has to be held back.
    pub(super) fn is_full(&self) -> bool {
        self.queued.len() - self.sent > HIGH_WATER
    }

    pub(super) fn respond(&mut self, response: &Response) {
        let frame = protocol::encode(FrameType::Response, response);
        self.send(&[&frame]);
    }

    /// Sends a piece of a stream.
    pub(super) fn send_stream(&mut self, stream: StdStream, bytes: &[u8]) {
        let kind = if stream == StdStream::Stdout {
            FrameType::Stdout
        } else {
            FrameType::Stderr
        };
        for piece in bytes.chunks(protocol::MAX_DATA) {
            self.send(&[&protocol::header(kind, piece.len()), piece]);
        }
    }

    /// Sends what the socket takes now and keeps the rest.
    fn send(&mut self, parts: &[&[u8]]) {
        if !self.output_open {
            return;
        }
        let mut skip = 0;
        if !self.has_queued() {
            let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            match rustix::net::sendmsg(&self.socket, &slices, &mut SendAncillaryBuffer::default(), FLAGS) {
                Ok(count) => skip = count,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return self.stop_output(),
            }
        }
        for part in parts {
            let cut = skip.min(part.len());
            skip -= cut;
            self.queued.extend_from_slice(&part[cut..]);
        }
    }

    /// Sends more of what is queued.
    pub(super) fn flush(&mut self) {
        while self.has_queued() {
            match rustix::net::send(&self.socket, &self.queued[self.sent..], FLAGS) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => return self.stop_output(),
            }
        }
        self.sent = 0;
        // Give the memory back: a shim lives long and mostly has nothing to send.
        self.queued = Vec::new();
    }

    /// The client no longer receives: what is queued for it is of no use.
    pub(super) fn stop_output(&mut self) {
        self.output_open = false;
        self.queued = Vec::new();
        self.sent = 0;
    }

    /// Reads once; `false` at the end of input.
    pub(super) fn receive(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => false,
            Ok((count, _)) => {
                self.received
                    .extend_from_slice(&buffer[..count.min(buffer.len())]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// Takes the next complete frame out of what was received.
    pub(super) fn next_frame(&mut self) -> Result<Option<(FrameType, Vec<u8>)>, FrameError> {
        let Some((kind, payload)) = protocol::parse_frame(&self.received)? else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.received.drain(..protocol::HEADER + payload.len());
        if self.received.is_empty() {
            self.received = Vec::new();
        }
        Ok(Some((kind, payload)))
    }
}

const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_does_not_fit_is_kept_and_a_vanished_client_is_forgotten() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours.into());
        connection.attached = Some(AttachStreams {
            stdin: false,
            stdout: true,
            stderr: true,
        });
        let chunk = vec![b'x'; 64 << 10];
        while !connection.is_full() {
            connection.send_stream(StdStream::Stdout, &chunk);
        }
        assert!(connection.wanted().contains(Flags::OUT));
        drop(theirs);
        connection.flush();
        assert!(!connection.has_queued() && !connection.output_open && !connection.wants(StdStream::Stdout));
    }

    #[test]
    fn frames_come_out_in_order_whatever_the_pieces() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours.into());
        let mut bytes = protocol::header(FrameType::Stdin, 3).to_vec();
        bytes.extend_from_slice(b"abc");
        bytes.extend_from_slice(&protocol::header(FrameType::StdinEnd, 0));
        for byte in bytes {
            use std::io::Write;
            (&theirs).write_all(&[byte]).unwrap();
            assert!(connection.receive());
        }
        assert_eq!(
            connection.next_frame(),
            Ok(Some((FrameType::Stdin, b"abc".to_vec())))
        );
        assert_eq!(
            connection.next_frame(),
            Ok(Some((FrameType::StdinEnd, Vec::new())))
        );
        assert_eq!(connection.next_frame(), Ok(None));
        drop(theirs);
        assert!(!connection.receive());
    }
}
