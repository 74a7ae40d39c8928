//! Starts shims.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;

use skiff_sys::identity::ProcessIdentity;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::client::Connection;
use crate::paths;

/// Makes a container's folder, readable for nobody else.
///
/// # Errors
/// `AlreadyExists` when there is one.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    if let Some(parent) = folder.parent() {
        builder.recursive(true).create(parent)?;
    }
    builder.recursive(false).create(folder)
}

/// Starts a shim for a folder and gives the first connection to it.
///
/// # Errors
/// When the program cannot be started.
pub(crate) fn spawn(command: &[OsString], folder: &Path) -> io::Result<(Child, Connection)> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no shim command"))?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(folder.join(paths::SHIM_LOG))?;
    let child = Command::new(program)
        .arg0("skiffd-shim")
        .args(arguments)
        .arg(folder)
        // It reads nothing from the environment, and it outlives whatever the daemon was told there.
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::from(File::from(OwnedFd::from(log))))
        .kill_on_drop(false)
        .spawn()?;
    // Written here, not by the shim: from now on a deletion finds it, even before it has opened its socket.
    if let Some(identity) = child.id().and_then(|pid| ProcessIdentity::of(pid).ok()) {
        paths::replace(folder, paths::SHIM_PID, identity.to_string().as_bytes())?;
    }
    ours.set_nonblocking(true)?;
    Ok((child, Connection::new(UnixStream::from_std(ours)?)))
}
