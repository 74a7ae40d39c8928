//! Complete blobs: `blobs/sha256/<hex>`, shared by all drivers, compressed as they came.

use std::fs::{self, File};
use std::io::{ErrorKind as IoKind, Read};
use std::path::{Path, PathBuf};

use crate::Store;
use crate::digest::Digest;
use crate::error::{Error, Result};

/// Manifests and configurations beyond this are refused (moby: 4 MiB for a manifest).
const DOCUMENT_LIMIT: u64 = 8 << 20;

impl Store {
    /// Where a blob lies (or would).
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.root.join("blobs/sha256").join(digest.hex())
    }

    /// The size of a blob in bytes; `None` when it is not there.
    ///
    /// # Errors
    /// `Io`.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == IoKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("stat {}", path.display()), error)),
        }
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// `NotFound`; `Io`.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(|e| Error::io(format!("open blob {digest}"), e))
    }

    /// Reads a small blob (a manifest, a configuration) and verifies it.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` when the bytes do not have the digest or are more than 8 MiB; `Io`.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        read_document(&self.blob_path(digest), digest)
    }

    /// Stores a small blob whose bytes are at hand; nothing happens when it is there already. One whose bytes on the disk
    /// are damaged, or cannot be read, is replaced: that is what another pull or load is for.
    ///
    /// # Errors
    /// `Corrupt` when the bytes do not have the digest; `NoSpace`; `Io`.
    pub fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let present = || self.read_blob(digest).is_ok_and(|there| there == bytes);
        if present() {
            return Ok(());
        }
        let mut ingest = self.ingest(digest, bytes.len() as u64)?;
        // Whoever wrote it while we waited may have finished.
        if present() {
            ingest.discard();
            return Ok(());
        }
        ingest.restart()?;
        ingest.write(bytes)?;
        ingest.commit()
    }

    /// Whether a blob of this size is there; one that is small enough for a document is read, because no later step would
    /// notice its damage before it is needed.
    ///
    /// # Errors
    /// `Io`.
    pub fn has_good_blob(&self, digest: &Digest, size: u64) -> Result<bool> {
        let there = self.blob_size(digest)? == Some(size);
        Ok(there && (size > DOCUMENT_LIMIT || self.read_blob(digest).is_ok()))
    }

    /// Puts a blob that nobody needs out of the way, at once; the space is freed by [`Store::purge`].
    /// The caller holds the `holdings` lock, so that no lease can be taken in between.
    pub(crate) fn discard_blob(&self, digest: &Digest) -> Result<u64> {
        let path = self.blob_path(digest);
        let size = self.blob_size(digest)?.unwrap_or(0);
        match fs::rename(&path, self.inner.root.join("trash").join(digest.hex())) {
            Ok(()) => Ok(size),
            Err(error) if error.kind() == IoKind::NotFound => Ok(0),
            Err(error) => Err(Error::io(format!("discard {}", path.display()), error)),
        }
    }

    /// Frees the space of discarded blobs.
    pub(crate) fn empty_trash(&self) -> Result<()> {
        let trash = self.inner.root.join("trash");
        let failed = |e| Error::io(format!("empty {}", trash.display()), e);
        for entry in fs::read_dir(&trash).map_err(failed)? {
            match fs::remove_file(entry.map_err(failed)?.path()) {
                Err(error) if error.kind() != IoKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The digests of all complete blobs.
    pub(crate) fn list_blobs(&self) -> Result<Vec<Digest>> {
        list_blobs(&self.inner.root)
    }
}

/// The digests of all complete blobs of the store below `root`; a store that does not exist has none.
pub(crate) fn list_blobs(root: &Path) -> Result<Vec<Digest>> {
    let directory = root.join("blobs/sha256");
    let failed = |e| Error::io(format!("list {}", directory.display()), e);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == IoKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut digests = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        // Files that are not ours are not ours to judge.
        if let Some(digest) = name.to_str().and_then(|hex| format!("sha256:{hex}").parse().ok()) {
            digests.push(digest);
        }
    }
    Ok(digests)
}

/// Reads and verifies a small blob.
pub(crate) fn read_document(path: &Path, digest: &Digest) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::io(format!("open blob {digest}"), e))?;
    let mut bytes = Vec::new();
    file.take(DOCUMENT_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(format!("read blob {digest}"), e))?;
    if bytes.len() as u64 > DOCUMENT_LIMIT {
        return Err(Error::corrupt(format!(
            "blob {digest} is too large for a manifest or configuration"
        )));
    }
    if Digest::of(&bytes) != *digest {
        return Err(Error::corrupt(format!(
            "blob {digest} on disk does not have its digest"
        )));
    }
    Ok(bytes)
}
