//! Container logs in Docker's json-file format: the shim writes them ([`writer`]), the daemon reads them.

pub(crate) mod writer;

use skiff_core::runtime::{LogEntry, LogRequest, LogTarget};
use skiff_core::{Error, Result};
use tokio::sync::mpsc;

/// Reads a log.
///
/// # Errors
/// Docker's text when nothing was kept.
pub(crate) fn read(request: LogRequest) -> Result<mpsc::Receiver<Result<LogEntry>>> {
    if request.target == LogTarget::None {
        return Err(Error::not_implemented("configured logging driver does not support reading"));
    }
    Err(Error::not_implemented("logs"))
}
