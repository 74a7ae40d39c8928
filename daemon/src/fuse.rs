//! The role `fuse-overlayfs`: one overlay mount in user space, served by one process.
//!
//! The daemon starts it for containers of the storage driver of that name; people and other engines call it themselves
//! (`skiffd fuse-overlayfs …`, or a link of that name to this program, such as Podman's `mount_program`).

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use skiff_fuse_overlay::program;

/// Mounts, and serves until the mount is gone; `arguments` without program and role.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    program::run(arguments, crate::VERSION)
}

/// How a daemon starts it: `program` is this very program's path.
pub(crate) fn command(program: PathBuf) -> Vec<OsString> {
    // Servers outlive the daemon, but must not outlive its mount namespace, which each process in it keeps.
    vec![
        program.into_os_string(),
        program::NAME.into(),
        program::LEAVE_NAMESPACE.into(),
    ]
}
