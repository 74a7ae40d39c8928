//! An image: its configuration as it came, and what follows from it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use skiff_graphdrivers::LayerId;

use crate::blobs::read_document;
use crate::digest::{Descriptor, Digest, chain_ids};
use crate::error::{Error, Result};

/// The annotation that names the manifest of the image below (OCI image specification, "Pre-Defined Annotation Keys").
pub const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";

/// An image.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Digest of the configuration's bytes.
    pub id: Digest,
    /// The configuration, parsed. The bytes are the blob [`Image::id`].
    pub config: Value,
    /// Digests of the layers' tar streams, bottom first.
    pub diff_ids: Vec<Digest>,
    /// Chain ids, bottom first.
    pub chain: Vec<LayerId>,
    /// Manifests that led to this image, each with its layers' blobs, bottom first.
    pub manifests: Vec<Manifest>,
    /// Manifests of this image that could not be read: which blobs they need is not known.
    pub(crate) unread: Vec<Digest>,
}

/// A manifest of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Digest of the manifest's bytes, which are a blob.
    pub digest: Digest,
    /// The layers' compressed blobs, bottom first.
    pub layers: Vec<Descriptor>,
    /// The manifest of the image that this one was made on top of, if it says so (`org.opencontainers.image.base.digest`).
    pub base: Option<Digest>,
}

#[derive(Deserialize)]
struct ManifestDocument {
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct ConfigDocument {
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

impl Image {
    /// Parses a configuration.
    ///
    /// # Errors
    /// `Corrupt` "invalid rootfs in image configuration" (Docker's text), or when it is not JSON.
    pub fn parse(id: Digest, config: &[u8]) -> Result<Self> {
        let damaged = |e| Error::corrupt(format!("image configuration {id} cannot be read")).caused_by(e);
        let document: ConfigDocument = serde_json::from_slice(config).map_err(damaged)?;
        let Some(rootfs) = document.rootfs else {
            return Err(Error::corrupt("invalid rootfs in image configuration"));
        };
        let diff_ids = rootfs.diff_ids.unwrap_or_default();
        let chain = chain_ids(&diff_ids)
            .into_iter()
            .map(Digest::to_layer_id)
            .collect::<Result<_>>()?;
        let config = serde_json::from_slice(config).map_err(damaged)?;
        Ok(Self {
            id,
            config,
            diff_ids,
            chain,
            manifests: Vec::new(),
            unread: Vec::new(),
        })
    }

    /// The top layer; `None` without layers.
    pub fn top_layer(&self) -> Option<&LayerId> {
        self.chain.last()
    }

    /// Blobs from which the layer at `index` (bottom is 0) can be unpacked.
    pub(crate) fn layer_sources(&self, index: usize) -> impl Iterator<Item = &Descriptor> {
        self.manifests
            .iter()
            .filter_map(move |manifest| manifest.layers.get(index))
    }

    /// All blobs of the image: configuration, manifests, layers; those of layers as far as manifests can be read.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        let of_manifest = |manifest: &Manifest| {
            std::iter::once(manifest.digest)
                .chain(manifest.layers.iter().map(|l| l.digest))
                .collect::<Vec<_>>()
        };
        std::iter::once(self.id)
            .chain(self.manifests.iter().flat_map(of_manifest))
            .chain(self.unread.iter().copied())
    }

    /// Digests of the manifests, whether or not they can be read.
    pub(crate) fn manifest_digests(&self) -> impl Iterator<Item = Digest> {
        let read = self.manifests.iter().map(|manifest| manifest.digest);
        read.chain(self.unread.iter().copied())
    }

    /// Reads an image from the blobs below `root`; a manifest that cannot be read is remembered as that.
    pub(crate) fn load(root: &Path, id: Digest, manifests: &[Digest]) -> Result<Self> {
        let mut image = Self::parse(id, &document(root, &id)?)?;
        for digest in manifests {
            image.read_manifest(root, digest);
        }
        Ok(image)
    }

    /// Adds a manifest from the blobs below `root`, or remembers that it cannot be read: what it needs must be kept.
    pub(crate) fn read_manifest(&mut self, root: &Path, digest: &Digest) {
        if self.manifest_digests().any(|known| known == *digest) {
            return;
        }
        if let Err(error) = document(root, digest).and_then(|bytes| self.add_manifest(*digest, &bytes)) {
            tracing::error!(image = %self.id, manifest = %digest, %error,
                "a manifest of the image cannot be read; pull it again");
            self.unread.push(*digest);
        }
    }

    /// Tries once more what could not be read.
    pub(crate) fn reread(&mut self, root: &Path) {
        for digest in std::mem::take(&mut self.unread) {
            self.read_manifest(root, &digest);
        }
    }

    /// Adds a manifest, which must name this image's configuration and as many layers.
    pub(crate) fn add_manifest(&mut self, digest: Digest, bytes: &[u8]) -> Result<()> {
        if self.manifests.iter().any(|known| known.digest == digest) {
            return Ok(());
        }
        let document: ManifestDocument = serde_json::from_slice(bytes)
            .map_err(|e| Error::corrupt(format!("manifest {digest} cannot be read")).caused_by(e))?;
        if document.config.digest != self.id || document.layers.len() != self.diff_ids.len() {
            return Err(Error::corrupt(
                "layers from manifest don't match image configuration",
            ));
        }
        let annotations = document.annotations.unwrap_or_default();
        let base = annotations.get(BASE_DIGEST).and_then(|base| base.parse().ok());
        self.manifests.push(Manifest {
            digest,
            layers: document.layers,
            base,
        });
        self.unread.retain(|unread| *unread != digest);
        Ok(())
    }
}

/// Digests of the layers that a manifest names.
///
/// # Errors
/// `NotFound`; `Corrupt`; `Io`.
pub(crate) fn layers_of(root: &Path, manifest: &Digest) -> Result<Vec<Digest>> {
    let parsed: ManifestDocument = serde_json::from_slice(&document(root, manifest)?)
        .map_err(|e| Error::corrupt(format!("manifest {manifest} cannot be read")).caused_by(e))?;
    Ok(parsed.layers.into_iter().map(|layer| layer.digest).collect())
}

fn document(root: &Path, digest: &Digest) -> Result<Vec<u8>> {
    read_document(&root.join("blobs/sha256").join(digest.hex()), digest)
}
