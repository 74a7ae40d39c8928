//! Names in archives: cleaned by text, split, and recognised as whiteouts.

use std::borrow::Cow;

use crate::error::{Error, ErrorKind, Result, show};

/// What a cleaned name means. Names are relative to the root, without `.`, `..`, empty or trailing parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// The root itself.
    Root,
    /// An ordinary member `base` in directory `parent` (empty: the root).
    Member { parent: &'a [u8], base: &'a [u8] },
    /// `name` in `parent` was deleted.
    Whiteout { parent: &'a [u8], name: &'a [u8] },
    /// Everything the lower layers have in `parent` was deleted.
    Opaque { parent: &'a [u8] },
    /// AUFS book-keeping (`.wh..wh.plnk`, `.wh..wh.aufs`, `.wh..wh.orph`): not part of the layer.
    Metadata,
}

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const METADATA: &[u8] = b".wh..wh.";

/// Prefix of a whiteout's name.
pub(crate) const WHITEOUT_PREFIX: &[u8] = PREFIX;
/// Name of an opaque marker.
pub(crate) const OPAQUE_NAME: &[u8] = OPAQUE;

/// Cleans a name as Go's `filepath.Clean` does, below a root: `/a//b/./c/../d/` is `a/b/d`.
///
/// # Errors
/// `Escape` when a relative name leaves the root by `..`.
pub(crate) fn clean(name: &[u8]) -> Result<Cow<'_, [u8]>> {
    let mut trimmed = name;
    while let Some(rest) = trimmed.strip_prefix(b"/").or_else(|| trimmed.strip_prefix(b"./")) {
        trimmed = rest;
    }
    while let Some(rest) = trimmed.strip_suffix(b"/") {
        trimmed = rest;
    }
    if trimmed.is_empty() || trimmed == b"." {
        return Ok(Cow::Borrowed(&[]));
    }
    if !trimmed
        .split(|&b| b == b'/')
        .any(|part| matches!(part, b"" | b"." | b".."))
    {
        return Ok(Cow::Borrowed(trimmed));
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in trimmed.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.pop().is_some() || name.starts_with(b"/") => {}
            b".." => {
                let text = format!("{:?} is outside of the layer's root", show(name));
                return Err(Error::new(ErrorKind::Escape, text));
            }
            other => parts.push(other),
        }
    }
    Ok(Cow::Owned(parts.join(&b'/')))
}

/// Splits a cleaned name into directory and last part.
pub(crate) fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|&b| b == b'/') {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => (&[], name),
    }
}

/// Says what a cleaned name means.
///
/// # Errors
/// `Corrupt` for a whiteout of nothing, `.` or `..`.
pub(crate) fn meaning(name: &[u8]) -> Result<Meaning<'_>> {
    if name.is_empty() {
        return Ok(Meaning::Root);
    }
    let (parent, base) = split(name);
    if base == OPAQUE {
        return Ok(Meaning::Opaque { parent });
    }
    if name.starts_with(METADATA) || base.starts_with(METADATA) {
        return Ok(Meaning::Metadata);
    }
    match base.strip_prefix(PREFIX) {
        None => Ok(Meaning::Member { parent, base }),
        Some(b"" | b"." | b"..") => Err(Error::corrupt(format!("invalid whiteout name: {:?}", show(name)))),
        Some(deleted) => Ok(Meaning::Whiteout {
            parent,
            name: deleted,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_like_go_does() {
        for (given, cleaned) in [
            ("a", "a"),
            ("./a/b", "a/b"),
            ("/a//b/./c/../d/", "a/b/d"),
            (".", ""),
            ("./", ""),
            ("/", ""),
            ("a/..", ""),
            ("/../../etc/passwd", "etc/passwd"),
            ("a/../../b/..//../", "!"),
            ("../x", "!"),
            ("a/b/../../../x", "!"),
            ("...", "..."),
            ("..a/b", "..a/b"),
        ] {
            match clean(given.as_bytes()) {
                Ok(name) => assert_eq!(name, cleaned.as_bytes(), "{given}"),
                Err(error) => {
                    assert_eq!(cleaned, "!", "{given}");
                    assert_eq!(error.kind(), ErrorKind::Escape);
                }
            }
        }
    }

    #[test]
    fn whiteouts_are_recognised_in_every_directory() {
        assert_eq!(meaning(b"").unwrap(), Meaning::Root);
        assert_eq!(
            meaning(b"a/.wh.b").unwrap(),
            Meaning::Whiteout {
                parent: b"a",
                name: b"b"
            }
        );
        assert_eq!(meaning(b".wh..wh..opq").unwrap(), Meaning::Opaque { parent: b"" });
        assert_eq!(
            meaning(b"a/b/.wh..wh..opq").unwrap(),
            Meaning::Opaque { parent: b"a/b" }
        );
        assert_eq!(meaning(b".wh..wh.plnk/1.2").unwrap(), Meaning::Metadata);
        assert_eq!(meaning(b".wh..wh..wh..opq").unwrap(), Meaning::Metadata);
        assert_eq!(
            meaning(b"a/wh.b").unwrap(),
            Meaning::Member {
                parent: b"a",
                base: b"wh.b"
            }
        );
        for bad in [&b".wh."[..], b"a/.wh..", b"a/.wh..."] {
            assert_eq!(meaning(bad).unwrap_err().kind(), ErrorKind::Corrupt, "{bad:?}");
        }
    }
}
