//! SHA-256 digests, descriptors of blobs, and the chain ids that name layers (OCI image specification, "Layer ChainID").

use std::fmt;
use std::str::FromStr;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use skiff_graphdrivers::LayerId;

use crate::error::{Error, ErrorKind, Result};

/// A SHA-256 digest, written `sha256:` and 64 hexadecimal digits. Other algorithms are refused with a clear text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// What a blob is: the part of an OCI descriptor that the store needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type as the manifest gives it.
    pub media_type: String,
    /// Digest of the bytes.
    pub digest: Digest,
    /// How many bytes.
    pub size: u64,
}

/// Computes a digest piece by piece.
#[derive(Clone)]
pub(crate) struct Hasher(Context);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first twelve digits, as Docker's progress and conflict texts show ids.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }

    /// Whether its digits begin with these (`sha256:` in front is allowed); no digest begins with none.
    pub(crate) fn begins_with(&self, prefix: &str) -> bool {
        let digits = prefix.strip_prefix("sha256:").unwrap_or(prefix);
        !digits.is_empty() && self.hex().starts_with(digits)
    }

    /// This digest as a layer's name.
    pub(crate) fn to_layer_id(self) -> Result<LayerId> {
        Ok(LayerId::new(self.to_string())?)
    }
}

/// The chain ids of a stack of layers given by their diff ids, bottom first: the first is its diff id, each further
/// one the digest of `PARENT_CHAIN_ID DIFF_ID`.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(chain_id(chain.last(), diff_id));
    }
    chain
}

/// The chain id of a layer on top of `parent`.
pub fn chain_id(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    match parent {
        None => *diff_id,
        Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
    }
}

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.finish().as_ref());
        Digest(bytes)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (algorithm, digits) = text
            .split_once(':')
            .ok_or_else(|| Error::invalid(format!("bad digest {text:?}")))?;
        if algorithm != "sha256" {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("digest algorithm {algorithm:?} of {text:?} is not supported (sha256 is)"),
            ));
        }
        let mut bytes = [0; 32];
        // The specification allows lower case only; upper case would be a second name for one blob.
        let lower = digits
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match hex::decode_to_slice(digits, &mut bytes) {
            Ok(()) if lower => Ok(Self(bytes)),
            _ => Err(Error::invalid(format!("bad digest {text:?}"))),
        }
    }
}

impl From<&LayerId> for Digest {
    fn from(id: &LayerId) -> Self {
        let mut bytes = [0; 32];
        // A `LayerId` has been checked to be 64 hexadecimal digits.
        let _ = hex::decode_to_slice(id.hex(), &mut bytes);
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_lower_case_sha256_and_nothing_else() {
        let empty = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(empty.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), empty);
        assert_eq!(empty.short(), "e3b0c44298fc");
        for bad in [
            "",
            "sha256:",
            "e3b0",
            &text.to_uppercase(),
            &text.replace("e3b0", "E3B0"),
            &text[..70],
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        let other = format!("sha512:{}", "0".repeat(128))
            .parse::<Digest>()
            .unwrap_err();
        assert_eq!(other.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let a = Digest::of(b"a");
        let b = Digest::of(b"b");
        let c = Digest::of(b"c");
        let chain = chain_ids(&[a, b, c]);
        assert_eq!(chain[0], a);
        assert_eq!(chain[1], Digest::of(format!("{a} {b}").as_bytes()));
        assert_eq!(chain[2], Digest::of(format!("{} {c}", chain[1]).as_bytes()));
        assert!(chain_ids(&[]).is_empty());
    }
}
