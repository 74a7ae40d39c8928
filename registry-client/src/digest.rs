//! Checking bytes against a digest while they pass by.

use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};
use ring::digest::{Context, SHA256, SHA384, SHA512};

use crate::error::{Error, ErrorKind, Result};

/// Hashes the bytes of one blob and compares with its descriptor.
///
/// It also is the position of a download: a caller that resumes a partial file feeds the file's bytes to [`Verifier::update`] and
/// hands the verifier to [`Client::fetch_blob`](crate::Client::fetch_blob), which goes on after them. Offset and hash cannot disagree.
#[derive(Clone)]
pub struct Verifier {
    expected: Digest,
    size: u64,
    hashed: u64,
    context: Context,
}

impl Verifier {
    /// Nothing hashed yet.
    ///
    /// # Errors
    /// `Unsupported` for a digest that is not SHA-256, SHA-384 or SHA-512.
    pub fn new(descriptor: &Descriptor) -> Result<Self> {
        Self::of(descriptor.digest(), descriptor.size())
    }

    pub(crate) fn of(digest: &Digest, size: u64) -> Result<Self> {
        let algorithm = match digest.algorithm() {
            DigestAlgorithm::Sha256 => &SHA256,
            DigestAlgorithm::Sha384 => &SHA384,
            DigestAlgorithm::Sha512 => &SHA512,
            other => {
                let text = format!("unsupported digest algorithm: {other} in {digest}");
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
        };
        Ok(Self {
            expected: digest.clone(),
            size,
            hashed: 0,
            context: Context::new(algorithm),
        })
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.hashed += bytes.len() as u64;
    }

    /// Bytes taken in so far.
    pub fn offset(&self) -> u64 {
        self.hashed
    }

    /// The blob's size as its descriptor says, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether size and digest are the descriptor's.
    pub fn matches(&self) -> bool {
        let actual = self.context.clone().finish();
        self.hashed == self.size && hex::encode(actual.as_ref()) == self.expected.digest()
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("expected", &self.expected)
            .field("size", &self.size)
            .field("hashed", &self.hashed)
            .finish_non_exhaustive()
    }
}

/// The `sha256:…` digest of `bytes`.
pub fn sha256(bytes: &[u8]) -> Digest {
    let hash = ring::digest::digest(&SHA256, bytes);
    match format!("sha256:{}", hex::encode(hash)).parse() {
        Ok(digest) => digest,
        Err(_) => unreachable!("64 lower-case hexadecimal digits are a SHA-256 digest"),
    }
}

/// Whether `bytes` have `digest`.
pub(crate) fn verify(digest: &Digest, bytes: &[u8]) -> Result<bool> {
    let mut verifier = Verifier::of(digest, bytes.len() as u64)?;
    verifier.update(bytes);
    Ok(verifier.matches())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ABC_512: &str = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                           2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

    #[test]
    fn known_values() {
        assert_eq!(sha256(b"").to_string(), EMPTY);
        assert!(verify(&ABC_512.parse().unwrap(), b"abc").unwrap());
        assert!(!verify(&ABC_512.parse().unwrap(), b"abd").unwrap());
    }

    #[test]
    fn size_counts_too() {
        let mut verifier = Verifier::of(&sha256(b"abc"), 4).unwrap();
        verifier.update(b"abc");
        assert!(!verifier.matches());
        assert_eq!((verifier.offset(), verifier.size()), (3, 4));
    }

    #[test]
    fn other_algorithms_are_refused() {
        let digest: Digest = "md5:d41d8cd98f00b204e9800998ecf8427e".parse().unwrap();
        assert_eq!(
            Verifier::of(&digest, 0).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
    }
}
