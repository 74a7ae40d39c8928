//! Writing a blob: one writer per digest, resumable, verified before it gets its name.
//!
//! ```text
//!   begin ──▶ ingest/<hex>.partial ──write…──▶ commit: size and digest right? fsync, rename to blobs/, fsync directory
//!               │ left by a crash or a cut connection: hashed again and continued     wrong: removed, Corrupt
//!               │                                                                     fsync fails: removed
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use crate::Store;
use crate::digest::{Digest, Hasher};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::follow::{Flow, Follower};

/// A blob being written. Dropped without [`Ingest::commit`] it fails its followers and leaves the partial file for
/// the next try, except after a full disk, a failed fsync or wrong bytes, when the file is removed.
pub struct Ingest {
    store: Store,
    digest: Digest,
    size: u64,
    path: PathBuf,
    file: Arc<File>,
    flow: Arc<Flow>,
    /// `None` when the caller verifies.
    hasher: Option<Hasher>,
    written: u64,
    discard: bool,
}

impl Store {
    /// Starts (or resumes: see [`Ingest::offset`]) writing a blob of `size` bytes, which [`Ingest::commit`] verifies.
    /// There is one writer a blob: waits until others have finished, after which the blob may be there already.
    ///
    /// # Errors
    /// `NoSpace`; `Io`.
    pub fn ingest(&self, digest: &Digest, size: u64) -> Result<Ingest> {
        let mut hasher = Hasher::new();
        let mut ingest = self.ingest_verified(digest, size, |bytes| hasher.update(bytes))?;
        ingest.hasher = Some(hasher);
        Ok(ingest)
    }

    /// As [`Store::ingest`], but the caller verifies: it is shown what an earlier try left, hashes that and what it
    /// writes itself, and calls [`Ingest::commit`] only when the digest is right, else [`Ingest::discard`].
    /// Saves hashing twice where the source already does it.
    ///
    /// # Errors
    /// `NoSpace`; `Io`.
    pub fn ingest_verified(&self, digest: &Digest, size: u64, replay: impl FnMut(&[u8])) -> Result<Ingest> {
        self.ingest_claimed(Claim::wait(self, *digest), digest, size, replay)
    }

    fn ingest_claimed(
        &self,
        claim: Claim<'_>,
        digest: &Digest,
        size: u64,
        replay: impl FnMut(&[u8]),
    ) -> Result<Ingest> {
        let path = self.partial_path(digest);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io(format!("open {}", path.display()), e))?;
        let written = resume(&mut file, size, replay)
            .map_err(|e| Error::io(format!("resume {}", path.display()), e))?;
        let flow = Arc::new(Flow::default());
        flow.grown(written);
        claim.keep();
        Ok(Ingest {
            store: self.clone(),
            digest: *digest,
            size,
            path,
            file: Arc::new(file),
            flow,
            hasher: None,
            written,
            discard: false,
        })
    }

    fn end_ingest(&self, digest: &Digest) {
        self.holdings().ingesting.remove(digest);
        self.inner.released.notify_all();
    }

    pub(crate) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.inner
            .root
            .join("ingest")
            .join(format!("{}.partial", digest.hex()))
    }
}

impl Ingest {
    /// How many bytes are there already: where the download has to go on.
    pub fn offset(&self) -> u64 {
        self.written
    }

    /// The size the blob must have in the end.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A way to read the blob while it grows.
    pub fn follower(&self) -> Follower {
        Follower::new(Arc::clone(&self.file), Arc::clone(&self.flow))
    }

