//! The crate's error: what a caller can act on, in the words Docker's clients know, with the chain of causes.
//!
//! Built everywhere in this crate; `skiff-core` maps [`ErrorKind`] to its own kinds. Texts of registries' answers are built
//! in `response.rs`, texts of network and TLS failures in `transport.rs`.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The image reference is malformed.
    InvalidReference,
    /// Another argument is malformed: a platform, an `X-Registry-Auth` header.
    InvalidArgument,
    /// The registry or its token server refused the credentials, or wants some.
    Unauthorized,
    /// The repository is not for this user, or does not exist (Docker Hub does not tell which; Docker answers 404).
    Denied,
    /// No such repository, manifest, blob, or no image for the platform.
    NotFound,
    /// Too many requests, also after waiting.
    RateLimited,
    /// The network failed, the registry is down or does not speak its protocol.
    Unavailable,
    /// The TLS handshake failed, or a certificate file is unusable.
    Tls,
    /// The bytes are not what their digest or type says.
    Corrupt,
    /// The answer is larger than the limit for its sort.
    TooLarge,
    /// Something this client does not do: schema 1 manifests, other digest algorithms, artifacts that are no images.
    Unsupported,
    /// The client's own set-up is wrong: an unreadable credential file, a malformed `insecure-registries` entry.
    Configuration,
}

/// An error of the registry client.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    code: Option<String>,
    transient: Transient,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Whether the same request may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transient {
    /// It will fail again.
    No,
    /// No connection came about: pointless to repeat for a user who waits, worthwhile in the middle of a download.
    Connect,
    /// Cut off, overloaded: repeat after a pause.
    Yes,
    /// Repeat after the pause the server asked for.
    After(Duration),
}

/// Result of the registry client.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` whose whole text is `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            code: None,
            transient: Transient::No,
            source: None,
        }
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The registry's own code for it (`MANIFEST_UNKNOWN`, `DENIED`, …), when it sent one.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    pub(crate) fn transient(&self) -> Transient {
        self.transient
    }

    pub(crate) fn retryable(mut self, transient: Transient) -> Self {
        self.transient = transient;
        self
    }

    pub(crate) fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Puts `context` in front of the message, as `context: message`.
    #[must_use]
    pub(crate) fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

/// The message alone: it is written for users and already says the cause; [`StdError::source`] has the rest for the log.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}
