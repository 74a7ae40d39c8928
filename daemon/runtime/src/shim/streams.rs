//! The container's side of its standard streams: pipes, or the master of its pseudo-terminal.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;
use skiff_core::runtime::{StdStream, TerminalSize};

/// How much input may wait for the container before a client is no longer read.
const STDIN_LIMIT: usize = 64 << 10;

/// The ends the container gets; `None` is `/dev/null`.
pub(super) struct ContainerEnds {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// A stream the container writes.
pub(super) struct Source {
    pub(super) fd: OwnedFd,
    pub(super) stream: StdStream,
    /// Not read until the slowest client has caught up.
    pub(super) paused: bool,
}

/// What one read gave.
pub(super) enum Chunk {
    Bytes(usize),
    NothingNow,
    End,
}

impl Source {
    pub(super) fn read(&self, buffer: &mut [u8]) -> Chunk {
        match rustix::io::read(&self.fd, buffer) {
            Ok(0) => Chunk::End,
            Ok(count) => Chunk::Bytes(count),
            Err(Errno::AGAIN | Errno::INTR) => Chunk::NothingNow,
            // EIO: the last holder of the terminal's other side has closed it.
            Err(_) => Chunk::End,
        }
    }
}

/// The container's standard input. Writes never block.
pub(super) struct Sink {
    pub(super) fd: OwnedFd,
    pending: Vec<u8>,
    written: usize,
    /// Close as soon as everything is written.
    closing: bool,
    /// Whether epoll watches it.
    pub(super) watched: bool,
}

impl Sink {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            pending: Vec::new(),
            written: 0,
            closing: false,
            watched: false,
        }
    }

    pub(super) fn has_pending(&self) -> bool {
        self.written < self.pending.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.pending.len() - self.written >= STDIN_LIMIT
    }

    /// Queues input and writes what fits. `false` when nobody reads any more, or it was to be closed and is done.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        if !self.closing {
            self.pending.extend_from_slice(bytes);
        }
        self.write()
    }

    /// As [`Sink::push`], without new input.
    pub(super) fn write(&mut self) -> bool {
        while self.has_pending() {
            match rustix::io::write(&self.fd, &self.pending[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::AGAIN | Errno::INTR) => return true,
                Err(_) => return false,
            }
        }
        self.pending = Vec::new();
        self.written = 0;
        !self.closing
    }

    /// No more input will come. `false` when it can be closed at once.
    pub(super) fn close(&mut self) -> bool {
        self.closing = true;
        self.has_pending()
    }
}

/// Makes the pipes of a container without terminal: its ends, what it writes, and its input if it is to have one.
pub(super) fn pipes(with_stdin: bool) -> io::Result<(ContainerEnds, [Source; 2], Option<Sink>)> {
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let ((out_read, stdout), (err_read, stderr)) = (pipe()?, pipe()?);
    let source = |fd: OwnedFd, stream| -> io::Result<Source> {
        set_nonblocking(&fd)?;
        Ok(Source {
            fd,
            stream,
            paused: false,
        })
    };
    let sources = [
        source(out_read, StdStream::Stdout)?,
        source(err_read, StdStream::Stderr)?,
    ];
    let (mut stdin, mut sink) = (None, None);
    if with_stdin {
        let (read, write) = pipe()?;
        set_nonblocking(&write)?;
        (stdin, sink) = (Some(read), Some(Sink::new(write)));
    }
    Ok((
        ContainerEnds {
            stdin,
            stdout,
            stderr,
        },
        sources,
        sink,
    ))
}

/// The same for a terminal's master. It is duplicated, because epoll knows a descriptor only once.
pub(super) fn terminal(master: OwnedFd, with_stdin: bool) -> io::Result<(Source, Option<Sink>)> {
    set_nonblocking(&master)?;
    let sink = if with_stdin {
        Some(Sink::new(rustix::io::fcntl_dupfd_cloexec(&master, 3)?))
    } else {
        None
    };
    Ok((
        Source {
            fd: master,
            stream: StdStream::Stdout,
            paused: false,
        },
        sink,
    ))
}

/// Sets a terminal's size.
pub(super) fn resize(master: &OwnedFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.height,
        ws_col: size.width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_that_nobody_reads_is_bounded_by_the_caller_and_never_blocks() {
        let (ends, _, sink) = pipes(true).unwrap();
        let mut sink = sink.unwrap();
        let mut sent = 0;
        while !sink.is_full() {
            assert!(sink.push(&[7; 4096]));
            sent += 4096;
        }
        assert!(sink.has_pending());
        assert!(sink.close(), "it must stay open until all is written");
        let mut got = 0;
        let mut buffer = [0; 4096];
        let mut open = true;
        while got < sent {
            got += rustix::io::read(ends.stdin.as_ref().unwrap(), &mut buffer).unwrap();
            assert!(open || !sink.has_pending());
            open = sink.write();
        }
        assert!(!open, "all is written, now it can be closed");
    }

    #[test]
    fn a_container_that_closed_its_input_ends_the_sink() {
        let (ends, _, sink) = pipes(true).unwrap();
        drop(ends);
        assert!(!sink.unwrap().push(b"x"));
    }
}
