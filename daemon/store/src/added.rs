//! Layers that are made here: `docker commit`, `docker import`. Neither digest is known before the last byte.
//!
//! ```text
//!                  ┌─▶ unpack into a new snapshot ─▶ diff id ─▶ chain id ─▶ driver.commit ─▶ record
//!   tar stream ─▶ tee
//!                  └─▶ as it came (gzip, zstd) or through gzip (plain) ─▶ staged blob ─▶ blobs/
//! ```
//!
//! The blob is kept because it is what save and push give away and what another storage driver unpacks again.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::{fs, thread};

use flate2::Compression;
use flate2::write::GzEncoder;
use skiff_archive::{Applied, ApplyOptions, ApplyTarget, Peeked, SquashedOwner, media_type_suffix};
use skiff_graphdrivers::{ActiveId, LayerId};

use crate::digest::{Descriptor, Digest, chain_id};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::owners_path;
use crate::staging::Staging;
use crate::unpack::{NewLayer, OwnersFile, UNPACK_PREFIX};
use crate::{LayerRecord, Lease, Store};

/// The beginning of an OCI layer's media type; the compression follows.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// How many bytes tell the compression, with skippable frames.
const HEAD: usize = 16;
/// Pieces that may wait for the compressor: as many as its buffer is worth.
const PIECES: usize = 8;

/// A layer that was made, held until this is dropped.
#[derive(Debug)]
pub struct AddedLayer {
    /// Its name.
    pub chain: LayerId,
    /// Digest of the tar stream.
    pub diff_id: Digest,
    /// The kept blob.
    pub blob: Descriptor,
    /// What is unpacked.
    pub record: Arc<LayerRecord>,
    lease: Lease,
}

impl AddedLayer {
    /// The lease that holds layer and blob, for what else the image needs.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }
}

impl Store {
    /// Makes a layer on top of `parent` out of a tar stream, which is kept as a blob: as it came when registries know the
    /// compression (gzip, zstd), otherwise as gzip. The source is read once, to its end.
    ///
    /// # Errors
    /// `NotFound` for the parent; `Corrupt` for a damaged stream; `IdRange`; `NoSpace`; `Unsupported`; `Io`. Nothing is
    /// left behind.
    pub fn add_layer<R: Read + Send>(&self, parent: Option<&LayerId>, source: R) -> Result<AddedLayer> {
        let lease = self.lease();
        if let Some(parent) = parent
            && lease.layer(parent).is_none()
        {
            return Err(Error::not_found(format!("parent layer {parent} does not exist")));
        }
        // The driver would make it, and nobody could use it.
        self.check_depth(1 + self.layers_to(parent)?)
            .map_err(|failed| failed.error)?;
        let number = self.holdings().fresh_id();
        let active = ActiveId::new(format!("{UNPACK_PREFIX}new-{number}"))?;
        self.prepare_for_unpack(&active, parent)?;
        let owners = self.layer_records().join(format!(".{active}.owners.tmp"));
        let done = self.fill_and_keep(&active, &owners, parent, source, lease);
        // Usually there was none, or it has its place.
        let _ = fs::remove_file(&owners);
        if done.is_err() {
            self.remove_active(&active);
            // At once: a disk that was full would stay so for the next, smaller, layer.
            if let Err(error) = self.purge() {
                tracing::warn!(%error, "cannot free the space of a failed layer");
            }
        }
        self.holdings().actives.remove(&active);
        done
    }

    /// How many layers a chain that ends with `top` has.
    fn layers_to(&self, top: Option<&LayerId>) -> Result<usize> {
        let mut layers = 0;
        let mut next = top.cloned();
        while let Some(record) = next.and_then(|layer| self.layer(&layer)) {
            layers += 1;
            next = record
                .parent
                .map(|parent| LayerId::new(parent.to_string()))
                .transpose()?;
        }
        Ok(layers)
    }

    fn fill_and_keep<R: Read + Send>(
        &self,
        active: &ActiveId,
        owners_path: &Path,
        parent: Option<&LayerId>,
        source: R,
        lease: Lease,
    ) -> Result<AddedLayer> {
        let failed = |error| Error::from(skiff_archive::Error::of_data(error));
        let source = Peeked::new(source, HEAD).map_err(failed)?;
        let suffix = media_type_suffix(source.head()).filter(|suffix| !suffix.is_empty());
        let target = self.inner.driver.apply_target(active)?;
        let staging = self.stage()?;
        let mut owners = OwnersFile {
            path: owners_path.to_owned(),
            table: None,
        };
        let mut sink = |owner: SquashedOwner<'_>| owners.push(owner);
        let (applied, kept) = match suffix {
            Some(_) => self.unpack_and_stage(source, staging, &target, &mut sink)?,
            None => self.unpack_and_compress(source, staging, &target, &mut sink)?,
        };
        let owners_known = owners.table.is_some();
        owners.finish()?;
        self.inner.steps.after("new layer unpacked");
        let diff_id: Digest = applied.diff_id.parse()?;
        let (digest, size) = kept.finish(&lease)?;
        let blob = Descriptor {
            media_type: format!("{OCI_LAYER}{}", suffix.unwrap_or("+gzip")),
            digest,
            size,
        };
        let chain = chain_id(parent.map(Digest::from).as_ref(), &diff_id).to_layer_id()?;
        lease.layer(&chain);
        let layer = NewLayer {
            parent,
            diff_id,
            blob: &blob,
        };
        let owners = owners_known.then_some(owners_path);
        let record = self.name_layer(active, owners, &chain, &layer, &applied)?;
        Ok(AddedLayer {
            chain,
            diff_id,
            blob,
            record,
            lease,
        })
    }

