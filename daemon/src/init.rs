//! `docker-init`: process 1 of a container that was started with `--init`. Starts the command, passes signals on to it,
//! reaps what is orphaned, ends as the command ends.
//!
//! The runtime mounts this very program over `/sbin/docker-init` (it must be statically linked for that).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use skiff_sys::process::{Fork, exit_now, fork_single_threaded, reset_signals};

/// `SI_KERNEL` of siginfo(2): not sent by a process. From the terminal, then, whose whole foreground group has it already.
const FROM_KERNEL: i32 = 0x80;

/// Runs `[--] PROGRAM [ARGUMENT…]`; the status is the command's, 128 + number for a signal.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let words = arguments
        .strip_prefix(&[OsString::from("--")])
        .unwrap_or(arguments);
    let Some((program, rest)) = words.split_first() else {
        crate::complain("docker-init: no command");
        return ExitCode::FAILURE;
    };
    start_and_watch(program, rest).unwrap_or_else(|error| {
        crate::complain(&format!("docker-init: {error}"));
        ExitCode::FAILURE
    })
}

fn start_and_watch(program: &OsStr, arguments: &[OsString]) -> io::Result<ExitCode> {
    let mut signals = SigSet::all();
    // Our own faults are not news for the command; job control of our own terminal group neither.
    for own in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ] {
        signals.remove(own);
    }
    // Before the command exists, so that none is lost.
    signals.thread_block()?;
    match fork_single_threaded()? {
        Fork::Child => {
            reset_signals();
            let error = Command::new(program).args(arguments).exec();
            crate::complain(&format!("docker-init: {}: {error}", program.to_string_lossy()));
            exit_now(if error.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            })
        }
        Fork::Parent(child) => watch(Pid::from_raw(child.cast_signed()), &signals),
    }
}

fn watch(child: Pid, signals: &SigSet) -> io::Result<ExitCode> {
    let queue = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC)?;
    loop {
        let Some(info) = queue.read_signal()? else {
            continue;
        };
        let signal = i32::try_from(info.ssi_signo)
            .ok()
            .and_then(|number| Signal::try_from(number).ok());
        match signal {
            Some(Signal::SIGCHLD) => {
                if let Some(code) = reap(child)? {
                    return Ok(code);
                }
            }
            Some(_) if info.ssi_code == FROM_KERNEL => {}
            // It may have ended in this moment; then its status comes next.
            Some(signal) => drop(kill(child, signal)),
            None => {}
        }
    }
}

/// Reaps everything that has ended; the status of the command when it is among it.
fn reap(child: Pid) -> Result<Option<ExitCode>, Errno> {
    let mut code = None;
    loop {
        let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, status),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(code),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
        };
        if pid == child {
            code = Some(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)));
        }
    }
}
