//! Standard input: from clients to the container, never waiting for either.
//!
//! Several clients may send; what they send is interleaved by frames. While the container does not read, clients are not read.

use super::poll::{self, Flags};
use super::server::Shim;

impl Shim {
    pub(super) fn push_stdin(&mut self, bytes: &[u8]) {
        if let Some(sink) = &mut self.stdin {
            if sink.push(bytes) {
                self.watch_stdin();
            } else {
                self.close_stdin();
            }
        }
    }

    pub(super) fn write_stdin(&mut self) {
        let Some(sink) = &mut self.stdin else { return };
        if !sink.write() {
            self.close_stdin();
        } else if !sink.is_full() {
            self.watch_stdin();
            self.resume_input();
        }
    }

    /// Watches standard input only while something waits for it: its other end's closing would be reported without end.
    fn watch_stdin(&mut self) {
        let Some(sink) = &mut self.stdin else { return };
        if sink.has_pending() && !sink.watched {
            sink.watched = self.poll.add(&sink.fd, poll::STDIN, Flags::OUT).is_ok();
        } else if !sink.has_pending() && sink.watched {
            self.poll.remove(&sink.fd);
            sink.watched = false;
        }
    }

    pub(super) fn close_stdin(&mut self) {
        if let Some(sink) = self.stdin.take() {
            self.poll.remove(&sink.fd);
        }
        self.resume_input();
    }

    /// Reads again from clients whose input had to wait.
    fn resume_input(&mut self) {
        let paused: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.paused)
            .map(|(token, _)| *token)
            .collect();
        for token in paused {
            if let Some(connection) = self.connections.get_mut(&token) {
                connection.paused = false;
            }
            self.take_frames(token);
            self.rearm(token);
        }
    }

    /// A client that sends input said it is done, or left.
    pub(super) fn input_client_left(&mut self) {
        if self.task.stdin_once
            && !self.task.tty
            && let Some(sink) = &mut self.stdin
            && !sink.close()
        {
            self.close_stdin();
        }
    }
}