    /// The stream goes into the blob as it comes.
    fn unpack_and_stage(
        &self,
        source: impl Read + Send,
        mut staging: Staging,
        target: &ApplyTarget,
        sink: &mut skiff_archive::OwnerSink<'_>,
    ) -> Result<(Applied, Staging)> {
        // The staging hashes it.
        let options = ApplyOptions {
            source_verified: true,
            ..self.inner.apply.clone()
        };
        let tee = Tee {
            source,
            sink: Sink::Staging(&mut staging),
        };
        let applied = skiff_archive::apply_recording(tee, target, &options, sink)?;
        Ok((applied, staging))
    }

    /// A second thread compresses the stream while it is unpacked.
    fn unpack_and_compress(
        &self,
        source: impl Read + Send,
        staging: Staging,
        target: &ApplyTarget,
        sink: &mut skiff_archive::OwnerSink<'_>,
    ) -> Result<(Applied, Staging)> {
        let (sender, pieces) = sync_channel(PIECES);
        let tee = Tee {
            source,
            sink: Sink::Compressor(sender),
        };
        thread::scope(|scope| {
            let compressor = scope.spawn(move || compress(&pieces, staging));
            let applied = skiff_archive::apply_recording(tee, target, &self.inner.apply, sink);
            let kept = compressor
                .join()
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "the compressor of a layer died")));
            match (applied, kept) {
                // To the unpacker the compressor's failure is a source that broke off.
                (Err(_), Err(error)) if error.kind() == ErrorKind::NoSpace => Err(error),
                (Err(error), _) => Err(error.into()),
                (Ok(applied), kept) => Ok((applied, kept?)),
            }
        })
    }

    /// Makes the snapshot the layer `chain`, unless that one is there already.
    fn name_layer(
        &self,
        active: &ActiveId,
        owners: Option<&Path>,
        chain: &LayerId,
        layer: &NewLayer<'_>,
        applied: &Applied,
    ) -> Result<Arc<LayerRecord>> {
        let Some(_claim) = self.claim_layer(chain)? else {
            self.remove_active(active);
            let vanished = || Error::not_found(format!("layer {chain} vanished"));
            return self.layer(chain).ok_or_else(vanished);
        };
        if let Some(staged) = owners {
            durable::publish(staged, &owners_path(&self.layer_records(), chain))?;
        }
        self.commit_snapshot(active, chain)?;
        self.inner.steps.after("new layer committed");
        self.record(chain, layer, applied)
    }
}

/// Where a second copy of the stream goes.
enum Sink<'s> {
    Staging(&'s mut Staging),
    Compressor(SyncSender<Vec<u8>>),
    /// The stream has ended.
    Closed,
}

/// Gives what it reads to a second place, too.
struct Tee<'s, R> {
    source: R,
    sink: Sink<'s>,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let count = self.source.read(into)?;
        match &mut self.sink {
            Sink::Staging(staging) => staging.push(&into[..count]).map_err(io::Error::other)?,
            // An empty piece says that the stream has ended; a stream that broke off never gets there.
            Sink::Compressor(sender) => sender
                .send(into[..count].to_vec())
                .map_err(|_| io::Error::other("the compressor of a layer failed"))?,
            Sink::Closed => {}
        }
        if count == 0 {
            self.sink = Sink::Closed;
        }
        Ok(count)
    }
}

/// The compressor gets blocks of this size, in bytes, however the stream was read: at this level its output depends on
/// where its input is cut, and the same layer is to be the same blob.
const BLOCK: usize = 1 << 16;

/// Compresses what comes until the empty piece. The fastest level: it costs less time than the unpacking beside it.
fn compress(pieces: &Receiver<Vec<u8>>, staging: Staging) -> Result<Staging> {
    let failed = |error: io::Error| match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::io("compress a layer", error),
    };
    let mut encoder = GzEncoder::new(
        io::BufWriter::with_capacity(1 << 18, staging),
        Compression::fast(),
    );
    let mut block = Vec::with_capacity(2 * BLOCK);
    while let Ok(piece) = pieces.recv() {
        if piece.is_empty() {
            encoder.write_all(&block).map_err(failed)?;
            let buffer = encoder.finish().map_err(failed)?;
            return buffer.into_inner().map_err(|error| failed(error.into_error()));
        }
        block.extend_from_slice(&piece);
        let whole = block.len() - block.len() % BLOCK;
        for piece in block[..whole].chunks(BLOCK) {
            encoder.write_all(piece).map_err(failed)?;
        }
        block.drain(..whole);
    }
    Err(Error::new(ErrorKind::Io, "the layer's stream broke off"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::support::Fixture;

    #[test]
    fn the_same_layer_is_the_same_blob_however_it_was_read() {
        let fixture = Fixture::new();
        // Text that deflate has something to do with, longer than a few blocks.
        let layer: Vec<u8> = (0..60_000u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_string().into_bytes())
            .collect();
        let blobs = [1 << 20, 32_768, 10_007, 513].map(|size| {
            let (sender, pieces) = sync_channel(layer.len() / size + 2);
            for piece in layer.chunks(size).chain([&[][..]]) {
                sender.send(piece.to_vec()).unwrap();
            }
            let staging = compress(&pieces, fixture.store.stage().unwrap()).unwrap();
            staging.finish(&fixture.store.lease()).unwrap()
        });
        assert!(blobs.iter().all(|blob| *blob == blobs[0]), "{blobs:?}");
        assert!(blobs[0].1 < layer.len() as u64);
    }
}
