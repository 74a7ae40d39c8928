//! The role `fuse-overlayfs`: one overlay mount in user space, served by one process.
//!
//! The daemon starts it for containers of the storage driver of that name; people and other engines call it themselves
//! (`skiffd fuse-overlayfs …`, or a link of that name to this program, such as Podman's `mount_program`).

use std::ffi::OsString;
use std::process::ExitCode;

/// Mounts, and serves until the mount is gone; `arguments` without program and role.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    skiff_fuse_overlay::program::run(arguments, crate::VERSION)
}
