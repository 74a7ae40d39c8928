//! The role `docker-init` (`docker run --init`): process 1 of a container.
//!
//! Starts the command, passes every signal on to it, reaps what is orphaned, and ends as the command ends. Runs inside the
//! image's file system, so the program must be linked statically. One thread, no memory to speak of.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::process::Pid;

/// Serves as a container's init. `args` is what follows the program's name: `-- COMMAND ARGUMENT…`.
pub fn init_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut args = args.skip_while(|arg| arg == "--");
    let Some(program) = args.next() else {
        return ExitCode::from(2);
    };
    let code = run(&program, args).unwrap_or_else(|error| {
        let text = format!("docker-init: {}: {error}\n", program.display());
        let _ = rustix::io::write(io::stderr(), text.as_bytes());
        match error.kind() {
            io::ErrorKind::NotFound => 127,
            io::ErrorKind::PermissionDenied => 126,
            _ => 255,
        }
    });
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(255))
}

fn run(program: &OsString, args: impl Iterator<Item = OsString>) -> io::Result<i32> {
    // Blocked before there is a child, so that none is missed. The child starts with none blocked.
    let all = SigSet::all();
    all.thread_block()?;
    let signals = SignalFd::new(&all)?;
    // A process group of its own, in the foreground: Ctrl-C is for the command, not for us.
    let child = Command::new(program).args(args).process_group(0).spawn()?;
    let pid = child.id();
    if let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Not a terminal: nothing to do.
        let _ = rustix::termios::tcsetpgrp(io::stdin(), group);
    }
    loop {
        match signals.read_signal() {
            Ok(Some(info)) if info.ssi_signo == nix::libc::SIGCHLD.cast_unsigned() => {
                if let Some(code) = reap(pid) {
                    return Ok(code);
                }
            }
            // Gone just now: its SIGCHLD is next.
            Ok(Some(info)) => {
                let _ = skiff_sys::process::kill(pid, info.ssi_signo.cast_signed());
            }
            Ok(None) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reaps all that have ended; the exit code when the command is among them.
fn reap(command: u32) -> Option<i32> {
    let mut code = None;
    loop {
        let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(WaitStatus::StillAlive) => return code,
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return code,
        };
        if pid.as_raw().unsigned_abs() == command {
            code = Some(status);
        }
    }
}
