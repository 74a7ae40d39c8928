//! The shim: one small process a container, which owns its streams, its log and its exit status.
//!
//! Started by the daemon (`crate::launch`), it outlives it. One thread, one epoll loop, nothing that blocks.
//!
//! ```text
//!   daemon ── shim.sock ──►  connections ─┬─ control: create start signal resize wait status delete
//!                                         └─ attach ◄──────┐          │
//!   creator (fork, gone after create) ──► container        │          │ stdin (limited; then the client is not read)
//!                                          │ stdout, stderr / terminal ▼
//!                                          └──► read once ─┴─► log file (json-file)
//! ```
//!
//! Invariants: reading the container's output stops while an attached client lags far behind, never because one has gone;
//! `exit.json` is written before anyone is told of the end; a client never waits for another client.

mod connection;
mod creation;
mod creator;
mod embedded;
mod executor;
mod external;
mod input;
mod poll;
mod server;
mod streams;
mod task;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::paths;
use server::Shim;

/// The role `shim`: serves one container. `args` is what follows the role's name: the container's folder.
///
/// Descriptor 0 is a connected socket, the first client. Returns when the task was deleted, or nobody can ask for it any more.
pub fn shim_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(folder) = args.map(PathBuf::from).next() else {
        return ExitCode::from(2);
    };
    // Whatever the daemon's starter left open (a pipe of a script, say) must not live as long as the container.
    skiff_sys::process::close_inherited_descriptors();
    match set_up(&folder).and_then(|mut shim| shim.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = rustix::io::write(
                io::stderr(),
                format!("{}: {error}\n", folder.display()).as_bytes(),
            );
            ExitCode::FAILURE
        }
    }
}

fn set_up(folder: &Path) -> io::Result<Shim> {
    // The name in `ps`, instead of that of the link it was started through.
    let _ = nix::sys::prctl::set_name(c"skiffd-shim");
    // A session of its own: no terminal, no signals meant for the daemon.
    let _ = rustix::process::setsid();
    nix::sys::prctl::set_child_subreaper(true)?;
    rustix::process::umask(Mode::from(0o022));
    std::env::set_current_dir(folder)?;
    let first = take_descriptor_zero()?;
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        signals.add(signal);
    }
    // Only SIGCHLD is read; the others stay blocked, so that nothing but SIGKILL ends a shim before its container.
    signals.thread_block()?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let children = SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let listener = listen(paths::SOCKET)?;
    Shim::new(folder.to_owned(), listener, children, first)
}

/// Moves the socket we were started with out of the way of standard input.
fn take_descriptor_zero() -> io::Result<OwnedFd> {
    let first = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(first)
}

/// Listens on a socket in the working directory: a name alone always fits into an address.
fn listen(name: &str) -> io::Result<OwnedFd> {
    match std::fs::remove_file(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let before = rustix::process::umask(Mode::from(0o177));
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(name)?);
    rustix::process::umask(before);
    bound?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}
