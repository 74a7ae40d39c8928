//! Errors and names of the layers below, in the domain's terms. Kinds are mapped exhaustively; a kind added below
//! later is our fault until somebody decides otherwise.

use std::fmt;

use skiff_graphdrivers as drivers;
use skiff_registry_client as registry;
use skiff_registry_client::Reference;
use skiff_store as store;
use skiff_store::{ReferenceKey, Selector};

use crate::error::{Error, ErrorKind, Result};

impl From<registry::Error> for Error {
    fn from(error: registry::Error) -> Self {
        use registry::ErrorKind as K;
        let kind = match error.kind() {
            K::InvalidReference | K::InvalidArgument => ErrorKind::InvalidParameter,
            K::Unauthorized => ErrorKind::Unauthorized,
            // Docker Hub says `denied` for what does not exist, and Docker answers 404.
            K::Denied | K::NotFound => ErrorKind::NotFound,
            K::Unsupported => ErrorKind::NotImplemented,
            K::RateLimited | K::Unavailable | K::Tls | K::Corrupt | K::TooLarge | K::Configuration => {
                ErrorKind::System
            }
            _ => ErrorKind::System,
        };
        // The message is written for users and already says its causes; the chain is for the log.
        let message = error.to_string();
        Self::new(kind, message).caused_by(Lower(error))
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        use store::ErrorKind as K;
        let kind = match error.kind() {
            K::NotFound => ErrorKind::NotFound,
            K::Conflict => ErrorKind::Conflict,
            K::InvalidArgument => ErrorKind::InvalidParameter,
            K::Unsupported => ErrorKind::NotImplemented,
            K::Corrupt | K::NoSpace | K::IdRange | K::Io => ErrorKind::System,
            _ => ErrorKind::System,
        };
        let message = error.to_string();
        Self::new(kind, message).caused_by(Lower(error))
    }
}

impl From<skiff_archive::Error> for Error {
    fn from(error: skiff_archive::Error) -> Self {
        Self::from(store::Error::from(error))
    }
}

impl From<drivers::Error> for Error {
    fn from(error: drivers::Error) -> Self {
        Self::from(store::Error::from(error))
    }
}

/// A lower error as the cause of one with the same text. Its own causes show in `Debug`, which the log prints, and not in
/// `Display`, which would add them to a text that clients match on.
pub(super) struct Lower<E>(pub(super) E);

impl<E: fmt::Debug> fmt::Debug for Lower<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<E: fmt::Display> fmt::Display for Lower<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for Lower<E> {}

/// The store's name for a reference; a digest beats a tag, as everywhere in Docker.
pub(super) fn key(reference: &Reference) -> Result<ReferenceKey> {
    let selector = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => Selector::Digest(digest.parse()?),
        (None, Some(tag)) => Selector::Tag(tag.to_owned()),
        (None, None) => return Err(Error::invalid("invalid reference format")),
    };
    Ok(ReferenceKey {
        repository: reference.name(),
        selector,
    })
}

/// A stored name as Docker prints it.
pub(super) fn familiar(key: &ReferenceKey) -> String {
    match Reference::parse(&key.to_string()) {
        Ok(reference) => reference.familiar(),
        // Only a repositories.json written by other hands can hold such a name; show it as it is.
        Err(_) => key.to_string(),
    }
}

/// The repository of a name as Docker prints it.
pub(super) fn familiar_repository(key: &ReferenceKey) -> String {
    match Reference::parse(&key.to_string()) {
        Ok(reference) => reference.familiar_name(),
        Err(_) => key.repository.clone(),
    }
}
