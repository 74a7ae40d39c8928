//! Blobs whose digest is not known before their last byte: layers that are being made, members of an archive that is
//! being loaded.
//!
//! ```text
//!   stage ──▶ ingest/<n>.staged ──write…──▶ finish: fsync, rename to blobs/<digest>, fsync directory
//!               │ dropped: removed            │ the blob is there already: removed
//!               └ left by kill -9: removed when the store is opened, which only one daemon does at a time
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::digest::{Digest, Hasher};
use crate::durable;
use crate::error::{Error, Result};
use crate::{Lease, Store};

const SUFFIX: &str = ".staged";

/// A blob being written. Dropped before [`Staging::finish`] it leaves nothing.
pub struct Staging {
    store: Store,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    written: u64,
}

impl Store {
    /// Starts writing a blob whose digest is not known yet.
    ///
    /// # Errors
    /// `NoSpace`; `Io`.
    pub fn stage(&self) -> Result<Staging> {
        let number = self.holdings().fresh_id();
        let path = self.inner.root.join("ingest").join(format!("{number}{SUFFIX}"));
        let file = File::create_new(&path).map_err(|e| Error::io(format!("create {}", path.display()), e))?;
        Ok(Staging {
            store: self.clone(),
            path,
            file,
            hasher: Hasher::new(),
            written: 0,
        })
    }

    /// Removes those of `blobs` that no image, name or lease needs (any more); the space is freed in the background by
    /// [`Store::purge`]. Returns how many went; none while some image's manifest cannot be read.
    ///
    /// # Errors
    /// `Io`.
    pub fn discard_unneeded(&self, blobs: impl IntoIterator<Item = Digest>) -> Result<usize> {
        Ok(self.drop_blobs(&blobs.into_iter().collect())?.0)
    }
}

impl Staging {
    /// How many bytes were written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// `NoSpace`; `Io`.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|e| Error::io(format!("write {}", self.path.display()), e))?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Makes it a blob, held by `lease`; gives its digest and its size in bytes.
    /// A small blob that is there and damaged is replaced.
    ///
    /// # Errors
    /// `NoSpace`; `Io`.
    pub fn finish(self, lease: &Lease) -> Result<(Digest, u64)> {
        let digest = self.hasher.clone().finish();
        lease.blob(&digest)?;
        if self.store.has_good_blob(&digest, self.written)? {
            return Ok((digest, self.written));
        }
        let steps = &self.store.inner.steps;
        steps.after("staged blob written");
        self.file
            .sync_all()
            .map_err(|e| Error::io(format!("fsync {}", self.path.display()), e))?;
        durable::publish(&self.path, &self.store.blob_path(&digest))?;
        steps.after("staged blob renamed");
        durable::sync_directory(&self.store.inner.root.join("blobs/sha256"))?;
        Ok((digest, self.written))
    }
}

/// For encoders; an error of the store travels inside the [`io::Error`].
impl Write for Staging {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            // It has its name as a blob.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "cannot remove a staged blob"),
            Ok(()) => {}
        }
    }
}

/// Removes what a daemon that was killed had staged. The caller holds the store's lock.
pub(crate) fn sweep(root: &Path) -> Result<()> {
    let directory = root.join("ingest");
    let failed = |e| Error::io(format!("sweep {}", directory.display()), e);
    for entry in fs::read_dir(&directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.to_str().is_some_and(|path| path.ends_with(SUFFIX)) {
            fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}
