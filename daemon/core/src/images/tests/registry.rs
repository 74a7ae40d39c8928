//! A registry in memory that can be told to misbehave, and images for it.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::json;
use skiff_registry_client::{
    Credentials, Descriptor, Error as RegistryError, ErrorKind, Manifest, Platform, Reference, Verifier,
    sha256,
};
use skiff_store::Digest;
use tokio::sync::watch;

use crate::error::Result;
use crate::images::remote::{Remote, Resolved};

/// Bytes in one piece of a stream.
pub(super) const PIECE: usize = 1000;

/// How a blob is served.
#[derive(Clone)]
pub(super) enum Manners {
    /// As it is.
    Good,
    /// These bytes instead.
    Other(Vec<u8>),
    /// The connection is lost after the first piece.
    Cut,
    /// The first piece, and the others when the gate is opened; lost when it is thrown away.
    Gate(watch::Receiver<bool>),
}

type Documents = (Vec<u8>, Vec<u8>);

#[derive(Default)]
pub(super) struct Registry {
    /// Manifest and configuration by name.
    images: Mutex<HashMap<String, Documents>>,
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    manners: Mutex<HashMap<String, Manners>>,
    /// Blobs that were asked for, with the offset.
    pub(super) asked: Mutex<Vec<(String, u64)>>,
    /// Told the digest of each blob of which a piece was sent.
    pub(super) sent: watch::Sender<u64>,
}

pub(super) struct TestImage {
    pub(super) id: String,
    pub(super) manifest: String,
    /// Digest of each compressed layer.
    pub(super) blobs: Vec<String>,
}

impl Registry {
    /// An image with one layer a text; each layer holds a file of that name, filled with noise of some kilobytes.
    pub(super) fn add(&self, name: &str, files: &[&str]) -> TestImage {
        let layers: Vec<(Vec<u8>, Vec<u8>)> = files.iter().map(|file| layer(file)).collect();
        self.add_layers(name, &layers)
    }

    /// An image of (plain, compressed) layers, which need not belong together.
    pub(super) fn add_layers(&self, name: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> TestImage {
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|(plain, _)| sha256(plain).to_string())
            .collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "created": "2024-05-01T10:00:00Z",
            "config": {"Cmd": ["/bin/true"], "Labels": {"l": name}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created": "2024-05-01T10:00:00Z", "created_by": "ADD x", "comment": "c"},
                        {"created_by": "ENV y", "empty_layer": true}],
        });
        let config = serde_json::to_vec(&config).unwrap();
        let mut blobs = self.blobs.lock().unwrap();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|(_, compressed)| {
                let digest = sha256(compressed).to_string();
                blobs.insert(digest.clone(), compressed.clone());
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": compressed.len()})
            })
            .collect();
        let id = sha256(&config).to_string();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": id, "size": config.len()},
            "layers": descriptors,
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let image = TestImage {
            id,
            manifest: sha256(&manifest).to_string(),
            blobs: layers
                .iter()
                .map(|(_, compressed)| sha256(compressed).to_string())
                .collect(),
        };
        let mut images = self.images.lock().unwrap();
        images.insert(
            format!("{}@{}", Reference::parse(name).unwrap().name(), image.manifest),
            (manifest.clone(), config.clone()),
        );
        images.insert(Reference::parse(name).unwrap().canonical(), (manifest, config));
        image
    }

    pub(super) fn behave(&self, blob: &str, manners: Manners) {
        self.manners.lock().unwrap().insert(blob.to_owned(), manners);
    }

    pub(super) fn times_asked(&self, blob: &str) -> usize {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .filter(|(asked, _)| asked == blob)
            .count()
    }
}

/// A layer: plain and compressed. Its file does not compress, so that it takes several pieces.
pub(super) fn layer(file: &str) -> (Vec<u8>, Vec<u8>) {
    let mut noise = Vec::new();
    let mut block = sha256(file.as_bytes());
    while noise.len() < 8 * PIECE {
        block = sha256(block.to_string().as_bytes());
        noise.extend_from_slice(&hex::decode(block.digest()).unwrap());
    }
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(noise.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append_data(&mut header, file, noise.as_slice()).unwrap();
    let plain = archive.into_inner().unwrap();
    let compressed = gzip(&plain);
    (plain, compressed)
}

pub(super) fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(plain).unwrap();
    gzip.finish().unwrap()
}

fn lost() -> RegistryError {
    RegistryError::new(ErrorKind::Unavailable, "connection lost")
}

#[async_trait]
impl Remote for Arc<Registry> {
    async fn resolve(
        &self,
        reference: &Reference,
        _platform: Option<&Platform>,
        _credentials: Option<&Credentials>,
    ) -> Result<Resolved> {
        let found = self.images.lock().unwrap().get(&reference.canonical()).cloned();
        let unknown = || {
            let text = format!(
                "manifest for {} not found: manifest unknown: manifest unknown",
                reference.familiar()
            );
            RegistryError::new(ErrorKind::NotFound, text)
        };
        let (bytes, _) = found.ok_or_else(unknown)?;
        let manifest = Manifest {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: sha256(&bytes),
            size: bytes.len() as u64,
            bytes: bytes.clone().into(),
        };
        let image = serde_json::from_slice(&bytes).unwrap();
        Ok(Resolved {
            target: manifest.clone(),
            manifest,
            image,
        })
    }

    async fn document(
        &self,
        _: &Reference,
        descriptor: &Descriptor,
        _: Option<&Credentials>,
    ) -> Result<Bytes> {
        let images = self.images.lock().unwrap();
        let config = images
            .values()
            .find(|(_, config)| sha256(config) == *descriptor.digest());
        Ok(config.ok_or_else(lost)?.1.clone().into())
    }

    async fn blob(
        &self,
        _: &Reference,
        descriptor: &Descriptor,
        mut verifier: Verifier,
        _: Option<&Credentials>,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let digest = descriptor.digest().to_string();
        self.asked
            .lock()
            .unwrap()
            .push((digest.clone(), verifier.offset()));
        let manners = self
            .manners
            .lock()
            .unwrap()
            .get(&digest)
            .cloned()
            .unwrap_or(Manners::Good);
        let bytes = match &manners {
            Manners::Other(bytes) => bytes.clone(),
            _ => self.blobs.lock().unwrap()[&digest].clone(),
        };
        let start = usize::try_from(verifier.offset()).unwrap();
        let pieces: Vec<Bytes> = bytes[start..].chunks(PIECE).map(Bytes::copy_from_slice).collect();
        let count = pieces.len();
        let sent = self.sent.clone();
        let verified = {
            for piece in &pieces {
                verifier.update(piece);
            }
            verifier.matches()
        };
        let stream =
            futures_util::stream::iter(pieces.into_iter().enumerate()).then(move |(index, piece)| {
                let (manners, sent, digest) = (manners.clone(), sent.clone(), digest.clone());
                async move {
                    if index > 0 {
                        match manners {
                            Manners::Cut => return Err(lost().into()),
                            Manners::Gate(mut gate) => {
                                drop(gate.wait_for(|open| *open).await.map_err(|_| lost())?);
                            }
                            Manners::Good | Manners::Other(_) => {}
                        }
                    }
                    if index + 1 == count && !verified {
                        let text = format!("filesystem layer verification failed for digest {digest}");
                        return Err(RegistryError::new(ErrorKind::Corrupt, text).into());
                    }
                    sent.send_modify(|sent| *sent += 1);
                    Ok(piece)
                }
            });
        Ok(stream.boxed())
    }
}

/// The store's form of a digest.
pub(super) fn digest(text: &str) -> Digest {
    text.parse().unwrap()
}
