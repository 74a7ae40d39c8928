//! The parent's life after the start: one loop around poll(2).
//!
//! ```text
//! SIGTERM SIGINT SIGQUIT SIGHUP ─► forwarded to the daemon (held back until its handlers are in place)
//! keeper: Signalled             ─► the same: docker.pid names the keeper, but means the daemon
//! keeper ends                   ─► a new one joins the namespaces, which our descriptors keep alive
//! daemon: Ready                 ─► READY=1 to the service manager
//! daemon ends                   ─► we end with its status; the keeper too after an orderly stop
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitCode, ExitStatus};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use sd_notify::NotifyState;

use super::channel::{Channel, ReceiveError};
use super::messages::{FromDaemon, FromKeeper};
use super::record::Record;
use super::start::{self, Keeper, Lifeline, Seed};

/// Keepers are replaced this many times in a parent's life; more deaths than that are somebody's intention.
const MAX_REPLACEMENTS: u32 = 20;

/// The signals of a daemon, as a descriptor.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Holds them back from now on. # Errors: `EMFILE`.
    pub(crate) fn hold() -> io::Result<Self> {
        let set: SigSet = [
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGHUP,
            Signal::SIGCHLD,
        ]
        .into_iter()
        .collect();
        set.thread_block()?;
        Ok(Self {
            fd: SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
        })
    }

    fn next(&self) -> Option<Signal> {
        let info = self.fd.read_signal().ok().flatten()?;
        i32::try_from(info.ssi_signo)
            .ok()
            .and_then(|number| Signal::try_from(number).ok())
    }
}

/// The parent's state.
#[derive(Debug)]
pub(crate) struct Supervisor {
    signals: Signals,
    daemon: Child,
    daemon_channel: Option<Channel>,
    keeper: Keeper,
    keeper_speaks: bool,
    lifeline: Lifeline,
    record: Record,
    /// The namespaces are new with this run.
    fresh: bool,
    handlers_in_place: bool,
    held_back: Vec<Signal>,
    ready: bool,
    stopped: Option<ContainersLeft>,
    replacements: u32,
}

/// Whether an orderly stop left containers running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ContainersLeft(bool);

impl Supervisor {
    /// Takes over everything that was started.
    pub(crate) fn new(
        signals: Signals,
        daemon: Child,
        daemon_channel: Channel,
        keeper: Keeper,
        lifeline: Lifeline,
        record: Record,
        fresh: bool,
    ) -> Self {
        Self {
            signals,
            daemon,
            daemon_channel: Some(daemon_channel),
            keeper,
            keeper_speaks: true,
            lifeline,
            record,
            fresh,
            handlers_in_place: false,
            held_back: Vec::new(),
            ready: false,
            stopped: None,
            replacements: 0,
        }
    }

    /// Stays until the daemon ends, and returns its status as ours.
    pub(crate) fn run(mut self) -> ExitCode {
        loop {
            let status = match self.turn() {
                Ok(None) => continue,
                Ok(Some(status)) => status,
                Err(error) => {
                    // Nothing here can fail for long; if it does, our end tells the daemon to end, too.
                    tracing::error!(%error, "the supervisor cannot go on");
                    return ExitCode::FAILURE;
                }
            };
            self.put_away(status);
            return exit_code(status);
        }
    }

