//! The domain's error: a kind that decides what a client is told, a message in the words
//! Docker's clients match on, and the chain of causes for the operator's log.
//!
//! Lower layers' errors are converted here, exhaustively by kind; `api` maps a kind to an HTTP status in one table.

use std::error::Error as StdError;
use std::fmt;

/// What went wrong, as far as a client can act on it (design §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request would change nothing: start of a running, stop of a stopped container.
    NotModified,
    /// The request is malformed or asks for something that cannot be.
    InvalidParameter,
    /// A registry refused the credentials.
    Unauthorized,
    /// The object is predefined or protected.
    Forbidden,
    /// The named object does not exist.
    NotFound,
    /// The object's state does not allow it, or the name is taken.
    Conflict,
    /// Our fault, the kernel's or the disk's.
    System,
    /// Outside what this engine does (yet).
    NotImplemented,
    /// Shutting down, or a component is missing.
    Unavailable,
}

/// An error of the domain.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The domain's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` whose whole text is `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// The same error with the lower error that caused it; [`fmt::Display`] appends the cause's text.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What a client can act on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The same error as another kind, where a layer knows better what its client can do about it.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// Puts `context` in front of the message, as `context: message`.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident),+ $(,)?) => {
        impl Error {
            $($(#[$doc])* pub fn $name(message: impl Into<String>) -> Self { Self::new(ErrorKind::$kind, message) })+
        }
    };
}

constructors! {
    /// Nothing to do.
    not_modified => NotModified,
    /// Bad input.
    invalid => InvalidParameter,
    /// Credentials refused.
    unauthorized => Unauthorized,
    /// Protected object.
    forbidden => Forbidden,
    /// No such object.
    not_found => NotFound,
    /// State or name conflict.
    conflict => Conflict,
    /// Our own or the system's failure.
    system => System,
    /// Not supported.
    not_implemented => NotImplemented,
    /// Not now.
    unavailable => Unavailable,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut cause = self.source.as_deref().map(|e| e as &dyn StdError);
        while let Some(error) = cause {
            let text = in_clients_words(error.to_string());
            // Many libraries repeat their source in their own text; say each thing once.
            if !self.message.contains(&text) {
                write!(f, ": {text}")?;
            }
            cause = error.source();
        }
        Ok(())
    }
}

/// The system's errors as Go programs write them, because clients match on that: `no space left on device`, not Rust's
/// `No space left on device (os error 28)`.
fn in_clients_words(text: String) -> String {
    let Some((plain, rest)) = text.split_once(" (os error ") else {
        return text;
    };
    let Some((_, rest)) = rest.split_once(')') else {
        return text;
    };
    // What comes before the system's words ends with a colon and a blank.
    let start = plain.rfind(": ").map_or(0, |at| at + 2);
    let (context, words) = plain.split_at(start);
    let mut letters = words.chars();
    let first = letters
        .next()
        .map(char::to_lowercase)
        .into_iter()
        .flatten()
        .collect::<String>();
    format!("{context}{first}{}{rest}", letters.as_str())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_are_told_as_clients_expect_them() {
        let full = std::io::Error::from_raw_os_error(28);
        let error = Error::system("write /d/config.json").caused_by(full);
        assert_eq!(error.to_string(), "write /d/config.json: no space left on device");
        for (rust, go) in [
            (
                "open /x: Permission denied (os error 13)",
                "open /x: permission denied",
            ),
            (
                "Permission denied (os error 13): try again",
                "permission denied: try again",
            ),
            ("nothing of the kind", "nothing of the kind"),
        ] {
            assert_eq!(in_clients_words(rust.to_owned()), go);
        }
    }
}