    /// Forgets what an earlier try left, for a server that cannot continue in the middle. Not after a follower was made.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.file
            .set_len(0)
            .and_then(|()| (&*self.file).seek(SeekFrom::Start(0)))
            .map_err(|e| Error::io(format!("truncate {}", self.path.display()), e))?;
        self.hasher = self.hasher.as_ref().map(|_| Hasher::new());
        self.written = 0;
        self.flow.grown(0);
        Ok(())
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// `Corrupt` beyond the announced size; `NoSpace`; `Io`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let after = self.written + bytes.len() as u64;
        if after > self.size {
            self.discard = true;
            return Err(Error::corrupt(format!(
                "blob {} is longer than its {} bytes",
                self.digest, self.size
            )));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        if let Err(error) = (&*self.file).write_all(bytes) {
            let error = Error::io(format!("write {}", self.path.display()), error);
            // On a full disk a partial blob would only keep it full.
            self.discard = error.kind() == ErrorKind::NoSpace;
            return Err(error);
        }
        self.written = after;
        self.flow.grown(after);
        Ok(())
    }

    /// Gives up and removes what was written, because it is wrong or not needed any more.
    pub fn discard(mut self) {
        self.discard = true;
    }

    /// Verifies the blob and gives it its name.
    ///
    /// # Errors
    /// `Corrupt` when digest or size are wrong (the partial file is removed, except when it is merely short: then it
    /// can be resumed); `NoSpace`; `Io`, also when the bytes did not get to the disk: then they go.
    pub fn commit(mut self) -> Result<()> {
        let verified = self.verify();
        // Followers only need to know that the bytes are right; that they are on the disk is for the registration.
        self.flow
            .finished(verified.as_ref().copied().map_err(ToString::to_string));
        verified?;
        self.name()
    }

    fn verify(&mut self) -> Result<()> {
        if self.written < self.size {
            return Err(Error::corrupt(format!(
                "blob {} is truncated: {} of {} bytes",
                self.digest, self.written, self.size
            )));
        }
        if let Some(actual) = self.hasher.take().map(Hasher::finish)
            && actual != self.digest
        {
            self.discard = true;
            return Err(Error::corrupt(format!(
                "blob {} has the digest {actual}",
                self.digest
            )));
        }
        Ok(())
    }

    fn name(&mut self) -> Result<()> {
        let steps = &self.store.inner.steps;
        steps.after("blob written");
        if let Err(error) = self.file.sync_all() {
            // The kernel has marked the lost pages clean: the next try would read good bytes, and its fsync succeed.
            self.discard = true;
            return Err(Error::io(format!("fsync {}", self.path.display()), error));
        }
        durable::publish(&self.path, &self.store.blob_path(&self.digest))?;
        steps.after("blob renamed");
        durable::sync_directory(&self.store.inner.root.join("blobs/sha256"))
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        self.flow
            .finished(Err(format!("the download of {} was interrupted", self.digest)));
        if self.discard
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a partial blob");
        }
        self.store.end_ingest(&self.digest);
    }
}

/// The right to write one blob, given back on failure.
struct Claim<'a> {
    store: &'a Store,
    digest: Option<Digest>,
}

impl<'a> Claim<'a> {
    fn wait(store: &'a Store, digest: Digest) -> Self {
        let mut holdings = store.holdings();
        while !holdings.ingesting.insert(digest) {
            holdings = store
                .inner
                .released
                .wait(holdings)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(holdings);
        Self {
            store,
            digest: Some(digest),
        }
    }

    /// From here on the [`Ingest`] gives it back.
    fn keep(mut self) {
        self.digest = None;
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(digest) = self.digest {
            self.store.end_ingest(&digest);
        }
    }
}

/// Shows `replay` what an earlier try left and returns how much that is; a file that is too long is started afresh.
/// Leaves the file's offset at its end.
fn resume(file: &mut File, size: u64, mut replay: impl FnMut(&[u8])) -> std::io::Result<u64> {
    let length = file.metadata()?.len();
    if length > size {
        file.set_len(0)?;
        return Ok(0);
    }
    let mut buffer = vec![0; if length == 0 { 0 } else { 1 << 20 }];
    let mut done = 0;
    while done < length {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        replay(&buffer[..count]);
        done += count as u64;
    }
    file.seek(SeekFrom::Start(done))?;
    Ok(done)
}