    /// Waits for something to happen and deals with it; the daemon's status when it ended.
    fn turn(&mut self) -> io::Result<Option<ExitStatus>> {
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.signals.fd.as_fd()];
        fds.extend(self.daemon_channel.iter().map(AsFd::as_fd));
        if self.keeper_speaks {
            fds.push(self.keeper.channel.as_fd());
        }
        let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => return Ok(None),
            other => other?,
        };
        let keeper_spoke = self.keeper_speaks && fds.last().is_some_and(|fd| !fd.revents().is_empty());
        let daemon_spoke = self.daemon_channel.is_some() && !fds[1].revents().is_empty();
        drop(fds);

        if daemon_spoke {
            self.hear_daemon();
        }
        if keeper_spoke {
            self.hear_keeper();
        }
        while let Some(signal) = self.signals.next() {
            match signal {
                Signal::SIGCHLD => {}
                signal => self.forward(signal),
            }
        }
        // Asked every time: several SIGCHLD may have become one.
        if let Some(status) = self.daemon.try_wait()? {
            // Its last words may still be unread.
            while self.daemon_channel.is_some() {
                self.hear_daemon();
            }
            return Ok(Some(status));
        }
        if self.keeper.child.try_wait()?.is_some() {
            self.replace_keeper();
        }
        Ok(None)
    }

    fn hear_daemon(&mut self) {
        let Some(channel) = &self.daemon_channel else {
            return;
        };
        match channel.receive::<FromDaemon>(None) {
            Ok((FromDaemon::SignalsHeld, _)) => {
                self.handlers_in_place = true;
                for signal in std::mem::take(&mut self.held_back) {
                    self.forward(signal);
                }
            }
            Ok((FromDaemon::Ready, _)) => {
                self.ready = true;
                skiff_sys::heap::trim();
                let _ = skiff_sys::heap::release_program_pages();
                notify(&[NotifyState::Ready]);
            }
            Ok((FromDaemon::Stopped { containers_left }, _)) => {
                self.stopped = Some(ContainersLeft(containers_left));
            }
            Err(ReceiveError::Malformed(text)) => {
                tracing::error!("the daemon said something unknown: {text}");
            }
            Err(_) => self.daemon_channel = None,
        }
    }

    fn hear_keeper(&mut self) {
        match self.keeper.channel.receive::<FromKeeper>(None) {
            Ok((FromKeeper::Signalled(number), _)) => {
                if let Ok(signal) = Signal::try_from(number) {
                    self.forward(signal);
                }
            }
            Ok(_) | Err(ReceiveError::Malformed(_)) => {}
            // Its end comes as SIGCHLD; until then its channel is only readable for ever.
            Err(_) => self.keeper_speaks = false,
        }
    }

    fn forward(&mut self, signal: Signal) {
        if !self.handlers_in_place {
            self.held_back.push(signal);
            return;
        }
        if matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT) {
            notify(&[NotifyState::Stopping]);
        }
        // Not yet reaped, so the pid is still its own.
        let pid = i32::try_from(self.daemon.id()).map(nix::unistd::Pid::from_raw);
        if let Ok(pid) = pid
            && let Err(error) = nix::sys::signal::kill(pid, signal)
        {
            tracing::warn!(%signal, %error, "cannot forward a signal to the daemon");
        }
    }

    /// The namespaces live on in our descriptors, in the daemon and in the shims.
    fn replace_keeper(&mut self) {
        self.keeper_speaks = false;
        if self.replacements == MAX_REPLACEMENTS {
            return;
        }
        self.replacements += 1;
        match start::start(Seed::Existing(&self.keeper.namespaces), &self.lifeline) {
            Ok(keeper) => {
                tracing::warn!(
                    pid = keeper.identity.pid,
                    "the keeper was killed; another one took its place"
                );
                self.keeper = keeper;
                self.keeper_speaks = true;
                if let Err(error) = self.record.write(&self.keeper.identity) {
                    tracing::error!(%error, "cannot record the new keeper");
                }
                self.keeper.recorded();
            }
            Err(error) => tracing::error!("the keeper was killed and cannot be replaced: {error}"),
        }
    }

    /// Ends the keeper when nothing needs it: after an orderly stop, or when the very first start failed.
    fn put_away(&mut self, status: ExitStatus) {
        let in_order = status.success() && self.stopped == Some(ContainersLeft(false));
        let never_ran = self.fresh && !self.ready && self.replacements == 0;
        if in_order || never_ran {
            let _ = self.keeper.child.kill();
            let _ = self.keeper.child.wait();
            self.record.remove();
        }
        // A daemon that ends by itself says why.
        if self.stopped.is_none() && (self.ready || status.signal().is_some()) {
            tracing::error!(%status, "the daemon ended unexpectedly; containers go on, the next start takes them over");
        }
    }
}

/// Without a service manager this does nothing.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// A shell's convention for a child that a signal ended: 128 + its number.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_becomes_status() {
        for (raw, expected) in [(0, 0), (7 << 8, 7), (9, 137), (15, 143)] {
            assert_eq!(exit_code(ExitStatus::from_raw(raw)), ExitCode::from(expected));
        }
    }
}
