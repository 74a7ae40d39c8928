//! Image references as Docker's users type them and as Docker prints them.
//!
//! ```text
//!  familiar      busybox                 localhost:5000/a/b:1       busybox@sha256:…
//!  canonical     docker.io/library/busybox:latest    (the same)     docker.io/library/busybox@sha256:…
//!                └ domain┘ └─── path ────┘ └ tag ┘
//! ```
//!
//! The grammar and the rules of normalisation are those of github.com/distribution/reference, and so are the texts of the errors.
//! oci-spec's `Reference` is not used: it has no familiar form, accepts image ids as names and words its errors differently.
//!
//! Invariants: a `Reference` always has a tag or a digest; `familiar()` and `canonical()` both parse back to an equal value.
//! One deliberate difference: where Docker's familiar form would parse as something else (`docker.io/foo.bar/baz`), ours keeps the domain.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Digest, DigestAlgorithm};

use crate::error::{Error, ErrorKind, Result};

/// The domain of references that name none.
const DEFAULT_DOMAIN: &str = "docker.io";
/// What old clients call [`DEFAULT_DOMAIN`].
const LEGACY_DOMAIN: &str = "index.docker.io";
/// The namespace of Docker Hub's images without one.
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Longest path, in bytes (distribution/reference).
const MAX_PATH: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG: usize = 128;

/// The name of an image in a registry, normalised.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Parses what a user typed. Without tag and digest, the tag is `latest`.
    ///
    /// # Errors
    /// `InvalidReference`, in Docker's words.
    pub fn parse(text: &str) -> Result<Self> {
        if is_identifier(text) {
            let text =
                format!("invalid repository name ({text}), cannot specify 64-byte hexadecimal strings");
            return Err(invalid(text));
        }
        let (domain, remainder) = split_domain(text);
        let name = remainder.split(':').next().unwrap_or_default();
        if name.chars().any(char::is_uppercase) {
            return Err(invalid(format!(
                "invalid reference format: repository name ({name}) must be lowercase"
            )));
        }
        let malformed = || invalid("invalid reference format");
        let (named, digest) = match remainder.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (remainder.as_str(), None),
        };
        let (path, tag) = match named.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (named, None),
        };
        if !is_domain(&domain)
            || !is_path(path)
            || !tag.is_none_or(is_tag)
            || !digest.is_none_or(is_digest_shaped)
        {
            return Err(malformed());
        }
        if path.len() > MAX_PATH {
            return Err(invalid("repository name must not be more than 255 characters"));
        }
        if let Some(digest) = digest {
            check_digest(digest)?;
        }
        let tag = match (tag, digest) {
            (None, None) => Some(DEFAULT_TAG),
            (tag, _) => tag,
        };
        Ok(Self {
            domain,
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// `docker.io`, `localhost:5000`, ….
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// `library/busybox`, ….
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; `None` only when there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// `sha256:…`; `None` only when there is a tag.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// What a registry is asked for: the digest if there is one, otherwise the tag.
    pub fn identifier(&self) -> &str {
        self.digest().or(self.tag()).unwrap_or(DEFAULT_TAG)
    }

    /// The name without tag and digest as Docker prints it: `busybox`, `localhost:5000/a/b`.
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        let short = match self.path.strip_prefix(OFFICIAL) {
            Some(rest) if !rest.contains('/') && !is_identifier(rest) => rest,
            _ => &self.path,
        };
        let (domain, path) = split_domain(short);
        if domain == self.domain && path == self.path {
            short.to_owned()
        } else {
            self.name()
        }
    }

    /// The reference as Docker prints it: `busybox:latest`, `busybox@sha256:…`.
    pub fn familiar(&self) -> String {
        self.suffixed(self.familiar_name())
    }

    /// Domain and path: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The whole: `docker.io/library/busybox:latest`.
    pub fn canonical(&self) -> String {
        self.suffixed(self.name())
    }

    /// The same repository under another tag, without digest.
    ///
    /// # Errors
    /// `InvalidReference` when the tag is malformed.
    pub fn with_tag(&self, tag: &str) -> Result<Self> {
        if !is_tag(tag) {
            return Err(invalid("invalid tag format"));
        }
        Ok(Self {
            tag: Some(tag.to_owned()),
            digest: None,
            ..self.clone()
        })
    }

    /// The same repository by digest, without tag.
    ///
    /// # Errors
    /// `InvalidReference` when the digest is malformed or of an unknown algorithm.
    pub fn with_digest(&self, digest: &str) -> Result<Self> {
        check_digest(digest)?;
        Ok(Self {
            tag: None,
            digest: Some(digest.to_owned()),
            ..self.clone()
        })
    }

    /// Whether the image is Docker Hub's.
    pub fn is_docker_hub(&self) -> bool {
        self.domain == DEFAULT_DOMAIN
    }

    fn suffixed(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(digest);
        }
        name
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// The canonical form.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical())
    }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidReference, text)
}

/// Domain and remainder. The first component is a domain when it looks like one: a dot, a port, `localhost` or a capital letter.
fn split_domain(text: &str) -> (String, String) {
    let (domain, remainder) = match text.split_once('/') {
        Some((LEGACY_DOMAIN, rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest)) if looks_like_domain(first) => (first, rest),
        _ => (DEFAULT_DOMAIN, text),
    };
    if domain == DEFAULT_DOMAIN && !remainder.contains('/') {
        return (domain.to_owned(), format!("{OFFICIAL}{remainder}"));
    }
    (domain.to_owned(), remainder.to_owned())
}

fn looks_like_domain(component: &str) -> bool {
    component == "localhost" || component.contains(['.', ':']) || component.chars().any(char::is_uppercase)
}

/// 64 hexadecimal digits: an image or container id, never a name.
fn is_identifier(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// `host[:port]`, the host a DNS name, an IPv4 address or an IPv6 address in brackets.
fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            let valid = !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
            (valid, rest.strip_prefix(':').or((!rest.is_empty()).then_some("")))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host.split('.').all(is_domain_component), Some(port)),
            None => (text.split('.').all(is_domain_component), None),
        },
    };
    host && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

fn is_domain_component(text: &str) -> bool {
    let alphanumeric = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let bytes = text.as_bytes();
    alphanumeric(bytes.first().copied())
        && alphanumeric(bytes.last().copied())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
}

fn is_path(text: &str) -> bool {
    text.split('/').all(is_path_component)
}

/// Runs of lower-case letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().copied().is_some_and(word) || !bytes.last().copied().is_some_and(word) {
        return false;
    }
    bytes.split(|b| word(*b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

/// The grammar's digest, before its algorithm is looked at: `algorithm[+…]:` and at least 32 hexadecimal digits.
fn is_digest_shaped(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    let component = |part: &str| {
        part.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(component)
        && hex.len() >= 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The algorithms of opencontainers/go-digest, with its errors.
fn check_digest(text: &str) -> Result<()> {
    let malformed = || invalid("invalid checksum digest format");
    let (name, hex) = text.split_once(':').ok_or_else(malformed)?;
    let Some(length) = DigestAlgorithm::from(name).digest_hexlen() else {
        return Err(invalid("unsupported digest algorithm"));
    };
    if hex.len() != length as usize {
        return Err(invalid("invalid checksum digest length"));
    }
    text.parse::<Digest>().map(drop).map_err(|_| malformed())
}

#[cfg(test)]
mod tests;
