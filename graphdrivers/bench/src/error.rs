//! Errors of a measurement.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Somebody asked us to stop.
    Stopped,
    /// There is not enough room for what is to be measured, or the disk became full.
    NoSpace,
    /// Another benchmark runs on this data root.
    Busy,
    /// An unknown driver, size or number.
    InvalidArgument,
    /// None of the drivers works here.
    NoDriver,
    /// A driver, the archive engine or the system failed.
    Failed,
}

/// An error, with the operation and what caused it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result of a measurement.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn stopped() -> Self {
        Self::new(ErrorKind::Stopped, "interrupted")
    }

    /// A system call failed during `operation`.
    pub(crate) fn io(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Failed,
        };
        Self {
            kind,
            message: operation.into(),
            source: Some(Box::new(source)),
        }
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<skiff_graphdrivers::Error> for Error {
    fn from(error: skiff_graphdrivers::Error) -> Self {
        let kind = match error.kind() {
            skiff_graphdrivers::ErrorKind::NoSpace => ErrorKind::NoSpace,
            _ => ErrorKind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<skiff_archive::Error> for Error {
    fn from(error: skiff_archive::Error) -> Self {
        let kind = match error.kind() {
            skiff_archive::ErrorKind::NoSpace => ErrorKind::NoSpace,
            _ => ErrorKind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|error| error as &(dyn StdError + 'static))
    }
}
