//! Errors of packing and unpacking.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use rustix::io::Errno;

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The stream is damaged, truncated or not a layer.
    Corrupt,
    /// A name or a hard link points outside the layer's root.
    Escape,
    /// An owner does not exist in this user namespace.
    IdRange,
    /// The disk (or its inodes, or the quota) is full.
    NoSpace,
    /// A compression or feature that this engine does not have; the text names it.
    Unsupported,
    /// The source of the stream failed; the error it gave is the source of this one.
    Source,
    /// Any other system error.
    Io,
}

/// An error of packing or unpacking.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result of packing or unpacking.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// A system call failed; `operation` names it with its arguments.
    pub(crate) fn os(operation: impl Into<String>, errno: Errno) -> Self {
        let kind = match errno {
            Errno::NOSPC | Errno::DQUOT => ErrorKind::NoSpace,
            // The name came from the archive: no file system can hold it.
            Errno::NAMETOOLONG => ErrorKind::Corrupt,
            _ => ErrorKind::Io,
        };
        Self {
            kind,
            message: operation.into(),
            source: Some(Box::new(OsError(errno))),
        }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
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
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

/// An error number with the C library's text in lower case, as Go programs print it: clients match on
/// `invalid argument`, not on Rust's `Invalid argument (os error 22)`.
#[derive(Debug)]
struct OsError(Errno);

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = io::Error::from(self.0).to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        let mut chars = text.chars();
        match chars.next() {
            Some(first) => write!(f, "{}{}", first.to_lowercase(), chars.as_str()),
            None => Ok(()),
        }
    }
}

impl StdError for OsError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        None
    }
}

/// How a name from an archive is shown: never with control characters.
pub(crate) fn show(name: &[u8]) -> String {
    String::from_utf8_lossy(name)
        .chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_a_full_inode_table_and_a_full_quota_are_one_kind_with_dockers_words() {
        for (errno, text) in [
            // Also what the kernel says when there are no inodes.
            (Errno::NOSPC, "create /a: no space left on device"),
            (Errno::DQUOT, "create /a: disk quota exceeded"),
        ] {
            let error = Error::os("create /a", errno);
            assert_eq!(
                (error.kind(), error.to_string().as_str()),
                (ErrorKind::NoSpace, text)
            );
        }
    }

    #[test]
    fn names_are_shown_without_control_characters() {
        assert_eq!(show(b"a\nb\x1b[31m\xff"), "a\\nb\\u{1b}[31m\u{fffd}");
    }
}
