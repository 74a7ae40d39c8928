//! What can be verified beside a running daemon: blobs, and the documents among them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind as IoKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::{Place, Verification, VerifyOptions, pull};
use crate::blobs::list_blobs;
use crate::catalog::{self, Named};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::migrate::Progress;

/// Hashes every blob below `root` (`<data-root>/image`) and reads what images say of each other. Changes nothing, and a
/// daemon may run: blobs never change, and one that is removed meanwhile is not missed.
///
/// # Errors
/// `Corrupt` for a `repositories.json` that cannot be read; `Io`.
pub fn verify_blobs(root: &Path, options: VerifyOptions, progress: &dyn Progress) -> Result<Verification> {
    let mut found = Verification::default();
    let digests = list_blobs(root)?;
    let before = catalog::named(root)?;
    progress.begin(&format!("{} blobs", digests.len()), 0);
    let hashed = hash_all(root, &digests, options, progress)?;
    let mut bad = Vec::new();
    for (digest, outcome) in hashed {
        let Some((actual, size)) = outcome else { continue };
        found.blobs += 1;
        found.blob_bytes += size;
        if actual == digest {
            found.good_blobs.insert(digest);
        } else {
            bad.push((digest, actual));
        }
    }
    let mut users = Users::default();
    let mut missing = BTreeMap::new();
    for named in &before {
        found.images += 1;
        users.of_image(root, named, &mut missing)?;
    }
    for (digest, actual) in bad {
        found.bad_blobs.insert(digest);
        let images = users.names(&digest);
        let problem = found.problem(
            Place::Blob(digest),
            format!("blob {digest}"),
            format!("its bytes have the digest {actual}"),
        );
        let remedy = if images.is_empty() {
            super::Remedy::Repair
        } else {
            pull(&images)
        };
        problem.of(images).helped_by(remedy);
    }
    if !missing.is_empty() {
        // An image that was removed while we were looking is not missed.
        let still: BTreeSet<Digest> = catalog::named(root)?.iter().map(|named| named.image).collect();
        for (digest, what) in missing {
            let images = users.names(&digest);
            if before
                .iter()
                .any(|n| still.contains(&n.image) && images.contains(&n.label()))
            {
                found
                    .problem(Place::Elsewhere, format!("blob {digest}"), what)
                    .of(images.clone())
                    .helped_by(pull(&images));
            }
        }
    }
    Ok(found)
}

/// Which images need which blobs.
#[derive(Default)]
struct Users {
    of: BTreeMap<Digest, BTreeSet<String>>,
}

impl Users {
    fn names(&self, blob: &Digest) -> BTreeSet<String> {
        self.of.get(blob).cloned().unwrap_or_default()
    }

    fn needs(&mut self, blob: Digest, named: &Named) {
        let names = self.of.entry(blob).or_default();
        names.extend(named.names.iter().cloned());
        if named.names.is_empty() {
            names.insert(named.label());
        }
    }

    /// Notes what an image needs, and what of it is not there.
    fn of_image(&mut self, root: &Path, named: &Named, missing: &mut BTreeMap<Digest, String>) -> Result<()> {
        let documents = std::iter::once(named.image).chain(named.manifests.iter().copied());
        for document in documents.chain(named.targets.iter().copied()) {
            self.needs(document, named);
            if size_of(root, &document)?.is_none() {
                missing.insert(document, "it is missing".to_owned());
            }
        }
        // What cannot be read is bad by its digest, and reported as that.
        let Ok(image) = Image::load(root, named.image, &named.manifests) else {
            return Ok(());
        };
        for blob in image.manifests.iter().flat_map(|manifest| &manifest.layers) {
            self.needs(blob.digest, named);
            match size_of(root, &blob.digest)? {
                Some(size) if size == blob.size => {}
                Some(size) => {
                    missing.insert(
                        blob.digest,
                        format!("it has {size} bytes, the manifest says {}", blob.size),
                    );
                }
                None => {
                    missing.insert(blob.digest, "it is missing".to_owned());
                }
            }
        }
        Ok(())
    }
}

fn path_of(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs/sha256").join(digest.hex())
}

fn size_of(root: &Path, digest: &Digest) -> Result<Option<u64>> {
    let path = path_of(root, digest);
    match std::fs::metadata(&path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == IoKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("stat {}", path.display()), error)),
    }
}

type Hashed = (Digest, Option<(Digest, u64)>);

/// Digest and size of each blob; `None` for one that is gone.
fn hash_all(
    root: &Path,
    digests: &[Digest],
    options: VerifyOptions,
    progress: &dyn Progress,
) -> Result<Vec<Hashed>> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Hashed>> = Mutex::default();
    let failure: Mutex<Option<Error>> = Mutex::default();
    let work = || {
        while let Some(digest) = digests.get(next.fetch_add(1, Ordering::Relaxed)) {
            if progress.stop() {
                return;
            }
            match hash(&path_of(root, digest), progress) {
                Ok(outcome) => lock(&results).push((*digest, outcome)),
                Err(error) => {
                    lock(&failure).get_or_insert(error);
                    return;
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..options.threads.clamp(1, digests.len().max(1)) {
            scope.spawn(work);
        }
    });
    if let Some(error) = lock(&failure).take() {
        return Err(error);
    }
    if progress.stop() {
        return Err(Error::new(ErrorKind::Conflict, "interrupted"));
    }
    let mut results = std::mem::take(&mut *lock(&results));
    results.sort_by_key(|(digest, _)| *digest);
    Ok(results)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hash(path: &Path, progress: &dyn Progress) -> Result<Option<(Digest, u64)>> {
    let failed = |e| Error::io(format!("read {}", path.display()), e);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(Some((hasher.finish(), size))),
            count => {
                hasher.update(&buffer[..count]);
                size += count as u64;
                progress.advance(count as u64);
            }
        }
    }
}
