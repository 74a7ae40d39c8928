//! The shim's epoll instance: descriptors by token, level-triggered.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

pub(super) use rustix::event::epoll::EventFlags as Flags;

/// Tokens of what there is one of; connections count up from [`FIRST_CONNECTION`].
pub(super) const LISTENER: u64 = 0;
pub(super) const CHILDREN: u64 = 1;
pub(super) const SOURCES: [u64; 2] = [2, 3];
pub(super) const STDIN: u64 = 4;
pub(super) const CREATOR: u64 = 5;
pub(super) const FIRST_CONNECTION: u64 = 16;

/// An epoll instance.
pub(super) struct Poll(OwnedFd);

impl Poll {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    pub(super) fn add(&self, fd: impl AsFd, token: u64, flags: Flags) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(token), flags)?)
    }

    pub(super) fn modify(&self, fd: impl AsFd, token: u64, flags: Flags) -> io::Result<()> {
        Ok(epoll::modify(
            &self.0,
            fd,
            epoll::EventData::new_u64(token),
            flags,
        )?)
    }

    /// Stops watching. Needed also for "no events": errors and hang-ups are reported regardless of what was asked for.
    pub(super) fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits for events, at most `timeout`.
    pub(super) fn wait(&self, events: &mut Vec<(u64, Flags)>, timeout: Option<Duration>) -> io::Result<()> {
        events.clear();
        let mut buffer = Vec::with_capacity(16);
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match epoll::wait(
            &self.0,
            rustix::buffer::spare_capacity(&mut buffer),
            timeout.as_ref(),
        ) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        events.extend(
            buffer
                .iter()
                .map(|event: &epoll::Event| (event.data.u64(), event.flags)),
        );
        Ok(())
    }
}
