//! Where the runtime keeps what on disk.
//!
//! ```text
//! EXEC_ROOT/containers/ID/        0700
//!   shim.sock     the shim listens here          shim.pid      "PID START_TIME BOOT_ID" of the shim
//!   task.pid      the same of the first process  exit.json     how it ended (written once, by rename)
//!   shim.log      what the shim says when it dies of a fault
//!   bundle/config.json    the OCI specification  oci/          state of the OCI runtime
//!   console.sock  while a terminal is handed over
//! ```

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};

use skiff_core::runtime::TaskExit;
use skiff_sys::identity::ProcessIdentity;

pub(crate) const SOCKET: &str = "shim.sock";
pub(crate) const SHIM_PID: &str = "shim.pid";
pub(crate) const TASK_PID: &str = "task.pid";
pub(crate) const EXIT: &str = "exit.json";
pub(crate) const SHIM_LOG: &str = "shim.log";
pub(crate) const BUNDLE: &str = "bundle";
pub(crate) const OCI_STATE: &str = "oci";
pub(crate) const CONSOLE: &str = "console.sock";

/// The folder of all tasks.
pub(crate) fn containers(exec_root: &Path) -> PathBuf {
    exec_root.join("containers")
}

/// Whether `id` can be a folder's name (and nothing more).
pub(crate) fn is_valid_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 128
        && !id.starts_with('.')
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Replaces a file as a whole. # Errors: those of the file system.
pub(crate) fn replace(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!(".{name}.new"));
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, folder.join(name))
}

/// Reads a file that [`replace`] wrote a process identity to; `None` when it is not there or not one.
pub(crate) fn read_identity(path: &Path) -> Option<ProcessIdentity> {
    std::fs::read_to_string(path).ok()?.parse().ok()
}

/// Reads `exit.json`; `None` when it is not there or not readable.
pub(crate) fn read_exit(folder: &Path) -> Option<TaskExit> {
    serde_json::from_slice(&std::fs::read(folder.join(EXIT)).ok()?).ok()
}

/// Removes a folder; that it is not there is fine.
pub(crate) fn remove_folder(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Logs an error that nobody can act on.
pub(crate) fn note(what: &str, result: Result<(), impl Debug>) {
    if let Err(error) = result {
        tracing::warn!(?error, "{what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_name_and_not_a_path() {
        assert!(is_valid_id(&"0123456789abcdef".repeat(4)));
        for bad in ["", ".", "..", "a/b", "../x", ".hidden", "a\0b", "é"] {
            assert!(!is_valid_id(bad), "{bad:?}");
        }
    }
}
