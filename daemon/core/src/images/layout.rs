//! The documents in an archive of images: those of an OCI layout, and Docker's own beside them.
//!
//! ```text
//!   blobs/sha256/<hex>    configurations, manifests, layers, exactly as they are kept
//!   index.json            OCI: a manifest for each name, the name in its annotations
//!   manifest.json         Docker: configuration, names and layers of each image, as paths in the archive
//!   oci-layout            marks the layout
//!   repositories          Docker's oldest form: repository → tag → top layer
//! ```
//!
//! Written by `save`, read by `load`; see ADR 13.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skiff_store::{BASE_DIGEST, Descriptor, Digest};

use crate::error::{Error, Result};

pub(super) const BLOBS: &str = "blobs/sha256";
pub(super) const INDEX: &str = "index.json";
pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const LAYOUT: &str = "oci-layout";
pub(super) const REPOSITORIES: &str = "repositories";

/// The contents of `oci-layout`, blank included, as Docker and containerd write it.
pub(super) const LAYOUT_TEXT: &str = r#"{"imageLayoutVersion": "1.0.0"}"#;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// The whole name of an image.
pub(super) const FULL_NAME: &str = "io.containerd.image.name";
/// The tag alone, or with other writers the whole name.
pub(super) const SHORT_NAME: &str = "org.opencontainers.image.ref.name";

/// `index.json`, and any image index.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    #[serde(default)]
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) manifests: Vec<IndexEntry>,
}

/// A manifest in an index.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IndexEntry {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<EntryPlatform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

/// For which machines a manifest is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct EntryPlatform {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) variant: String,
}

/// One image in `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    pub(super) config: String,
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default, deserialize_with = "null_default")]
    pub(super) layers: Vec<String>,
}

/// `repositories`.
pub(super) type Repositories = BTreeMap<String, BTreeMap<String, String>>;

/// An image's manifest, as far as it is written here.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'m> {
    schema_version: u32,
    media_type: &'m str,
    config: &'m Descriptor,
    layers: &'m [Descriptor],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, Digest>,
}

/// What is read of a manifest or an index.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) config: Option<Descriptor>,
    pub(super) layers: Option<Vec<Descriptor>>,
    pub(super) manifests: Option<Vec<IndexEntry>>,
}

impl Document {
    /// The media type for a descriptor of this manifest: what it says itself, or what its configuration's type lets guess.
    pub(super) fn manifest_type(&self) -> String {
        if !self.media_type.is_empty() {
            return self.media_type.clone();
        }
        let docker = |config: &Descriptor| config.media_type.starts_with("application/vnd.docker.");
        let docker = self.config.as_ref().is_some_and(docker);
        if docker { DOCKER_MANIFEST } else { OCI_MANIFEST }.to_owned()
    }
}

/// `null` is an empty list.
pub(super) fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// The path of a blob in an archive.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("{BLOBS}/{}", digest.hex())
}

/// A document's bytes. The same value always gives the same bytes.
pub(super) fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::system("encode a document").caused_by(e))
}

/// The bytes of an OCI manifest for a configuration and layers, the same for the same arguments. `base` is the manifest of
/// the image it was made on top of.
pub(super) fn manifest(config: &Descriptor, layers: &[Descriptor], base: Option<Digest>) -> Result<Vec<u8>> {
    encode(&Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST,
        config,
        layers,
        annotations: base.map(|base| (BASE_DIGEST, base)).into_iter().collect(),
    })
}

/// The descriptor of a configuration in an OCI manifest.
pub(super) fn config_descriptor(digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: OCI_CONFIG.to_owned(),
        digest,
        size,
    }
}

/// A layer's descriptor in the words of OCI, for manifests that are made out of others.
pub(super) fn oci_layer(layer: &Descriptor) -> Descriptor {
    let media_type = match layer.media_type.as_str() {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar" => "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => {
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        }
        other => other,
    };
    Descriptor {
        media_type: media_type.to_owned(),
        ..layer.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_written_like_docker_s() {
        let digest = Digest::of(b"");
        let image = DockerImage {
            config: blob_path(&digest),
            repo_tags: None,
            layers: vec![blob_path(&digest)],
        };
        let hex = digest.hex();
        assert_eq!(
            String::from_utf8(encode(&[image]).unwrap()).unwrap(),
            format!(r#"[{{"Config":"blobs/sha256/{hex}","RepoTags":null,"Layers":["blobs/sha256/{hex}"]}}]"#)
        );
        let config = config_descriptor(digest, 0);
        let text = String::from_utf8(manifest(&config, &[], None).unwrap()).unwrap();
        assert_eq!(
            text,
            format!(
                r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{OCI_CONFIG}","digest":"{digest}","size":0}},"layers":[]}}"#
            )
        );
    }

    #[test]
    fn null_layers_and_missing_fields_are_read() {
        let image: DockerImage =
            serde_json::from_str(r#"{"Config":"a.json","RepoTags":null,"Layers":null}"#).unwrap();
        assert!(image.layers.is_empty() && image.repo_tags.is_none());
        let document: Document = serde_json::from_str(
            r#"{"config":{"mediaType":"application/vnd.docker.container.image.v1+json","size":1,
                "digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},"layers":[]}"#,
        )
        .unwrap();
        assert_eq!(document.manifest_type(), DOCKER_MANIFEST);
    }
}
