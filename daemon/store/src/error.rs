//! Errors of the store: opaque, with a kind that callers can act on and the operation's arguments in the text.

use std::error::Error as StdError;
use std::fmt;

use skiff_graphdrivers as drivers;

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such blob, layer, image or reference.
    NotFound,
    /// In use, or already being written by somebody else.
    Conflict,
    /// Bytes do not have the digest, size or form they must have.
    Corrupt,
    /// The disk is full (ENOSPC or EDQUOT).
    NoSpace,
    /// A malformed argument.
    InvalidArgument,
    /// A layer's owner has no id in this user namespace.
    IdRange,
    /// A form this engine does not handle: digest algorithm, compression, depth of a chain.
    Unsupported,
    /// Any other system error.
    Io,
}

/// An error of the store.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// Something that does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// Bytes that are not what they should be.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// A malformed argument.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// A system error during `operation` (with its arguments); the kind follows from the error number.
    pub fn io(operation: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Self {
            kind,
            message: operation.into(),
            source: Some(Box::new(OsError(source))),
        }
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Attaches the error that caused this one.
    #[must_use]
    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl From<drivers::Error> for Error {
    fn from(error: drivers::Error) -> Self {
        let kind = match error.kind() {
            drivers::ErrorKind::NotFound => ErrorKind::NotFound,
            drivers::ErrorKind::AlreadyExists | drivers::ErrorKind::InUse => ErrorKind::Conflict,
            drivers::ErrorKind::InvalidArgument => ErrorKind::InvalidArgument,
            drivers::ErrorKind::Unsupported | drivers::ErrorKind::TooDeep => ErrorKind::Unsupported,
            drivers::ErrorKind::NoSpace => ErrorKind::NoSpace,
            // `Io`, and kinds added later: our fault or the disk's until somebody decides otherwise.
            _ => ErrorKind::Io,
        };
        Self {
            kind,
            message: error.to_string(),
            source: Some(Box::new(error)),
        }
    }
}

impl From<skiff_archive::Error> for Error {
    fn from(error: skiff_archive::Error) -> Self {
        use skiff_archive::ErrorKind as K;
        let kind = match error.kind() {
            K::Corrupt | K::Escape => ErrorKind::Corrupt,
            K::IdRange => ErrorKind::IdRange,
            K::NoSpace => ErrorKind::NoSpace,
            K::Unsupported => ErrorKind::Unsupported,
            // `Source` is the stream's failure (a cut download, a disk that cannot be read), `Io` the target's.
            _ => ErrorKind::Io,
        };
        Self {
            kind,
            message: error.to_string(),
            source: Some(Box::new(error)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            // Converted errors carry their source's text as their own.
            Some(source) if !self.message.contains(&source.to_string()) => write!(f, ": {source}"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("source", &self.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

/// A system error in the words of Go programs, which clients match on: `no space left on device`, not Rust's
/// `No space left on device (os error 28)`.
#[derive(Debug)]
struct OsError(std::io::Error);

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let Some((plain, _)) = text.split_once(" (os error") else {
            return f.write_str(&text);
        };
        let mut letters = plain.chars();
        match letters.next() {
            Some(first) => write!(f, "{}{}", first.to_lowercase(), letters.as_str()),
            None => Ok(()),
        }
    }
}

impl StdError for OsError {}
